# SPDX-License-Identifier: Apache-2.0
"""Question answering about audio with a trained model.

    model = QaModel.load("runs/demo/export")
    model.ask("scene.wav", "Where is the dog?")["answer"]                # one recording
    model.respond(audio, questions, options)                             # a batch, for benchmarks
    model.sources(clip)                                                  # without a question

Shapes: B batch (a clip and its question), N samples, C channels (4 of FOA, 2 of binaural audio),
P prompt length with its audio tokens.
"""

import dataclasses
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxasa import config
from jaxasa.core.audio import SAMPLE_RATE
from jaxasa.data import foa_file, scene_text, tokens
from jaxasa.data.questions import LETTERS
from jaxasa.data.tokens import TextTokenizer
from jaxasa.hf import load
from jaxasa.inference import estimates
from jaxasa.models import generation, sample
from jaxasa.models.asa import ASA, Params
from jaxasa.models.sample import GREEDY, SpecialTokenIds
from jaxasa.viz import plot_answer

# A model gets all of the audio; W of FOA or the mean of two ears; a null embedding in place of the
# spatial encoder's output; or the question alone.
AUDIO_CONDITIONS = ("full", "mono", "no_spatial", "none")
FALLBACK_ROWS = 16  # questions at a time whose options are scored
MIN_SECONDS = 0.5  # shorter clips are padded with silence that counts as part of the clip


