# SPDX-License-Identifier: Apache-2.0
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxasa.config import ConfigError
from jaxasa.data import class_list


def read(folder, content):
    path = folder / "classes.txt"
    path.unlink(missing_ok=True)  # or else the disk is waited for
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return class_list.read_class_names(path)


@pytest.mark.parametrize(
    "content",
    ["woman\nman\n", "\ufeffwoman\nman\n", "woman\r\nman", ' woman \n"man"\n\n'],
)
def test_names_by_number(tmp_path, content):
    assert read(tmp_path, content) == ["woman", "man"]


def test_names_may_have_commas_and_separators(tmp_path):
    content = "Female speech, woman speaking\n-\ncaf\u00e9\u2028bar\n3D printer\n"
    assert read(tmp_path, content) == content.split("\n")[:-1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("label_id,final_label,clean_label\n0,a,b\n", r"txt:1: .* is a row of a table"),
        ("woman\n1,man,x\n", r"txt:2: '1,man,x' is a row of a table"),
        ("0\twoman\n1\tman\n", "has a number"),
        ("1. woman\n2. man\n", "has a number"),
        ("label\nwoman\n", r"txt:1: 'label' is a header"),
        ("# classes\nwoman\n", "is a comment"),
        ("woman\n\nman\n", r"txt:2: '' is empty"),
        ("", "is empty"),
        ("woman\ncaf\u00e9\n".encode("latin-1"), r"txt:2: b'caf\\xe9' is not UTF-8"),
        ("woman\n".encode("utf-16"), r"txt:1: is UTF-16"),
    ],
)
def test_other_files_are_refused(tmp_path, content, words):
    with pytest.raises(ConfigError, match=words):
        read(tmp_path, content)


def check_any_file(folder, content):
    try:
        names, message = read(folder, content), ""
    except ConfigError as error:
        names, message = [], str(error)
    assert all(names) and bool(names) != ("classes.txt" in message) and "\n" not in message


PIECES = ("woman", "\n", "\r\n", ",", "\t", "1", '"', "#", "\ufeff", " ", "-", "\x00", "\u2028")
any_file = st.binary(max_size=30) | st.lists(st.sampled_from(PIECES)).map(
    lambda parts: "".join(parts).encode()
)


@given(any_file)
def test_any_file_gives_names_or_one_error(tmp_path_factory, content):
    check_any_file(tmp_path_factory.getbasetemp(), content)


@pytest.mark.soak
def test_fuzz(tmp_path):
    rng = random.Random(0)
    for _ in range(100_000):
        check_any_file(tmp_path, "".join(rng.choices(PIECES, k=rng.randrange(12))).encode())
