# SPDX-License-Identifier: Apache-2.0
"""Eight emulated CPU devices for every test, set before anything starts a backend."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# Said here, or a test of the command line would say otherwise (jaxasa/core/cpu.py) to the processes
# of later tests, whose sums would then differ in the last bit from this one's.
os.environ["XLA_FLAGS"] = "--xla_cpu_enable_fast_math=false"
# Compiling is most of what the tests do; the smoke run of .ci/run compiles as users do.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import types

import hypothesis
import jax
import numpy as np
import pytest

jax.config.update("jax_num_cpu_devices", 8)

hypothesis.settings.register_profile("jaxasa", deadline=None)
hypothesis.settings.load_profile("jaxasa")

CLASSES = ("alarm", "bell", "bird", "clock", "dog", "engine", "rain", "voice")


@pytest.fixture(scope="session")
def described():
    """`described(count, sources=(1, 3), seed=0)`: descriptions of scenes of eight classes."""
    from jaxasa import config
    from jaxasa.acoustics import scenes

    clips = [scenes.Clip(f"{c}/{t}", c, f"{c}-{t}", 1.0) for c in CLASSES for t in range(2)]

    def make(count, sources=(1, 3), seed=0):
        ranges = config.Scenes(train=1, dev=1, benchmark=1, seconds=3.0, sources=sources)
        drawn = (scenes.sample_scene(ranges, clips, seed, "test", i) for i in range(count))
        return [scenes.describe(spec) for spec in drawn]

    make.clips = clips
    return make


@pytest.fixture(scope="session")
def text(described):
    """A tokenizer of at most 480 entries that knows the words of the scenes."""
    from jaxasa.data import questions, scene_text, tokens, transforms

    rng, texts = np.random.default_rng(0), [transforms.CAPTION_PROMPT, " ".join(CLASSES)]
    for scene in described(250):
        texts.append(scene_text.caption(scene))
        for asked in questions.QuestionSampler(CLASSES)(scene, rng, 6):
            texts.append(tokens.question_text(asked.question, asked.options))
            texts.append(tokens.reply_text(asked))
    return tokens.train_tokenizer(texts, 480)


@pytest.fixture(scope="session")
def filled():
    """`filled(model)`: `model` (config), `asa`, `num_classes` and `params`, all of them random.

    `params` are numpy arrays of sizes that keep activations near 1, the adapters' too.
    """
    from jaxasa.models.asa import ASA

    def make(model):
        rng = np.random.default_rng(0)

        def fill(keys, shape):
            name = keys[-1].key
            noise = rng.normal(size=shape.shape)
            if name == "scale":
                noise = 1 + 0.1 * noise
            elif name in ("bias", "activity_bias"):
                noise = 0.1 * noise
            elif name != "embedding" and noise.ndim > 1:
                # The leading axis of scanned layers is no input; of a convolution's it is.
                scanned = any(k.key == "layers" for k in keys)
                inputs = shape.shape[1:-1] if scanned else shape.shape[:-1]
                noise = noise / np.prod(inputs) ** 0.5
            return (noise * {"embedding": 0.5, "b": 0.1}.get(name, 1.0)).astype(np.float32)

        asa = ASA(model)
        shapes = jax.eval_shape(asa.init, jax.random.key(0))
        params = jax.tree_util.tree_map_with_path(fill, shapes)
        return types.SimpleNamespace(model=model, asa=asa, params=params, classes=CLASSES)

    return make


@pytest.fixture(scope="session")
def tiny(filled):
    """A model of a few thousand weights, `filled`."""
    from jaxasa import config

    return filled(
        config.Model(
            semantic=config.Semantic(n_mels=16, width=16, heads=2, layers=2),
            spatial=config.Spatial(
                width=16,
                heads=2,
                layers=1,
                stem=((4, 2, 4),),
                features="intensity",
                n_mels=16,
                num_classes=8,
            ),
            projector=config.Projector(hidden_width=16, expert_width=8, token_rate=4.0),
            decoder=config.Decoder(
                vocab_size=480,
                width=32,
                heads=4,
                kv_heads=2,
                head_dim=8,
                intermediate_size=48,
                layers=2,
            ),
            lora=config.Lora(rank=2, alpha=6.0),
            prompt_tokens=64,
            reply_tokens=64,
        )
    )


@pytest.fixture(scope="session")
def context_of(tiny, text):
    """`context_of(stage, data, **fields)`: a stage of the tiny model on `data`, on one device.

    data: pairs of int16 audio [N, 4], all of one length, and a description. fields: of Context.
    """
    from jaxasa import config
    from jaxasa.data import questions
    from jaxasa.parallel import mesh
    from jaxasa.stages.stage import Context

    def make(stage, data, asa=tiny.asa, **fields):
        seconds = len(data[0][0]) / 16_000
        settings = dict(
            stage=stage,
            asa=asa,
            mesh=mesh.make_mesh(config.Mesh(), jax.devices()[:1]),
            scenes=config.Scenes(train=1, dev=1, benchmark=1, seconds=seconds),
            seed=0,
            tokenizer=text,
            classes=tiny.classes,
            clips=(),
            train=data,
            dev=data,
            question_sampler=questions.QuestionSampler(tiny.classes),
        )
        return Context(**settings | fields)

    return make


@pytest.fixture(scope="session")
def noises(described):
    """`noises(count, samples, sources=(1, 3))`: int16 noise [samples, 4] with descriptions."""

    def make(count, samples, sources=(1, 3)):
        rng = np.random.default_rng(0)
        audio = rng.integers(-3000, 3000, (count, samples, 4)).astype(np.int16)
        return list(zip(audio, described(count, sources), strict=True))

    return make
