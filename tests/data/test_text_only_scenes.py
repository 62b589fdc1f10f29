# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest

from jaxasa import config
from jaxasa.config import ConfigError
from jaxasa.data import scene_text, text_only_scenes, tokens

SCENES = config.Scenes(train=1, dev=1, benchmark=1)


def test_scenes_are_a_function_of_seed_and_purpose(described):
    def make(purpose, count=5):
        return text_only_scenes.TextOnlyScenes(SCENES, described.clips, 0, purpose, count)

    scenes = make("text")
    assert len(scenes) == 5 and scenes[3] == make("text")[3]
    assert scenes[3]["sources"] != make("text/dev")[3]["sources"]
    # Scenes repeat, with another yaw of the listener.
    many = make("text", 4100)
    first, again = many[2], many[2 + 4096]
    assert first["room"] == again["room"]
    pairs = zip(first["sources"], again["sources"], strict=True)
    rotations = [a["azimuth"] - b["azimuth"] for a, b in pairs]
    assert np.ptp(np.mod(rotations, 360)) < 1e-6 and abs(rotations[0]) > 1e-3


def test_tokenizer_learns_every_word_of_the_corpus(described, tiny, monkeypatch):
    monkeypatch.setattr(text_only_scenes, "CORPUS_SCENES", 150)
    pairs = list(text_only_scenes.tokenizer_corpus(SCENES, described.clips, tiny.classes, 0))
    assert len(pairs) == 150
    tokenizer = tokens.train_tokenizer([text for pair in pairs for text in pair], 480)
    for word in (*tiny.classes, *scene_text.SECTORS, *scene_text.DISTANCE_NAMES):
        assert len(tokenizer.encode(f" {word}")) == 1, word


def test_too_long_texts_are_refused_before_training(text, tiny):
    pairs = [(" where is the bird ?\n", "<think> bird left near . so left</think>")]
    text_only_scenes.check_text_lengths(pairs, tiny.model, text)
    for name, words in (("prompt_tokens", "where is the bird"), ("reply_tokens", "so left")):
        short = dataclasses.replace(tiny.model, **{name: 3})
        expected = rf"Model\.{name} is 3, expected at least \d+, for .*{words}"
        with pytest.raises(ConfigError, match=expected):
            text_only_scenes.check_text_lengths(pairs, short, text)


def test_prompt_lengths_include_the_chat_template(text, tiny):
    chat = dataclasses.replace(text, chat_prefix=(5, 6, 7), chat_suffix=(8, 9))
    pairs = [(" where is the bird ?\n", "<think></think>")]
    need = len(text.encode(pairs[0][0]))
    for limit in (need, need + 4):
        short = dataclasses.replace(tiny.model, prompt_tokens=limit)
        text_only_scenes.check_text_lengths(pairs, short, text)
        with pytest.raises(ConfigError, match=f"expected at least {need + 5}"):
            text_only_scenes.check_text_lengths(pairs, short, chat)
    exact = dataclasses.replace(tiny.model, prompt_tokens=need + 5)
    text_only_scenes.check_text_lengths(pairs, exact, chat)
    ids = tokens.prompt_ids(chat, 0, pairs[0][0])
    assert tokens.pad_left([ids], exact.prompt_tokens, chat.pad_id).shape == (1, need + 5)
