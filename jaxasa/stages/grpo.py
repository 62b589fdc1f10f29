# SPDX-License-Identifier: Apache-2.0
"""Stage 4 (`grpo`): group-relative policy optimization (GRPO) of the LoRA adapters.

A step samples G completions of each prompt, rewards their texts on the host, normalizes the rewards
within each group to advantages, and makes `num_iterations` updates of the policy. The losses are in
policy.py (Dr. GRPO by default), the rewards in rewards.py. Encoders and projector are frozen, so a
scene's audio embeddings are computed once, in the rollout, and reused by the updates.

The sampler is the decoding loop with a KV cache, the learner the teacher-forced forward pass. Their
weights are the same; in bfloat16 their log-probabilities differ by rounding. Names and metrics are
TRL's, but for kl_weight (beta), loss (loss_type), clip_ratio (epsilon, epsilon_high) and
sampler_logps (sampling_per_token_logps).

Keys of the batch of an update:
    prompt            [B, Q, P]       token ids, padded on the left
    audio_embeds      [B, A, D]       of each scene, for all its prompts
    completion_ids    [B, Q x G, L]   sampled token ids
    completion_mask   [B, Q x G, L]   1.0 up to and including the end of sequence
    loss_mask         [B, Q x G, L]   1.0 for tokens in the loss
    sampler_logps     [B, Q x G, L]   log-probabilities under the sampler
    old_logps         [B, Q x G, L]   under the learner, before the step's first update; only if
                                      `recomputes_old_logps`
    ref_logps         [B, Q x G, L]   under the reference policy; only if kl_weight > 0
    advantages        [B, Q x G]

Shapes: B scenes, Q questions per scene, G completions per prompt, R = B x Q x G rows, L new tokens,
P prompt length with the audio tokens in it, A audio tokens (slots and map), D width.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from jaxasa import config
from jaxasa.config import LEVELS
from jaxasa.core import trees
from jaxasa.data import tokens, transforms
from jaxasa.models import lm, sample
from jaxasa.models.asa import without_adapters
from jaxasa.models.flops import Workload
from jaxasa.parallel import sharding
from jaxasa.stages import common, policy, sft
from jaxasa.stages.common import merge_leading_dims
from jaxasa.stages.rewards import answer_of, compute_rewards
from jaxasa.stages.stage import QUESTION_FIELDS, Batch, Context, Loss, Rollout, TrainingStage
from jaxasa.train import loop, update
from jaxasa.train.state import TrainState

HostBatch = dict[str, np.ndarray]


def generate_completions(
    context: Context[Any], params, batch: Batch, key, num_generations: int, temperature: float
) -> sample.Completions:
    """Samples `num_generations` completions of each prompt, with one prefill per prompt."""
    return sample.generate(
        context.asa,
        params,
        merge_leading_dims(batch["prompt"]),
        _audio_embeds_per_prompt(batch),
        key,
        sample.SpecialTokenIds.of(context.tokenizer),
        config.Sampling(temperature),
        num_generations=num_generations,
    )


def completion_logps(context: Context[Any], params, batch: Batch) -> jax.Array:
    """Per-token log-probabilities [R, L] of completions, at the sampling temperature."""
    asa, tokenizer = context.asa, context.tokenizer
    prompt, ids, mask = (
        merge_leading_dims(batch[name]) for name in ("prompt", "completion_ids", "completion_mask")
    )
    prompt_embeds = asa.embed(params, prompt, _audio_embeds_per_prompt(batch), tokenizer.audio_id)
    # Without audio: a sampled <audio> token had its own embedding in the sampler too.
    completion_embeds = asa.embed(params, ids, None, tokenizer.audio_id)
    hidden = asa.score_completions(
        params, prompt_embeds, prompt != tokenizer.pad_id, completion_embeds, mask > 0
    )
    logps, _ = lm.token_logps(hidden, asa.unembedding(params), ids, context.stage.temperature)
    return logps


def _audio_embeds_per_prompt(batch: Batch) -> jax.Array:
    """[B, A, D] -> [B x Q, A, D]."""
    return jnp.repeat(batch["audio_embeds"], batch["prompt"].shape[1], axis=0)


def rollout_program(
    context: Context[Any],
    embed_audio: Callable = sft.embed_audio,
    generate: Callable = generate_completions,
):
    """Jitted rollout(params, batch, key, num_generations, temperature).

    Returns completions and audio embeddings [B, A, D].
    """

    def rollout(params, batch, key, num_generations: int, temperature: float):
        audio_embeds = embed_audio(context, params, batch)
        batch = {**batch, "audio_embeds": audio_embeds}
        completions = generate(context, params, batch, key, num_generations, temperature)
        return completions, audio_embeds

    # Sharded like a batch, so that each process has the completions of its own prompts.
    rows = NamedSharding(context.mesh, sharding.BATCH)
    return jax.jit(rollout, static_argnums=(3, 4), out_shardings=rows)


def needs_tis_correction(context: Context[Any]) -> bool:
    """True unless the model computes in float32, in which sampler and learner agree.

    If True, the ratio's old log-probs are the learner's own (of the current parameters if there is
    one update per rollout, else recomputed), and truncated importance sampling (TIS) weighs each
    token by learner / sampler.
    """
    return context.asa.dtype != jnp.float32


def recomputes_old_logps(context: Context[config.GrpoStage]) -> bool:
    """Whether old log-probs have to be computed before the first of several updates."""
    return needs_tis_correction(context) and context.stage.num_iterations > 1


def objective(context: Context[config.GrpoStage]) -> Loss:
    """The policy loss of a batch of completions with advantages."""
    stage, corrects = context.stage, needs_tis_correction(context)
    policy_loss = policy.loss_of(stage)

    def loss(params, batch, key):
        logps = completion_logps(context, params, batch)
        old_logps = sampler_logps = merge_leading_dims(batch["sampler_logps"])
        mask = merge_leading_dims(batch["loss_mask"])
        num_tokens = jnp.maximum(mask.sum(), 1)
        options, metrics = {}, {}
        if corrects:
            old_logps = jax.lax.stop_gradient(logps)
            if "old_logps" in batch:
                # Masked positions hold arbitrary values, and infinity times 0 is not 0.
                old_logps = jnp.where(mask > 0, merge_leading_dims(batch["old_logps"]), old_logps)
            options["importance_weights"] = policy.tis_weight(old_logps, sampler_logps)
            ratio = jnp.where(mask > 0, jnp.exp(old_logps - sampler_logps), 1.0)
            metrics["sampling/importance_sampling_ratio/mean"] = (ratio * mask).sum() / num_tokens
            metrics["sampling/importance_sampling_ratio/max"] = ratio.max()
        if "ref_logps" in batch:
            ref_logps = jnp.where(mask > 0, merge_leading_dims(batch["ref_logps"]), logps)
            kl = policy.kl_k3(logps, ref_logps)
            options["kl_penalty"] = stage.kl_weight * kl
            metrics["kl"] = (kl * mask).sum() / num_tokens
        advantages = merge_leading_dims(batch["advantages"])
        value = policy_loss(logps, old_logps, advantages, mask, **options)
        # Drift of the policy since the rollout; 0 if old_logps are the current ones.
        log_ratio = ((logps - old_logps) * mask).sum() / num_tokens
        return value, {"log_ratio": log_ratio} | metrics

    return loss


def examples(context: Context[config.GrpoStage]) -> transforms.QaExamples:
    """Scenes, randomly rotated, with `questions_per_scene` questions each."""
    stage = context.stage
    return sft.qa_examples(context, stage.questions_per_scene, level_mix=stage.level_mix)


def update_batch_shapes(
    context: Context[config.GrpoStage], batch: Mapping
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the batch of an update, given those of a batch of examples."""
    stage, scenes = context.stage, batch["prompt"].shape[0]
    rows = scenes, stage.questions_per_scene * stage.num_generations
    per_token = *rows, context.model.reply_tokens
    names = ["completion_mask", "loss_mask", "sampler_logps"]
    names += ["old_logps"] * recomputes_old_logps(context) + ["ref_logps"] * bool(stage.kl_weight)
    shapes = {name: jax.ShapeDtypeStruct(per_token, jnp.float32) for name in names}
    shapes["completion_ids"] = jax.ShapeDtypeStruct(per_token, jnp.int32)
    audio_embeds = scenes, context.audio_tokens, context.model.decoder.width
    shapes["audio_embeds"] = jax.ShapeDtypeStruct(audio_embeds, context.asa.dtype)
    shapes["advantages"] = jax.ShapeDtypeStruct(rows, jnp.float32)
    return {"prompt": batch["prompt"]} | shapes


