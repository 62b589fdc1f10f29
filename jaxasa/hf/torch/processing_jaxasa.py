"""Prompts and audio for a jaxasa model, and what its replies say."""

import re

import numpy as np
import torch
from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin

RATE = 16_000
FULL_SCALE = 32767  # steps of 16 bit, as in training
LETTERS = "ABCD"


class JaxasaProcessor(ProcessorMixin):
    """processor(audio, text) -> {"input_ids", "attention_mask", "audio"}; `read` reads replies."""

    tokenizer_class = "AutoTokenizer"

    def __init__(self, tokenizer, token_rate=12.5, audio_token="<AcousticTokens>", **kwargs):
        self.token_rate = token_rate
        self.audio_token = audio_token
        super().__init__(tokenizer, **kwargs)

    def __call__(self, audio=None, text=None, options=None, sampling_rate=RATE, **kwargs):
        """audio: one clip [N, 4] (W, Y, Z, X; SN3D), or several of one length, or None.

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
            places = max(1, round(data["audio"].shape[1] / RATE * self.token_rate))
        sound = self.tokenizer.convert_tokens_to_ids(self.audio_token)
        rows = [
            [sound] * places
            + self.tokenizer.encode(self._prompt(question, choice), add_special_tokens=False)
            for question, choice in zip(questions, options, strict=True)
        ]
        length = max(len(row) for row in rows)
        ids = torch.full((len(rows), length), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, length - len(row) :] = torch.tensor(row)
            mask[i, length - len(row) :] = 1
        return BatchFeature({"input_ids": ids, "attention_mask": mask} | data)

    @staticmethod
    def _audio(audio, count):
        clips = [np.asarray(a, np.float32) for a in audio]
        if clips[0].ndim == 1:
            clips = [np.asarray(audio, np.float32)]
        shapes = {clip.shape for clip in clips}
        if any(len(shape) != 2 or shape[1] != 4 for shape in shapes):
            raise ValueError(f"audio of shape {sorted(shapes)}, expected [samples, 4] (W, Y, Z, X)")
        if len(shapes) > 1 or len(clips) != count:
            raise ValueError(
                f"{len(clips)} clips of {sorted(s[0] for s in shapes)} samples for {count} "
                "questions, expected as many, of one length"
            )
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
