# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import tracemalloc
import types

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from jaxasa import config
from jaxasa.config import ConfigError
from jaxasa.core import trees
from jaxasa.hf import keymap, pretrained, weights
from jaxasa.models import sample
from jaxasa.models.asa import ASA
from jaxasa.models.decoder import Decoder
from jaxasa.models.layers import sinusoids
from jaxasa.models.semantic import SemanticEncoder
from jaxasa.parallel import mesh, sharding

SEMANTIC = config.Semantic(n_mels=16, width=16, heads=2, layers=2, max_seconds=0.5)
DECODER = config.Decoder(
    vocab_size=96, width=16, heads=4, kv_heads=2, head_dim=4, intermediate_size=24, layers=3
)  # fmt: skip
QWEN3 = dataclasses.replace(
    DECODER, qkv_bias=False, qk_norm=True, head_dim=6, tie_word_embeddings=False
)


def model_of(semantic=SEMANTIC, decoder=DECODER):
    spatial = config.Spatial(width=8, heads=2, layers=1, stem=((4, 2, 4),))
    projector = config.Projector(hidden_width=8, expert_width=4)
    return config.Model(semantic, spatial, projector, decoder, config.Lora(rank=1))


def targets_of(model, part, on_mesh, dtype="float32"):
    """{path: shape, dtype, sharding} of one part's parameters."""
    key = jax.random.key(0)
    if part == "semantic":
        mels = np.zeros((1, 4, model.semantic.n_mels))
        shapes = jax.eval_shape(SemanticEncoder(model.semantic).init, key, mels)["params"]
    else:
        x = np.zeros((1, 2, model.decoder.width))

        def init(key):
            module = Decoder(model.decoder, model.lora)
            tables = module.init(key, np.zeros((1, 1), int), method="embed")["params"]
            return tables | module.init(key, x, np.ones((1, 2), bool))["params"]

        shapes = jax.eval_shape(init, key)
    shardings = trees.flatten(sharding.params_sharding({part: shapes}, on_mesh))
    return {
        path: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=shardings[path])
        for path, leaf in trees.flatten({part: shapes}).items()
    }


@pytest.fixture(scope="module")
def one():
    return mesh.make_mesh(config.Mesh(1, 1, 1), jax.devices()[:1])


@pytest.fixture(scope="module")
def eight():
    return mesh.make_mesh(config.Mesh(2, 2, 2))


def as_qwen2(d):
    return {
        "model_type": "qwen3" if d.qk_norm else "qwen2",
        "vocab_size": d.vocab_size,
        "hidden_size": d.width,
        "num_attention_heads": d.heads,
        "num_key_value_heads": d.kv_heads,
        "head_dim": d.head_dim,
        "intermediate_size": d.intermediate_size,
        "num_hidden_layers": d.layers,
        "rope_theta": d.rope_theta,
        "rms_norm_eps": d.norm_eps,
        "tie_word_embeddings": d.tie_word_embeddings,
        "hidden_act": "silu",
    }


def as_whisper(s):
    return {
        "model_type": "whisper",
        "num_mel_bins": s.n_mels,
        "d_model": s.width,
        "encoder_attention_heads": s.heads,
        "encoder_layers": s.layers,
        "encoder_ffn_dim": 4 * s.width,
        "max_source_positions": round(50 * s.max_seconds),
        "activation_function": "gelu",
    }


@pytest.fixture
def written(tmp_path, one):
    """`written(part, model)`: a folder with random weights, and these flat."""

    def write(part, model, dtype=np.float32):
        rng = np.random.default_rng(0)
        leaves = {
            path: rng.normal(size=t.shape).astype(dtype)
            for path, t in targets_of(model, part, one).items()
        }
        meta = as_qwen2(model.decoder) if part == "decoder" else as_whisper(model.semantic)
        architecture = keymap.ARCHITECTURES[meta["model_type"]]
        tensors = {}
        for path, leaf in leaves.items():
            locations = keymap.tensor_locations(path, leaf.shape[0], architecture.rows)
            for n, location in enumerate(locations):
                layer = leaf[n] if location.stacked else leaf
                axes = {"linear": (1, 0), "conv1d": (2, 1, 0)}.get(location.layout)
                layer = layer.transpose(axes) if axes else layer
                tensors[location.name] = np.ascontiguousarray(layer)
        if part == "semantic":
            s = model.semantic
            tensors[architecture.positions] = sinusoids(round(50 * s.max_seconds), s.width)
            tensors["model.decoder.layers.0.fc1.weight"] = np.zeros((3, 3), np.float32)
        folder = tmp_path / part
        folder.mkdir()
        save_file(tensors, folder / weights.WEIGHTS)
        (folder / "config.json").write_text(json.dumps(meta))
        return folder, leaves

    return write


