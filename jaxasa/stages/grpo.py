"""Stage 4 (`grpo`): group-relative policy optimisation of the adapters.

A step draws scenes with questions about each, hears each once, samples a group of completions of
each question with one prefill a prompt, rewards their texts on the host, and moves the adapters
along the advantages, `stage.num_iterations` times. What was heard serves the updates too: nothing that
hears is trained here. The losses are in policy.py; Dr. GRPO's is the default.

Letters: B scenes, Q questions of each, P = B x Q prompts, G completions of each, R = P x G rows,
C new tokens.
"""

import dataclasses
import time
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from jaxasa.config import LEVELS
from jaxasa.core import trees
from jaxasa.data import pipeline, tokens
from jaxasa.models import lm, sample
from jaxasa.parallel import sharding
from jaxasa.stages import common, policy, rewards
from jaxasa.stages.sft import asked, flat, project
from jaxasa.train.state import State


def rollout(
    context: common.Context, params, batch, key, group: int, temperature: float
) -> sample.Completions:
    """`group` completions of each prompt of a batch, at `temperature`.

    batch["heard"] [B, A, D]: what `sft.project` makes of its scenes.
    """
    text = context.text
    return sample.generate(
        context.asa,
        params,
        flat(batch["prompt"]),
        _heard(batch),
        key,
        group=group,
        max_new=context.run.model.reply_tokens,
        temperature=temperature,
        pad=text.pad,
        eos=text.eos,
        audio_id=text.audio,
    )


def completion_logps(context: common.Context, params, batch, adapted: bool = True) -> jax.Array:
    """Log-probabilities [R, C] of completions `batch["ids"]` [B, Q x G, C], as they were sampled.

    batch["heard"]: as for `rollout`. adapted: False for the model without its adapters.
    """
    asa, text = context.asa, context.text
    prompt, ids, mask = (flat(batch[name]) for name in ("prompt", "ids", "mask"))
    # A pad or a place for audio that was sampled was a word like any other then, and is now.
    asked_for = asa.embed(params, prompt, _heard(batch), text.audio)
    said = asa.embed(params, ids, None, text.audio)
    hidden = asa.complete(params, asked_for, prompt != text.pad, said, mask > 0, adapted)
    logps, _ = lm.token_logps(hidden, asa.table(params), ids, context.stage.temperature)
    return logps


def _heard(batch) -> jax.Array:
    """Audio tokens [P, A, D]: a scene's for each of its prompts."""
    return jnp.repeat(batch["heard"], batch["prompt"].shape[1], axis=0)


def examples(context: common.Context) -> pipeline.Asked:
    """The maker of examples: scenes with `stage.questions_per_scene` each."""
    stage = context.stage
    return asked(context, stage.questions_per_scene, levels=stage.level_mix)


def sampler(context: common.Context):
    """sample_them(params, batch, key, group, temperature), jitted: completions, what was heard."""

    def sample_them(params, batch, key, group: int, temperature: float):
        heard = project(context, params, batch)
        made = rollout(context, params, {**batch, "heard": heard}, key, group, temperature)
        return made, heard

    # Laid like a batch, so that each process has the completions of its own prompts.
    rows = NamedSharding(context.mesh, sharding.BATCH)
    return jax.jit(sample_them, static_argnums=(3, 4), out_shardings=rows)


def is_rough(context: common.Context) -> bool:
    """Sampler and learner round apart: the learner says how likely it found what was sampled."""
    return context.asa.dtype != jnp.float32


def rescores(context: common.Context) -> bool:
    """Whether what the learner found before the first of several updates is kept for them."""
    return is_rough(context) and context.stage.num_iterations > 1


def paced(context: common.Context) -> common.Context:
    """The context of the updates, whose schedule counts them: a step makes `num_iterations`."""
    stage = context.stage
    often = {
        name: getattr(stage, name) * stage.num_iterations for name in ("steps", "warmup_steps")
    }
    return dataclasses.replace(context, stage=dataclasses.replace(stage, **often))


def objective(context: common.Context):
    """loss(params, batch, key) of completions with their advantages."""
    stage, rough = context.stage, is_rough(context)
    loss_of_tokens = policy.loss_of(stage)

    def loss(params, batch, key):
        logps = completion_logps(context, params, batch)
        behaviour, advantages = flat(batch["logps"]), flat(batch["advantages"])
        # What the length limit cut off was attended to, whether or not it teaches.
        mask = flat(batch["taught"])
        active = jnp.maximum(mask.sum(), 1)
        extra, metrics = {}, {}
        if rough:
            sampled, behaviour = behaviour, jax.lax.stop_gradient(logps)
            if "learner" in batch:
                # Where nothing counts nothing may overflow either: infinity times 0 is no 0.
                behaviour = jnp.where(mask > 0, flat(batch["learner"]), behaviour)
            extra["weight"] = policy.truncated_ratio(behaviour, sampled)
            ratio = jnp.where(mask > 0, jnp.exp(behaviour - sampled), 1.0)
            metrics["sampler_ratio"] = (ratio * mask).sum() / active
            metrics["sampler_ratio_max"] = ratio.max()
        if "reference" in batch:
            divergence = policy.k3(logps, jnp.where(mask > 0, flat(batch["reference"]), logps))
            extra["penalty"] = stage.kl_weight * divergence
            metrics["kl"] = (divergence * mask).sum() / active
        value = loss_of_tokens(logps, behaviour, advantages, mask, **extra)
        drift = ((logps - behaviour) * mask).sum() / active
        return value, {"log_ratio": drift} | metrics

    return loss


