"""Scenes, a sound bank and small suites for the benchmark's tests; nothing is rendered."""

import types

import numpy as np
import pytest

from jaxasa import config
from jaxasa.acoustics import scenes
from jaxasa.acoustics.scenes import Clip
from jaxasa.bench import build, choose
from jaxasa.data import records, sounds

CLASSES = tuple(f"sound{n:02d}" for n in range(16))


class Bank:
    """A bank with four takes of each class in each split."""

    name, classes, folder, digest = "made-up sounds", CLASSES, "bank", "none"

    def clips(self, split):
        return [
            Clip(f"{c}/{split}{t}/{k}", c, f"{c}-{split}{t}", 2.0)
            for c in CLASSES
            for t in range(4)
            for k in range(2)
        ]

    def audio(self, clip):
        return np.frombuffer(clip.encode(), np.uint8).astype(np.float32)


def describe(count, seed=0, split="benchmark", clips="test"):
    ranges = config.Scenes(train=1, dev=1, benchmark=count)
    found = Bank().clips(clips)
    return [scenes.describe(scenes.draw(ranges, found, seed, split, i)) for i in range(count)]


def write_records(folder, described):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(7)
    audio = rng.integers(-30_000, 30_000, (len(described), 800, 4)).astype(np.int16)
    shard = records.write_shard(folder / "a.array_record", zip(audio, described, strict=True))
    records.write_manifest(folder, {}, [shard])
    return audio


@pytest.fixture(scope="session")
def make():
    """The helpers, for tests that build suites of their own."""
    return types.SimpleNamespace(describe=describe, write_records=write_records, Bank=Bank)


@pytest.fixture(scope="session")
def run_config():
    """What build.build reads of config.Run."""
    return types.SimpleNamespace(
        bench=config.Bench(l1=20, l2=12, l3=12, bootstrap=200, audit=0),
        questions=config.Questions(),
        seed=3,
    )


@pytest.fixture(scope="session")
def small(tmp_path_factory, run_config):
    """A built suite of 44 items: its folder, items, records' audio and descriptions."""
    root = tmp_path_factory.mktemp("small")
    described = describe(120)
    audio = write_records(root / "records", described)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sounds.Bank, "load", staticmethod(lambda folder: Bank()))
        items = build.build(run_config, root / "bank", root / "records", root / "benchmark")
    return types.SimpleNamespace(
        root=root, folder=root / "benchmark", items=items, audio=audio, scenes=described
    )


@pytest.fixture(scope="session")
def large():
    """The full-size choice over 800 scenes: [(scene, question)]."""
    described = describe(800, seed=1)
    bench, which = config.Bench(), config.Questions()
    chosen, left_out = choose.choose(described, CLASSES, bench, which, 1, "benchmark")
    assert left_out == ["motion", "listener_turn", "place"]
    return [(described[i], q) for i, q in chosen]


class Oracle:
    """Knows the answers: by question and options, which a small suite never repeats."""

    def __init__(self, items, wrong=lambda item, hearing: False):
        self._items = {(i.question, i.options): i for i in items}
        self._wrong, self.calls = wrong, []

    def respond(self, audio, questions, options, hearing):
        self.calls.append((audio.shape, audio.dtype, hearing, bool(audio.any())))
        answers = []
        for question, four in zip(questions, options, strict=True):
            item = self._items[question, tuple(four)]
            letter = item.answer
            if self._wrong(item, hearing):
                letter = "ABCD"[("ABCD".index(letter) + 1) % 4]
            said = f"{item.scene['sources'][0]['class']} left near . so it is"
            answers.append(f"<think>{said}</think><answer>{letter}</answer>")
        return answers


@pytest.fixture
def oracle():
    return Oracle
