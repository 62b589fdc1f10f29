"""What transformers needs beside the weights: configs in its words, and the model in torch.

The torch modules are the files of hf/torch. They are copied into an exported folder, run there
without jaxasa, and nothing in jaxasa imports them.
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
    """Qwen2Config's or Qwen3Config's fields for the fields of config.Decoder.

    Raises ConfigError for a decoder that is neither of them.
    """
    kinds = {(True, False): "qwen2", (False, True): "qwen3"}
    kind = decoder.get("qkv_bias", True), decoder.get("qk_norm", False)
    if kind not in kinds:
        raise ConfigError(
            f"Decoder.qkv_bias and Decoder.qk_norm are {kind[0]} and {kind[1]}, "
            "expected one of them alone: transformers has no other Qwen"
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
    """WhisperConfig's fields for the fields of config.Semantic."""
    return {
        "model_type": "whisper",
        "num_mel_bins": semantic["n_mels"],
        "d_model": semantic["width"],
        "encoder_attention_heads": semantic["heads"],
        "encoder_ffn_dim": 4 * semantic["width"],
        "encoder_layers": semantic["layers"],
        "max_source_positions": round(semantic["max_seconds"] * 50),
    }


def dtype(leaves: Mapping[str, np.ndarray]) -> str:
    """The type of all arrays, or that of most of their bytes."""
    sizes: dict[str, int] = {}
    for leaf in leaves.values():
        sizes[str(leaf.dtype)] = sizes.get(str(leaf.dtype), 0) + leaf.nbytes
    return max(sizes, key=lambda name: sizes[name])


def write_tokenizer(out: Path, tokenizer: Path, reply_tokens: int) -> None:
    """tokenizer.json, tokenizer_config.json, and generation_config.json: greedy, and what ends."""
    text = tokens.Text.load(tokenizer)
    shutil.copyfile(tokenizer, out / "tokenizer.json")
    name = text.tokenizer.id_to_token
    folder.write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": name(text.pad),
            "eos_token": name(text.eos),
            "padding_side": "left",
            "clean_up_tokenization_spaces": False,
        },
    )
    folder.write_json(
        out / "generation_config.json",
        {
            "do_sample": False,
            "max_new_tokens": reply_tokens,
            "eos_token_id": text.eos,
            "pad_token_id": text.pad,
        },
    )


def write_modules(out: Path, model: Mapping, tokenizer: Path) -> None:
    """The torch modules, and processor_config.json."""
    text = tokens.Text.load(tokenizer)
    for path in sorted(MODULES.glob("*.py")):
        shutil.copyfile(path, out / path.name)
    folder.write_json(
        out / "processor_config.json",
        {
            "processor_class": "JaxasaProcessor",
            "auto_map": {"AutoProcessor": AUTO["AutoProcessor"]},
            "token_rate": model["projector"]["token_rate"],
            "slots": model["spatial"]["num_slots"],
            "channels": 4 if model["spatial"].get("format", "foa") == "foa" else 2,
            "audio_token": tokens.AUDIO,
            "before": list(getattr(text, "before", ())),
            "after": list(getattr(text, "after", ())),
        },
    )
