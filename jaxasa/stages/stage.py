# SPDX-License-Identifier: Apache-2.0
"""Definition of a training stage, and of its context.

Each stage is a `TrainingStage`, declared as STAGE at the end of its own file and listed in
registry.py. To add one: its file, its options in config/stages.py, their field of config.Run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import jax
from jax.sharding import Mesh

from jaxasa import config
from jaxasa.acoustics.scenes import Clip
from jaxasa.core.audio import SAMPLE_RATE
from jaxasa.data import pipeline, questions
from jaxasa.data.dynamic_mixing import DynamicMixing
from jaxasa.data.records import Records
from jaxasa.data.tokens import TextTokenizer
from jaxasa.models.asa import ASA, Params
from jaxasa.models.flops import Workload
from jaxasa.train import loop

Options = TypeVar("Options", bound=config.Stage, covariant=True)
Batch = Mapping[str, jax.Array]
# loss(params, batch, key) -> (scalar, metrics)
Loss = Callable[[Params, Batch, Any], tuple[jax.Array, dict[str, jax.Array]]]

# Fields of config.Run that stages depend on.
_NUMERICS = ("seed", "sounds", "scenes", "model.dtype", "model.frozen_dtype")
_ENCODERS = ("model.semantic", "model.spatial", "model.projector", "model.decoder")
_TEXTS = ("model.decoder", "model.prompt_tokens", "model.reply_tokens")
TEXT_FIELDS = (*_NUMERICS, *_TEXTS, "model.projector.token_rate", "questions")
AUDIO_FIELDS = (*_NUMERICS, *_ENCODERS)
CAPTION_FIELDS = (*AUDIO_FIELDS, *_TEXTS)
QUESTION_FIELDS = (*CAPTION_FIELDS, "model.lora", "questions")


@dataclass(frozen=True)
class Context(Generic[Options]):
    """All that a stage builds its task from.

    stage: its options. scenes: ranges that scenes are sampled from. seed: of the run.
    clips: the training split of the sound bank, of which text-only scenes consist.
    question_sampler: weighs its questions if the stage `balances_questions`.
    train, dev: rendered scenes; None for a stage that reads none.
    """

    stage: Options
    asa: ASA
    mesh: Mesh
    scenes: config.Scenes
    seed: int
    tokenizer: TextTokenizer
    classes: Sequence[str]
    clips: Sequence[Clip]
    question_sampler: questions.QuestionSampler
    train: Records | DynamicMixing | None
    dev: pipeline.SkipDamaged | None

    @property
    def model(self) -> config.Model:
        return self.asa.model

    @property
    def can_rotate(self) -> bool:
        """Whether scenes can be rotated as they are read: FOA exactly, binaural audio not."""
        return self.model.spatial.format == "foa"

    @property
    def audio_tokens(self) -> int:
        """Number of audio tokens of a scene."""
        return self.asa.num_audio_tokens(round(self.scenes.seconds * SAMPLE_RATE))


@dataclass(frozen=True)
class Rollout:
    """The sampling program of a stage of reinforcement learning.

    sampler(context): jitted (params, batch, key, num_generations, temperature) -> completions and
    audio embeddings. workload(options): model work of one call in a training step.
    """

    sampler: Callable[[Context[Any]], Any]
    workload: Callable[[Any], Workload]


@dataclass(frozen=True)
class TrainingStage:
    """One stage of the curriculum.

    name: of its field of config.Run and of its folder under checkpoints/.
    title: for progress messages.
    system: name of its model in the benchmark's tables; "" if that cannot answer questions.
    examples(context): make(element, rng, progress) -> training example.
    objective(context): the loss.
    task(context): batches, step and evaluation.
    workload(options): model work of one update.
    update_batch(context, shapes): shapes of the batch of an update, given those of a batch of
        examples. rollout: the sampling program before the updates of a step, if there is one.
    parts: of the model that are trained when it is done (config.PARTS), for a later run to keep.
    depends_on: fields of config.Run, besides its own, that its result depends on.
    reads_scenes: needs rendered scenes. balances_questions: needs a question sampler in whose
        questions no answer is common.
    """

    name: str
    title: str
    examples: Callable[[Context[Any]], Callable]
    objective: Callable[[Context[Any]], Loss]
    task: Callable[[Context[Any]], loop.Task]
    workload: Callable[[Any], Workload]
    parts: tuple[str, ...]
    depends_on: tuple[str, ...]
    system: str = ""
    update_batch: Callable[[Context[Any], Mapping], Mapping] = lambda context, shapes: shapes
    rollout: Rollout | None = None
    reads_scenes: bool = True
    balances_questions: bool = False
