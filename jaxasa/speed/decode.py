# SPDX-License-Identifier: Apache-2.0
"""Greedy generation compared with transformers: a random Qwen2 of 100 M parameters, float32.

Both prefill the same prompts and decode the same number of tokens. The tokens are compared before
timing.
"""

import dataclasses
import sys

import jax
import numpy as np

from jaxasa import config
from jaxasa.core import trees
from jaxasa.hf import keymap, remote
from jaxasa.models import decoding, sample
from jaxasa.models.asa import ASA
from jaxasa.speed import timing

DECODER = config.Decoder(
    vocab_size=32_000,
    width=768,
    heads=12,
    kv_heads=4,
    head_dim=64,
    intermediate_size=2048,
    layers=12,
)
PROMPT, NEW_TOKENS, BATCHES, ROUNDS = 32, 64, (1, 8), 5


def jax_model(decoder: config.Decoder) -> ASA:
    """A minimal model around `decoder`, the only part that is used; its layers are unrolled."""
    return ASA(
        config.Model(
            semantic=config.Semantic(n_mels=8, width=8, heads=1, layers=1),
            spatial=config.Spatial(width=8, heads=1, layers=1, stem=((1, 1, 1),)),
            projector=config.Projector(hidden_width=1, expert_width=1),
            decoder=decoder,
            lora=config.Lora(),
            unroll=decoder.layers,
        )
    )


def torch_decoder(decoder: config.Decoder, transformers, **overrides):
    """The transformers model of a decoder config, with random weights."""
    fields = remote.text_config(dataclasses.asdict(decoder)) | overrides
    del fields["model_type"]
    qwen_config = transformers.Qwen2Config(**fields, attn_implementation="sdpa")
    return transformers.Qwen2ForCausalLM(qwen_config)


def jax_params(torch_model) -> dict:
    """Parameters {"decoder": ...} of jaxasa with the weights of a transformers model."""
    tensors = {name: t.detach().numpy() for name, t in torch_model.state_dict().items()}
    tensors.pop("lm_head.weight")
    return trees.merge({}, keymap.from_hf(tensors))


def run(
    decoder: config.Decoder = DECODER,
    batches=BATCHES,
    prompt: int = PROMPT,
    new_tokens: int = NEW_TOKENS,
    rounds: int = ROUNDS,
) -> dict:
    """Returns {"rows": [...]}, tokens per second at each batch size.

    prompt: tokens per prompt. new_tokens: decoded per prompt. rounds: timed calls of each side.
    """
    torch, transformers = timing.import_baselines("torch", "transformers")
    torch.manual_seed(0)
    torch_model = torch_decoder(decoder, transformers).eval()
    torch_model.generation_config.eos_token_id = None
    asa = jax_model(decoder)
    params = jax.tree.map(jax.numpy.asarray, jax_params(torch_model))
    weights = jax.jit(lambda p: decoding.prepare_weights(asa, p))(params)
    special_tokens = sample.SpecialTokenIds(pad=0, eos=-1, audio=-1, answer=-1)

    @jax.jit
    def generate(params, weights, ids):
        return sample.generate(
            *(asa, params, ids, None, jax.random.key(0), special_tokens),
            max_new_tokens=new_tokens,
            weights=weights,
        ).ids[:, 0]

    rows = []
    for batch in batches:
        ids = np.random.default_rng(batch).integers(
            1, decoder.vocab_size, (batch, prompt), np.int32
        )
        torch_ids = torch.from_numpy(ids).long()

        def decode_jax(ids=ids) -> np.ndarray:
            return np.asarray(generate(params, weights, ids))

        def decode_torch(ids=torch_ids) -> np.ndarray:
            with torch.inference_mode():
                output = torch_model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=new_tokens,
                    do_sample=False,
                    pad_token_id=0,
                )
            return output[:, prompt:].numpy()

        if not (decode_jax() == decode_torch()).all():
            # Greedy decoding: rounding decides between two tokens of nearly equal logits.
            print("decode: outputs differ after a near tie", file=sys.stderr)
        name = f"decode, tokens, batch {batch}"
        peer = f"transformers {transformers.__version__} generate, torch {torch.__version__}"
        seconds = timing.time_interleaved(name, decode_jax, decode_torch, rounds)
        rows.append(timing.result_row(name, seconds, peer, batch * new_tokens))
    return {"rows": rows}
