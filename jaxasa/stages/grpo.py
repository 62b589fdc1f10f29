"""Stage 4 (`grpo`): group-relative policy optimisation of the adapters, with Dr. GRPO's loss.

A step draws prompts, samples a group of completions of each with one prefill a prompt,
rewards their texts on the host, and moves the adapters along advantages R - mean(R).
Dr. GRPO (arXiv:2503.20783) divides by rows x maximum length and not by the group's standard
deviation, so that neither long answers nor easy prompts weigh more.

Letters: P prompts, G completions of each, C new tokens.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxasa import sharding
from jaxasa.data import pipeline, questions
from jaxasa.models import lm, sample
from jaxasa.stages import common, rewards
from jaxasa.stages.sft import asked, flat, project
from jaxasa.state import State


def policy_loss(logps, behaviour, advantages, mask, clip: float) -> jax.Array:
    """Clipped surrogate of Dr. GRPO: logps, behaviour, mask [R, C], advantages [R] -> scalar."""
    ratio = jnp.exp(logps - behaviour)
    clipped = jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
    gains = jnp.minimum(ratio * advantages[:, None], clipped * advantages[:, None])
    return -(gains * mask).sum() / mask.size


def task(context: common.Context) -> common.Task:
    """Rollouts, rewards, update. A prompt is one scene with one question."""
    run, stage, asa, text = context.run, context.stage, context.asa, context.text

    def rollout(params, batch, key, group: int, temperature: float) -> sample.Completions:
        tokens = jnp.repeat(project(context, params, batch), batch["prompt"].shape[1], axis=0)
        return sample.generate(
            asa,
            params,
            flat(batch["prompt"]),
            tokens,
            key,
            group=group,
            max_new=run.model.reply_tokens,
            temperature=temperature,
            pad=text.pad,
            eos=text.eos,
            audio_id=text.audio,
        )

    sampled = jax.jit(rollout, static_argnums=(3, 4))

    def loss(params, batch, key):
        tokens = jax.lax.stop_gradient(project(context, params, batch))
        repeats = batch["ids"].shape[1]
        tokens = jnp.repeat(tokens, batch["prompt"].shape[1] * repeats, axis=0)
        prompt = jnp.repeat(flat(batch["prompt"]), repeats, axis=0)
        ids, mask = flat(batch["ids"]), flat(batch["mask"])
        # A pad or a place for audio that was sampled was a word like any other then, and is now.
        asked_for = asa.embed(params, prompt, tokens, text.audio)
        said = asa.embed(params, ids, None, text.audio)
        valid = jnp.concatenate([prompt != text.pad, mask > 0], 1)[:, :-1]
        hidden, *_ = asa.hidden(params, jnp.concatenate([asked_for, said], 1)[:, :-1], valid)
        logps, _ = lm.token_logps(
            hidden[:, prompt.shape[1] - 1 :], asa.table(params), ids, stage.temperature
        )
        behaviour, advantages = flat(batch["logps"]), flat(batch["advantages"])
        value = policy_loss(logps, behaviour, advantages, mask, stage.clip_ratio)
        drift = ((logps - behaviour) * mask).sum() / mask.sum()
        return value, {"log_ratio": drift}

    update = common.gradient_step(context, loss)

    def judge(ids: np.ndarray, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Rewards by name, each [P, G], of completions [P, G, C]."""
        replies = flat(np.asarray(batch["reply"]))
        per_scene = len(replies) // len(batch["source_label"])
        rows = []
        for p, group in enumerate(ids):
            sources = _sources(batch, p // per_scene, context.classes)
            right = rewards.answer_of(text.decode(replies[p]))
            judged = [
                rewards.total(stage, text.decode(c), right, sources, context.classes) for c in group
            ]
            rows.append(judged)
        return {name: np.array([[r[name] for r in row] for row in rows]) for name in rows[0][0]}

    def step(state: State, batch, key) -> tuple[State, Mapping]:
        placed = sharding.place_batch(batch, context.mesh)
        made = sampled(state.params, placed, key, stage.group, stage.temperature)
        found = judge(jax.device_get(made.ids), batch)
        advantages = found["total"] - found["total"].mean(1, keepdims=True)
        state, metrics = update(
            state,
            {
                **batch,
                "ids": np.asarray(made.ids),
                "logps": np.asarray(made.logps),
                "mask": np.asarray(made.mask, np.float32),
                "advantages": advantages.astype(np.float32),
            },
            key,
        )
        spread = found["total"].std(1)
        return state, metrics | {
            **{f"reward/{name}": float(value.mean()) for name, value in found.items()},
            "equal_groups": float((spread < 1e-6).mean()),
            "length": float(np.asarray(made.mask).sum(-1).mean()),
        }

    plain = asked(context, 4, augment=False)
    dev = pipeline.fixed(context.dev, plain, run.seed, "grpo/dev", common.EVAL_SCENES)

    def evaluate(params) -> dict[str, float]:
        """Greedy answers to dev questions, by level."""
        placed = sharding.place_batch(dev, context.mesh)
        made = sampled(params, placed, jax.random.key(0), 1, 0.0)
        right = judge(jax.device_get(made.ids), dev)["answer"][:, 0]
        levels = dev["level"].reshape(-1)
        by_level = {
            name: float(right[levels == i].mean()) for i, name in enumerate(questions.LEVELS)
        }
        return {"accuracy": float(right.mean())} | by_level

    make = asked(context, 1)
    return common.Task(
        "grpo",
        pipeline.Batches(context.train, make, run.seed, "grpo", stage.batch),
        step,
        evaluate,
    )


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
