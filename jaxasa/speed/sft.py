# SPDX-License-Identifier: Apache-2.0
"""SFT step of LoRA adapters compared with transformers and peft: tiny decoder, one batch.

Same weights and rows, logits for the replies only, AdamW, gradient norm clipping. The audio
encoders have no counterpart in PyTorch libraries, so both train on text.
"""

import types

import jax
import numpy as np
from jax.sharding import Mesh

from jaxasa import config
from jaxasa.models.asa import ASA
from jaxasa.parallel import mesh
from jaxasa.speed import timing
from jaxasa.speed.decode import jax_model, jax_params, torch_decoder
from jaxasa.stages import common
from jaxasa.train import state, update

DECODER = config.Decoder(
    vocab_size=512, width=128, heads=4, kv_heads=2, head_dim=32, intermediate_size=256, layers=3
)
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Token ids shared by both tokenizers; ids from FIRST_WORD on are words.
SPECIAL_TOKENS = types.SimpleNamespace(
    pad_id=0, eos_id=1, audio_id=2, think_id=3, end_think_id=4, answer_id=5
)
FIRST_WORD = 6
ROWS, PROMPT, REPLY, ROUNDS = 96, 50, 30, 15


def peft_config(peft):
    """The LoRA configuration of `jax_model` for peft: rank 8, alpha 32, all projections."""
    lora = config.Lora()
    return peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=list(TARGETS), task_type="CAUSAL_LM"
    )


def initial_state(asa: ASA, torch_model, stage: config.Stage) -> tuple[Mesh, state.TrainState]:
    """A mesh of one device, and a state on it with `torch_model`'s weights."""
    lora = jax.jit(lambda key: asa.init(key)["lora"])(jax.random.key(0))
    device = mesh.make_mesh(config.Mesh(data=1), jax.devices()[:1])
    return device, state.create(jax_params(torch_model) | {"lora": lora}, stage, device)


def batch(rows: int, prompt: int, reply: int, vocab: int) -> dict[str, np.ndarray]:
    """Random int32 prompts [rows, prompt], left-padded, and replies [rows, reply]."""
    rng = np.random.default_rng(0)
    ids = rng.integers(FIRST_WORD, vocab, (rows, prompt + reply), np.int32)
    padding = rng.integers(0, prompt // 4 + 1, (rows, 1))
    ids[:, :prompt][np.arange(prompt) < padding] = SPECIAL_TOKENS.pad_id
    return {"prompt": ids[:, :prompt], "reply": ids[:, prompt:]}


def run(
    decoder: config.Decoder = DECODER,
    rows: int = ROWS,
    prompt: int = PROMPT,
    reply: int = REPLY,
    rounds: int = ROUNDS,
) -> dict:
    """Returns {"rows": [...]}, steps per second.

    prompt, reply: tokens per row. rounds: timed steps of each side. Raises RuntimeError if the
    first losses differ.
    """
    torch, transformers, peft = timing.import_baselines("torch", "transformers", "peft")
    torch.manual_seed(0)
    torch_model = torch_decoder(decoder, transformers)
    asa = jax_model(decoder)
    stage = config.SftStage(
        steps=1000,
        batch_size=rows,
        learning_rate=1e-3,
        trainable=("lora/.*",),
        questions_per_scene=1,
    )
    device, jax_state = initial_state(asa, torch_model, stage)
    rows_batch = batch(rows, prompt, reply, decoder.vocab_size)

    def loss(params, batch, key):
        return common.reply_loss(asa, params, batch["prompt"], batch["reply"], None, SPECIAL_TOKENS)

    train_step = update.make_step(stage, device, loss, SPECIAL_TOKENS.pad_id)
    losses: tuple[list[float], list[float]] = ([], [])
    key = jax.device_put(jax.random.key(0), jax_state.step.sharding)

    def step_jax() -> None:
        nonlocal jax_state
        with jax.set_mesh(device):
            jax_state, metrics = train_step(jax_state, rows_batch, key)
        losses[0].append(float(metrics["loss"]))

    peft_model = peft.get_peft_model(torch_model, peft_config(peft)).train()
    trainable = [p for p in peft_model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trainable, stage.learning_rate, betas=(0.9, 0.95), weight_decay=stage.weight_decay
    )
    ids = torch.from_numpy(np.concatenate([rows_batch["prompt"], rows_batch["reply"]], 1)).long()

    def step_torch() -> None:
        logits = peft_model(
            input_ids=ids[:, :-1],
            attention_mask=(ids[:, :-1] != SPECIAL_TOKENS.pad_id).long(),
            logits_to_keep=reply,
            use_cache=False,
        ).logits
        value = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, -reply:].flatten())
        value.backward()
        torch.nn.utils.clip_grad_norm_(trainable, stage.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses[1].append(float(value.detach()))

    name = f"sft, steps of {rows} rows of {prompt + reply} tokens"
    seconds = timing.time_interleaved(name, step_jax, step_torch, rounds)
    # Adapters start as the identity, so the first losses are those of the same weights.
    if abs(losses[0][0] - losses[1][0]) > 1e-3:
        raise RuntimeError(f"first losses differ: {losses[0][0]} and {losses[1][0]}")
    peer = f"transformers {transformers.__version__}, peft {peft.__version__}"
    return {"rows": [timing.result_row(name, seconds, f"{peer}, torch {torch.__version__}")]}
