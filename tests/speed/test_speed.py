# SPDX-License-Identifier: Apache-2.0
import sys

import pytest

from jaxasa import config
from jaxasa.cli import main
from jaxasa.speed import decode, grpo, sft, timing

SMALL = config.Decoder(
    vocab_size=64, width=16, heads=2, kv_heads=1, head_dim=8, intermediate_size=16, layers=1
)


@pytest.fixture
def baselines():
    for name in ("torch", "transformers", "peft", "trl", "datasets"):
        pytest.importorskip(name)


def check(result, count):
    assert set(result) == {"rows"} and len(result["rows"]) == count
    for row in result["rows"]:
        assert set(row) == {"what", "ours_per_s", "peer_per_s", "peer", "ratio"}
        assert row["ours_per_s"] > 0 and row["peer_per_s"] > 0
        assert row["ratio"] == pytest.approx(row["ours_per_s"] / row["peer_per_s"], rel=0.01)


def test_rows_use_medians_without_warm_up(monkeypatch):
    clock, log = [0.0], []

    def call(name, durations):
        times = iter(durations)

        def work():
            log.append(name)
            clock[0] += next(times)

        return work

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    ours, baseline = call("a", [50, 1, 2, 9]), call("b", [70, 4, 6, 5])
    seconds = timing.time_interleaved("x", ours, baseline, 3)
    assert seconds == ([1, 2, 9], [4, 6, 5]) and log == ["a", "b"] * 4
    row = timing.result_row("x", seconds, "peer", 10)
    assert (row["ours_per_s"], row["peer_per_s"], row["ratio"]) == (5, 2, 2.5)


def test_decode_matches_transformers(baselines, capsys):
    check(decode.run(SMALL, batches=(1, 2), prompt=5, new_tokens=6, rounds=1), 2)
    assert "differ" not in capsys.readouterr().err


def test_sft_losses_match_peft(baselines):
    """run() raises if the first losses differ."""
    check(sft.run(SMALL, rows=4, prompt=8, reply=5, rounds=1), 1)


def test_grpo_runs_trl_trainer(baselines):
    check(grpo.run(SMALL, prompts=2, group=2, prompt=6, reply=4, rounds=1), 1)


def test_missing_extra_is_reported_in_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main.main(["bench", "speed", "decode"]) == 2
    error = capsys.readouterr().err
    assert "needs torch" in error and "pip install 'jaxasa[speed]'" in error
    assert len(error.splitlines()) == 1
    assert main.main(["bench", "speed", "decode", "--rounds", "0"]) == 2
    assert "--rounds is 0" in capsys.readouterr().err
