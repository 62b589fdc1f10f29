"""Writes a trained model as a Hugging Face folder, which transformers opens without jaxasa.

    model.safetensors          or shards with an index; adapters merged; names of hf/keymap.py
    config.json                architecture, sizes, classes, conventions
    generation_config.json     greedy decoding and the tokens that end it
    tokenizer.json, tokenizer_config.json, processor_config.json
    *_jaxasa.py                the model in torch (hf/torch)
    stablehlo/                 if asked for, the model as functions for jax alone (hf/stablehlo.py)
    README.md                  the model card

The folder appears whole or not at all. `hf.load.load` reads it back to equal arrays.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxasa.core import files
from jaxasa.data import tokens
from jaxasa.hf import card, folder, keymap, load, remote, stablehlo

_MLP = re.compile(r"projector/(?!slots)\w+_in/kernel")


def export(
    checkpoint: str | Path,
    out: str | Path,
    shard_bytes: int = folder.SHARD_BYTES,
    with_stablehlo: bool = False,
) -> Path:
    """Writes the model of `checkpoint` (WORKDIR/checkpoints/STAGE) to the folder `out`.

    An export that is already at `out` is replaced; anything else there is a ConfigError.
    Returns `out`. Raises ConfigError as `hf.load.load` does, and for weights that are not finite.
    """
    params, meta, tokenizer = load.load(checkpoint)
    leaves = load.flat(load.merge(params, meta["model"]))
    tensors = keymap.to_file(leaves)
    facts = _config(meta, leaves, tokens.Text.load(tokenizer))
    with files.replacing(out, _is_export) as draft:
        folder.write_weights(draft, tensors, shard_bytes)
        folder.write_json(draft / load.CONFIG, facts)
        remote.write_tokenizer(draft, tokenizer, meta["model"]["reply_tokens"])
        remote.write_modules(draft, meta["model"], tokenizer)
        if with_stablehlo:
            stablehlo.write(draft / "stablehlo", tensors, meta, tokenizer)
        text = card.text(checkpoint, meta, sum(leaf.size for leaf in leaves.values()))
        (draft / "README.md").write_text(text, encoding="utf-8")
    return Path(out)


def _is_export(out: Path) -> bool:
    try:
        facts = json.loads((out / load.CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(facts, dict) and facts.get("model_type") == load.MODEL_TYPE


def _config(meta: Mapping, leaves: Mapping[str, np.ndarray], text: tokens.Text) -> dict:
    model = meta["model"]
    return {
        "architectures": ["JaxasaForConditionalGeneration"],
        "model_type": load.MODEL_TYPE,
        "auto_map": {name: place for name, place in remote.AUTO.items() if name != "AutoProcessor"},
        "dtype": remote.dtype(leaves),
        "audio_token_id": text.audio,
        "expert_width": max(n.shape[1] for p, n in leaves.items() if _MLP.fullmatch(p)),
        "text_config": remote.text_config(model["decoder"]),
        "audio_config": remote.audio_config(model["semantic"]),
        **{key: value for key, value in meta.items() if key != "tokenizer"},
        "tokenizer": "tokenizer.json",
        "conventions": card.conventions(meta),
    }
