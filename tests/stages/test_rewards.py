# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxasa import config
from jaxasa.data import questions, scene_text, tokens
from jaxasa.stages import rewards

CLASSES = ("alarm", "bell", "bird", "clock", "dog", "engine", "rain", "voice")
STAGE = config.GrpoStage(steps=1, batch_size=1, learning_rate=0.0, trainable=())
TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def scenes_of(max_sources=4):
    source = st.tuples(st.sampled_from(CLASSES), st.floats(-180, 180), st.floats(0.5, 5.0))
    return st.lists(source, min_size=1, max_size=max_sources, unique_by=lambda s: s[0]).map(
        lambda rows: [dict(zip(("class", "azimuth", "distance"), row, strict=True)) for row in rows]
    )


def reply(reasoning, answer="left"):
    return f"<think>{reasoning}</think><answer> {answer}</answer>"


def clause(name, sector, distance):
    return f" {name} {sector} {distance} "


claim = st.builds(
    clause,
    st.sampled_from(CLASSES),
    st.sampled_from((*scene_text.SECTORS, "")),
    st.sampled_from((*scene_text.DISTANCE_NAMES, "")),
)
pieces = st.lists(
    st.sampled_from((*TAGS, *TAGS, "left", " left", "B", " ", "\n", "so dog", "<eos>")), max_size=10
)


def is_well_formed(text):
    """Whether a reply is one reasoning trace and one answer, without regular expressions."""
    text = text.strip()
    if any(text.count(tag) != 1 for tag in TAGS):
        return False
    reasoning, _, rest = text.partition("</think>")
    between, _, last = rest.partition("<answer>")
    answer, end, after = last.partition("</answer>")
    is_closed = reasoning.startswith("<think>") and end and not after
    return bool(is_closed) and not between.strip() and "<" not in answer


@given(pieces.map("".join))
def test_malformed_text_has_no_reward(text):
    result = rewards.compute_rewards(STAGE, text, "left", (), [], CLASSES, 0.5)
    assert result["format"] == rewards.format_reward(text) == float(is_well_formed(text))
    if not is_well_formed(text):
        assert result["answer"] == result["total"] == 0
        assert all(rewards.answer_reward(text, x) == 0 for x in ("", "left", "B", "so dog"))


answers = st.sampled_from((*scene_text.SECTORS, *CLASSES, "0", "3"))


@given(answers, answers, st.sampled_from(("", " so left", "\n")))
def test_answer_reward_needs_exactly_the_target(answer, target, reasoning):
    assert rewards.answer_reward(reply(reasoning, answer), target) == (answer == target)
    every = " ".join(scene_text.SECTORS)
    hedges = f"{answer} {target}", f"{target} {target}", every, target.upper() + ".", f"B {target}"
    for hedge in hedges:
        assert rewards.answer_reward(reply(reasoning, hedge), target) == 0
    twice = reply(reasoning, answer) + reply(reasoning, target)
    assert rewards.answer_reward(twice, target) == 0
    second = reply(reasoning, answer) + f"<answer>{target}</answer>"
    assert rewards.answer_reward(second, target) == 0


@given(scenes_of(), st.lists(claim, max_size=8).map(",".join))
def test_evidence_reward_is_between_0_and_1(scene, reasoning):
    assert 0 <= rewards.evidence_reward(reply(reasoning), scene, CLASSES) <= 1
    assert rewards.evidence_reward(reasoning, scene, CLASSES) == 0


@given(scenes_of())
def test_evidence_reward_is_1_for_the_caption_and_less_for_parts(scene):
    caption = scene_text.caption({"sources": scene})
    assert rewards.evidence_reward(reply(caption), scene, CLASSES) == 1
    assert rewards.evidence_reward(reply(f"{caption} dog back near so left"), scene, CLASSES) == 1
    first = caption.split(",")[0]
    half = rewards.evidence_reward(reply(first), scene, CLASSES)
    assert half == pytest.approx(2 / (1 + len(scene)))
    assert rewards.evidence_reward(reply(""), scene, CLASSES) == 0
    far = first.replace("near", "far") if "near" in first else first.replace("far", "near")
    assert rewards.evidence_reward(reply(far), scene, CLASSES) == pytest.approx(half / 2)


