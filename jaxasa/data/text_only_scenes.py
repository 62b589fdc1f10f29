# SPDX-License-Identifier: Apache-2.0
"""Scenes that are only described, never rendered: for texts, question statistics, the tokenizer."""

from collections.abc import Iterator, Sequence

from jaxasa import config
from jaxasa.acoustics.scenes import Clip, describe, rotate_scene, sample_scene
from jaxasa.core import keys
from jaxasa.data import questions, tokens
from jaxasa.data.tokens import TextTokenizer

BALANCE_SCENES = 800  # on which questions are balanced, each in four rotations
CORPUS_SCENES = 3000


class TextOnlyScenes:
    """Random-access data set of `count` scene descriptions, sampled from (seed, purpose).

    Only `num_distinct` scenes are sampled. Further ones repeat them with another random yaw of the
    listener.
    """

    def __init__(
        self,
        scenes: config.Scenes,
        clips: Sequence[Clip],
        seed: int,
        purpose: str,
        count: int,
        num_distinct: int = 4096,
    ):
        self._seed, self._purpose, self._count = seed, purpose, count
        indices = range(min(count, num_distinct))
        self._scenes = [describe(sample_scene(scenes, clips, seed, purpose, i)) for i in indices]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict:
        yaw = keys.rng(self._seed, self._purpose, "yaw", int(index)).uniform(-180, 180)
        return rotate_scene(self._scenes[index % len(self._scenes)], yaw)


def balanced_question_sampler(
    scenes: config.Scenes,
    clips: Sequence[Clip],
    classes: Sequence[str],
    seed: int,
    settings: config.Questions,
) -> questions.QuestionSampler:
    """The question sampler of the stages, weighted so that no answer is frequent on such scenes."""
    data = TextOnlyScenes(scenes, clips, seed, "balance", 4 * BALANCE_SCENES, BALANCE_SCENES)
    return questions.QuestionSampler(classes, settings).balanced(data, keys.rng(seed, "balance"))


def tokenizer_corpus(
    scenes: config.Scenes,
    clips: Sequence[Clip],
    classes: Sequence[str],
    seed: int,
    settings: config.Questions = questions.ALL,
) -> Iterator[tuple[str, str]]:
    """Yields pairs of a prompt and a reply, on which the tokenizer is trained."""
    data = TextOnlyScenes(scenes, clips, seed, "corpus", CORPUS_SCENES)
    question_sampler = questions.QuestionSampler(classes, settings)
    for i in range(len(data)):
        for question in question_sampler(data[i], keys.rng(seed, "corpus", i)):
            prompt = tokens.question_text(question.question, question.options)
            yield prompt, tokens.reply_text(question)


def check_text_lengths(
    pairs: Sequence[tuple[str, str]], model: config.Model, tokenizer: TextTokenizer
) -> None:
    """Raises ConfigError if pairs of `tokenizer_corpus` have more tokens than the model allows."""
    prompts, replies = zip(*pairs, strict=True)
    prompt_lengths = [len(tokens.prompt_ids(tokenizer, 0, prompt)) for prompt in prompts]
    reply_lengths = [len(tokenizer.encode(reply)) for reply in replies]
    for name, texts, lengths in (
        ("prompt", prompts, prompt_lengths),
        ("reply", replies, reply_lengths),
    ):
        need, limit = max(lengths), getattr(model, f"{name}_tokens")
        expected = f"at least {need}, for {texts[lengths.index(need)].strip()!r}"
        config.check(need <= limit, f"Model.{name}_tokens", limit, expected)
