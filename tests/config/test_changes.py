# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest

from jaxasa import config
from jaxasa.config import gin_files


@pytest.fixture(scope="module")
def run():
    return gin_files.load(["gin/run/smoke.gin"])[0]


def test_data_are_scenes_sounds_questions_items_and_the_seed(run):
    data = config.settings(run, "data")
    assert {name.partition(".")[0] for name in data} == {
        *("sounds", "scenes", "questions", "bench", "model", "seed")
    }
    assert {n for n in data if n.startswith("model")} == {"model.spatial.format"}
    assert {n for n in data if n.startswith("bench")} == {
        f"bench.{name}" for name in ("l1", "l2", "l3", "probe_items")
    }
    # How many scenes there are does not change any one of them.
    assert "scenes.rt60" in data and "scenes.train" not in data
    assert "questions.margin" in data and "questions.training_margin" not in data


def test_results_depend_on_all_but_speed(run):
    results = config.settings(run)
    assert config.settings(run, "data").items() <= results.items()
    speed = set(config.speed_options(config.Run))
    assert {"scenes.workers", "model.unroll", "bench.batch_size", "sft.log_every"} <= speed
    assert {"name", "mesh"} <= speed and "sft.batch_size" not in speed
    assert not speed & set(results)
    leaves = {name for name in _leaves(dataclasses.asdict(run)) if not name.startswith("mesh.")}
    assert {*results, *speed} - {"mesh"} == leaves


def _leaves(tree, above=""):
    for name, value in tree.items():
        is_option = not isinstance(value, dict) or f"{above}{name}" in (
            *("sounds.classes", "questions.tasks", "ablation.variants", "ablation.seconds"),
        )
        yield from [f"{above}{name}"] if is_option else _leaves(value, f"{above}{name}.")


def test_differences(run):
    sft = dataclasses.replace(run.sft, steps=9, log_every=7)
    assert config.differences(run.sft, sft, "sft") == ["sft.steps was 4, is 9"]
    assert config.differences(0, 1, "seed") == ["seed was 0, is 1"]
