"""Options of the training stages."""

from dataclasses import dataclass

from jaxasa.config.checks import check, check_at_least, check_share

LEVELS = ("L1", "L2", "L3")
FACETS = ("sources", "overlap", "rt60", "snr")
STAGES = ("text", "spatial", "align", "sft", "grpo")
OPTIMIZERS = ("adamw", "muon")
POLICY_LOSSES = ("grpo", "dr_grpo", "dapo", "gspo", "sapo")
REFERENCES = ("start", "base")


@dataclass(frozen=True)
class Stage:
    """What every training stage has: length, batch, optimizer, which parts learn.

    optimizer: "adamw", or "muon", with which kernels learn faster from nothing; rates are alike.
    trainable: regular expressions on parameter paths ("decoder/.*"); what none matches is frozen.
    damaged: records that may be unreadable: each is named, counted and replaced by the next one;
        more end the run.
    accumulate: parts that a batch is taken in, one after another, to need less memory; the
        gradient is the mean of theirs.
    best: an evaluation: where it was highest (names that end in accuracy, recall, L1, L2, L3) or
        lowest (all others, as "loss"), `checkpoints/STAGE/best` has the state; "" keeps none. The
        last state is kept in any case, and later stages start from it.
    """

    steps: int
    batch: int
    learning_rate: float
    trainable: tuple[str, ...]
    optimizer: str = "adamw"
    warmup: int = 20
    weight_decay: float = 0.01
    clip: float = 1.0
    accumulate: int = 1
    best: str = ""
    save_every: int = 100
    eval_every: int = 100
    log_every: int = 10
    damaged: int = 10

    def __post_init__(self):
        check_at_least(self, 1, "steps", "batch", "save_every", "eval_every", "log_every")
        check_at_least(self, 0, "learning_rate", "warmup", "weight_decay", "clip", "damaged")
        check_at_least(self, 1, "accumulate")
        parts, name = self.accumulate, f"{type(self).__name__}.accumulate"
        kinds = " or ".join(OPTIMIZERS)
        check(
            self.optimizer in OPTIMIZERS, f"{type(self).__name__}.optimizer", self.optimizer, kinds
        )
        check(self.batch % parts == 0, name, parts, f"a divisor of the batch of {self.batch}")

    @property
    def keeps_start(self) -> bool:
        """Whether what learns is also kept as it was at step 0 (State.reference)."""
        return False


@dataclass(frozen=True)
class SceneStage(Stage):
    """A stage that hears scenes.

    easiest: shares of the scenes, the easiest first, that are drawn from at the beginning and at
        the end of the stage: (0.3, 1.0) begins with the easiest 30 %. For stored scenes only.
    hard_by: what makes a scene hard: names out of FACETS.
    """

    easiest: tuple[float, float] = (1.0, 1.0)
    hard_by: tuple[str, ...] = FACETS

    def __post_init__(self):
        super().__post_init__()
        name = type(self).__name__
        pair = self.easiest
        ok = isinstance(pair, tuple) and len(pair) == 2 and all(0 < s <= 1 for s in pair)
        check(ok, f"{name}.easiest", pair, "two shares above 0 and up to 1")
        ok = isinstance(self.hard_by, tuple) and set(self.hard_by) <= set(FACETS)
        ok = ok and len(self.hard_by) > 0
        check(ok, f"{name}.hard_by", self.hard_by, "names out of " + ", ".join(FACETS))


def _check_levels(owner) -> None:
    rows = owner.levels
    ok = rows == () or (
        len(rows) == 2
        and all(len(row) == len(LEVELS) and min(row) >= 0 for row in rows)
        and all(abs(sum(row) - 1) < 1e-6 for row in rows)
    )
    expected = f"() or two rows of shares of {', '.join(LEVELS)} that sum to 1"
    check(ok, f"{type(owner).__name__}.levels", rows, expected)


@dataclass(frozen=True)
class TextStage(Stage):
    """Stage 0, tiny only: the decoder learns drills, captions and questions on written scenes.

    drill_share: share of drills (data/synthetic_text.py) up to `drill_until` of the stage; then a third.
    """

    drill_share: float = 0.5
    drill_until: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        check_share(self, "drill_share", "drill_until")


@dataclass(frozen=True)
class SpatialStage(SceneStage):
    """Stage 1: slots, room and dense map of the spatial encoder; tags of the semantic one.

    mono_share: share of scenes heard in W only. colour: standard deviation (dB) of the random
    filters that scenes pass, so that recordings are not learnt by heart.
    recordings: folders of `jaxasa import dcase`: adaptation to real recordings. From
        `recordings_start` (share of the stage) on, `recordings_share` of a batch are theirs.
    """

    mono_share: float = 0.1
    colour: float = 0.0
    recordings: tuple[str, ...] = ()
    recordings_share: float = 0.5
    recordings_start: float = 0.8

    def __post_init__(self):
        super().__post_init__()
        check_share(self, "mono_share", "recordings_start")
        check_at_least(self, 0, "colour")
        folders, share = self.recordings, self.recordings_share
        check(isinstance(folders, (tuple, list)), "SpatialStage.recordings", folders, "folders")
        check(0 < share <= 1, "SpatialStage.recordings_share", share, "a share above 0")


