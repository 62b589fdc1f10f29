# SPDX-License-Identifier: Apache-2.0
"""Transforms of the stages: what `pipeline.Batches` makes of an element of a data set.

    stage              transform         element                             example
    0 text             TextExamples      scene description                   prompt, reply
    1 spatial          SpatialExamples   audio and scene description         audio, slot targets
    2 align            CaptionExamples   audio and scene description         the same, prompt, reply
    3 sft, 4 grpo      QaExamples        audio and scene description         audio, prompt, reply

All are called as transform(element, rng, progress), progress being the fraction of training done,
and return a dict of numpy arrays. Scenes are described as in acoustics/scenes.py; questions and
captions are of the scene after the random rotation, which is applied to the audio on the device.

Shapes: N samples · C channels · S slots · Q questions per scene · P prompt length · L reply length
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from jaxasa import config
from jaxasa.acoustics.scenes import rotate_scene
from jaxasa.data import phrases, questions, scene_text, synthetic_text, tokens
from jaxasa.data.pipeline import Example
from jaxasa.data.tokens import TextTokenizer

CAPTION_PROMPT = " what do you hear ?\n"
CAPTION_PROB = 0.1  # of a caption in place of a question in stage 0
OPEN_ENDED_PROB = 0.1  # of a question without its options
MAX_SOURCES = 8  # length of the arrays of `source_arrays`

AudioScene = tuple[np.ndarray, dict]  # int16 audio [N, C] and the description of the scene


@dataclass(frozen=True)
class TextExamples:
    """Stage 0: synthetic tasks, or a scene as text with a question about it or a caption.

    Returns prompt [P + audio_tokens] and reply [L]: the text of the scene takes the place of the
    audio. None if the scene supports no question. Synthetic tasks are `stage.synthetic_fraction`
    of the examples, and a third of that after `stage.synthetic_until` of the training.
    """

    stage: config.TextStage
    model: config.Model
    tokenizer: TextTokenizer
    question_sampler: questions.QuestionSampler
    audio_tokens: int

    def __call__(self, scene: dict, rng: np.random.Generator, progress: float) -> Example | None:
        max_prompt = self.audio_tokens + self.model.prompt_tokens
        max_reply = self.model.reply_tokens
        # Before the choice, so that the fraction is of the examples, whatever scenes are rejected.
        sample = self.question_sampler(scene, rng)
        if not sample:
            return None
        fraction = self.stage.synthetic_fraction
        if progress >= self.stage.synthetic_until:
            fraction = fraction / 3
        if rng.random() < fraction:
            classes = self.question_sampler.classes
            prompt, reply = synthetic_text.sample_pair(
                self.tokenizer, classes, rng, max_prompt, max_reply
            )
        else:
            prompt, reply = self._scene_pair(scene, sample[0], rng)
        return {
            "prompt": tokens.pad_left([prompt], max_prompt, self.tokenizer.pad_id)[0],
            "reply": tokens.pad_right([reply], max_reply, self.tokenizer.pad_id)[0],
        }

    def _scene_pair(
        self, scene: dict, question: questions.Question, rng: np.random.Generator
    ) -> tuple[list[int], list[int]]:
        text = " " + scene_text.scene_to_text(scene, rng)
        if rng.random() < CAPTION_PROB:
            prompt, reply = CAPTION_PROMPT, tokens.caption_text(scene_text.caption(scene))
        else:
            prompt, reply = prompt_and_reply(question, rng.random() < OPEN_ENDED_PROB)
        return self.tokenizer.encode(text + prompt), self.tokenizer.encode(reply)


@dataclass(frozen=True)
class SpatialExamples:
    """Stage 1: a scene's audio, its augmentation, and the targets of the spatial encoder.

    Returns audio [N, C] as stored; yaw (degrees) by which to rotate it, 0 without `augment`; mono,
    true with probability `mono_prob`: only the omnidirectional part is used; and `slot_targets` of
    the rotated scene.
    """

    classes: Sequence[str]
    num_slots: int
    mono_prob: float
    augment: bool

    def __call__(self, element: AudioScene, rng: np.random.Generator, progress: float) -> Example:
        return self._rotated(element, rng)[0]

    def _rotated(self, element: AudioScene, rng: np.random.Generator) -> tuple[Example, dict]:
        """The example, and the description of its rotated scene."""
        audio, scene = element
        yaw = random_yaw(audio, rng) if self.augment else 0.0
        scene = rotate_scene(scene, yaw)
        example = {
            "audio": audio,
            "yaw": np.float32(yaw),
            "mono": np.bool_(rng.random() < self.mono_prob),
        }
        return example | slot_targets(scene, self.classes, self.num_slots), scene


@dataclass(frozen=True)
class CaptionExamples(SpatialExamples):
    """Stage 2: as in stage 1, and a caption: prompt [1, P + audio_tokens], reply [1, L].

    With probability `paraphrase_prob` a caption is in other words than those of reasoning traces,
    if there are enough reply tokens for it (see `check_caption_lengths`).
    """

    model: config.Model
    tokenizer: TextTokenizer
    audio_tokens: int
    paraphrase_prob: float = 0.0

    def __call__(self, element: AudioScene, rng: np.random.Generator, progress: float) -> Example:
        example, scene = self._rotated(element, rng)
        prompt = tokens.prompt_ids(self.tokenizer, self.audio_tokens, CAPTION_PROMPT)
        reply = self._caption(scene, rng)
        max_prompt = self.audio_tokens + self.model.prompt_tokens
        return example | {
            "prompt": tokens.pad_left([prompt], max_prompt, self.tokenizer.pad_id),
            "reply": tokens.pad_right([reply], self.model.reply_tokens, self.tokenizer.pad_id),
        }

    def _caption(self, scene: dict, rng: np.random.Generator) -> list[int]:
        if self.paraphrase_prob and rng.random() < self.paraphrase_prob:
            caption = tokens.caption_text(phrases.paraphrase(scene, rng))
            reply = self.tokenizer.encode(caption)
            if len(reply) <= self.model.reply_tokens:
                return reply
        return self.tokenizer.encode(tokens.caption_text(scene_text.caption(scene)))


@dataclass(frozen=True)
class QaExamples:
    """Stages 3 and 4: a scene's audio and `questions_per_scene` questions about it.

    Returns audio [N, C], yaw and mono as `SpatialExamples` does; drop_spatial, true with
    probability `spatial_dropout_prob`: the spatial path is replaced by the learned null; prompt
    [Q, P + audio_tokens], reply [Q, L], level [Q] (0 to 2) and `source_arrays` of the rotated
    scene. None if the scene supports no question.

    audio_dropout_prob: of prompts without audio tokens, whose replies have no reasoning trace.
    open_ended_prob: of a question without its options. level_mix: shares of the levels L1 to L3 at
    the start and at the end of training, interpolated in between; (): equal.
    """

    question_sampler: questions.QuestionSampler
    model: config.Model
    tokenizer: TextTokenizer
    audio_tokens: int
    questions_per_scene: int
    mono_prob: float = 0.0
    audio_dropout_prob: float = 0.0
    spatial_dropout_prob: float = 0.0
    open_ended_prob: float = 0.0
    augment: bool = True
    level_mix: tuple[tuple[float, ...], ...] = ()

    def __call__(
        self, element: AudioScene, rng: np.random.Generator, progress: float
    ) -> Example | None:
        audio, scene = element
        yaw = random_yaw(audio, rng) if self.augment else 0.0
        scene = rotate_scene(scene, yaw)
        shares = None
        if self.level_mix:
            first, last = np.asarray(self.level_mix, float)
            shares = first + (last - first) * progress
        sample = self.question_sampler(scene, rng, self.questions_per_scene, shares)
        if not sample:
            return None
        has_audio = not rng.random() < self.audio_dropout_prob
        pairs = [
            prompt_and_reply(q, rng.random() < self.open_ended_prob, with_trace=has_audio)
            for q in sample
        ]
        audio_tokens = self.audio_tokens if has_audio else 0
        prompts = [tokens.prompt_ids(self.tokenizer, audio_tokens, prompt) for prompt, _ in pairs]
        replies = [self.tokenizer.encode(reply) for _, reply in pairs]
        max_prompt = self.audio_tokens + self.model.prompt_tokens
        return {
            "audio": audio,
            "yaw": np.float32(yaw),
            "mono": np.bool_(rng.random() < self.mono_prob),
            "drop_spatial": np.bool_(rng.random() < self.spatial_dropout_prob),
            "prompt": tokens.pad_left(prompts, max_prompt, self.tokenizer.pad_id),
            "reply": tokens.pad_right(replies, self.model.reply_tokens, self.tokenizer.pad_id),
            "level": np.array([config.LEVELS.index(q.level) for q in sample], np.int32),
        } | source_arrays(scene["sources"], self.question_sampler.classes)


def random_yaw(audio: np.ndarray, rng: np.random.Generator) -> float:
    """A rotation angle in degrees; raises ConfigError if audio [N, C] is not FOA."""
    expected = "4 (FOA): binaural audio cannot be rotated"
    config.check(audio.shape[-1] == 4, "channels to augment", audio.shape[-1], expected)
    return rng.uniform(-180, 180)


def prompt_and_reply(
    question: questions.Question, is_open_ended: bool, with_trace: bool = True
) -> tuple[str, str]:
    """The texts of a question, without its options if open-ended, and of the reply to it."""
    options = None if is_open_ended else question.options
    return tokens.question_text(question.question, options), tokens.reply_text(question, with_trace)


def slot_targets(scene: dict, classes: Sequence[str], num_slots: int) -> Example:
    """Targets of the spatial encoder: the loudest `num_slots` sources of a scene, and its room.

    Returns present, label [S]; direction [S, 3] (unit vectors x, y, z); log_distance [S] (log m);
    span [S, 2] (onset, offset in s); room [4]: log RT60 (s), log volume (m^3), mean DRR (dB) / 10,
    number of all sources. Direction and distance of a moving source are means over the time that
    it sounds, as those that the slots predict.

    Labels of real recordings are incomplete: label is -1 for a class that is not among `classes`;
    log_distance and room are NaN if unknown.
    """
    sources = sorted(scene["sources"], key=_attenuation)
    targets = {
        "present": np.zeros(num_slots, np.float32),
        "label": np.zeros(num_slots, np.int32),
        "direction": np.zeros((num_slots, 3), np.float32),
        "log_distance": np.zeros(num_slots, np.float32),
        "span": np.zeros((num_slots, 2), np.float32),
    }
    for i, s in enumerate(sources[:num_slots]):
        azimuth, elevation, distance = questions.positions_while_sounding(s).T
        a, e = np.radians(azimuth), np.radians(elevation)
        mean = np.stack([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)], -1).mean(0)
        targets["present"][i] = 1
        targets["label"][i] = classes.index(s["class"]) if s["class"] in classes else -1
        targets["direction"][i] = mean / max(float(np.linalg.norm(mean)), 1e-6)
        targets["log_distance"][i] = np.log(distance).mean()
        targets["span"][i] = s["onset"], s["offset"]
    room = [np.nan] * 4
    if "rt60" in scene:
        drr = np.mean([s["drr"] for s in sources]) / 10
        room = [np.log(scene["rt60"]), np.log(scene["volume"]), drr, len(sources)]
    return targets | {"room": np.array(room, np.float32)}


def _attenuation(source: dict) -> float:
    """By how many dB a source is softer than one of level 0 at 1 m; unknown values count as 0."""
    return 20 * np.log10(source["distance"] or 1.0) - source.get("level", 0.0)


def source_arrays(sources: Sequence[dict], classes: Sequence[str]) -> Example:
    """Label (-1: none), azimuth (degrees) and distance (m) of sources, each [MAX_SOURCES].

    The evidence reward compares reasoning traces with them.
    """
    arrays = {
        "source_label": np.full(MAX_SOURCES, -1, np.int32),
        "source_azimuth": np.zeros(MAX_SOURCES, np.float32),
        "source_distance": np.zeros(MAX_SOURCES, np.float32),
    }
    for i, s in enumerate(sources):
        arrays["source_label"][i] = classes.index(s["class"])
        arrays["source_azimuth"][i] = s["azimuth"]
        arrays["source_distance"][i] = s["distance"]
    return arrays


def check_caption_lengths(scenes: Iterable[dict], transform: CaptionExamples) -> None:
    """Raises ConfigError if paraphrased captions of `scenes` are longer than the reply tokens.

    Captions of many sources would never be paraphrased, and their style would give away the
    number of sources.
    """
    rng = np.random.default_rng(0)
    captions = [tokens.caption_text(phrases.paraphrase(scene, rng)) for scene in scenes]
    longest = max(captions, key=lambda caption: len(transform.tokenizer.encode(caption)))
    need, limit = len(transform.tokenizer.encode(longest)), transform.model.reply_tokens
    expected = f"at least {need} for AlignStage.paraphrase_prob, as for {longest!r}"
    config.check(need <= limit, "Model.reply_tokens", limit, expected)
