# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import re

import numpy as np
import pytest

from jaxasa.config import ConfigError
from jaxasa.core import keys
from jaxasa.data import import_scenes, imported_questions, questions, records, transforms
from jaxasa.data.imported_questions import ImportedQaExamples, ImportedQuestions

PLACES = 4


def audio(k, samples):
    return np.random.default_rng(k).integers(-99, 99, (samples, 4)).astype(np.int16)


@pytest.fixture
def folder(tmp_path):
    """Three sounds of 0.5, 1 and 3 s; a question of the second is far too long."""
    lengths = (8_000, 16_000, 48_000)
    path = tmp_path / "a.array_record"
    entry = records.write_shard(
        path, ((audio(k, n), {"id": str(k)}) for k, n in enumerate(lengths))
    )
    records.write_manifest(tmp_path, {}, [entry])
    rows = [
        (0, "Where is the Dog?", "left", {"options": ["left", "right", "front", "back"]}),
        (0, "what can you hear ?", "dog", {"trace": "dog left near .", "level": "L1"}),
        (1, "where is the bird ?", "right", {}),
        (1, "where " * 200, "right", {}),
        (1, "where ?", "right " * 200, {}),
        (2, "where is the bird ?", "back", {}),
    ]
    lines = [
        {"record": k, "seconds": lengths[k] / 16_000, "question": q, "answer": a} | more
        for k, q, a, more in rows
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / import_scenes.QUESTIONS_FILE).write_text(text)
    return tmp_path


def test_too_long_questions_are_left_out_and_counted(folder, tiny, text, capsys):
    source = ImportedQuestions(folder, tiny.model, text, 1.0)
    assert source.report == {"used": 3, "too long a sound": 1, "too long a text": 2}
    assert "2 too long a text" in capsys.readouterr().err
    assert len(source) == 2 and [len(rows) for _, rows in source] == [2, 1]
    samples, _ = source[0]
    np.testing.assert_array_equal(samples[:8000], audio(0, 8000))
    assert samples.shape == (16_000, 4) and not samples[8000:].any()
    with pytest.raises(ConfigError, match=r"no question fits.*6 too long a sound"):
        ImportedQuestions(folder, tiny.model, text, 0.25)
    (folder / import_scenes.QUESTIONS_FILE).write_text('{"record": 0\n')
    with pytest.raises(ConfigError, match="questions.jsonl:1"):
        ImportedQuestions(folder, tiny.model, text, 1.0)
    (folder / import_scenes.QUESTIONS_FILE).unlink()
    with pytest.raises(ConfigError, match="jaxasa import"):
        ImportedQuestions(folder, tiny.model, text, 1.0)


def test_prompt_lengths_include_the_chat_template(folder, tiny, text):
    """Words stand before and after each question there: of two that fit alone, one does."""
    texts = ("Where is the Dog?", "what can you hear ?", "where is the bird ?")
    options = (["left", "right", "front", "back"], None, None)
    prompts = [
        imported_questions._prompt_and_reply({"question": q, "options": o, "answer": "left"})[0]
        for q, o in zip(texts, options, strict=True)
    ]
    need = sorted(len(text.encode(p)) for p in prompts)
    model = dataclasses.replace(tiny.model, prompt_tokens=need[-1])
    chat = dataclasses.replace(text, chat_prefix=(5,), chat_suffix=(6,))
    assert ImportedQuestions(folder, model, text, 1.0).report["used"] == 3
    source = ImportedQuestions(folder, model, chat, 1.0)
    assert source.report["used"] == sum(n + 2 <= need[-1] for n in need) < 3
    for element in source:
        ImportedQaExamples(model, chat, PLACES, 2)(element, keys.rng(0, "t", 0), 0.0)


def test_examples_have_the_arrays_of_qa_examples(folder, tiny, text, described):
    element = ImportedQuestions(folder, tiny.model, text, 1.0)[0]
    example = ImportedQaExamples(tiny.model, text, PLACES, 6)(element, keys.rng(0, "t", 0), 0.0)
    scene = transforms.QaExamples(
        questions.QuestionSampler(tiny.classes), tiny.model, text, PLACES, 6
    )
    like = scene((audio(9, 16_000), described(1)[0]), keys.rng(0, "t", 0), 0.0)
    assert {k: (v.shape, v.dtype) for k, v in example.items()} == {
        k: (np.shape(v), np.asarray(v).dtype) for k, v in like.items()
    }
    assert example["yaw"] == 0 and not example["mono"] and not example["drop_spatial"]


def test_prompts_and_replies_are_the_rows(folder, tiny, text):
    element = ImportedQuestions(folder, tiny.model, text, 1.0)[0]
    example = ImportedQaExamples(tiny.model, text, PLACES, 16)(element, keys.rng(0, "t", 1), 0.0)
    rows = set()
    columns = (example[name] for name in ("prompt", "reply", "level"))
    for prompt, reply, level in zip(*columns, strict=True):
        assert (prompt == text.audio_id).sum() == PLACES
        words = text.decode(prompt[prompt != text.audio_id])
        rows.add((words, text.decode(reply), int(level)))
    assert rows == {
        (
            " where is the dog ?\nA left\nB right\nC front\nD back\n",
            "<think></think><answer> left</answer>",
            -1,
        ),
        (
            " what can you hear ?\n",
            "<think> dog left near .</think><answer> dog</answer>",
            0,
        ),
    }


def test_questions_are_normalised_as_in_ask(tiny, text):
    prompt, _ = imported_questions._prompt_and_reply(
        {"question": "Where is the Dog, left?", "answer": "left"}
    )
    assert re.search(r"where is the dog , left \?", prompt)
