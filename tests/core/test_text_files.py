# SPDX-License-Identifier: Apache-2.0
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxasa.config import ConfigError
from jaxasa.core import text_files

HEADER = "path,class,recording_id\n"
MANIFEST = HEADER + 'a.wav,dog,1\n"b, c.wav",cat,2\n'
COLUMNS = ("path", "class", "recording_id")


def write(tmp_path, content):
    path = tmp_path / "a.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_marks_and_line_ends(tmp_path):
    for content in ("a\nb{}\n", "\ufeffa\r\nb{}", "a\nb{}\r\n"):
        content = content.format("\u2028\x85\x0b")
        assert text_files.read_lines(write(tmp_path, content)) == ["a", "b\u2028\x85\x0b"]
    assert text_files.read_lines(write(tmp_path, "")) == []
    assert text_files.read_lines(write(tmp_path, "\na\n\n")) == ["", "a", ""]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a\ncaf\u00e9,dog\n".encode("latin-1"), r"a\.txt:2: b'caf\\xe9,dog' is not UTF-8"),
        ("a\nb\n".encode("utf-16"), r"a\.txt:1: is UTF-16"),
        ("a\nb\n".encode("utf-16-le"), r"a\.txt:1: b'a\\x00' is not text"),
        (b"x" * 5000 + b"\xff", r"a\.txt:1: b'x+\\xff' is not UTF-8"),
        ("a\rb\rc\r", r"a\.txt: its lines end with"),
    ],
)
def test_other_encodings_are_named_with_their_line(tmp_path, content, words):
    path = write(tmp_path, content)
    with pytest.raises(ConfigError, match=words) as error:
        text_files.read_text(path)
    assert len(str(error.value)) < 250 + len(str(path))


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(ConfigError, match="no such file, expected a list"):
        text_files.read_text(tmp_path / "none", "a list")
    for path in (tmp_path, "a\0b"):
        with pytest.raises(ConfigError, match="cannot be read"):
            text_files.read_text(path)


def test_csv_as_spreadsheets_write_it(tmp_path):
    spaced = 'path , class,recording_id\n a.wav,dog ,1\n\n"b, c.wav",cat,2\n,,\n'
    for content in (MANIFEST, "\ufeff" + MANIFEST.replace("\n", "\r\n"), spaced):
        rows = [row for _, row in text_files.read_csv(write(tmp_path, content), COLUMNS)]
        assert [tuple(row.values()) for row in rows] == [
            ("a.wav", "dog", "1"),
            ("b, c.wav", "cat", "2"),
        ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (HEADER + '"a.wav,dog,1\n' + "b.wav,dog,2\n" * 20_000, ":2: a quote is not closed"),
        (HEADER + 'a.wav,dog,1\n"b.wav,cat,2\n', ":3: a quote is not closed"),
        (HEADER + '"a"b,dog,1\n', ":2: is malformed"),
        (HEADER + "a\rb,dog,1\n", ":2: is malformed"),
        ("path;class;recording_id\n", ":1: .*separated by ';'.*expected the columns path, class"),
        ("path,class\n", ":1: 'path,class', expected the columns path, class, recording_id"),
        ("path,class,recording_id,class\n", ":1: .*once"),
        (HEADER + "a,b.wav,dog,1\n", ":2: .*has 4 cells, expected 3"),
        (HEADER + "a.wav,dog\n", ":2: .*has 2 cells, expected 3"),
        ("", "is empty"),
    ],
)
def test_csv_that_cannot_be_read_is_named_with_its_line(tmp_path, content, words):
    with pytest.raises(ConfigError, match=words) as error:
        list(text_files.read_csv(write(tmp_path, content), COLUMNS))
    assert "\n" not in str(error.value)


def test_json_lines_end_at_line_feeds_alone(tmp_path):
    rows = [{"answer": f"B{c}left"} for c in "\u2028\u2029\x85"]
    lines = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    read = list(text_files.read_json_lines(write(tmp_path, "\ufeff" + lines)))
    assert [(n, value) for n, _, value in read] == list(enumerate(rows, 1))
    path = write(tmp_path, '{"a": NaN}\n\nnot json\n[1]\n' + "[" * 100_000)
    values = [(n, value) for n, _, value in text_files.read_json_lines(path)]
    assert values == [(1, {"a": None}), (3, None), (4, None), (5, None)]


def test_json_documents(tmp_path):
    assert text_files.read_json(write(tmp_path, '\ufeff{"a": 1}')) == {"a": 1}
    for content in ("[1]", "{", "", "[" * 100_000):
        with pytest.raises(ConfigError, match="is not a JSON object, expected results"):
            text_files.read_json(write(tmp_path, content), "results")
    for content in ('[{"a": 1}]', '{"data": [{"a": 1}]}', '{\n"a": 1\n}', '[\n{"a": 1}\n]'):
        with pytest.raises(ConfigError, match=r"is one JSON document \(a"):
            list(text_files.read_json_lines(write(tmp_path, content)))


GOOD = (MANIFEST, '{"id": "1", "answer": "B\u2028"}\n{"id": "2"}\n', "woman\nman\n", "caf\u00e9\n")
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252")
PIECES = (b"", b'"', b"\r", b"\n", b"\0", b"{", b",")
MUTATION = st.tuples(
    st.integers(0, 80), st.integers(0, 8), st.sampled_from(PIECES) | st.binary(max_size=4)
)
any_file = st.tuples(
    st.sampled_from(GOOD), st.sampled_from(ENCODINGS), st.lists(MUTATION, max_size=4)
)


def check_any_file(path, text, encoding, mutations):
    content = text.encode(encoding, errors="replace")
    for start, length, new in mutations:
        content = content[:start] + new + content[start + length :]
    path.unlink(missing_ok=True)  # or else the disk is waited for
    path.write_bytes(content)
    for read in (
        text_files.read_lines,
        text_files.read_json,
        lambda p: list(text_files.read_json_lines(p)),
        lambda p: list(text_files.read_csv(p, COLUMNS)),
    ):
        message = ""
        try:
            read(path)
        except ConfigError as error:
            message = str(error)
        assert not message or (message.startswith(str(path)) and "\n" not in message), content


@given(any_file)
def test_mutated_files_are_read_or_named(tmp_path_factory, file):
    check_any_file(tmp_path_factory.getbasetemp() / "mutated", *file)


@pytest.mark.soak
def test_fuzz(tmp_path):
    rng = random.Random(0)
    for _ in range(100_000):
        mutations = [
            (rng.randrange(80), rng.randrange(8), rng.choice((rng.randbytes(3), *PIECES)))
            for _ in range(rng.randrange(5))
        ]
        check_any_file(tmp_path / "fuzz", rng.choice(GOOD), rng.choice(ENCODINGS), mutations)
