# SPDX-License-Identifier: Apache-2.0
import dataclasses
import re

import numpy as np
import pytest

from jaxasa import config
from jaxasa.acoustics.scenes import rotate_scene
from jaxasa.config import ConfigError
from jaxasa.core import keys
from jaxasa.data import questions, scene_text, transforms
from jaxasa.stages import rewards

AUDIO_TOKENS = 4


def test_slot_targets_are_the_loudest_sources_after_rotation(tiny, audio_scenes, spatial_examples):
    for i, (audio, scene) in enumerate(audio_scenes):
        example = spatial_examples(augment=True)((audio, scene), keys.rng(0, "t", i), 0.0)
        np.testing.assert_array_equal(example["audio"], audio)
        by_level = lambda s: s["level"] - 20 * np.log10(s["distance"])  # noqa: E731
        loudest = sorted(scene["sources"], key=by_level, reverse=True)[:2]
        assert [tiny.classes[k] for k in example["label"]] == [s["class"] for s in loudest]
        azimuth, elevation = (np.radians([s[n] for s in loudest]) for n in ("azimuth", "elevation"))
        azimuth = azimuth + np.radians(example["yaw"])
        horizontal = np.cos(elevation)
        expected = [np.cos(azimuth) * horizontal, np.sin(azimuth) * horizontal, np.sin(elevation)]
        np.testing.assert_allclose(example["direction"].T, expected, atol=1e-5)
        distances = [s["distance"] for s in loudest]
        np.testing.assert_allclose(np.exp(example["log_distance"]), distances, 1e-5)
        spans = [[s["onset"], s["offset"]] for s in loudest]
        np.testing.assert_allclose(example["span"], spans, 1e-5)
        assert (example["present"] == 1).all()
        log_rt60, log_volume, drr, count = example["room"]
        assert count == len(scene["sources"])
        np.testing.assert_allclose(np.exp(log_rt60), scene["rt60"], rtol=1e-5)
        np.testing.assert_allclose(np.exp(log_volume), scene["volume"], rtol=1e-5)
        assert drr * 10 == pytest.approx(np.mean([s["drr"] for s in scene["sources"]]), rel=1e-4)


def test_empty_slots_are_absent(tiny, described):
    scene = described(1, (1, 1))[0]
    targets = transforms.slot_targets(scene, tiny.classes, 3)
    np.testing.assert_array_equal(targets["present"], [1, 0, 0])
    assert not targets["span"][1:].any() and not targets["direction"][1:].any()


def test_slot_targets_of_moving_sources_are_means_while_they_sound(tiny):
    source = {
        "class": tiny.classes[0],
        "azimuth": 170.0,
        "elevation": 0.0,
        "distance": 1.0,
        "onset": 0.3,
        "offset": 0.6,
        "level": 0.0,
        "drr": 0.0,
        # It sounds at 0.35, 0.45 and 0.55 s: through the back, from 170 to -150 degrees.
        "doa_trajectory": [[0.0, 80.0, 9.0]] * 3
        + [[170.0, 0.0, 1.0], [-170.0, 0.0, 2.0], [-150.0, 0.0, 4.0]]
        + [[0.0, 80.0, 9.0]] * 4,
    }
    scene = {"rt60": 0.3, "volume": 50.0, "sources": [source]}
    for yaw in (0.0, 50.0):
        targets = transforms.slot_targets(rotate_scene(scene, yaw), tiny.classes, 3)
        angle = np.radians(-170.0 + yaw)
        expected = [np.cos(angle), np.sin(angle), 0.0]
        np.testing.assert_allclose(targets["direction"][0], expected, atol=1e-6)
        assert targets["log_distance"][0] == pytest.approx(np.log(2.0))
    short = {**scene, "sources": [{**source, "onset": 0.36, "offset": 0.4}]}
    targets = transforms.slot_targets(short, tiny.classes, 3)
    assert np.degrees(np.arctan2(*targets["direction"][0, 1::-1])) == pytest.approx(170, abs=1e-4)


