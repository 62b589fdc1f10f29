"""Options of the training stages."""

from dataclasses import dataclass

from jaxasa.config.checks import check, check_at_least, check_share

STAGES = ("text", "spatial", "align", "sft", "grpo")
POLICY_LOSSES = ("grpo", "dr_grpo", "dapo", "gspo", "sapo")


@dataclass(frozen=True)
class Stage:
    """What every training stage has: length, batch, optimizer, which parts learn.

    trainable: regular expressions on parameter paths ("decoder/.*"); what none matches is frozen.
    damaged: records that may be unreadable: each is named, counted and replaced by the next one;
        more end the run.
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
    damaged: int = 10

    def __post_init__(self):
        check_at_least(self, 1, "steps", "batch", "save_every", "eval_every", "log_every")
        check_at_least(self, 0, "learning_rate", "warmup", "weight_decay", "clip", "damaged")


@dataclass(frozen=True)
class TextStage(Stage):
    """Stage 0, tiny only: the decoder learns copying, captions and questions on written scenes."""

    copy_share: float = 0.5
    copy_until: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        check_share(self, "copy_share", "copy_until")


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
        check_share(self, "mono_share")
        check_at_least(self, 0, "colour")


@dataclass(frozen=True)
class AlignStage(Stage):
    """Stage 2: the projector learns captions under a frozen decoder."""

    mono_share: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        check_share(self, "mono_share")


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
        check_at_least(self, 1, "questions")
        check_share(self, "mono_share", "no_audio_share", "null_share")
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
        check_at_least(self, 2, "group")
        check_at_least(self, 1, "epochs")
        check_at_least(self, 1e-3, "temperature")
        weights = [f"{name}_weight" for name in ("kl", "answer", "format", "evidence", "length")]
        check_at_least(self, 0, "resample", *weights)
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
