"""Every option of jaxasa, as frozen dataclasses that gin files build.

`Run` is the root: each command reads one `Run` and takes the parts that it needs. Fields
without a default must be bound in a gin file. gin checks no types, so `__post_init__`
does, and a bad value is a one-line `ConfigError` that names the field, the value and
what was expected.

Units: metres, seconds, hertz, degrees, dB.
"""

import dataclasses
import math
from dataclasses import dataclass

STAGES = ("text", "spatial", "align", "sft", "grpo")
POLICY_LOSSES = ("grpo", "dr_grpo", "dapo", "gspo", "sapo")


class ConfigError(ValueError):
    """A setting or an input that the user must mend: one line, exit code 2."""


def check(condition: bool, field: str, value, expected: str) -> None:
    """Raises ConfigError naming `field` (`Class.field`), its `value` and what was `expected`."""
    if not condition:
        raise ConfigError(f"{field} is {value!r}, expected {expected}")


def _check_range(owner, *fields: str, low: float) -> None:
    for name in fields:
        value = getattr(owner, name)
        ok = (
            isinstance(value, (tuple, list))
            and len(value) == 2
            and all(isinstance(v, (int, float)) and math.isfinite(v) for v in value)
            and low <= value[0] <= value[1]
        )
        where = f"{type(owner).__name__}.{name}"
        check(ok, where, value, f"(low, high) with {low} <= low <= high")


def _check_at_least(owner, low, *fields: str) -> None:
    for name in fields:
        value = getattr(owner, name)
        ok = isinstance(value, (int, float)) and not isinstance(value, bool) and value >= low
        check(ok, f"{type(owner).__name__}.{name}", value, f"a number of at least {low}")


def _check_share(owner, *fields: str) -> None:
    for name in fields:
        value = getattr(owner, name)
        ok = isinstance(value, (int, float)) and 0 <= value <= 1
        check(ok, f"{type(owner).__name__}.{name}", value, "a share from 0 to 1")


@dataclass(frozen=True)
class Sounds:
    """The sound bank: mono recordings with a class and a take.

    bank: "debian" (recordings in Debian packages), "procedural" (synthesised, nothing to
        download), "folder:PATH" (a folder per class), "esc50:PATH", "fsd50k:PATH" or
        "manifest:PATH" (a CSV file with the columns path, class, take).
    classes: class name -> labels of the source that it gathers; empty takes every label.
    min_takes: a class with fewer takes is left out, and named.
    max_seconds: longer clips are cut.
    splits: shares of the takes of each class given to train, dev and test.
    """

    bank: str
    classes: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    min_takes: int = 8
    max_seconds: float = 4.0
    splits: tuple[float, float, float] = (0.6, 0.15, 0.25)

    def __post_init__(self):
        kind = str(self.bank).partition(":")[0]
        kinds = ("debian", "procedural", "folder", "esc50", "fsd50k", "manifest")
        check(kind in kinds, "Sounds.bank", self.bank, "one of " + ", ".join(kinds))
        _check_at_least(self, 3, "min_takes")
        _check_at_least(self, 0.1, "max_seconds")
        ok = len(self.splits) == 3 and all(s > 0 for s in self.splits)
        ok = ok and abs(sum(self.splits) - 1) < 1e-6
        check(ok, "Sounds.splits", self.splits, "three positive shares that sum to 1")


