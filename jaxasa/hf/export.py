"""Writes a trained model as a Hugging Face folder: weights, config, tokenizer, model card.

    model.safetensors          or shards with an index; adapters merged; names of hf/keymap.py
    config.json                architecture, sizes, classes, conventions
    generation_config.json     greedy decoding and the tokens that end it
    tokenizer.json
    README.md                  the model card

The folder appears whole or not at all. `hf.load.load` reads it back to equal arrays.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from jaxasa.config import ConfigError
from jaxasa.data import tokens
from jaxasa.hf import keymap, load, weights

# Hubs and older file systems dislike larger files.
SHARD_BYTES = 5_000_000_000

CONVENTIONS = {
    "audio": "first-order ambisonics, 16 kHz, channels W Y Z X (ACN), SN3D gains (AmbiX)",
    "axes": "x front, y left, z up",
    "azimuth": "degrees, counter-clockwise, front 0, left +90, in (-180, 180]",
    "elevation": "degrees, up positive, in [-90, 90]",
    "distance": "metres",
    "time": "seconds",
}


def export(checkpoint: str | Path, out: str | Path, shard_bytes: int = SHARD_BYTES) -> Path:
    """Writes the model of `checkpoint` (WORKDIR/checkpoints/STAGE) to the folder `out`.

    An export that is already at `out` is replaced; anything else there is a ConfigError.
    Returns `out`. Raises ConfigError as `hf.load.load` does.
    """
    params, meta, tokenizer = load.load(checkpoint)
    leaves = load.flat(load.merge(params, meta["model"]))
    bad = sorted(path for path, leaf in leaves.items() if not np.isfinite(leaf).all())
    if bad:
        raise ConfigError(f"{checkpoint}: NaN or infinite values in {', '.join(bad)}")

    out = Path(out)
    if out.exists() and not (out / load.CONFIG).is_file() and any(out.iterdir()):
        raise ConfigError(f"{out}: holds something else than an export, expected a new folder")
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    before = out.with_name(f".{out.name}.{os.getpid()}.before")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        _write_weights(temporary, keymap.to_file(leaves), shard_bytes)
        text = tokens.Text.load(tokenizer)
        shutil.copyfile(tokenizer, temporary / "tokenizer.json")
        _write_json(temporary / load.CONFIG, _config(meta, leaves))
        _write_json(temporary / "generation_config.json", _generation(text))
        card = _card(meta, sum(leaf.size for leaf in leaves.values()))
        (temporary / "README.md").write_text(card, encoding="utf-8")
        if out.exists():
            os.replace(out, before)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)
    return out


def _write_weights(folder: Path, tensors: Mapping[str, np.ndarray], shard_bytes: int) -> None:
    """One file, or shards of at most `shard_bytes` (a larger tensor gets a shard of its own)."""
    shards: list[dict[str, np.ndarray]] = [{}]
    filled = 0
    for name, tensor in sorted(tensors.items()):
        if shards[-1] and filled + tensor.nbytes > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / weights.WEIGHTS, metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / weights.INDEX, index)


def _config(meta: Mapping, leaves: Mapping[str, np.ndarray]) -> dict:
    dtypes = sorted({str(leaf.dtype) for leaf in leaves.values()})
    return {
        "architectures": ["JaxasaForConditionalGeneration"],
        "model_type": load.MODEL_TYPE,
        "dtype": dtypes[0] if len(dtypes) == 1 else "mixed",
        "stage": meta["stage"],
        "classes": list(meta["classes"]),
        "seconds": meta["seconds"],
        "tokenizer": "tokenizer.json",
        "model": dict(meta["model"]),
        "conventions": CONVENTIONS,
    }


def _generation(text: tokens.Text) -> dict:
    return {"do_sample": False, "eos_token_id": text.eos, "pad_token_id": text.pad}


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _card(meta: Mapping, parameters: int) -> str:
    facts = "\n".join(f"- {name}: {text}" for name, text in CONVENTIONS.items())
    return f"""---
library_name: jaxasa
tags: [audio, spatial-audio, ambisonics, audio-question-answering]
---
# A jaxasa model

Answers questions about a scene recorded in first-order ambisonics: what sounds, where, how far.
{parameters:,} parameters, after stage `{meta["stage"]}`; it was trained on simulated scenes of
{meta["seconds"]:g} s with these classes: {", ".join(meta["classes"])}.

## Conventions
{facts}

## Use
```
jaxasa ask THIS_FOLDER scene.wav "Where is the {meta["classes"][0]}?"
jaxasa bench run --checkpoint THIS_FOLDER --workdir WORKDIR
```
Adapters are merged into the decoder. Sizes and classes are in `config.json`.

## Limits
It knows only its classes, and was trained on simulated shoebox rooms with sources that stand
still. Real rooms, moving sources and other microphones were not tested here.
"""
