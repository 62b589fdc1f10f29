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
    """Imported questions, the folders of `stage.qa_datasets` in equal shares."""
    run, stage, text = context.run, context.stage, context.text
    make = imported_questions.Asked(
        run.model, text, context.audio_tokens, stage.questions_per_scene
    )
    return [
        pipeline.Guest(
            imported_questions.Imported(folder, run.model, text, run.scenes.seconds),
            make,
            stage.qa_datasets_weight / len(stage.qa_datasets),
        )
        for folder in stage.qa_datasets
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
    """loss(params, batch, key): a scene is heard once, and asked `stage.questions_per_scene` questions."""
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
        stage.questions_per_scene,
        mono_share=stage.mono_prob,
        no_audio_share=stage.audio_dropout_prob,
        null_share=stage.spatial_dropout_prob,
        open_share=pipeline.OPEN_SHARE,
        levels=stage.level_mix,
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
