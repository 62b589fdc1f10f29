import dataclasses
import json
import re

import numpy as np
import pytest

from jaxasa import config
from jaxasa.acoustics.scenes import turn
from jaxasa.config import ConfigError
from jaxasa.core import keys
from jaxasa.data import pipeline, questions, records, scene_text, tokens
from jaxasa.stages import rewards

PLACES = 4


@pytest.fixture(scope="module")
def source(described):
    """[(int16 audio [40, 4], description)], each audio different."""
    rng = np.random.default_rng(0)
    return [(rng.integers(-99, 99, (40, 4)).astype(np.int16), s) for s in described(24, (2, 3))]


@pytest.fixture(scope="module")
def asked(tiny, text):
    def make(count=3, **options):
        asking = questions.Asking(tiny.classes)
        return pipeline.Asked(asking, tiny.model, text, PLACES, count, **options)

    return make


@pytest.fixture(scope="module")
def targets(tiny):
    return lambda **options: pipeline.Targets(tiny.classes, 2, 0.3, **options)


def same(a, b):
    return set(a) == set(b) and all(np.array_equal(a[k], b[k]) for k in a)


def take(batches, count):
    return [next(batches) for _ in range(count)]


def batches_of(source, make, seed, **options):
    return pipeline.Batches(source, make, seed, "t", 8, **({"total": 160} | options))


def test_batches_go_on_without_end_each_pass_anew(source, targets):
    made = take(batches_of(source, targets(augment=True), 0), 6)
    first, second = (np.concatenate([b["audio"] for b in made[i : i + 3]]) for i in (0, 3))
    order = lambda x: sorted(row.tobytes() for row in x)  # noqa: E731
    assert order(first) == order(second) == order([audio for audio, _ in source])
    assert not np.array_equal(first, second)
    yaws = np.concatenate([b["yaw"] for b in made])
    assert len(np.unique(yaws)) == 48
    again = take(batches_of(source, targets(augment=True), 0), 6)
    assert all(same(a, b) for a, b in zip(made, again, strict=True))
    other = next(pipeline.Batches(source, targets(augment=True), 0, "u", 8, total=48))
    assert not np.array_equal(other["yaw"], made[0]["yaw"])


def test_several_processes_read_what_one_reads(source, asked, monkeypatch):
    whole = take(batches_of(source, asked(), 5), 5)
    monkeypatch.setattr(pipeline.jax, "process_count", lambda: 2)
    shares = []
    for index in range(2):
        monkeypatch.setattr(pipeline.jax, "process_index", lambda index=index: index)
        shares.append(take(batches_of(source, asked(), 5), 5))
    for one, *parts in zip(whole, *shares, strict=True):
        for name in one:
            joined = np.concatenate([p[name] for p in parts])
            np.testing.assert_array_equal(joined, one[name], err_msg=name)
    with pytest.raises(ConfigError, match="batch is 7, expected a multiple of 2"):
        pipeline.Batches(source, asked(), 5, "t", 7, total=48)


def test_a_reader_goes_on_from_its_state(source, asked):
    batches = batches_of(source, asked(), 1)
    take(batches, 4)
    saved = json.loads(json.dumps(batches.get_state()))
    expected = take(batches, 3)
    other = batches_of(source, asked(), 1)
    next(other)
    other.set_state(saved)
    assert all(same(a, b) for a, b in zip(expected, take(other, 3), strict=True))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_share_of_the_examples_comes_from_a_guest(source, asked, monkeypatch, processes):
    monkeypatch.setattr(pipeline.jax, "process_count", lambda: processes)
    other = [(audio + 1000, scene) for audio, scene in source[:5]]
    heard = []
    for index in range(processes):
        monkeypatch.setattr(pipeline.jax, "process_index", lambda index=index: index)
        batches = batches_of(source, asked(), 5, guests=[pipeline.Guest(other, asked(2), 0.25)])
        with pytest.raises(ValueError):  # other shapes do not mix
            take(batches, 3)
        guests = [pipeline.Guest(other, asked(), 0.25)]
        batches = batches_of(source, asked(), 5, guests=guests)
        made = np.concatenate([b["audio"] for b in take(batches, 20)])
        foreign = (made > 500).all((1, 2))
        assert foreign.mean() == pytest.approx(0.25, abs=0.02)
        heard += [row.tobytes() for row in made[foreign]]
        # Without a mixed source nothing changes.
        plain = batches_of(source, asked(), 5)
        assert same(next(plain), next(batches_of(source, asked(), 5, guests=[])))
        saved = batches.get_state()
        expected = next(batches)
        again = batches_of(source, asked(), 5, guests=guests)
        again.set_state(saved)
        assert same(next(again), expected)
    assert len(set(heard)) == 5


