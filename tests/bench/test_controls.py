# SPDX-License-Identifier: Apache-2.0
import pytest

from jaxasa import config
from jaxasa.bench import perturbations
from jaxasa.bench.controls import CONTROLS, System, pairs, select, systems
from jaxasa.cli import main

BOTH = select(("question_only", "mono"))
BOTH_NAMES = [control.name for control in BOTH]


def test_controls_share_the_last_checkpoint():
    by_name = systems(("text", "spatial", "align", "sft", "grpo"), BOTH)
    assert by_name == {
        "sft": System("sft", "full"),
        "grpo": System("grpo", "full"),
        "question_only": System("grpo", "none"),
        "mono": System("grpo", "mono"),
        "question_only_sft": System("sft", "none"),
        "mono_sft": System("sft", "mono"),
    }
    assert list(by_name) == ["sft", "grpo", *(f"{n}{s}" for s in ("", "_sft") for n in BOTH_NAMES)]
    shuffled = systems(("sft", "grpo"), select(("channels_shuffled",)))["channels_shuffled"]
    assert shuffled == System("grpo", "full", perturbations.shuffle_channels)


def test_without_grpo_the_controls_are_of_sft():
    by_name = systems(("text", "spatial", "align", "sft"), BOTH)
    assert by_name["question_only"] == System("sft", "none")
    assert set(by_name) == {"sft", *BOTH_NAMES}
    assert systems(("text",), BOTH) == {}


def test_stages_are_paired_with_controls_on_their_own_checkpoint():
    assert pairs(("sft", "grpo", "question_only", "mono", "question_only_sft", "other_audio")) == [
        ("sft", "question_only", "question_only_sft"),
        ("sft", "mono", "mono"),
        ("grpo", "question_only", "question_only"),
        ("grpo", "mono", "mono"),
        ("grpo", "other_audio", "other_audio"),
    ]
    assert pairs(("sft", "chance", "rotated")) == []


def test_select_keeps_the_order_of_the_registry_and_refuses_unknown_names():
    assert select(config.Bench().controls) == list(CONTROLS.values())
    assert [c.name for c in select(("mono", "question_only"))] == BOTH_NAMES
    assert select(()) == []
    with pytest.raises(config.ConfigError, match="Bench.controls is .*'stereo'.*question_only"):
        select(("mono", "stereo"))


def test_every_control_says_what_it_means():
    assert all(name == c.name and c.title and c.meaning for name, c in CONTROLS.items())
    # A geometric control transforms an FOA field.
    assert all(c.needs_foa for c in CONTROLS.values() if c.is_geometric)


def test_unknown_control_is_refused_before_any_work(tmp_path, capsys):
    work = tmp_path / "work"
    argv = ["sounds", "--workdir", str(work), "--gin.Bench.controls=('stereo',)"]
    assert main.main(argv) == 2
    assert "Bench.controls is ('stereo',), expected names out of all," in capsys.readouterr().err
    assert not work.exists()
