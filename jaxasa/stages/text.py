# SPDX-License-Identifier: Apache-2.0
"""Stage 0 (`text`), for models without a pretrained decoder: questions on scenes in words.

No audio is read: a scene is described in the prompt.
"""

import dataclasses

from jaxasa import config
from jaxasa.data import pipeline
from jaxasa.data.text_only_scenes import TextOnlyScenes
from jaxasa.data.transforms import TextExamples
from jaxasa.models.asa import without_adapters
from jaxasa.models.flops import Workload
from jaxasa.stages import common
from jaxasa.stages.stage import TEXT_FIELDS, Context, Loss, TrainingStage
from jaxasa.train import loop


def objective(context: Context[config.TextStage]) -> Loss:
    """Cross-entropy of replies [B, L], with ANSWER_WEIGHT on the answer."""
    asa, tokenizer = context.asa, context.tokenizer

    def loss(params, batch, key):
        prompt, reply = batch["prompt"], batch["reply"]
        base = without_adapters(params)
        weight = common.ANSWER_WEIGHT
        return common.reply_loss(asa, base, prompt, reply, None, tokenizer, weight)

    return loss


def examples(context: Context[config.TextStage]) -> TextExamples:
    """Synthetic tasks, captions and questions."""
    sampler = context.question_sampler
    return TextExamples(
        context.stage, context.model, context.tokenizer, sampler, context.audio_tokens
    )


def task(context: Context[config.TextStage]) -> loop.Task:
    """Training on all three kinds of texts; evaluation without synthetic tasks."""
    stage, make = context.stage, examples(context)
    loss = objective(context)

    def scenes(purpose: str, count: int) -> TextOnlyScenes:
        return TextOnlyScenes(context.scenes, context.clips, context.seed, purpose, count)

    total = stage.steps * stage.batch_size
    batches = pipeline.Batches(
        scenes("text", total),
        make,
        context.seed,
        "text",
        stage.batch_size,
        total_examples=total,
        shuffle=False,
    )
    make_eval = dataclasses.replace(make, stage=dataclasses.replace(stage, synthetic_fraction=0.0))
    count = common.num_eval_scenes(context.mesh, 4 * common.EVAL_SCENES)
    batch = common.eval_batch(context, scenes("text/dev", count), make_eval, "text/dev", count)
    step = common.training_step(context, loss)
    return loop.Task("text", batches, step, common.evaluation(context, loss, batch))


def workload(stage: config.TextStage) -> Workload:
    """Prompts and replies of a batch, through the decoder."""
    rows = stage.batch_size
    return Workload(prompts=rows, completions=rows, trainable=stage.trainable)


STAGE = TrainingStage(
    name="text",
    title="stage 0: text pretraining of the decoder",
    examples=examples,
    objective=objective,
    task=task,
    workload=workload,
    parts=("decoder",),
    depends_on=TEXT_FIELDS,
    reads_scenes=False,
)
