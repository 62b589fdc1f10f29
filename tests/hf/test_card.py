# SPDX-License-Identifier: Apache-2.0
import json
import os
import shutil
from pathlib import Path

import pytest

from jaxasa.config import gin_files
from jaxasa.hf import card

META = {
    "stage": "sft",
    "classes": ["bell", "dog"],
    "seconds": 4.0,
    "sounds": "debian",
    "model": {"semantic": {"max_seconds": 30.0}, "spatial": {}},
}
LEVELS = ("overall", "L1", "L2", "L3")


@pytest.fixture
def work(tmp_path):
    """The folder of a run whose benchmark scored the checkpoint sft."""
    folder = tmp_path / "checkpoints" / "sft"
    folder.mkdir(parents=True)
    root = Path(__file__).parents[2]
    (folder / "config.gin").write_text(gin_files.load([str(root / "gin/run/demo.gin")])[1])
    (folder / "meta.json").write_text("{}")
    (tmp_path / "sounds").mkdir()
    (tmp_path / "sounds" / "credits.csv").write_text(
        "package,licence,member,class\nbirds-data,CC-BY-SA-3.0,a.ogg,bird\n"
    )
    scores = {
        name: {level: {"accuracy": a, "low": a - 0.03, "high": a + 0.03} for level in LEVELS}
        for name, a in (("sft", 0.498), ("mono", 0.338))
    }
    facts = {"items": 1000, "seed": 7, "sounds": "debian"}
    (tmp_path / "results.json").write_text(json.dumps({"benchmark": facts, "systems": scores}))
    return tmp_path


def header(text):
    """The YAML of a card; each value is JSON."""
    lines = text.split("---\n")[1].splitlines()
    return {line.partition(": ")[0]: json.loads(line.partition(": ")[2]) for line in lines}


def test_the_card_has_the_facts_of_the_run(work):
    text = card.model_card(work / "checkpoints" / "sft", META, 1234567)
    assert "1,234,567 parameters." in text and "Classes: bell, dog." in text
    assert "birds-data CC-BY-SA-3.0" in text and "sounds: debian" in text
    assert "4,000, simulated, 4 s each, seed 0" in text and "RT60 0.15 to 0.7 s" in text
    assert "| sft | 49.8 (47-53) |" in text and "| mono | 33.8 (31-37) |" in text
    assert "1000 four-option questions (seed 7" in text and "did not move in training" in text
    fields = header(text)
    assert fields["license"] == "other" and fields["library_name"] == "transformers"
    metrics = fields["model-index"][0]["results"][0]["metrics"]
    assert {m["name"]: m["value"] for m in metrics}["overall"] == 49.8
    assert "base_model" not in fields


def test_the_card_states_only_known_facts(work):
    folder = work / "checkpoints" / "sft"
    later = os.stat(work / "results.json").st_mtime + 10
    os.utime(folder / "meta.json", (later, later))
    text = card.model_card(folder, META, 1)
    assert "before these weights were trained" in text and "49.8" not in text
    assert "model-index" not in header(text)
    shutil.move(folder, work / "checkpoints" / "align")
    text = card.model_card(work / "checkpoints" / "align", META | {"stage": "align"}, 1)
    assert "not for stage `align`" in text
    folder = shutil.move(work / "checkpoints" / "align", work / "alone")
    text = card.model_card(folder, META | {"pretrained": {"decoder": "Qwen/Qwen2.5-7B"}}, 1)
    assert "benchmark was not run" in text and "birds-data" not in text
    fields = header(text)
    assert fields["base_model"] == ["Qwen/Qwen2.5-7B"] and fields["license"] == "other"
    (folder / "config.gin").unlink()
    text = card.model_card(folder, META | {"sounds": "procedural"}, 1)
    assert header(text)["license"] == "apache-2.0" and "simulated, 4 s each" in text
