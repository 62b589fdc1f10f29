"""What each stage reads: grain pipelines from scenes to batches of arrays.

Everything random is keyed by (seed, stage, index of the example), so an example is the same
under any number of processes, and a reader's state is one number.

Letters: B batch, N samples, S slots, Q questions of a scene, P prompt and C reply tokens.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import jax
import numpy as np

from jaxasa import config
from jaxasa.acoustics import keys
from jaxasa.acoustics.scenes import FRAME, Clip, describe, draw, turn
from jaxasa.data import questions, tokens, words
from jaxasa.data.tokens import Text

CAPTION_PROMPT = " what do you hear ?\n"
OPEN_SHARE = 0.1
Example = dict[str, np.ndarray]


class Batches:
    """Endless batches of `make(element, rng)`, this process's share of them, checkpointable.

    shuffle: elements in a new order at each pass; else in the order of `source`.
    mixed: further (source, make, share of the examples), whose arrays have the same shapes.
    """

    def __init__(
        self,
        source,
        make: Callable,
        seed: int,
        purpose: str,
        batch: int,
        shuffle: bool = True,
        mixed: Sequence[tuple[Any, Callable, float]] = (),
    ):
        processes = jax.process_count()
        if batch % processes:
            raise config.ConfigError(f"batch is {batch}, expected a multiple of {processes}")

        def examples(source, make: Callable, *purpose: str | int):
            def example(index: int, element) -> Example:
                return make(element, keys.rng(seed, *purpose, index))

            data = grain.MapDataset.source(source).seed(seed)
            data = (data.shuffle() if shuffle else data).repeat(None)
            return data.map_with_index(example)[jax.process_index() :: processes]

        data = examples(source, make, purpose)
        if mixed:
            # Each is split by process first: taking turns could else give a process one of them.
            others = [examples(s, m, purpose, "mixed", k) for k, (s, m, _) in enumerate(mixed)]
            shares = [share for _, _, share in mixed]
            data = grain.MapDataset.mix([data, *others], [1 - sum(shares), *shares])
        data = data.batch(batch // processes, drop_remainder=True)
        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        self._iterator = iter(data.to_iter_dataset(options))

    def __iter__(self) -> Iterator[Example]:
        return self

    def __next__(self) -> Example:
        return next(self._iterator)

    def get_state(self) -> Mapping[str, Any]:
        return self._iterator.get_state()

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._iterator.set_state(state)


def fixed(source: Sequence, make: Callable, seed: int, purpose: str, count: int) -> Example:
    """One batch of the first `count` examples of `source`, in order: for evaluation."""
    rows = [make(source[i], keys.rng(seed, purpose, i)) for i in range(min(count, len(source)))]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


class Written:
    """Scenes that are never rendered, for stage 0: (index, description), drawn for `purpose`.

    Every 4,096 of them share their rooms and sources, and differ in how the listener is turned.
    """

    def __init__(
        self, scenes: config.Scenes, clips: Sequence[Clip], seed: int, purpose: str, count: int
    ):
        self._seed, self._purpose, self._count = seed, purpose, count
        drawn = range(min(count, 4096))
        self._pool = [describe(draw(scenes, clips, seed, purpose, i)) for i in drawn]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[int, dict]:
        yaw = keys.rng(self._seed, self._purpose, "yaw", int(index)).uniform(-180, 180)
        return int(index), turn(self._pool[index % len(self._pool)], yaw)


def _asked(scene: dict, classes: Sequence[str], rng) -> questions.Question:
    """A question of a random level; tasks that the scene does not support are drawn again."""
    while True:
        found = questions.ask(scene, classes, rng)
        if found is not None:
            return found


def _exchange(asked: questions.Question, is_open: bool, thought: bool = True) -> tuple[str, str]:
    """(prompt, reply); an open question comes without options."""
    prompt = tokens.question_text(asked.question, None if is_open else asked.options)
    return prompt, tokens.reply_text(asked, thought)


@dataclass(frozen=True)
class Texts:
    """Stage 0: copying, captions and questions on written scenes.

    -> prompt [P], reply [C]. Drills fade out at `stage.copy_until` of the run to a tenth.
    """

    stage: config.TextStage
    model: config.Model
    text: Text
    classes: Sequence[str]
    audio_tokens: int
    total: int

    def __call__(self, element: tuple[int, dict], rng: np.random.Generator) -> Example:
        position, scene = element
        early = position < self.stage.copy_until * self.total
        drills = self.stage.copy_share if early else self.stage.copy_share / 5
        if rng.random() < drills:
            prompt, reply = self._copy(rng)
        else:
            prompt, reply = self._scene(scene, rng)
        # A written scene takes the place of the audio.
        length = self.audio_tokens + self.model.prompt_tokens
        return {
            "prompt": tokens.pad_left([prompt], length, self.text.pad)[0],
            "reply": tokens.pad_right([reply], self.model.reply_tokens, self.text.pad)[0],
        }

    def _words(self, count: int, rng) -> list[int]:
        first = len(tokens.SPECIAL) + 256
        return rng.integers(first, self.text.size, count).tolist()

    def _copy(self, rng) -> tuple[list[int], list[int]]:
        ids = self._words(int(rng.integers(4, 20)), rng)
        return ids, [*ids, self.text.eos]

    def _scene(self, scene: dict, rng) -> tuple[list[int], list[int]]:
        written = " " + words.written(scene, rng)
        if rng.random() < 0.1:
            prompt, reply = CAPTION_PROMPT, tokens.caption_text(words.caption(scene))
        else:
            asked = _asked(scene, self.classes, rng)
            prompt, reply = _exchange(asked, rng.random() < OPEN_SHARE)
        return self.text.encode(written + prompt), self.text.encode(reply)


def _yaw(audio: np.ndarray, rng: np.random.Generator) -> float:
    """A random angle to turn a scene by. Raises ConfigError for [N, C] that cannot be turned."""
    expected = "4 of a field that can be turned: two ears are not augmented"
    config.check(audio.shape[-1] == 4, "channels to augment", audio.shape[-1], expected)
    return rng.uniform(-180, 180)


def slot_targets(scene: dict, classes: Sequence[str], slots: int) -> Example:
    """What stage 1 learns: the `slots` loudest sources of a scene, and its room.

    present, label [S]; direction [S, 3] (x, y, z); log_distance [S]; span [S, 2] (onset, offset
    in seconds); room [4]: log RT60, log volume, mean DRR / 10, count of all sources. Direction
    and distance of what moves are means over the time that it is heard, as the slots' are.
    """
    heard = sorted(scene["sources"], key=lambda s: 20 * np.log10(s["distance"]) - s["level"])
    out = {
        "present": np.zeros(slots, np.float32),
        "label": np.zeros(slots, np.int32),
        "direction": np.zeros((slots, 3), np.float32),
        "log_distance": np.zeros(slots, np.float32),
        "span": np.zeros((slots, 2), np.float32),
    }
    for i, s in enumerate(heard[:slots]):
        a, e, distance = _while_heard(s)
        mean = np.stack([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)], -1).mean(0)
        out["present"][i] = 1
        out["label"][i] = classes.index(s["class"])
        out["direction"][i] = mean / max(float(np.linalg.norm(mean)), 1e-6)
        out["log_distance"][i] = np.log(distance).mean()
        out["span"][i] = s["onset"], s["offset"]
    drr = np.mean([s["drr"] for s in heard]) / 10
    room = np.log(scene["rt60"]), np.log(scene["volume"]), drr, len(heard)
    return out | {"room": np.array(room, np.float32)}


def _while_heard(source: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns azimuth, elevation (radians) and distance (m) of a source, [frames] or [1]."""
    rows = np.array([[source["azimuth"], source["elevation"], source["distance"]]])
    if "trajectory" in source:
        moved = np.array(source["trajectory"])
        middle = (np.arange(len(moved)) + 0.5) * FRAME
        heard = moved[(source["onset"] <= middle) & (middle <= source["offset"])]
        rows = heard if len(heard) else rows
    return np.radians(rows[:, 0]), np.radians(rows[:, 1]), rows[:, 2]


