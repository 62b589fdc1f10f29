"""Losses of policy optimisation over groups of completions, and what they are made of.

A loss takes the log-probabilities of R completions of at most C tokens: `logps` under the policy
that learns and `behaviour` under the one that spoke [R, C], `advantages` [R], `mask` [R, C] (1 to
and with the end of sequence), and returns a scalar. With r = exp(logps - behaviour) a token:

    grpo     min(r A, clip(r) A), mean over a completion's tokens, then over completions
             (arXiv:2402.03300)
    dr_grpo  the same, divided by R x C: neither long answers nor easy prompts weigh more; its
             advantages are not divided by the group's deviation (arXiv:2503.20783)
    dapo     the same with a wider clip above, divided by the number of all active tokens
             (arXiv:2503.14476)
    gspo     one r a completion, exp of its mean log-ratio, so that its clip is 3e-4 below and
             4e-4 above; mean over completions (arXiv:2507.18071)
    sapo     f(r) A with f(r) = 4 / tau sigmoid(tau (r - 1)), tau 1.0 where A > 0 and 1.05
             elsewhere, so that f'(1) = 1; reduced as grpo (arXiv:2511.20347)

`clip` is how far r may lie below and above 1. `weight` [R, C] multiplies each token's gain, and
`penalty` [R, C] is added to its loss before it is reduced; both take part in no gradient but
through their own arrays.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxasa import config

RATIO_LIMIT = 2.0
_TINY = 1e-4  # added to the deviation of a group, as in TRL


def grpo(logps, behaviour, advantages, mask, *, clip=(0.2, 0.2), weight=1.0, penalty=0.0):
    """Mean over tokens, then over completions."""
    gains = _clipped(jnp.exp(logps - behaviour), advantages, clip)
    return _by_completion(penalty - weight * gains, mask)


def dr_grpo(logps, behaviour, advantages, mask, *, clip=(0.2, 0.2), weight=1.0, penalty=0.0):
    """Sum over tokens divided by R x C."""
    gains = _clipped(jnp.exp(logps - behaviour), advantages, clip)
    return ((penalty - weight * gains) * mask).sum() / mask.size


def dapo(logps, behaviour, advantages, mask, *, clip=(0.2, 0.28), weight=1.0, penalty=0.0):
    """Mean over all active tokens."""
    gains = _clipped(jnp.exp(logps - behaviour), advantages, clip)
    return ((penalty - weight * gains) * mask).sum() / jnp.maximum(mask.sum(), 1)


def gspo(logps, behaviour, advantages, mask, *, clip=(3e-4, 4e-4), weight=1.0, penalty=0.0):
    """One ratio a completion, clipped; mean over completions."""
    log_ratio = ((logps - behaviour) * mask).sum(-1) / _lengths(mask)
    gains = _clipped(jnp.exp(log_ratio)[:, None], advantages, clip)
    return _by_completion(penalty - weight * gains, mask)


def sapo(logps, behaviour, advantages, mask, *, tau=(1.0, 1.05), weight=1.0, penalty=0.0):
    """A soft gate instead of a clip; `tau` where the advantage is positive, and elsewhere."""
    advantages = advantages[:, None]
    slope = jnp.where(advantages > 0, *tau)
    gate = 4 / slope * jax.nn.sigmoid(slope * (jnp.exp(logps - behaviour) - 1))
    return _by_completion(penalty - weight * gate * advantages, mask)


LOSSES: dict[str, Callable] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "dapo": dapo,
    "gspo": gspo,
    "sapo": sapo,
}


def loss_of(stage: config.GrpoStage) -> Callable:
    """The loss that `stage.loss` names, with the stage's clip where it has one of its own."""
    loss = LOSSES[stage.loss]
    if stage.clip_ratio is None:
        return loss
    pair = stage.clip_ratio if isinstance(stage.clip_ratio, tuple) else (stage.clip_ratio,) * 2
    return functools.partial(loss, clip=pair)


def advantages(rewards: np.ndarray, by_deviation: bool) -> np.ndarray:
    """rewards [P, G] -> R - mean(R), divided by std(R) + 1e-4 (ddof 1) where `scale_rewards`."""
    centred = rewards - rewards.mean(1, keepdims=True)
    return centred / (rewards.std(1, ddof=1, keepdims=True) + _TINY) if by_deviation else centred


def k3(logps, reference) -> jax.Array:
    """Estimate of KL(policy || reference) a token, never negative: x - log x - 1 of the ratio
    x = reference / policy (Schulman, "Approximating KL divergence", 2020)."""
    log_ratio = reference - logps
    return jnp.exp(log_ratio) - log_ratio - 1


def truncated_ratio(logps, sampled) -> jax.Array:
    """How much likelier the learner finds what the sampler drew: a weight of at most 2.

    In bf16 the two differ in rounding although their weights are the same (truncated importance
    sampling, https://fengyao.notion.site/off-policy-rl).
    """
    return jax.lax.stop_gradient(jnp.minimum(jnp.exp(logps - sampled), RATIO_LIMIT))


def _clipped(ratio, advantages, clip) -> jax.Array:
    """min(r A, clip(r) A): ratio [R, C] or [R, 1], advantages [R]."""
    low, high = clip
    clipped = jnp.clip(ratio, 1.0 - low, 1.0 + high)
    return jnp.minimum(ratio * advantages[:, None], clipped * advantages[:, None])


def _by_completion(losses, mask) -> jax.Array:
    return ((losses * mask).sum(-1) / _lengths(mask)).mean()


def _lengths(mask) -> jax.Array:
    """Active tokens a completion; 1 for one that is masked altogether, whose sum is 0."""
    return jnp.maximum(mask.sum(-1), 1)