def played_shapes(context: common.Context, batch: Mapping) -> dict[str, jax.ShapeDtypeStruct]:
    """What an update is given of a `batch` after rollouts and rewards, as `task`'s step does."""
    stage, scenes = context.stage, batch["prompt"].shape[0]
    whole = (
        scenes,
        stage.questions_per_scene * stage.num_generations,
        context.run.model.reply_tokens,
    )
    names = ["logps", "mask", "taught"]
    names += ["learner"] * rescores(context) + ["reference"] * bool(stage.kl_weight)
    shapes = {name: jax.ShapeDtypeStruct(whole, jnp.float32) for name in names}
    shapes["ids"] = jax.ShapeDtypeStruct(whole, jnp.int32)
    tokens = scenes, context.audio_tokens, context.run.model.decoder.width
    shapes["heard"] = jax.ShapeDtypeStruct(tokens, context.asa.dtype)
    shapes["advantages"] = jax.ShapeDtypeStruct(whole[:2], jnp.float32)
    return {"prompt": batch["prompt"]} | shapes


def task(context: common.Context) -> common.Task:
    """Rollouts, rewards, updates."""
    stage, text = context.stage, context.text
    by_deviation = stage.loss != "dr_grpo" if stage.scale_rewards is None else stage.scale_rewards
    batches = common.batches(context, examples(context), "grpo")
    sampled = sampler(context)
    update = common.gradient_step(paced(context), objective(context))

    rows = NamedSharding(context.mesh, sharding.BATCH)

    @partial(jax.jit, out_shardings=rows)
    def score(params, reference, batch) -> dict[str, jax.Array]:
        """[B, Q x G, C]: what the updates need of the policy before them, and of the reference.

        reference: the flat part of the parameters in which the start differs; {} for "base".
        """

        def part(batch) -> dict[str, jax.Array]:
            found = {}
            if rescores(context):
                found["learner"] = completion_logps(context, params, batch)
            if stage.kl_weight:
                before = trees.merge({}, trees.flatten(params) | reference)
                adapted = stage.ref_policy != "base"
                found["reference"] = completion_logps(context, before, batch, adapted)
            return {name: logps.reshape(batch["ids"].shape) for name, logps in found.items()}

        return common.by_parts(part, batch, stage.grad_accum_steps)

    def judge(ids: np.ndarray, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Rewards by name, each [P, G], of completions [P, G, C]."""
        replies = flat(np.asarray(batch["reply"]))
        prompts = flat(np.asarray(batch["prompt"]))
        per_scene = len(replies) // len(batch["source_label"])
        rows = []
        for p, group in enumerate(ids):
            sources = _sources(batch, p // per_scene, context.classes)
            right = rewards.answer_of(text.decode(replies[p]))
            options = tokens.options_in(text.decode(prompts[p]))
            ended = group == text.eos
            used = np.where(ended.any(-1), (ended.argmax(-1) + 1) / ids.shape[-1], 1.0)
            about = right, options, sources, context.classes
            judged = [
                rewards.total(stage, text.decode(c), *about, float(u))
                for c, u in zip(group, used, strict=True)
            ]
            rows.append(judged)
        return {name: np.array([[r[name] for r in row] for row in rows]) for name in rows[0][0]}

    def play(params, batch, key) -> tuple[dict, dict]:
        """A rollout, each [B, Q x G, C], what it heard [B, A, D], and its rewards by name, each
        [B, Q, G]: of this process."""
        placed = sharding.place_batch(batch, context.mesh)
        drawn = sampled(params, placed, key, stage.num_generations, stage.temperature)
        made, heard = sharding.local(drawn)
        found, scenes = judge(made.ids, batch), len(heard)
        made = {name: x.reshape(scenes, -1, x.shape[-1]) for name, x in made._asdict().items()}
        made |= {"mask": made["mask"].astype(np.float32), "heard": heard}
        return made, {name: x.reshape(scenes, -1, x.shape[-1]) for name, x in found.items()}

    def refresh(params, batch, key, made, found) -> tuple[Mapping, dict, dict]:
        """Other scenes with their rollouts in place of those that teach nothing, while any are."""
        batch, made, found = ({k: np.array(v) for k, v in x.items()} for x in (batch, made, found))
        for n in range(stage.dynamic_sampling_rounds):
            dull = np.flatnonzero(_is_equal(found).all(1))
            # While any process has some: a rollout is made by all of them.
            if not sharding.joined(np.array([len(dull)])).any():
                break
            other = next(batches)
            tried, earned = play(params, other, jax.random.fold_in(key, n + 1))
            keen = np.flatnonzero(~_is_equal(earned).all(1))[: len(dull)]
            for old, new in ((batch, other), (made, tried), (found, earned)):
                for name in old:
                    old[name][dull[: len(keen)]] = new[name][keen]
        return batch, made, found

    def step(state: State, batch, key) -> tuple[State, Mapping]:
        began = time.monotonic()
        made, found = play(state.params, batch, key)
        # Rewards are those of all that was asked: what is drawn again is never all right.
        earned = found
        if stage.dynamic_sampling_rounds:
            batch, made, found = refresh(state.params, batch, key, made, found)
        ended = ((made["ids"] == text.eos) & (made["mask"] > 0)).any(-1, keepdims=True)
        gains = policy.advantages(flat(found["total"]), by_deviation).astype(np.float32)
        taught = made["mask"] * ended if stage.mask_truncated_completions else made["mask"]
        played = time.monotonic()
        gains = gains.reshape(len(taught), -1)
        lesson = {"prompt": batch["prompt"], **made, "taught": taught, "advantages": gains}
        if stage.kl_weight or rescores(context):
            placed = sharding.place_batch(lesson, context.mesh)
            lesson |= sharding.local(score(state.params, state.reference, placed))
        for _ in range(stage.num_iterations):
            state, metrics = update(state, lesson, key)
        if stage.num_iterations > 1:
            state = dataclasses.replace(state, step=state.step - (stage.num_iterations - 1))
        # Only for the clock: the next step's rollout waits for the update in any case.
        number = int(jax.block_until_ready(state.step))
        seconds = {"rollout": played - began, "update": time.monotonic() - played}
        levels = flat(np.asarray(batch["level"]))
        measured = {f"reward/{name}": value for name, value in earned.items()} | {
            **{f"level/{name}": levels == i for i, name in enumerate(LEVELS)},
            "equal_groups": _is_equal(earned),
            "length": made["mask"].sum(-1),
            "truncated": ~ended,
        }
        if stage.dynamic_sampling_rounds:
            measured["equal_groups_left"] = _is_equal(found)
        of_all = sharding.joined(measured)
        metrics = metrics | {name: float(value.mean()) for name, value in of_all.items()}
        metrics |= {f"seconds/{name}": spent for name, spent in seconds.items()}
        metrics["tokens"] = float(of_all["length"].sum())
        if number % stage.log_every == 0:
            metrics["samples"] = _samples(context, {**batch, **lesson}, found)
        return state, metrics

    plain = asked(context, 4, augment=False)
    dev = common.held_out(context, context.dev, plain, "grpo/dev")

    def evaluate(params) -> dict[str, float]:
        """Greedy answers to dev questions, by level."""
        placed = sharding.place_batch(dev, context.mesh)
        made, _ = sampled(params, placed, jax.random.key(0), 1, 0.0)
        right = judge(sharding.local(made.ids), dev)["answer"][:, 0]
        right, levels = sharding.joined((right, dev["level"].reshape(-1)))
        asked_of = {name: right[levels == i] for i, name in enumerate(LEVELS)}
        by_level = {name: float(found.mean()) for name, found in asked_of.items() if len(found)}
        return {"accuracy": float(right.mean())} | by_level

    return common.Task("grpo", batches, step, evaluate)


def _samples(context: common.Context, batch: Mapping, found: Mapping) -> list[dict]:
    """The completions of this process's first prompt, with their rewards, to be read."""
    text = context.text
    prompt = flat(np.asarray(batch["prompt"]))[0]
    asked_for = text.decode(prompt[prompt != text.audio]).strip()
    right = rewards.answer_of(text.decode(flat(np.asarray(batch["reply"]))[0]))
    return [
        {
            "question": asked_for,
            "right": right,
            "said": text.decode(ids),
            "rewards": {name: round(float(value[0, 0, g]), 4) for name, value in found.items()},
            "advantage": round(float(batch["advantages"][0, g]), 4),
        }
        for g, ids in enumerate(batch["ids"][0, : context.stage.num_generations])
    ]


def _is_equal(found: Mapping[str, np.ndarray]) -> np.ndarray:
    """bool [B, Q]: groups all of whose completions earned the same, which teach nothing."""
    return found["total"].std(-1) < 1e-6


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
