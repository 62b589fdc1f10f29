# SPDX-License-Identifier: Apache-2.0
"""Decoder language model: the architecture of Qwen2, Qwen2.5 and Qwen3 (dense).

Pre-norm blocks with RMSNorm (arXiv:1910.07467), rotary positions (RoPE, arXiv:2104.09864),
grouped-query attention (GQA, arXiv:2305.13245) and a SwiGLU MLP (arXiv:2002.05202), each linear
layer with a low-rank adapter (LoRA, arXiv:2106.09685). Layers are scanned: parameters have a
leading layer axis. Adapters are a flax collection of their own, "lora": without it `apply` gives
the base model, with it the adapted one.

Three ways through a block:

    __call__            whole sequences, for training and to prefill the KV cache
    score_completions   training on several completions of one prompt, which is computed once
    decode_step         one new token for each row, against the KV cache

Shapes: B batch, T time, D width, H heads, K KV heads, E head dim, I width of the MLP, V vocabulary,
Z layers, P prompt length, G completions per prompt, R = B x G rows, L new tokens, r rank of an
adapter.
"""

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxasa import config
from jaxasa.parallel import sharding

MASK_VALUE = -1e9
# Up to so many rows, a CPU is faster if a large kernel [out, in] stands left of them in a product.
SMALL_BATCH_ROWS = 32
# Which activations of a layer the backward pass finds stored, by `config.Model.remat`.
REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def rope(x: jax.Array, positions: jax.Array, theta: float) -> jax.Array:
    """Rotary position embedding of x [B, T, H, E] at positions [B, T].

    The two halves of a head are rotated against each other, as in Qwen2.
    """
    half = x.shape[-1] // 2
    rates = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None, None].astype(jnp.float32) * rates
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


class KVCache(NamedTuple):
    """Keys and values of B prompts, stored once each, and of the G completions of each.

    prompt_k, prompt_v: [Z, B, P, K, E]. k, v: [Z, B, G, K, L, E], for up to L new tokens.
    """

    prompt_k: jax.Array
    prompt_v: jax.Array
    k: jax.Array
    v: jax.Array


