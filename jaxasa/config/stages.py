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
    max_damaged_records: records that may be unreadable: each is named, counted and replaced by the next one;
        more end the run.
    grad_accum_steps: parts that a batch is taken in, one after another, to need less memory; the
        gradient is the mean of theirs.
    best_metric: an evaluation: where it was highest (names that end in accuracy, recall, L1, L2, L3) or
        lowest (all others, as "loss"), `checkpoints/STAGE/best` has the state; "" keeps none. The
        last state is kept in any case, and later stages start from it.
    """

    steps: int
    batch_size: int
    learning_rate: float
    trainable: tuple[str, ...]
    optimizer: str = "adamw"
    warmup_steps: int = 20
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    grad_accum_steps: int = 1
    best_metric: str = ""
    save_every: int = 100
    eval_every: int = 100
    log_every: int = 10
    max_damaged_records: int = 10

    def __post_init__(self):
        check_at_least(self, 1, "steps", "batch_size", "save_every", "eval_every", "log_every")
        check_at_least(
            self,
            0,
            "learning_rate",
            "warmup_steps",
            "weight_decay",
            "max_grad_norm",
            "max_damaged_records",
        )
        check_at_least(self, 1, "grad_accum_steps")
        parts, name = self.grad_accum_steps, f"{type(self).__name__}.grad_accum_steps"
        kinds = " or ".join(OPTIMIZERS)
        check(
            self.optimizer in OPTIMIZERS, f"{type(self).__name__}.optimizer", self.optimizer, kinds
        )
        check(
            self.batch_size % parts == 0,
            name,
            parts,
            f"a divisor of the batch of {self.batch_size}",
        )

    @property
    def keeps_ref_params(self) -> bool:
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
    rows = owner.level_mix
    ok = rows == () or (
        len(rows) == 2
        and all(len(row) == len(LEVELS) and min(row) >= 0 for row in rows)
        and all(abs(sum(row) - 1) < 1e-6 for row in rows)
    )
    expected = f"() or two rows of shares of {', '.join(LEVELS)} that sum to 1"
    check(ok, f"{type(owner).__name__}.level_mix", rows, expected)


@dataclass(frozen=True)
class TextStage(Stage):
    """Stage 0, tiny only: the decoder learns drills, captions and questions on written scenes.

    synthetic_fraction: share of drills (data/synthetic_text.py) up to `synthetic_until` of the stage; then a third.
    """

    synthetic_fraction: float = 0.5
    synthetic_until: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        check_share(self, "synthetic_fraction", "synthetic_until")


@dataclass(frozen=True)
class SpatialStage(SceneStage):
    """Stage 1: slots, room and dense map of the spatial encoder; tags of the semantic one.

    mono_prob: share of scenes heard in W only. colour: standard deviation (dB) of the random
    filters that scenes pass, so that recordings are not learnt by heart.
    real_recordings: folders of `jaxasa import dcase`: adaptation to real recordings. From
        `real_recordings_start` (share of the stage) on, `real_recordings_weight` of a batch are theirs.
    """

    mono_prob: float = 0.1
    random_eq_db: float = 0.0
    real_recordings: tuple[str, ...] = ()
    real_recordings_weight: float = 0.5
    real_recordings_start: float = 0.8

    def __post_init__(self):
        super().__post_init__()
        check_share(self, "mono_prob", "real_recordings_start")
        check_at_least(self, 0, "random_eq_db")
        folders, share = self.real_recordings, self.real_recordings_weight
        check(
            isinstance(folders, (tuple, list)), "SpatialStage.real_recordings", folders, "folders"
        )
        check(0 < share <= 1, "SpatialStage.real_recordings_weight", share, "a share above 0")


@dataclass(frozen=True)
class AlignStage(SceneStage):
    """Stage 2: the projector learns captions under a frozen decoder.

    paraphrase_prob: share of the captions that are put into one of many phrasings (data/phrases.py);
    the others keep the one form of the reasoning traces.
    """

    mono_prob: float = 0.1
    paraphrase_prob: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        check_share(self, "mono_prob", "paraphrase_prob")


@dataclass(frozen=True)
class SftStage(SceneStage):
    """Stage 3: `questions_per_scene` of each scene, so a batch has batch x questions rows.

    mono_prob, no_audio_share: shares of scenes heard in W only, or not at all, so that the
    controls meet nothing new. null_share: spatial path replaced by its learnt null.
    qa_datasets: folders of `jaxasa import`; their questions are `qa_datasets_weight` of a batch.
    level_mix: shares of L1, L2 and L3 among the questions at the beginning and at the end of the
        stage, as two rows; () for all alike.
    """

    questions_per_scene: int = 8
    mono_prob: float = 0.1
    audio_dropout_prob: float = 0.1
    spatial_dropout_prob: float = 0.05
    qa_datasets: tuple[str, ...] = ()
    qa_datasets_weight: float = 0.5
    level_mix: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self):
        super().__post_init__()
        _check_levels(self)
        check_at_least(self, 1, "questions_per_scene")
        check_share(self, "mono_prob", "audio_dropout_prob", "spatial_dropout_prob")
        folders, share = self.qa_datasets, self.qa_datasets_weight
        check(isinstance(folders, (tuple, list)), "SftStage.qa_datasets", folders, "folders")
        check(0 < share < 1, "SftStage.qa_datasets_weight", share, "a share between 0 and 1")


@dataclass(frozen=True)
class GrpoStage(SceneStage):
    """Stage 4: group-relative policy optimisation of the adapters.

    questions_per_scene: of each scene, which is heard once for all of them, so a step has batch x questions
        prompts and `group` completions of each.
    loss: one of POLICY_LOSSES (stages/policy.py). clip_ratio: how far a token's ratio may lie
        from 1, a number or (below, above); None: as the loss's paper has it.
    scale_rewards: whether advantages are divided by the group's standard deviation; None: as the
        loss's paper has it (all but dr_grpo).
    num_iterations: updates on each rollout. kl_weight: penalty on leaving the reference, one of
        REFERENCES: the policy that the stage began with, or the model without adapters.
    mask_truncated_completions: completions cut off at reply_tokens teach nothing.
    dynamic_sampling_rounds: how often a step draws other scenes in place of those whose groups all earned alike.
    level_mix: as in SftStage. promote: share of right answers, over `promote_steps` steps, at which
        the mix of levels moves on by a fifth of the way from the first row to the second; 0 moves
        it with the steps.
    *_weight: of each reward (stages/rewards.py).
    """

    questions_per_scene: int = 1
    num_generations: int = 8
    temperature: float = 1.0
    loss: str = "dr_grpo"
    clip_ratio: float | tuple[float, float] | None = None
    scale_rewards: bool | None = None
    num_iterations: int = 1
    kl_weight: float = 0.0
    ref_policy: str = "start"
    mask_truncated_completions: bool = False
    dynamic_sampling_rounds: int = 0
    level_mix: tuple[tuple[float, ...], ...] = ()
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
        ends = self.level_mix if self.level_mix and not self.promote else (0, 0)
        steady = ends[0] == ends[1] and self.easiest[0] == self.easiest[1]
        expected = "0 where GrpoStage.level_mix or easiest move with the steps"
        check(
            steady or not self.dynamic_sampling_rounds,
            "GrpoStage.dynamic_sampling_rounds",
            self.dynamic_sampling_rounds,
            expected,
        )
        kinds = " or ".join(REFERENCES)
        check(self.ref_policy in REFERENCES, "GrpoStage.ref_policy", self.ref_policy, kinds)
        kept = all(pattern.startswith("lora/") for pattern in self.trainable)
        expected = "start where decoder/ is trained: base is the decoder without adapters"
        check(kept or self.ref_policy != "base", "GrpoStage.ref_policy", self.ref_policy, expected)
        expected = "0 where GrpoStage.level_mix is ()"
        check(self.level_mix or not self.promote, "GrpoStage.promote", self.promote, expected)
        alone, expected = (
            self.questions_per_scene == 1,
            "1 where GrpoStage.promote chooses its level",
        )
        check(
            alone or not self.promote,
            "GrpoStage.questions_per_scene",
            self.questions_per_scene,
            expected,
        )
        for pattern in self.trainable:
            ok = pattern.startswith(("lora/", "decoder/"))
            expected = "patterns that begin with lora/ or decoder/: what hears is not trained here"
            check(ok, "GrpoStage.trainable", pattern, expected)
        check_at_least(self, 2, "num_generations")
        check_at_least(self, 1, "questions_per_scene", "num_iterations", "promote_steps")
        check_at_least(self, 1e-3, "temperature")
        weights = [f"{name}_weight" for name in ("kl", "answer", "format", "evidence", "length")]
        check_at_least(self, 0, "dynamic_sampling_rounds", *weights)
        ok = self.loss in POLICY_LOSSES
        check(ok, "GrpoStage.loss", self.loss, " or ".join(POLICY_LOSSES))
        clip = self.clip_ratio
        pair = clip if isinstance(clip, tuple) else (clip, clip)
        ok = len(pair) == 2 and all(isinstance(c, (int, float)) and 0 < c for c in pair)
        ok = ok and pair[0] < 1
        name = "GrpoStage.clip_ratio"
        check(clip is None or ok, name, clip, "a number above 0 and below 1, or (below, above)")
        check(self.loss != "sapo" or clip is None, name, clip, "None: sapo has no clip")
        for name in ("questions_per_scene", "num_iterations", "dynamic_sampling_rounds"):
            value = getattr(self, name)
            check(isinstance(value, int), f"GrpoStage.{name}", value, "a whole number")
        flags = {"mask_truncated_completions": (True, False), "scale_rewards": (True, False, None)}
        for name, kinds in flags.items():
            value = getattr(self, name)
            ok = any(value is kind for kind in kinds)
            check(ok, f"GrpoStage.{name}", value, " or ".join(map(str, kinds)))

    @property
    def keeps_ref_params(self) -> bool:
        return self.kl_weight > 0 and self.ref_policy == "start"
