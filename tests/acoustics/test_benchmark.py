# SPDX-License-Identifier: Apache-2.0
import sys

import pytest

from jaxasa.acoustics import benchmark, render
from jaxasa.cli import main
from jaxasa.config import ConfigError


def test_benchmark_scene_has_its_nominal_rt60():
    """Flat walls, three sources for all of 10 s, an RT60 as nominal: what is timed is a scene."""
    spec = benchmark.benchmark_scene(0.3, 1, octaves=False)
    spec.validate()
    assert len(set(spec.absorption)) == 1 and len(spec.sources) == 3
    audio, described = render.render(spec, benchmark._dry, air=False)
    assert audio.shape == (160000, 4)
    assert described["rt60"] == pytest.approx(0.3, rel=0.15)
    octaves = benchmark.benchmark_scene(0.3, 1, octaves=True)
    assert len(set(octaves.absorption)) == 7 and octaves.sources == spec.sources


def test_row_has_times_of_all_systems():
    pytest.importorskip("pyroomacoustics")
    shown = []
    results = benchmark.run_benchmark((0.2,), repeats=1, log=shown.append)
    (row,) = results["rows"]
    assert row["rt60"] == 0.2 and row["backend"] == "cpu"
    assert row["ratio"] == pytest.approx(row["pyroomacoustics_ms"] / row["ours_ms"])
    times = (
        "ours_ms",
        "jaxasa_octaves_ms",
        "jaxasa_full_ms",
        "pyroomacoustics_ms",
        "pyroomacoustics_hybrid_ms",
    )
    assert all(row[name] > 0 for name in (*times, "jax_rirs_ms"))
    assert "0.2s" in shown[2]


def test_missing_pyroomacoustics_raises(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyroomacoustics", None)
    with pytest.raises(ConfigError, match="pip install"):
        benchmark.run_benchmark()


def test_simulate_needs_a_workdir_or_benchmark(monkeypatch, tmp_path, capsys):
    assert main.main(["simulate"]) == 2
    assert "--workdir is missing" in capsys.readouterr().err
    rows = {"rows": [{"rt60": 0.3, "ours_ms": 1.0, "pyroomacoustics_ms": 2.0, "ratio": 2.0}]}
    monkeypatch.setattr(benchmark, "run_benchmark", lambda: rows)
    out = tmp_path / "benchmark.json"
    assert main.main(["simulate", "--benchmark", "--json", str(out)]) == 0
    assert '"ratio": 2.0' in out.read_text()
    assert main.main(["simulate", "--benchmark", "--split", "dev"]) == 2
    assert "--benchmark times scenes of its own" in capsys.readouterr().err
