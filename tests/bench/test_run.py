# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest

from jaxasa import config
from jaxasa.bench import controls, perturbations, run, suite
from jaxasa.config import ConfigError, gin_files
from jaxasa.core.workdir import WorkFolder
from jaxasa.inference import qa
from jaxasa.pipeline import steps

SFT = {"sft": controls.System("sft")}
BENCH = config.Bench(batch_size=16, bootstrap_samples=200)
SYSTEMS = controls.systems(("sft", "grpo"), controls.select(("question_only", "mono")))
NAMES = ("sft", "grpo", "question_only", "mono", "question_only_sft", "mono_sft")


def chance_without_audio(item, audio_condition):
    """Correct with full audio; in mono wrong about direction; a quarter correct without audio."""
    if audio_condition == "none":
        return int(item.id[-3:]) % 4 > 0
    return audio_condition == "mono" and item.direction


@pytest.fixture
def done(small, oracle, tmp_path):
    model = oracle(small.items, chance_without_audio)
    both = dict.fromkeys(("sft", "grpo"), model)
    results = run.evaluate(SYSTEMS, both, small.folder, tmp_path, BENCH)
    return results, model, tmp_path


def test_results_hold_systems_and_paired_differences(done, small):
    results, _, out = done
    assert json.loads((out / "results.json").read_text()) == results
    systems = results["systems"]
    assert set(systems) == {*NAMES, "chance"}
    assert systems["grpo"]["overall"]["accuracy"] == 1.0 and systems["grpo"]["L2"]["items"] == 12
    assert set(systems["grpo"]["L1"]) == {"accuracy", "low", "high", "items"}
    assert systems["mono"]["direction"]["yes"]["accuracy"] == 0.0
    assert systems["mono"]["direction"]["no"]["accuracy"] == 1.0
    assert systems["chance"]["overall"]["accuracy"] == 0.25
    lead = results["paired_differences"]["grpo"]["mono"]
    share = np.mean([i.direction for i in small.items])
    assert lead["against"] == "mono" and lead["overall"]["difference"] == pytest.approx(share)
    assert results["paired_differences"]["sft"]["mono"]["against"] == "mono_sft"
    assert lead["direction/no"]["difference"] == 0.0
    facts = results["benchmark"]
    assert facts["option_fallback"] is BENCH.option_fallback is True
    assert facts["items"] == 44 and facts["levels"] == {"L1": 20, "L2": 12, "L3": 12}
    assert facts["sounds"] == "made-up sounds" and facts["recordings"]["test"]["sound15"] == 4


def test_each_system_gets_the_audio_of_its_condition(done, small, oracle):
    _, model, _ = done
    assert {shape for shape, *_ in model.calls} == {(16, 800, 4)}
    conditions = {(condition, has_sound) for _, _, condition, has_sound in model.calls}
    assert conditions == {("full", True), ("mono", True), ("none", False)}
    assert {dtype for _, dtype, *_ in model.calls} == {np.dtype(np.int16)}
    assert len(model.calls) == 6 * 3


def test_each_question_comes_with_its_audio(small):
    by_key = {(i.question, i.options): i.audio() for i in small.items}

    class Checks:
        def respond(self, audio, questions, options, audio_condition):
            for one, q, four in zip(audio, questions, options, strict=True):
                assert np.array_equal(one, by_key[q, tuple(four)])
            return ["A"] * len(questions)

    suite_as_is = perturbations.identity(small.items, ())
    answers = run.answer_items(Checks(), suite_as_is, "full", 10, "checks")
    assert [a["id"] for a in answers] == [i.id for i in small.items]


def test_predictions_are_reused_until_weights_or_suite_change(done, small, oracle):
    _, _, out = done

    def calls(digests=None):
        model = oracle(small.items)
        both = dict.fromkeys(("sft", "grpo"), model)
        part = {name: SYSTEMS[name] for name in ("sft", "mono")}
        run.evaluate(part, both, small.folder, out, BENCH, digests)
        return [condition for _, _, condition, _ in model.calls]

    assert calls() == []
    assert calls({"sft": "step 200"}) == ["full"] * 3
    assert calls({"sft": "step 200"}) == []
    path = out / "predictions" / "mono.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert calls({"sft": "step 200"}) == ["mono"] * 3


def test_results_keep_other_keys_and_drop_stale_scores(done, small, oracle):
    results, _, out = done
    path = out / "results.json"
    path.write_text(json.dumps(results | {"seconds": {"sft": 3.0}, "peak_memory_gb": 2.5}))
    found = run.evaluate(SFT, {"sft": oracle(small.items)}, small.folder, out, BENCH)
    assert found["seconds"] == {"sft": 3.0} and found["peak_memory_gb"] == 2.5
    assert set(found["systems"]) == {*NAMES, "chance"} and "grpo" in found["paired_differences"]
    # Those of other models beside it are not this one's controls, and go.
    other = run.evaluate(
        SFT, {"sft": oracle(small.items)}, small.folder, out, BENCH, {"sft": "new"}
    )
    assert set(other["systems"]) == {"sft", "chance"} and other["seconds"] == {"sft": 3.0}
    # Scores on another suite are dropped.
    changed = json.loads(path.read_text())
    changed["benchmark"]["sha256"] = "another"
    path.write_text(json.dumps(changed))
    found = run.evaluate(SFT, {"sft": oracle(small.items)}, small.folder, out, BENCH)
    assert set(found["systems"]) == {"sft", "chance"} and found["seconds"] == {"sft": 3.0}


def test_an_interrupted_system_leaves_nothing_half_written(small, tmp_path):
    class Breaks:
        def respond(self, *_):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.evaluate(SFT, {"sft": Breaks()}, small.folder, tmp_path, BENCH)
    assert list(tmp_path.rglob("*.jsonl")) == []


def test_missing_suite_and_malformed_results_are_refused(small, oracle, tmp_path):
    with pytest.raises(ConfigError, match="metadata.jsonl: no such file"):
        run.evaluate({}, {}, tmp_path, tmp_path, BENCH)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ConfigError, match="results.json: is not JSON"):
        run.evaluate(SFT, {"sft": oracle(small.items)}, small.folder, tmp_path, BENCH)


def test_constant_answers_score_a_quarter(small, tmp_path):
    class Constant:
        def respond(self, audio, questions, options, audio_condition):
            return ["<answer>C</answer>"] * len(questions)

    found = run.evaluate(SFT, {"sft": Constant()}, small.folder, tmp_path, BENCH)["systems"]["sft"]
    # 44 items and balanced letters: exactly a quarter.
    assert found["overall"]["accuracy"] == 0.25 and found["parsing"]["strict"] == 1.0
    assert len(suite.load(small.folder)) == found["overall"]["items"]


@pytest.mark.parametrize("fallback", [True, False])
def test_models_are_loaded_with_the_option_fallback_of_bench(tmp_path, monkeypatch, fallback):
    def load(path, option_fallback):
        raise ConfigError(f"{path.name} option_fallback: {option_fallback}")

    gin, _ = gin_files.load(["gin/run/demo.gin"], [f"Bench.option_fallback={fallback}"])
    (tmp_path / "checkpoints/sft").mkdir(parents=True)
    monkeypatch.setattr(qa.QaModel, "load", load)
    with pytest.raises(ConfigError, match=f"sft option_fallback: {fallback}"):
        steps.run_benchmark(gin, WorkFolder(tmp_path), "benchmark")
    with pytest.raises(ConfigError, match=r"Bench\.option_fallback"):
        config.Bench(option_fallback="no")
