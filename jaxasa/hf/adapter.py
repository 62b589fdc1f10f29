# SPDX-License-Identifier: Apache-2.0
"""Writes the LoRA adapters of a checkpoint alone, as a folder that peft loads on the decoder.

    adapter_config.json, adapter_model.safetensors    in peft's names (LoRA, arXiv:2106.09685)
    base/                                             their decoder without them, as a Qwen model
                                                      of transformers
    README.md

This is text only: the encoders and the projector are in the folder of `hf.export`.
"""

from pathlib import Path

from safetensors.numpy import save_file

from jaxasa.config import ConfigError
from jaxasa.core import files
from jaxasa.hf import folder, keymap, load, remote

_FILES = {"adapter_config.json", "adapter_model.safetensors", "base", "README.md"}
_PREFIX = "base_model.model."


def write_adapter(checkpoint: str | Path, out: str | Path) -> Path:
    """Writes the folder `out` from `checkpoint` (WORKDIR/checkpoints/STAGE); returns `out`.

    Raises ConfigError as `hf.export.export_checkpoint` does, and for a model without adapters, such
    as an export.
    """
    params, meta, tokenizer = load.load_model(checkpoint)
    if "lora" not in params:
        raise ConfigError(f"{checkpoint}: has no adapters, expected WORKDIR/checkpoints/STAGE")
    leaves = load.flatten_params({"lora": params["lora"], "decoder": params["decoder"]})
    adapters = {}
    for path, leaf in leaves.items():
        if path.startswith("lora/"):
            # Matrices a and b have the layout of the kernel that they are added to.
            module, side = path.removeprefix("lora/")[:-2], path[-1].upper()
            for name, tensor in keymap.to_hf({f"decoder/{module}/kernel": leaf}).items():
                adapters[_PREFIX + name.replace(".weight", f".lora_{side}.weight")] = tensor
    base = {path: leaf for path, leaf in leaves.items() if path.startswith("decoder/")}
    text = remote.text_config(meta["model"]["decoder"])
    kind = f"{text['model_type'].capitalize()}ForCausalLM"
    lora = meta["model"]["lora"]
    with files.atomic_folder(out, _is_adapter) as draft:
        save_file(adapters, draft / "adapter_model.safetensors", metadata={"format": "pt"})
        folder.write_json(
            draft / "adapter_config.json",
            {
                "peft_type": "LORA",
                "task_type": "CAUSAL_LM",
                "base_model_name_or_path": "base",
                "r": lora["rank"],
                "lora_alpha": lora["alpha"],
                "lora_dropout": 0.0,
                "bias": "none",
                "target_modules": sorted({name.split(".")[-3] for name in adapters}),
                "inference_mode": True,
            },
        )
        (draft / "base").mkdir()
        folder.write_weights(draft / "base", keymap.to_hf(base))
        folder.write_json(
            draft / "base" / "config.json",
            text | {"architectures": [kind], "dtype": remote.main_dtype(base)},
        )
        remote.write_tokenizer(draft / "base", tokenizer, meta["model"]["reply_tokens"])
        (draft / "README.md").write_text(_card(meta, kind), encoding="utf-8")
    return Path(out)


def _is_adapter(out: Path) -> bool:
    names = {path.name for path in out.iterdir()}
    return "adapter_config.json" in names and names <= _FILES


def _card(meta, kind: str) -> str:
    return f"""---
library_name: peft
base_model: base
tags: [jaxasa, lora]
---
# LoRA adapters after stage `{meta["stage"]}`

Adapters of the decoder of a jaxasa model. `base/` is the decoder without them.
```python
from peft import PeftModel
from transformers import {kind}

model = PeftModel.from_pretrained({kind}.from_pretrained("FOLDER/base"), "FOLDER")
```
The decoder alone takes text. For audio, export the whole model with its encoders and projector
(`jaxasa export`).
"""