@pytest.mark.parametrize("count", [89, 144, 233])
def test_all_of_a_guest_is_heard_whatever_its_size(count):
    """Fibonacci numbers times the golden ratio are almost whole."""
    guest = pipeline.Guest(range(count), lambda element, rng, done: {"n": np.int32(element)}, 0.5)
    host = lambda element, rng, done: {"n": np.int32(-1)}  # noqa: E731
    batches = batches_of(range(10), host, 0, guests=[guest])
    heard = np.concatenate([b["n"] for b in take(batches, 3 * count)])
    assert len(set(heard)) == 1 + count


def test_fixed_is_the_first_examples_in_order(source, targets):
    made = pipeline.fixed(source, targets(augment=False), 0, "t", 5)
    np.testing.assert_array_equal(made["audio"], [audio for audio, _ in source[:5]])
    assert (made["yaw"] == 0).all() and len(made["mono"]) == 5
    assert len(pipeline.fixed(source, targets(augment=False), 0, "t", 99)["yaw"]) == 24


def test_targets_are_the_loudest_sources_turned_with_the_audio(tiny, source, targets):
    for i, (audio, scene) in enumerate(source):
        made = targets(augment=True)((audio, scene), keys.rng(0, "t", i), 0.0)
        np.testing.assert_array_equal(made["audio"], audio)
        by_level = lambda s: s["level"] - 20 * np.log10(s["distance"])  # noqa: E731
        loudest = sorted(scene["sources"], key=by_level, reverse=True)[:2]
        assert [tiny.classes[k] for k in made["label"]] == [s["class"] for s in loudest]
        azimuth, elevation = (np.radians([s[n] for s in loudest]) for n in ("azimuth", "elevation"))
        azimuth = azimuth + np.radians(made["yaw"])
        flat = np.cos(elevation)
        expected = [np.cos(azimuth) * flat, np.sin(azimuth) * flat, np.sin(elevation)]
        np.testing.assert_allclose(made["direction"].T, expected, atol=1e-5)
        np.testing.assert_allclose(
            np.exp(made["log_distance"]), [s["distance"] for s in loudest], 1e-5
        )
        np.testing.assert_allclose(made["span"], [[s["onset"], s["offset"]] for s in loudest], 1e-5)
        assert (made["present"] == 1).all()
        log_rt60, log_volume, drr, count = made["room"]
        assert count == len(scene["sources"])
        np.testing.assert_allclose(np.exp(log_rt60), scene["rt60"], rtol=1e-5)
        np.testing.assert_allclose(np.exp(log_volume), scene["volume"], rtol=1e-5)
        assert drr * 10 == pytest.approx(np.mean([s["drr"] for s in scene["sources"]]), rel=1e-4)


def test_empty_slots_are_absent(tiny, described):
    scene = described(1, (1, 1))[0]
    made = pipeline.slot_targets(scene, tiny.classes, 3)
    np.testing.assert_array_equal(made["present"], [1, 0, 0])
    assert not made["span"][1:].any() and not made["direction"][1:].any()


def test_slot_targets_of_what_moves_are_means_while_it_is_heard(tiny):
    source = {
        "class": tiny.classes[0],
        "azimuth": 170.0,
        "elevation": 0.0,
        "distance": 1.0,
        "onset": 0.3,
        "offset": 0.6,
        "level": 0.0,
        "drr": 0.0,
        # Heard at 0.35, 0.45 and 0.55 s: over the back, from 170 to -150 degrees.
        "trajectory": [[0.0, 80.0, 9.0]] * 3
        + [[170.0, 0.0, 1.0], [-170.0, 0.0, 2.0], [-150.0, 0.0, 4.0]]
        + [[0.0, 80.0, 9.0]] * 4,
    }
    scene = {"rt60": 0.3, "volume": 50.0, "sources": [source]}
    for yaw in (0.0, 50.0):
        made = pipeline.slot_targets(turn(scene, yaw), tiny.classes, 3)
        angle = np.radians(-170.0 + yaw)
        expected = [np.cos(angle), np.sin(angle), 0.0]
        np.testing.assert_allclose(made["direction"][0], expected, atol=1e-6)
        assert made["log_distance"][0] == pytest.approx(np.log(2.0))
    brief = {**scene, "sources": [{**source, "onset": 0.36, "offset": 0.4}]}
    made = pipeline.slot_targets(brief, tiny.classes, 3)
    assert np.degrees(np.arctan2(*made["direction"][0, 1::-1])) == pytest.approx(170, abs=1e-4)


