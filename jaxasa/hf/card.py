# SPDX-License-Identifier: Apache-2.0
"""The model card of an export: training data, benchmark results, limits.

All facts come from the checkpoint and from the run's folder around it (WORKDIR of
WORKDIR/checkpoints/STAGE): config.gin, sounds/credits.csv, results.json. Facts whose file is
missing are left out, or given as unknown.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from jaxasa import config
from jaxasa.config import ConfigError, gin_files
from jaxasa.core import text_files
from jaxasa.core.workdir import WorkFolder
from jaxasa.train import checkpoint

_AUDIO = {
    "foa": "first-order ambisonics, 16 kHz, channels W Y Z X (ACN), SN3D gains (AmbiX)",
    "binaural": "binaural, 16 kHz, channels left ear, right ear",
}


def audio_format(meta: Mapping) -> str:
    """The model's input audio, in words."""
    return _AUDIO[meta["model"]["spatial"].get("format", "foa")]


def conventions(meta: Mapping) -> dict[str, str]:
    """Units and signs of the model's inputs and outputs, by quantity."""
    return {
        "audio": audio_format(meta),
        "axes": "x front, y left, z up",
        "azimuth": "degrees, counter-clockwise, front 0, left +90, in (-180, 180]",
        "elevation": "degrees, up positive, in [-90, 90]",
        "distance": "metres",
        "time": "seconds",
    }


_LEVELS = ("overall", "L1", "L2", "L3")


def model_card(checkpoint: str | Path, meta: Mapping, parameters: int) -> str:
    """README.md of an exported model, with the hub's YAML header.

    meta: of the checkpoint. parameters: their number.
    """
    folder = Path(checkpoint)
    place = folder.resolve()
    work = WorkFolder.around(place) if place.parent.name == "checkpoints" else None
    licences = _licences(work)
    results, why_not = _results(folder, work)
    run = _run(folder)
    example = f"Where is the {meta['classes'][0]}?"
    body = f"""# {run.name if run else "A jaxasa model"}, after stage `{meta["stage"]}`

This model answers questions about an audio scene: what sounds, where, and how far away. Its input
is {audio_format(meta)}. It has {parameters:,} parameters.
Classes: {", ".join(meta["classes"])}.

## Conventions
{_list(conventions(meta))}

## Use
With transformers, without jaxasa:
```python
import soundfile
from transformers import AutoModel, AutoProcessor

processor = AutoProcessor.from_pretrained(FOLDER, trust_remote_code=True)
model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)
audio, rate = soundfile.read("scene.wav")  # [samples, channels], at most \
{meta["model"]["semantic"]["max_seconds"]:g} s
inputs = processor(audio, "{example}", sampling_rate=rate)
reply, sources = model.generate(**inputs, return_sources=True)
print(processor.parse_reply(reply[0])["answer"], sources[0])
```
With jaxasa:
```
jaxasa ask FOLDER scene.wav "{example}"
jaxasa bench run --checkpoint FOLDER --workdir WORKDIR
```
The LoRA adapters are merged into the decoder. Sizes and classes are in `config.json`.

## Training data
{_data(meta, run, licences)}

## Results
{_table(results) if results else why_not}

## Limits
{_limits(meta, run)}
"""
    return _header(meta, results) + body


def _header(meta: Mapping, results: Mapping | None) -> str:
    """The YAML header; each value is written as JSON, which is YAML too."""
    fields: dict = {
        "library_name": "transformers",
        "pipeline_tag": "audio-text-to-text",
        "language": ["en"],
        "tags": ["jaxasa", "spatial-audio", "ambisonics", "audio-question-answering"],
    }
    base = _bases(meta)
    if meta.get("sounds") != "procedural" or base:
        # The weights derive from other people's works, for which no licence can be chosen here.
        fields |= {"license": "other", "license_name": "see-training-data"}
        fields["license_link"] = "README.md#training-data"
    else:
        fields["license"] = "apache-2.0"
    if base:
        fields["base_model"] = base
    if results:
        scores = results["systems"][meta["stage"]]
        metrics = [
            {"type": "accuracy", "name": level, "value": round(100 * scores[level]["accuracy"], 1)}
            for level in _LEVELS
        ]
        task = {"type": "audio-text-to-text"}
        data = {"type": "jaxasa-asa", "name": f"asa, {results['benchmark']['items']} items"}
        result = {"task": task, "dataset": data, "metrics": metrics}
        fields["model-index"] = [{"name": f"jaxasa-{meta['stage']}", "results": [result]}]
    return "".join(["---\n", *(f"{k}: {json.dumps(v)}\n" for k, v in fields.items()), "---\n"])


