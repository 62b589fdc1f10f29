# SPDX-License-Identifier: Apache-2.0
"""Each loss against a slow one of loops and, if trl is installed, against TRL's own."""

import collections
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxasa import config
from jaxasa.config import ConfigError
from jaxasa.stages import policy

R, L = 8, 6
CLIPS = {"grpo": (0.2, 0.2), "dr_grpo": (0.2, 0.2), "dapo": (0.2, 0.28), "gspo": (3e-4, 4e-4)}


def stage(**fields):
    defaults = {"steps": 1, "batch_size": 1, "learning_rate": 0.0, "trainable": ()}
    return config.GrpoStage(**defaults | fields)


def data(name, seed=0):
    """Log-probabilities whose ratios are not 1, some of them clipped and some not, on either side.

    Completions have all lengths; the last is masked altogether.
    """
    rng = np.random.default_rng(seed)
    old_logps = rng.normal(-2, 1, (R, L))
    spread = 1e-3 if name == "gspo" else 0.6
    logps = old_logps + rng.uniform(-spread, spread, (R, L))
    lengths = [6, 1, 3, 5, 6, 2, 4, 0]
    mask = (np.arange(L) < np.array(lengths)[:, None]).astype(np.float64)
    advantages = np.array([1.3, -0.7, 0.4, -1.9, -0.2, 0.9, 0.0, 1.0])
    ref_logps = logps + rng.normal(0, 0.5, (R, L))
    weights = rng.uniform(0.5, 2.0, (R, L))
    return logps, old_logps, advantages, mask, ref_logps, weights


def slow(name, logps, old_logps, advantages, mask, weights, penalty):
    """The loss, a token at a time, as the head of policy.py has it."""
    rows, tokens = [], 0.0
    for i in range(R):
        n = int(mask[i].sum())
        mean = sum(logps[i, :n] - old_logps[i, :n]) / max(n, 1)
        total, gain = 0.0, advantages[i]
        for t in range(n):
            ratio = np.exp(mean if name == "gspo" else logps[i, t] - old_logps[i, t])
            if name == "sapo":
                tau = 1.0 if gain > 0 else 1.05
                kept = 4 / tau / (1 + np.exp(-tau * (ratio - 1)))
            else:
                low, high = CLIPS[name]
                kept = min(ratio, 1 + high) if gain > 0 else max(ratio, 1 - low)
            total += penalty[i, t] - weights[i, t] * kept * gain
        rows.append(total / max(n, 1))
        tokens += total
    if name == "dapo":
        return tokens / mask.sum()
    return tokens / (R * L) if name == "dr_grpo" else sum(rows) / R


def numeric_gradient(of, logps, step=1e-6):
    """Central differences of `of` by each log-probability."""
    out = np.zeros_like(logps)
    for at in np.ndindex(*logps.shape):
        moved = logps.copy()
        moved[at] += step
        above = of(moved)
        moved[at] -= 2 * step
        out[at] = (above - of(moved)) / (2 * step)
    return out


def jax_loss(name, beta=0.0, weighted=False, **fields):
    """(value, gradient by logps) in float64 of what `loss_of` gives."""
    loss = policy.loss_of(stage(loss=name, **fields))
    with jax.enable_x64(True):
        logps, old_logps, advantages, mask, ref_logps, weights = map(jnp.asarray, data(name))

        def of(logps):
            extra = {"kl_penalty": beta * policy.kl_k3(logps, ref_logps)} if beta else {}
            extra |= {"importance_weights": weights} if weighted else {}
            return loss(logps, old_logps, advantages, mask, **extra)

        value, gradient = jax.value_and_grad(of)(logps)
        return float(value), np.asarray(gradient)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("name", policy.LOSSES)
def test_losses_and_gradients_equal_loops(name, beta, weighted):
    logps, old_logps, advantages, mask, ref_logps, weights = data(name)
    weights = weights if weighted else np.ones_like(weights)

    def of(logps):
        gap = ref_logps - logps
        penalty = beta * (np.exp(gap) - gap - 1)
        return slow(name, logps, old_logps, advantages, mask, weights, penalty)

    value, gradient = jax_loss(name, beta, weighted)
    np.testing.assert_allclose(value, of(logps), rtol=1e-9)
    np.testing.assert_allclose(gradient, numeric_gradient(of, logps), atol=2e-8)
    assert (gradient[mask == 0] == 0).all() and (gradient[mask == 1] != 0).sum() > 5
    if name in CLIPS and not beta:
        assert ((gradient == 0) & (mask == 1) & (advantages != 0)[:, None]).sum() >= 3, "no clip"


