"""Each loss against a slow one of loops and, where trl is installed, against TRL's own."""

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

R, C = 8, 6
CLIPS = {"grpo": (0.2, 0.2), "dr_grpo": (0.2, 0.2), "dapo": (0.2, 0.28), "gspo": (3e-4, 4e-4)}


def stage(**fields):
    fields = {"trainable": ()} | fields
    return config.GrpoStage(steps=1, batch_size=1, learning_rate=0.0, **fields)


def data(name, seed=0):
    """Log-probabilities whose ratios are not 1, some of them clipped and some not, on either side.

    Completions have all lengths; the last is masked altogether.
    """
    rng = np.random.default_rng(seed)
    behaviour = rng.normal(-2, 1, (R, C))
    spread = 1e-3 if name == "gspo" else 0.6
    logps = behaviour + rng.uniform(-spread, spread, (R, C))
    lengths = [6, 1, 3, 5, 6, 2, 4, 0]
    mask = (np.arange(C) < np.array(lengths)[:, None]).astype(np.float64)
    advantages = np.array([1.3, -0.7, 0.4, -1.9, -0.2, 0.9, 0.0, 1.0])
    reference = logps + rng.normal(0, 0.5, (R, C))
    weight = rng.uniform(0.5, 2.0, (R, C))
    return logps, behaviour, advantages, mask, reference, weight


def slow(name, logps, behaviour, advantages, mask, weight, penalty):
    """The loss, a token at a time, as the head of policy.py has it."""
    rows, tokens = [], 0.0
    for i in range(R):
        n = int(mask[i].sum())
        mean = sum(logps[i, :n] - behaviour[i, :n]) / max(n, 1)
        total, gain = 0.0, advantages[i]
        for t in range(n):
            ratio = np.exp(mean if name == "gspo" else logps[i, t] - behaviour[i, t])
            if name == "sapo":
                tau = 1.0 if gain > 0 else 1.05
                kept = 4 / tau / (1 + np.exp(-tau * (ratio - 1)))
            else:
                low, high = CLIPS[name]
                kept = min(ratio, 1 + high) if gain > 0 else max(ratio, 1 - low)
            total += penalty[i, t] - weight[i, t] * kept * gain
        rows.append(total / max(n, 1))
        tokens += total
    if name == "dapo":
        return tokens / mask.sum()
    return tokens / (R * C) if name == "dr_grpo" else sum(rows) / R


def slope(of, logps, step=1e-6):
    """Central differences of `of` by each log-probability."""
    out = np.zeros_like(logps)
    for at in np.ndindex(*logps.shape):
        moved = logps.copy()
        moved[at] += step
        above = of(moved)
        moved[at] -= 2 * step
        out[at] = (above - of(moved)) / (2 * step)
    return out


def ours(name, beta=0.0, weighted=False, **fields):
    """(value, gradient by logps) in float64 of what `loss_of` gives."""
    loss = policy.loss_of(stage(loss=name, **fields))
    with jax.enable_x64(True):
        logps, behaviour, advantages, mask, reference, weight = map(jnp.asarray, data(name))

        def of(logps):
            extra = {"penalty": beta * policy.k3(logps, reference)} if beta else {}
            extra |= {"weight": weight} if weighted else {}
            return loss(logps, behaviour, advantages, mask, **extra)

        value, gradient = jax.value_and_grad(of)(logps)
        return float(value), np.asarray(gradient)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("name", policy.LOSSES)
def test_losses_and_gradients(name, beta, weighted):
    logps, behaviour, advantages, mask, reference, weight = data(name)
    weight = weight if weighted else np.ones_like(weight)

    def of(logps):
        gap = reference - logps
        penalty = beta * (np.exp(gap) - gap - 1)
        return slow(name, logps, behaviour, advantages, mask, weight, penalty)

    value, gradient = ours(name, beta, weighted)
    np.testing.assert_allclose(value, of(logps), rtol=1e-9)
    np.testing.assert_allclose(gradient, slope(of, logps), atol=2e-8)
    assert (gradient[mask == 0] == 0).all() and (gradient[mask == 1] != 0).sum() > 5
    if name in CLIPS and not beta:
        assert ((gradient == 0) & (mask == 1) & (advantages != 0)[:, None]).sum() >= 3, "no clip"


def test_losses_differ_where_ratios_are_not_1_and_gradients_agree_where_they_are():
    values = {name: ours(name)[0] for name in policy.LOSSES if name != "gspo"}
    assert len({round(v, 6) for v in values.values()}) == len(values)
    logps, _, advantages, _, _, _ = data("grpo")
    whole = np.ones_like(logps)
    with jax.enable_x64(True):
        slopes = [
            jax.grad(loss)(jnp.asarray(logps), jnp.asarray(logps), advantages, whole)
            for loss in policy.LOSSES.values()
        ]
    for found in slopes[1:]:
        np.testing.assert_allclose(found, slopes[0], rtol=1e-12)


