# SPDX-License-Identifier: Apache-2.0
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from jaxasa.config import Sampling
from jaxasa.models import decoder, decoding, sample
from jaxasa.models.asa import ASA, without_adapters

PAD, AUDIO, NEW = 0, 2, 10
SPECIAL_TOKENS = sample.SpecialTokenIds(PAD, eos=-1, audio=AUDIO, answer=-1)
LENGTHS = (9, 5, 7)


def padded_prompts():
    """int32 [3, 9], padded on the left."""
    ids = np.random.default_rng(1).integers(3, 480, (3, 9)).astype(np.int32)
    for row, length in zip(ids, LENGTHS, strict=True):
        row[: 9 - length] = PAD
    return ids


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5, 6))
def generate(asa, params, key, group=1, temperature=0.0, top_k=0, top_p=1.0):
    sampling = Sampling(temperature, top_k, top_p)
    return sample.generate(
        *(asa, params, padded_prompts(), None, key, SPECIAL_TOKENS, sampling),
        num_generations=group,
        max_new_tokens=NEW,
    )


@pytest.fixture(scope="module")
def unrolled(tiny):
    """The tiny model with all layers unrolled."""
    return ASA(dataclasses.replace(tiny.model, unroll=2))


@pytest.fixture(scope="module")
def adapted(tiny):
    """Its parameters with adapters that differ from their initial values."""
    rng = np.random.default_rng(0)
    lora = jax.tree.map(
        lambda x: x + 0.1 * rng.normal(size=x.shape).astype(x.dtype), tiny.params["lora"]
    )
    return {**tiny.params, "lora": lora}


def test_unrolled_layers_sample_the_same(tiny, unrolled, adapted):
    key = jax.random.key(0)
    scanned = generate(tiny.asa, adapted, key, 2, 0.8)
    completions = generate(unrolled, adapted, key, 2, 0.8)
    assert (completions.ids != generate(unrolled, tiny.params, key, 2, 0.8).ids).any()
    np.testing.assert_array_equal(np.asarray(completions.ids), np.asarray(scanned.ids))
    np.testing.assert_allclose(completions.logps, scanned.logps, atol=1e-4)


@pytest.mark.parametrize("top_k, top_p", [(0, 0.6), (5, 1.0), (12, 0.8), (0, 1e-6), (500, 0.999)])
def test_filters_are_those_of_transformers(top_k, top_p):
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers").generation.logits_process
    logits = np.random.default_rng(0).normal(0, 2, (16, 50)).astype(np.float32)
    expected = torch.tensor(logits)
    if top_k:
        expected = processors.TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = processors.TopPLogitsWarper(top_p)(None, expected)
    filtered = np.asarray(sample.top_k_top_p_filter(jnp.asarray(logits), top_k, top_p))
    np.testing.assert_array_equal(filtered, expected.numpy())


def test_filters_by_hand():
    p = np.array([[0.1, 0.4, 0.05, 0.3, 0.15]])

    def remaining(**options):
        logits = sample.top_k_top_p_filter(jnp.log(p), **options)
        return np.flatnonzero(np.isfinite(logits[0])).tolist()

    assert remaining() == remaining(top_k=5) == remaining(top_k=9) == [0, 1, 2, 3, 4]
    assert remaining(top_k=2) == [1, 3] and remaining(top_k=1) == remaining(top_p=0.01) == [1]
    assert remaining(top_p=0.39) == [1] and remaining(top_p=0.41) == remaining(top_p=0.69) == [1, 3]
    assert remaining(top_p=0.75) == [1, 3, 4]
    # top_p counts within the tokens that top_k left: 0.4 of 0.7.
    assert remaining(top_k=2, top_p=0.56) == [1]


def test_filtered_samples_have_log_probabilities_of_the_filtered_distribution(tiny, unrolled):
    key = jax.random.key(1)
    few = generate(unrolled, tiny.params, key, 64, 3.0, 3)
    first = np.asarray(few.ids)[0, :, 0]
    assert len(set(first.tolist())) == 3
    # A token has the same log-probability in all rows, and the probabilities of three sum to 1.
    logps = {int(i): float(p) for i, p in zip(first, np.asarray(few.logps)[0, :, 0], strict=True)}
    assert sum(np.exp(list(logps.values()))) == pytest.approx(1, abs=1e-5)


