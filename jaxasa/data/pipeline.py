"""What each stage reads: grain pipelines from scenes to batches of arrays.

Everything random is keyed by (seed, stage, index of the example), so an example is the same
under any number of processes, and a reader's state is one number.

Letters: B batch, N samples, S slots, Q questions of a scene, P prompt and C reply tokens.
"""

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import grain
import jax
import numpy as np

from jaxasa import config
from jaxasa.acoustics.scenes import Clip, describe, draw, turn
from jaxasa.core import keys
from jaxasa.data import phrases, questions, scene_text, synthetic_text, tokens
from jaxasa.data.records import Damaged
from jaxasa.data.tokens import Text

CAPTION_PROMPT = " what do you hear ?\n"
OPEN_SHARE = 0.1
_PASSED_OVER = 1000
_DIFFERENT = 800  # scenes on which questions are balanced, turned four ways
GOLDEN = (5**0.5 - 1) / 2
Example = dict[str, np.ndarray]


class Guest(NamedTuple):
    """A further source: its `share` of the examples once `start` of the stage is done.

    Its arrays have the shapes of the others.
    """

    source: Any
    make: Callable
    share: float
    start: float = 0.0


class Batches:
    """Endless batches of `make(element, rng, done)`, this process's rows of them, checkpointable.

    Process p of n has the p-th n-th of each batch, so that all of them together have what one
    alone would have, in its order, and a saved state serves any number of processes.
    total: examples that the stage sees; done: the share of them that came before, 0 to 1.
    shuffle: elements in a new order at each pass; else in the order of `source`.
    damaged: how many elements may be unreadable; each is replaced by the next one of its source,
    as is one of which `make` makes None.
    """

    def __init__(
        self,
        source,
        make: Callable,
        seed: int,
        purpose: str,
        batch: int,
        *,
        total: int,
        shuffle: bool = True,
        guests: Sequence[Guest] = (),
        damaged: int = 0,
    ):
        processes = jax.process_count()
        if batch % processes:
            raise config.ConfigError(f"batch is {batch}, expected a multiple of {processes}")

        source = Readable(source, damaged)
        visitors = [guest._replace(source=Readable(guest.source, damaged)) for guest in guests]

        def example(index: int, place: int) -> Example:
            rng = keys.rng(seed, purpose, index)
            done = min(1.0, index / total)
            # Multiples of the golden ratio: any run of examples has nearly its share of guests.
            luck = (index * GOLDEN + 0.5) % 1.0
            for guest in visitors:
                if done >= guest.start:
                    if luck < guest.share:
                        chosen = int(rng.integers(len(guest.source)))
                        return guest.make(guest.source[chosen], rng, done)
                    luck -= guest.share
            for step in range(_PASSED_OVER):
                at = (place + step) % len(source)
                found = make(source[at], rng, done)
                if found is not None:
                    return found
            raise _unasked(_PASSED_OVER)

        data = grain.MapDataset.range(len(source)).seed(seed)
        data = (data.shuffle() if shuffle else data).repeat(None).map_with_index(example)
        if processes > 1:
            data = grain.MapDataset.source(_Rows(data, batch, jax.process_index(), processes))
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


class _Rows:
    """The rows of process `index` of `count`, of endless `data` that is read in batches."""

    def __init__(self, data, batch: int, index: int, count: int):
        self._data, self._batch, self._share = data, batch, batch // count
        self._first, self._count = index * self._share, count

    def __len__(self) -> int:
        return sys.maxsize // self._count

    def __getitem__(self, index: int):
        number, row = divmod(index.__index__(), self._share)
        return self._data[number * self._batch + self._first + row]


class Readable:
    """`source` with the next readable element in place of a damaged one, for at most `most`."""

    def __init__(self, source, most: int):
        self._source, self._most = source, most
        self._found: set[int] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int):
        for step in range(self._most + 1):
            place = (index + step) % len(self)
            try:
                return self._source[place]
            except Damaged as error:
                self._note(place, error)
        raise AssertionError("more damaged elements than were counted")

    def _note(self, index: int, error: Damaged) -> None:
        with self._lock:
            is_new = index not in self._found
            self._found.add(index)
            count = len(self._found)
        if count > self._most or count == len(self):
            raise config.ConfigError(
                f"{error}; {count} damaged, expected at most {self._most} (Stage.max_damaged_records)"
            ) from error
        if is_new:
            print(f"skipped {count} of at most {self._most}: {error}", file=sys.stderr, flush=True)


def fixed(source: Sequence, make: Callable, seed: int, purpose: str, count: int) -> Example:
    """One batch of the first `count` examples of `source`, as at the end: for evaluation.

    What is passed over is made again, with another draw, when all have been. Raises ConfigError
    where nothing is made of any.
    """
    count, rows = min(count, len(source)), []
    for i in range(_PASSED_OVER * count):
        made = make(source[i % len(source)], keys.rng(seed, purpose, i), 1.0)
        rows += [made] if made is not None else []
        if len(rows) == count or (not rows and i >= max(len(source), _PASSED_OVER)):
            break
    if not rows:
        raise _unasked(len(source))
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _unasked(count: int) -> config.ConfigError:
    problem = f"{count} scenes in a row support none of them"
    return config.ConfigError(f"Questions.tasks: {problem}, expected more such as heard")