class GrpoTrainer:
    """Batches, step and evaluation of the stage, like TRL's GRPOTrainer.

    Three parts can be replaced:
        embed_audio(context, params, batch) -> audio embeddings [B, A, D]
        generate(context, params, batch, key, num_generations, temperature) -> completions
        reward(stage, completion, target, options, sources, classes, length_fraction)
            -> {"total": ..., ...}; length_fraction: share of `reply_tokens` that it takes
    """

    def __init__(
        self,
        context: Context[config.GrpoStage],
        *,
        embed_audio: Callable = sft.embed_audio,
        generate: Callable = generate_completions,
        reward: Callable = compute_rewards,
    ):
        self.context, self.stage, self.tokenizer = context, context.stage, context.tokenizer
        self.reward = reward
        self.batches = common.training_batches(context, examples(context), "grpo")
        self._rollout = rollout_program(context, embed_audio, generate)
        self._score = self._scoring_program()
        self._update = common.training_step(context, objective(context))
        assert context.dev is not None
        make_eval = sft.qa_examples(context, sft.EVAL_QUESTIONS, augment=False)
        self._eval_batch = common.eval_batch(context, context.dev, make_eval, "grpo/dev")

    def step(self, state: TrainState, batch: HostBatch, key) -> tuple[TrainState, dict]:
        """Rollout, rewards, advantages, updates. Returns the state and metrics."""
        start = time.monotonic()
        completions, rewards = self.generate_and_reward(state.params, batch, key)
        # For the metrics: those after dynamic sampling are selected by their value.
        first_rewards = rewards
        if self.stage.dynamic_sampling_rounds:
            batch, completions, rewards = self.resample_zero_variance(
                state.params, batch, key, completions, rewards
            )
        train_batch = self.train_batch(batch, completions, rewards)
        rollout_end = time.monotonic()

        train_batch |= self.score_completions(state, train_batch)
        for _ in range(self.stage.num_iterations):
            state, metrics = self.update(state, train_batch, key)
        # The loop counts one step, whatever the number of updates.
        extra = self.stage.num_iterations - 1
        if extra:
            state = dataclasses.replace(state, step=state.step - extra)
        # Only for the clock: the next step's rollout waits for the update in any case.
        number = int(jax.block_until_ready(state.step))
        seconds = {
            "seconds/rollout": rollout_end - start,
            "seconds/update": time.monotonic() - rollout_end,
        }
        metrics = metrics | self.metrics(batch, train_batch, first_rewards, rewards) | seconds
        if number % self.stage.log_every == 0:
            metrics["samples"] = self.samples(batch, train_batch, rewards)
        return state, metrics

    def generate_and_reward(self, params, batch: HostBatch, key) -> tuple[HostBatch, HostBatch]:
        """Completions of this process's prompts, and their rewards by name, each [B, Q, G].

        The former are completion_ids, completion_mask, sampler_logps and audio_embeds.
        """
        sharded = sharding.shard_batch(batch, self.context.mesh)
        number, temperature = self.stage.num_generations, self.stage.temperature
        sampled = self._rollout(params, sharded, key, number, temperature)
        completions, audio_embeds = sharding.to_host_local(sampled)
        scenes = len(audio_embeds)

        def per_scene(x: np.ndarray) -> np.ndarray:
            return x.reshape(scenes, -1, x.shape[-1])

        rewards = self.reward_completions(completions.ids, batch)
        return {
            "completion_ids": per_scene(completions.ids),
            "completion_mask": per_scene(completions.mask).astype(np.float32),
            "sampler_logps": per_scene(completions.logps),
            "audio_embeds": audio_embeds,
        }, {name: per_scene(value) for name, value in rewards.items()}

    def reward_completions(self, ids: np.ndarray, batch: HostBatch) -> HostBatch:
        """Rewards by name, each [B x Q, G], of completions [B x Q, G, L]."""
        decode = self.tokenizer.decode
        replies = merge_leading_dims(np.asarray(batch["reply"]))
        prompts = merge_leading_dims(np.asarray(batch["prompt"]))
        questions = len(replies) // len(batch["source_label"])
        groups = []
        for i, group in enumerate(ids):
            target = answer_of(decode(replies[i]))
            options = tokens.parse_options(decode(prompts[i]))
            sources = _sources(batch, i // questions, self.context.classes)
            is_eos = group == self.tokenizer.eos_id
            length_fraction = np.where(is_eos.any(-1), (is_eos.argmax(-1) + 1) / ids.shape[-1], 1.0)
            question = target, options, sources, self.context.classes
            groups.append(
                [
                    self.reward(self.stage, decode(completion), *question, float(share))
                    for completion, share in zip(group, length_fraction, strict=True)
                ]
            )
        names = groups[0][0]
        return {
            name: np.array([[row[name] for row in group] for group in groups]) for name in names
        }

    def resample_zero_variance(
        self, params, batch: HostBatch, key, completions: HostBatch, rewards: HostBatch
    ) -> tuple[HostBatch, HostBatch, HostBatch]:
        """Dynamic sampling (DAPO): replaces scenes all of whose groups have zero reward variance.

        DAPO filters prompts; here it is scenes, as the prompts of one share its audio embeddings.
        Replacements come from the next batches, at most `dynamic_sampling_rounds` of them; scenes
        that still have no variance then stay.
        """
        batch, completions, rewards = (
            {name: np.array(value) for name, value in tree.items()}
            for tree in (batch, completions, rewards)
        )
        for i in range(self.stage.dynamic_sampling_rounds):
            zero_std = np.flatnonzero(_has_zero_std(rewards).all(1))
            # All processes take part in a rollout, as long as any of them needs it.
            if not sharding.process_allgather(np.array([len(zero_std)])).any():
                break
            new_batch = next(self.batches)
            new = self.generate_and_reward(params, new_batch, jax.random.fold_in(key, i + 1))
            new_completions, new_rewards = new
            is_informative = ~_has_zero_std(new_rewards).all(1)
            informative = np.flatnonzero(is_informative)[: len(zero_std)]
            for old_tree, new_tree in (
                (batch, new_batch),
                (completions, new_completions),
                (rewards, new_rewards),
            ):
                for name in old_tree:
                    old_tree[name][zero_std[: len(informative)]] = new_tree[name][informative]
        return batch, completions, rewards

    def train_batch(
        self, batch: HostBatch, completions: HostBatch, rewards: HostBatch
    ) -> HostBatch:
        """The batch of an update, without old_logps and ref_logps."""
        mask = completions["completion_mask"]
        loss_mask = mask
        if self.stage.mask_truncated_completions:
            loss_mask = mask * self._is_complete(completions)
        advantages = policy.group_advantages(
            merge_leading_dims(rewards["total"]), policy.scales_rewards(self.stage)
        )
        return {
            "prompt": batch["prompt"],
            **completions,
            "loss_mask": loss_mask,
            "advantages": advantages.astype(np.float32).reshape(len(mask), -1),
        }

    def score_completions(self, state: TrainState, train_batch: HostBatch) -> HostBatch:
        """old_logps and ref_logps of the completions, as far as the loss needs them."""
        if not self.stage.kl_weight and not recomputes_old_logps(self.context):
            return {}
        sharded = sharding.shard_batch(train_batch, self.context.mesh)
        return sharding.to_host_local(self._score(state.params, state.ref_params, sharded))

    def _scoring_program(self):
        """Jitted (params, ref_params, batch) -> old_logps and ref_logps, each [B, Q x G, L].

        ref_params: flat {path: array}, the trainable parameters as they were at step 0; {} if
        the reference is the base model.
        """
        context, stage = self.context, self.stage
        rows = NamedSharding(context.mesh, sharding.BATCH)

        @partial(jax.jit, out_shardings=rows)
        def score(params, ref_params, batch) -> dict[str, jax.Array]:
            def score_rows(batch) -> dict[str, jax.Array]:
                logps = {}
                if recomputes_old_logps(context):
                    logps["old_logps"] = completion_logps(context, params, batch)
                if stage.kl_weight:
                    if stage.ref_policy == "base":
                        ref = without_adapters(params)
                    else:
                        ref = trees.merge({}, trees.flatten(params) | ref_params)
                    logps["ref_logps"] = completion_logps(context, ref, batch)
                shape = batch["completion_ids"].shape
                return {name: value.reshape(shape) for name, value in logps.items()}

            return update.over_microbatches(score_rows, batch, stage.grad_accum_steps)

        return score

    def update(self, state: TrainState, train_batch: HostBatch, key) -> tuple[TrainState, dict]:
        """One optimizer update."""
        return self._update(state, train_batch, key)

    def metrics(
        self,
        batch: HostBatch,
        train_batch: HostBatch,
        first_rewards: HostBatch,
        rewards: HostBatch,
    ) -> dict[str, float]:
        """Means over all processes: rewards, share of groups with zero variance, lengths,
        truncation, levels of the questions; and the total number of new tokens.

        first_rewards: before, rewards: after dynamic sampling.
        """
        levels = merge_leading_dims(np.asarray(batch["level"]))
        values = {
            "reward": first_rewards["total"],
            **{f"rewards/{name}/mean": x for name, x in first_rewards.items() if name != "total"},
            "frac_reward_zero_std": _has_zero_std(first_rewards),
            "completions/mean_length": train_batch["completion_mask"].sum(-1),
            "completions/clipped_ratio": ~self._is_complete(train_batch),
            **{f"level/{name}": levels == i for i, name in enumerate(LEVELS)},
        }
        if self.stage.dynamic_sampling_rounds:
            values["frac_reward_zero_std_resampled"] = _has_zero_std(rewards)
        values = sharding.process_allgather(values)
        means = {name: float(value.mean()) for name, value in values.items()}
        return means | {"tokens": float(values["completions/mean_length"].sum())}

    def samples(self, batch: HostBatch, train_batch: HostBatch, rewards: HostBatch) -> list[dict]:
        """The completions of this process's first prompt, with their rewards, to be read."""
        decode = self.tokenizer.decode
        prompt = merge_leading_dims(np.asarray(batch["prompt"]))[0]
        question = decode(prompt[prompt != self.tokenizer.audio_id]).strip()
        reply = merge_leading_dims(np.asarray(batch["reply"]))[0]
        return [
            {
                "question": question,
                "target": answer_of(decode(reply)),
                "completion": decode(ids),
                "rewards": {n: round(float(x[0, 0, g]), 4) for n, x in rewards.items()},
                "advantage": round(float(train_batch["advantages"][0, g]), 4),
            }
            for g, ids in enumerate(train_batch["completion_ids"][0, : self.stage.num_generations])
        ]

    def evaluate(self, params) -> dict[str, float]:
        """Accuracy of greedy answers to the questions on dev scenes, overall and by level."""
        sharded = sharding.shard_batch(self._eval_batch, self.context.mesh)
        completions, _ = self._rollout(params, sharded, jax.random.key(0), 1, 0.0)
        ids = sharding.to_host_local(completions.ids)
        is_correct = self.reward_completions(ids, self._eval_batch)["answer"][:, 0]
        levels = self._eval_batch["level"].reshape(-1)
        is_correct, levels = sharding.process_allgather((is_correct, levels))
        by_level = {name: is_correct[levels == i] for i, name in enumerate(LEVELS)}
        return {"accuracy": float(is_correct.mean())} | {
            name: float(values.mean()) for name, values in by_level.items() if len(values)
        }

    def _is_complete(self, completions: HostBatch) -> np.ndarray:
        """bool [B, Q x G, 1]: completions that end by themselves within `reply_tokens`."""
        is_eos = completions["completion_ids"] == self.tokenizer.eos_id
        return (is_eos & (completions["completion_mask"] > 0)).any(-1, keepdims=True)


def _has_zero_std(rewards: HostBatch) -> np.ndarray:
    """bool [B, Q]: groups with zero reward variance, whose advantages are all zero."""
    return rewards["total"].std(-1) < 1e-6


def _sources(batch: HostBatch, scene: int, classes) -> list[dict]:
    """Labels of the sources of a scene of a batch, for the evidence reward."""
    columns = zip(
        *(np.asarray(batch[f"source_{n}"])[scene] for n in ("label", "azimuth", "distance")),
        strict=True,
    )
    return [
        {"class": classes[int(label)], "azimuth": float(azimuth), "distance": float(distance)}
        for label, azimuth, distance in columns
        if label >= 0
    ]


def task(context: Context[config.GrpoStage]) -> loop.Task:
    """The trainer as a task of the training loop."""
    trainer = GrpoTrainer(context)
    return loop.Task("grpo", trainer.batches, trainer.step, trainer.evaluate)


def workload(stage: config.GrpoStage) -> Workload:
    """An update: prompts, read once for all their completions, through the decoder."""
    prompts = stage.batch_size * stage.questions_per_scene
    return Workload(
        prompts=prompts,
        completions=prompts * stage.num_generations,
        shares_prompts=True,
        uses_adapters=True,
        trainable=stage.trainable,
    )


def rollout_workload(stage: config.GrpoStage) -> Workload:
    """The rollout: the forward pass of `workload`, and the encoding of each scene."""
    return dataclasses.replace(workload(stage), scenes=stage.batch_size, trainable=())


STAGE = TrainingStage(
    name="grpo",
    title="stage 4: policy optimization (GRPO)",
    system="model after GRPO",
    examples=examples,
    objective=objective,
    task=task,
    workload=workload,
    update_batch=update_batch_shapes,
    rollout=Rollout(rollout_program, rollout_workload),
    parts=config.PARTS,
    depends_on=QUESTION_FIELDS,
    balances_questions=True,
)
