"""Stage 3 (`sft`): questions with reasoning traces; projector and adapters learn."""

import jax.numpy as jnp

from jaxasa.data import imported_questions, pipeline
from jaxasa.stages import common


def asked(context: common.Context, count: int, augment: bool = True, **shares):
    """The maker of examples with `count` questions a scene; augment: turned, where it can be."""
    return pipeline.Asked(
        context.asking,
        context.run.model,
        context.text,
        context.audio_tokens,
        count,
        augment=augment and context.turns,
        **shares,
    )


def guests(context: common.Context) -> list[pipeline.Guest]:
    """Imported questions, the folders of `stage.imported` in equal shares."""
    run, stage, text = context.run, context.stage, context.text
    make = imported_questions.Asked(run.model, text, context.audio_tokens, stage.questions)
    return [
        pipeline.Guest(
            imported_questions.Imported(folder, run.model, text, run.scenes.seconds),
            make,
            stage.imported_share / len(stage.imported),
        )
        for folder in stage.imported
    ]


def project(context: common.Context, params, batch):
    """Projected audio tokens [B, A, D] of a batch of scenes."""
    audio = context.asa.listen(params, common.hear(batch))
    tokens, _ = context.asa.project(params, audio, batch["nulled"])
    return tokens


def flat(x):
    """[B, Q, ...] -> [B Q, ...]."""
    return x.reshape(-1, *x.shape[2:])


def objective(context: common.Context):
    """loss(params, batch, key): a scene is heard once, and asked `stage.questions` questions."""
    asa, text = context.asa, context.text

    def loss(params, batch, key):
        tokens = jnp.repeat(project(context, params, batch), batch["prompt"].shape[1], axis=0)
        prompt, reply = flat(batch["prompt"]), flat(batch["reply"])
        weight = common.ANSWER_WEIGHT
        return common.reply_loss(asa, params, prompt, reply, tokens, text, True, weight)

    return loss


def examples(context: common.Context):
    """The maker of training examples."""
    stage = context.stage
    return asked(
        context,
        stage.questions,
        mono_share=stage.mono_share,
        no_audio_share=stage.no_audio_share,
        null_share=stage.null_share,
        open_share=pipeline.OPEN_SHARE,
        levels=stage.levels,
    )


def task(context: common.Context) -> common.Task:
    """Questions on scenes heard once each."""
    loss, make = objective(context), examples(context)

    def measure(params, batch):
        value, hits = loss(params, batch, None)
        return {"loss": value} | hits

    plain = asked(context, 4, augment=False)
    batch = common.held_out(context, context.dev, plain, "sft/dev")
    return common.Task(
        "sft",
        common.batches(context, make, "sft", guests(context)),
        common.gradient_step(context, loss),
        common.evaluation(context, measure, batch),
    )
