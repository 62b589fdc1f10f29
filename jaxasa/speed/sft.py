"""A training step of adapters against transformers with peft: the tiny decoder, one batch.

The same weights and rows on both sides, logits for the replies only, AdamW, the norm of the
gradient clipped. The encoders have no twin in torch's libraries, so both sides train on text.
"""

import types

import jax
import numpy as np

from jaxasa import config
from jaxasa.models.asa import ASA
from jaxasa.parallel import mesh
from jaxasa.speed import interleaved
from jaxasa.speed.decode import model, ours_of, twin
from jaxasa.stages import common
from jaxasa.train import state

DECODER = config.Decoder(
    vocab_size=512, width=128, heads=4, kv_heads=2, head_dim=32, intermediate_size=256, layers=3
)
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Ids as the tokenizers of both sides have them; the rest are words.
MARKS = types.SimpleNamespace(pad=0, eos=1, audio=2, think=3, end_think=4, answer=5)
FIRST_WORD = 6
ROWS, PROMPT, REPLY, ROUNDS = 96, 50, 30, 15


def adapters(peft):
    """Those of `model`: rank 8, alpha 32, on all projections."""
    lora = config.Lora()
    return peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=list(TARGETS), task_type="CAUSAL_LM"
    )


def start(asa: ASA, theirs, stage: config.Stage) -> tuple[types.SimpleNamespace, state.State]:
    """What common.gradient_step needs of a context, and the state with torch's weights."""
    fresh = jax.jit(lambda key: asa.init(key)["lora"])(jax.random.key(0))
    context = types.SimpleNamespace(
        stage=stage,
        asa=asa,
        mesh=mesh.make(config.Mesh(data=1), jax.devices()[:1]),
        text=MARKS,
    )
    return context, state.create(ours_of(theirs) | {"lora": fresh}, stage, context.mesh)


def batch(rows: int, prompt: int, reply: int, vocab: int) -> dict[str, np.ndarray]:
    """int32 prompts [rows, prompt], padded on the left, and replies [rows, reply]."""
    rng = np.random.default_rng(0)
    ids = rng.integers(FIRST_WORD, vocab, (rows, prompt + reply), np.int32)
    short = rng.integers(0, prompt // 4 + 1, (rows, 1))
    ids[:, :prompt][np.arange(prompt) < short] = MARKS.pad
    return {"prompt": ids[:, :prompt], "reply": ids[:, prompt:]}


def run(
    decoder: config.Decoder = DECODER,
    rows: int = ROWS,
    prompt: int = PROMPT,
    reply: int = REPLY,
    rounds: int = ROUNDS,
) -> dict:
    """{"rows": [...]}: steps a second."""
    torch, transformers, peft = interleaved.peers("torch", "transformers", "peft")
    torch.manual_seed(0)
    plain = twin(decoder, transformers)
    asa = model(decoder)
    stage = config.SftStage(
        steps=1000,
        batch_size=rows,
        learning_rate=1e-3,
        trainable=("lora/.*",),
        questions_per_scene=1,
    )
    context, ours = start(asa, plain, stage)
    given = batch(rows, prompt, reply, decoder.vocab_size)

    def loss(params, batch, key):
        return common.reply_loss(asa, params, batch["prompt"], batch["reply"], None, MARKS, True)

    update, losses = common.gradient_step(context, loss), ([], [])
    key = jax.device_put(jax.random.key(0), ours.step.sharding)

    def step() -> None:
        nonlocal ours
        with jax.set_mesh(context.mesh):
            ours, metrics = update(ours, given, key)
        losses[0].append(float(metrics["loss"]))

    theirs = peft.get_peft_model(plain, adapters(peft)).train()
    learning = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        learning, stage.learning_rate, betas=(0.9, 0.95), weight_decay=stage.weight_decay
    )
    ids = torch.from_numpy(np.concatenate([given["prompt"], given["reply"]], 1)).long()

    def step_too() -> None:
        logits = theirs(
            input_ids=ids[:, :-1],
            attention_mask=(ids[:, :-1] != MARKS.pad).long(),
            logits_to_keep=reply,
            use_cache=False,
        ).logits
        value = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, -reply:].flatten())
        value.backward()
        torch.nn.utils.clip_grad_norm_(learning, stage.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses[1].append(float(value.detach()))

    what = f"sft, steps of {rows} rows of {prompt + reply} tokens"
    seconds = interleaved.in_turn(what, step, step_too, rounds)
    # Adapters begin at zero, so the first losses are those of the same weights.
    if abs(losses[0][0] - losses[1][0]) > 1e-3:
        raise RuntimeError(f"first losses differ: {losses[0][0]} and {losses[1][0]}")
    peer = f"transformers {transformers.__version__}, peft {peft.__version__}"
    return {"rows": [interleaved.row(what, seconds, f"{peer}, torch {torch.__version__}")]}
