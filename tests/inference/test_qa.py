# SPDX-License-Identifier: Apache-2.0
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
    """Writes a checkpoint to `path`, with random weights and replies of 16 tokens.

    bias: of the slots' presence.
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
    with checkpoint.CheckpointManager(path) as store:
        store.save(1, state.TrainState(np.int32(1), params, {}), {}, meta, "")
    text.backend.save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(scope="module")
def folder(tiny, text, tmp_path_factory):
    return save(tmp_path_factory.mktemp("checkpoints") / "sft", tiny, text, 9.0)


@pytest.fixture(scope="module")
def model(folder):
    return qa.QaModel.load(folder)


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
def ask(model, folder, monkeypatch):
    """`qa.ask` with the model that is already loaded and compiled."""
    monkeypatch.setattr(qa.QaModel, "load", classmethod(lambda cls, path: model))
    return lambda audio, *args, **more: qa.ask(folder, audio, *args, **more)


def test_an_answer_is_json_with_the_detected_sources(tiny, ask, record):
    result = ask(record("scene.wav", noise()), "Where is the Dog?", OPTIONS)
    assert json.loads(json.dumps(result)) == result
    assert list(result) == ["question", "answer", "thought", "reply", "sources", "note"]
    expected = "1.0 s are longer than the scenes that the model was trained on, 0.5 s"
    assert result["note"] == expected
    assert result["question"] == "Where is the Dog?" and result["reply"]
    assert len(result["sources"]) == 3
    for source in result["sources"]:
        assert set(source) == {"class", "azimuth", "elevation", "distance", "presence"}
        # The class head has eight outputs, of which five are classes.
        assert source["class"] in tiny.classes[:5]
        assert -180 < source["azimuth"] <= 180 and -90 <= source["elevation"] <= 90
        assert source["distance"] > 0 and 0.5 <= source["presence"] <= 1
    presence = [s["presence"] for s in result["sources"]]
    assert presence == sorted(presence, reverse=True)


def test_tracks_are_sources_over_time_and_are_plotted(model, ask, record, tmp_path):
    """A track has a value for each step of the dense map that is not padding."""
    clip = (noise() * 32767).astype(np.int16)
    spatial = model.asa.model.spatial
    tracks, sources = (f(clip, length=12_000) for f in (model.tracks, model.sources))
    for track, source in zip(tracks, sources, strict=True):
        assert {name: track[name] for name in source} == source
        assert track["step"] == spatial.hop_length * spatial.frames_per_step / 16_000
        for name in ("activity", "azimuths", "elevations"):
            assert track[name].shape == (spatial.steps(12_000),)
        assert (track["activity"] >= 0).all() and (track["activity"] <= 1).all()
    path = record("scene.wav", noise())
    plot = tmp_path / "sources.png"
    answer = ask(path, "Where is the dog?", OPTIONS)
    assert ask(path, "Where is the dog?", OPTIONS, plot_path=plot) == answer
    assert plot.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="--plot"):
        ask(path, "what ?", plot_path=tmp_path / "sources.pdf")


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
def test_the_letter_of_an_option_becomes_its_text(
    ask, record, monkeypatch, reply, options, answer, thought
):
    calls = []

    def respond(self, audio, questions, choices, lengths, sampling, seed):
        calls.append((audio.shape, audio.dtype, questions, choices, lengths))
        return [reply]

    monkeypatch.setattr(qa.QaModel, "respond", respond)
    result = ask(record("scene.wav", noise()), "Where is the dog?", options)
    assert (result["answer"], result["thought"], result["reply"]) == (answer, thought, reply)
    assert calls == [((1, 16_000, 4), np.int16, ["where is the dog ?"], [options], [16_000])]


def test_clips_are_padded_to_buckets_and_scaled_to_full_scale(ask, record, monkeypatch):
    calls = []

    def respond(self, audio, questions, choices, lengths, sampling, seed):
        calls.append((audio[0], int(lengths[0])))
        return ["x"]

    monkeypatch.setattr(qa.QaModel, "respond", respond)
    monkeypatch.setattr(qa.QaModel, "sources", lambda self, audio, length: [])
    short, middle, long = noise(0.25), noise(0.75), noise(31.0)
    notes = [
        ask(record(f"{n}.wav", samples), "what ?").get("note", "")
        for n, samples in enumerate((short, middle, long, 100 * middle))
    ]
    # Trained on 0.5 s: buckets of 0.5, 1, 2, 4, 8, 16 and 30 s.
    assert [(len(x), n) for x, n in calls] == [
        (8000, 8000), (16_000, 12_000), (480_000, 480_000), (16_000, 12_000)
    ]  # fmt: skip
    beyond = "0.8 s are longer than the scenes that the model was trained on, 0.5 s"
    assert notes[0] == "" and notes[1] == notes[3] == beyond
    assert notes[2].startswith("only the first 30 s are used; 30.0 s are longer than the scenes")
    for (audio, _), samples in zip(calls[:3], (short, middle, long), strict=True):
        n = min(len(samples), len(audio))
        np.testing.assert_allclose(audio[:n] / 32767, samples[:n], atol=2e-5)
        assert (audio[n:] == 0).all()
    # One gain for all channels, which keeps directions.
    loud = calls[3][0].astype(float)
    assert np.abs(loud).max() == 32767
    np.testing.assert_allclose(
        foa.cartesian_to_azel(foa.intensity(loud)),
        foa.cartesian_to_azel(foa.intensity(middle)),
        atol=0.1,
    )


def test_padding_to_a_bucket_changes_no_answer_and_each_bucket_compiles_once(model, text):
    """3 s in the bucket of 4 s: the same words, and log-probabilities within 1e-4."""
    clip = (noise(3.0) * 32767).astype(np.int16)
    padded, length = model.pad_to_bucket(clip)
    assert padded.shape == (64_000, 4) and length == 48_000
    padded[length:] = 9999  # padding may have any value
    questions, lengths = ["where is the dog ?"], np.array([length], np.int32)
    compiled = generation.greedy_replies, generation.encode_slots
    before = [function._cache_size() for function in compiled]
    replies = model.respond(padded[None], questions, [None], lengths=lengths)
    audio_tokens = model.asa.num_audio_tokens(length)
    for samples in (52_800, 57_300, 63_999, 64_000):
        other = np.array([samples], np.int32)
        model.respond(padded[None], questions, [None], lengths=other)
        model.sources(padded, length=samples)
    assert [function._cache_size() for function in compiled] == [n + 1 for n in before]
    assert replies == model.respond(clip[None], questions, [None])

    def scores(audio, lengths, room):
        """Log-probabilities of four replies to a prompt padded to `room` audio tokens."""
        question = tokens.question_text(questions[0], None)
        prompt = tokens.prompt_ids(text, audio_tokens, question)
        prompts = tokens.pad_left([prompt], room + model.asa.model.prompt_tokens, text.pad_id)
        rows = [text.encode(tokens.answer_text(option)) for option in OPTIONS]
        replies = tokens.pad_right(rows, 16, text.pad_id)[None]
        drop_spatial = np.array([False])
        audio_embeds = generation.audio_embeddings(
            model.asa, model.params, audio[None], drop_spatial, lengths
        )
        args = model.asa, model.special_tokens, model.params, audio_embeds, prompts, replies
        return np.asarray(generation.option_logprobs(*args))

    full = model.asa.num_audio_tokens(len(padded))
    in_bucket, unpadded = scores(padded, lengths, full), scores(clip, None, audio_tokens)
    np.testing.assert_allclose(in_bucket, unpadded, atol=1e-4)
    assert np.ptp(unpadded) > 0.1


def test_audio_conditions_withhold_audio(model, monkeypatch):
    clip = (noise(0.5) * 32767).astype(np.int16)[None]
    other = (noise(1.0)[8000:] * 32767).astype(np.int16)[None]
    other_direction = np.concatenate([clip[..., :1], other[..., 1:]], -1)
    calls, prompts = [], []

    def greedy_replies(asa, special_tokens, params, audio_embeds, prompt):
        prompts.append(prompt)
        return np.full((1, 4), model.tokenizer.eos_id)

    monkeypatch.setattr(
        generation, "audio_embeddings", lambda asa, params, *args: calls.append(args)
    )
    monkeypatch.setattr(generation, "greedy_replies", greedy_replies)
    monkeypatch.setattr(qa.QaModel, "_most_probable_options", lambda self, *_: [""])
    for audio_condition in ("full", "mono", "none", "no_spatial"):
        for audio in (clip, other_direction):
            model.respond(audio, ["what ?"], [OPTIONS], audio_condition)
    audio_tokens = [(p == model.tokenizer.audio_id).sum() for p in prompts]
    assert audio_tokens == [5, 5, 5, 5, 0, 0, 5, 5]  # three slots, half a second
    assert [drop.tolist() for _, drop, _ in calls] == [[False]] * 6 + [[True]] * 2
    mono = [audio for audio, *_ in calls[2:4]]
    np.testing.assert_array_equal(mono[0], mono[1])
    assert (mono[0][..., 1:] == 0).all() and (mono[0][..., 0] == clip[..., 0]).all()
    expected = "full, mono, no_spatial, none"
    with pytest.raises(ConfigError, match=f"audio_condition is 'both', expected {expected}"):
        model.respond(clip, ["what ?"], [None], "both")
    with pytest.raises(ConfigError, match="channels is 2, expected 4 for a model of foa audio"):
        model.respond(clip[..., :2], ["what ?"], [None])


def test_files_that_are_no_recording_are_refused(ask, record, tmp_path):
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
            ask(path, "where is the dog?")
        assert path.name in str(error.value) and "\n" not in str(error.value)


def test_questions_that_are_too_long_are_refused(ask, record):
    with pytest.raises(ConfigError, match="a prompt of .* tokens, expected at most"):
        ask(record("scene.wav", noise()), "where is the dog " * 40)


def test_folders_without_a_model_are_refused(record, tmp_path):
    with pytest.raises(ConfigError, match="`jaxasa export`, or WORKDIR/checkpoints"):
        qa.ask(tmp_path, record("scene.wav", noise()), "what ?")


def test_the_digest_changes_with_weights_and_option_fallback(model, folder, tiny, text, tmp_path):
    assert qa.QaModel.load(folder).digest == model.digest and len(model.digest) == 16
    other = save(tmp_path / "sft", tiny, text, 9.5)
    digests = {qa.QaModel.load(other).digest, qa.QaModel.load(folder, False).digest}
    assert len(digests | {model.digest}) == 3 and {len(digest) for digest in digests} == {16}


def test_option_fallback_is_the_most_probable_option_averaged_over_traces(
    model, folder, text, monkeypatch
):
    audio = (noise(0.5) * 32767).astype(np.int16)[None]
    question = "where is the dog ?"
    (free,) = model.respond(audio, [question], [None])
    assert answer_of(free) not in OPTIONS  # random weights have no valid answers
    embeddings, audio_embeddings = [], generation.audio_embeddings
    monkeypatch.setattr(
        generation,
        "audio_embeddings",
        lambda *args: embeddings.append(audio_embeddings(*args)) or embeddings[-1],
    )
    (reply,) = model.respond(audio, [question], [OPTIONS])
    assert len(embeddings) == 1  # shared by the reply and the fallback
    without = qa.QaModel.load(folder, option_fallback=False)
    assert answer_of(without.respond(audio, [question], [OPTIONS])[0]) not in OPTIONS

    # The same by hand: each option after each trace, with a dense softmax, token by token.
    asa, params = model.asa, model.params
    audio_tokens = asa.num_audio_tokens(audio.shape[1])
    prompt = tokens.prompt_ids(text, audio_tokens, tokens.question_text(question, OPTIONS))
    audio_embeds, dropped = (
        generation.audio_embeddings(asa, params, audio, np.array([drop])) for drop in (False, True)
    )
    direct, _ = jax.jit(lambda p, a: asa.project(p, asa.encode_audio(p, a)))(params, audio)
    np.testing.assert_allclose(audio_embeds, direct, atol=1e-5)
    assert np.abs(audio_embeds - dropped).max() > 0.1
    prompts = tokens.pad_left([prompt], audio_tokens + asa.model.prompt_tokens, text.pad_id)
    rows = [np.repeat(x, qa.FALLBACK_ROWS, axis=0) for x in (audio_embeds, prompts)]
    special_tokens = model.special_tokens
    traces = np.asarray(generation.sample_replies(asa, special_tokens, params, *rows))[0]
    assert len({tuple(ids) for ids in traces.tolist()}) == generation.NUM_SAMPLES

    # Padded on the right, which changes nothing before it, so that it is compiled once.
    width = len(prompt) + traces.shape[1] + 16

    @jax.jit
    def logits_of(ids):
        x = asa.embed(params, ids, audio_embeds, text.audio_id)
        hidden, *_ = asa.forward(params, x, ids != text.pad_id)
        return hidden @ asa.unembedding(params).T

    def probability(ids, option):
        ids = ids.tolist()
        for end in (text.answer_id, text.eos_id):
            ids = ids[: ids.index(end)] if end in ids else ids
        start = [*prompt, *ids, *([] if text.end_think_id in ids else [text.end_think_id])]
        ending = text.encode(f"{tokens.ANSWER} {option}{tokens.END_ANSWER}{tokens.EOS}")
        row = tokens.pad_right([[*start, *ending]], width, text.pad_id)
        logits = np.asarray(logits_of(row), np.float64)[0]
        logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return np.exp(sum(logps[len(start) - 1 + n, t] for n, t in enumerate(ending)))

    by_trace = np.array([[probability(ids, option) for option in OPTIONS] for ids in traces])
    means = by_trace.mean(0)
    assert np.sort(means)[-1] > 1.001 * np.sort(means)[-2]
    best = int(means.argmax())
    assert reply.endswith(f"{tokens.ANSWER} {OPTIONS[best]}{tokens.END_ANSWER}")
    trace = text.decode(traces[by_trace[:, best].argmax()]).partition(tokens.ANSWER)[0]
    assert reply.startswith(trace)


def test_sampled_replies_depend_on_the_seed_and_end_at_stop_strings(model):
    audio = (noise(0.5) * 32767).astype(np.int16)[None]

    def reply(seed=0, options=None, **fields):
        sampling = config.Sampling(temperature=2.0, top_k=50, **fields)
        question = "where is the dog ?"
        return model.respond(audio, [question], [options], sampling=sampling, seed=seed)[0]

    free = reply()
    assert free == reply() == reply(options=None) and free != reply(1)
    middle = free[len(free) // 2 : len(free) // 2 + 3]
    stopped = reply(stop=(middle, "another string"))
    assert stopped == free[: free.find(middle)] and middle not in stopped
    # Sampled or stopped replies have no option fallback.
    assert answer_of(reply(options=OPTIONS, stop=("<",))) not in OPTIONS


def answer_of(reply):
    return qa.parse_reply(reply, OPTIONS)["answer"]


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