@dataclass(frozen=True)
class Scenes:
    """Ranges from which scenes are drawn, and how many of each split are rendered.

    seconds: length of a scene. sources: least and most sources. Rooms are shoeboxes of
    length x width x height. rt60 is the nominal range; scenes are labelled with what is
    measured. distance: source to listener. snr: diffuse ambient noise. gain: a source's own
    level, independent of its distance. speed: playback rate of a clip, as augmentation.

    overlap: share of a source that is still to come when the next starts, 0 (one after the
        other) to 1 (all at once); () leaves onsets free, at least 0.4 s apart.
    moving: share of sources that walk while they sound; pace: metres a second. They keep to
        `distance`; min_separation holds where they start.
    turning: share of scenes in which the listener turns; turn_rate: degrees a second.
    sensor_snr: (low, high) of the white noise of the microphones; () for none.
    responses: rooms in a bank of room responses from which the scenes of train are mixed while
        training, and none are stored; places: source positions in each. 0 stores scenes.
    """

    train: int
    dev: int
    benchmark: int
    seconds: float = 5.0
    sources: tuple[int, int] = (1, 3)
    length: tuple[float, float] = (4.0, 9.0)
    width: tuple[float, float] = (3.5, 7.0)
    height: tuple[float, float] = (2.4, 3.6)
    rt60: tuple[float, float] = (0.15, 0.7)
    distance: tuple[float, float] = (0.6, 4.0)
    min_separation: float = 30.0
    snr: tuple[float, float] = (20.0, 40.0)
    gain: tuple[float, float] = (-6.0, 6.0)
    speed: tuple[float, float] = (1.0, 1.0)
    overlap: tuple[float, ...] = ()
    moving: float = 0.0
    pace: tuple[float, float] = (0.3, 2.0)
    turning: float = 0.0
    turn_rate: tuple[float, float] = (10.0, 90.0)
    sensor_snr: tuple[float, ...] = ()
    responses: int = 0
    places: int = 6
    shard: int = 100
    workers: int = 2

    def __post_init__(self):
        _check_at_least(self, 1, "train", "dev", "benchmark", "shard", "workers")
        _check_at_least(self, 0.5, "seconds")
        _check_at_least(self, 0.0, "min_separation")
        _check_range(self, "length", "width", "height", low=1.0)
        _check_range(self, "sources", low=1)
        _check_range(self, "rt60", low=0.05)
        _check_range(self, "distance", low=0.05)
        _check_range(self, "snr", "gain", low=-100.0)
        _check_range(self, "speed", low=0.25)
        _check_range(self, "pace", "turn_rate", low=0.0)
        check(self.pace[1] <= 10, "Scenes.pace", self.pace, "at most 10 m/s")
        if self.overlap:
            _check_range(self, "overlap", low=0.0)
            check(self.overlap[1] <= 1, "Scenes.overlap", self.overlap, "shares up to 1")
        if self.sensor_snr:
            _check_range(self, "sensor_snr", low=-100.0)
        _check_share(self, "moving", "turning")
        _check_at_least(self, 0, "responses")
        check(1 <= self.places <= 8, "Scenes.places", self.places, "1 to 8")
        if self.responses:
            most, expected = self.sources[1], "at least as many as Scenes.sources"
            check(most <= self.places, "Scenes.places", self.places, f"{expected} ({most})")
            expected = f"0.0, for scenes mixed from {self.responses} stored responses stand still"
            check(self.moving == 0, "Scenes.moving", self.moving, expected)
        check(self.sources[1] <= 8, "Scenes.sources", self.sources, "at most 8 sources")


@dataclass(frozen=True)
class Semantic:
    """Whisper-shaped encoder of the W channel: log-mel, two convolutions, transformer."""

    mels: int
    width: int
    heads: int
    layers: int
    max_seconds: float = 30.0

    def __post_init__(self):
        _check_at_least(self, 1, "mels", "width", "heads", "layers")
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
        _check_at_least(self, 1, "width", "heads", "layers", "mels", "fft", "hop", "slots")
        _check_at_least(self, 1, "classes")
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
        _check_at_least(self, 1, "hidden", "expert")
        _check_at_least(self, 0.1, "token_rate")


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
        _check_at_least(self, 1, "vocab", "width", "heads", "kv_heads", "head_width", "hidden")
        _check_at_least(self, 1, "layers")
        ok = self.heads % self.kv_heads == 0
        check(ok, "Decoder.heads", self.heads, "a multiple of kv_heads")


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters on the decoder's projections whose names match `targets`."""

    rank: int = 8
    alpha: float = 32.0
    targets: str = r"(q|k|v|o|gate|up|down)"

    def __post_init__(self):
        _check_at_least(self, 1, "rank")


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
        _check_at_least(self, 1, "prompt_tokens", "reply_tokens", "unroll")
        kinds = ("float32", "bfloat16")
        check(self.dtype in kinds, "Model.dtype", self.dtype, " or ".join(kinds))


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