def test_only_foa_is_augmented(spatial_examples, audio_scenes):
    audio, scene = audio_scenes[0]
    rng = keys.rng(0, "t")
    with pytest.raises(ConfigError, match="channels to augment is 2, expected 4"):
        spatial_examples(augment=True)((audio[:, :2], scene), rng, 0.0)
    assert spatial_examples(augment=False)((audio[:, :2], scene), rng, 0.0)["yaw"] == 0


def test_captions_are_of_the_rotated_scene(tiny, text, audio_scenes):
    make = transforms.CaptionExamples(tiny.classes, 3, 0.0, True, tiny.model, text, AUDIO_TOKENS)
    for i, element in enumerate(audio_scenes):
        example = make(element, keys.rng(0, "t", i), 0.0)
        prompt, reply = example["prompt"][0], example["reply"][0]
        assert len(prompt) == AUDIO_TOKENS + tiny.model.prompt_tokens
        assert (prompt == text.audio_id).sum() == AUDIO_TOKENS
        assert text.decode(prompt).endswith(transforms.CAPTION_PROMPT)
        caption = text.decode(reply).removeprefix("<think>")
        azimuths = [s["azimuth"] + example["yaw"] for s in element[1]["sources"]]
        sectors = [c["sector"] for c in scene_text.parse_caption(caption, tiny.classes)]
        assert sectors == [scene_text.sector_name(a) for a in azimuths]


def test_caption_examples_extend_spatial_examples(tiny, text, audio_scenes):
    spatial = transforms.SpatialExamples(tiny.classes, 3, 0.5, True)
    caption = transforms.CaptionExamples(tiny.classes, 3, 0.5, True, tiny.model, text, 4, 0.5)
    for i, element in enumerate(audio_scenes):
        expected = spatial(element, keys.rng(0, "t", i), 0.0)
        example = caption(element, keys.rng(0, "t", i), 0.0)
        assert set(example) - set(expected) == {"prompt", "reply"}
        for name in expected:
            np.testing.assert_array_equal(example[name], expected[name])


WHERE = re.compile(
    r"(?:<AcousticTokens>)+ (?:where is the|from where does the) (\w+) (?:\?|come \?)"
)


def test_questions_are_about_the_rotated_scene(tiny, text, audio_scenes, qa_examples):
    located = 0
    for i, element in enumerate(audio_scenes):
        example = qa_examples(6)(element, keys.rng(0, "t", i), 0.0)
        assert example["prompt"].shape == (6, AUDIO_TOKENS + tiny.model.prompt_tokens)
        assert example["reply"].shape == (6, tiny.model.reply_tokens)
        assert ((example["prompt"] == text.audio_id).sum(1) == AUDIO_TOKENS).all()
        real = example["source_label"] >= 0
        columns = (example[f"source_{n}"][real] for n in ("label", "azimuth", "distance"))
        sources = [
            {"class": tiny.classes[k], "azimuth": float(a), "distance": float(d)}
            for k, a, d in zip(*columns, strict=True)
        ]
        rotated = [s["azimuth"] + example["yaw"] for s in element[1]["sources"]]
        difference = np.array([s["azimuth"] for s in sources]) - rotated
        np.testing.assert_allclose((difference + 180) % 360 - 180, 0, atol=1e-3)
        rows = (example[name] for name in ("prompt", "reply", "level"))
        for prompt, reply, level in zip(*rows, strict=True):
            completion = text.decode(reply)
            question, *options = text.decode(prompt).strip("\n").split("\n")
            _, answer = rewards.parse_completion(completion)
            assert [o[2:] for o in options].count(answer) == 1
            match = WHERE.fullmatch(question)
            if match:
                azimuth = next(s["azimuth"] for s in sources if s["class"] == match[1])
                assert answer == scene_text.sector_name(azimuth)
                located += 1
            assert rewards.evidence_reward(completion, sources, tiny.classes) == 1
            assert 0 <= level < 3
        assert len({row.tobytes() for row in example["prompt"]}) > 1
    assert located > 3