def test_captions_of_stage_2_are_of_the_turned_scene(tiny, text, source):
    make = pipeline.Targets(tiny.classes, 3, 0.0, True, tiny.model, text, PLACES)
    for i, element in enumerate(source):
        made = make(element, keys.rng(0, "t", i), 0.0)
        prompt, reply = made["prompt"][0], made["reply"][0]
        assert len(prompt) == PLACES + tiny.model.prompt_tokens
        assert (prompt == text.audio).sum() == PLACES
        assert text.decode(prompt).endswith(pipeline.CAPTION_PROMPT)
        said = text.decode(reply)
        azimuths = [s["azimuth"] + made["yaw"] for s in element[1]["sources"]]
        found = [c["sector"] for c in scene_text.claims(said.removeprefix("<think>"), tiny.classes)]
        assert found == [scene_text.sector(a) for a in azimuths]


WHERE = re.compile(
    r"(?:<AcousticTokens>)+ (?:where is the|from where does the) (\w+) (?:\?|come \?)"
)


def test_questions_of_a_scene_are_about_the_turned_scene(tiny, text, source, asked):
    located = 0
    for i, element in enumerate(source):
        made = asked(6)(element, keys.rng(0, "t", i), 0.0)
        assert made["prompt"].shape == (6, PLACES + tiny.model.prompt_tokens)
        assert made["reply"].shape == (6, tiny.model.reply_tokens)
        assert ((made["prompt"] == text.audio).sum(1) == PLACES).all()
        here = made["source_label"] >= 0
        sources = [
            {"class": tiny.classes[k], "azimuth": float(a), "distance": float(d)}
            for k, a, d in zip(
                *(made[f"source_{n}"][here] for n in ("label", "azimuth", "distance")), strict=True
            )
        ]
        turned = [s["azimuth"] + made["yaw"] for s in element[1]["sources"]]
        difference = np.array([s["azimuth"] for s in sources]) - turned
        np.testing.assert_allclose((difference + 180) % 360 - 180, 0, atol=1e-3)
        rows = (made[name] for name in ("prompt", "reply", "level"))
        for prompt, reply, level in zip(*rows, strict=True):
            said = text.decode(reply)
            question, *options = text.decode(prompt).strip("\n").split("\n")
            _, answer = rewards.parse(said)
            assert [o[2:] for o in options].count(answer) == 1
            place = WHERE.fullmatch(question)
            if place:
                azimuth = next(s["azimuth"] for s in sources if s["class"] == place[1])
                assert answer == scene_text.sector(azimuth)
                located += 1
            assert rewards.evidence(said, sources, tiny.classes) == 1
            assert 0 <= level < 3
        assert len({row.tobytes() for row in made["prompt"]}) > 1
    assert located > 3


def test_a_scene_heard_not_at_all_has_neither_places_nor_thought(text, source, asked):
    made = asked(no_audio_share=1.0)(source[0], keys.rng(0, "t", 0), 0.0)
    assert not (made["prompt"] == text.audio).any()
    for reply in made["reply"]:
        assert text.decode(reply).startswith("<think></think><answer>")


def test_shares_are_kept(source, asked):
    make = asked(1, mono_share=0.3, null_share=0.2, no_audio_share=0.5, open_share=0.4)
    made = [make(source[i % 24], keys.rng(0, "t", i), 0.0) for i in range(400)]
    rate = lambda test: np.mean([test(m) for m in made])  # noqa: E731
    assert rate(lambda m: m["mono"]) == pytest.approx(0.3, abs=0.08)
    assert rate(lambda m: m["nulled"]) == pytest.approx(0.2, abs=0.08)
    assert rate(lambda m: not (m["prompt"] == 2).any()) == pytest.approx(0.5, abs=0.08)
    newline = asked(1).text.encode("\n")[0]
    assert rate(lambda m: (m["prompt"] == newline).sum() == 1) == pytest.approx(0.4, abs=0.08)
    still = asked(1, augment=False)(source[0], keys.rng(0, "t", 0), 0.0)
    assert still["yaw"] == 0 and not still["mono"] and not still["nulled"]


