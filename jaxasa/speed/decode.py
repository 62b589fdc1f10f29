"""Generation against transformers: the same random Qwen2 of 100M weights, greedy, float32.

Both sides prefill a prompt and say the same number of tokens; that they say the same tokens is
checked before time is taken.
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
from jaxasa.speed import interleaved

DECODER = config.Decoder(
    vocab_size=32_000,
    width=768,
    heads=12,
    kv_heads=4,
    head_dim=64,
    intermediate_size=2048,
    layers=12,
)
PROMPT, NEW, BATCHES, ROUNDS = 32, 64, (1, 8), 5


def model(decoder: config.Decoder) -> ASA:
    """A model of which only the decoder is used; its layers are compiled side by side."""
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


def twin(decoder: config.Decoder, transformers, **more):
    """The decoder as transformers has it, with random weights."""
    fields = remote.text_config(dataclasses.asdict(decoder)) | more
    del fields["model_type"]
    made = transformers.Qwen2Config(**fields, attn_implementation="sdpa")
    return transformers.Qwen2ForCausalLM(made)


def ours_of(theirs) -> dict:
    """Our parameters {"decoder"} with the weights of transformers' model."""
    tensors = {name: t.detach().numpy() for name, t in theirs.state_dict().items()}
    tensors.pop("lm_head.weight")
    return trees.merge({}, keymap.from_file(tensors))


def run(
    decoder: config.Decoder = DECODER,
    batches=BATCHES,
    prompt: int = PROMPT,
    new: int = NEW,
    rounds: int = ROUNDS,
) -> dict:
    """{"rows": [...]}: tokens a second at each batch size."""
    torch, transformers = interleaved.peers("torch", "transformers")
    torch.manual_seed(0)
    theirs = twin(decoder, transformers).eval()
    theirs.generation_config.eos_token_id = None
    asa = model(decoder)
    params = jax.tree.map(jax.numpy.asarray, ours_of(theirs))
    prepared = jax.jit(lambda p: decoding.prepare(asa, p, False))(params)

    @jax.jit
    def generate(params, prepared, ids):
        return sample.generate(
            asa,
            params,
            ids,
            None,
            jax.random.key(0),
            max_new=new,
            pad=0,
            eos=-1,
            audio_id=-1,
            adapted=False,
            prepared=prepared,
        ).ids[:, 0]

    rows = []
    for batch in batches:
        ids = np.random.default_rng(batch).integers(
            1, decoder.vocab_size, (batch, prompt), np.int32
        )
        given = torch.from_numpy(ids).long()

        def say(ids=ids) -> np.ndarray:
            return np.asarray(generate(params, prepared, ids))

        def say_too(given=given) -> np.ndarray:
            with torch.inference_mode():
                made = theirs.generate(
                    given,
                    attention_mask=torch.ones_like(given),
                    max_new_tokens=new,
                    do_sample=False,
                    pad_token_id=0,
                )
            return made[:, prompt:].numpy()

        if not (say() == say_too()).all():
            # Greedy: where two tokens are all but equally likely, rounding may choose.
            print("decode: the two sides part at a near tie", file=sys.stderr)
        what = f"decode, tokens, batch {batch}"
        peer = f"transformers {transformers.__version__} generate, torch {torch.__version__}"
        seconds = interleaved.in_turn(what, say, say_too, rounds)
        rows.append(interleaved.row(what, seconds, peer, batch * new))
    return {"rows": rows}
