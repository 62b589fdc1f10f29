import dataclasses
import json
import shutil
import types

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as bpe

from jaxasa import config
from jaxasa.config import ConfigError
from jaxasa.core import trees
from jaxasa.data import pipeline, questions, tokens
from jaxasa.hf import keymap
from jaxasa.models.asa import ASA
from jaxasa.parallel import mesh
from jaxasa.stages import initial_state
from jaxasa.train import checkpoint

ROWS = 310
MODEL = config.Model(
    semantic=config.Semantic(n_mels=16, width=8, heads=2, layers=1),
    spatial=config.Spatial(
        width=8,
        heads=2,
        layers=1,
        stem=((4, 2, 4),),
        features="intensity",
        n_mels=16,
        num_classes=2,
    ),
    projector=config.Projector(hidden_width=8, expert_width=4),
    decoder=config.Decoder(
        vocab_size=ROWS,
        width=8,
        heads=2,
        kv_heads=1,
        head_dim=4,
        intermediate_size=8,
        layers=2,
        tie_word_embeddings=False,
    ),
    lora=config.Lora(rank=1),
    frozen_dtype="bfloat16",
)
ROOMY = dataclasses.replace(MODEL, prompt_tokens=400, reply_tokens=400)  # for bytes as tokens
CLASSES = ("bell", "dog")
STAGE = config.Stage(
    steps=1, batch_size=1, learning_rate=1e-3, trainable=("lora/.*", "projector/.*")
)  # fmt: skip