@given(scenes_of(), st.integers(0, 7))
def test_evidence_reward_falls_with_distance_from_the_sector(scene, steps):
    """In full within its sector, and less and less over the 45 degrees beyond its edge."""
    source = scene[0]
    at = (scene_text.SECTORS.index(scene_text.sector_name(source["azimuth"])) + steps) % 8
    off = abs((45 * at - source["azimuth"] + 180) % 360 - 180)
    score = np.interp(off, [22.5, 67.5], [1, 0])
    assert score == pytest.approx(1, abs=1e-6) if not steps else 0 <= score < 1
    text = clause(
        source["class"], scene_text.SECTORS[at], scene_text.distance_name(source["distance"])
    )
    result = rewards.evidence_reward(reply(text), scene, CLASSES)
    assert result == pytest.approx((score + 1) / (1 + len(scene)), abs=1e-6)


@given(scenes_of(), st.floats(-180, 180), st.floats(-180, 180))
def test_evidence_reward_matches_two_sources_of_a_class_one_to_one(scene, one, other):
    """In any order of the claims; one claim counts for one source."""
    name = scene[0]["class"]
    twins = [{"class": name, "azimuth": a, "distance": 1.0} for a in (one, other)]
    claims = [clause(name, scene_text.sector_name(a), "near") for a in (one, other)]
    for order in (claims, claims[::-1]):
        assert rewards.evidence_reward(reply(",".join(order)), twins, CLASSES) > 0.74
    assert rewards.evidence_reward(reply(claims[0]), twins, CLASSES) == pytest.approx(2 / 3)


@given(scenes_of(), st.lists(claim, min_size=1, max_size=4), st.integers(1, 3))
def test_evidence_reward_does_not_grow_by_repeating_or_listing(scene, claims, times):
    """Added claims: the same again, every class, every sector of a class.

    Claiming every class has no reward at all, even at the right places.
    """
    honest = [clause(s["class"], scene_text.sector_name(s["azimuth"]), "near") for s in scene]
    for some in (honest, claims):
        once = rewards.evidence_reward(reply(",".join(some)), scene, CLASSES)
        repeated = reply(",".join(some * (1 + times)))
        assert rewards.evidence_reward(repeated, scene, CLASSES) <= once
    once = rewards.evidence_reward(reply(",".join(honest)), scene, CLASSES)
    absent = [c for c in CLASSES if c not in {s["class"] for s in scene}]
    for sector in scene_text.SECTORS:
        every = honest + [clause(c, sector, "near") for c in absent]
        assert rewards.evidence_reward(reply(",".join(every)), scene, CLASSES) == 0
        more = reply(",".join([*honest, clause(absent[0], sector, "near")]))
        assert rewards.evidence_reward(more, scene, CLASSES) < once
    # All sectors of a class in one claim count as the first of them.
    hedged = clause(scene[0]["class"], " ".join(scene_text.SECTORS), "near far")
    single = clause(scene[0]["class"], "front", "near")
    assert rewards.evidence_reward(reply(hedged), scene, CLASSES) == rewards.evidence_reward(
        reply(single), scene, CLASSES
    )


def test_evidence_reward_of_random_claims_of_all_classes_is_less_than_of_one_true_claim(described):
    """On average; the true claim is the caption's first clause."""
    rng = np.random.default_rng(0)
    guesses, true_claims = [], []
    for scene in described(300, (2, 3)):
        every = [
            clause(c, rng.choice(scene_text.SECTORS), rng.choice(scene_text.DISTANCE_NAMES))
            for c in CLASSES
        ]
        guesses.append(rewards.evidence_reward(reply(",".join(every)), scene["sources"], CLASSES))
        first = scene_text.caption(scene).split(",")[0]
        true_claims.append(rewards.evidence_reward(reply(first), scene["sources"], CLASSES))
    assert np.mean(guesses) < 0.5 * np.mean(true_claims)