@dataclass(frozen=True)
class Targets:
    """Stages 1 and 2: audio [N, C], yaw (degrees to turn it by), mono, targets turned alike.

    In stage 2 (`text` given) also prompt [1, P] and reply [1, C] of a caption.
    """

    classes: Sequence[str]
    slots: int
    mono_share: float
    augment: bool
    model: config.Model | None = None
    text: Text | None = None
    audio_tokens: int = 0

    def __call__(self, element: tuple[np.ndarray, dict], rng: np.random.Generator) -> Example:
        audio, scene = element
        yaw = _yaw(audio, rng) if self.augment else 0.0
        scene = turn(scene, yaw)
        out = {
            "audio": audio,
            "yaw": np.float32(yaw),
            "mono": np.bool_(rng.random() < self.mono_share),
        } | slot_targets(scene, self.classes, self.slots)
        if self.text is None:
            return out
        prompt = tokens.prompt_ids(self.text, self.audio_tokens, CAPTION_PROMPT)
        reply = self.text.encode(tokens.caption_text(words.caption(scene)))
        length = self.audio_tokens + self.model.prompt_tokens
        return out | {
            "prompt": tokens.pad_left([prompt], length, self.text.pad),
            "reply": tokens.pad_right([reply], self.model.reply_tokens, self.text.pad),
        }


