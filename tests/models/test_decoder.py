# SPDX-License-Identifier: Apache-2.0
import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxasa.config import Sampling
from jaxasa.models import decoder, lm, sample
from jaxasa.models.asa import ASA, without_adapters

PAD, AUDIO, NEW = 0, 2, 10
LENGTHS = (9, 5, 7)
TEMPERATURE = 0.7


def padded_prompts():
    """int32 [3, 9], padded on the left; each starts with three audio tokens."""
    ids = np.random.default_rng(1).integers(3, 480, (3, 9)).astype(np.int32)
    for row, length in zip(ids, LENGTHS, strict=True):
        row[: 9 - length] = PAD
        row[9 - length : 12 - length] = AUDIO
    return ids


def audio_embeds():
    return np.random.default_rng(2).normal(size=(3, 3, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def forward(tiny):
    """Logits [B, T, V] of ids [B, T] in one pass, with or without adapters."""

    @functools.partial(jax.jit, static_argnums=3)
    def run(params, ids, mask, adapted=True):
        params = params if adapted else without_adapters(params)
        x = tiny.asa.embed(params, ids, None, AUDIO)
        hidden, *_ = tiny.asa.forward(params, x, mask)
        return hidden @ tiny.asa.unembedding(params).T

    return run


@pytest.fixture(scope="module")
def generate(tiny):
    @functools.partial(jax.jit, static_argnums=(3, 4, 5))
    def run(params, prompts, embeds, group, temperature, new, key, eos):
        special_tokens = sample.SpecialTokenIds(PAD, eos, AUDIO, answer=-1)
        return sample.generate(
            *(tiny.asa, params, prompts, embeds, key, special_tokens, Sampling(temperature)),
            num_generations=group,
            max_new_tokens=new,
        )

    return run


def test_logits_are_those_of_qwen2(tiny, forward):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from jaxasa.hf import keymap, load

    d = tiny.model.decoder
    settings = transformers.Qwen2Config(
        vocab_size=d.vocab_size,
        hidden_size=d.width,
        intermediate_size=d.intermediate_size,
        num_hidden_layers=d.layers,
        num_attention_heads=d.heads,
        num_key_value_heads=d.kv_heads,
        head_dim=d.head_dim,
        rms_norm_eps=d.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": d.rope_theta},
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    twin = transformers.Qwen2ForCausalLM(settings).eval()
    leaves = load.flatten_params({"decoder": tiny.params["decoder"]})
    tensors = {name: torch.tensor(t) for name, t in keymap.to_hf(leaves).items()}
    missing, surplus = twin.load_state_dict(tensors, strict=False)
    assert missing == ["lm_head.weight"] and not surplus
    twin.tie_weights()

    ids = padded_prompts()
    valid = ids != PAD
    with torch.no_grad():
        expected = twin(
            input_ids=torch.tensor(ids).long(),
            attention_mask=torch.tensor(valid).long(),
            position_ids=torch.tensor(np.maximum(np.cumsum(valid, 1) - 1, 0)),
        ).logits.numpy()
    logits = np.asarray(forward(tiny.params, ids, valid, False))
    assert expected[valid].std() > 0.5
    np.testing.assert_allclose(logits[valid], expected[valid], atol=1e-4)


def test_later_tokens_and_padding_change_nothing(tiny, forward):
    ids = padded_prompts()
    valid = ids != PAD
    before = np.asarray(forward(tiny.params, ids, valid))
    other = np.where(valid, ids, 77)
    other[:, -1] = 78
    after = np.asarray(forward(tiny.params, other, valid))
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(after[row, -length:-1], before[row, -length:-1], atol=1e-5)
        assert np.abs(after[row, -1] - before[row, -1]).max() > 0.1
    # The row of five tokens without its padding equals the padded one.
    short = np.asarray(forward(tiny.params, ids[1:2, 4:], valid[1:2, 4:]))
    np.testing.assert_allclose(short[0], before[1, 4:], atol=1e-5)


def test_adapters_add_a_b_and_nothing_if_b_is_zero(tiny, forward):
    ids = padded_prompts()
    valid = ids != PAD
    base = np.asarray(forward(tiny.params, ids, valid, False))
    layers = tiny.params["lora"]["layers"]
    zero = {n: {"a": x["a"], "b": np.zeros_like(x["b"])} for n, x in layers.items()}
    off = forward(tiny.params | {"lora": {"layers": zero}}, ids, valid)
    np.testing.assert_array_equal(np.asarray(off), base)

    on = np.asarray(forward(tiny.params, ids, valid))
    assert np.abs(on - base)[valid].max() > 0.1
    assert set(layers) == {"q", "k", "v", "o", "gate", "up", "down"}
    scale = tiny.model.lora.alpha / tiny.model.lora.rank
    decoder = dict(tiny.params["decoder"])
    decoder["layers"] = decoder["layers"] | {
        name: decoder["layers"][name]
        | {"kernel": decoder["layers"][name]["kernel"] + scale * x["a"] @ x["b"]}
        for name, x in layers.items()
    }
    merged = forward(tiny.params | {"decoder": decoder}, ids, valid, False)
    np.testing.assert_allclose(np.asarray(merged)[valid], on[valid], atol=1e-3)


def test_low_rank_matmul_has_the_gradients_of_its_products():
    keys = jax.random.split(jax.random.key(0), 4)
    x, a, b, g = map(jax.random.normal, keys, [(2, 3, 8), (8, 2), (2, 5), (2, 3, 5)])
    gradients = jax.grad(lambda *of: (decoder.low_rank_matmul(*of) * g).sum(), (0, 1, 2))(x, a, b)
    expected = jax.grad(lambda x, a, b: (x @ a @ b * g).sum(), (0, 1, 2))(x, a, b)
    for one, other in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def in_one_pass(tiny, completions, group):
    """Hidden states [R, L, D] that predict completions, by one pass over prompt and completion."""
    prompts = np.repeat(padded_prompts(), group, axis=0)
    ids, mask = (np.asarray(x).reshape(3 * group, -1) for x in (completions.ids, completions.mask))
    valid = np.concatenate([prompts != PAD, mask], 1)
    embeds = np.repeat(audio_embeds(), group, axis=0)
    # A sampled audio token has its own embedding: only those of the prompt are replaced.
    x = jnp.concatenate(
        [
            tiny.asa.embed(tiny.params, prompts, embeds, AUDIO),
            tiny.asa.embed(tiny.params, ids, None, AUDIO),
        ],
        axis=1,
    )
    hidden, *_ = jax.jit(tiny.asa.forward)(tiny.params, x, valid)
    return hidden[:, prompts.shape[1] - 1 : -1], ids, mask


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_gradients_match(tiny, remat):
    ids = jnp.asarray(padded_prompts())

    def gradients(model):
        asa = ASA(model)

        @jax.jit
        @jax.grad
        def of(params):
            x = asa.embed(params, ids, None, AUDIO)
            hidden, *_ = asa.forward(params, x, ids != PAD)
            scored = asa.score_completions(params, x, ids != PAD, x, ids != PAD)
            return (hidden**2).mean() + (scored**3).mean()

        return of(tiny.params)

    plain, rematerialized = (
        gradients(dataclasses.replace(tiny.model, remat=r)) for r in ("none", remat)
    )
    sizes = jax.tree.map(lambda x: float(jnp.abs(x).max()), plain["decoder"])
    assert min(jax.tree.leaves(sizes)) > 0
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), plain, rematerialized
    )


def test_greedy_decoding_with_kv_cache_equals_full_forward(tiny, generate):
    key = jax.random.key(0)
    completions = generate(tiny.params, padded_prompts(), audio_embeds(), 2, 0.0, NEW, key, -1)
    assert completions.ids.shape == completions.logps.shape == completions.mask.shape == (3, 2, NEW)
    assert np.asarray(completions.mask).all()
    hidden, ids, _ = in_one_pass(tiny, completions, 2)
    logps = np.asarray(jax.nn.log_softmax(hidden @ tiny.asa.unembedding(tiny.params).T))
    assert (logps.argmax(-1) == ids).all() and len(np.unique(ids)) > 5
    chosen = np.take_along_axis(logps, ids[..., None], -1)[..., 0]
    np.testing.assert_allclose(np.asarray(completions.logps).reshape(6, -1), chosen, atol=1e-4)


def test_samples_differ_and_have_their_log_probabilities(tiny, generate):
    arguments = (tiny.params, padded_prompts(), audio_embeds(), 4, TEMPERATURE, NEW)
    free = generate(*arguments, jax.random.key(3), -1)
    assert len({tuple(row) for row in np.asarray(free.ids).reshape(12, NEW)}) == 12
    other = generate(*arguments, jax.random.key(4), -1)
    assert (np.asarray(free.ids) != np.asarray(other.ids)).mean() > 0.3

    # The fourth token of the second prompt's first completion becomes the end of sequence.
    eos = int(free.ids[1, 0, 3])
    completions = generate(*arguments, jax.random.key(3), eos)
    ids, mask = np.asarray(completions.ids), np.asarray(completions.mask)
    first = np.where((ids == eos).any(-1), (ids == eos).argmax(-1), NEW - 1)
    assert first[1, 0] <= 3 and mask.any(-1).all()
    np.testing.assert_array_equal(mask, np.arange(NEW) <= first[..., None])
    assert (ids[~mask] == PAD).all() and (np.asarray(completions.logps)[~mask] == 0).all()
    np.testing.assert_array_equal(ids[mask], np.asarray(free.ids)[mask])

    hidden, flat, mask = in_one_pass(tiny, completions, 4)
    expected, _ = lm.token_logps(hidden, tiny.asa.unembedding(tiny.params), flat, TEMPERATURE)
    logps = np.asarray(completions.logps).reshape(12, NEW)
    np.testing.assert_allclose(logps[mask], np.asarray(expected)[mask], atol=1e-4)


def test_score_completions_equals_separate_forward_passes(tiny):
    """Hidden states and the adapters' gradient; the second completion of a prompt is shorter."""
    rng = np.random.default_rng(6)
    mask = np.ones((3, 2, 5), bool)
    mask[:, 1, 3:] = False
    ids = np.where(mask, rng.integers(3, 480, mask.shape), PAD).astype(np.int32)
    completions = sample.Completions(ids, np.zeros(ids.shape), mask)
    flat, keep, prompts = ids.reshape(6, 5), mask.reshape(6, 5), padded_prompts()
    goal = rng.normal(size=(6, 5, 32)).astype(np.float32) * keep[..., None]

    def shared(params):
        x = tiny.asa.embed(params, prompts, audio_embeds(), AUDIO)
        completion = tiny.asa.embed(params, flat, None, AUDIO)
        return tiny.asa.score_completions(params, x, prompts != PAD, completion, keep)

    def separate(params):
        return in_one_pass(types.SimpleNamespace(asa=tiny.asa, params=params), completions, 2)[0]

    def value_and_grad(hidden_states):
        def scalar(lora):
            hidden = hidden_states({**tiny.params, "lora": lora})
            return (hidden * goal).sum(), hidden

        (_, hidden), gradient = jax.jit(jax.value_and_grad(scalar, has_aux=True))(
            tiny.params["lora"]
        )
        return np.asarray(hidden)[keep], gradient

    (hidden, gradient), (expected, expected_gradient) = map(value_and_grad, (shared, separate))
    np.testing.assert_allclose(hidden, expected, atol=1e-4)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected_gradient))
    for one, other in zip(*map(jax.tree.leaves, (gradient, expected_gradient)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * scale)


def test_samples_come_from_the_tempered_distribution(tiny, forward, generate):
    prompts, count = padded_prompts()[:1], 3000
    key = jax.random.key(5)
    completions = generate(tiny.params, prompts, None, count, TEMPERATURE, 1, key, -1)
    logits = np.asarray(forward(tiny.params, prompts, prompts != PAD))[0, -1]
    logps = np.asarray(jax.nn.log_softmax(logits / TEMPERATURE))
    p = np.exp(logps)
    ids = np.asarray(completions.ids)[0, :, 0]
    mean, spread = (p * logps).sum(), np.sqrt((p * logps**2).sum() - (p * logps).sum() ** 2)
    assert abs(logps[ids].mean() - mean) < 5 * spread / count**0.5
    top = p.argmax()
    assert abs((ids == top).mean() - p[top]) < 5 * (p[top] / count) ** 0.5