def test_evidence_reward_does_not_grow_by_guessing_on_average(described):
    """A true claim, with and without one of a random other class."""
    rng = np.random.default_rng(1)
    more, fewer = [], []
    for scene in described(400, (2, 2)):
        sources = scene["sources"]
        claim = scene_text.caption(scene).split(",")[0]
        other = str(rng.choice([c for c in CLASSES if c != sources[0]["class"]]))
        guess = clause(other, scene_text.sector_name(sources[1]["azimuth"]), "near")
        more.append(rewards.evidence_reward(reply(f"{claim},{guess}"), sources, CLASSES))
        fewer.append(rewards.evidence_reward(reply(claim), sources, CLASSES))
    assert np.mean(more) < np.mean(fewer)


@given(answers, st.lists(answers, min_size=4, max_size=4, unique=True))
def test_format_reward_needs_an_answer_among_the_options(answer, options):
    text = reply("dog left near", answer)
    result = rewards.compute_rewards(STAGE, text, options[0], options, [], CLASSES, 0.5)
    assert result["format"] == rewards.format_reward(text, options) == float(answer in options)
    assert result["total"] == pytest.approx((answer == options[0]) + 0.1 * (answer in options))
    assert rewards.format_reward(text) == 1  # an open question


@given(st.floats(0, 1), st.floats(0, 1))
def test_length_reward_is_a_penalty_near_the_limit(used, more):
    assert -1 <= rewards.length_reward(used) <= 0
    assert rewards.length_reward(min(used, 0.75)) == 0
    assert rewards.length_reward(max(used, more)) <= rewards.length_reward(min(used, more))
    assert rewards.length_reward(1.0) == -1 and rewards.length_reward(0.875) == pytest.approx(-0.5)
    weighted = dataclasses.replace(STAGE, length_weight=0.5)
    text = reply("dog left near")
    for stage, weight in ((STAGE, 0.0), (weighted, 0.5)):
        result = rewards.compute_rewards(stage, text, "left", (), [], CLASSES, used)
        assert result["total"] == pytest.approx(1.1 + weight * rewards.length_reward(used))


@given(pieces.map("".join), st.sampled_from(answers_of := ("left", "right", "front", "back")))
def test_answer_reward_is_0_for_lists_repetitions_and_malformed_replies(text, target):
    """All options, blocks twice, blocks in blocks, no end."""
    options = " ".join(answers_of)
    whole = reply("dog left near", target)
    bad = [
        reply("dog left near", options),
        reply("dog left near", f"{target} {target}"),
        whole + whole,
        whole + f"<answer>{target}</answer>",
        f"<answer>{target}</answer>" + whole,
        f"<think>{whole}</think>",
        whole.removesuffix("</answer>"),
        f"<think></think>{whole}",
        whole.replace("<think>", ""),
        whole + (text or "x"),
    ]
    for completion in bad:
        if is_well_formed(completion) and completion.strip() == whole:
            continue
        result = rewards.compute_rewards(STAGE, completion, target, answers_of, [], CLASSES, 0.5)
        assert result["answer"] == 0 and result["total"] <= STAGE.format_weight


def test_total_reward_counts_evidence_only_with_a_correct_answer(described):
    rng = np.random.default_rng(0)
    for scene in described(60):
        [question] = questions.QuestionSampler(CLASSES)(scene, rng)
        text = tokens.reply_text(question).removesuffix(tokens.EOS)
        about = question.options, scene["sources"], CLASSES
        result = rewards.compute_rewards(STAGE, text, question.answer_text, *about, 0.5)
        assert result == {
            "answer": 1.0,
            "format": 1.0,
            "evidence": 1.0,
            "length": 0.0,
            "total": pytest.approx(1.0 + 0.1 + 0.3),
        }
        other = question.options["BCDA".index(question.answer)]
        wrong = rewards.compute_rewards(STAGE, text, other, *about, 0.5)
        assert wrong["evidence"] == 1 and wrong["total"] == pytest.approx(0.1)