def small_batch_matmul(x: jax.Array, pieces: Sequence[jax.Array], dtype=None) -> jax.Array:
    """x times a transposed kernel in pieces [F, D] of its rows: x [..., D] -> [..., sum of F].

    Up to SMALL_BATCH_ROWS rows of x stand as columns on the right, which is faster on a CPU.
    dtype: of the result, if it is not that of x.
    """
    rows = x.reshape(-1, x.shape[-1])
    # A symbolic number of rows (hf/stablehlo.py) may be large.
    if not isinstance(rows.shape[0], int) or len(rows) > SMALL_BATCH_ROWS:
        parts = [jnp.matmul(rows, piece.T, preferred_element_type=dtype) for piece in pieces]
        return jnp.concatenate(parts, -1).reshape(*x.shape[:-1], -1)
    parts = [jnp.matmul(piece, rows.T, preferred_element_type=dtype) for piece in pieces]
    return jnp.concatenate(parts).T.reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def low_rank_matmul(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """x a b for x [..., D], a [D, r], b [r, F].

    With a gradient rule of its own: the gradients of a and b are computed as [r, D] and [r, F], so
    that only arrays of width r are transposed. The derived rule transposes one of width F, which
    costs a CPU more than the products.
    """
    return (x @ a) @ b


def _low_rank_forward(x, a, b):
    h = x @ a
    return h @ b, (x, h, a, b)


def _low_rank_backward(residuals, g):
    x, h, a, b = residuals
    rows = tuple(range(g.ndim - 1))
    gh = g @ b.T
    return gh @ a.T, jnp.tensordot(gh, x, (rows, rows)).T, jnp.tensordot(h, g, (rows, rows))


low_rank_matmul.defvjp(_low_rank_forward, _low_rank_backward)


class Projection(nn.Module):
    """Linear layer x W (+ bias), plus LoRA's `alpha / rank * x a b` if adapters are given."""

    features: int
    lora: config.Lora
    use_bias: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.has_variable("params", "kernel_rows"):  # transposed, by decoding.py
            y = small_batch_matmul(x, self.get_variable("params", "kernel_rows"))
        else:
            shape = (x.shape[-1], self.features)
            kernel = self.param("kernel", nn.initializers.normal(0.02), shape)
            y = x @ kernel.astype(self.dtype)
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        is_target = re.fullmatch(self.lora.target_modules, self.name) is not None
        if is_target and (self.is_initializing() or self.has_variable("lora", "a")):
            a = self.variable("lora", "a", self._init_a, x.shape[-1]).value
            b = self.variable("lora", "b", jnp.zeros, (self.lora.rank, self.features)).value
            scaled = self.lora.alpha / self.lora.rank * b
            y += low_rank_matmul(x, a.astype(self.dtype), scaled.astype(self.dtype))
        return y

    def _init_a(self, features: int) -> jax.Array:
        shape = (features, self.lora.rank)
        return nn.initializers.he_uniform()(self.make_rng("params"), shape)


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + SwiGLU(norm(x))."""

    decoder: config.Decoder
    lora: config.Lora
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        d = self.decoder
        kv_width = d.kv_heads * d.head_dim
        proj = lambda width, bias=False: Projection(width, self.lora, bias, self.dtype)  # noqa: E731
        self.q = proj(d.heads * d.head_dim, d.qkv_bias)
        self.k = proj(kv_width, d.qkv_bias)
        self.v = proj(kv_width, d.qkv_bias)
        self.o = proj(d.width)
        self.gate, self.up = proj(d.intermediate_size), proj(d.intermediate_size)
        self.down = proj(d.width)
        norm = lambda: nn.RMSNorm(epsilon=d.norm_eps, dtype=self.dtype)  # noqa: E731
        self.norm1, self.norm2 = norm(), norm()
        if d.qk_norm:
            self.q_norm, self.k_norm = norm(), norm()

    def _qkv(self, x: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries [B, T, H, E], keys and values [B, T, K, E]; queries and keys rotated (RoPE)."""
        d = self.decoder
        h = self.norm1(x)
        q = self.q(h).reshape(*h.shape[:-1], d.heads, d.head_dim)
        k = self.k(h).reshape(*h.shape[:-1], d.kv_heads, d.head_dim)
        v = self.v(h).reshape(*h.shape[:-1], d.kv_heads, d.head_dim)
        if d.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        return rope(q, positions, d.rope_theta), rope(k, positions, d.rope_theta), v

    def _output_and_mlp(self, x: jax.Array, attended: jax.Array) -> jax.Array:
        """The rest of a layer after attention [B, T, H, E]: output projection and SwiGLU."""
        x = x + self.o(attended.reshape(*x.shape[:-1], -1))
        h = self.norm2(x)
        return x + self.down(jax.nn.silu(self.gate(h)) * self.up(h))

    def __call__(self, x: jax.Array, positions: jax.Array, mask: jax.Array):
        """x [B, T, D], attention mask [B, 1, T, T] -> x, (k, v) of [B, T, K, E] each."""
        q, k, v = self._qkv(x, positions)
        attended = jax.nn.dot_product_attention(q, k, v, mask=mask)
        return self._output_and_mlp(x, attended), (k, v)

    def score_completions(self, x, positions, masks, prompt_mask):
        """x [B, P + G L, D]: prompts, each followed by its G completions of L tokens -> x.

        masks: attention masks [B, P, P] within a prompt and [B, G, L, L] within a completion.
        prompt_mask [B, P]: the tokens of a prompt that its completions attend to.
        """
        within_prompt, within_completion = masks
        q, k, v = self._qkv(x, positions)
        length = prompt_mask.shape[1]
        of_prompt = jax.nn.dot_product_attention(
            q[:, :length], k[:, :length], v[:, :length], mask=within_prompt[:, None]
        )
        own_q, own_k, own_v = (
            y[:, length:].reshape(*within_completion.shape[:3], *y.shape[2:]) for y in (q, k, v)
        )
        prompt_kv = k[:, :length], v[:, :length]
        own_kv = own_k.swapaxes(2, 3), own_v.swapaxes(2, 3)
        of_completions = self._shared_prefix_attention(
            own_q, prompt_kv, own_kv, prompt_mask, within_completion
        )
        of_completions = of_completions.reshape(q[:, length:].shape)
        return self._output_and_mlp(x, jnp.concatenate([of_prompt, of_completions], 1))

    def decode_step(self, x, cache: KVCache, positions, prompt_mask, step):
        """x [R, 1, D], one layer's cache -> x, and the completions' (k, v) with the new token."""
        d = self.decoder
        p, g = cache.k.shape[:2]
        q, k, v = self._qkv(x, positions)
        shape = (p, g, d.kv_heads, 1, d.head_dim)
        own_k = jax.lax.dynamic_update_slice_in_dim(cache.k, k.reshape(shape), step, axis=3)
        own_v = jax.lax.dynamic_update_slice_in_dim(cache.v, v.reshape(shape), step, axis=3)
        mask = (jnp.arange(own_k.shape[3]) <= step)[None, None, None]
        q = q.reshape(p, g, 1, d.heads, d.head_dim)
        prompt_kv = cache.prompt_k, cache.prompt_v
        attended = self._shared_prefix_attention(q, prompt_kv, (own_k, own_v), prompt_mask, mask)
        return self._output_and_mlp(x, attended.reshape(*x.shape[:-1], -1)), (own_k, own_v)

    def _shared_prefix_attention(self, q, prompt_kv, own_kv, prompt_mask, own_mask):
        """Attention of completions to their prompt, and of each to itself: [B, G, L, H, E].

        q [B, G, L, H, E]; keys and values of the prompt [B, P, K, E] and of the completions
        [B, G, K, L, E]; prompt_mask [B, P], own_mask [B or 1, G or 1, L, L]. One product serves
        the G completions of a prompt. There is one softmax over both kinds of keys: as they have
        different layouts, it is computed from the maxima and sums of the two.
        """
        d, dtype = self.decoder, q.dtype
        q = q.reshape(*q.shape[:3], d.kv_heads, -1, d.head_dim) * d.head_dim**-0.5
        scores = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        to_prompt = scores("pgtkrh,pskh->pkgtrs", q, prompt_kv[0])
        to_own = scores("pgtkrh,pgkch->pgktrc", q, own_kv[0])
        to_prompt = jnp.where(prompt_mask[:, None, None, None, None], to_prompt, MASK_VALUE)
        to_own = jnp.where(own_mask[:, :, None, :, None], to_own, MASK_VALUE)
        # The shift of a softmax changes neither its value nor its gradient.
        top = jnp.maximum(to_prompt.max(-1).swapaxes(1, 2), to_own.max(-1, initial=MASK_VALUE))
        top = jax.lax.stop_gradient(top)[..., None]
        to_prompt = jnp.exp(to_prompt - top.swapaxes(1, 2))
        to_own = jnp.exp(to_own - top)
        total = to_prompt.sum(-1).swapaxes(1, 2) + to_own.sum(-1)
        attended = jnp.einsum("pkgtrs,pskh->pgtkrh", to_prompt.astype(dtype), prompt_kv[1])
        # Not an einsum: it would put the values first, and XLA has no fast product for that on CPU.
        *outer, t, r, c = to_own.shape
        own = jnp.matmul(to_own.astype(dtype).reshape(*outer, t * r, c), own_kv[1])
        attended += jnp.moveaxis(own.reshape(*outer, t, r, -1), 2, 3)
        attended = attended / total.swapaxes(2, 3)[..., None]
        return attended.astype(dtype).reshape(*q.shape[:3], d.heads, d.head_dim)


class Decoder(nn.Module):
    """Embeddings in, hidden states out.

    Parameters "embedding" [V, D] and, if it is not tied, "head" [V, D], the output matrix.
    """

    decoder: config.Decoder
    lora: config.Lora
    unroll: int = 1
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        d = self.decoder
        init = nn.initializers.normal(0.02)
        self.embedding = nn.Embed(d.vocab_size, d.width, embedding_init=init)
        if not d.tie_word_embeddings:
            self.head = self.param("head", init, (d.vocab_size, d.width))
        self.layers = Block(d, self.lora, self.dtype)
        self.norm = nn.RMSNorm(epsilon=d.norm_eps, dtype=self.dtype)

    def _scan(self, body, x, inputs):
        """body(block, x, layer's inputs) -> (x, layer's outputs), over all layers."""
        scanned = nn.scan(
            lambda block, x, layer: body(block, sharding.constrain_batch(x), layer),
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True},
            length=self.decoder.layers,
            unroll=self.unroll,
        )
        return scanned(self.layers, x, inputs)

    def _remat(self, body):
        """Rematerialization (gradient checkpointing) of a layer, by `config.Model.remat`."""
        if self.remat == "none":
            return body
        return nn.remat(body, policy=REMAT_POLICIES[self.remat], prevent_cse=False)

    def embed(self, ids: jax.Array) -> jax.Array:
        """ids [B, T] -> [B, T, D]."""
        return sharding.constrain_batch(self.embedding(ids).astype(self.dtype))

    def __call__(self, x: jax.Array, mask: jax.Array):
        """Causal pass over x [B, T, D] -> hidden states [B, T, D], keys and values [Z, B, T, K, E].

        mask: bool [B, T], False at padding. Positions count the tokens that are not padding, so
        that padding on the left changes nothing.
        """
        positions, attention_mask = position_ids(mask), causal_mask(mask)

        def body(block, x, _):
            return block(x, positions, attention_mask[:, None])

        x, (k, v) = self._scan(self._remat(body), x, None)
        return self.norm(sharding.constrain_batch(x)), k, v

    def score_completions(self, prompt: jax.Array, prompt_mask, completion: jax.Array, mask):
        """Teacher-forced hidden states [B, G, L, D] that predict the tokens of the completions.

        prompt [B, P, D] and completion [B, G, L, D]: embeddings. prompt_mask [B, P] and mask
        [B, G, L] are False at padding. The result equals `__call__` on each prompt with each of
        its completions, but each prompt is computed once.
        """
        p, g, length, width = completion.shape
        # The last token predicts nothing, and the first is predicted by the end of the prompt.
        inputs, mask = completion[:, :, :-1], mask[:, :, :-1]
        prompt_length = prompt_mask.sum(1)[:, None, None]
        own = jnp.maximum(prompt_length + jnp.cumsum(mask, 2) - 1, 0).reshape(p, -1)
        positions = jnp.concatenate([position_ids(prompt_mask), own], 1)
        masks = causal_mask(prompt_mask), causal_mask(mask)

        def body(block, x, _):
            return block.score_completions(x, positions, masks, prompt_mask), None

        x = jnp.concatenate([prompt, inputs.reshape(p, g * (length - 1), width)], 1)
        x, _ = self._scan(self._remat(body), x, None)
        x = self.norm(sharding.constrain_batch(x[:, prompt.shape[1] - 1 :]))
        first = jnp.broadcast_to(x[:, None, :1], (p, g, 1, width))
        return jnp.concatenate([first, x[:, 1:].reshape(p, g, length - 1, width)], 2)

    def decode_step(self, x: jax.Array, cache: KVCache, positions, prompt_mask, step):
        """x [R, 1, D], positions [R, 1], prompt_mask [B, P], step -> hidden [R, 1, D], KVCache."""

        def body(block, x, layer: KVCache):
            return block.decode_step(x, layer, positions, prompt_mask, step)

        x, (k, v) = self._scan(body, x, cache)
        return self.norm(sharding.constrain_batch(x)), cache._replace(k=k, v=v)


def causal_mask(mask: jax.Array) -> jax.Array:
    """Attention mask [..., T, T] of tokens with padding mask [..., T].

    Each token attends to all valid ones up to itself, and padding to itself too, so that no row of
    the softmax is empty.
    """
    length = mask.shape[-1]
    keys = mask[..., None, :] | jnp.eye(length, dtype=bool)
    return keys & jnp.tril(jnp.ones((length, length), bool))


def position_ids(mask: jax.Array) -> jax.Array:
    """Index of each token among those that are not padding, mask [B, T]; 0 at leading padding."""
    return jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
