# SPDX-License-Identifier: Apache-2.0
"""Stage 3 (`sft`): supervised fine-tuning of projector and adapters on questions with traces.

Shapes: B scenes, Q questions of each, A audio tokens, D width.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxasa import config
from jaxasa.data import imported_questions, pipeline, transforms
from jaxasa.models.flops import Workload
from jaxasa.stages import common
from jaxasa.stages.stage import QUESTION_FIELDS, Context, Loss, TrainingStage
from jaxasa.train import loop

EVAL_QUESTIONS = 4  # per scene


def qa_examples(
    context: Context[Any], questions_per_scene: int, augment: bool = True, **options
) -> transforms.QaExamples:
    """make(element, rng, progress) -> a scene with questions.

    augment: rotates scenes, if they can be. options: further fields of the result.
    """
    return transforms.QaExamples(
        context.question_sampler,
        context.model,
        context.tokenizer,
        context.audio_tokens,
        questions_per_scene,
        augment=augment and context.can_rotate,
        **options,
    )


def examples(context: Context[config.SftStage]) -> transforms.QaExamples:
    """Scenes with questions, augmented."""
    stage = context.stage
    return qa_examples(
        context,
        stage.questions_per_scene,
        mono_prob=stage.mono_prob,
        audio_dropout_prob=stage.audio_dropout_prob,
        spatial_dropout_prob=stage.spatial_dropout_prob,
        open_ended_prob=transforms.OPEN_ENDED_PROB,
        level_mix=stage.level_mix,
    )


def extra_datasets(context: Context[config.SftStage]) -> list[pipeline.MixtureComponent]:
    """Imported questions: the folders of `stage.qa_datasets`, in equal shares."""
    stage, model, tokenizer = context.stage, context.model, context.tokenizer
    make = imported_questions.ImportedQaExamples(
        model, tokenizer, context.audio_tokens, stage.questions_per_scene
    )
    return [
        pipeline.MixtureComponent(
            imported_questions.ImportedQuestions(folder, model, tokenizer, context.scenes.seconds),
            make,
            stage.qa_datasets_weight / len(stage.qa_datasets),
        )
        for folder in stage.qa_datasets
    ]


def embed_audio(context: Context[Any], params, batch) -> jax.Array:
    """Projected audio tokens [B, A, D] of a batch of scenes."""
    audio = context.asa.encode_audio(params, common.augment_audio(batch))
    audio_embeds, _ = context.asa.project(params, audio, batch["drop_spatial"])
    return audio_embeds


def objective(context: Context[config.SftStage]) -> Loss:
    """Cross-entropy of replies; a scene's audio is encoded once for all its questions."""
    asa, tokenizer = context.asa, context.tokenizer

    def loss(params, batch, key):
        audio_embeds = embed_audio(context, params, batch)
        audio_embeds = jnp.repeat(audio_embeds, batch["prompt"].shape[1], axis=0)
        prompt = common.merge_leading_dims(batch["prompt"])
        reply = common.merge_leading_dims(batch["reply"])
        weight = common.ANSWER_WEIGHT
        return common.reply_loss(asa, params, prompt, reply, audio_embeds, tokenizer, weight)

    return loss


def task(context: Context[config.SftStage]) -> loop.Task:
    """Questions on scenes; evaluation without augmentation."""
    loss = objective(context)
    assert context.dev is not None
    make_eval = qa_examples(context, EVAL_QUESTIONS, augment=False)
    batch = common.eval_batch(context, context.dev, make_eval, "sft/dev")
    return loop.Task(
        "sft",
        common.training_batches(context, examples(context), "sft", extra_datasets(context)),
        common.training_step(context, loss),
        common.evaluation(context, loss, batch),
    )


def workload(stage: config.SftStage) -> Workload:
    """Scenes through the encoders once each, and their questions through the decoder."""
    rows = stage.batch_size * stage.questions_per_scene
    return Workload(
        scenes=stage.batch_size,
        prompts=rows,
        completions=rows,
        uses_adapters=True,
        trainable=stage.trainable,
    )


STAGE = TrainingStage(
    name="sft",
    title="stage 3: supervised fine-tuning on questions",
    system="model after SFT",
    examples=examples,
    objective=objective,
    task=task,
    workload=workload,
    parts=config.PARTS,
    depends_on=QUESTION_FIELDS,
    balances_questions=True,
)
