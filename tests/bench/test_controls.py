from jaxasa.bench.controls import System, pairs, systems


def test_controls_share_the_last_checkpoint():
    found = systems(("text", "spatial", "align", "sft", "grpo"))
    assert found == {
        "sft": System("sft", "full"),
        "grpo": System("grpo", "full"),
        "question_only": System("grpo", "none"),
        "mono": System("grpo", "mono"),
        "question_only_sft": System("sft", "none"),
        "mono_sft": System("sft", "mono"),
    }


def test_without_grpo_the_controls_are_of_sft():
    found = systems(("text", "spatial", "align", "sft"))
    assert found["question_only"] == System("sft", "none") and set(found) == {
        *("sft", "question_only", "mono")
    }
    assert systems(("text",)) == {}


def test_each_system_meets_the_control_of_its_own_checkpoint():
    assert pairs(("sft", "grpo", "question_only", "mono", "question_only_sft")) == [
        ("sft", "question_only", "question_only_sft"),
        ("sft", "mono", "mono"),
        ("grpo", "question_only", "question_only"),
        ("grpo", "mono", "mono"),
    ]
    assert pairs(("sft", "chance")) == []
