"""Stage 2 (`align`): the projector learns captions under a frozen decoder.

The experts' auxiliary losses stay on.
"""

from jaxasa.data import pipeline
from jaxasa.stages import common
from jaxasa.stages.spatial import expert_loss

EXPERT_WEIGHT = 0.2


def objective(context: common.Context):
    """loss(params, batch, key) of one caption a scene."""
    run, asa, text = context.run, context.asa, context.text

    def loss(params, batch, key):
        audio = asa.listen(params, common.hear(batch))
        tokens, experts = asa.project(params, audio)
        prompt, reply = batch["prompt"][:, 0], batch["reply"][:, 0]
        said, hits = common.reply_loss(asa, params, prompt, reply, tokens, text, False)
        aside, _ = expert_loss(experts, batch, run.scenes.seconds, run.model.spatial.num_classes)
        # No answer is in a caption.
        measured = {"caption": said, "token_accuracy": hits["token_accuracy"]}
        return said + EXPERT_WEIGHT * aside, measured

    return loss


def examples(context: common.Context, augment: bool = True) -> pipeline.Targets:
    """The maker of examples; without `augment` they are as they were rendered."""
    model = context.run.model
    return pipeline.Targets(
        context.classes,
        model.spatial.num_slots,
        context.stage.mono_prob if augment else 0.0,
        augment and context.turns,
        model,
        context.text,
        context.audio_tokens,
        context.stage.paraphrase_prob if augment else 0.0,
    )


def task(context: common.Context) -> common.Task:
    """One caption a scene."""
    loss = objective(context)

    def measure(params, batch):
        value, measured = loss(params, batch, None)
        return {"loss": value} | measured

    make = examples(context)
    if make.phrasings:
        assert context.dev is not None
        some = range(min(common.EVAL_SCENES, len(context.dev)))
        pipeline.check_phrasings([context.dev[i][1] for i in some], make)
    plain, count = examples(context, False), 2 * common.EVAL_SCENES
    batch = common.held_out(context, context.dev, plain, "align/dev", count)
    return common.Task(
        "align",
        common.batches(context, make, "align"),
        common.gradient_step(context, loss),
        common.evaluation(context, measure, batch),
    )
