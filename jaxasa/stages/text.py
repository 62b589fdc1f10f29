"""Stage 0 (`text`), for models without a pretrained decoder: language about written scenes."""

import dataclasses

from jaxasa.data import pipeline, questions
from jaxasa.data.pipeline import Texts, Written
from jaxasa.stages import common


def objective(context: common.Context):
    """loss(params, batch, key); the word that answers weighs four times another."""
    asa, text = context.asa, context.text

    def loss(params, batch, key):
        reply, prompt = batch["reply"], batch["prompt"]
        weight = common.ANSWER_WEIGHT
        return common.reply_loss(asa, params, prompt, reply, None, text, False, weight)

    return loss


def examples(context: common.Context) -> Texts:
    """The maker of training examples."""
    run, places = context.run, context.audio_tokens
    # Nothing is weighed here: written scenes tell all, so that no answer need be guessed.
    asking = questions.Asking(context.classes, run.questions)
    return Texts(context.stage, run.model, context.text, asking, places)


def task(context: common.Context) -> common.Task:
    """Drills, captions and questions."""
    run, stage, loss, make = context.run, context.stage, objective(context), examples(context)

    def measure(params, batch):
        value, hits = loss(params, batch, None)
        return {"loss": value} | hits

    total = stage.steps * stage.batch_size
    source = Written(run.scenes, context.clips, run.seed, "text", total)
    without_drills = dataclasses.replace(
        make, stage=dataclasses.replace(stage, synthetic_fraction=0.0)
    )
    count = common.eval_scenes(context.mesh, 4 * common.EVAL_SCENES)
    written = Written(run.scenes, context.clips, run.seed, "text/dev", count)
    batch = common.held_out(context, written, without_drills, "text/dev", count)
    return common.Task(
        "text",
        pipeline.Batches(
            source, make, run.seed, "text", stage.batch_size, total=total, shuffle=False
        ),
        common.gradient_step(context, loss),
        common.evaluation(context, measure, batch),
    )