def test_greedy_text_is_that_of_transformers(tiny, unrolled):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from jaxasa.hf import keymap, load
    from jaxasa.speed import decode

    twin = decode.torch_decoder(tiny.model.decoder, transformers).eval()
    tensors = keymap.to_hf(load.flatten_params({"decoder": tiny.params["decoder"]}))
    twin.load_state_dict({k: torch.tensor(np.asarray(t)) for k, t in tensors.items()}, strict=False)
    twin.tie_weights()
    ids = torch.tensor(padded_prompts()).long()
    twin.generation_config.eos_token_id = None
    expected = twin.generate(
        ids,
        attention_mask=(ids != PAD).long(),
        max_new_tokens=NEW,
        do_sample=False,
        pad_token_id=PAD,
    )
    base = {"decoder": tiny.params["decoder"]}
    completions = generate(unrolled, base, jax.random.key(0))
    np.testing.assert_array_equal(np.asarray(completions.ids)[:, 0], expected[:, 9:].numpy())


def test_stop_strings_end_rows_wherever_tokens_divide_them(tiny, unrolled):
    params, prompts, key = tiny.params, padded_prompts(), jax.random.key(4)
    start = sample.prefill(unrolled, params, prompts, None, SPECIAL_TOKENS, 1, NEW)
    steps = []

    @jax.jit
    def compiled(state, until):
        sampling = SPECIAL_TOKENS, Sampling(1.0)
        return sample.decode_until(unrolled, params, prompts, state, key, until, *sampling)

    def decode_until(state, until):
        steps.append(until)
        return compiled(state, until)

    def decode(ids):
        return "".join(f"<{i:03d}>" for i in ids if i != PAD)

    free = sample.decode_with_stop_strings(start, decode_until, decode)
    assert steps == [NEW] and all(len(text) == 5 * NEW for text in free)
    # Decoding in chunks gives the same.
    assert sample.decode_with_stop_strings(start, decode_until, decode, ["none"], chunk=3) == free
    assert steps[1:] == [3, 6, 9, 10]

    # From within the fourth token of the first row into its fifth; the third row's first token.
    across, whole = free[0][17:22], free[2][:5]
    stopped = sample.decode_with_stop_strings(start, decode_until, decode, [whole, across], chunk=3)
    for text, full in zip(stopped, free, strict=True):
        at = min([full.find(s) for s in (across, whole) if s in full], default=None)
        assert text == full[:at]
    assert stopped[0] == free[0][: free[0].find(across)] and stopped[2] == ""

    # Once all rows have stopped, no more is computed.
    steps.clear()
    assert sample.decode_with_stop_strings(start, decode_until, decode, ["<"], chunk=3) == [""] * 3
    assert steps == [3]


@given(
    arrays.arrays(np.float32, (3, 5), elements=st.sampled_from([-np.inf, -1.0, 0.0, 1.0, 2.0])),
)
def test_first_argmax_takes_the_first_of_equal_scores(scores):
    index = np.asarray(sample.first_argmax(jnp.asarray(scores)))
    assert index.dtype == np.int32
    np.testing.assert_array_equal(index, scores.argmax(-1))


def test_first_argmax_of_nan_is_a_valid_id():
    assert np.asarray(sample.first_argmax(jnp.full((2, 4), jnp.nan))).max() < 4


@pytest.mark.parametrize("count", [1, decoder.SMALL_BATCH_ROWS, decoder.SMALL_BATCH_ROWS + 1])
def test_small_batch_matmul_is_a_product(count):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(count, 1, 8)), rng.normal(size=(10, 8))
    pieces = [jnp.asarray(kernel[:3]), jnp.asarray(kernel[3:])]
    product = decoder.small_batch_matmul(jnp.asarray(x), pieces)
    np.testing.assert_allclose(product, x @ kernel.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype, merges, near", [("float32", True, 1e-4), ("bfloat16", False, 0.1)])
def test_decode_step_merges_adapters_in_float32_only(tiny, unrolled, adapted, dtype, merges, near):
    """Merging would round in bfloat16; either way the logits are those of scanned layers."""

    def logits(asa, params):
        asa = dataclasses.replace(asa, model=dataclasses.replace(asa.model, dtype=dtype))
        prompts = jnp.asarray(padded_prompts())
        mask = prompts != PAD
        state = sample.prefill(asa, params, prompts, None, SPECIAL_TOKENS, 1, 2)
        weights = decoding.prepare_weights(asa, params)
        has_adapters = "lora" in params and not merges
        assert weights is None or ("lora" in weights.layers[0]) == has_adapters
        x = asa.embed(params, jnp.array([[5], [6], [7]]), None, AUDIO)
        inputs = x, state.cache, mask.sum(1)[:, None], mask, 0
        return np.asarray(decoding.decode_step(asa, params, weights, *inputs)[0], np.float32)

    unrolled_logits = logits(unrolled, adapted)
    np.testing.assert_allclose(unrolled_logits, logits(tiny.asa, adapted), atol=near)
    assert np.abs(unrolled_logits - logits(unrolled, without_adapters(adapted))).max() > 5 * near