@dataclass(frozen=True)
class Mesh:
    """Devices as (data, fsdp, tensor); -1 takes what is left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        sizes = (self.data, self.fsdp, self.tensor)
        ok = all(isinstance(s, int) and (s > 0 or s == -1) for s in sizes)
        ok = ok and sum(s == -1 for s in sizes) <= 1
        check(ok, "Mesh", sizes, "positive sizes, at most one of them -1")


@dataclass(frozen=True)
class Stage:
    """What every training stage has: length, batch, optimizer, which parts learn.

    trainable: regular expressions on parameter paths ("decoder/.*"); what none matches is frozen.
    """

    steps: int
    batch: int
    learning_rate: float
    trainable: tuple[str, ...]
    warmup: int = 20
    weight_decay: float = 0.01
    clip: float = 1.0
    save_every: int = 100
    eval_every: int = 100
    log_every: int = 10

    def __post_init__(self):
        _check_at_least(self, 1, "steps", "batch", "save_every", "eval_every", "log_every")
        _check_at_least(self, 0, "learning_rate", "warmup", "weight_decay", "clip")


@dataclass(frozen=True)
class TextStage(Stage):
    """Stage 0, tiny only: the decoder learns copying, captions and questions on written scenes."""

    copy_share: float = 0.5
    copy_until: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        _check_share(self, "copy_share", "copy_until")


@dataclass(frozen=True)
class SpatialStage(Stage):
    """Stage 1: slots, room and dense map of the spatial encoder; tags of the semantic one.

    mono_share: share of scenes heard in W only. colour: standard deviation (dB) of the random
    filters that scenes pass, so that recordings are not learnt by heart.
    """

    mono_share: float = 0.1
    colour: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        _check_share(self, "mono_share")
        _check_at_least(self, 0, "colour")


@dataclass(frozen=True)
class AlignStage(Stage):
    """Stage 2: the projector learns captions under a frozen decoder."""

    mono_share: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        _check_share(self, "mono_share")


@dataclass(frozen=True)
class SftStage(Stage):
    """Stage 3: `questions` of each scene, so a batch has batch x questions rows.

    mono_share, no_audio_share: shares of scenes heard in W only, or not at all, so that the
    controls meet nothing new. null_share: spatial path replaced by its learnt null.
    imported: folders of `jaxasa import`; their questions are `imported_share` of a batch.
    """

    questions: int = 8
    mono_share: float = 0.1
    no_audio_share: float = 0.1
    null_share: float = 0.05
    imported: tuple[str, ...] = ()
    imported_share: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        _check_at_least(self, 1, "questions")
        _check_share(self, "mono_share", "no_audio_share", "null_share")
        folders, share = self.imported, self.imported_share
        check(isinstance(folders, (tuple, list)), "SftStage.imported", folders, "folders")
        check(0 < share < 1, "SftStage.imported_share", share, "a share between 0 and 1")


@dataclass(frozen=True)
class GrpoStage(Stage):
    """Stage 4: group-relative policy optimisation of the adapters.

    loss: one of POLICY_LOSSES (stages/policy.py). clip_ratio: how far a token's ratio may lie
        from 1, a number or (below, above); None: as the loss's paper has it.
    by_deviation: whether advantages are divided by the group's standard deviation; None: as the
        loss's paper has it (all but dr_grpo).
    epochs: updates on each rollout. kl_weight: penalty on leaving the model without adapters.
    mask_truncated: completions cut off at reply_tokens teach nothing.
    resample: how often a step draws other prompts in place of those whose group earned alike.
    *_weight: of each reward (stages/rewards.py).
    """

    group: int = 8
    temperature: float = 1.0
    loss: str = "dr_grpo"
    clip_ratio: float | tuple[float, float] | None = None
    by_deviation: bool | None = None
    epochs: int = 1
    kl_weight: float = 0.0
    mask_truncated: bool = False
    resample: int = 0
    answer_weight: float = 1.0
    format_weight: float = 0.1
    evidence_weight: float = 0.3
    length_weight: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        _check_at_least(self, 2, "group")
        _check_at_least(self, 1, "epochs")
        _check_at_least(self, 1e-3, "temperature")
        weights = [f"{name}_weight" for name in ("kl", "answer", "format", "evidence", "length")]
        _check_at_least(self, 0, "resample", *weights)
        ok = self.loss in POLICY_LOSSES
        check(ok, "GrpoStage.loss", self.loss, " or ".join(POLICY_LOSSES))
        clip = self.clip_ratio
        pair = clip if isinstance(clip, tuple) else (clip, clip)
        ok = len(pair) == 2 and all(isinstance(c, (int, float)) and 0 < c for c in pair)
        ok = ok and pair[0] < 1
        name = "GrpoStage.clip_ratio"
        check(clip is None or ok, name, clip, "a number above 0 and below 1, or (below, above)")
        check(self.loss != "sapo" or clip is None, name, clip, "None: sapo has no clip")
        for name in ("epochs", "resample"):
            value = getattr(self, name)
            check(isinstance(value, int), f"GrpoStage.{name}", value, "a whole number")
        flags = {"mask_truncated": (True, False), "by_deviation": (True, False, None)}
        for name, kinds in flags.items():
            value = getattr(self, name)
            ok = any(value is kind for kind in kinds)
            check(ok, f"GrpoStage.{name}", value, " or ".join(map(str, kinds)))


@dataclass(frozen=True)
class Bench:
    """The benchmark: items a level, and how a model answers them."""

    l1: int = 385
    l2: int = 279
    l3: int = 336
    batch: int = 128
    bootstrap: int = 2000

    def __post_init__(self):
        _check_at_least(self, 1, "l1", "l2", "l3", "batch", "bootstrap")


@dataclass(frozen=True)
class Run:
    """The root of every gin run file."""

    name: str
    stages: tuple[str, ...]
    sounds: Sounds
    scenes: Scenes
    model: Model
    mesh: Mesh
    bench: Bench
    text: TextStage
    spatial: SpatialStage
    align: AlignStage
    sft: SftStage
    grpo: GrpoStage
    seed: int = 0

    def __post_init__(self):
        ok = all(s in STAGES for s in self.stages) and len(self.stages) > 0
        check(ok, "Run.stages", self.stages, "names out of " + ", ".join(STAGES))
