# SPDX-License-Identifier: Apache-2.0
"""The files that transformers needs besides the weights: configs, tokenizer, remote code.

The remote code is the model in torch, hf/torch. Its files are copied to the exported folder, where
they run without jaxasa; nothing in jaxasa imports them.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxasa.config import ConfigError
from jaxasa.data import tokens
from jaxasa.hf import folder

MODULES = Path(__file__).parent / "torch"
AUTO = {
    "AutoConfig": "configuration_jaxasa.JaxasaConfig",
    "AutoModel": "modeling_jaxasa.JaxasaForConditionalGeneration",
    "AutoModelForCausalLM": "modeling_jaxasa.JaxasaForConditionalGeneration",
    "AutoProcessor": "processing_jaxasa.JaxasaProcessor",
}


def text_config(decoder: Mapping) -> dict:
    """config.Decoder's fields as those of Qwen2Config or Qwen3Config.

    Raises ConfigError for a decoder that is neither.
    """
    kinds = {(True, False): "qwen2", (False, True): "qwen3"}
    kind = decoder.get("qkv_bias", True), decoder.get("qk_norm", False)
    if kind not in kinds:
        raise ConfigError(
            f"Decoder.qkv_bias and Decoder.qk_norm are {kind[0]} and {kind[1]}, "
            "expected exactly one of them to be True: a Qwen2 or a Qwen3"
        )
    return {
        "model_type": kinds[kind],
        "vocab_size": decoder["vocab_size"],
        "hidden_size": decoder["width"],
        "num_attention_heads": decoder["heads"],
        "num_key_value_heads": decoder["kv_heads"],
        "head_dim": decoder["head_dim"],
        "intermediate_size": decoder["intermediate_size"],
        "num_hidden_layers": decoder["layers"],
        "rope_theta": decoder["rope_theta"],
        "rms_norm_eps": decoder["norm_eps"],
        "tie_word_embeddings": decoder.get("tie_word_embeddings", True),
    }


def audio_config(semantic: Mapping) -> dict:
    """config.Semantic's fields as those of WhisperConfig."""
    return {
        "model_type": "whisper",
        "num_mel_bins": semantic["n_mels"],
        "d_model": semantic["width"],
        "encoder_attention_heads": semantic["heads"],
        "encoder_ffn_dim": 4 * semantic["width"],
        "encoder_layers": semantic["layers"],
        "max_source_positions": round(semantic["max_seconds"] * 50),
    }


def main_dtype(leaves: Mapping[str, np.ndarray]) -> str:
    """The dtype of all arrays, or if they differ, of most of their bytes."""
    sizes: dict[str, int] = {}
    for leaf in leaves.values():
        sizes[str(leaf.dtype)] = sizes.get(str(leaf.dtype), 0) + leaf.nbytes
    return max(sizes, key=lambda name: sizes[name])


def write_tokenizer(out: Path, path: Path, reply_tokens: int) -> None:
    """Writes tokenizer.json, tokenizer_config.json and generation_config.json (greedy).

    path: of the model's tokenizer.json. reply_tokens: the longest reply.
    """
    tokenizer = tokens.TextTokenizer.load(path)
    shutil.copyfile(path, out / "tokenizer.json")
    name = tokenizer.backend.id_to_token
    folder.write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": name(tokenizer.pad_id),
            "eos_token": name(tokenizer.eos_id),
            "padding_side": "left",
            "clean_up_tokenization_spaces": False,
        },
    )
    folder.write_json(
        out / "generation_config.json",
        {
            "do_sample": False,
            "max_new_tokens": reply_tokens,
            "eos_token_id": tokenizer.eos_id,
            "pad_token_id": tokenizer.pad_id,
        },
    )


def write_modules(out: Path, model: Mapping, tokenizer_path: Path) -> None:
    """Copies the torch modules, and writes processor_config.json.

    model: meta["model"].
    """
    tokenizer = tokens.TextTokenizer.load(tokenizer_path)
    for path in sorted(MODULES.glob("*.py")):
        shutil.copyfile(path, out / path.name)
    folder.write_json(
        out / "processor_config.json",
        {
            "processor_class": "JaxasaProcessor",
            "auto_map": {"AutoProcessor": AUTO["AutoProcessor"]},
            "token_rate": model["projector"]["token_rate"],
            "num_slots": model["spatial"]["num_slots"],
            "channels": 4 if model["spatial"].get("format", "foa") == "foa" else 2,
            "audio_token": tokens.AUDIO,
            "chat_prefix": list(tokenizer.chat_prefix),
            "chat_suffix": list(tokenizer.chat_suffix),
        },
    )
