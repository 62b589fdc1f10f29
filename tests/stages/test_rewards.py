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


def scenes_of(most=4):
    source = st.tuples(st.sampled_from(CLASSES), st.floats(-180, 180), st.floats(0.5, 5.0))
    return st.lists(source, min_size=1, max_size=most, unique_by=lambda s: s[0]).map(
        lambda rows: [dict(zip(("class", "azimuth", "distance"), row, strict=True)) for row in rows]
    )


def reply(thought, answer="left"):
    return f"<think>{thought}</think><answer> {answer}</answer>"


def clause(name, place, far):
    return f" {name} {place} {far} "


claim = st.builds(
    clause,
    st.sampled_from(CLASSES),
    st.sampled_from((*scene_text.SECTORS, "")),
    st.sampled_from((*scene_text.DISTANCES, "")),
)
pieces = st.lists(
    st.sampled_from((*TAGS, *TAGS, "left", " left", "B", " ", "\n", "so dog", "<eos>")), max_size=10
)


def right_form(text):
    """Whether a reply is one thought and one answer, read without regular expressions."""
    text = text.strip()
    if any(text.count(tag) != 1 for tag in TAGS):
        return False
    thought, _, rest = text.partition("</think>")
    between, _, last = rest.partition("<answer>")
    said, end, after = last.partition("</answer>")
    ends = thought.startswith("<think>") and end and not after
    return bool(ends) and not between.strip() and "<" not in said


@given(pieces.map("".join))
def test_no_malformed_text_earns_anything(text):
    found = rewards.total(STAGE, text, "left", (), [], CLASSES, 0.5)
    assert found["format"] == rewards.well_formed(text) == float(right_form(text))
    if not right_form(text):
        assert found["answer"] == found["total"] == 0
        assert all(rewards.answer(text, right) == 0 for right in ("", "left", "B", "so dog"))


answers = st.sampled_from((*scene_text.SECTORS, *CLASSES, "0", "3"))


@given(answers, answers, st.sampled_from(("", " so left", "\n")))
def test_an_answer_is_its_one_text(said, right, thought):
    assert rewards.answer(reply(thought, said), right) == (said == right)
    every = " ".join(scene_text.SECTORS)
    for hedge in (f"{said} {right}", f"{right} {right}", every, right.upper() + ".", f"B {right}"):
        assert rewards.answer(reply(thought, hedge), right) == 0
    twice = reply(thought, said) + reply(thought, right)
    assert rewards.answer(twice, right) == 0
    assert rewards.answer(reply(thought, said) + f"<answer>{right}</answer>", right) == 0


@given(scenes_of(), st.lists(claim, max_size=8).map(",".join))
def test_evidence_is_between_0_and_1(scene, thought):
    assert 0 <= rewards.evidence(reply(thought), scene, CLASSES) <= 1
    assert rewards.evidence(thought, scene, CLASSES) == 0


@given(scenes_of())
def test_the_caption_alone_earns_1_and_what_lacks_earns_less(scene):
    whole = scene_text.caption({"sources": scene})
    assert rewards.evidence(reply(whole), scene, CLASSES) == 1
    assert rewards.evidence(reply(f"{whole} dog back near so left"), scene, CLASSES) == 1
    first = whole.split(",")[0]
    half = rewards.evidence(reply(first), scene, CLASSES)
    assert half == pytest.approx(2 / (1 + len(scene)))
    assert rewards.evidence(reply(""), scene, CLASSES) == 0
    far = first.replace("near", "far") if "near" in first else first.replace("far", "near")
    assert rewards.evidence(reply(far), scene, CLASSES) == pytest.approx(half / 2)


@given(scenes_of(), st.integers(0, 7))
def test_a_bearing_pays_by_how_near_it_is(scene, steps):
    """In full within its sector, and less and less over the 45 degrees beyond its edge."""
    source = scene[0]
    at = (scene_text.SECTORS.index(scene_text.sector(source["azimuth"])) + steps) % 8
    off = abs((45 * at - source["azimuth"] + 180) % 360 - 180)
    bearing = np.interp(off, [22.5, 67.5], [1, 0])
    assert bearing == pytest.approx(1, abs=1e-6) if not steps else 0 <= bearing < 1
    said = clause(source["class"], scene_text.SECTORS[at], scene_text.distance(source["distance"]))
    found = rewards.evidence(reply(said), scene, CLASSES)
    assert found == pytest.approx((bearing + 1) / (1 + len(scene)), abs=1e-6)


@given(scenes_of(), st.floats(-180, 180), st.floats(-180, 180))
def test_two_of_one_class_are_two(scene, one, other):
    """Each of them is claimed by its own bearing, in any order, and one claim is for one."""
    name = scene[0]["class"]
    twins = [{"class": name, "azimuth": a, "distance": 1.0} for a in (one, other)]
    told = [clause(name, scene_text.sector(a), "near") for a in (one, other)]
    for order in (told, told[::-1]):
        assert rewards.evidence(reply(",".join(order)), twins, CLASSES) > 0.74
    assert rewards.evidence(reply(told[0]), twins, CLASSES) == pytest.approx(2 / 3)


