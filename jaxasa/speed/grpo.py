# SPDX-License-Identifier: Apache-2.0
"""GRPO step compared with TRL's GRPOTrainer: rollout, reward, update.

Same weights, prompts, group size, completion length, reward and loss (Dr. GRPO, no KL). TRL's
step is timed between on_step_begin and on_step_end of its trainer; one step of jaxasa is timed
after each.
"""

import tempfile
import time

import jax
import numpy as np

from jaxasa import config
from jaxasa.models import lm, sample
from jaxasa.models.asa import ASA
from jaxasa.speed import timing
from jaxasa.speed.decode import jax_model, torch_decoder
from jaxasa.speed.sft import DECODER, FIRST_WORD, SPECIAL_TOKENS, initial_state, peft_config
from jaxasa.stages import policy
from jaxasa.stages.common import merge_leading_dims
from jaxasa.train import update

PROMPTS, GROUP, PROMPT, REPLY, ROUNDS = 16, 8, 50, 30, 8


def unique_word_fraction(text: str) -> float:
    """Fraction of distinct words in a completion: a reward that varies within a group."""
    words = text.split()
    return len(set(words)) / max(len(words), 1)


def _words(vocab: int) -> list[str]:
    special = ["<pad>", "<eos>", "<audio>", "<think>", "</think>", "<answer>"]
    return [*special, *(f"w{n}" for n in range(FIRST_WORD, vocab))]


def _tokenizer(transformers, vocab: int):
    """A word-level tokenizer: prompts have as many tokens as words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    table = {word: n for n, word in enumerate(_words(vocab))}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def make_jax_step(
    asa: ASA, torch_model, stage: config.GrpoStage, prompts: np.ndarray, decode, reply: int
):
    """Returns a function that trains on `prompts` int32 [B, P] and returns the mean reward."""
    device, train_state = initial_state(asa, torch_model, stage)
    special_tokens = sample.SpecialTokenIds.of(SPECIAL_TOKENS)

    @jax.jit
    def rollout(params, prompts, key) -> sample.Completions:
        sampling = config.Sampling(stage.temperature)
        return sample.generate(
            *(asa, params, prompts, None, key, special_tokens, sampling),
            num_generations=stage.num_generations,
            max_new_tokens=reply,
        )

    def loss(params, batch, key):
        ids, old_logps, mask = (
            merge_leading_dims(batch[name]) for name in ("ids", "logps", "mask")
        )
        prompt_embeds, completion_embeds = (
            asa.embed(params, x, None, SPECIAL_TOKENS.audio_id) for x in (batch["prompt"], ids)
        )
        valid = batch["prompt"] != SPECIAL_TOKENS.pad_id
        hidden = asa.score_completions(params, prompt_embeds, valid, completion_embeds, mask > 0)
        logps, _ = lm.token_logps(hidden, asa.unembedding(params), ids, stage.temperature)
        return policy.dr_grpo(logps, old_logps, merge_leading_dims(batch["advantages"]), mask), {}

    train_step = update.make_step(stage, device, loss, SPECIAL_TOKENS.pad_id)
    keys = iter(jax.random.split(jax.random.key(0), 1000))

    def step() -> float:
        nonlocal train_state
        with jax.set_mesh(device):
            completions = jax.device_get(rollout(train_state.params, prompts, next(keys)))
            rewards = np.array(
                [[unique_word_fraction(decode(row)) for row in group] for group in completions.ids]
            )
            rows = {
                "prompt": prompts,
                "ids": completions.ids,
                "logps": completions.logps,
                "mask": completions.mask.astype(np.float32),
                "advantages": policy.group_advantages(rewards, False).astype(np.float32),
            }
            train_state, metrics = train_step(
                train_state, rows, jax.device_put(next(keys), train_state.step.sharding)
            )
            jax.block_until_ready(metrics)
        return float(rewards.mean())

    return step


def run(
    decoder: config.Decoder = DECODER,
    prompts: int = PROMPTS,
    group: int = GROUP,
    prompt: int = PROMPT,
    reply: int = REPLY,
    rounds: int = ROUNDS,
) -> dict:
    """Returns {"rows": [...]}, steps per second.

    prompt, reply: tokens per prompt and completion. rounds: timed steps of each side.
    """
    torch, transformers, peft, trl, datasets = timing.import_baselines(
        "torch", "transformers", "peft", "trl", "datasets"
    )
    torch.manual_seed(0)
    torch_model = torch_decoder(
        decoder,
        transformers,
        pad_token_id=SPECIAL_TOKENS.pad_id,
        eos_token_id=SPECIAL_TOKENS.eos_id,
    )
    stage = config.GrpoStage(
        steps=1000,
        batch_size=prompts,
        num_generations=group,
        learning_rate=1e-4,
        trainable=("lora/.*",),
    )
    words, tokenizer = _words(decoder.vocab_size), _tokenizer(transformers, decoder.vocab_size)
    ids = np.random.default_rng(0).integers(
        FIRST_WORD, decoder.vocab_size, (prompts, prompt), np.int32
    )

    def decode(row) -> str:
        return tokenizer.decode(row, skip_special_tokens=True)

    step = make_jax_step(jax_model(decoder), torch_model, stage, ids, decode, reply)
    seconds: tuple[list[float], list[float]] = ([], [])
    name = f"grpo, steps of {prompts} x {group} completions of {reply} tokens"

    class StepTimer(transformers.TrainerCallback):  # type: ignore[name-defined]
        """Times each step of the trainer, and one step of jaxasa after it."""

        def on_step_begin(self, *_, **__):
            self.start = time.perf_counter()

        def on_step_end(self, args, trainer_state, control, **_):
            baseline = time.perf_counter() - self.start
            ours = timing.time_call(step)
            if trainer_state.global_step > 1:
                seconds[0].append(ours)
                seconds[1].append(baseline)

    with tempfile.TemporaryDirectory() as folder:
        options = trl.GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=prompts * group,
            num_generations=group,
            max_completion_length=reply,
            max_steps=rounds + 1,
            learning_rate=stage.learning_rate,
            temperature=stage.temperature,
            loss_type="dr_grpo",
            scale_rewards="none",
            beta=0.0,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        dataset = datasets.Dataset.from_list(
            [{"prompt": " ".join(words[i] for i in row)} for row in ids]
        )
        trainer = trl.GRPOTrainer(
            torch_model,
            lambda completions, **_: [unique_word_fraction(text) for text in completions],
            options,
            dataset,
            processing_class=tokenizer,
            callbacks=[StepTimer()],
            peft_config=peft_config(peft),
        )
        trainer.train()
    peer = f"trl {trl.__version__} GRPOTrainer, transformers {transformers.__version__}"
    return {"rows": [timing.result_row(name, seconds, f"{peer}, torch {torch.__version__}")]}
