import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxasa import config
from jaxasa.data import questions, tokens, words
from jaxasa.stages import rewards

CLASSES = ("alarm", "bell", "bird", "clock", "dog", "engine", "rain", "voice")
STAGE = config.GrpoStage(steps=1, batch=1, learning_rate=0.0, trainable=())
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
    st.sampled_from((*words.SECTORS, "")),
    st.sampled_from((*words.DISTANCES, "")),
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
    said, _, after = last.partition("</answer>")
    return thought.startswith("<think>") and not between.strip() and not after and "<" not in said


@given(pieces.map("".join))
def test_no_malformed_text_earns_anything(text):
    found = rewards.total(STAGE, text, "left", [], CLASSES)
    assert found["format"] == rewards.well_formed(text) == float(right_form(text))
    if not right_form(text):
        assert found["answer"] == found["total"] == 0
        assert all(rewards.answer(text, right) == 0 for right in ("", "left", "B", "so dog"))


answers = st.sampled_from((*words.SECTORS, *CLASSES, "0", "3"))


@given(answers, answers, st.sampled_from(("", " so left", "\n")))
def test_an_answer_is_its_one_text(said, right, thought):
    assert rewards.answer(reply(thought, said), right) == (said == right)
    every = " ".join(words.SECTORS)
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
    whole = words.caption({"sources": scene})
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
    source = scene[0]
    at = words.SECTORS.index(words.sector(source["azimuth"]))
    place = words.SECTORS[(at + steps) % 8]
    said = clause(source["class"], place, words.distance(source["distance"]))
    bearing = {0: 1.0, 1: 0.5, 7: 0.5}.get(steps, 0.0)
    found = rewards.evidence(reply(said), scene, CLASSES)
    assert found == pytest.approx((bearing + 1) / (1 + len(scene)))


@given(scenes_of(), st.lists(claim, min_size=1, max_size=4), st.integers(1, 3))
def test_repeating_and_listing_earn_nothing_more(scene, claims, times):
    """What is added to a thought: the same again, every class, every bearing of a class."""
    honest = [clause(s["class"], words.sector(s["azimuth"]), "near") for s in scene]
    for told in (honest, claims):
        once = rewards.evidence(reply(",".join(told)), scene, CLASSES)
        assert rewards.evidence(reply(",".join(told * (1 + times))), scene, CLASSES) <= once
    once = rewards.evidence(reply(",".join(honest)), scene, CLASSES)
    absent = [c for c in CLASSES if c not in {s["class"] for s in scene}]
    for place in words.SECTORS:
        every = honest + [clause(c, place, "near") for c in absent]
        assert rewards.evidence(reply(",".join(every)), scene, CLASSES) < once
    # All bearings of a class in one breath count as the first of them.
    hedged = clause(scene[0]["class"], " ".join(words.SECTORS), "near far")
    single = clause(scene[0]["class"], "front", "near")
    assert rewards.evidence(reply(hedged), scene, CLASSES) == rewards.evidence(
        reply(single), scene, CLASSES
    )


def test_guessing_every_class_earns_less_than_hearing_one(described):
    """Every class claimed at random against the caption's first clause, on average."""
    rng = np.random.default_rng(0)
    guessed, heard = [], []
    for scene in described(300, (2, 3)):
        every = [clause(c, rng.choice(words.SECTORS), rng.choice(words.DISTANCES)) for c in CLASSES]
        guessed.append(rewards.evidence(reply(",".join(every)), scene["sources"], CLASSES))
        first = words.caption(scene).split(",")[0]
        heard.append(rewards.evidence(reply(first), scene["sources"], CLASSES))
    assert np.mean(guessed) < 0.5 * np.mean(heard)


def test_evidence_pays_only_with_a_right_answer(described):
    rng = np.random.default_rng(0)
    for scene in described(60):
        asked = questions.ask(scene, CLASSES, rng)
        if asked is None:
            continue
        text = tokens.reply_text(asked).removesuffix(tokens.EOS)
        found = rewards.total(STAGE, text, asked.answer_text, scene["sources"], CLASSES)
        assert found == {
            "answer": 1.0,
            "format": 1.0,
            "evidence": 1.0,
            "total": pytest.approx(1.0 + 0.1 + 0.3),
        }
        other = asked.options["BCDA".index(asked.answer)]
        wrong = rewards.total(STAGE, text, other, scene["sources"], CLASSES)
        assert wrong["evidence"] == 1 and wrong["total"] == pytest.approx(0.1)
