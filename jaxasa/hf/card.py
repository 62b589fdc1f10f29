"""The model card: what was learnt from, how well it answers, and what it does not know.

All that it says comes from the checkpoint and from the run's folder around it (WORKDIR of
WORKDIR/checkpoints/STAGE): config.gin, sounds/credits.csv, results.json. What is not there is
said to be unknown.
"""

import csv
import json
from collections.abc import Mapping
from pathlib import Path

from jaxasa import config
from jaxasa.config import ConfigError, gin_files

_AUDIO = {
    "foa": "first-order ambisonics, 16 kHz, channels W Y Z X (ACN), SN3D gains (AmbiX)",
    "binaural": "binaural, 16 kHz, channels left ear, right ear",
}


def audio(meta: Mapping) -> str:
    """What the model hears, in words."""
    return _AUDIO[meta["model"]["spatial"].get("format", "foa")]


def conventions(meta: Mapping) -> dict[str, str]:
    """What its numbers mean."""
    return {
        "audio": audio(meta),
        "axes": "x front, y left, z up",
        "azimuth": "degrees, counter-clockwise, front 0, left +90, in (-180, 180]",
        "elevation": "degrees, up positive, in [-90, 90]",
        "distance": "metres",
        "time": "seconds",
    }


_LEVELS = ("overall", "L1", "L2", "L3")


def text(checkpoint: str | Path, meta: Mapping, parameters: int) -> str:
    """README.md of an exported model, with the hub's YAML header.

    meta: of the checkpoint; parameters: how many numbers the weights are.
    """
    folder = Path(checkpoint)
    work = folder.resolve().parents[1] if folder.resolve().parent.name == "checkpoints" else None
    licences = _licences(work)
    results, why_not = _results(folder, work)
    run = _run(folder)
    body = f"""# {run.name if run else "A jaxasa model"}, after stage `{meta["stage"]}`

Answers questions about a scene: what sounds, where, how far. It hears {audio(meta)}.
{parameters:,} parameters. Classes: {", ".join(meta["classes"])}.

## Conventions
{_list(conventions(meta))}

## Use
With transformers (nothing of jaxasa is needed):
```python
import soundfile
from transformers import AutoModel, AutoProcessor

processor = AutoProcessor.from_pretrained(FOLDER, trust_remote_code=True)
model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)
audio, rate = soundfile.read("scene.wav")  # [samples, channels], at most \
{meta["model"]["semantic"]["max_seconds"]:g} s
inputs = processor(audio, "Where is the {meta["classes"][0]}?", sampling_rate=rate)
reply, sources = model.generate(**inputs, return_sources=True)
print(processor.read(reply[0])["answer"], sources[0])
```
With jaxasa:
```
jaxasa ask FOLDER scene.wav "Where is the {meta["classes"][0]}?"
jaxasa bench run --checkpoint FOLDER --workdir WORKDIR
```
Adapters are merged into the decoder. Sizes and classes are in `config.json`.

## Training data
{_data(meta, run, licences)}

## Results
{_table(results) if results else why_not}

## Limits
{_limits(meta, run)}
"""
    return _header(meta, results) + body


def _header(meta: Mapping, results: Mapping | None) -> str:
    """YAML, each value in JSON, which is YAML."""
    fields: dict = {
        "library_name": "transformers",
        "pipeline_tag": "audio-text-to-text",
        "language": ["en"],
        "tags": ["jaxasa", "spatial-audio", "ambisonics", "audio-question-answering"],
    }
    base = _bases(meta)
    if meta.get("sounds") != "procedural" or base:
        # The weights come from works of others; no licence is chosen here for them.
        fields |= {"license": "other", "license_name": "see-training-data"}
        fields["license_link"] = "README.md#training-data"
    else:
        fields["license"] = "apache-2.0"
    if base:
        fields["base_model"] = base
    if results:
        found = results["systems"][meta["stage"]]
        metrics = [
            {"type": "accuracy", "name": level, "value": round(100 * found[level]["accuracy"], 1)}
            for level in _LEVELS
        ]
        task = {"type": "audio-text-to-text"}
        data = {"type": "jaxasa-asa", "name": f"asa, {results['benchmark']['items']} items"}
        result = {"task": task, "dataset": data, "metrics": metrics}
        fields["model-index"] = [{"name": f"jaxasa-{meta['stage']}", "results": [result]}]
    return "".join(["---\n", *(f"{k}: {json.dumps(v)}\n" for k, v in fields.items()), "---\n"])