def edit(folder, change):
    tensors = dict(load_file(folder / weights.WEIGHTS))
    change(tensors)
    save_file(tensors, folder / weights.WEIGHTS)


def shard(folder):
    """The same tensors in two files with an index."""
    tensors = load_file(folder / weights.WEIGHTS)
    files = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({n: t for n, t in tensors.items() if files[n] == file}, folder / file)
    (folder / weights.INDEX).write_text(json.dumps({"weight_map": files}))
    (folder / weights.WEIGHTS).unlink()


@pytest.mark.parametrize("decoder", [DECODER, QWEN3])
def test_a_decoder_loads_on_any_mesh_from_any_number_of_files(written, one, eight, decoder):
    model = model_of(decoder=decoder)
    folder, leaves = written("decoder", model)
    for on_mesh in (one, eight):
        targets = targets_of(model, "decoder", on_mesh)
        params = pretrained.load(str(folder), "decoder", model, targets)
        assert set(params) == set(leaves)
        for path, leaf in leaves.items():
            assert params[path].sharding == targets[path].sharding
            np.testing.assert_array_equal(np.asarray(params[path]), leaf)
        shard(folder) if on_mesh is one else None
    assert any(not t.sharding.is_fully_replicated for t in targets.values())


def test_an_encoder_loads_in_bfloat16_without_whispers_decoder(written, one):
    model = model_of()
    folder, leaves = written("semantic", model, np.float16)
    targets = targets_of(model, "semantic", one, "bfloat16")
    params = pretrained.load(str(folder), "semantic", model, targets)
    for path, leaf in leaves.items():
        assert params[path].dtype == "bfloat16"
        expected = leaf.astype("bfloat16")
        np.testing.assert_array_equal(np.asarray(params[path]), expected, err_msg=path)


def test_loading_needs_host_memory_for_two_copies_of_one_tensor(written, one):
    # On CPU the arrays are in the host's memory too, but Python does not allocate them.
    decoder = dataclasses.replace(
        DECODER, vocab_size=20_000, width=64, intermediate_size=4000, layers=6
    )
    model = model_of(decoder=decoder)
    folder, _ = written("decoder", model)
    largest = 20_000 * 64 * 4
    targets = targets_of(model, "decoder", one)
    assert sum(np.prod(t.shape) * 4 for t in targets.values()) > 4 * largest
    tracemalloc.start()
    pretrained.load(str(folder), "decoder", model, targets)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert largest < peak < 2.05 * largest


def test_all_faults_of_a_folder_are_listed_in_one_line(written, one):
    model = model_of()
    folder, _ = written("decoder", model)

    def change(tensors):
        del tensors["model.norm.weight"], tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.3.mlp.up_proj.weight"] = np.zeros((24, 16), np.float32)
        tensors["model.layers.0.self_attn.q_proj.weight"] = np.zeros((16, 15), np.float32)
        tensors["model.layers.0.self_attn.k_proj.bias"] = np.zeros(8, np.int8)
        # Neither is surplus: the embedding repeated, and a table in older files.
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(2, np.float32)

    edit(folder, change)
    with pytest.raises(ConfigError) as error:
        pretrained.load(str(folder), "decoder", model, targets_of(model, "decoder", one))
    faults = str(error.value).removeprefix(f"{folder}: ").split("; ")
    assert sorted(faults) == [
        "missing model.layers.1.mlp.up_proj.weight",
        "missing model.norm.weight",
        "model.layers.0.self_attn.k_proj.bias is of type I8, expected one of F64, F32, F16, BF16",
        "model.layers.0.self_attn.q_proj.weight is [16, 15], expected [16, 16]",
        "surplus model.layers.3.mlp.up_proj.weight",
    ]


