"""A step of policy optimisation against TRL's GRPOTrainer: rollout, reward, update.

The same weights, prompts, group size, length of completions, reward and loss (Dr. GRPO, no KL).
TRL's step is what its trainer does between on_step_begin and on_step_end; a step of ours is timed
after each.
"""

import tempfile
import time

import jax
import numpy as np

from jaxasa import config
from jaxasa.models import lm, sample
from jaxasa.models.asa import ASA
from jaxasa.speed import interleaved
from jaxasa.speed.decode import model, twin
from jaxasa.speed.sft import DECODER, FIRST_WORD, MARKS, adapters, start
from jaxasa.stages import common, policy
from jaxasa.stages.sft import flat

PROMPTS, GROUP, PROMPT, REPLY, ROUNDS = 16, 8, 50, 30, 8


def reward(text: str) -> float:
    """Share of the words of a completion that are no repetition: it differs within a group."""
    words = text.split()
    return len(set(words)) / max(len(words), 1)


def _words(vocab: int) -> list[str]:
    marks = ["<pad>", "<eos>", "<audio>", "<think>", "</think>", "<answer>"]
    return [*marks, *(f"w{n}" for n in range(FIRST_WORD, vocab))]


def _tokenizer(transformers, vocab: int):
    """A word a token, so that prompts have as many tokens as words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    table = {word: n for n, word in enumerate(_words(vocab))}
    made = Tokenizer(models.WordLevel(table, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def stepper(asa: ASA, theirs, stage: config.GrpoStage, prompts: np.ndarray, decode, reply: int):
    """() -> mean reward: a step of ours on `prompts` [P, S]."""
    context, ours = start(asa, theirs, stage)
    marks = dict(pad=MARKS.pad, audio_id=MARKS.audio)

    @jax.jit
    def rollout(params, prompts, key) -> sample.Completions:
        options = dict(group=stage.num_generations, max_new=reply, temperature=stage.temperature)
        return sample.generate(asa, params, prompts, None, key, eos=MARKS.eos, **options, **marks)

    def loss(params, batch, key):
        ids, behaviour, mask = (flat(batch[name]) for name in ("ids", "logps", "mask"))
        asked_for, said = (asa.embed(params, x, None, MARKS.audio) for x in (batch["prompt"], ids))
        valid = batch["prompt"] != MARKS.pad
        hidden = asa.complete(params, asked_for, valid, said, mask > 0)
        logps, _ = lm.token_logps(hidden, asa.table(params), ids, stage.temperature)
        return policy.dr_grpo(logps, behaviour, flat(batch["advantages"]), mask), {}

    update = common.gradient_step(context, loss)
    keys = iter(jax.random.split(jax.random.key(0), 1000))

    def step() -> float:
        nonlocal ours
        with jax.set_mesh(context.mesh):
            made = jax.device_get(rollout(ours.params, prompts, next(keys)))
            earned = np.array([[reward(decode(row)) for row in group] for group in made.ids])
            rows = {
                "prompt": prompts,
                "ids": made.ids,
                "logps": made.logps,
                "mask": made.mask.astype(np.float32),
                "advantages": policy.advantages(earned, False).astype(np.float32),
            }
            ours, metrics = update(ours, rows, jax.device_put(next(keys), ours.step.sharding))
            jax.block_until_ready(metrics)
        return float(earned.mean())

    return step


def run(
    decoder: config.Decoder = DECODER,
    prompts: int = PROMPTS,
    group: int = GROUP,
    prompt: int = PROMPT,
    reply: int = REPLY,
    rounds: int = ROUNDS,
) -> dict:
    """{"rows": [...]}: steps a second."""
    torch, transformers, peft, trl, datasets = interleaved.peers(
        "torch", "transformers", "peft", "trl", "datasets"
    )
    torch.manual_seed(0)
    theirs = twin(decoder, transformers, pad_token_id=MARKS.pad, eos_token_id=MARKS.eos)
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

    step = stepper(model(decoder), theirs, stage, ids, decode, reply)
    seconds: tuple[list[float], list[float]] = ([], [])
    what = f"grpo, steps of {prompts} x {group} completions of {reply} tokens"

    class Turns(transformers.TrainerCallback):  # type: ignore[name-defined]
        """Takes the time of each of the trainer's steps, and of one of ours after it."""

        def on_step_begin(self, *_, **__):
            self.began = time.perf_counter()

        def on_step_end(self, args, at, control, **_):
            spent = time.perf_counter() - self.began
            ours = interleaved.timed(step)
            if at.global_step > 1:
                seconds[0].append(ours)
                seconds[1].append(spent)

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
        said = datasets.Dataset.from_list(
            [{"prompt": " ".join(words[i] for i in row)} for row in ids]
        )
        trainer = trl.GRPOTrainer(
            theirs,
            lambda completions, **_: [reward(text) for text in completions],
            options,
            said,
            processing_class=tokenizer,
            callbacks=[Turns()],
            peft_config=adapters(peft),
        )
        trainer.train()
    peer = f"trl {trl.__version__} GRPOTrainer, transformers {transformers.__version__}"
    return {"rows": [interleaved.row(what, seconds, f"{peer}, torch {torch.__version__}")]}