def _bases(meta: Mapping) -> list[str]:
    """Names of the pretrained models that it began from; meta["pretrained"] may name them."""
    return sorted({str(name) for name in dict(meta.get("pretrained") or {}).values()})


def _list(facts: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {fact}" for name, fact in facts.items())


def _run(folder: Path) -> config.Run | None:
    """The run that the checkpoint's config.gin describes, if it is there."""
    try:
        return gin_files.load([str(folder / "config.gin")])[0]
    except ConfigError:
        return None


def _licences(work: Path | None) -> dict[str, str]:
    """Licence of each package of recordings, of WORKDIR/sounds/credits.csv."""
    path = work / "sounds" / "credits.csv" if work else None
    if path is None or not path.is_file():
        return {}
    with open(path, encoding="utf-8", newline="") as file:
        return {row["package"]: row["licence"] for row in csv.DictReader(file)}


def _results(folder: Path, work: Path | None) -> tuple[dict | None, str]:
    """results.json where it scores this checkpoint, or None and why not."""
    path = work / "results.json" if work else None
    if path is None or not path.is_file():
        return None, "No benchmark was run beside this checkpoint."
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ConfigError(f"{path}: is not JSON, expected results of `jaxasa bench`") from None
    if folder.name not in results.get("systems", {}):
        return None, f"The benchmark was run, but not on stage `{folder.name}`."
    meta = folder / "meta.json"
    if meta.is_file() and meta.stat().st_mtime > path.stat().st_mtime:
        return None, "The benchmark was run before these weights were trained."
    return results, ""


def _table(results: Mapping) -> str:
    facts = results["benchmark"]
    rows = [f"| system | {' | '.join(_LEVELS)} |", f"|---{'|---' * len(_LEVELS)}|"]
    for name, found in results["systems"].items():
        cells = [
            f"{100 * a['accuracy']:.1f} ({100 * a['low']:.0f}-{100 * a['high']:.0f})"
            for a in (found[level] for level in _LEVELS)
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return (
        f"Accuracy in % with 95 % intervals on {facts['items']} four-option questions, seed "
        f"{facts['seed']}, sounds: {facts['sounds']}, recordings never heard in training.\n\n"
        + "\n".join(rows)
    )


def _data(meta: Mapping, run: config.Run | None, licences: Mapping[str, str]) -> str:
    facts = {"sounds": str(meta.get("sounds", "unknown"))}
    if licences:
        facts["licences of the recordings"] = "; ".join(f"{p} {s}" for p, s in licences.items())
    if base := _bases(meta):
        facts["began from"] = ", ".join(base)
    if run is None:
        return _list(facts | {"scenes": f"simulated, {meta['seconds']:g} s each"})
    s = run.scenes
    many = f"mixed from {s.rir_rooms:,} rooms" if s.rir_rooms else f"{s.train:,}"
    span = lambda pair, unit: f"{pair[0]:g} to {pair[1]:g} {unit}"  # noqa: E731
    facts["scenes"] = f"{many}, simulated, {s.seconds:g} s each, seed {run.seed}"
    facts["rooms"] = (
        f"shoeboxes of {span(s.length, 'm')} x {span(s.width, 'm')} x {span(s.height, 'm')}, "
        f"RT60 {span(s.rt60, 's')}"
    )
    facts["sources"] = (
        f"{span(s.sources, 'at a time')}, at {span(s.distance, 'm')}; "
        f"{100 * s.moving_source_prob:g} % of them walk, in {100 * s.listener_turn_prob:g} % of scenes the listener turns"
    )
    facts["noise"] = f"diffuse, SNR {span(s.snr, 'dB')}"
    return _list(facts)


def _limits(meta: Mapping, run: config.Run | None) -> str:
    lines = [
        "It knows only its classes, and was trained on simulated rooms; recordings of real rooms "
        "and other microphones were not tested.",
        f"Clips were {meta['seconds']:g} s long in training; other lengths run, and are untested.",
    ]
    if (
        run is not None
        and run.scenes.moving_source_prob == 0
        and run.scenes.listener_turn_prob == 0
    ):
        lines.append("Sources and listener stood still in training.")
    return "\n".join(f"- {line}" for line in lines)
