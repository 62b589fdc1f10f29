import dataclasses
import json

import jax
import numpy as np
import pytest
import soundfile

from jaxasa import config
from jaxasa.acoustics import foa
from jaxasa.config import ConfigError
from jaxasa.data import tokens
from jaxasa.inference import qa
from jaxasa.models import generation
from jaxasa.train import checkpoint, state

OPTIONS = ("left", "right", "front", "back")


def save(path, tiny, text, bias):
    """Writes `path` as a trained model's folder, with random weights and replies of 16 tokens.

    Slots hold a source where `bias` is large.
    """
    meta = {
        "stage": "sft",
        "classes": list(tiny.classes[:5]),
        "seconds": 0.5,
        "model": dataclasses.asdict(dataclasses.replace(tiny.model, reply_tokens=16)),
        "tokenizer": "tokenizer.json",
    }
    presence = tiny.params["spatial"]["presence"] | {"bias": np.full(1, bias, np.float32)}
    params = tiny.params | {"spatial": tiny.params["spatial"] | {"presence": presence}}
    with checkpoint.Store(path) as store:
        store.save(1, state.State(np.int32(1), params, {}), {}, meta, "")
    text.tokenizer.save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(scope="module")
def folder(tiny, text, tmp_path_factory):
    return save(tmp_path_factory.mktemp("checkpoints") / "sft", tiny, text, 9.0)


@pytest.fixture(scope="module")
def model(folder):
    return qa.Model.load(folder)


@pytest.fixture
def record(tmp_path):
    """`record(name, samples)` writes a WAV file at 16 kHz."""

    def write(name, samples):
        path = tmp_path / name
        soundfile.write(path, samples.astype(np.float32), 16_000, subtype="FLOAT")
        return path

    return write


def noise(seconds=1.0, channels=4):
    rng = np.random.default_rng(0)
    return 0.1 * rng.normal(size=(round(seconds * 16_000), channels))


@pytest.fixture
def loaded(model, folder, monkeypatch):
    """`ask.ask` of the model that is in memory, its functions compiled once."""
    monkeypatch.setattr(qa.Model, "load", classmethod(lambda cls, path: model))
    return lambda audio, *args, **more: qa.ask(folder, audio, *args, **more)


def test_an_answer_is_json_with_what_the_slots_hold(tiny, loaded, record):
    found = loaded(record("scene.wav", noise()), "Where is the Dog?", OPTIONS)
    assert json.loads(json.dumps(found)) == found
    assert list(found) == ["question", "answer", "thought", "reply", "sources", "note"]
    assert found["note"] == "1.0 s are beyond what the model was trained on, scenes of 0.5 s"
    assert found["question"] == "Where is the Dog?" and found["reply"]
    assert len(found["sources"]) == 3
    for source in found["sources"]:
        assert set(source) == {"class", "azimuth", "elevation", "distance", "presence"}
        # The model has eight classes, and its sounds only five.
        assert source["class"] in tiny.classes[:5]
        assert -180 < source["azimuth"] <= 180 and -90 <= source["elevation"] <= 90
        assert source["distance"] > 0 and 0.5 <= source["presence"] <= 1
    presence = [s["presence"] for s in found["sources"]]
    assert presence == sorted(presence, reverse=True)


def test_what_is_heard_in_time_is_drawn(model, loaded, record, tmp_path):
    """The tracks are `sources` with a frame for each step of the dense map that is not padding."""
    clip = (noise() * 32767).astype(np.int16)
    spatial = model.asa.model.spatial
    tracks, sources = (f(clip, length=12_000) for f in (model.tracks, model.sources))
    for track, source in zip(tracks, sources, strict=True):
        assert {name: track[name] for name in source} == source
        assert track["step"] == spatial.hop * spatial.frames_per_step / 16_000
        for name in ("activity", "azimuths", "elevations"):
            assert track[name].shape == (spatial.steps(12_000),)
        assert (track["activity"] >= 0).all() and (track["activity"] <= 1).all()
    path = record("scene.wav", noise())
    picture = tmp_path / "heard.png"
    plain = loaded(path, "Where is the dog?", OPTIONS)
    assert loaded(path, "Where is the dog?", OPTIONS, picture=picture) == plain
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="--plot"):
        loaded(path, "what ?", picture=tmp_path / "heard.pdf")


def test_sources_below_the_threshold_are_left_out(model):
    clip = (noise(0.5) * 32767).astype(np.int16)
    assert len(model.sources(clip)) == 3 and model.sources(clip, threshold=1.1) == []