def test_a_config_of_another_model_is_refused_by_name(written, one):
    model = model_of()
    folder, _ = written("decoder", model)
    path, targets = folder / "config.json", targets_of(model, "decoder", one)
    meta = json.loads(path.read_text())

    def refused(match, **changes):
        path.write_text(json.dumps(meta | changes))
        with pytest.raises(ConfigError, match=match):
            pretrained.load(str(folder), "decoder", model, targets)

    refused("model_type is 'llama', expected one of qwen2, qwen3, qwen2_audio", model_type="llama")
    refused(r"hidden_size is 32, the gin model's Decoder\.width 16; num_hidden_layers is 5",
            hidden_size=32, num_hidden_layers=5)  # fmt: skip
    refused(r"qkv_bias, qk_norm\) = \(False, True\)", model_type="qwen3")
    refused("rope_type is 'yarn'", rope_scaling={"type": "yarn", "factor": 4.0})
    refused("use_sliding_window is True", use_sliding_window=True)
    refused("hidden_act is 'gelu'", hidden_act="gelu")
    path.unlink()
    with pytest.raises(ConfigError, match=r"config\.json: no such file"):
        pretrained.load(str(folder), "decoder", model, targets)


def test_other_positions_and_other_frames_are_refused(written, one):
    model = model_of()
    folder, _ = written("semantic", model)
    targets = targets_of(model, "semantic", one)
    name = "model.encoder.embed_positions.weight"
    edit(folder, lambda tensors: tensors.update({name: tensors[name][::-1].copy()}))
    with pytest.raises(ConfigError, match="embed_positions.*other positions than Whisper's"):
        pretrained.load(str(folder), "semantic", model, targets)
    pooled = model_of(semantic=dataclasses.replace(SEMANTIC, pool=2, max_seconds=30.0))
    with pytest.raises(ConfigError, match=r"Semantic\.pool = 1, the gin model 2; .*25, too few"):
        pretrained.load(str(folder), "semantic", pooled, targets)


def test_damaged_files(written, one):
    model = model_of()
    folder, _ = written("decoder", model)
    targets = targets_of(model, "decoder", one)

    def refused(match):
        with pytest.raises(ConfigError, match=match):
            pretrained.load(str(folder), "decoder", model, targets)

    def spoil(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = np.nan
        tensors["model.norm.weight"][0] = np.inf

    edit(folder, spoil)
    refused(
        r"NaN or infinite values in model\.layers\.1\.mlp\.up_proj\.weight, model\.norm\.weight"
    )
    file = folder / weights.WEIGHTS
    whole = file.read_bytes()
    file.write_bytes(whole[:-40])
    refused(r"model\.safetensors: truncated or damaged")
    file.unlink()
    refused(r"model\.safetensors: no such file")
    (folder / "pytorch_model.bin").write_bytes(b"")
    refused(r"pytorch_model\.bin: a pickle, .* save_pretrained")
    file.write_bytes(whole)
    shard(folder)
    index = json.loads((folder / weights.INDEX).read_text())
    index["weight_map"].popitem()
    (folder / weights.INDEX).write_text(json.dumps(index))
    refused("its tensors differ from model.safetensors.index.json")


def test_a_name_on_the_hub(written, monkeypatch, tmp_path):
    folder, _ = written("decoder", model_of())
    patterns = {}

    def download(name, allow_patterns):
        patterns[name] = allow_patterns
        return str(folder)

    hub = types.SimpleNamespace(snapshot_download=download)
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", hub)
    assert weights.resolve_folder("Qwen/Qwen2.5-7B") == folder
    assert patterns == {"Qwen/Qwen2.5-7B": ["*.safetensors", "*.json"]}

    def offline(name, allow_patterns):
        raise OSError("no network\nat all")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(
        ConfigError, match=r"Qwen/Qwen2\.5-7B: .*cannot be downloaded from the hub: no network$"
    ):
        weights.resolve_folder("Qwen/Qwen2.5-7B")
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match="install huggingface_hub"):
        weights.resolve_folder("Qwen/Qwen2.5-7B")
    with pytest.raises(ConfigError, match="no such folder, expected one with model.safetensors"):
        weights.resolve_folder(str(tmp_path / "nothing"))