def qwen_like(path, words=("<think>", "where is the dog")):
    """A byte-level BPE with the special tokens of Qwen's, and no others."""
    tokenizer = Tokenizer(bpe.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(list(words) * 3, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(path))
    return tokenizer


@pytest.fixture
def run_of(described, monkeypatch):
    """`run_of(model, resume, decoder)`: what start.tokenizer reads of a run; its bank is BANK."""
    written = pipeline.Written
    monkeypatch.setattr(pipeline, "Written", lambda *args: written(*args[:-1], 40))
    parts = {"scenes": config.Scenes(train=1, dev=1, benchmark=1), "questions": questions.ALL}

    def make(model, init_from="", decoder=""):
        given = config.Pretrained(decoder=decoder)
        more = {"init_from": init_from, "init_parts": (), "pretrained": given, "seed": 0}
        return types.SimpleNamespace(model=model, **parts, **more)

    make.bank = types.SimpleNamespace(
        classes=sorted({clip.label for clip in described.clips}),
        clips=lambda split: described.clips,
    )
    return make


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """A folder as of Qwen2, and the flat parameters that it holds."""
    folder = tmp_path_factory.mktemp("qwen")
    asa, d = ASA(MODEL), MODEL.decoder
    shapes = trees.flatten(jax.eval_shape(asa.init, jax.random.key(0)))
    rng = np.random.default_rng(0)
    leaves = {
        path: rng.normal(size=leaf.shape).astype(np.float32)
        for path, leaf in shapes.items()
        if path.startswith("decoder/")
    }
    save_file(keymap.to_file(leaves), folder / "model.safetensors")
    meta = {"model_type": "qwen2", "vocab_size": ROWS, "hidden_size": d.width, "rms_norm_eps": 1e-6}
    meta |= {"num_attention_heads": d.heads, "num_key_value_heads": d.kv_heads}
    meta |= {
        "intermediate_size": d.intermediate_size,
        "num_hidden_layers": d.layers,
        "rope_theta": 1e4,
    }
    (folder / "config.json").write_text(json.dumps(meta))
    qwen_like(folder / "tokenizer.json")
    return folder, leaves


@pytest.fixture(scope="module")
def begin():
    """`begin(folder, stage, **fields of Run)`: the state that a stage starts from."""
    asa, where = ASA(MODEL), mesh.make(config.Mesh(1, 1, 1), jax.devices()[:1])

    def run(folder, stage="sft", **fields):
        settings = dict(
            model=MODEL, stages=("sft", "grpo"), sft=STAGE, grpo=STAGE, seed=0, init_from="",
            init_parts=(), pretrained=config.Pretrained(),
            scenes=types.SimpleNamespace(seconds=1.0),
        )  # fmt: skip
        with jax.set_mesh(where):
            return initial_state.at(
                types.SimpleNamespace(**settings | fields), stage, folder, asa, where, CLASSES
            )

    return run


def save(state, folder, stage):
    meta = {"stage": stage, "classes": list(CLASSES), "seconds": 1.0, "tokenizer": "tokenizer.json"}
    meta["model"] = dataclasses.asdict(MODEL)
    with checkpoint.Store(folder / "checkpoints" / stage) as store:
        store.save(1, state, {}, meta, "")
    path = folder / "checkpoints" / stage / "tokenizer.json"
    qwen_like(path)
    path.write_text(tokens.adopt(path)[0].tokenizer.to_str(), "utf-8")
    shutil.copyfile(path, folder / "tokenizer.json")


@pytest.mark.soak
def test_own_checkpoint_then_stage_before_then_resume_then_pretrained(begin, qwen, tmp_path):
    folder, leaves = qwen
    weights = config.Pretrained(decoder=str(folder))
    first = begin(tmp_path, pretrained=weights)
    flat = trees.flatten(first.params)
    known = Tokenizer.from_file(str(folder / "tokenizer.json"))
    names = ("<think>", "</think>", "<answer>", "</answer>")
    spare = dict(enumerate(names, known.get_vocab_size() + 1))
    for path, leaf in leaves.items():
        wanted = leaf.astype("bfloat16").astype(np.float32)
        found = np.asarray(flat[path], np.float32)
        assert flat[path].dtype == "bfloat16"
        if path in ("decoder/embedding/embedding", "decoder/head"):
            rows = list(spare)
            for row, name in spare.items():
                mean = wanted[known.encode(name).ids].mean(0)
                np.testing.assert_allclose(found[row], mean, atol=0.02)
            found, wanted = np.delete(found, rows, 0), np.delete(wanted, rows, 0)
        np.testing.assert_array_equal(found, wanted)
    learning = {path for path, leaf in flat.items() if leaf.dtype == "float32"}
    assert learning == {p for p in flat if p.startswith(("lora/", "projector/"))}
    assert np.asarray(flat["projector/out/kernel"]).std() > 0

    save(first, tmp_path / "other", "sft")
    shutil.copyfile(tmp_path / "other" / "tokenizer.json", tmp_path / "tokenizer.json")
    other = str(tmp_path / "other" / "checkpoints" / "sft")
    resumed = begin(tmp_path, init_from=other, pretrained=config.Pretrained(decoder="/nowhere"))
    for path, leaf in trees.flatten(resumed.params).items():
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(flat[path]))
    partly = begin(tmp_path, init_from=other, init_parts=("decoder",), seed=1)
    for path, leaf in trees.flatten(partly.params).items():
        if path.startswith("decoder/") or path == "projector/out/kernel":
            is_same = np.array_equal(np.asarray(leaf), np.asarray(flat[path]))
            assert is_same == path.startswith("decoder/"), path
    with pytest.raises(ConfigError, match="expected stage sft before grpo"):
        begin(tmp_path, "grpo", init_from=other)
    before = begin(tmp_path / "other", "grpo", init_from="/nowhere")
    head = np.asarray(before.params["decoder"]["head"])
    np.testing.assert_array_equal(head, np.asarray(flat["decoder/head"]))

    own = begin(tmp_path / "other", "sft", init_from="/nowhere")
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(own))
    with checkpoint.Store(tmp_path / "other" / "checkpoints" / "sft") as store:
        meta = store.meta()
        back, _ = store.restore(own, meta)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(first), strict=True):
        assert a.dtype == b.dtype and a.sharding == b.sharding
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))

    model = dataclasses.replace(
        MODEL, decoder=dataclasses.replace(MODEL.decoder, intermediate_size=6)
    )
    wanted = trees.flatten(
        jax.eval_shape(ASA(model).init, jax.random.key(0)), ""
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"up/kernel is \(2, 8, 8\) there, \(2, 8, 6\) here"):
        initial_state._trained(tmp_path, *checkpoint.load(other), CLASSES, wanted)
    with pytest.raises(ConfigError, match=r"classes \['bell', 'dog'\], expected \['dog'\]"):
        initial_state._trained(tmp_path, *checkpoint.load(other), ("dog",), wanted)


