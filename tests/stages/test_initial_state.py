# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as bpe

from jaxasa import config
from jaxasa.config import ConfigError, gin_files
from jaxasa.core import trees
from jaxasa.core.workdir import WorkFolder
from jaxasa.data import questions, tokens
from jaxasa.hf import keymap
from jaxasa.models.asa import ASA
from jaxasa.parallel import mesh
from jaxasa.stages.initial_state import (
    WeightSource,
    check_same_tokenizer,
    initial_state,
    load_params,
    tokenizer_for,
)
from jaxasa.stages.stage import Context
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
CLASSES = ("bell", "dog")
STAGE = config.Stage(
    steps=1, batch_size=1, learning_rate=1e-3, trainable=("lora/.*", "projector/.*")
)
CORPUS = ((" where is the dog ?\n", "<think> dog left near</think><answer> left</answer><eos>"),)


def byte_level_tokenizer(path, texts=("<think>", "where is the dog")):
    """Writes a byte-level BPE with the special tokens of Qwen's, and no others."""
    tokenizer = Tokenizer(bpe.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(list(texts) * 3, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(path))
    return tokenizer


def extended(path):
    """The JSON text of a tokenizer with the special tokens that it lacks."""
    return tokens.extend_pretrained_tokenizer(path)[0].backend.to_str()


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """A folder like Qwen2's, and the flat parameters that it holds."""
    folder = tmp_path_factory.mktemp("qwen")
    asa, d = ASA(MODEL), MODEL.decoder
    shapes = trees.flatten(jax.eval_shape(asa.init, jax.random.key(0)))
    rng = np.random.default_rng(0)
    leaves = {
        path: rng.normal(size=leaf.shape).astype(np.float32)
        for path, leaf in shapes.items()
        if path.startswith("decoder/")
    }
    save_file(keymap.to_hf(leaves), folder / "model.safetensors")
    meta = {"model_type": "qwen2", "vocab_size": ROWS, "hidden_size": d.width, "rms_norm_eps": 1e-6}
    meta |= {"num_attention_heads": d.heads, "num_key_value_heads": d.kv_heads}
    meta |= {
        "intermediate_size": d.intermediate_size,
        "num_hidden_layers": d.layers,
        "rope_theta": 1e4,
    }
    (folder / "config.json").write_text(json.dumps(meta))
    byte_level_tokenizer(folder / "tokenizer.json")
    return folder, leaves


@pytest.fixture(scope="module")
def start(text):
    """`start(work, source, stage="sft", seed=0)`: the initial state of a stage in a work folder."""
    one = mesh.make_mesh(config.Mesh(1, 1, 1), jax.devices()[:1])

    def start(work, source, stage="sft", seed=0):
        context = Context(
            stage=STAGE,
            asa=ASA(MODEL),
            mesh=one,
            scenes=config.Scenes(train=1, dev=1, benchmark=1, seconds=1.0),
            seed=seed,
            tokenizer=text,
            classes=CLASSES,
            clips=(),
            question_sampler=questions.QuestionSampler(CLASSES),
            train=None,
            dev=None,
        )
        with jax.set_mesh(one):
            return initial_state(context, work.checkpoint(stage), source, work.tokenizer)

    return start


def save(state, work, stage):
    """Writes a checkpoint and the tokenizers that belong to it."""
    meta = {"stage": stage, "classes": list(CLASSES), "seconds": 1.0, "tokenizer": "tokenizer.json"}
    meta["model"] = dataclasses.asdict(MODEL)
    folder = work.checkpoint(stage)
    with checkpoint.CheckpointManager(folder) as manager:
        manager.save(1, state, {}, meta, "")
    path = folder / "tokenizer.json"
    byte_level_tokenizer(path)
    path.write_text(extended(path), "utf-8")
    shutil.copyfile(path, work.tokenizer)


def test_weight_source_is_the_previous_stage_or_that_of_the_run(tmp_path):
    bindings = ["Run.stages=('sft', 'grpo')", "Run.init_from='there'"]
    run, _ = gin_files.load(["gin/run/smoke.gin"], bindings)
    work = WorkFolder(tmp_path)
    first = WeightSource.of_stage(run, "sft", work)
    assert first == WeightSource.of_run(run) and str(first.checkpoint) == "there"
    assert first.parts == config.PARTS
    decoder_only = dataclasses.replace(run, init_parts=("decoder",))
    assert WeightSource.of_run(decoder_only).parts == ("decoder",)
    with pytest.raises(ConfigError, match="expected stage sft before grpo: .*train sft --work"):
        WeightSource.of_stage(run, "grpo", work)
    work.checkpoint("sft").mkdir(parents=True)
    assert WeightSource.of_stage(run, "grpo", work) == WeightSource(work.checkpoint("sft"))
    weights = config.Pretrained(decoder="qwen")
    scratch = dataclasses.replace(run, init_from="", pretrained=weights)
    assert WeightSource.of_run(scratch) == WeightSource(pretrained=weights)


@pytest.mark.soak
def test_initial_state_precedence(start, qwen, tmp_path):
    """Own checkpoint, then another checkpoint, then pretrained weights, then scratch."""
    folder, leaves = qwen
    work, other = WorkFolder(tmp_path), WorkFolder(tmp_path / "other")
    first = start(work, WeightSource(pretrained=config.Pretrained(decoder=str(folder))))
    flat = trees.flatten(first.params)
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    names = ("<think>", "</think>", "<answer>", "</answer>")
    new_rows = dict(enumerate(names, backend.get_vocab_size() + 1))
    for path, leaf in leaves.items():
        expected = leaf.astype("bfloat16").astype(np.float32)
        value = np.asarray(flat[path], np.float32)
        assert flat[path].dtype == "bfloat16"
        if path in ("decoder/embedding/embedding", "decoder/head"):
            rows = list(new_rows)
            for row, name in new_rows.items():
                mean = expected[backend.encode(name).ids].mean(0)
                np.testing.assert_allclose(value[row], mean, atol=0.02)
            value, expected = np.delete(value, rows, 0), np.delete(expected, rows, 0)
        np.testing.assert_array_equal(value, expected)
    trainable = {path for path, leaf in flat.items() if leaf.dtype == "float32"}
    assert trainable == {p for p in flat if p.startswith(("lora/", "projector/"))}
    assert np.asarray(flat["projector/out/kernel"]).std() > 0

    save(first, other, "sft")
    shutil.copyfile(other.tokenizer, work.tokenizer)
    source = WeightSource(other.checkpoint("sft"), pretrained=config.Pretrained("", "/nowhere"))
    for path, leaf in trees.flatten(start(work, source).params).items():
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(flat[path]))
    decoder_only = start(work, dataclasses.replace(source, parts=("decoder",)), seed=1)
    for path, leaf in trees.flatten(decoder_only.params).items():
        if path.startswith("decoder/") or path == "projector/out/kernel":
            is_equal = np.array_equal(np.asarray(leaf), np.asarray(flat[path]))
            assert is_equal == path.startswith("decoder/"), path

    own = start(other, WeightSource(tmp_path / "nowhere"), "sft")
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(own))
    with checkpoint.CheckpointManager(other.checkpoint("sft")) as manager:
        restored, _ = manager.restore(own, manager.meta())
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(first), strict=True):
        assert a.dtype == b.dtype and a.sharding == b.sharding
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))

    narrow = dataclasses.replace(MODEL.decoder, intermediate_size=6)
    model = dataclasses.replace(MODEL, decoder=narrow)
    targets = trees.flatten(jax.eval_shape(ASA(model).init, jax.random.key(0)))
    with pytest.raises(ConfigError, match=r"up/kernel is \(2, 8, 8\) there, \(2, 8, 6\) here"):
        load_params(source, targets, model, CLASSES, work.tokenizer)
    with pytest.raises(ConfigError, match=r"classes \['bell', 'dog'\], expected \['dog'\]"):
        load_params(source, targets, model, ("dog",), work.tokenizer)