@dataclass(frozen=True, eq=False)
class QaModel:
    """A trained model that answers questions: its weights, tokenizer and classes.

    seconds: length of the scenes that it was trained on.
    digest: changes with the weights and with option_fallback, so that answers can be cached.
    option_fallback: if an answer is none of the options, the most probable option replaces it
        (see `respond`). Otherwise it stays, and counts as wrong.
    """

    asa: ASA
    params: Params
    tokenizer: TextTokenizer
    classes: Sequence[str]
    seconds: float
    digest: str
    option_fallback: bool = True

    @classmethod
    def load(cls, path: str | Path, option_fallback: bool = True) -> "QaModel":
        """Reads an export folder or `checkpoints/STAGE`; raises ConfigError if it is neither."""
        params, meta, tokenizer = load.load_model(path)
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(params):
            digest.update(np.ascontiguousarray(leaf).tobytes())
        if not option_fallback:
            digest.update(b"no option fallback")
        return cls(
            ASA(config.model_from_dict(meta["model"])),
            jax.tree.map(jnp.asarray, params),
            TextTokenizer.load(tokenizer),
            tuple(meta["classes"]),
            meta["seconds"],
            digest.hexdigest()[:16],
            option_fallback,
        )

    @property
    def special_tokens(self) -> SpecialTokenIds:
        return SpecialTokenIds.of(self.tokenizer)

    @property
    def buckets(self) -> tuple[int, ...]:
        """Lengths in samples to which clips are padded, so that few shapes are compiled: the one
        trained on and its doubles, up to Semantic.max_seconds."""
        longest = self.asa.model.semantic.max_seconds
        seconds = [self.seconds]
        while seconds[-1] < longest:
            seconds.append(min(2 * seconds[-1], longest))
        return tuple(round(s * SAMPLE_RATE) for s in seconds)

    def pad_to_bucket(self, audio: np.ndarray) -> tuple[np.ndarray, int]:
        """A clip [N, C] padded to the next bucket, and its length in samples without the padding.

        Longer clips than the longest bucket are cut to it.
        """
        buckets = self.buckets
        spatial = self.asa.model.spatial
        step = spatial.frames_per_step * spatial.hop_length
        least = max(round(MIN_SECONDS * SAMPLE_RATE), step)
        length = min(max(len(audio), least), buckets[-1])
        bucket = next(b for b in buckets if b >= length)
        audio = audio[:length]
        return np.pad(audio, ((0, bucket - len(audio)), (0, 0))), length

    def ask(
        self,
        audio: str | Path | np.ndarray,
        question: str,
        options: Sequence[str] | None = None,
        convention: str | None = None,
        sampling: config.Sampling = GREEDY,
        seed: int = 0,
        plot_path: Path | None = None,
    ) -> dict:
        """{"question", "answer", "thought", "reply", "sources"} for a recording.

        audio: a file in `convention` (see `read_recording`), or samples [N, C] in [-1, 1] at
        16 kHz. With four `options` the answer is one of them, unless it is sampled or ends at a
        string. plot_path: a PNG of the detected sources to write (viz/plot_answer.py).

        A recording that is cut to the longest bucket, or longer than the model was trained on, gets
        a remark as "note". Raises ConfigError for a file or samples of another format.
        """
        if plot_path is not None:
            plot_answer.check_output(plot_path)
        if not isinstance(audio, np.ndarray):
            audio = read_recording(audio, self.asa.model.spatial.format, convention)
        clip, length = self.pad_to_bucket(audio)
        clip = foa_file.to_int16(clip)
        (reply,) = self.respond(
            clip[None],
            [scene_text.normalize_text(question)],
            [options],
            lengths=np.array([length], np.int32),
            sampling=sampling,
            seed=seed,
        )
        note = _length_note(self, len(audio), length)
        answer = {
            "question": question,
            **parse_reply(reply, options),
            "sources": self.sources(clip, length=length),
            **({"note": note} if note else {}),
        }
        if plot_path is not None:
            tracks = self.tracks(clip, length=length)
            plot_answer.plot_answer(answer | {"options": options}, tracks, clip[:length], plot_path)
        return answer

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
        """Replies, reasoning trace and answer, to one question about each clip int16 [B, N, C].

        options: four for each question, or None for an open one. If a greedy reply's answer is
            none of them, `option_fallback` applies; sampled replies stay as they are.
        audio_condition: one of AUDIO_CONDITIONS.
        lengths: int32 [B], samples of each clip without padding; None: no padding.
        sampling: with seed; GREEDY takes the likeliest tokens.
        Raises ConfigError for another number of channels than the model has.
        """
        conditions = ", ".join(AUDIO_CONDITIONS)
        is_known = audio_condition in AUDIO_CONDITIONS
        config.check(is_known, "audio_condition", audio_condition, conditions)
        spatial = self.asa.model.spatial
        expected = f"{spatial.channels} for a model of {spatial.format} audio"
        config.check(audio.shape[-1] == spatial.channels, "channels", audio.shape[-1], expected)
        samples = [audio.shape[1]] * len(audio) if lengths is None else lengths.tolist()
        if audio_condition == "none":
            audio_tokens = [0] * len(audio)
        else:
            audio_tokens = [self.asa.num_audio_tokens(n) for n in samples]
        room = self.asa.num_audio_tokens(audio.shape[1])
        prompts = self._prompts(questions, options, audio_tokens, room)
        if audio_condition == "mono":
            audio = _without_direction(audio)
        drop_spatial = np.full(len(audio), audio_condition == "no_spatial")
        audio_embeds = generation.audio_embeddings(
            self.asa, self.params, audio, drop_spatial, lengths
        )
        if sampling != GREEDY:
            return self._sampled_replies(audio_embeds, prompts, sampling, seed)
        ids = generation.greedy_replies(
            self.asa, self.special_tokens, self.params, audio_embeds, prompts
        )
        replies = [self.tokenizer.decode(row) for row in np.asarray(ids)]
        invalid = [
            row
            for row, choices in enumerate(options)
            if choices is not None and parse_reply(replies[row], choices)["answer"] not in choices
        ]
        for start in range(0, len(invalid) if self.option_fallback else 0, FALLBACK_ROWS):
            rows = invalid[start : start + FALLBACK_ROWS]
            fallback = self._most_probable_options(audio_embeds, prompts, options, rows)
            for row, reply in zip(rows, fallback, strict=True):
                replies[row] = reply
        return replies

    def _prompts(self, questions, options, audio_tokens: Sequence[int], room: int) -> np.ndarray:
        """Prompt ids [B, P], padded on the left to `room` audio tokens and Model.prompt_tokens."""
        rows = [
            tokens.prompt_ids(self.tokenizer, count, tokens.question_text(question, choices))
            for question, choices, count in zip(questions, options, audio_tokens, strict=True)
        ]
        return tokens.pad_left(rows, room + self.asa.model.prompt_tokens, self.tokenizer.pad_id)

    def _sampled_replies(self, audio_embeds, prompts, sampling, seed: int) -> list[str]:
        """Replies by a sampling other than greedy, or that end at strings."""
        static = self.asa, self.special_tokens
        key = jax.random.key(seed)
        # The strings are looked for on the host: other ones need no other program.
        compiled = dataclasses.replace(sampling, stop=())

        def decode_until(state: sample.DecodeState, until: int) -> sample.DecodeState:
            return generation.decode_until(
                *static, compiled, self.params, prompts, state, key, until
            )

        state = generation.prefill(*static, self.params, audio_embeds, prompts)
        return sample.decode_with_stop_strings(
            state, decode_until, self.tokenizer.decode, sampling.stop
        )

    def _most_probable_options(self, audio_embeds, prompts, options, rows) -> list[str]:
        """For each of `rows`, a reply whose answer is the most probable of its options.

        Reasoning traces are sampled anew, each option is scored after each trace, and its
        probability is averaged over the traces. The reply has the trace after which the option is
        most probable.
        """
        # Always so many rows, so that one program serves.
        padded = np.array([*rows, *[rows[-1]] * (FALLBACK_ROWS - len(rows))])
        inputs = (
            *(self.asa, self.special_tokens, self.params),
            *(audio_embeds[padded], prompts[padded]),
        )
        samples = np.asarray(generation.sample_replies(*inputs))
        candidates = [
            [self._with_answer(ids, option) for ids in traces for option in options[row] or ()]
            for row, traces in zip(padded, samples, strict=True)
        ]
        # Widths in steps of 16, so that few shapes are compiled.
        width = 16 * -(-max(len(c) for row in candidates for c in row) // 16)
        replies = np.stack([tokens.pad_right(c, width, self.tokenizer.pad_id) for c in candidates])
        logprobs = np.asarray(generation.option_logprobs(*inputs, replies))
        best_replies = []
        for row, scores in zip(candidates[: len(rows)], logprobs, strict=False):
            by_trace = scores.reshape(generation.NUM_SAMPLES, -1)
            option = np.logaddexp.reduce(by_trace, axis=0).argmax()
            trace = by_trace[:, option].argmax()
            best_replies.append(self.tokenizer.decode(row[trace * by_trace.shape[1] + option]))
        return best_replies

    def _with_answer(self, ids: np.ndarray, option: str) -> list[int]:
        """The reasoning trace of a generated reply, then `option` as the answer."""
        tokenizer, row = self.tokenizer, ids.tolist()
        for end in (tokenizer.answer_id, tokenizer.eos_id):
            row = row[: row.index(end)] if end in row else row
        row += [] if tokenizer.end_think_id in row else [tokenizer.end_think_id]
        return row + tokenizer.encode(tokens.answer_text(option))

    def _detect(
        self, audio: np.ndarray, threshold: float, length: int | None
    ) -> list[estimates.SourceEstimate]:
        """The slots of a clip whose presence is at least `threshold`."""
        lengths = None if length is None else np.array([length], np.int32)
        slots = generation.encode_slots(self.asa, self.params, audio[None], lengths)
        (clip,) = estimates.read_slots(jax.device_get(slots), self.classes)
        return [slot for slot in clip if slot.presence >= threshold]

    def sources(
        self, audio: np.ndarray, threshold: float = 0.5, length: int | None = None
    ) -> list[dict]:
        """Sources that the slots detect in a clip int16 [N, C], likeliest first.

        Each has class, azimuth and elevation (degrees), distance (m) and presence (probability,
        at least `threshold`). length: samples without padding.
        """
        return [estimates.source(slot) for slot in self._detect(audio, threshold, length)]

    def tracks(
        self, audio: np.ndarray, threshold: float = 0.5, length: int | None = None
    ) -> list[dict]:
        """`sources` with their activity and direction over time, see `estimates.track`."""
        spatial = self.asa.model.spatial
        steps = int(spatial.steps(len(audio) if length is None else length))
        step_seconds = spatial.hop_length * spatial.frames_per_step / SAMPLE_RATE
        return [
            estimates.track(slot, steps, step_seconds)
            for slot in self._detect(audio, threshold, length)
        ]

    def describe(self, audio: np.ndarray, threshold: float = 0.5) -> list[dict]:
        """Clips int16 [B, N, C] as the slots and the room's estimates describe them, in the form
        of a scene's description; see `estimates.scene`."""
        spatial, _ = generation.encode(self.asa, self.params, audio)
        slots, room = jax.device_get((spatial.slots, spatial.room))
        seconds = audio.shape[1] / SAMPLE_RATE
        return [
            estimates.scene(clip, of_room, seconds, threshold)
            for clip, of_room in zip(
                estimates.read_slots(slots, self.classes), estimates.read_rooms(room), strict=True
            )
        ]

    def directions(self, audio: np.ndarray, count: int) -> np.ndarray:
        """Unit vectors [B, count, 3] of the `count` likeliest slots of clips int16 [B, N, C]."""
        spatial, _ = generation.encode(self.asa, self.params, audio)
        clips = estimates.read_slots(jax.device_get(spatial.slots), self.classes)
        return np.stack([estimates.directions(clip, count) for clip in clips])

    def tags(self, audio: np.ndarray) -> tuple[np.ndarray, float]:
        """Class probabilities [B, A, classes] of the semantic expert, and the clips' seconds.

        Raises ConfigError for a projector without that expert.
        """
        _, tags = generation.encode(self.asa, self.params, audio)
        p = self.asa.model.projector
        config.check(tags is not None, "Projector", (p.kind, p.drop_experts), "a semantic expert")
        return estimates.sigmoid(np.asarray(tags)), audio.shape[1] / SAMPLE_RATE


def parse_reply(reply: str, options: Sequence[str] | None = None) -> dict[str, str]:
    """{"answer", "thought", "reply"}: the texts between the tags of answer and thought.

    An option's letter becomes the option. Without an answer in tags the whole reply is the answer.
    """
    answer = _between(reply, tokens.ANSWER, tokens.END_ANSWER)
    if options is not None and answer in tuple(LETTERS):
        answer = options[LETTERS.index(answer)]
    thought = _between(reply, tokens.THINK, tokens.END_THINK)
    return {"answer": answer or reply, "thought": thought, "reply": reply}


def ask(
    checkpoint: str | Path,
    audio_path: str | Path,
    question: str,
    options: Sequence[str] | None = None,
    convention: str | None = None,
    sampling: config.Sampling = GREEDY,
    seed: int = 0,
    plot_path: Path | None = None,
) -> dict:
    """Answers a question about a recording with a checkpoint or export; see QaModel.ask.

    The recording is read before the model, so that an unusable file is reported at once. A "note"
    in the answer is printed on stderr too.
    """
    if plot_path is not None:
        plot_answer.check_output(plot_path)
    audio_format = config.model_from_dict(load.read_meta(checkpoint)["model"]).spatial.format
    recording = read_recording(audio_path, audio_format, convention)
    model = QaModel.load(checkpoint)
    answer = model.ask(recording, question, options, None, sampling, seed, plot_path)
    if "note" in answer:
        print(f"{audio_path}: {answer['note']}", file=sys.stderr)
    return answer


def read_recording(path: str | Path, audio_format: str, convention: str | None) -> np.ndarray:
    """Samples [N, C] at 16 kHz of a file of audio_format "foa" or "binaural".

    convention: of FOA channels, see foa_file.read_foa; None for binaural audio.
    Raises ConfigError for a file that is no such recording.
    """
    if audio_format == "binaural":
        expected = "none, since this model is binaural"
        config.check(convention is None, "--convention", convention, expected)
        return foa_file.read_binaural(path)
    return foa_file.read_foa(path, convention)


def _length_note(model: QaModel, samples: int, used: int) -> str:
    """A remark on a recording of so many samples, of which `used` are used; "" if there is none."""
    notes = []
    if samples > used:
        notes.append(f"only the first {used / SAMPLE_RATE:g} s are used")
    if used > round(model.seconds * SAMPLE_RATE):
        notes.append(
            f"{used / SAMPLE_RATE:.1f} s are longer than the scenes that the model was trained on, "
            f"{model.seconds:g} s"
        )
    return "; ".join(notes)


def _without_direction(audio: np.ndarray) -> np.ndarray:
    """int16 [B, N, C] with W alone of FOA; of binaural audio, the mean of both ears in both."""
    if audio.shape[-1] == 4:
        return audio * np.array([1, 0, 0, 0], audio.dtype)
    mean = audio.astype(np.int32).sum(-1, keepdims=True) // 2
    return np.repeat(mean, 2, axis=-1).astype(audio.dtype)


def _between(text: str, opening: str, closing: str) -> str:
    return text.partition(opening)[2].partition(closing)[0].strip()
