import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from jaxasa.models import decoder, decoding, sample
from jaxasa.models.asa import ASA

PAD, AUDIO, NEW = 0, 2, 10
LENGTHS = (9, 5, 7)


def padded_prompts():
    """int32 [3, 9], padded on the left."""
    ids = np.random.default_rng(1).integers(3, 480, (3, 9)).astype(np.int32)
    for row, length in zip(ids, LENGTHS, strict=True):
        row[: 9 - length] = PAD
    return ids


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5, 6))
def generate(asa, params, key, group=1, temperature=0.0, top_k=0, top_p=1.0):
    options = dict(group=group, temperature=temperature, top_k=top_k, top_p=top_p)
    return sample.generate(
        asa, params, padded_prompts(), None, key, max_new=NEW, pad=PAD, eos=-1, audio_id=AUDIO,
        **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def apart(tiny):
    """The tiny model with all layers compiled side by side."""
    return ASA(dataclasses.replace(tiny.model, unroll=2))


@pytest.fixture(scope="module")
def moved(tiny):
    """Its parameters with adapters that have learnt something."""
    rng = np.random.default_rng(0)
    lora = jax.tree.map(
        lambda x: x + 0.1 * rng.normal(size=x.shape).astype(x.dtype), tiny.params["lora"]
    )
    return {**tiny.params, "lora": lora}


def test_layers_side_by_side_say_the_same(tiny, apart, moved):
    key = jax.random.key(0)
    scanned = generate(tiny.asa, moved, key, 2, 0.8)
    made = generate(apart, moved, key, 2, 0.8)
    assert (made.ids != generate(apart, tiny.params, key, 2, 0.8).ids).any()
    np.testing.assert_array_equal(np.asarray(made.ids), np.asarray(scanned.ids))
    np.testing.assert_allclose(made.logps, scanned.logps, atol=1e-4)


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
    found = np.asarray(sample.filtered(jnp.asarray(logits), top_k, top_p))
    np.testing.assert_array_equal(found, expected.numpy())


def test_filters_by_hand():
    p = np.array([[0.1, 0.4, 0.05, 0.3, 0.15]])

    def kept(**options):
        return np.flatnonzero(np.isfinite(sample.filtered(jnp.log(p), **options)[0])).tolist()

    assert kept() == kept(top_k=5) == kept(top_k=9) == [0, 1, 2, 3, 4]
    assert kept(top_k=2) == [1, 3] and kept(top_k=1) == kept(top_p=0.01) == [1]
    assert kept(top_p=0.39) == [1] and kept(top_p=0.41) == kept(top_p=0.69) == [1, 3]
    assert kept(top_p=0.75) == [1, 3, 4]
    # The share is of what top_k left: 0.4 of 0.7.
    assert kept(top_k=2, top_p=0.56) == [1]


def test_samples_stay_within_the_filters_and_say_their_log_probabilities(tiny, apart):
    key = jax.random.key(1)
    few = generate(apart, tiny.params, key, 64, 3.0, 3)
    first = np.asarray(few.ids)[0, :, 0]
    assert len(set(first.tolist())) == 3
    # Of each token all rows say one log-probability, and the three add up to 1.
    said = {int(i): float(p) for i, p in zip(first, np.asarray(few.logps)[0, :, 0], strict=True)}
    assert sum(np.exp(list(said.values()))) == pytest.approx(1, abs=1e-5)


def test_greedy_text_is_that_of_transformers(tiny, apart):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from jaxasa.hf import keymap, load
    from jaxasa.speed import decode

    twin = decode.twin(tiny.model.decoder, transformers).eval()
    tensors = keymap.to_file(load.flat({"decoder": tiny.params["decoder"]}))
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
    made = jax.jit(
        lambda params: sample.generate(
            apart, params, padded_prompts(), None, jax.random.key(0), max_new=NEW, pad=PAD, eos=-1,
            audio_id=AUDIO, adapted=False,
        )
    )(base)  # fmt: skip
    np.testing.assert_array_equal(np.asarray(made.ids)[:, 0], expected[:, 9:].numpy())


def test_stop_strings_end_rows_wherever_tokens_divide_them(tiny, apart):
    params, prompts, key = tiny.params, padded_prompts(), jax.random.key(4)
    marks = dict(pad=PAD, audio_id=AUDIO)
    start = sample.begin(apart, params, prompts, None, max_new=NEW, **marks)
    steps = []

    @jax.jit
    def go_on(stream, until):
        options = dict(temperature=1.0, eos=-1) | marks
        return sample.advance(apart, params, prompts, stream, key, until, **options)

    def advance(stream, until):
        steps.append(until)
        return go_on(stream, until)

    def decode(ids):
        return "".join(f"<{i:03d}>" for i in ids if i != PAD)

    free = sample.texts(start, advance, decode)
    assert steps == [NEW] and all(len(text) == 5 * NEW for text in free)
    # In pieces the same is said.
    assert sample.texts(start, advance, decode, ["none"], chunk=3) == free
    assert steps[1:] == [3, 6, 9, 10]

    # From within the fourth token of the first row into its fifth; the third row's first token.
    across, whole = free[0][17:22], free[2][:5]
    stopped = sample.texts(start, advance, decode, [whole, across], chunk=3)
    for text, full in zip(stopped, free, strict=True):
        at = min([full.find(s) for s in (across, whole) if s in full], default=None)
        assert text == full[:at]
    assert stopped[0] == free[0][: free[0].find(across)] and stopped[2] == ""

    # Where all rows have stopped, no more is computed.
    steps.clear()
    assert sample.texts(start, advance, decode, ["<"], chunk=3) == ["", "", ""] and steps == [3]


@given(
    arrays.arrays(np.float32, (3, 5), elements=st.sampled_from([-np.inf, -1.0, 0.0, 1.0, 2.0])),
)
def test_the_highest_is_the_first_of_equal_ones(scores):
    found = np.asarray(sample.highest(jnp.asarray(scores)))
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, scores.argmax(-1))


