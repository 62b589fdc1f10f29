import pytest

from jaxasa import config
from jaxasa.bench import controls, perturbations
from jaxasa.bench.controls import System, pairs, systems

BOTH = ("question_only", "mono")


def test_controls_share_the_last_checkpoint():
    found = systems(("text", "spatial", "align", "sft", "grpo"), BOTH)
    assert found == {
        "sft": System("sft", "full"),
        "grpo": System("grpo", "full"),
        "question_only": System("grpo", "none"),
        "mono": System("grpo", "mono"),
        "question_only_sft": System("sft", "none"),
        "mono_sft": System("sft", "mono"),
    }
    shuffled = systems(("sft", "grpo"), ("channels_shuffled",))["channels_shuffled"]
    assert shuffled == System("grpo", "full", perturbations.shuffled)


def test_without_grpo_the_controls_are_of_sft():
    found = systems(("text", "spatial", "align", "sft"), BOTH)
    assert found["question_only"] == System("sft", "none") and set(found) == {"sft", *BOTH}
    assert systems(("text",), BOTH) == {}


def test_each_system_meets_the_control_of_its_own_checkpoint():
    assert pairs(("sft", "grpo", "question_only", "mono", "question_only_sft", "other_audio")) == [
        ("sft", "question_only", "question_only_sft"),
        ("sft", "mono", "mono"),
        ("grpo", "question_only", "question_only"),
        ("grpo", "mono", "mono"),
        ("grpo", "other_audio", "other_audio"),
    ]
    assert pairs(("sft", "chance", "rotated")) == []


def test_the_config_names_the_controls_that_there_are():
    assert set(config.Bench().controls) == set(controls.CONTROLS)
    with pytest.raises(config.ConfigError, match="Bench.controls is .*'stereo'.*question_only"):
        config.Bench(controls=("stereo",))