@given(st.sampled_from(sorted(keymap.ARCHITECTURES)), st.integers(0, 200), st.data())
@settings(max_examples=60)
def test_each_row_of_each_architecture_inverts(kind, n, data):
    rows = keymap.ARCHITECTURES[kind].rows
    row = data.draw(st.sampled_from(rows))
    locations = keymap.tensor_locations(row.jax_path, n + 1, rows)
    assert len(locations) == (n + 1 if "{n}" in row.hf_name else 1)
    assert len({location.name for location in locations}) == len(locations)
    assert all(keymap.has_row(location.name, rows) for location in locations)
    others = tuple(r for r in rows if r != row)
    assert not any(keymap.has_row(location.name, others) for location in locations)
    assert not keymap.has_row(locations[-1].name + "_scale", rows)
    shape = tuple(range(2, 2 + {"same": 1, "linear": 2, "conv1d": 3}[row.layout]))
    in_file = np.zeros(keymap.to_hf_layout(shape, row.layout))
    assert keymap.from_hf_layout(in_file, row.layout).shape == shape


# Against transformers: models that its own save_pretrained wrote.

PAD, NEW = 0, 6


def stir(torch, twin):
    """Random weights with which every part of the model affects its output."""
    torch.manual_seed(0)
    for name, weight in twin.named_parameters():
        if "embed_positions" in name:
            # Qwen2-Audio's class does not compute them; its published weights have them.
            weight.data = torch.tensor(sinusoids(*weight.shape))
            continue
        noise = torch.randn_like(weight)
        if weight.ndim == 1:
            weight.data = ("norm" in name and name.endswith("weight")) + 0.1 * noise
        else:
            weight.data = (
                0.5 * noise if "embed_tokens" in name else noise * weight[0].numel() ** -0.5
            )
    return twin.eval()


def prompts(vocab):
    """int32 [3, 9], padded on the left."""
    ids = np.random.default_rng(1).integers(3, vocab, (3, 9)).astype(np.int32)
    ids[1, :4] = ids[2, :2] = PAD
    return ids


def text_settings(d, **more):
    return dict(
        vocab_size=d.vocab_size,
        hidden_size=d.width,
        intermediate_size=d.intermediate_size,
        num_hidden_layers=d.layers,
        num_attention_heads=d.heads,
        num_key_value_heads=d.kv_heads,
        rms_norm_eps=d.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": d.rope_theta},
        tie_word_embeddings=d.tie_word_embeddings,
        **more,
    )


def check_parity(torch, twin, model, params):
    """Asserts that logits with left padding, greedy text and its logits equal those of `twin`."""
    asa, ids = ASA(model), prompts(model.decoder.vocab_size)
    valid = ids != PAD
    with torch.no_grad():
        expected = twin(
            input_ids=torch.tensor(ids).long(),
            attention_mask=torch.tensor(valid).long(),
            position_ids=torch.tensor(np.maximum(np.cumsum(valid, 1) - 1, 0)),
        ).logits.numpy()
        reply = twin.generate(
            input_ids=torch.tensor(ids).long(),
            attention_mask=torch.tensor(valid).long(),
            max_new_tokens=NEW,
            do_sample=False,
            pad_token_id=PAD,
            eos_token_id=None,
            output_logits=True,
            return_dict_in_generate=True,
        )
        expected_ids = reply.sequences[:, 9:].numpy()
        expected_logps = torch.stack(reply.logits, 1).log_softmax(-1).numpy()

    @jax.jit
    def run(params):
        hidden, *_ = asa.forward(params, asa.embed(params, ids, None, 2), valid)
        special_tokens = sample.SpecialTokenIds(PAD, eos=-1, audio=2, answer=-1)
        completions = sample.generate(
            *(asa, params, ids, None, jax.random.key(0), special_tokens), max_new_tokens=NEW
        )
        logits = hidden @ asa.unembedding(params).T
        return logits, completions.ids[:, 0], completions.logps[:, 0]

    logits, ids, logps = run(params)
    assert expected[valid].std() > 0.5
    np.testing.assert_allclose(np.asarray(logits)[valid], expected[valid], atol=1e-4)
    np.testing.assert_array_equal(np.asarray(ids), expected_ids)
    chosen = np.take_along_axis(expected_logps, expected_ids[..., None], 2)[..., 0]
    np.testing.assert_allclose(np.asarray(logps), chosen, atol=1e-4)
    assert len(np.unique(expected_ids)) > 1


DECODERS = {
    "qwen2": dataclasses.replace(DECODER, rope_theta=1e6),
    "qwen2.5": dataclasses.replace(DECODER, tie_word_embeddings=False, norm_eps=1e-5),
    "qwen3": QWEN3,
}