@pytest.mark.parametrize(
    "reply, options, answer, thought",
    [
        ("<think> so it is</think><answer>C</answer>", OPTIONS, "front", "so it is"),
        ("<think></think><answer> back</answer>", OPTIONS, "back", ""),
        ("<think> x</think><answer> left</answer>", None, "left", "x"),
        ("<think> x</think><answer>C</answer>", None, "C", "x"),
        ("<think> x</think><answer>BC</answer>", OPTIONS, "BC", "x"),
        ("what ?", OPTIONS, "what ?", ""),
    ],
)
def test_a_letter_becomes_its_option(loaded, record, monkeypatch, reply, options, answer, thought):
    asked = []

    def respond(self, audio, questions, choices, lengths, sampling, seed):
        asked.append((audio.shape, audio.dtype, questions, choices, lengths))
        return [reply]

    monkeypatch.setattr(qa.Model, "respond", respond)
    found = loaded(record("scene.wav", noise()), "Where is the dog?", options)
    assert (found["answer"], found["thought"], found["reply"]) == (answer, thought, reply)
    assert asked == [((1, 16_000, 4), np.int16, ["where is the dog ?"], [options], [16_000])]


def test_clips_are_put_into_buckets_and_kept_within_full_scale(loaded, record, monkeypatch):
    heard = []

    def respond(self, audio, questions, choices, lengths, sampling, seed):
        heard.append((audio[0], int(lengths[0])))
        return ["x"]

    monkeypatch.setattr(qa.Model, "respond", respond)
    monkeypatch.setattr(qa.Model, "sources", lambda self, audio, length: [])
    short, middle, long = noise(0.25), noise(0.75), noise(31.0)
    notes = [
        loaded(record(f"{n}.wav", samples), "what ?").get("note", "")
        for n, samples in enumerate((short, middle, long, 100 * middle))
    ]
    # Trained on 0.5 s: buckets of 0.5, 1, 2, 4, 8, 16 and 30 s.
    assert [(len(x), n) for x, n in heard] == [
        (8000, 8000), (16_000, 12_000), (480_000, 480_000), (16_000, 12_000)
    ]  # fmt: skip
    beyond = "0.8 s are beyond what the model was trained on, scenes of 0.5 s"
    assert notes[0] == "" and notes[1] == notes[3] == beyond
    assert notes[2].startswith("only the first 30 s are heard; 30.0 s are beyond")
    for (audio, _), samples in zip(heard[:3], (short, middle, long), strict=True):
        n = min(len(samples), len(audio))
        np.testing.assert_allclose(audio[:n] / 32767, samples[:n], atol=2e-5)
        assert (audio[n:] == 0).all()
    # One gain for all channels: what they say of direction stays.
    loud = heard[3][0].astype(float)
    assert np.abs(loud).max() == 32767
    np.testing.assert_allclose(
        foa.direction(foa.intensity(loud)), foa.direction(foa.intensity(middle)), atol=0.1
    )


def test_a_clip_in_a_bucket_is_answered_as_if_alone_and_compiled_once_a_bucket(model, text):
    """3 s in the bucket of 4 s: the same words, and options equally likely within 1e-4."""
    clip = (noise(3.0) * 32767).astype(np.int16)
    padded, length = model.fit(clip)
    assert padded.shape == (64_000, 4) and length == 48_000
    padded[length:] = 9999  # whatever is there
    asked, lengths = ["where is the dog ?"], np.array([length], np.int32)
    before = generation.generate._cache_size(), qa.Model._slots._cache_size()
    found = model.respond(padded[None], asked, [None], lengths=lengths)
    places = model.asa.audio_tokens(length)
    for samples in (52_800, 57_300, 63_999, 64_000):
        other = np.array([samples], np.int32)
        model.respond(padded[None], asked, [None], lengths=other)
        model.sources(padded, length=samples)
    after = generation.generate._cache_size(), qa.Model._slots._cache_size()
    assert after == (before[0] + 1, before[1] + 1)
    assert found == model.respond(clip[None], asked, [None])

    def scores(audio, lengths, room):
        """Log-probabilities of four replies to a prompt with `room` for audio."""
        prompt = tokens.prompt_ids(text, places, tokens.question_text(asked[0], None))
        prompts = tokens.pad_left([prompt], room + model.asa.model.prompt_tokens, text.pad)
        rows = [text.encode(tokens.answer_text(option)) for option in OPTIONS]
        replies = tokens.pad_right(rows, 16, text.pad)[None]
        placed = generation.place(model.asa, model.params, audio[None], np.array([False]), lengths)
        args = model.asa, model.marks, model.params, placed, prompts, replies
        return np.asarray(generation.likelihoods(*args))

    full = model.asa.audio_tokens(len(padded))
    in_bucket, alone = scores(padded, lengths, full), scores(clip, None, places)
    np.testing.assert_allclose(in_bucket, alone, atol=1e-4)
    assert np.ptp(alone) > 0.1