class Written:
    """Scenes that are never rendered: descriptions, drawn for `purpose`.

    So many `different` ones; further ones share their rooms and sources with those, and differ in
    how the listener is turned.
    """

    def __init__(
        self,
        scenes: config.Scenes,
        clips: Sequence[Clip],
        seed: int,
        purpose: str,
        count: int,
        different: int = 4096,
    ):
        self._seed, self._purpose, self._count = seed, purpose, count
        drawn = range(min(count, different))
        self._pool = [describe(draw(scenes, clips, seed, purpose, i)) for i in drawn]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict:
        yaw = keys.rng(self._seed, self._purpose, "yaw", int(index)).uniform(-180, 180)
        return turn(self._pool[index % len(self._pool)], yaw)


def _exchange(asked: questions.Question, is_open: bool, thought: bool = True) -> tuple[str, str]:
    """(prompt, reply); an open question comes without options."""
    prompt = tokens.question_text(asked.question, None if is_open else asked.options)
    return prompt, tokens.reply_text(asked, thought)


@dataclass(frozen=True)
class Texts:
    """Stage 0: drills, captions and questions on written scenes.

    -> prompt [P], reply [C]. After `stage.synthetic_until` of the stage drills are a third as frequent.
    """

    stage: config.TextStage
    model: config.Model
    text: Text
    asking: questions.Asking
    audio_tokens: int

    def __call__(self, scene: dict, rng: np.random.Generator, done: float) -> Example | None:
        # A written scene takes the place of the audio.
        length = self.audio_tokens + self.model.prompt_tokens
        early = done < self.stage.synthetic_until
        share = self.stage.synthetic_fraction if early else self.stage.synthetic_fraction / 3
        # First, so that shares are of the examples, whatever scenes are passed over.
        asked = self.asking(scene, rng)
        if not asked:
            return None
        if rng.random() < share:
            rooms = length, self.model.reply_tokens
            prompt, reply = synthetic_text.draw(self.text, self.asking.classes, rng, *rooms)
        else:
            prompt, reply = self._scene(scene, asked[0], rng)
        return {
            "prompt": tokens.pad_left([prompt], length, self.text.pad)[0],
            "reply": tokens.pad_right([reply], self.model.reply_tokens, self.text.pad)[0],
        }

    def _scene(self, scene: dict, asked: questions.Question, rng) -> tuple[list[int], list[int]]:
        written = " " + scene_text.written(scene, rng)
        if rng.random() < 0.1:
            prompt, reply = CAPTION_PROMPT, tokens.caption_text(scene_text.caption(scene))
        else:
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

    Of a real recording some of this is not known: label is -1 for a class without a name, and
    log_distance and room are NaN.
    """
    heard = sorted(scene["sources"], key=_faintness)
    out = {
        "present": np.zeros(slots, np.float32),
        "label": np.zeros(slots, np.int32),
        "direction": np.zeros((slots, 3), np.float32),
        "log_distance": np.zeros(slots, np.float32),
        "span": np.zeros((slots, 2), np.float32),
    }
    for i, s in enumerate(heard[:slots]):
        azimuth, elevation, distance = questions.while_heard(s).T
        a, e = np.radians(azimuth), np.radians(elevation)
        mean = np.stack([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)], -1).mean(0)
        out["present"][i] = 1
        out["label"][i] = classes.index(s["class"]) if s["class"] in classes else -1
        out["direction"][i] = mean / max(float(np.linalg.norm(mean)), 1e-6)
        out["log_distance"][i] = np.log(distance).mean()
        out["span"][i] = s["onset"], s["offset"]
    room = [np.nan] * 4
    if "rt60" in scene:
        drr = np.mean([s["drr"] for s in heard]) / 10
        room = [np.log(scene["rt60"]), np.log(scene["volume"]), drr, len(heard)]
    return out | {"room": np.array(room, np.float32)}


def _faintness(source: dict) -> float:
    """dB by which a source arrives below a reference; what is not known counts as nothing."""
    return 20 * np.log10(source["distance"] or 1.0) - source.get("level", 0.0)


@dataclass(frozen=True)
class Targets:
    """Stages 1 and 2: audio [N, C], yaw (degrees to turn it by), mono, targets turned alike.

    In stage 2 (`text` given) also prompt [1, P] and reply [1, C] of a caption, a share
    `paraphrase_prob` of them in other words than those of the reasoning traces, but for one that finds
    no room (`check_phrasings`).
    """

    classes: Sequence[str]
    slots: int
    mono_share: float
    augment: bool
    model: config.Model | None = None
    text: Text | None = None
    audio_tokens: int = 0
    phrasings: float = 0.0

    def __call__(
        self, element: tuple[np.ndarray, dict], rng: np.random.Generator, done: float
    ) -> Example:
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
        reply = self._caption(scene, rng)
        length = self.audio_tokens + self.model.prompt_tokens
        return out | {
            "prompt": tokens.pad_left([prompt], length, self.text.pad),
            "reply": tokens.pad_right([reply], self.model.reply_tokens, self.text.pad),
        }

    def _caption(self, scene: dict, rng: np.random.Generator) -> list[int]:
        if self.phrasings and rng.random() < self.phrasings:
            said = self.text.encode(tokens.caption_text(phrases.phrased(scene, rng)))
            if len(said) <= self.model.reply_tokens:
                return said
        return self.text.encode(tokens.caption_text(scene_text.caption(scene)))


def check_phrasings(scenes: Iterable[dict], make: Targets) -> None:
    """Raises ConfigError where captions of `scenes` find no room in many phrasings.

    They would stay plain, and their style would tell how many sources there are.
    """
    rng = np.random.default_rng(0)
    said = [tokens.caption_text(phrases.phrased(scene, rng)) for scene in scenes]
    longest = max(said, key=lambda caption: len(make.text.encode(caption)))
    need, room = len(make.text.encode(longest)), make.model.reply_tokens
    expected = f"at least {need} for AlignStage.paraphrase_prob, as {longest!r}"
    config.check(need <= room, "Model.reply_tokens", room, expected)


@dataclass(frozen=True)
class Asked:
    """Stages 3 and 4: a scene and `count` questions about it.

    -> audio [N, C], yaw, mono, nulled; prompt [Q, P], reply [Q, C], level
    [Q] (0 to 2), and scene: the turned description as JSON-able columns for the evidence reward
    (label [S], azimuth [S], distance [S]; label -1 where there is no source).

    A scene heard not at all has prompts without places for audio, and replies without a trace.
    levels: shares of the levels at the beginning and at the end of the stage, and linearly between;
        () for all alike.
    """

    asking: questions.Asking
    model: config.Model
    text: Text
    audio_tokens: int
    count: int
    mono_share: float = 0.0
    no_audio_share: float = 0.0
    null_share: float = 0.0
    open_share: float = 0.0
    augment: bool = True
    levels: tuple[tuple[float, ...], ...] = ()

    def __call__(
        self, element: tuple[np.ndarray, dict], rng: np.random.Generator, done: float
    ) -> Example | None:
        audio, scene = element
        yaw = _yaw(audio, rng) if self.augment else 0.0
        scene = turn(scene, yaw)
        shares = None
        if self.levels:
            first, last = np.asarray(self.levels, float)
            shares = first + (last - first) * done
        asked = self.asking(scene, rng, self.count, shares)
        if not asked:
            return None
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
            "level": np.array([config.LEVELS.index(q.level) for q in asked], np.int32),
        } | self._columns(scene)

    def _columns(self, scene: dict) -> Example:
        out = {
            "source_label": np.full(8, -1, np.int32),
            "source_azimuth": np.zeros(8, np.float32),
            "source_distance": np.zeros(8, np.float32),
        }
        for i, s in enumerate(scene["sources"]):
            out["source_label"][i] = self.asking.classes.index(s["class"])
            out["source_azimuth"][i] = s["azimuth"]
            out["source_distance"][i] = s["distance"]
        return out


def balanced(
    scenes: config.Scenes,
    clips: Sequence[Clip],
    classes: Sequence[str],
    seed: int,
    which: config.Questions,
) -> questions.Asking:
    """What draws the questions of stages on such scenes: no answer is common among them."""
    written = Written(scenes, clips, seed, "balance", 4 * _DIFFERENT, _DIFFERENT)
    return questions.Asking(classes, which).balanced(written, keys.rng(seed, "balance"))


def corpus(
    scenes: config.Scenes,
    clips: Sequence[Clip],
    classes: Sequence[str],
    seed: int,
    which: config.Questions = questions.ALL,
) -> Iterator[tuple[str, str]]:
    """Pairs of prompt and reply from which the tiny tokenizer learns its words."""
    written = Written(scenes, clips, seed, "corpus", 3000)
    asking = questions.Asking(classes, which)
    for i in range(len(written)):
        for asked in asking(written[i], keys.rng(seed, "corpus", i)):
            yield tokens.question_text(asked.question, asked.options), tokens.reply_text(asked)


def check_lengths(pairs: Sequence[tuple[str, str]], model: config.Model, text: Text) -> None:
    """Raises ConfigError, before anything is trained, where texts of `corpus` find no room."""
    prompts, replies = zip(*pairs, strict=True)
    asked = [len(tokens.prompt_ids(text, 0, prompt)) for prompt in prompts]
    said = [len(text.encode(reply)) for reply in replies]
    for name, texts, lengths in (("prompt", prompts, asked), ("reply", replies, said)):
        need, room = max(lengths), getattr(model, f"{name}_tokens")
        expected = f"at least {need}, for {texts[lengths.index(need)].strip()!r}"
        config.check(need <= room, f"Model.{name}_tokens", room, expected)