def _bases(meta: Mapping) -> list[str]:
    """Names of the pretrained models that training started from, by meta["pretrained"]."""
    return sorted({str(name) for name in dict(meta.get("pretrained") or {}).values()})


def _list(facts: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {fact}" for name, fact in facts.items())


def _run(folder: Path) -> config.Run | None:
    """The run by the checkpoint's config.gin; None if that is missing."""
    try:
        return gin_files.load([str(folder / checkpoint.CONFIG)])[0]
    except ConfigError:
        return None


def _licences(work: WorkFolder | None) -> dict[str, str]:
    """Licence of each package of recordings, by WORKDIR/sounds/credits.csv."""
    path = work.sounds / "credits.csv" if work else None
    if path is None or not path.is_file():
        return {}
    rows = text_files.read_csv(path, ("package", "licence"))
    return {row["package"]: row["licence"] for _, row in rows}


def _results(folder: Path, work: WorkFolder | None) -> tuple[dict | None, str]:
    """results.json if it scores this checkpoint; otherwise None and the reason."""
    path = work.results if work else None
    if path is None or not path.is_file():
        return None, "The benchmark was not run in this checkpoint's folder."
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ConfigError(f"{path}: is not JSON, expected results of `jaxasa bench`") from None
    if folder.name not in results.get("systems", {}):
        return None, f"The benchmark was run, but not for stage `{folder.name}`."
    meta = folder / checkpoint.META
    if meta.is_file() and meta.stat().st_mtime > path.stat().st_mtime:
        return None, "The benchmark was run before these weights were trained."
    return results, ""


def _table(results: Mapping) -> str:
    facts = results["benchmark"]
    rows = [f"| system | {' | '.join(_LEVELS)} |", f"|---{'|---' * len(_LEVELS)}|"]
    for name, scores in results["systems"].items():
        cells = [
            f"{100 * a['accuracy']:.1f} ({100 * a['low']:.0f}-{100 * a['high']:.0f})"
            for a in (scores[level] for level in _LEVELS)
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return (
        f"Accuracy in %, with 95 % intervals, on {facts['items']} four-option questions (seed "
        f"{facts['seed']}, sounds: {facts['sounds']}), whose recordings are not in the training "
        "data.\n\n" + "\n".join(rows)
    )


def _data(meta: Mapping, run: config.Run | None, licences: Mapping[str, str]) -> str:
    facts = {"sounds": str(meta.get("sounds", "unknown"))}
    if licences:
        facts["licences of the recordings"] = "; ".join(f"{p} {s}" for p, s in licences.items())
    if base := _bases(meta):
        facts["pretrained models"] = ", ".join(base)
    if run is None:
        return _list(facts | {"scenes": f"simulated, {meta['seconds']:g} s each"})
    s = run.scenes
    count = f"mixed from {s.rir_rooms:,} rooms" if s.rir_rooms else f"{s.train:,}"
    span = lambda pair, unit: f"{pair[0]:g} to {pair[1]:g} {unit}"  # noqa: E731
    facts["scenes"] = f"{count}, simulated, {s.seconds:g} s each, seed {run.seed}"
    facts["rooms"] = (
        f"shoeboxes of {span(s.length, 'm')} x {span(s.width, 'm')} x {span(s.height, 'm')}, "
        f"RT60 {span(s.rt60, 's')}"
    )
    facts["sources"] = (
        f"{span(s.sources, 'at a time')}, at {span(s.distance, 'm')}; "
        f"{100 * s.moving_source_prob:g} % of them move; in {100 * s.listener_turn_prob:g} % of "
        "the scenes the listener turns"
    )
    facts["noise"] = f"diffuse, SNR {span(s.snr, 'dB')}"
    return _list(facts)


def _limits(meta: Mapping, run: config.Run | None) -> str:
    lines = [
        "The model knows only its classes. It was trained on simulated rooms, and not tested on "
        "recordings of real rooms or with other microphones.",
        f"It was trained on clips of {meta['seconds']:g} s. Other lengths work, but are untested.",
    ]
    scenes = run.scenes if run is not None else None
    if scenes and scenes.moving_source_prob == scenes.listener_turn_prob == 0:
        lines.append("Sources and listener did not move in training.")
    return "\n".join(f"- {line}" for line in lines)
