import sys

import pytest

from jaxasa import config
from jaxasa.cli import main
from jaxasa.speed import decode, grpo, interleaved, sft

SMALL = config.Decoder(
    vocab_size=64, width=16, heads=2, kv_heads=1, head_dim=8, intermediate_size=16, layers=1
)


@pytest.fixture
def peers():
    for name in ("torch", "transformers", "peft", "trl", "datasets"):
        pytest.importorskip(name)


def check(result, count):
    assert set(result) == {"rows"} and len(result["rows"]) == count
    for row in result["rows"]:
        assert set(row) == {"what", "ours_per_s", "peer_per_s", "peer", "ratio"}
        assert row["ours_per_s"] > 0 and row["peer_per_s"] > 0
        assert row["ratio"] == pytest.approx(row["ours_per_s"] / row["peer_per_s"], rel=0.01)


def test_a_row_is_of_medians_and_warm_up_does_not_count(monkeypatch):
    clock, log = [0.0], []

    def call(name, seconds):
        times = iter(seconds)

        def work():
            log.append(name)
            clock[0] += next(times)

        return work

    monkeypatch.setattr(interleaved.time, "perf_counter", lambda: clock[0])
    ours, theirs = call("a", [50, 1, 2, 9]), call("b", [70, 4, 6, 5])
    taken = interleaved.in_turn("x", ours, theirs, 3)
    assert taken == ([1, 2, 9], [4, 6, 5]) and log == ["a", "b"] * 4
    row = interleaved.row("x", taken, "peer", 10)
    assert (row["ours_per_s"], row["peer_per_s"], row["ratio"]) == (5, 2, 2.5)


def test_decode_says_the_tokens_of_transformers(peers, capsys):
    check(decode.run(SMALL, batches=(1, 2), prompt=5, new=6, rounds=1), 2)
    assert "part" not in capsys.readouterr().err


def test_sft_has_the_losses_of_peft(peers):
    """It raises where the first losses differ."""
    check(sft.run(SMALL, rows=4, prompt=8, reply=5, rounds=1), 1)


def test_grpo_drives_the_trainer_of_trl(peers):
    check(grpo.run(SMALL, prompts=2, group=2, prompt=6, reply=4, rounds=1), 1)


def test_a_missing_extra_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main.main(["bench", "speed", "decode"]) == 2
    said = capsys.readouterr().err
    assert "needs torch" in said and "pip install 'jaxasa[speed]'" in said
    assert len(said.splitlines()) == 1
    assert main.main(["bench", "speed", "decode", "--rounds", "0"]) == 2
    assert "--rounds is 0" in capsys.readouterr().err