def test_losses_differ_off_policy_and_their_gradients_agree_on_policy():
    values = {name: jax_loss(name)[0] for name in policy.LOSSES if name != "gspo"}
    assert len({round(v, 6) for v in values.values()}) == len(values)
    logps, _, advantages, _, _, _ = data("grpo")
    whole = np.ones_like(logps)
    with jax.enable_x64(True):
        gradients = [
            jax.grad(loss)(jnp.asarray(logps), jnp.asarray(logps), advantages, whole)
            for loss in policy.LOSSES.values()
        ]
    for gradient in gradients[1:]:
        np.testing.assert_allclose(gradient, gradients[0], rtol=1e-12)


def test_clip_ratio_of_the_stage_replaces_that_of_the_loss():
    logps, old_logps, advantages, mask, *_ = data("grpo")
    with jax.enable_x64(True):
        for name in CLIPS:
            wide = policy.loss_of(stage(loss=name, clip_ratio=(0.1, 0.5)))
            narrow = policy.loss_of(stage(loss=name, clip_ratio=0.1))
            plain = policy.LOSSES[name]
            values = []
            for loss, clip in ((wide, (0.1, 0.5)), (narrow, (0.1, 0.1))):
                values.append(float(loss(logps, old_logps, advantages, mask)))
                assert values[-1] == float(plain(logps, old_logps, advantages, mask, clip=clip))
            assert values[0] != values[1]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"loss": "ppo"}, "loss is 'ppo', expected grpo or dr_grpo"),
        ({"trainable": ("lora/.*", "projector/.*")}, "trainable is 'projector/.*', expected"),
        ({"loss": "sapo", "clip_ratio": 0.2}, "sapo has no clip"),
        ({"clip_ratio": (0.2, 0.2, 0.2)}, "clip_ratio"),
        ({"clip_ratio": (1.2, 0.2)}, "clip_ratio"),
        ({"clip_ratio": 0.0}, "clip_ratio"),
        ({"questions_per_scene": 0}, "questions_per_scene"),
        ({"questions_per_scene": 1.5}, "questions_per_scene"),
        ({"num_iterations": 0}, "num_iterations"),
        ({"num_iterations": 1.5}, "num_iterations"),
        ({"kl_weight": -1.0}, "kl_weight"),
        ({"scale_rewards": "yes"}, "scale_rewards"),
        ({"mask_truncated_completions": None}, "mask_truncated_completions"),
        ({"dynamic_sampling_rounds": -1}, "dynamic_sampling_rounds"),
        (
            {"dynamic_sampling_rounds": 1, "level_mix": ((1, 0, 0), (0, 0, 1))},
            "dynamic_sampling_rounds is 1, expected 0 if GrpoStage.level_mix changes",
        ),
        ({"level_mix": ((1.0, 0.0), (0.0, 1.0))}, "GrpoStage.level_mix"),
        ({"level_mix": ((0.5, 0.5, 0.5), (0, 0, 1))}, "GrpoStage.level_mix"),
        ({"batch_size": 4, "grad_accum_steps": 3}, "grad_accum_steps is 3, expected a divisor"),
        ({"ref_policy": "sft"}, "GrpoStage.ref_policy is 'sft', expected start or base"),
        (
            {"ref_policy": "base", "trainable": ("lora/.*", "decoder/.*")},
            "GrpoStage.ref_policy is 'base', expected start if decoder/ is trained",
        ),
    ],
)
def test_invalid_options_are_named(fields, words):
    with pytest.raises(ConfigError, match="GrpoStage.") as error:
        stage(**fields)
    assert words in str(error.value)


def test_every_loss_of_the_config_exists():
    assert tuple(policy.LOSSES) == config.POLICY_LOSSES