@dataclass(frozen=True)
class AlignStage(SceneStage):
    """Stage 2: the projector learns captions under a frozen decoder.

    phrasings: share of the captions that are put into one of many phrasings (data/phrases.py);
    the others keep the one form of the reasoning traces.
    """

    mono_share: float = 0.1
    phrasings: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        check_share(self, "mono_share", "phrasings")


@dataclass(frozen=True)
class SftStage(SceneStage):
    """Stage 3: `questions` of each scene, so a batch has batch x questions rows.

    mono_share, no_audio_share: shares of scenes heard in W only, or not at all, so that the
    controls meet nothing new. null_share: spatial path replaced by its learnt null.
    imported: folders of `jaxasa import`; their questions are `imported_share` of a batch.
    levels: shares of L1, L2 and L3 among the questions at the beginning and at the end of the
        stage, as two rows; () for all alike.
    """

    questions: int = 8
    mono_share: float = 0.1
    no_audio_share: float = 0.1
    null_share: float = 0.05
    imported: tuple[str, ...] = ()
    imported_share: float = 0.5
    levels: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self):
        super().__post_init__()
        _check_levels(self)
        check_at_least(self, 1, "questions")
        check_share(self, "mono_share", "no_audio_share", "null_share")
        folders, share = self.imported, self.imported_share
        check(isinstance(folders, (tuple, list)), "SftStage.imported", folders, "folders")
        check(0 < share < 1, "SftStage.imported_share", share, "a share between 0 and 1")


@dataclass(frozen=True)
class GrpoStage(SceneStage):
    """Stage 4: group-relative policy optimisation of the adapters.

    questions: of each scene, which is heard once for all of them, so a step has batch x questions
        prompts and `group` completions of each.
    loss: one of POLICY_LOSSES (stages/policy.py). clip_ratio: how far a token's ratio may lie
        from 1, a number or (below, above); None: as the loss's paper has it.
    by_deviation: whether advantages are divided by the group's standard deviation; None: as the
        loss's paper has it (all but dr_grpo).
    epochs: updates on each rollout. kl_weight: penalty on leaving the reference, one of
        REFERENCES: the policy that the stage began with, or the model without adapters.
    mask_truncated: completions cut off at reply_tokens teach nothing.
    resample: how often a step draws other scenes in place of those whose groups all earned alike.
    levels: as in SftStage. promote: share of right answers, over `promote_steps` steps, at which
        the mix of levels moves on by a fifth of the way from the first row to the second; 0 moves
        it with the steps.
    *_weight: of each reward (stages/rewards.py).
    """

    questions: int = 1
    group: int = 8
    temperature: float = 1.0
    loss: str = "dr_grpo"
    clip_ratio: float | tuple[float, float] | None = None
    by_deviation: bool | None = None
    epochs: int = 1
    kl_weight: float = 0.0
    reference: str = "start"
    mask_truncated: bool = False
    resample: int = 0
    levels: tuple[tuple[float, ...], ...] = ()
    promote: float = 0.0
    promote_steps: int = 10
    answer_weight: float = 1.0
    format_weight: float = 0.1
    evidence_weight: float = 0.3
    length_weight: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        _check_levels(self)
        check_share(self, "promote")
        # What is drawn beside a step's own prompts would move a schedule that counts examples on.
        ends = self.levels if self.levels and not self.promote else (0, 0)
        steady = ends[0] == ends[1] and self.easiest[0] == self.easiest[1]
        expected = "0 where GrpoStage.levels or easiest move with the steps"
        check(steady or not self.resample, "GrpoStage.resample", self.resample, expected)
        kinds = " or ".join(REFERENCES)
        check(self.reference in REFERENCES, "GrpoStage.reference", self.reference, kinds)
        kept = all(pattern.startswith("lora/") for pattern in self.trainable)
        expected = "start where decoder/ is trained: base is the decoder without adapters"
        check(kept or self.reference != "base", "GrpoStage.reference", self.reference, expected)
        expected = "0 where GrpoStage.levels is ()"
        check(self.levels or not self.promote, "GrpoStage.promote", self.promote, expected)
        alone, expected = self.questions == 1, "1 where GrpoStage.promote chooses its level"
        check(alone or not self.promote, "GrpoStage.questions", self.questions, expected)
        for pattern in self.trainable:
            ok = pattern.startswith(("lora/", "decoder/"))
            expected = "patterns that begin with lora/ or decoder/: what hears is not trained here"
            check(ok, "GrpoStage.trainable", pattern, expected)
        check_at_least(self, 2, "group")
        check_at_least(self, 1, "questions", "epochs", "promote_steps")
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
        for name in ("questions", "epochs", "resample"):
            value = getattr(self, name)
            check(isinstance(value, int), f"GrpoStage.{name}", value, "a whole number")
        flags = {"mask_truncated": (True, False), "by_deviation": (True, False, None)}
        for name, kinds in flags.items():
            value = getattr(self, name)
            ok = any(value is kind for kind in kinds)
            check(ok, f"GrpoStage.{name}", value, " or ".join(map(str, kinds)))

    @property
    def keeps_start(self) -> bool:
        return self.kl_weight > 0 and self.reference == "start"
