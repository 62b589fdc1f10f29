"""Prompts and audio for a jaxasa model, and what its replies say."""

import re

import numpy as np
import torch
from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin

RATE = 16_000
FULL_SCALE = 32767  # steps of 16 bit, as in training
SHORTEST = RATE // 2  # samples
LETTERS = "ABCD"


class JaxasaProcessor(ProcessorMixin):
    """processor(audio, text) -> {"input_ids", "attention_mask", "audio"}; `read` reads replies."""

    tokenizer_class = "AutoTokenizer"

    def __init__(
        self,
        tokenizer,
        token_rate=12.5,
        slots=3,
        channels=4,
        audio_token="<AcousticTokens>",
        before=(),
        after=(),
        **kwargs,
    ):
        """slots: places in a prompt before those of the map.

        before, after: ids around a prompt, where the decoder was taught conversations.
        """
        self.token_rate, self.slots = token_rate, slots
        self.channels = channels
        self.audio_token = audio_token
        self.before, self.after = list(before), list(after)
        super().__init__(tokenizer, **kwargs)

    def __call__(self, audio=None, text=None, options=None, sampling_rate=RATE, **kwargs):
        """audio: one clip [N, C], or several of one length, or None; shorter than half a second,
        they end in silence. C: W, Y, Z, X (SN3D) of FOA, or the left and the right ear.

        text: the question, or one a clip. options: four answers to choose of, or a list of
        fours. Batches are padded on the left.
        """
        if sampling_rate != RATE:
            raise ValueError(f"sampling_rate is {sampling_rate}, expected {RATE}: resample first")
        questions = [text] if isinstance(text, str) else list(text)
        if options is None or isinstance(options[0], str):
            options = [options] * len(questions)
        places, data = 0, {}
        if audio is not None:
            data["audio"] = self._audio(audio, len(questions))
            each = round(RATE / self.token_rate)
            places = self.slots + max(1, (data["audio"].shape[1] + each // 2) // each)
        sound = self.tokenizer.convert_tokens_to_ids(self.audio_token)
        rows = [
            self.before
            + [sound] * places
            + self.tokenizer.encode(self._prompt(question, choice), add_special_tokens=False)
            + self.after
            for question, choice in zip(questions, options, strict=True)
        ]
        length = max(len(row) for row in rows)
        ids = torch.full((len(rows), length), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, length - len(row) :] = torch.tensor(row)
            mask[i, length - len(row) :] = 1
        return BatchFeature({"input_ids": ids, "attention_mask": mask} | data)

    def _audio(self, audio, count):
        clips = [np.asarray(a, np.float32) for a in audio]
        if clips[0].ndim == 1:
            clips = [np.asarray(audio, np.float32)]
        shapes = {clip.shape for clip in clips}
        if any(len(shape) != 2 or shape[1] != self.channels for shape in shapes):
            expected = f"[samples, {self.channels}]"
            raise ValueError(f"audio of shape {sorted(shapes)}, expected {expected}")
        if len(shapes) > 1 or len(clips) != count:
            raise ValueError(
                f"{len(clips)} clips of {sorted(s[0] for s in shapes)} samples for {count} "
                "questions, expected as many, of one length"
            )
        short = max(0, SHORTEST - len(clips[0]))
        clips = [np.pad(clip, ((0, short), (0, 0))) for clip in clips]
        # One gain for all channels: what they say of direction stays.
        clips = [clip / max(1.0, float(np.abs(clip).max())) for clip in clips]
        rounded = np.rint(np.stack(clips) * FULL_SCALE) / FULL_SCALE
        return torch.from_numpy(rounded.astype(np.float32))

    @staticmethod
    def _prompt(question, options):
        # The words of training: lower case, punctuation apart.
        plain = " ".join(re.sub(r"([?.,:])", r" \1 ", question.lower()).split())
        if options is None:
            return f" {plain}\n"
        lines = [f"\n{letter} {o}" for letter, o in zip(LETTERS, options, strict=True)]
        return f" {plain}{''.join(lines)}\n"

    def read(self, ids, options=None):
        """{"answer", "thought", "reply"} of one row of ids; an option's letter becomes its text."""
        row = ids.tolist() if hasattr(ids, "tolist") else list(ids)
        end, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        row = row[: row.index(end)] if end in row else row
        reply = self.tokenizer.decode([i for i in row if i != pad], skip_special_tokens=False)
        answer = self._between(reply, "<answer>", "</answer>")
        if options is not None and answer in tuple(LETTERS):
            answer = options[LETTERS.index(answer)]
        thought = self._between(reply, "<think>", "</think>")
        return {"answer": answer or reply, "thought": thought, "reply": reply}

    @staticmethod
    def _between(text, opening, closing):
        return text.partition(opening)[2].partition(closing)[0].strip()