@dataclass(frozen=True)
class Asked:
    """Stages 3 and 4: a scene and `count` questions about it.

    -> audio [N, C], yaw, mono, nulled; prompt [Q, P], reply [Q, C], level
    [Q] (0 to 2), and scene: the turned description as JSON-able columns for the evidence reward
    (label [S], azimuth [S], distance [S]; label -1 where there is no source).

    A scene heard not at all has prompts without places for audio, and replies without a trace.
    """

    classes: Sequence[str]
    model: config.Model
    text: Text
    audio_tokens: int
    count: int
    mono_share: float = 0.0
    no_audio_share: float = 0.0
    null_share: float = 0.0
    open_share: float = 0.0
    augment: bool = True

    def __call__(self, element: tuple[np.ndarray, dict], rng: np.random.Generator) -> Example:
        audio, scene = element
        yaw = _yaw(audio, rng) if self.augment else 0.0
        scene = turn(scene, yaw)
        asked = [_asked(scene, self.classes, rng) for _ in range(self.count)]
        unheard = rng.random() < self.no_audio_share
        places = 0 if unheard else self.audio_tokens
        pairs = [_exchange(q, rng.random() < self.open_share, thought=not unheard) for q in asked]
        prompts = [tokens.prompt_ids(self.text, places, prompt) for prompt, _ in pairs]
        replies = [self.text.encode(reply) for _, reply in pairs]
        length = self.audio_tokens + self.model.prompt_tokens
        return {
            "audio": audio,
            "yaw": np.float32(yaw),
            "mono": np.bool_(rng.random() < self.mono_share),
            "nulled": np.bool_(rng.random() < self.null_share),
            "prompt": tokens.pad_left(prompts, length, self.text.pad),
            "reply": tokens.pad_right(replies, self.model.reply_tokens, self.text.pad),
            "level": np.array([questions.LEVELS.index(q.level) for q in asked], np.int32),
        } | self._columns(scene)

    def _columns(self, scene: dict) -> Example:
        out = {
            "source_label": np.full(8, -1, np.int32),
            "source_azimuth": np.zeros(8, np.float32),
            "source_distance": np.zeros(8, np.float32),
        }
        for i, s in enumerate(scene["sources"]):
            out["source_label"][i] = self.classes.index(s["class"])
            out["source_azimuth"][i] = s["azimuth"]
            out["source_distance"][i] = s["distance"]
        return out


def corpus(scenes: config.Scenes, clips: Sequence[Clip], classes: Sequence[str], seed: int):
    """Texts from which the tiny tokenizer learns its words."""
    written = Written(scenes, clips, seed, "corpus", 3000)
    for i in range(len(written)):
        rng = keys.rng(seed, "corpus", i)
        _, scene = written[i]
        asked = _asked(scene, classes, rng)
        yield tokens.question_text(asked.question, asked.options)
        yield tokens.reply_text(asked)
        yield CAPTION_PROMPT
