# SPDX-License-Identifier: Apache-2.0
"""Prompts and audio for a jaxasa model, and its replies parsed."""

import re

import numpy as np
import torch
from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin

SAMPLE_RATE = 16_000
FULL_SCALE = 32767  # audio is rounded to 16 bit, as in training
MIN_SAMPLES = SAMPLE_RATE // 2
QUIET_PEAK = 2**-8  # below it the steps of 16 bits would hide differences between channels
SCALED_PEAK = 0.1
LETTERS = "ABCD"


class JaxasaProcessor(ProcessorMixin):
    """processor(audio, text) -> {"input_ids", "attention_mask", "audio"}, and `parse_reply`."""

    tokenizer_class = "AutoTokenizer"

    def __init__(
        self,
        tokenizer,
        token_rate=12.5,
        num_slots=3,
        channels=4,
        audio_token="<AcousticTokens>",
        chat_prefix=(),
        chat_suffix=(),
        **kwargs,
    ):
        """token_rate: audio tokens for each second, after those of the slots.

        chat_prefix, chat_suffix: ids around a prompt, for a decoder that was trained on chats.
        """
        self.token_rate, self.num_slots = token_rate, num_slots
        self.channels = channels
        self.audio_token = audio_token
        self.chat_prefix, self.chat_suffix = list(chat_prefix), list(chat_suffix)
        super().__init__(tokenizer, **kwargs)

    def __call__(self, audio=None, text=None, options=None, sampling_rate=SAMPLE_RATE, **kwargs):
        """Inputs for the model, padded on the left.

        audio: one clip [N, C], or several of one length, or None. C: W, Y, Z, X (SN3D) of FOA, or
            left and right ear. Clips shorter than half a second are padded with silence.
        text: the question, or one for each clip.
        options: four answer options, or a list of four for each question; None: an open question.
        """
        if sampling_rate != SAMPLE_RATE:
            raise ValueError(
                f"sampling_rate is {sampling_rate}, expected {SAMPLE_RATE}: resample first"
            )
        questions = [text] if isinstance(text, str) else list(text)
        if options is None or isinstance(options[0], str):
            options = [options] * len(questions)
        audio_tokens, data = 0, {}
        if audio is not None:
            data["audio"] = self._audio(audio, len(questions))
            each = round(SAMPLE_RATE / self.token_rate)
            map_tokens = max(1, (data["audio"].shape[1] + each // 2) // each)
            audio_tokens = self.num_slots + map_tokens
        audio_id = self.tokenizer.convert_tokens_to_ids(self.audio_token)
        rows = [
            self.chat_prefix
            + [audio_id] * audio_tokens
            + self.tokenizer.encode(self._prompt(question, choices), add_special_tokens=False)
            + self.chat_suffix
            for question, choices in zip(questions, options, strict=True)
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
                "questions, expected one clip for each question, all of one length"
            )
        missing = max(0, MIN_SAMPLES - len(clips[0]))
        clips = [np.pad(clip, ((0, missing), (0, 0))) for clip in clips]
        clips = [self._scaled(clip) for clip in clips]
        rounded = np.rint(np.stack(clips) * FULL_SCALE) / FULL_SCALE
        return torch.from_numpy(rounded.astype(np.float32))

    @staticmethod
    def _scaled(clip):
        # One gain for all channels, which keeps directions: loud clips end at full scale, and very
        # quiet ones are raised, unless their samples are whole steps of 16 bits already.
        peak = float(np.abs(clip).max())
        steps = clip * np.float32(FULL_SCALE)
        has_steps = peak * FULL_SCALE >= 0.5 and np.abs(steps - np.rint(steps)).max() < 0.01
        if 0 < peak < QUIET_PEAK and not has_steps:
            return clip * np.float32(SCALED_PEAK / peak)
        return clip / max(1.0, peak)

    @staticmethod
    def _prompt(question, options):
        # As in training: lower case, punctuation as separate words.
        plain = " ".join(re.sub(r"([?.,:])", r" \1 ", question.lower()).split())
        if options is None:
            return f" {plain}\n"
        lines = [f"\n{letter} {o}" for letter, o in zip(LETTERS, options, strict=True)]
        return f" {plain}{''.join(lines)}\n"

    def parse_reply(self, ids, options=None):
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