def test_drills_fade(tiny, text, described):
    stage = config.TextStage(
        steps=1,
        batch_size=1,
        learning_rate=0.0,
        trainable=(),
        synthetic_fraction=0.5,
        synthetic_until=0.5,
    )
    make = pipeline.Texts(stage, tiny.model, text, questions.Asking(tiny.classes), PLACES)
    scene = described(1, (2, 2))[0]
    drilled = []
    for i in range(600):
        made = make(scene, keys.rng(0, "t", i), i / 600)
        assert made["prompt"].shape == (PLACES + 64,) and made["reply"].shape == (64,)
        prompt, reply = (list(x[x != text.pad]) for x in (made["prompt"], made["reply"]))
        assert reply[-1] == text.eos and text.audio not in prompt
        drilled.append(text.think not in reply)
        if not drilled[-1]:
            caption = text.decode(prompt).split(" .")[0]
            told = text.decode(reply).removeprefix("<think>")
            assert scene_text.claims(caption, tiny.classes) == scene_text.claims(told, tiny.classes)
    assert np.mean(drilled[:300]) == pytest.approx(0.5, abs=0.1)
    assert np.mean(drilled[300:]) == pytest.approx(0.5 / 3, abs=0.07)


def test_written_scenes_are_drawn_from_the_seed(described):
    ranges = config.Scenes(train=1, dev=1, benchmark=1)

    def make(purpose, count=5):
        return pipeline.Written(ranges, described.clips, 0, purpose, count)

    one = make("text")
    assert len(one) == 5 and one[3] == make("text")[3]
    assert one[3]["sources"] != make("text/dev")[3]["sources"]
    # Scenes come again, and are never turned the same way twice.
    long = make("text", 4100)
    first, again = long[2], long[2 + 4096]
    assert first["room"] == again["room"]
    pairs = zip(first["sources"], again["sources"], strict=True)
    moved = [a["azimuth"] - b["azimuth"] for a, b in pairs]
    assert np.ptp(np.mod(moved, 360)) < 1e-6 and abs(moved[0]) > 1e-3


def test_corpus_teaches_every_word(described, tiny, monkeypatch):
    written = pipeline.Written
    monkeypatch.setattr(pipeline, "Written", lambda *args: written(*args[:-1], 150))
    ranges = config.Scenes(train=1, dev=1, benchmark=1)
    pairs = list(pipeline.corpus(ranges, described.clips, tiny.classes, 0))
    assert len(pairs) == 150
    trained = tokens.train([text for pair in pairs for text in pair], 480)
    for word in (*tiny.classes, *scene_text.SECTORS, *scene_text.DISTANCES):
        assert len(trained.encode(f" {word}")) == 1, word


def test_texts_without_room_are_named_before_training(text, tiny):
    pairs = [(" where is the bird ?\n", "<think> bird left near . so left</think>")]
    pipeline.check_lengths(pairs, tiny.model, text)
    for name, words_of in (("prompt_tokens", "where is the bird"), ("reply_tokens", "so left")):
        short = dataclasses.replace(tiny.model, **{name: 3})
        expected = rf"Model\.{name} is 3, expected at least \d+, for .*{words_of}"
        with pytest.raises(ConfigError, match=expected):
            pipeline.check_lengths(pairs, short, text)


def test_prompts_have_room_for_their_turns(text, tiny):
    """Of a chat, words stand before and after the question."""
    chat = dataclasses.replace(text, before=(5, 6, 7), after=(8, 9))
    pairs = [(" where is the bird ?\n", "<think></think>")]
    need = len(text.encode(pairs[0][0]))
    for room in (need, need + 4):
        short = dataclasses.replace(tiny.model, prompt_tokens=room)
        pipeline.check_lengths(pairs, short, text)
        with pytest.raises(ConfigError, match=f"expected at least {need + 5}"):
            pipeline.check_lengths(pairs, short, chat)
    exact = dataclasses.replace(tiny.model, prompt_tokens=need + 5)
    pipeline.check_lengths(pairs, exact, chat)
    ids = tokens.prompt_ids(chat, 0, pairs[0][0])
    assert tokens.pad_left([ids], exact.prompt_tokens, chat.pad).shape == (1, need + 5)


