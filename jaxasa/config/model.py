# SPDX-License-Identifier: Apache-2.0
"""Options of the model: encoders, projector, decoder, adapters."""

import math
from dataclasses import dataclass, field, fields, is_dataclass

from jaxasa.config.changes import DATA, SPEED
from jaxasa.config.checks import ConfigError, check, check_at_least

DTYPES = ("float32", "bfloat16")
REMAT = ("none", "dots", "full")


@dataclass(frozen=True)
class Semantic:
    """Whisper-shaped encoder of one channel: log-mel, two convolutions, transformer.

    Its input is W of FOA, or the mean of both ears of binaural audio.
    max_seconds: length of its position table; longer clips are cut. pool: frames that are averaged
    before the last norm; 2 in Qwen2-Audio's tower.
    """

    n_mels: int
    width: int
    heads: int
    layers: int
    max_seconds: float = 30.0
    pool: int = 1

    def __post_init__(self):
        check_at_least(self, 1, "n_mels", "width", "heads", "layers", "pool")
        check(self.width % self.heads == 0, "Semantic.width", self.width, "a multiple of heads")

    def frames(self, samples):
        """Number of output frames, 50 / pool a second, of `samples` (number or array) at 16 kHz."""
        return (samples // 160 + 1) // 2 // self.pool


# Parts of the model: the top of the parameter tree.
PARTS = ("semantic", "spatial", "projector", "decoder", "lora")
# Experts of the P2 projector (models/projector.py).
EXPERTS = ("semantic", "direction", "distance", "reverberation", "count", "joint")
CHANNELS = {"foa": 4, "binaural": 2}
MEASURED = {"foa": "intensity", "binaural": "interaural"}


@dataclass(frozen=True)
class Spatial:
    """Spatial encoder: features, conv stem over frequency, time layers, attractor slots.

    layers: number of time layers before measured directions are added to the map, and after.
    format: of the audio: "foa" (W, Y, Z, X) or "binaural" (left and right ear).
    features: input of the stem: "stft" (real and imaginary parts of all channels, 8 or 4), or
        the features that directions are measured by: "intensity" for foa (log-mel of W and the
        active intensity vector in mel bands), "interaural" for binaural (log-mel, phase and level
        differences).
    stem: patch merges in order, each (channels, frames, bands): output channels for each patch of
        so many frames and bands.
    num_classes: outputs of the class head, at least the number of classes of the sound bank.
    """

    width: int
    heads: int
    layers: int
    stem: tuple[tuple[int, int, int], ...]
    format: str = field(default="foa", metadata=DATA)
    features: str = "stft"
    n_mels: int = 64
    n_fft: int = 512
    hop_length: int = 320
    num_slots: int = 3
    num_classes: int = 16

    def __post_init__(self):
        check_at_least(
            self, 1, "width", "heads", "layers", "n_mels", "n_fft", "hop_length", "num_slots"
        )
        check_at_least(self, 1, "num_classes")
        formats = " or ".join(CHANNELS)
        check(self.format in CHANNELS, "Spatial.format", self.format, formats)
        kinds = (MEASURED[self.format], "stft")
        check(self.features in kinds, "Spatial.features", self.features, " or ".join(kinds))
        check(self.width % self.heads == 0, "Spatial.width", self.width, "a multiple of heads")
        ok = len(self.stem) > 0 and all(
            len(row) == 3 and all(isinstance(n, int) and n > 0 for n in row) for row in self.stem
        )
        check(ok, "Spatial.stem", self.stem, "rows of (channels, frames, bands)")

    @property
    def frames_per_step(self) -> int:
        """Feature frames to one frame of the dense map."""
        return math.prod(frames for _, frames, _ in self.stem)

    @property
    def channels(self) -> int:
        return CHANNELS[self.format]

    def steps(self, samples):
        """Frames of the dense map of so many samples, a number or an array of them."""
        return (1 + samples // self.hop_length) // self.frames_per_step


@dataclass(frozen=True)
class Projector:
    """Projector from both encoders to audio tokens (models/projector.py).

    kind: "p2" (dense hybrid: an MLP for each of EXPERTS), "p1" (dual tower: one for each encoder)
        or "p0" (single MLP); the hidden widths of p1 and p0 are such that all kinds have the same
        number of parameters.
    drop_experts: experts that p2 is built without, with their auxiliary losses, for ablations.
    expert_width: width of each expert's output. hidden_width: of the bottleneck MLP after them.
    token_rate: tokens of the dense map a second, each of a whole number of samples. Before them
        comes a token for each slot.
    slot_tokens: whether slot tokens hold slot features; if not, the decoder has only the map (and
        the same number of tokens), for ablations.
    """

    hidden_width: int
    expert_width: int
    token_rate: float = 12.5
    kind: str = "p2"
    drop_experts: tuple[str, ...] = ()
    slot_tokens: bool = True

    def __post_init__(self):
        check_at_least(self, 1, "hidden_width", "expert_width")
        check_at_least(self, 0.1, "token_rate")
        kinds = ("p0", "p1", "p2")
        check(self.kind in kinds, "Projector.kind", self.kind, " or ".join(kinds))
        dropped, ok = self.drop_experts, isinstance(self.drop_experts, (tuple, list))
        ok = ok and set(dropped) < set(EXPERTS) and len(set(dropped)) == len(dropped)
        expected = "different names, but not all, out of " + ", ".join(EXPERTS)
        check(ok, "Projector.drop_experts", dropped, expected)
        expected = f"() with kind {self.kind}: only p2 has experts to leave out"
        check(not dropped or self.kind == "p2", "Projector.drop_experts", dropped, expected)


@dataclass(frozen=True)
class Decoder:
    """Qwen-shaped decoder: grouped KV heads, RoPE, SwiGLU.

    qkv_bias: biases on queries, keys and values (Qwen2, Qwen2.5). qk_norm: RMSNorm of each
    query and key head before RoPE (Qwen3). tie_word_embeddings: the output uses the embedding
    table; otherwise it has a table of its own (the larger sizes).
    """

    vocab_size: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    layers: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    qkv_bias: bool = True
    qk_norm: bool = False
    tie_word_embeddings: bool = True

    def __post_init__(self):
        check_at_least(
            self, 1, "vocab_size", "width", "heads", "kv_heads", "head_dim", "intermediate_size"
        )
        check_at_least(self, 1, "layers")
        ok = self.heads % self.kv_heads == 0
        check(ok, "Decoder.heads", self.heads, "a multiple of kv_heads")


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters on the decoder's projections whose names match `target_modules`."""

    rank: int = 8
    alpha: float = 32.0
    target_modules: str = r"(q|k|v|o|gate|up|down)"

    def __post_init__(self):
        check_at_least(self, 1, "rank")


@dataclass(frozen=True)
class Model:
    """The whole model: two encoders, projector, decoder, adapters.

    prompt_tokens: longest question, besides the audio; reply_tokens: longest reply.
    unroll: layers in each iteration of the scan over layers. 1 compiles fastest; all of them run
        twice as fast on a CPU, where XLA uses fewer threads in a loop. Generation then holds the
        decoder's weights twice (models/decoding.py).
    dtype: of activations and matmuls; sums of norms, softmax and logits are float32.
    frozen_dtype: of parameters that a stage does not train; those that it trains are float32.
    remat: what is stored of each decoder layer for the backward pass: "none": everything; "dots":
        the outputs of projections, the rest is recomputed; "full": the layer's input alone.
    """

    semantic: Semantic
    spatial: Spatial
    projector: Projector
    decoder: Decoder
    lora: Lora
    dtype: str = "float32"
    prompt_tokens: int = 48
    reply_tokens: int = 40
    unroll: int = field(default=1, metadata=SPEED)
    frozen_dtype: str = "float32"
    remat: str = field(default="none", metadata=SPEED)

    def __post_init__(self):
        check_at_least(self, 1, "prompt_tokens", "reply_tokens", "unroll")
        check(self.dtype in DTYPES, "Model.dtype", self.dtype, " or ".join(DTYPES))
        frozen = self.frozen_dtype
        check(frozen in DTYPES, "Model.frozen_dtype", frozen, " or ".join(DTYPES))
        check(self.remat in REMAT, "Model.remat", self.remat, " or ".join(REMAT))


@dataclass(frozen=True)
class Sampling:
    """Sampling of a reply, token by token.

    temperature: 0 is greedy; otherwise tokens are sampled from softmax(logits / temperature).
    top_k: sample only from the k likeliest tokens (0: all). top_p: only from the likeliest that
        together have this probability (1: all). Both need a temperature above 0.
    stop: strings at which a reply ends; they are not part of it.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()

    def __post_init__(self):
        check_at_least(self, 0, "temperature", "top_k")
        check(isinstance(self.top_k, int), "Sampling.top_k", self.top_k, "a whole number")
        check(0 < self.top_p <= 1, "Sampling.top_p", self.top_p, "above 0 and at most 1")
        filters = self.top_k or self.top_p < 1
        check(
            self.temperature > 0 or not filters,
            "Sampling.temperature",
            self.temperature,
            "a number above 0 with top_k or top_p",
        )
        check(all(self.stop), "Sampling.stop", self.stop, "strings of at least a letter")


def tuples(value):
    """Turns lists, at any depth, back into the tuples that JSON stored as lists."""
    return tuple(tuples(v) for v in value) if isinstance(value, (list, tuple)) else value


def model_from_dict(values: dict) -> Model:
    """The inverse of `dataclasses.asdict`; ConfigError names a part or field that does not fit."""
    parts = {
        f.name: f.type for f in fields(Model) if isinstance(f.type, type) and is_dataclass(f.type)
    }
    try:
        rest = {name: value for name, value in values.items() if name not in parts}
        for name, part in parts.items():
            rest[name] = part(**{k: tuples(v) for k, v in values[name].items()})
        return Model(**{k: tuples(v) for k, v in rest.items()})
    except (AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"model config: {error}, expected the fields of config.Model") from None
