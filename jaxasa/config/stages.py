# SPDX-License-Identifier: Apache-2.0
"""Options of the training stages: a dataclass for each, and their common base."""

from dataclasses import dataclass, field

from jaxasa.config.changes import SPEED
from jaxasa.config.checks import check, check_at_least, check_local_paths, check_share

LEVELS = ("L1", "L2", "L3")
OPTIMIZERS = ("adamw", "muon")
POLICY_LOSSES = ("grpo", "dr_grpo", "dapo", "gspo", "sapo")
REFERENCE_POLICIES = ("start", "base")


@dataclass(frozen=True)
class Stage:
    """Options of every training stage: length, batch, optimizer, trainable parameters.

    optimizer: "adamw" or "muon" (its kernels learn faster from scratch; same learning rates).
    trainable: regular expressions on parameter paths ("decoder/.*"); a parameter that none
        matches is frozen.
    warmup_steps: of the learning rate (train/optim.py). max_grad_norm: clips gradients; 0: never.
    grad_accum_steps: microbatches that a batch is split into to need less memory; the gradient is
        the mean of theirs.
    best_metric: an evaluation. `checkpoints/STAGE/best` holds the state in which it was highest
        (names that end in accuracy, recall, L1, L2, L3) or lowest (all others, such as "loss"); ""
        keeps none. The last state is kept in any case, and later stages start from it.
    max_damaged_records: unreadable records that are tolerated: each is reported, counted and
        replaced by the next one; one more ends the run.
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
    save_every: int = field(default=100, metadata=SPEED)
    eval_every: int = field(default=100, metadata=SPEED)
    log_every: int = field(default=10, metadata=SPEED)
    max_damaged_records: int = field(default=10, metadata=SPEED)

    def __post_init__(self):
        name = type(self).__name__
        check_at_least(self, 1, "steps", "batch_size", "save_every", "eval_every", "log_every")
        check_at_least(self, 0, "learning_rate", "warmup_steps", "weight_decay", "max_grad_norm")
        check_at_least(self, 0, "max_damaged_records")
        check_at_least(self, 1, "grad_accum_steps")
        kinds = " or ".join(OPTIMIZERS)
        check(self.optimizer in OPTIMIZERS, f"{name}.optimizer", self.optimizer, kinds)
        ok = self.batch_size % self.grad_accum_steps == 0
        expected = f"a divisor of the batch of {self.batch_size}"
        check(ok, f"{name}.grad_accum_steps", self.grad_accum_steps, expected)

    @property
    def updates_per_step(self) -> int:
        """Optimizer updates in one step, which the learning rate's schedule counts."""
        return 1

    @property
    def keeps_ref_params(self) -> bool:
        """Whether the trainable parameters are also kept as they were at step 0."""
        return False


@dataclass(frozen=True)
class TextStage(Stage):
    """Stage 0, tiny only: the decoder learns synthetic tasks, captions and questions on scenes
    that are described in words.

    synthetic_fraction: share of synthetic tasks (data/synthetic_text.py) among the examples up to
        `synthetic_until` of the stage (a share of its steps); a third of that afterwards.
    """

    synthetic_fraction: float = 0.5
    synthetic_until: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        check_share(self, "synthetic_fraction", "synthetic_until")


@dataclass(frozen=True)
class SpatialStage(Stage):
    """Stage 1: slots, room and dense map of the spatial encoder; tags of the semantic one.

    mono_prob: probability that a scene is reduced to W.
    random_eq_db: standard deviation (dB) of a random EQ on each scene, an augmentation.
    real_recordings: folders of `jaxasa import dcase`, to adapt to real recordings. From
        `real_recordings_start` on (a share of the stage's steps), they are a share
        `real_recordings_weight` of the examples.
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
        _check_folders(self, "real_recordings")
        weight = self.real_recordings_weight
        ok = 0 < weight <= 1
        check(ok, "SpatialStage.real_recordings_weight", weight, "a share above 0")


@dataclass(frozen=True)
class AlignStage(Stage):
    """Stage 2: the projector learns captions under a frozen decoder.

    mono_prob: probability that a scene is reduced to W.
    paraphrase_prob: probability that a caption is put into one of many phrasings
        (data/phrases.py) instead of the one form that reasoning traces have.
    """

    mono_prob: float = 0.1
    paraphrase_prob: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        check_share(self, "mono_prob", "paraphrase_prob")


@dataclass(frozen=True)
class SftStage(Stage):
    """Stage 3: supervised fine-tuning on questions with reasoning traces.

    questions_per_scene: a batch has batch_size x questions_per_scene rows.
    mono_prob, audio_dropout_prob: probability that a scene is reduced to W, or left out, so that
        the benchmark's controls meet no unseen condition. spatial_dropout_prob: that its spatial
        embedding is replaced by the learnt null embedding.
    qa_datasets: folders of `jaxasa import`; their questions are a share `qa_datasets_weight` of
        the examples.
    level_mix: shares of L1, L2 and L3 among the questions, as two rows: at the beginning and at
        the end of the stage, and linearly in between; () for equal shares throughout.
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
        _check_level_mix(self)
        check_at_least(self, 1, "questions_per_scene")
        check_share(self, "mono_prob", "audio_dropout_prob", "spatial_dropout_prob")
        _check_folders(self, "qa_datasets")
        weight = self.qa_datasets_weight
        check(0 < weight < 1, "SftStage.qa_datasets_weight", weight, "a share between 0 and 1")