def test_words_of_the_weights_and_of_the_run_are_the_same(run_of, tmp_path):
    source = tmp_path / "checkpoints" / "text"
    source.mkdir(parents=True)
    meta = {"stage": "text", "classes": [], "seconds": 1.0, "model": {}}
    (source / "meta.json").write_text(json.dumps(meta | {"tokenizer": "tokenizer.json"}))
    qwen_like(source / "own.json")
    text = tokens.adopt(source / "own.json")[0].tokenizer.to_str()
    (source / "tokenizer.json").write_text(text, "utf-8")
    short = dataclasses.replace(ROOMY, reply_tokens=40)
    with pytest.raises(ConfigError, match=r"Model\.reply_tokens is 40, expected at least \d+, for"):
        initial_state.tokenizer(run_of(short, str(source)), run_of.bank, tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()
    initial_state.tokenizer(run_of(ROOMY, str(source)), run_of.bank, tmp_path)
    initial_state._same_words(source, tmp_path)
    qwen_like(tmp_path / "other.json", ("<think>", "a dog is where"))
    other = tokens.adopt(tmp_path / "other.json")[0].tokenizer.to_str()
    (tmp_path / "tokenizer.json").write_text(other, "utf-8")
    with pytest.raises(ConfigError, match="text/tokenizer.json: other words than those of"):
        initial_state._same_words(source, tmp_path)


def test_the_pretrained_tokenizer_becomes_the_runs(qwen, run_of, tmp_path):
    folder, _ = qwen
    bank = run_of.bank
    with pytest.raises(
        ConfigError, match=r"Model\.prompt_tokens is 48, expected at least \d+, for"
    ):
        initial_state.tokenizer(run_of(MODEL, "", str(folder)), bank, tmp_path)
    text = initial_state.tokenizer(run_of(ROOMY, "", str(folder)), bank, tmp_path)
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    size = own.get_vocab_size()
    assert (text.pad, text.eos) == tuple(map(own.token_to_id, ("<|endoftext|>", "<|im_end|>")))
    assert (text.audio, text.think, text.end_think) == (size, size + 1, size + 2)
    words = " where is the dog ?\n"
    assert text.encode(words) == own.encode(words).ids and text.decode(text.encode(words)) == words
    prompt = tokens.prompt_ids(text, 2, words)
    assert text.tokenizer.decode(prompt, skip_special_tokens=False) == (
        "<|im_start|>user\n<AcousticTokens><AcousticTokens> where is the dog ?\n"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    assert text.encode(tokens.answer_text("left"))[-1] == text.eos
    again = tokens.Text.load(tmp_path / "tokenizer.json")
    assert dataclasses.replace(again, tokenizer=text.tokenizer) == text

    small = dataclasses.replace(
        ROOMY, decoder=dataclasses.replace(MODEL.decoder, vocab_size=size + 4)
    )
    run = run_of(small, "", str(folder))
    with pytest.raises(
        ConfigError, match=rf"'</answer>' has id {size + 4}, .*Decoder.vocab_size = {size + 4}"
    ):
        initial_state.tokenizer(run, bank, tmp_path)
    (tmp_path / "new").mkdir()
    with pytest.raises(ConfigError, match="expected less than"):
        initial_state.tokenizer(run, bank, tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read as a tokenizer"):
        tokens.adopt(tmp_path / "tokenizer.json")