@given(scenes_of(), st.lists(claim, min_size=1, max_size=4), st.integers(1, 3))
def test_repeating_and_listing_earn_nothing_more(scene, claims, times):
    """What is added to a thought: the same again, every class, every bearing of a class.

    Claiming every class earns nothing at all, however right its places are.
    """
    honest = [clause(s["class"], scene_text.sector(s["azimuth"]), "near") for s in scene]
    for told in (honest, claims):
        once = rewards.evidence(reply(",".join(told)), scene, CLASSES)
        assert rewards.evidence(reply(",".join(told * (1 + times))), scene, CLASSES) <= once
    once = rewards.evidence(reply(",".join(honest)), scene, CLASSES)
    absent = [c for c in CLASSES if c not in {s["class"] for s in scene}]
    for place in scene_text.SECTORS:
        every = honest + [clause(c, place, "near") for c in absent]
        assert rewards.evidence(reply(",".join(every)), scene, CLASSES) == 0
        some = reply(",".join([*honest, clause(absent[0], place, "near")]))
        assert rewards.evidence(some, scene, CLASSES) < once
    # All bearings of a class in one breath count as the first of them.
    hedged = clause(scene[0]["class"], " ".join(scene_text.SECTORS), "near far")
    single = clause(scene[0]["class"], "front", "near")
    assert rewards.evidence(reply(hedged), scene, CLASSES) == rewards.evidence(
        reply(single), scene, CLASSES
    )


def test_guessing_every_class_earns_less_than_hearing_one(described):
    """Every class claimed at random against the caption's first clause, on average."""
    rng = np.random.default_rng(0)
    guessed, heard = [], []
    for scene in described(300, (2, 3)):
        every = [
            clause(c, rng.choice(scene_text.SECTORS), rng.choice(scene_text.DISTANCES))
            for c in CLASSES
        ]
        guessed.append(rewards.evidence(reply(",".join(every)), scene["sources"], CLASSES))
        first = scene_text.caption(scene).split(",")[0]
        heard.append(rewards.evidence(reply(first), scene["sources"], CLASSES))
    assert np.mean(guessed) < 0.5 * np.mean(heard)


def test_guessing_gains_nothing_on_average(described):
    """A right claim, and beside it one of a class drawn at random among the others."""
    rng = np.random.default_rng(1)
    more, fewer = [], []
    for scene in described(400, (2, 2)):
        sources = scene["sources"]
        known = scene_text.caption(scene).split(",")[0]
        other = str(rng.choice([c for c in CLASSES if c != sources[0]["class"]]))
        guess = clause(other, scene_text.sector(sources[1]["azimuth"]), "near")
        more.append(rewards.evidence(reply(f"{known},{guess}"), sources, CLASSES))
        fewer.append(rewards.evidence(reply(known), sources, CLASSES))
    assert np.mean(more) < np.mean(fewer)


@given(answers, st.lists(answers, min_size=4, max_size=4, unique=True))
def test_an_answer_that_is_no_option_has_not_the_form(said, options):
    text = reply("dog left near", said)
    found = rewards.total(STAGE, text, options[0], options, [], CLASSES, 0.5)
    assert found["format"] == rewards.well_formed(text, options) == float(said in options)
    assert found["total"] == pytest.approx((said == options[0]) + 0.1 * (said in options))
    assert rewards.well_formed(text) == 1  # an open question


@given(st.floats(0, 1), st.floats(0, 1))
def test_length_costs_only_near_the_limit(used, more):
    assert -1 <= rewards.length(used) <= 0
    assert rewards.length(min(used, 0.75)) == 0
    assert rewards.length(max(used, more)) <= rewards.length(min(used, more))
    assert rewards.length(1.0) == -1 and rewards.length(0.875) == pytest.approx(-0.5)
    weighed = dataclasses.replace(STAGE, length_weight=0.5)
    text = reply("dog left near")
    for stage, weight in ((STAGE, 0.0), (weighed, 0.5)):
        found = rewards.total(stage, text, "left", (), [], CLASSES, used)
        assert found["total"] == pytest.approx(1.1 + weight * rewards.length(used))


@given(pieces.map("".join), st.sampled_from(answers_of := ("left", "right", "front", "back")))
def test_listing_repeating_and_malformed_replies_earn_no_answer(text, right):
    """Whatever is said around them: all options, blocks twice, blocks in blocks, no end."""
    options = " ".join(answers_of)
    whole = reply("dog left near", right)
    bad = [
        reply("dog left near", options),
        reply("dog left near", f"{right} {right}"),
        whole + whole,
        whole + f"<answer>{right}</answer>",
        f"<answer>{right}</answer>" + whole,
        f"<think>{whole}</think>",
        whole.removesuffix("</answer>"),
        f"<think></think>{whole}",
        whole.replace("<think>", ""),
        whole + (text or "x"),
    ]
    for said in bad:
        if right_form(said) and said.strip() == whole:
            continue
        found = rewards.total(STAGE, said, right, answers_of, [], CLASSES, 0.5)
        assert found["answer"] == 0 and found["total"] <= STAGE.format_weight


def test_evidence_pays_only_with_a_right_answer(described):
    rng = np.random.default_rng(0)
    for scene in described(60):
        [asked] = questions.Asking(CLASSES)(scene, rng)
        text = tokens.reply_text(asked).removesuffix(tokens.EOS)
        about = asked.options, scene["sources"], CLASSES
        found = rewards.total(STAGE, text, asked.answer_text, *about, 0.5)
        assert found == {
            "answer": 1.0,
            "format": 1.0,
            "evidence": 1.0,
            "length": 0.0,
            "total": pytest.approx(1.0 + 0.1 + 0.3),
        }
        other = asked.options["BCDA".index(asked.answer)]
        wrong = rewards.total(STAGE, text, other, *about, 0.5)
        assert wrong["evidence"] == 1 and wrong["total"] == pytest.approx(0.1)
