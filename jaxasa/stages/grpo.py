"""Stage 4 (`grpo`): group-relative policy optimisation of the adapters.

A step draws prompts, samples a group of completions of each with one prefill a prompt, rewards
their texts on the host, and moves the adapters along the advantages, `stage.epochs` times. The
losses are in policy.py; Dr. GRPO's is the default.

Letters: P prompts, G completions of each, R = P x G rows, C new tokens.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxasa import sharding
from jaxasa.data import curriculum, pipeline
from jaxasa.data.questions import LEVELS
from jaxasa.models import lm, sample
from jaxasa.stages import common, policy, rewards
from jaxasa.stages.sft import asked, flat, project
from jaxasa.state import State


def rollout(
    context: common.Context, params, batch, key, group: int, temperature: float
) -> sample.Completions:
    """`group` completions of each prompt of a batch, at `temperature`."""
    text = context.text
    tokens = jnp.repeat(project(context, params, batch), batch["prompt"].shape[1], axis=0)
    return sample.generate(
        context.asa,
        params,
        flat(batch["prompt"]),
        tokens,
        key,
        group=group,
        max_new=context.run.model.reply_tokens,
        temperature=temperature,
        pad=text.pad,
        eos=text.eos,
        audio_id=text.audio,
    )


def completion_logps(context: common.Context, params, batch, adapted: bool = True) -> jax.Array:
    """Log-probabilities [R, C] of the completions `batch["ids"]` [P, G, C], as they were sampled.

    adapted: False for the reference, which is the model without its adapters.
    """
    asa, text = context.asa, context.text
    tokens = jax.lax.stop_gradient(project(context, params, batch))
    repeats = batch["ids"].shape[1]
    tokens = jnp.repeat(tokens, batch["prompt"].shape[1] * repeats, axis=0)
    prompt = jnp.repeat(flat(batch["prompt"]), repeats, axis=0)
    ids, mask = flat(batch["ids"]), flat(batch["mask"])
    # A pad or a place for audio that was sampled was a word like any other then, and is now.
    asked_for = asa.embed(params, prompt, tokens, text.audio)
    said = asa.embed(params, ids, None, text.audio)
    valid = jnp.concatenate([prompt != text.pad, mask > 0], 1)[:, :-1]
    x = jnp.concatenate([asked_for, said], 1)[:, :-1]
    hidden, *_ = asa.hidden(params, x, valid, adapted)
    logps, _ = lm.token_logps(
        hidden[:, prompt.shape[1] - 1 :], asa.table(params), ids, context.stage.temperature
    )
    return logps


def task(context: common.Context) -> common.Task:
    """Rollouts, rewards, updates. A prompt is one scene with one question."""
    run, stage, asa, text = context.run, context.stage, context.asa, context.text
    loss_of_tokens = policy.loss_of(stage)
    # Sampler and learner round apart: the learner says how likely it found what was sampled.
    is_rough = asa.dtype != jnp.float32
    by_deviation = stage.loss != "dr_grpo" if stage.by_deviation is None else stage.by_deviation
    batches = _batches(context)

    def sample_them(params, batch, key, group: int, temperature: float):
        return rollout(context, params, batch, key, group, temperature)

    sampled = jax.jit(sample_them, static_argnums=(3, 4))

    @jax.jit
    def score(params, batch) -> dict[str, jax.Array]:
        """[P, G, C]: what the updates need of the policy before them, and of the reference."""
        found = {}
        if is_rough and stage.epochs > 1:
            found["learner"] = completion_logps(context, params, batch)
        if stage.kl_weight:
            found["reference"] = completion_logps(context, params, batch, adapted=False)
        return {name: logps.reshape(batch["ids"].shape) for name, logps in found.items()}

    def loss(params, batch, key):
        logps = completion_logps(context, params, batch)
        behaviour, advantages = flat(batch["logps"]), flat(batch["advantages"])
        # What the length limit cut off was attended to, whether or not it teaches.
        mask = flat(batch["taught"])
        active = jnp.maximum(mask.sum(), 1)
        extra, metrics = {}, {}
        if is_rough:
            sampler, behaviour = behaviour, jax.lax.stop_gradient(logps)
            if "learner" in batch:
                # Where nothing counts nothing may overflow either: infinity times 0 is no 0.
                behaviour = jnp.where(mask > 0, flat(batch["learner"]), behaviour)
            extra["weight"] = policy.truncated_ratio(behaviour, sampler)
            ratio = jnp.where(mask > 0, jnp.exp(behaviour - sampler), 1.0)
            metrics["sampler_ratio"] = (ratio * mask).sum() / active
            metrics["sampler_ratio_max"] = ratio.max()
        if "reference" in batch:
            divergence = policy.k3(logps, jnp.where(mask > 0, flat(batch["reference"]), logps))
            extra["penalty"] = stage.kl_weight * divergence
            metrics["kl"] = (divergence * mask).sum() / active
        value = loss_of_tokens(logps, behaviour, advantages, mask, **extra)
        drift = ((logps - behaviour) * mask).sum() / active
        return value, {"log_ratio": drift} | metrics

    # Its schedule counts updates, of which a step makes `epochs`.
    often = {name: getattr(stage, name) * stage.epochs for name in ("steps", "warmup")}
    paced = dataclasses.replace(context, stage=dataclasses.replace(stage, **often))
    update = common.gradient_step(paced, loss)

    def judge(ids: np.ndarray, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Rewards by name, each [P, G], of completions [P, G, C]."""
        replies = flat(np.asarray(batch["reply"]))
        per_scene = len(replies) // len(batch["source_label"])
        rows = []
        for p, group in enumerate(ids):
            sources = _sources(batch, p // per_scene, context.classes)
            right = rewards.answer_of(text.decode(replies[p]))
            ended = group == text.eos
            used = np.where(ended.any(-1), (ended.argmax(-1) + 1) / ids.shape[-1], 1.0)
            judged = [
                rewards.total(stage, text.decode(c), right, sources, context.classes, float(u))
                for c, u in zip(group, used, strict=True)
            ]
            rows.append(judged)
        return {name: np.array([[r[name] for r in row] for row in rows]) for name in rows[0][0]}

    def play(params, batch, key) -> tuple[dict, dict]:
        """A rollout, each [P, G, C], and its rewards by name, each [P, G]."""
        placed = sharding.place_batch(batch, context.mesh)
        made = sampled(params, placed, key, stage.group, stage.temperature)
        found = judge(jax.device_get(made.ids), batch)
        mask = np.asarray(made.mask, np.float32)
        return {"ids": np.asarray(made.ids), "logps": np.asarray(made.logps), "mask": mask}, found

    def refresh(params, batch, key, made, found) -> tuple[Mapping, dict, dict]:
        """Other prompts with their rollouts in place of those that teach nothing, while any are."""
        batch, made, found = ({k: np.array(v) for k, v in x.items()} for x in (batch, made, found))
        for n in range(stage.resample):
            dull = np.flatnonzero(_is_equal(found))
            if not len(dull):
                break
            other = next(batches)
            tried, earned = play(params, other, jax.random.fold_in(key, n + 1))
            keen = np.flatnonzero(~_is_equal(earned))[: len(dull)]
            for old, new in ((batch, other), (made, tried), (found, earned)):
                for name in old:
                    old[name][dull[: len(keen)]] = new[name][keen]
        return batch, made, found

    def step(state: State, batch, key) -> tuple[State, Mapping]:
        made, found = play(state.params, batch, key)
        equal = float(_is_equal(found).mean())
        if stage.resample:
            batch, made, found = refresh(state.params, batch, key, made, found)
        ended = ((made["ids"] == text.eos) & (made["mask"] > 0)).any(-1, keepdims=True)
        gains = policy.advantages(found["total"], by_deviation).astype(np.float32)
        taught = made["mask"] * ended if stage.mask_truncated else made["mask"]
        batch = {**batch, **made, "taught": taught, "advantages": gains}
        if stage.kl_weight or (is_rough and stage.epochs > 1):
            before = score(state.params, sharding.place_batch(batch, context.mesh))
            batch |= jax.device_get(before)
        for _ in range(stage.epochs):
            state, metrics = update(state, batch, key)
        if stage.epochs > 1:
            state = dataclasses.replace(state, step=state.step - (stage.epochs - 1))
        moved = {}
        if stage.promote:
            batches.report(found["answer"].mean())
            moved["promotion"] = batches.done
        levels = np.asarray(batch["level"])[:, 0]
        metrics = (
            metrics
            | moved
            | {
                **{f"level/{name}": float((levels == i).mean()) for i, name in enumerate(LEVELS)},
                **{f"reward/{name}": float(value.mean()) for name, value in found.items()},
                "equal_groups": equal,
                "length": float(made["mask"].sum(-1).mean()),
                "truncated": float(1 - ended.mean()),
            }
        )
        if stage.resample:
            metrics["equal_groups_left"] = float(_is_equal(found).mean())
        return state, metrics

    plain = asked(context, 4, augment=False)
    dev = pipeline.fixed(context.dev, plain, run.seed, "grpo/dev", common.EVAL_SCENES)

    def evaluate(params) -> dict[str, float]:
        """Greedy answers to dev questions, by level."""
        placed = sharding.place_batch(dev, context.mesh)
        made = sampled(params, placed, jax.random.key(0), 1, 0.0)
        right = judge(jax.device_get(made.ids), dev)["answer"][:, 0]
        levels = dev["level"].reshape(-1)
        by_level = {name: float(right[levels == i].mean()) for i, name in enumerate(LEVELS)}
        return {"accuracy": float(right.mean())} | by_level

    return common.Task("grpo", batches, step, evaluate)


def _batches(context: common.Context) -> pipeline.Batches | curriculum.Promotion:
    """A question a scene; its level by the schedule of the stage, or by what succeeds."""
    stage = context.stage
    if not stage.promote:
        return common.batches(context, asked(context, 1, levels=stage.levels), "grpo")
    each = common.batches(context, asked(context, 1, each_level=True), "grpo")
    success = stage.promote, stage.promote_steps
    return curriculum.Promotion(each, stage.levels, *success, context.run.seed)


def _is_equal(found: Mapping[str, np.ndarray]) -> np.ndarray:
    """bool [P]: groups all of whose completions earned the same, which teach nothing."""
    return found["total"].std(1) < 1e-6


def _sources(batch: Mapping[str, np.ndarray], scene: int, classes) -> list[dict]:
    columns = zip(
        *(np.asarray(batch[f"source_{n}"])[scene] for n in ("label", "azimuth", "distance")),
        strict=True,
    )
    return [
        {"class": classes[int(label)], "azimuth": float(azimuth), "distance": float(distance)}
        for label, azimuth, distance in columns
        if label >= 0
    ]
