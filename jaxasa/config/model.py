"""Options of the model: encoders, projector, decoder, adapters."""

import math
from dataclasses import dataclass

from jaxasa.config.checks import ConfigError, check, check_at_least


@dataclass(frozen=True)
class Semantic:
    """Whisper-shaped encoder of the W channel: log-mel, two convolutions, transformer."""

    mels: int
    width: int
    heads: int
    layers: int
    max_seconds: float = 30.0

    def __post_init__(self):
        check_at_least(self, 1, "mels", "width", "heads", "layers")
        check(self.width % self.heads == 0, "Semantic.width", self.width, "a multiple of heads")


@dataclass(frozen=True)
class Spatial:
    """Spatial encoder: features, conv stem over frequency, time layers, attractor slots.

    layers: so many before and so many after measured directions join the map.
    features: "intensity" (log-mel of W and the active intensity vector in mel bands) or
        "stft" (real and imaginary parts of W, Y, Z, X: 8 channels).
    stem: patches merged one after another, each (channels, frames, bands): so many outputs for
        each patch of so many frames and bands.
    classes: outputs of the class head; a sound bank may have at most so many.
    """

    width: int
    heads: int
    layers: int
    stem: tuple[tuple[int, int, int], ...]
    features: str = "stft"
    mels: int = 64
    fft: int = 512
    hop: int = 320
    slots: int = 3
    classes: int = 16

    def __post_init__(self):
        check_at_least(self, 1, "width", "heads", "layers", "mels", "fft", "hop", "slots")
        check_at_least(self, 1, "classes")
        kinds = ("intensity", "stft")
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


@dataclass(frozen=True)
class Projector:
    """Dense hybrid projector (P2): one semantic, four spatial and one joint expert."""

    hidden: int
    expert: int
    token_rate: float = 12.5

    def __post_init__(self):
        check_at_least(self, 1, "hidden", "expert")
        check_at_least(self, 0.1, "token_rate")


@dataclass(frozen=True)
class Decoder:
    """Qwen2-shaped decoder: grouped KV heads, RoPE, QKV bias, SwiGLU, tied embeddings."""

    vocab: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    hidden: int
    layers: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6

    def __post_init__(self):
        check_at_least(self, 1, "vocab", "width", "heads", "kv_heads", "head_width", "hidden")
        check_at_least(self, 1, "layers")
        ok = self.heads % self.kv_heads == 0
        check(ok, "Decoder.heads", self.heads, "a multiple of kv_heads")


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters on the decoder's projections whose names match `targets`."""

    rank: int = 8
    alpha: float = 32.0
    targets: str = r"(q|k|v|o|gate|up|down)"

    def __post_init__(self):
        check_at_least(self, 1, "rank")


@dataclass(frozen=True)
class Model:
    """The whole model: two encoders, projector, decoder, adapters.

    prompt_tokens: room for a question besides the audio; reply_tokens: the longest reply.
    unroll: layers compiled side by side in each turn of the scan over layers: 1 compiles fastest,
        and all of them run twice as fast on a CPU, where XLA works in a loop with less threads.
    """

    semantic: Semantic
    spatial: Spatial
    projector: Projector
    decoder: Decoder
    lora: Lora
    dtype: str = "float32"
    prompt_tokens: int = 48
    reply_tokens: int = 40
    unroll: int = 1

    def __post_init__(self):
        check_at_least(self, 1, "prompt_tokens", "reply_tokens", "unroll")
        kinds = ("float32", "bfloat16")
        check(self.dtype in kinds, "Model.dtype", self.dtype, " or ".join(kinds))


@dataclass(frozen=True)
class Sampling:
    """How a reply is chosen, token by token.

    temperature: 0 takes the likeliest; otherwise samples come from softmax(logits / temperature).
    top_k: only among the k likeliest tokens (0: all). top_p: only among the likeliest that
        together have this probability (1: all). Both need a temperature.
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
    """Lists, however deep, as the tuples that JSON made them of."""
    return tuple(tuples(v) for v in value) if isinstance(value, (list, tuple)) else value


def model_from_dict(values: dict) -> Model:
    """The inverse of `dataclasses.asdict`; ConfigError names a part or field that does not fit."""
    parts = {
        "semantic": Semantic,
        "spatial": Spatial,
        "projector": Projector,
        "decoder": Decoder,
        "lora": Lora,
    }
    try:
        rest = {name: value for name, value in values.items() if name not in parts}
        for name, part in parts.items():
            rest[name] = part(**{k: tuples(v) for k, v in values[name].items()})
        return Model(**rest)
    except (AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"model config: {error}, expected the fields of config.Model") from None
