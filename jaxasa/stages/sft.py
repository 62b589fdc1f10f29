"""Stage 3 (`sft`): questions with reasoning traces; projector and adapters learn."""

import jax.numpy as jnp

from jaxasa.data import imported, pipeline
from jaxasa.stages import common

ANSWER_WEIGHT = 4.0


def asked(context: common.Context, count: int, augment: bool = True, **shares: float):
    """The maker of examples with `count` questions a scene; augment: turned, where it can be."""
    return pipeline.Asked(
        context.classes,
        context.run.model,
        context.text,
        context.audio_tokens,
        count,
        augment=augment and context.turns,
        **shares,
    )


def mixed(context: common.Context) -> list:
    """Imported questions for pipeline.Batches, the folders of `stage.imported` in equal shares."""
    run, stage, text = context.run, context.stage, context.text
    make = imported.Asked(run.model, text, context.audio_tokens, stage.questions)
    return [
        (
            imported.Imported(folder, run.model, text, run.scenes.seconds),
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


def task(context: common.Context) -> common.Task:
    """A scene is heard once, and asked `stage.questions` questions."""
    run, stage, asa, text = context.run, context.stage, context.asa, context.text

    def loss(params, batch, key):
        tokens = jnp.repeat(project(context, params, batch), batch["prompt"].shape[1], axis=0)
        prompt, reply = flat(batch["prompt"]), flat(batch["reply"])
        return common.reply_loss(asa, params, prompt, reply, tokens, text, True, ANSWER_WEIGHT)

    def measure(params, batch):
        value, hits = loss(params, batch, None)
        return {"loss": value} | hits

    make = asked(
        context,
        stage.questions,
        mono_share=stage.mono_share,
        no_audio_share=stage.no_audio_share,
        null_share=stage.null_share,
        open_share=pipeline.OPEN_SHARE,
    )
    plain = asked(context, 4, augment=False)
    batch = pipeline.fixed(context.dev, plain, run.seed, "sft/dev", common.EVAL_SCENES)
    return common.Task(
        "sft",
        pipeline.Batches(context.train, make, run.seed, "sft", stage.batch, mixed=mixed(context)),
        common.gradient_step(context, loss),
        common.evaluation(context, measure, batch),
    )
