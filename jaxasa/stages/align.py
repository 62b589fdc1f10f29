# SPDX-License-Identifier: Apache-2.0
"""Stage 2 (`align`): the projector learns captions under a frozen decoder.

The auxiliary losses of the projector's experts stay on.
"""

from jaxasa import config
from jaxasa.data import transforms
from jaxasa.models.asa import without_adapters
from jaxasa.models.flops import Workload
from jaxasa.stages import common
from jaxasa.stages.spatial import expert_loss
from jaxasa.stages.stage import CAPTION_FIELDS, Context, Loss, TrainingStage
from jaxasa.train import loop

EXPERT_WEIGHT = 0.2


def objective(context: Context[config.AlignStage]) -> Loss:
    """Cross-entropy of one caption per scene, plus the experts' losses."""
    asa, tokenizer = context.asa, context.tokenizer
    seconds, num_classes = context.scenes.seconds, context.model.spatial.num_classes

    def loss(params, batch, key):
        audio = asa.encode_audio(params, common.augment_audio(batch))
        audio_embeds, experts = asa.project(params, audio)
        prompt, reply = batch["prompt"][:, 0], batch["reply"][:, 0]
        caption_loss, accuracies = common.reply_loss(
            asa, without_adapters(params), prompt, reply, audio_embeds, tokenizer
        )
        auxiliary_loss, _ = expert_loss(experts, batch, seconds, num_classes)
        # Captions have no answer, and so no accuracy of answers.
        metrics = {"caption": caption_loss, "token_accuracy": accuracies["token_accuracy"]}
        return caption_loss + EXPERT_WEIGHT * auxiliary_loss, metrics

    return loss


def examples(
    context: Context[config.AlignStage], augment: bool = True
) -> transforms.CaptionExamples:
    """Scenes with captions; without `augment`, neither rotated, mono nor paraphrased."""
    stage, model = context.stage, context.model
    return transforms.CaptionExamples(
        context.classes,
        model.spatial.num_slots,
        stage.mono_prob if augment else 0.0,
        augment and context.can_rotate,
        model,
        context.tokenizer,
        context.audio_tokens,
        stage.paraphrase_prob if augment else 0.0,
    )


def task(context: Context[config.AlignStage]) -> loop.Task:
    """One caption per scene."""
    loss, make = objective(context), examples(context)
    assert context.dev is not None
    if context.stage.paraphrase_prob:
        count = min(common.EVAL_SCENES, len(context.dev))
        transforms.check_caption_lengths([context.dev[i][1] for i in range(count)], make)
    make_eval, count = examples(context, augment=False), 2 * common.EVAL_SCENES
    batch = common.eval_batch(context, context.dev, make_eval, "align/dev", count)
    return loop.Task(
        "align",
        common.training_batches(context, make, "align"),
        common.training_step(context, loss),
        common.evaluation(context, loss, batch),
    )


def workload(stage: config.AlignStage) -> Workload:
    """Scenes through all parts of the model, with one reply each."""
    rows = stage.batch_size
    return Workload(scenes=rows, prompts=rows, completions=rows, trainable=stage.trainable)


STAGE = TrainingStage(
    name="align",
    title="stage 2: projector, on captions",
    examples=examples,
    objective=objective,
    task=task,
    workload=workload,
    parts=("semantic", "spatial", "decoder", "projector"),
    depends_on=CAPTION_FIELDS,
)