def test_a_stage_may_set_its_own_clip():
    logps, behaviour, advantages, mask, *_ = data("grpo")
    with jax.enable_x64(True):
        for name in CLIPS:
            wide = policy.loss_of(stage(loss=name, clip_ratio=(0.1, 0.5)))
            narrow = policy.loss_of(stage(loss=name, clip_ratio=0.1))
            plain = policy.LOSSES[name]
            values = []
            for loss, clip in ((wide, (0.1, 0.5)), (narrow, (0.1, 0.1))):
                values.append(float(loss(logps, behaviour, advantages, mask)))
                assert values[-1] == float(plain(logps, behaviour, advantages, mask, clip=clip))
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
        ({"questions": 0}, "questions"),
        ({"questions": 1.5}, "questions"),
        ({"epochs": 0}, "epochs"),
        ({"epochs": 1.5}, "epochs"),
        ({"kl_weight": -1.0}, "kl_weight"),
        ({"by_deviation": "yes"}, "by_deviation"),
        ({"mask_truncated": None}, "mask_truncated"),
        ({"resample": -1}, "resample"),
        ({"resample": 1, "levels": ((1, 0, 0), (0, 0, 1))}, "resample is 1, expected 0 where"),
        ({"resample": 1, "easiest": (0.5, 1.0)}, "resample is 1, expected 0 where"),
        ({"reference": "sft"}, "GrpoStage.ref_policy is 'sft', expected start or base"),
        (
            {"reference": "base", "trainable": ("lora/.*", "decoder/.*")},
            "GrpoStage.ref_policy is 'base', expected start where decoder/ is trained",
        ),
    ],
)
def test_bad_settings(fields, words):
    with pytest.raises(ConfigError, match="GrpoStage.") as error:
        stage(**fields)
    assert words in str(error.value)


def test_every_loss_that_can_be_set_is_there():
    assert tuple(policy.LOSSES) == config.POLICY_LOSSES


def test_advantages():
    rewards = np.array([[1.0, 0.0, 0.0, 1.0], [0.5, 0.5, 0.5, 0.5]])
    plain = np.array([0.5, -0.5, -0.5, 0.5])
    np.testing.assert_array_equal(policy.advantages(rewards, False), [plain, 0 * plain])
    # The sample deviation of the first group is sqrt(4 x 0.25 / 3).
    scaled = plain / (3**-0.5 + 1e-4)
    np.testing.assert_allclose(policy.advantages(rewards, True), [scaled, 0 * plain])


logps_of = st.lists(st.floats(-20, 0), min_size=4, max_size=4)


@given(logps_of, st.floats(-2, 2))
def test_k3_is_never_negative_and_0_for_the_same(logps, shift):
    logps = jnp.asarray(logps)
    assert (policy.k3(logps, logps) == 0).all()
    assert (policy.k3(logps, logps + shift) >= -1e-6).all()


def test_k3_estimates_the_divergence():
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.3, 0.3, 0.4])
    mean = (p * np.asarray(policy.k3(np.log(p), np.log(q)))).sum()
    assert mean == pytest.approx((p * np.log(p / q)).sum(), rel=1e-6)


def test_truncated_ratio():
    learner, sampler = jnp.log(jnp.array([[0.1, 0.5, 0.9], [0.2, 0.5, 0.1]]))
    found = policy.truncated_ratio(learner, sampler)
    np.testing.assert_allclose(found, [0.5, 1.0, 2.0], rtol=1e-6)
    assert (jax.grad(lambda x: policy.truncated_ratio(x, 0.0 * x).sum())(jnp.ones(3)) == 0).all()


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
    logps, behaviour, advantages, mask, reference, weight = values
    logps.requires_grad_()
    standin = types.SimpleNamespace(
        loss_type=kind,
        importance_sampling_level=level,
        epsilon_low=low,
        epsilon_high=high,
        beta=beta,
        max_completion_length=C,
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
        _get_per_token_logps_and_entropies=lambda *_, **__: (logps, torch.zeros(R, C), None),
    )
    inputs = {
        "prompt_ids": torch.zeros(R, 1, dtype=torch.long),
        "prompt_mask": torch.ones(R, 1, dtype=torch.long),
        "completion_ids": torch.zeros(R, C, dtype=torch.long),
        "completion_mask": mask,
        "advantages": advantages,
        "old_per_token_logps": behaviour,
        "ref_per_token_logps": reference,
        "importance_sampling_ratio": weight,
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
    found, slopes = ours(name, beta, weighted)
    # TRL keeps the temperatures of sapo in float32.
    np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(slopes, gradient, rtol=1e-5, atol=1e-7)
    assert (gradient != 0).sum() > 5
