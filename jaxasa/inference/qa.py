"""A trained model that answers questions: for `jaxasa ask`, and for the benchmark."""

import dataclasses
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxasa import config
from jaxasa.acoustics import foa
from jaxasa.core.audio import SAMPLE_RATE
from jaxasa.data import foa_file, records, scene_text, tokens
from jaxasa.data.questions import LETTERS
from jaxasa.data.tokens import Text
from jaxasa.hf import load
from jaxasa.models import generation, sample
from jaxasa.models.asa import ASA, Params
from jaxasa.viz import plot_answer

AUDIO_CONDITIONS = ("full", "mono", "nulled", "none")
FALLBACK_ROWS = 16  # rows at a time whose options are weighed
SHORTEST = 0.5  # seconds; what is shorter ends in silence
GREEDY = config.Sampling()


@dataclass(frozen=True, eq=False)
class Model:
    """Weights, tokenizer and classes. seconds: of the scenes it was trained on.

    digest: changes with the weights, and with `option_fallback`.
    chooses: whether an answer that is none of the options gives way to one of them (`respond`);
        False: it stays as it is, and is wrong.
    """

    asa: ASA
    params: Params
    text: Text
    classes: Sequence[str]
    seconds: float
    digest: str
    option_fallback: bool = True

    @classmethod
    def load(cls, path: str | Path, option_fallback: bool = True) -> "Model":
        """Reads an export folder or `checkpoints/<stage>`; ConfigError where it is neither."""
        params, meta, tokenizer = load.load(path)
        model = config.model_from_dict(meta["model"])
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(params):
            digest.update(np.ascontiguousarray(leaf).tobytes())
        return cls(
            ASA(model),
            jax.tree.map(jnp.asarray, params),
            Text.load(tokenizer),
            tuple(meta["classes"]),
            meta["seconds"],
            digest.hexdigest()[:16] + ("" if option_fallback else " as said"),
            option_fallback,
        )

    @property
    def marks(self) -> generation.Marks:
        return generation.Marks(self.text.pad, self.text.eos, self.text.audio, self.text.answer)

    @property
    def buckets(self) -> tuple[int, ...]:
        """Lengths in samples to which clips are padded: Model.buckets, or as it says without."""
        seconds, most = list(self.asa.model.buckets), self.asa.model.semantic.max_seconds
        if not seconds:
            seconds = [self.seconds]
            while seconds[-1] < most:
                seconds.append(min(2 * seconds[-1], most))
        return tuple(round(s * SAMPLE_RATE) for s in seconds)

    def fit(self, audio: np.ndarray) -> tuple[np.ndarray, int]:
        """A clip [N, C] in its bucket, and its length in samples, of which the rest is padding.

        Cut to the longest bucket; shorter than half a second, it ends in silence.
        """
        buckets = self.buckets
        spatial = self.asa.model.spatial
        least = max(round(SHORTEST * SAMPLE_RATE), spatial.frames_per_step * spatial.hop_length)
        length = min(max(len(audio), least), buckets[-1])
        bucket = next(b for b in buckets if b >= length)
        kept = audio[:length]
        return np.pad(kept, ((0, bucket - len(kept)), (0, 0))), length

    def respond(
        self,
        audio: np.ndarray,
        questions: Sequence[str],
        options: Sequence[Sequence[str] | None],
        audio_condition: str = "full",
        lengths: np.ndarray | None = None,
        sampling: config.Sampling = GREEDY,
        seed: int = 0,
    ) -> list[str]:
        """Replies to one question a scene: int16 audio [B, N, C] -> texts with thought and answer.

        options: four to each question, or None for an open one. An answer that is none of the
            options gives way to the likeliest of them: other thoughts are drawn, and it is the one
            whose probability after them is highest on average, with the thought that is surest of
            it. Not so where `option_fallback` is False, or where replies are sampled or end at a string.
        hearing: "full", "mono" (W only; of two ears their mean), "nulled" (the learnt null in place
            of the dense map) or "none" (the question alone).
        lengths: int32 [B], samples of each clip where the rest of N is padding; None: all of N.
        Raises ConfigError for audio of another number of channels than the model hears.
        """
        config.check(audio_condition in AUDIO_CONDITIONS, "hearing", audio_condition, ", ".join(AUDIO_CONDITIONS))
        spatial = self.asa.model.spatial
        expected = f"{spatial.channels} for a model of {spatial.format} audio"
        config.check(audio.shape[-1] == spatial.channels, "channels", audio.shape[-1], expected)
        heard = [audio.shape[1]] * len(audio) if lengths is None else lengths.tolist()
        rows = [
            tokens.prompt_ids(
                self.text,
                0 if audio_condition == "none" else self.asa.audio_tokens(samples),
                tokens.question_text(question, choice),
            )
            for question, choice, samples in zip(questions, options, heard, strict=True)
        ]
        length = self.asa.audio_tokens(audio.shape[1]) + self.asa.model.prompt_tokens
        prompts = tokens.pad_left(rows, length, self.text.pad)
        if audio_condition == "mono":
            audio = _mono(audio)
        nulled = np.full(len(audio), audio_condition == "nulled")
        placed = generation.place(self.asa, self.params, audio, nulled, lengths)
        if sampling != GREEDY:
            return self._sampled(placed, prompts, sampling, seed)
        about = self.asa, self.marks, self.params
        made = np.asarray(generation.generate(*about, placed, prompts))
        replies = [self.text.decode(row) for row in made]
        stray = [
            i
            for i, choice in enumerate(options)
            if choice is not None and _answer(replies[i], choice) not in choice
        ]
        for start in range(0, len(stray) if self.option_fallback else 0, FALLBACK_ROWS):
            part = stray[start : start + FALLBACK_ROWS]
            chosen = self._choose_option(placed, prompts, options, part)
            for i, reply in zip(part, chosen, strict=True):
                replies[i] = reply
        return replies

    def _sampled(self, placed, prompts, sampling: config.Sampling, seed: int) -> list[str]:
        """Replies to prompts [B, P] that are drawn, or end at a string."""
        key = jax.random.key(seed)

        def advance(stream: sample.Stream, until: int) -> sample.Stream:
            # The strings are looked for on the host: they need not be compiled again.
            choice = dataclasses.replace(sampling, stop=())
            return generation.advance(
                self.asa, self.marks, choice, self.params, prompts, stream, key, until
            )

        stream = generation.begin(self.asa, self.marks, self.params, placed, prompts)
        return sample.texts(stream, advance, self.text.decode, sampling.stop)

    def _choose_option(self, placed, prompts, options, part: Sequence[int]) -> list[str]:
        """Replies of the rows `part`: the likeliest of their options after thoughts drawn anew."""
        rows = np.array([*part, *[part[-1]] * (FALLBACK_ROWS - len(part))])
        about = self.asa, self.marks, self.params, placed[rows], prompts[rows]
        drawn = np.asarray(generation.draw(*about))
        candidates = [
            [self._with_answer(ids, option) for ids in made for option in options[row] or ()]
            for row, made in zip(rows, drawn, strict=True)
        ]
        # Few different shapes, so that few are compiled.
        width = 16 * -(-max(len(c) for row in candidates for c in row) // 16)
        padded = np.stack([tokens.pad_right(c, width, self.text.pad) for c in candidates])
        found = np.asarray(generation.likelihoods(*about, padded))
        chosen = []
        for row, logps in zip(candidates[: len(part)], found, strict=False):
            by_thought = logps.reshape(generation.DRAWS, -1)
            best = np.logaddexp.reduce(by_thought, axis=0).argmax()
            surest = by_thought[:, best].argmax()
            chosen.append(self.text.decode(row[surest * by_thought.shape[1] + best]))
        return chosen

    def _with_answer(self, ids: np.ndarray, option: str) -> list[int]:
        """A generated reply up to its answer, then `option` as the answer."""
        text, row = self.text, ids.tolist()
        for mark in (text.answer, text.eos):
            row = row[: row.index(mark)] if mark in row else row
        row += [] if text.end_think in row else [text.end_think]
        return row + text.encode(tokens.answer_text(option))

    def sources(
        self, audio: np.ndarray, threshold: float = 0.5, length: int | None = None
    ) -> list[dict]:
        """What the slots of the spatial encoder hold for a clip int16 [N, C], likeliest first.

        length: its samples, where the rest of N is padding. Each has class, azimuth and elevation
        (degrees), distance (m), presence (probability).
        """
        return [source for source, _ in self._sources(audio, threshold, length)]

    def tracks(
        self, audio: np.ndarray, threshold: float = 0.5, length: int | None = None
    ) -> list[dict]:
        """`sources` with what happens in time, of frames that last `step` seconds each.

        activity [T]: probabilities; azimuths, elevations [T]: degrees.
        """
        spatial = self.asa.model.spatial
        frames = int(spatial.steps(len(audio) if length is None else length))
        step = spatial.hop_length * spatial.frames_per_step / SAMPLE_RATE
        found = []
        for source, (activity, direction) in self._sources(audio, threshold, length):
            azimuth, elevation = foa.direction(direction[:frames])
            in_time = {"activity": activity[:frames], "azimuths": azimuth, "elevations": elevation}
            found.append(source | {"step": step} | in_time)
        return found

    def _sources(self, audio, threshold: float, length: int | None) -> list[tuple]:
        """(source, (activity [T], directions [T, 3])) of each slot that is likely enough."""
        lengths = None if length is None else np.array([length], np.int32)
        slots = jax.device_get(self._slots(self.params, audio[None], lengths))
        presence = np.asarray(jax.nn.sigmoid(slots.presence[0]))
        activity = np.asarray(jax.nn.sigmoid(slots.activity[0]))
        labels = slots.label[0][:, : len(self.classes)].argmax(-1)
        found = []
        for s in np.argsort(-presence):
            if presence[s] < threshold:
                continue
            azimuth, elevation = foa.direction(slots.direction[0, s])
            source = {
                "class": self.classes[labels[s]],
                "azimuth": round(float(azimuth), 1),
                "elevation": round(float(elevation), 1),
                "distance": round(float(np.exp(slots.log_distance[0, s])), 2),
                "presence": round(float(presence[s]), 3),
            }
            found.append((source, (activity[s], slots.direction_in_time[0, s])))
        return found

    def describe(self, audio: np.ndarray, threshold: float = 0.5) -> list[dict]:
        """What slots and room heads hold of clips int16 [B, N, C], as scenes.describe says it.

        Each source has class, azimuth, elevation, distance, onset, offset, drr and presence; the
        likeliest of a class stands for it. The likeliest is named, however unlikely.
        """
        heard, _ = generation.hear(self.asa, self.params, audio)
        slots, room = jax.device_get((heard.slots, heard.room))
        presence = 1 / (1 + np.exp(-slots.presence))
        activity = 1 / (1 + np.exp(-slots.activity))
        labels = slots.label[..., : len(self.classes)].argmax(-1)
        seconds = audio.shape[1] / SAMPLE_RATE
        step = seconds / activity.shape[-1]
        scenes = []
        for b in range(len(audio)):
            drr = 10 * float(room.drr[b])
            found: dict[str, dict] = {}
            for rank, s in enumerate(np.argsort(-presence[b])):
                name = self.classes[labels[b, s]]
                if name in found or (rank and presence[b, s] < threshold):
                    continue
                azimuth, elevation = foa.direction(slots.direction[b, s])
                active = np.flatnonzero(activity[b, s] >= 0.5 * activity[b, s].max())
                found[name] = {
                    "class": name,
                    "azimuth": float(azimuth),
                    "elevation": float(elevation),
                    "distance": float(np.exp(slots.log_distance[b, s])),
                    "onset": float(active[0] * step),
                    "offset": float((active[-1] + 1) * step),
                    "drr": drr,
                    "presence": float(presence[b, s]),
                }
            rt60, volume = np.exp(room.log_rt60[b]), np.exp(room.log_volume[b])
            sources = sorted(found.values(), key=lambda source: source["onset"])
            scenes.append(
                {
                    "seconds": seconds,
                    "rt60": float(rt60),
                    "volume": float(volume),
                    "sources": sources,
                }
            )
        return scenes

    def directions(self, audio: np.ndarray, count: int) -> np.ndarray:
        """Unit vectors [B, count, 3] of the `count` likeliest slots of clips int16 [B, N, C]."""
        heard, _ = generation.hear(self.asa, self.params, audio)
        presence, found = jax.device_get((heard.slots.presence, heard.slots.direction))
        order = np.argsort(-presence, axis=1)[:, :count]
        chosen = np.take_along_axis(found, order[..., None], axis=1)
        return chosen / np.maximum(np.linalg.norm(chosen, axis=-1, keepdims=True), 1e-9)

    def tags(self, audio: np.ndarray) -> tuple[np.ndarray, float]:
        """Probabilities [B, A, classes] of each class at token rate, and the clips' seconds.

        Raises ConfigError for a projector without a semantic expert, which tells them.
        """
        _, tags = generation.hear(self.asa, self.params, audio)
        kind = self.asa.model.projector
        config.check(
            tags is not None, "Projector", (kind.kind, kind.drop_experts), "a semantic expert"
        )
        return 1 / (1 + np.exp(-np.asarray(tags))), audio.shape[1] / SAMPLE_RATE

    @partial(jax.jit, static_argnums=0)
    def _slots(self, params: Params, audio: jax.Array, lengths: jax.Array | None = None):
        return self.asa.listen(params, audio, lengths=lengths).heard.slots


def ask(
    checkpoint: str | Path,
    audio_path: str | Path,
    question: str,
    options: Sequence[str] | None = None,
    order: str | None = None,
    sampling: config.Sampling = GREEDY,
    seed: int = 0,
    picture: Path | None = None,
) -> dict:
    """{"question", "answer", "thought", "reply", "sources"} for a recording of the model's format.

    The clip may have any length up to the longest bucket, to which it is cut. One that is cut, or
    is longer than what the model was trained on, is said to be on stderr, and under "note". With
    four `options` the answer is one of them, unless it is sampled or ends at a string. order: of
    FOA channels, see foa_file.read ("ambix"); None where two ears are heard. seed: of what is
    sampled. picture: a PNG to draw, of what was heard where and when (viz/plot_answer.py).
    """
    if picture is not None:
        plot_answer.check_output(picture)
    heard = config.model_from_dict(load.read_meta(checkpoint)["model"]).spatial.format
    if heard == "binaural":
        config.check(order is None, "--order", order, "none, as this model hears two ears")
        given = foa_file.read_binaural(audio_path)
    else:
        given = foa_file.read(audio_path, order or "ambix")
    model = Model.load(checkpoint)
    audio, length = model.fit(given)
    # One gain for all channels: what they say of direction stays.
    audio = records.to_int16(audio / max(1.0, float(np.abs(audio).max())))
    lengths = np.array([length], np.int32)
    asked = scene_text.plain(question)
    reply = model.respond(
        audio[None], [asked], [options], lengths=lengths, sampling=sampling, seed=seed
    )[0]
    note = _note(model, len(given), length)
    if note:
        print(f"{audio_path}: {note}", file=sys.stderr)
    found = {
        "question": question,
        "answer": _answer(reply, options),
        "thought": _between(reply, tokens.THINK, tokens.END_THINK),
        "reply": reply,
        "sources": model.sources(audio, length=length),
        **({"note": note} if note else {}),
    }
    if picture is not None:
        tracks = model.tracks(audio, length=length)
        plot_answer.plot_answer(found | {"options": options}, tracks, audio[:length], picture)
    return found


def _note(model: Model, given: int, heard: int) -> str:
    """What is out of the ordinary about a clip of `given` samples, of which so many are heard."""
    notes = []
    if given > heard:
        notes.append(f"only the first {heard / SAMPLE_RATE:g} s are heard")
    if heard > round(model.seconds * SAMPLE_RATE):
        notes.append(
            f"{heard / SAMPLE_RATE:.1f} s are beyond what the model was trained on, "
            f"scenes of {model.seconds:g} s"
        )
    return "; ".join(notes)


def _mono(audio: np.ndarray) -> np.ndarray:
    """int16 [B, N, C] without direction: W of FOA alone; of two ears their mean in both."""
    if audio.shape[-1] == 4:
        return audio * np.array([1, 0, 0, 0], audio.dtype)
    mean = audio.astype(np.int32).sum(-1, keepdims=True) // 2
    return np.repeat(mean, 2, axis=-1).astype(audio.dtype)


def _between(reply: str, opening: str, closing: str) -> str:
    return reply.partition(opening)[2].partition(closing)[0].strip()


def _answer(reply: str, options: Sequence[str] | None) -> str:
    """The text between the answer's tags; an option's letter becomes its text."""
    found = _between(reply, tokens.ANSWER, tokens.END_ANSWER)
    if options is not None and found in tuple(LETTERS):
        return options[LETTERS.index(found)]
    return found or reply