@dataclass(frozen=True)
class GrpoStage(Stage):
    """Stage 4: group-relative policy optimization of the adapters. Names are TRL's if it has one.

    batch_size: scenes per step. questions_per_scene: of each, whose audio is encoded once for all
        of them. num_generations: completions per question (the group), sampled at `temperature`.
    loss: one of POLICY_LOSSES (stages/policy.py). clip_ratio: how far a token's probability ratio
        may lie from 1, a number or (below, above); None: as in the loss's paper.
    scale_rewards: whether advantages are divided by the group's standard deviation; None: as in
        the loss's paper (all but dr_grpo).
    num_iterations: updates per rollout.
    kl_weight: of the KL penalty towards `ref_policy`, one of REFERENCE_POLICIES: the policy at the
        start of the stage, or the base model without adapters.
    mask_truncated_completions: leaves completions that reply_tokens cut off out of the loss.
    dynamic_sampling_rounds: times that a step replaces scenes all of whose groups have zero reward
        variance by other ones (DAPO's dynamic sampling).
    level_mix: as in SftStage.
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
    answer_weight: float = 1.0
    format_weight: float = 0.1
    evidence_weight: float = 0.3
    length_weight: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        _check_level_mix(self)
        check_at_least(self, 2, "num_generations")
        check_at_least(self, 1, "questions_per_scene", "num_iterations")
        check_at_least(self, 1e-3, "temperature")
        weights = [f"{name}_weight" for name in ("kl", "answer", "format", "evidence", "length")]
        check_at_least(self, 0, "dynamic_sampling_rounds", *weights)
        for name in ("questions_per_scene", "num_iterations", "dynamic_sampling_rounds"):
            value = getattr(self, name)
            check(isinstance(value, int), f"GrpoStage.{name}", value, "a whole number")
        flags = {"mask_truncated_completions": (True, False), "scale_rewards": (True, False, None)}
        for name, choices in flags.items():
            value = getattr(self, name)
            ok = any(value is choice for choice in choices)
            check(ok, f"GrpoStage.{name}", value, " or ".join(map(str, choices)))
        is_steady = not self.level_mix or self.level_mix[0] == self.level_mix[1]
        rounds = self.dynamic_sampling_rounds
        expected = (
            "0 if GrpoStage.level_mix changes over training: further batches would advance it"
        )
        check(is_steady or not rounds, "GrpoStage.dynamic_sampling_rounds", rounds, expected)
        self._check_loss()
        self._check_policies()

    def _check_loss(self) -> None:
        ok = self.loss in POLICY_LOSSES
        check(ok, "GrpoStage.loss", self.loss, " or ".join(POLICY_LOSSES))
        clip, name = self.clip_ratio, "GrpoStage.clip_ratio"
        pair = clip if isinstance(clip, tuple) else (clip, clip)
        ok = len(pair) == 2 and all(isinstance(c, (int, float)) and c > 0 for c in pair)
        ok = ok and pair[0] < 1  # type: ignore[operator]
        check(clip is None or ok, name, clip, "a number above 0 and below 1, or (below, above)")
        check(self.loss != "sapo" or clip is None, name, clip, "None: sapo has no clip")

    def _check_policies(self) -> None:
        ref, choices = self.ref_policy, " or ".join(REFERENCE_POLICIES)
        check(ref in REFERENCE_POLICIES, "GrpoStage.ref_policy", ref, choices)
        only_lora = all(pattern.startswith("lora/") for pattern in self.trainable)
        expected = "start if decoder/ is trained: base is the decoder without adapters"
        check(only_lora or ref != "base", "GrpoStage.ref_policy", ref, expected)
        for pattern in self.trainable:
            ok = pattern.startswith(("lora/", "decoder/"))
            expected = "patterns under lora/ or decoder/ (the encoders are frozen in GRPO)"
            check(ok, "GrpoStage.trainable", pattern, expected)

    @property
    def updates_per_step(self) -> int:
        return self.num_iterations

    @property
    def keeps_ref_params(self) -> bool:
        return self.kl_weight > 0 and self.ref_policy == "start"


def _check_level_mix(owner) -> None:
    rows = owner.level_mix
    ok = rows == () or (
        len(rows) == 2
        and all(len(row) == len(LEVELS) and min(row) >= 0 for row in rows)
        and all(abs(sum(row) - 1) < 1e-6 for row in rows)
    )
    expected = f"() or two rows of shares of {', '.join(LEVELS)} that sum to 1"
    check(ok, f"{type(owner).__name__}.level_mix", rows, expected)


def _check_folders(owner, name: str) -> None:
    value = getattr(owner, name)
    check(isinstance(value, (tuple, list)), f"{type(owner).__name__}.{name}", value, "folders")
    check_local_paths(owner, name)