def test_controls_hear_less(model, monkeypatch):
    clip = (noise(0.5) * 32767).astype(np.int16)[None]
    other = (noise(1.0)[8000:] * 32767).astype(np.int16)[None]
    turned = np.concatenate([clip[..., :1], other[..., 1:]], -1)
    heard, prompts = [], []

    def generate(asa, marks, params, placed, prompt):
        prompts.append(prompt)
        return np.full((1, 4), model.text.eos)

    monkeypatch.setattr(generation, "place", lambda asa, params, *given: heard.append(given))
    monkeypatch.setattr(generation, "generate", generate)
    monkeypatch.setattr(qa.Model, "_choose", lambda self, placed, asked, options, part: [""])
    for hearing in ("full", "mono", "none", "nulled"):
        for audio in (clip, turned):
            model.respond(audio, ["what ?"], [OPTIONS], hearing)
    places = [(p == model.text.audio).sum() for p in prompts]
    assert places == [5, 5, 5, 5, 0, 0, 5, 5]  # three slots, half a second
    assert [nulled.tolist() for _, nulled, _ in heard] == [[False]] * 6 + [[True]] * 2
    mono = [audio for audio, *_ in heard[2:4]]
    np.testing.assert_array_equal(mono[0], mono[1])
    assert (mono[0][..., 1:] == 0).all() and (mono[0][..., 0] == clip[..., 0]).all()
    with pytest.raises(ConfigError, match="hearing is 'both', expected full, mono, nulled, none"):
        model.respond(clip, ["what ?"], [None], "both")
    with pytest.raises(ConfigError, match="channels is 2, expected 4 for a model of foa audio"):
        model.respond(clip[..., :2], ["what ?"], [None])


def test_files_that_are_no_recording(loaded, record, tmp_path):
    broken = noise()
    broken[5, 2] = np.nan
    (tmp_path / "text.wav").write_text("no audio")
    for path, why in (
        (record("three.wav", noise(channels=3)), "3 channels, expected 4"),
        (record("nan.wav", broken), "not finite"),
        (record("empty.wav", noise(0)), "empty"),
        (tmp_path / "text.wav", "unreadable"),
        (tmp_path / "absent.wav", "no such file"),
    ):
        with pytest.raises(ConfigError, match=why) as error:
            loaded(path, "where is the dog?")
        assert path.name in str(error.value) and "\n" not in str(error.value)


def test_questions_that_are_too_long(loaded, record):
    with pytest.raises(ConfigError, match="a prompt of .* tokens, expected at most"):
        loaded(record("scene.wav", noise()), "where is the dog " * 40)


def test_folders_that_are_no_model(record, tmp_path):
    with pytest.raises(ConfigError, match="expected an export folder or WORKDIR/checkpoints"):
        qa.ask(tmp_path, record("scene.wav", noise()), "what ?")


def test_the_digest_is_of_the_weights(model, folder, tiny, text, tmp_path):
    assert qa.Model.load(folder).digest == model.digest and len(model.digest) == 16
    other = save(tmp_path / "sft", tiny, text, 9.5)
    assert qa.Model.load(other).digest != model.digest