@pytest.mark.parametrize("name", DECODERS)
def test_a_loaded_decoder_equals_transformers(name, one, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    d = DECODERS[name]
    kind = "Qwen3" if name == "qwen3" else "Qwen2"
    settings = text_settings(d, head_dim=d.head_dim, attn_implementation="eager")
    settings = getattr(transformers, f"{kind}Config")(**settings)
    twin = stir(torch, getattr(transformers, f"{kind}ForCausalLM")(settings))
    twin.save_pretrained(tmp_path, max_shard_size="5KB")
    assert (tmp_path / weights.INDEX).is_file()
    model = model_of(decoder=d)
    params = pretrained.load(str(tmp_path), "decoder", model, targets_of(model, "decoder", one))
    check_parity(torch, twin, model, trees.merge(params, {}))


def semantic_stream(model, params, mels):
    return np.asarray(ASA(model).semantic.apply({"params": params["semantic"]}, mels))


def test_a_loaded_whisper_encoder_equals_transformers(one, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    s = SEMANTIC
    settings = transformers.WhisperConfig(
        num_mel_bins=s.n_mels, d_model=s.width, encoder_layers=s.layers, decoder_layers=1,
        encoder_attention_heads=s.heads, decoder_attention_heads=2, encoder_ffn_dim=4 * s.width,
        decoder_ffn_dim=8, max_source_positions=25, vocab_size=50, pad_token_id=0, bos_token_id=0,
        eos_token_id=0, decoder_start_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    twin = stir(torch, transformers.WhisperForConditionalGeneration(settings))
    twin.save_pretrained(tmp_path)
    model = model_of()
    loaded = pretrained.load(str(tmp_path), "semantic", model, targets_of(model, "semantic", one))
    params = trees.merge(loaded, {})
    mels = np.random.default_rng(0).normal(size=(2, 50, s.n_mels)).astype(np.float32)
    encoder = twin.model.encoder
    with torch.no_grad():
        expected = encoder(torch.tensor(mels).mT).last_hidden_state.numpy()
        # A clip of 0.24 s: its own submodules, with positions cut to its length.
        x = torch.nn.functional.gelu(encoder.conv1(torch.tensor(mels[:, :24]).mT))
        x = torch.nn.functional.gelu(encoder.conv2(x)).mT + encoder.embed_positions.weight[:12]
        for layer in encoder.layers:
            x = layer(x, None)
            x = x[0] if isinstance(x, tuple) else x
        short = encoder.layer_norm(x).numpy()
    assert expected.std() > 0.5
    np.testing.assert_allclose(semantic_stream(model, params, mels), expected, atol=1e-4)
    np.testing.assert_allclose(semantic_stream(model, params, mels[:, :24]), short, atol=1e-4)


def test_a_loaded_qwen2_audio_equals_transformers(one, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    s = dataclasses.replace(SEMANTIC, pool=2)
    d = dataclasses.replace(DECODER, kv_heads=4, tie_word_embeddings=False)
    tower = dict(
        num_mel_bins=s.n_mels, d_model=s.width, encoder_layers=s.layers,
        encoder_attention_heads=s.heads, encoder_ffn_dim=4 * s.width, max_source_positions=25,
    )  # fmt: skip
    settings = transformers.Qwen2AudioConfig(
        audio_config=transformers.Qwen2AudioEncoderConfig(**tower),
        text_config=transformers.Qwen2Config(**text_settings(d)),
        audio_token_index=95,
        attn_implementation="eager",
    )
    twin = stir(torch, transformers.Qwen2AudioForConditionalGeneration(settings))
    twin.save_pretrained(tmp_path)
    model, loaded = model_of(s, d), {}
    for part in ("semantic", "decoder"):
        loaded |= pretrained.load(str(tmp_path), part, model, targets_of(model, part, one))
    params = trees.merge(loaded, {})
    mels = np.random.default_rng(0).normal(size=(2, 50, s.n_mels)).astype(np.float32)
    with torch.no_grad():
        expected = twin.model.audio_tower(torch.tensor(mels).mT).last_hidden_state.numpy()
    assert expected.shape == (2, 12, 16) and expected.std() > 0.5
    np.testing.assert_allclose(semantic_stream(model, params, mels), expected, atol=1e-4)
    check_parity(torch, twin, model, params)