def test_phrasings_without_room_are_refused(tiny, text, described):
    narrow = dataclasses.replace(tiny.model, reply_tokens=20)
    make = pipeline.Targets(tiny.classes, 3, 0.0, False, narrow, text, 20, 0.8)
    with pytest.raises(
        ConfigError, match=r"reply_tokens is \d+, expected .* AlignStage.paraphrase_prob"
    ):
        pipeline.check_phrasings(described(30), make)
    roomy = dataclasses.replace(tiny.model, reply_tokens=400)
    pipeline.check_phrasings(described(30), dataclasses.replace(make, model=roomy))


def number(element, rng, done):
    return {"number": np.int32(element[1]["number"]), "noise": rng.normal()}


@pytest.fixture
def shards(tmp_path):
    """Two shards of eight records: their folder, and the records as read."""
    made = []
    for shard in range(2):
        rows = [(np.full((500, 4), i, np.int16), {"number": 8 * shard + i}) for i in range(8)]
        made.append(records.write_shard(tmp_path / f"{shard}.array_record", rows))
    records.write_manifest(tmp_path, {}, made)
    return tmp_path


def damage(shards, place):
    """Turns over a bit of the audio of record `place` of the first shard."""
    path = shards / "0.array_record"
    data = bytearray(path.read_bytes())
    data[data.find(np.full(300, place, "<i2").tobytes()) + 200] ^= 1
    path.write_bytes(data)


def test_damaged_records_are_named_counted_and_replaced(shards, capfd):
    whole = take(batches_of(records.Records(shards), number, 0), 6)
    damage(shards, 3)
    damage(shards, 4)
    made = take(batches_of(records.Records(shards), number, 0, damaged=2), 6)
    for before, now in zip(whole, made, strict=True):
        expected = np.where(np.isin(before["number"], (3, 4)), 5, before["number"])
        assert np.array_equal(now["number"], expected)
        # Examples are keyed by their place, whatever stands there.
        assert np.array_equal(now["noise"], before["noise"])
    said = capfd.readouterr().err
    assert said.count("skipped") == 2 and "skipped 2 of at most 2" in said
    assert all(f"0.array_record: record {i} is damaged" in said for i in (3, 4))


@pytest.mark.parametrize("most", [0, 1])
def test_more_damage_than_allowed_ends_the_run(shards, most):
    damage(shards, 3)
    damage(shards, 4)
    batches = batches_of(records.Records(shards), number, 0, damaged=most)
    said = (
        rf"0\.array_record: record [34] is damaged .*; {most + 1} damaged, expected at most {most}"
    )
    with pytest.raises(ConfigError, match=said):
        take(batches, 6)


def test_a_shard_that_vanished_ends_the_run(shards):
    data = records.Records(shards)
    (shards / "1.array_record").unlink()
    batches = batches_of(data, number, 0, damaged=9)
    with pytest.raises(ConfigError, match=r"1\.array_record: no such file, expected a shard"):
        take(batches, 6)


def test_elements_of_which_nothing_is_made_are_passed_over(source, targets):
    make = targets(augment=False)

    def few(element, rng, done):
        return make(element, rng, done) if len(element[1]["sources"]) == 3 else None

    found = take(batches_of(source, few, 0), 6)
    chosen = {a.tobytes() for a, scene in source if len(scene["sources"]) == 3}
    assert {a.tobytes() for batch in found for a in batch["audio"]} == chosen
    resumed = batches_of(source, few, 0)
    take(resumed, 3)
    state = resumed.get_state()
    resumed = batches_of(source, few, 0)
    resumed.set_state(state)
    assert all(same(a, b) for a, b in zip(found[3:], take(resumed, 3), strict=True))
    fixed = pipeline.fixed(source, few, 0, "dev", len(source))
    assert len(fixed["audio"]) == len(source)
    assert {a.tobytes() for a in fixed["audio"]} == chosen
    with pytest.raises(ConfigError, match=r"Questions\.tasks: .* in a row support none"):
        next(batches_of(source, lambda *_: None, 0))
    with pytest.raises(ConfigError, match=r"Questions\.tasks: 24 scenes"):
        pipeline.fixed(source, lambda *_: None, 0, "dev", 1)
