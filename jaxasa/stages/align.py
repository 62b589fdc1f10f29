"""Stage 2 (`align`): the projector learns captions under a frozen decoder.

The experts' auxiliary losses stay on.
"""

from jaxasa.data import pipeline
from jaxasa.stages import common
from jaxasa.stages.spatial import expert_loss

EXPERT_WEIGHT = 0.2


def task(context: common.Context) -> common.Task:
    """One caption a scene."""
    run, stage, asa, text = context.run, context.stage, context.asa, context.text

    def loss(params, batch, key):
        audio = asa.listen(params, common.hear(batch))
        tokens, experts = asa.project(params, audio)
        prompt, reply = batch["prompt"][:, 0], batch["reply"][:, 0]
        said, hits = common.reply_loss(asa, params, prompt, reply, tokens, text, False)
        aside, _ = expert_loss(experts, batch, run.scenes.seconds, run.model.spatial.classes)
        return said + EXPERT_WEIGHT * aside, {"caption": said} | hits

    def measure(params, batch):
        value, measured = loss(params, batch, None)
        return {"loss": value} | measured

    def make(mono_share: float, augment: bool) -> pipeline.Targets:
        return pipeline.Targets(
            context.classes,
            run.model.spatial.slots,
            mono_share,
            augment,
            run.model,
            text,
            context.audio_tokens,
        )

    count = 2 * common.EVAL_SCENES
    batch = pipeline.fixed(context.dev, make(0.0, False), run.seed, "align/dev", count)
    return common.Task(
        "align",
        pipeline.Batches(
            context.train, make(stage.mono_share, context.turns), run.seed, "align", stage.batch
        ),
        common.gradient_step(context, loss),
        common.evaluation(context, measure, batch),
    )