def test_an_answer_outside_the_options_gives_way_to_the_likeliest_of_them(
    model, folder, text, monkeypatch
):
    audio = (noise(0.5) * 32767).astype(np.int16)[None]
    asked = "where is the dog ?"
    free = model.respond(audio, [asked], [None])[0]
    assert qa._answer(free, OPTIONS) not in OPTIONS  # random weights answer nothing of sense
    heard, place = [], generation.place
    monkeypatch.setattr(
        generation, "place", lambda *given: heard.append(place(*given)) or heard[-1]
    )
    reply = model.respond(audio, [asked], [OPTIONS])[0]
    assert len(heard) == 1  # for its own thought and for the others
    as_said = qa.Model.load(folder, chooses=False)
    assert qa._answer(as_said.respond(audio, [asked], [OPTIONS])[0], OPTIONS) not in OPTIONS
    assert as_said.digest != model.digest  # so that answers of the two are not mixed

    # The same by hand: each option in turn after each thought, dense softmax, word by word.
    places = model.asa.audio_tokens(audio.shape[1])
    prompt = tokens.prompt_ids(text, places, tokens.question_text(asked, OPTIONS))
    room = places + model.asa.model.prompt_tokens
    placed, nulled = (
        generation.place(model.asa, model.params, audio, np.array([x])) for x in (False, True)
    )
    direct, _ = jax.jit(lambda *x: model.asa.project(x[0], model.asa.listen(*x)))(
        model.params, audio
    )
    np.testing.assert_allclose(placed, direct, atol=1e-5)
    assert np.abs(placed - nulled).max() > 0.1
    about = placed, tokens.pad_left([prompt], room, text.pad)
    rows = [np.repeat(x, qa.CHOOSING, axis=0) for x in about]
    drawn = np.asarray(generation.draw(model.asa, model.marks, model.params, *rows))[0]
    assert len({tuple(ids) for ids in drawn.tolist()}) == generation.DRAWS

    # Padded on the right, where nothing that counts looks, so that it is compiled once.
    width = len(prompt) + drawn.shape[1] + 16

    @jax.jit
    def logits_of(whole):
        x = model.asa.embed(model.params, whole, placed, text.audio)
        hidden, *_ = model.asa.hidden(model.params, x, whole != text.pad)
        return hidden @ model.asa.table(model.params).T

    def chance(ids, option):
        ids = ids.tolist()
        for mark in (text.answer, text.eos):
            ids = ids[: ids.index(mark)] if mark in ids else ids
        start = [*prompt, *ids, *([] if text.end_think in ids else [text.end_think])]
        ending = text.encode(f"{tokens.ANSWER} {option}{tokens.END_ANSWER}{tokens.EOS}")
        whole = tokens.pad_right([[*start, *ending]], width, text.pad)
        logits = np.asarray(logits_of(whole), np.float64)[0]
        logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return np.exp(sum(logps[len(start) - 1 + n, t] for n, t in enumerate(ending)))

    found = np.array([[chance(ids, option) for option in OPTIONS] for ids in drawn])
    means = found.mean(0)
    assert np.sort(means)[-1] > 1.001 * np.sort(means)[-2]
    best = int(means.argmax())
    assert reply.endswith(f"{tokens.ANSWER} {OPTIONS[best]}{tokens.END_ANSWER}")
    surest = text.decode(drawn[found[:, best].argmax()]).partition(tokens.ANSWER)[0]
    assert reply.startswith(surest)


def test_replies_are_drawn_from_a_seed_and_end_at_strings(model):
    audio = (noise(0.5) * 32767).astype(np.int16)[None]

    def reply(seed=0, options=None, **fields):
        sampling = config.Sampling(temperature=2.0, top_k=50, **fields)
        given = dict(sampling=sampling, seed=seed)
        return model.respond(audio, ["where is the dog ?"], [options], **given)[0]

    free = reply()
    assert free == reply() == reply(options=None) and free != reply(1)
    middle = free[len(free) // 2 : len(free) // 2 + 3]
    ended = reply(stop=(middle, "never said"))
    assert ended == free[: free.find(middle)] and middle not in ended
    # What is drawn, or cut, is not mended towards the options.
    assert qa._answer(reply(options=OPTIONS, stop=("<",)), OPTIONS) not in OPTIONS


@pytest.mark.parametrize(
    "fields, why",
    [
        ({"temperature": -1.0}, "Sampling.temperature is -1.0, expected a number of at least 0"),
        ({"temperature": float("nan")}, "Sampling.temperature is nan"),
        ({"temperature": 1.0, "top_p": 0.0}, "Sampling.top_p is 0.0, expected above 0"),
        ({"temperature": 1.0, "top_k": 2.5}, "Sampling.top_k is 2.5, expected a whole number"),
        ({"top_k": 5}, "Sampling.temperature is 0.0, expected a number above 0 with top_k"),
        ({"stop": ("",)}, "Sampling.stop"),
    ],
)
def test_sampling_that_would_be_ignored_or_wrong_is_refused(fields, why):
    with pytest.raises(ConfigError, match=why):
        config.Sampling(**fields)
