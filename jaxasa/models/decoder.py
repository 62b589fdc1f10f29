"""Decoder language model in the shape of Qwen2 and Qwen3: RMSNorm, grouped heads, RoPE, SwiGLU.

Layers are scanned: parameters carry a leading layer axis. Low-rank adapters (LoRA,
arXiv:2106.09685) are a collection of their own, `lora`: the base model is `apply` without
it, the policy `apply` with it.

Letters: B batch, T query time, S cache slots, D width, N heads, K KV heads, H head width,
F hidden, V vocabulary, L layers, P prompts, G completions of one prompt (B = P x G).
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

MASKED = -1e9
# Rows up to which a CPU multiplies a large kernel of [out, in] faster with them as columns.
FEW = 32
# What the backward pass finds kept of a layer, by `config.Model.remat`.
KEPT = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def rope(x: jax.Array, positions: jax.Array, theta: float) -> jax.Array:
    """Rotary positions (arXiv:2104.09864), halves rotated as in Qwen2: x [B, T, N, H], [B, T]."""
    half = x.shape[-1] // 2
    rates = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None, None].astype(jnp.float32) * rates
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


class Cache(NamedTuple):
    """Keys and values of P prompts, stored once each, and of their G completions.

    prompt_k, prompt_v: [L, P, S, K, H]; k, v: [L, P, G, K, C, H] for up to C new tokens.
    """

    prompt_k: jax.Array
    prompt_v: jax.Array
    k: jax.Array
    v: jax.Array


def by_rows(x: jax.Array, pieces: Sequence[jax.Array], dtype=None) -> jax.Array:
    """x [..., D], pieces of [F, D] -> [..., F]: at most FEW rows of x stand as columns behind them.

    dtype: of the sums, if it is not that of x.
    """
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) > FEW:
        made = [jnp.matmul(rows, piece.T, preferred_element_type=dtype) for piece in pieces]
        return jnp.concatenate(made, -1).reshape(*x.shape[:-1], -1)
    made = [jnp.matmul(piece, rows.T, preferred_element_type=dtype) for piece in pieces]
    return jnp.concatenate(made).T.reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def low_rank(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """x a b of x [..., D], a [D, r], b [r, F].

    The gradients by a and b are made as [r, F] and [r, D]: then only arrays of width r are turned,
    where the derived rule turns one of width F, which costs a CPU more than the products.
    """
    return (x @ a) @ b


def _low_rank_forward(x, a, b):
    h = x @ a
    return h @ b, (x, h, a, b)


def _low_rank_backward(kept, g):
    x, h, a, b = kept
    rows = tuple(range(g.ndim - 1))
    gh = g @ b.T
    return gh @ a.T, jnp.tensordot(gh, x, (rows, rows)).T, jnp.tensordot(h, g, (rows, rows))


low_rank.defvjp(_low_rank_forward, _low_rank_backward)


class Projection(nn.Module):
    """Dense layer, plus `alpha / rank * x a b` where adapters are given."""

    features: int
    lora: config.Lora
    use_bias: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.has_variable("params", "rows"):  # [out, in], see decoding.py
            y = by_rows(x, self.get_variable("params", "rows"))
        else:
            wide = (x.shape[-1], self.features)
            kernel = self.param("kernel", nn.initializers.normal(0.02), wide)
            y = x @ kernel.astype(self.dtype)
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        adapted = re.fullmatch(self.lora.target_modules, self.name) is not None
        if adapted and (self.is_initializing() or self.has_variable("lora", "a")):
            a = self.variable("lora", "a", self._start_a, x.shape[-1]).value
            b = self.variable("lora", "b", jnp.zeros, (self.lora.rank, self.features)).value
            scaled = self.lora.alpha / self.lora.rank * b
            y += low_rank(x, a.astype(self.dtype), scaled.astype(self.dtype))
        return y

    def _start_a(self, features: int) -> jax.Array:
        shape = (features, self.lora.rank)
        return nn.initializers.he_uniform()(self.make_rng("params"), shape)


class Block(nn.Module):
    """One layer. Over whole sequences, or one token a row against a `Cache`."""

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
        self.gate, self.up, self.down = (
            proj(d.intermediate_size),
            proj(d.intermediate_size),
            proj(d.width),
        )
        norm = lambda: nn.RMSNorm(epsilon=d.norm_eps, dtype=self.dtype)  # noqa: E731
        self.norm1, self.norm2 = norm(), norm()
        if d.qk_norm:
            self.q_norm, self.k_norm = norm(), norm()

    def _qkv(self, x: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        d = self.decoder
        h = self.norm1(x)
        q = self.q(h).reshape(*h.shape[:-1], d.heads, d.head_dim)
        k = self.k(h).reshape(*h.shape[:-1], d.kv_heads, d.head_dim)
        v = self.v(h).reshape(*h.shape[:-1], d.kv_heads, d.head_dim)
        if d.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        return rope(q, positions, d.rope_theta), rope(k, positions, d.rope_theta), v

    def _finish(self, x: jax.Array, mixed: jax.Array) -> jax.Array:
        x = x + self.o(mixed.reshape(*x.shape[:-1], -1))
        h = self.norm2(x)
        return x + self.down(jax.nn.silu(self.gate(h)) * self.up(h))

    def __call__(self, x: jax.Array, positions: jax.Array, mask: jax.Array):
        """x [B, T, D], mask [B, 1, T, T] -> x, (k, v) each [B, T, K, H]."""
        q, k, v = self._qkv(x, positions)
        mixed = jax.nn.dot_product_attention(q, k, v, mask=mask)
        return self._finish(x, mixed), (k, v)

    def complete(self, x, positions, masks, valid):
        """x [P, S + G C, D]: prompts, each followed by its G completions of C tokens -> x.

        masks [P, S, S] and [P, G, C, C], valid [P, S]: which places of a prompt, or of a
        completion, those of the same see, and which of the prompt its completions see.
        """
        prompt_mask, own_mask = masks
        q, k, v = self._qkv(x, positions)
        length = valid.shape[1]
        first = jax.nn.dot_product_attention(
            q[:, :length], k[:, :length], v[:, :length], mask=prompt_mask[:, None]
        )
        own = [y[:, length:].reshape(*own_mask.shape[:3], *y.shape[2:]) for y in (q, k, v)]
        prompt = k[:, :length], v[:, :length]
        said = [y.swapaxes(2, 3) for y in own[1:]]
        then = self._shared(own[0], prompt, said, valid, own_mask)
        mixed = jnp.concatenate([first, then.reshape(q[:, length:].shape)], 1)
        return self._finish(x, mixed)

    def decode(self, x, cache: Cache, positions, prompt_mask, step):
        """x [B, 1, D], one layer's cache -> x and the completions' (k, v) with the new token."""
        d = self.decoder
        p, g = cache.k.shape[:2]
        q, k, v = self._qkv(x, positions)
        shape = (p, g, d.kv_heads, 1, d.head_dim)
        own_k = jax.lax.dynamic_update_slice_in_dim(cache.k, k.reshape(shape), step, axis=3)
        own_v = jax.lax.dynamic_update_slice_in_dim(cache.v, v.reshape(shape), step, axis=3)
        said = (jnp.arange(own_k.shape[3]) <= step)[None, None, None]
        q = q.reshape(p, g, 1, d.heads, d.head_dim)
        prompt = cache.prompt_k, cache.prompt_v
        mixed = self._shared(q, prompt, (own_k, own_v), prompt_mask, said)
        return self._finish(x, mixed.reshape(*x.shape[:-1], -1)), (own_k, own_v)

    def _shared(self, q, prompt, own, prompt_mask, own_mask):
        """Attention of completions to their prompt and each to itself: q, result [P, G, T, N, H].

        prompt: keys and values [P, S, K, H]; own: [P, G, K, C, H]. prompt_mask [P, S], own_mask
        [P or 1, G or 1, T, C]. To the prompt it is one product for the G completions that share
        it. One softmax over both, whose weights are divided by their sum last, so that the two
        kinds, which lie differently, meet only in their maxima and sums.
        """
        d, dtype = self.decoder, q.dtype
        q = q.reshape(*q.shape[:3], d.kv_heads, -1, d.head_dim) * d.head_dim**-0.5
        weigh = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        by_prompt = weigh("pgtkrh,pskh->pkgtrs", q, prompt[0])
        by_own = weigh("pgtkrh,pgkch->pgktrc", q, own[0])
        by_prompt = jnp.where(prompt_mask[:, None, None, None, None], by_prompt, MASKED)
        by_own = jnp.where(own_mask[:, :, None, :, None], by_own, MASKED)
        # What a softmax is shifted by changes nothing, its gradient neither.
        top = jnp.maximum(by_prompt.max(-1).swapaxes(1, 2), by_own.max(-1, initial=MASKED))
        top = jax.lax.stop_gradient(top)[..., None]
        by_prompt = jnp.exp(by_prompt - top.swapaxes(1, 2))
        by_own = jnp.exp(by_own - top)
        total = by_prompt.sum(-1).swapaxes(1, 2) + by_own.sum(-1)
        mixed = jnp.einsum("pkgtrs,pskh->pgtkrh", by_prompt.astype(dtype), prompt[1])
        # No einsum: it would put the values first, for which XLA on a CPU has no fast product.
        *outer, t, r, c = by_own.shape
        said = jnp.matmul(by_own.astype(dtype).reshape(*outer, t * r, c), own[1])
        mixed += jnp.moveaxis(said.reshape(*outer, t, r, -1), 2, 3)
        mixed = mixed / total.swapaxes(2, 3)[..., None]
        return mixed.astype(dtype).reshape(*q.shape[:3], d.heads, d.head_dim)


class Decoder(nn.Module):
    """Embeddings in, hidden states out.

    Parameters "embedding" [V, D] and, where it is not tied, "head" [V, D], the output's table.
    """

    decoder: config.Decoder
    lora: config.Lora
    unroll: int = 1
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        d = self.decoder
        start = nn.initializers.normal(0.02)
        self.embedding = nn.Embed(d.vocab_size, d.width, embedding_init=start)
        if not d.tie_word_embeddings:
            self.head = self.param("head", start, (d.vocab_size, d.width))
        self.layers = Block(d, self.lora, self.dtype)
        self.norm = nn.RMSNorm(epsilon=d.norm_eps, dtype=self.dtype)

    def _scan(self, body, x, inputs):
        scanned = nn.scan(
            lambda block, x, layer: body(block, sharding.by_rows(x), layer),
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True},
            length=self.decoder.layers,
            unroll=self.unroll,
        )
        return scanned(self.layers, x, inputs)

    def embed(self, ids: jax.Array) -> jax.Array:
        """ids [B, T] -> [B, T, D]."""
        return sharding.by_rows(self.embedding(ids).astype(self.dtype))

    def __call__(self, x: jax.Array, valid: jax.Array):
        """x [B, T, D], valid [B, T] -> hidden [B, T, D], keys and values [L, B, T, K, H].

        valid is False at padding. Causal; positions count the valid tokens, so padding on the
        left changes nothing.
        """
        positions, mask = position_ids(valid), causal(valid)

        def body(block, x, _):
            return block(x, positions, mask[:, None])

        x, (k, v) = self._scan(self._rematted(body), x, None)
        return self.norm(sharding.by_rows(x)), k, v

    def complete(self, prompt: jax.Array, valid, said: jax.Array, said_valid):
        """Hidden states [P, G, C, D] that choose each of `said`: embeddings [P, G, C, D].

        prompt [P, S, D]; valid [P, S] and said_valid [P, G, C] are False at padding. The same as
        `__call__` on each prompt with each of its completions, but that prompts pass once.
        """
        p, g, c, width = said.shape
        length, said, said_valid = prompt.shape[1], said[:, :, :-1], said_valid[:, :, :-1]
        before = valid.sum(1)[:, None, None]
        own = jnp.maximum(before + jnp.cumsum(said_valid, 2) - 1, 0).reshape(p, -1)
        positions = jnp.concatenate([position_ids(valid), own], 1)
        masks = causal(valid), causal(said_valid)

        def body(block, x, _):
            return block.complete(x, positions, masks, valid), None

        x = jnp.concatenate([prompt, said.reshape(p, g * (c - 1), width)], 1)
        x, _ = self._scan(self._rematted(body), x, None)
        x = self.norm(sharding.by_rows(x[:, length - 1 :]))
        first = jnp.broadcast_to(x[:, None, :1], (p, g, 1, width))
        return jnp.concatenate([first, x[:, 1:].reshape(p, g, c - 1, width)], 2)

    def _rematted(self, body):
        if self.remat == "none":
            return body
        return nn.remat(body, policy=KEPT[self.remat], prevent_cse=False)

    def decode(self, x: jax.Array, cache: Cache, positions, prompt_mask, step):
        """x [B, 1, D], positions [B, 1], prompt_mask [P, S], step -> hidden [B, 1, D], Cache."""

        def body(block, x, layer: Cache):
            return block.decode(x, layer, positions, prompt_mask, step)

        x, (k, v) = self._scan(body, x, cache)
        return self.norm(sharding.by_rows(x)), cache._replace(k=k, v=v)


def causal(valid: jax.Array) -> jax.Array:
    """valid [..., T] -> [..., T, T]: each sees what is valid up to itself, padding itself too."""
    length = valid.shape[-1]
    # So that no row of the softmax is empty.
    seen = valid[..., None, :] | jnp.eye(length, dtype=bool)
    return seen & jnp.tril(jnp.ones((length, length), bool))


def position_ids(valid: jax.Array) -> jax.Array:
    """valid [B, T] -> the index of each token among the valid ones, 0 at leading padding."""
    return jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