def test_group_advantages_are_centred_and_scaled_on_request():
    rewards = np.array([[1.0, 0.0, 0.0, 1.0], [0.5, 0.5, 0.5, 0.5]])
    plain = np.array([0.5, -0.5, -0.5, 0.5])
    np.testing.assert_array_equal(policy.group_advantages(rewards, False), [plain, 0 * plain])
    # The sample deviation of the first group is sqrt(4 x 0.25 / 3).
    scaled = plain / (3**-0.5 + 1e-4)
    np.testing.assert_allclose(policy.group_advantages(rewards, True), [scaled, 0 * plain])


logps_of = st.lists(st.floats(-20, 0), min_size=4, max_size=4)


@given(logps_of, st.floats(-2, 2))
def test_kl_k3_is_never_negative_and_0_for_equal_policies(logps, shift):
    logps = jnp.asarray(logps)
    assert (policy.kl_k3(logps, logps) == 0).all()
    assert (policy.kl_k3(logps, logps + shift) >= -1e-6).all()


def test_kl_k3_estimates_the_divergence():
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.3, 0.3, 0.4])
    mean = (p * np.asarray(policy.kl_k3(np.log(p), np.log(q)))).sum()
    assert mean == pytest.approx((p * np.log(p / q)).sum(), rel=1e-6)


def test_tis_weight_is_capped_and_has_no_gradient():
    old_logps, sampler_logps = jnp.log(jnp.array([[0.1, 0.5, 0.9], [0.2, 0.5, 0.1]]))
    weights = policy.tis_weight(old_logps, sampler_logps)
    np.testing.assert_allclose(weights, [0.5, 1.0, 2.0], rtol=1e-6)
    assert (jax.grad(lambda x: policy.tis_weight(x, 0.0 * x).sum())(jnp.ones(3)) == 0).all()


# -- TRL -----------------------------------------------------------------------------------


def trl_loss(name, beta, weighted):
    """(value, gradient by log-probabilities) of GRPOTrainer's loss on `data(name)`.

    Its method reads a trainer's settings and asks it for the model's log-probabilities: a
    stand-in without a model gives both.
    """
    torch = pytest.importorskip("torch")
    trainer = pytest.importorskip("trl.trainer.grpo_trainer")
    kind = "grpo" if name == "gspo" else name
    level = "sequence" if name == "gspo" else "token"
    low, high = CLIPS.get(name, (0.2, 0.2))
    values = [torch.tensor(x, dtype=torch.float64) for x in data(name)]
    logps, old_logps, advantages, mask, ref_logps, weights = values
    logps.requires_grad_()
    standin = types.SimpleNamespace(
        loss_type=kind,
        importance_sampling_level=level,
        epsilon_low=low,
        epsilon_high=high,
        beta=beta,
        max_completion_length=L,
        args=types.SimpleNamespace(
            delta=None,
            sapo_temperature_pos=1.0,
            sapo_temperature_neg=1.05,
            use_bias_correction_kl=False,
            steps_per_generation=1,
        ),
        accelerator=types.SimpleNamespace(
            num_processes=1, reduce=lambda x, reduction: x, gather=lambda x: x
        ),
        model=types.SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=weighted,
        vllm_importance_sampling_correction=weighted,
        _entropy_bonus_enabled=False,
        _metrics={"train": collections.defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (logps, torch.zeros(R, L), None),
    )
    inputs = {
        "prompt_ids": torch.zeros(R, 1, dtype=torch.long),
        "prompt_mask": torch.ones(R, 1, dtype=torch.long),
        "completion_ids": torch.zeros(R, L, dtype=torch.long),
        "completion_mask": mask,
        "advantages": advantages,
        "old_per_token_logps": old_logps,
        "ref_per_token_logps": ref_logps,
        "importance_sampling_ratio": weights,
        "num_items_in_batch": mask.sum(),
    }
    value = trainer.GRPOTrainer._compute_loss(standin, None, inputs)
    value.backward()
    return value.item(), logps.grad.numpy()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("name", policy.LOSSES)
def test_losses_and_gradients_equal_trl(name, beta, weighted):
    value, gradient = trl_loss(name, beta, weighted)
    jax_value, gradients = jax_loss(name, beta, weighted)
    # TRL keeps the temperatures of sapo in float32.
    np.testing.assert_allclose(jax_value, value, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(gradients, gradient, rtol=1e-5, atol=1e-7)
    assert (gradient != 0).sum() > 5
