# SPDX-License-Identifier: Apache-2.0
"""Writes a trained model as a Hugging Face folder, which transformers loads without jaxasa.

    model.safetensors          or shards with an index; adapters merged; names of hf/keymap.py
    config.json                architecture, sizes, classes, conventions
    generation_config.json     greedy decoding, end of sequence
    tokenizer.json, tokenizer_config.json, processor_config.json
    *_jaxasa.py                the model in torch (hf/torch)
    stablehlo/                 optional: the model as functions for jax alone (hf/stablehlo.py)
    README.md                  the model card

The folder appears whole or not at all. `hf.load.load_model` reads it back to equal arrays.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxasa.core import files
from jaxasa.core.provenance import made_by
from jaxasa.data import tokens
from jaxasa.hf import card, folder, keymap, load, remote, stablehlo

_MLP = re.compile(r"projector/(?!slots)\w+_in/kernel")


def export_checkpoint(
    checkpoint: str | Path,
    out: str | Path,
    shard_bytes: int = folder.SHARD_BYTES,
    with_stablehlo: bool = False,
) -> Path:
    """Writes the model of `checkpoint` (WORKDIR/checkpoints/STAGE) to the folder `out`, its result.

    An export that is already at `out` is replaced. Raises ConfigError if something else is there,
    and as `hf.load.load_model` does.
    """
    params, meta, tokenizer = load.load_model(checkpoint)
    leaves = load.flatten_params(load.merge_lora(params, meta["model"]))
    tensors = keymap.to_hf(leaves)
    model_config = _config(meta, leaves, tokens.TextTokenizer.load(tokenizer))
    with files.atomic_folder(out, _is_export) as draft:
        folder.write_weights(draft, tensors, shard_bytes)
        folder.write_json(draft / load.CONFIG, model_config)
        remote.write_tokenizer(draft, tokenizer, meta["model"]["reply_tokens"])
        remote.write_modules(draft, meta["model"], tokenizer)
        if with_stablehlo:
            stablehlo.write_stablehlo(draft / "stablehlo", tensors, meta, tokenizer)
        readme = card.model_card(checkpoint, meta, sum(leaf.size for leaf in leaves.values()))
        (draft / "README.md").write_text(readme, encoding="utf-8")
    return Path(out)


def _is_export(out: Path) -> bool:
    """Whether `out` is an export, which may be replaced."""
    try:
        model_config = json.loads((out / load.CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(model_config, dict) and model_config.get("model_type") == load.MODEL_TYPE


def _config(
    meta: Mapping, leaves: Mapping[str, np.ndarray], tokenizer: tokens.TextTokenizer
) -> dict:
    """config.json. leaves: the flat parameters."""
    model = meta["model"]
    return {
        "architectures": ["JaxasaForConditionalGeneration"],
        "model_type": load.MODEL_TYPE,
        "auto_map": {name: path for name, path in remote.AUTO.items() if name != "AutoProcessor"},
        "dtype": remote.main_dtype(leaves),
        "audio_token_id": tokenizer.audio_id,
        "expert_width": max(leaf.shape[1] for path, leaf in leaves.items() if _MLP.fullmatch(path)),
        "text_config": remote.text_config(model["decoder"]),
        "audio_config": remote.audio_config(model["semantic"]),
        **{key: value for key, value in meta.items() if key != "tokenizer"},
        "tokenizer": "tokenizer.json",
        "conventions": card.conventions(meta),
        "made_by": made_by(),
    }
