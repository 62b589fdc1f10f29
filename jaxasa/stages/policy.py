# SPDX-License-Identifier: Apache-2.0
"""Policy-optimization losses over groups of completions, with advantages, KL and TIS.

A loss takes, for R completions of at most L tokens:
    logps [R, L]       per-token log-probabilities under the current policy
    old_logps [R, L]   the same under the behaviour policy
    advantages [R]
    mask [R, L]        1 for tokens in the loss: up to and including the end of sequence
and returns a scalar. With the ratio r = exp(logps - old_logps) per token:

    grpo     min(r A, clip(r) A), mean over a completion's tokens, then over completions
             (arXiv:2402.03300, eq. 3)
    dr_grpo  the same, divided by R x L, so that neither long answers nor easy prompts weigh more;
             its advantages are not divided by the group's standard deviation (arXiv:2503.20783)
    dapo     the same with a wider clip above, divided by the number of all unmasked tokens
             (arXiv:2503.14476)
    gspo     one r per completion, exp of its mean log-ratio, and so a clip of 3e-4 below and
             4e-4 above; mean over completions (arXiv:2507.18071)
    sapo     f(r) A with f(r) = 4 / tau sigmoid(tau (r - 1)), tau 1.0 for A > 0 and 1.05
             otherwise, so that f'(1) = 1; reduced as grpo (arXiv:2511.20347)

clip: how far r may lie below and above 1. importance_weights [R, L]: multiply each token's
objective. kl_penalty [R, L]: added to each token's loss before the reduction.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxasa import config

TIS_CAP = 2.0
_STD_EPSILON = 1e-4  # as in TRL


def grpo(
    logps, old_logps, advantages, mask, *, clip=(0.2, 0.2), importance_weights=1.0, kl_penalty=0.0
):
    """GRPO: mean over tokens, then over completions."""
    objective = _clipped_objective(jnp.exp(logps - old_logps), advantages, clip)
    return _mean_per_completion(kl_penalty - importance_weights * objective, mask)


def dr_grpo(
    logps, old_logps, advantages, mask, *, clip=(0.2, 0.2), importance_weights=1.0, kl_penalty=0.0
):
    """Dr. GRPO: sum over tokens divided by R x L."""
    objective = _clipped_objective(jnp.exp(logps - old_logps), advantages, clip)
    return ((kl_penalty - importance_weights * objective) * mask).sum() / mask.size


def dapo(
    logps, old_logps, advantages, mask, *, clip=(0.2, 0.28), importance_weights=1.0, kl_penalty=0.0
):
    """DAPO: mean over all unmasked tokens."""
    objective = _clipped_objective(jnp.exp(logps - old_logps), advantages, clip)
    return ((kl_penalty - importance_weights * objective) * mask).sum() / jnp.maximum(mask.sum(), 1)


def gspo(
    logps, old_logps, advantages, mask, *, clip=(3e-4, 4e-4), importance_weights=1.0, kl_penalty=0.0
):
    """GSPO: one clipped ratio per completion; mean over completions."""
    log_ratio = ((logps - old_logps) * mask).sum(-1) / _lengths(mask)
    objective = _clipped_objective(jnp.exp(log_ratio)[:, None], advantages, clip)
    return _mean_per_completion(kl_penalty - importance_weights * objective, mask)


def sapo(
    logps, old_logps, advantages, mask, *, tau=(1.0, 1.05), importance_weights=1.0, kl_penalty=0.0
):
    """SAPO: a soft gate instead of a clip; `tau` for positive advantages and for others."""
    advantages = advantages[:, None]
    slope = jnp.where(advantages > 0, *tau)
    gate = 4 / slope * jax.nn.sigmoid(slope * (jnp.exp(logps - old_logps) - 1))
    return _mean_per_completion(kl_penalty - importance_weights * gate * advantages, mask)


LOSSES: dict[str, Callable] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "dapo": dapo,
    "gspo": gspo,
    "sapo": sapo,
}


def loss_of(stage: config.GrpoStage) -> Callable:
    """The loss named by `stage.loss`, with `stage.clip_ratio` if that is set."""
    loss = LOSSES[stage.loss]
    if stage.clip_ratio is None:
        return loss
    pair = stage.clip_ratio if isinstance(stage.clip_ratio, tuple) else (stage.clip_ratio,) * 2
    return functools.partial(loss, clip=pair)


def scales_rewards(stage: config.GrpoStage) -> bool:
    """Whether advantages are divided by the group's standard deviation: all but Dr. GRPO's."""
    return stage.loss != "dr_grpo" if stage.scale_rewards is None else stage.scale_rewards


def group_advantages(rewards: np.ndarray, scale_rewards: bool) -> np.ndarray:
    """rewards [B x Q, G] -> rewards minus the group's mean, [B x Q, G].

    scale_rewards: divides them by the group's standard deviation (of a sample: ddof 1) + 1e-4.
    """
    centred = rewards - rewards.mean(1, keepdims=True)
    if not scale_rewards:
        return centred
    return centred / (rewards.std(1, ddof=1, keepdims=True) + _STD_EPSILON)


def kl_k3(logps, ref_logps) -> jax.Array:
    """Per-token estimate of KL(policy || reference), never negative: x - log x - 1 of the ratio
    x = reference / policy (k3 of Schulman, "Approximating KL divergence", 2020)."""
    log_ratio = ref_logps - logps
    return jnp.exp(log_ratio) - log_ratio - 1


def tis_weight(old_logps, sampler_logps) -> jax.Array:
    """Truncated importance-sampling weight per token: min(exp(old_logps - sampler_logps), 2).

    In bf16, sampler and learner round differently although their weights are the same
    (https://fengyao.notion.site/off-policy-rl). Has no gradient.
    """
    return jax.lax.stop_gradient(jnp.minimum(jnp.exp(old_logps - sampler_logps), TIS_CAP))


def _clipped_objective(ratio, advantages, clip) -> jax.Array:
    """PPO's clipped objective min(r A, clip(r) A): ratio [R, L] or [R, 1], advantages [R]."""
    low, high = clip
    clipped = jnp.clip(ratio, 1.0 - low, 1.0 + high)
    return jnp.minimum(ratio * advantages[:, None], clipped * advantages[:, None])


def _mean_per_completion(losses, mask) -> jax.Array:
    return ((losses * mask).sum(-1) / _lengths(mask)).mean()


def _lengths(mask) -> jax.Array:
    """Unmasked tokens per completion; 1 for one that is masked altogether, whose sum is 0."""
    return jnp.maximum(mask.sum(-1), 1)