def test_tokenizer_of_a_checkpoint_becomes_the_runs(tmp_path):
    source = tmp_path / "checkpoints" / "text"
    source.mkdir(parents=True)
    meta = {"stage": "text", "classes": [], "seconds": 1.0, "model": {}}
    (source / "meta.json").write_text(json.dumps(meta | {"tokenizer": "tokenizer.json"}))
    byte_level_tokenizer(source / "own.json")
    (source / "tokenizer.json").write_text(extended(source / "own.json"), "utf-8")
    path = tmp_path / "tokenizer.json"
    short = dataclasses.replace(MODEL, reply_tokens=10)
    with pytest.raises(ConfigError, match=r"Model\.reply_tokens is 10, expected at least \d+, for"):
        tokenizer_for(path, WeightSource(source), CORPUS, short)
    assert not path.exists()
    tokenizer_for(path, WeightSource(source), CORPUS, MODEL)
    check_same_tokenizer(source, path)
    byte_level_tokenizer(tmp_path / "other.json", ("<think>", "a dog is where"))
    path.write_text(extended(tmp_path / "other.json"), "utf-8")
    with pytest.raises(ConfigError, match=r"text/tokenizer.json: another tokenizer than"):
        check_same_tokenizer(source, path)


def test_pretrained_tokenizer_becomes_the_runs(qwen, tmp_path):
    folder, _ = qwen
    path = tmp_path / "tokenizer.json"
    source = WeightSource(pretrained=config.Pretrained(decoder=str(folder)))
    short = dataclasses.replace(MODEL, prompt_tokens=4)
    with pytest.raises(ConfigError, match=r"Model\.prompt_tokens is 4, expected at least \d+, for"):
        tokenizer_for(path, source, CORPUS, short)
    text = tokenizer_for(path, source, CORPUS, MODEL)
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    size = backend.get_vocab_size()
    assert text.pad_id == backend.token_to_id("<|endoftext|>")
    assert text.eos_id == backend.token_to_id("<|im_end|>")
    assert (text.audio_id, text.think_id, text.end_think_id) == (size, size + 1, size + 2)
    words = " where is the dog ?\n"
    assert text.encode(words) == backend.encode(words).ids
    assert text.decode(text.encode(words)) == words
    prompt = tokens.prompt_ids(text, 2, words)
    assert text.backend.decode(prompt, skip_special_tokens=False) == (
        "<|im_start|>user\n<AcousticTokens><AcousticTokens> where is the dog ?\n"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    assert text.encode(tokens.answer_text("left"))[-1] == text.eos_id
    loaded = tokens.TextTokenizer.load(path)
    assert dataclasses.replace(loaded, backend=text.backend) == text

    small = dataclasses.replace(
        MODEL, decoder=dataclasses.replace(MODEL.decoder, vocab_size=size + 4)
    )
    expected = rf"'</answer>' has id {size + 4}, .*Decoder.vocab_size = {size + 4}"
    with pytest.raises(ConfigError, match=expected):
        tokenizer_for(path, source, (), small)
    (tmp_path / "new").mkdir()
    with pytest.raises(ConfigError, match="expected less than"):
        tokenizer_for(tmp_path / "new" / "tokenizer.json", source, CORPUS, small)
    assert not list((tmp_path / "new").iterdir())
    path.write_text("{")
    with pytest.raises(ConfigError, match="cannot be read as a tokenizer"):
        tokens.extend_pretrained_tokenizer(path)