def test_without_audio_prompts_have_no_audio_tokens_and_replies_no_trace(
    text, audio_scenes, qa_examples
):
    example = qa_examples(audio_dropout_prob=1.0)(audio_scenes[0], keys.rng(0, "t", 0), 0.0)
    assert not (example["prompt"] == text.audio_id).any()
    for reply in example["reply"]:
        assert text.decode(reply).startswith("<think></think><answer>")


def test_probabilities_are_met(audio_scenes, qa_examples):
    make = qa_examples(
        1,
        mono_prob=0.3,
        spatial_dropout_prob=0.2,
        audio_dropout_prob=0.5,
        open_ended_prob=0.4,
    )
    examples = [make(audio_scenes[i % 24], keys.rng(0, "t", i), 0.0) for i in range(400)]
    rate = lambda test: np.mean([test(e) for e in examples])  # noqa: E731
    assert rate(lambda e: e["mono"]) == pytest.approx(0.3, abs=0.08)
    assert rate(lambda e: e["drop_spatial"]) == pytest.approx(0.2, abs=0.08)
    assert rate(lambda e: not (e["prompt"] == 2).any()) == pytest.approx(0.5, abs=0.08)
    newline = make.tokenizer.encode("\n")[0]
    assert rate(lambda e: (e["prompt"] == newline).sum() == 1) == pytest.approx(0.4, abs=0.08)
    plain = qa_examples(1, augment=False)(audio_scenes[0], keys.rng(0, "t", 0), 0.0)
    assert plain["yaw"] == 0 and not plain["mono"] and not plain["drop_spatial"]


def test_synthetic_tasks_become_rarer(tiny, text, described):
    stage = config.TextStage(
        steps=1,
        batch_size=1,
        learning_rate=0.0,
        trainable=(),
        synthetic_fraction=0.5,
        synthetic_until=0.5,
    )
    sampler = questions.QuestionSampler(tiny.classes)
    make = transforms.TextExamples(stage, tiny.model, text, sampler, AUDIO_TOKENS)
    scene = described(1, (2, 2))[0]
    is_synthetic = []
    for i in range(600):
        example = make(scene, keys.rng(0, "t", i), i / 600)
        assert example["prompt"].shape == (AUDIO_TOKENS + 64,) and example["reply"].shape == (64,)
        prompt, reply = (list(x[x != text.pad_id]) for x in (example["prompt"], example["reply"]))
        assert reply[-1] == text.eos_id and text.audio_id not in prompt
        is_synthetic.append(text.think_id not in reply)
        if not is_synthetic[-1]:
            sentence = text.decode(prompt).split(" .")[0]
            trace = text.decode(reply).removeprefix("<think>")
            parse = lambda x: scene_text.parse_caption(x, tiny.classes)  # noqa: E731
            assert parse(sentence) == parse(trace)
    assert np.mean(is_synthetic[:300]) == pytest.approx(0.5, abs=0.1)
    assert np.mean(is_synthetic[300:]) == pytest.approx(0.5 / 3, abs=0.07)


def test_too_long_paraphrases_are_refused(tiny, text, described):
    narrow = dataclasses.replace(tiny.model, reply_tokens=20)
    make = transforms.CaptionExamples(tiny.classes, 3, 0.0, False, narrow, text, 20, 0.8)
    expected = r"reply_tokens is \d+, expected .* AlignStage.paraphrase_prob"
    with pytest.raises(ConfigError, match=expected):
        transforms.check_caption_lengths(described(30), make)
    wide = dataclasses.replace(tiny.model, reply_tokens=400)
    transforms.check_caption_lengths(described(30), dataclasses.replace(make, model=wide))