def test_what_is_no_number_has_a_place_among_the_words():
    assert np.asarray(sample.highest(jnp.full((2, 4), jnp.nan))).max() < 4


@pytest.mark.parametrize("count", [1, decoder.FEW, decoder.FEW + 1])
def test_rows_times_pieces_is_their_product(count):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(count, 1, 8)), rng.normal(size=(10, 8))
    pieces = [jnp.asarray(kernel[:3]), jnp.asarray(kernel[3:])]
    found = decoder.by_rows(jnp.asarray(x), pieces)
    np.testing.assert_allclose(found, x @ kernel.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype, alone, near", [("float32", False, 1e-4), ("bfloat16", True, 0.1)])
def test_a_step_has_the_adapters_in_its_kernels_or_beside_them(
    tiny, apart, moved, dtype, alone, near
):
    """In the kernels where that rounds nothing away; either way as in layers that are scanned."""

    def logits(asa, adapted):
        asa = dataclasses.replace(asa, model=dataclasses.replace(asa.model, dtype=dtype))
        prompts = jnp.asarray(padded_prompts())
        valid = prompts != PAD
        stream = sample.begin(asa, moved, prompts, None, max_new=2, pad=PAD, audio_id=AUDIO)
        prepared = decoding.prepare(asa, moved, adapted)
        assert prepared is None or ("lora" in prepared.layers[0]) == (alone and adapted)
        x = asa.embed(moved, jnp.array([[5], [6], [7]]), None, AUDIO)
        where = stream.cache, valid.sum(1)[:, None], valid, 0, adapted
        return np.asarray(decoding.step(asa, moved, prepared, x, *where)[0], np.float32)

    found = logits(apart, True)
    np.testing.assert_allclose(found, logits(tiny.asa, True), atol=near)
    assert np.abs(found - logits(apart, False)).max() > 5 * near
