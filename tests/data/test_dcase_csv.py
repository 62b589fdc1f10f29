# SPDX-License-Identifier: Apache-2.0
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxasa.config import ConfigError
from jaxasa.data import dcase_csv
from jaxasa.data.dcase_csv import Event


def write(tmp_path, text, name="a.csv"):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_five_six_and_seven_columns(tmp_path):
    five = dcase_csv.read(write(tmp_path, "0,1,2,-30,10\n\n7,1,0,170,-5\n"))
    assert five == [Event(0, 1, 2, -30.0, 10.0), Event(7, 1, 0, 170.0, -5.0)]
    (six,) = dcase_csv.read(write(tmp_path, " 3, 12, 0, 45, 0, 250 \r\n"), "cm")
    assert six == (3, 12, 0, 45.0, 0.0, 2.5)
    assert dcase_csv.read(write(tmp_path, "3,12,-1,45,0,2.5"), "m")[0].distance == 2.5
    assert dcase_csv.read(write(tmp_path, "")) == []


@given(st.floats(-180, 180), st.floats(-89, 89), st.floats(0.1, 10))
def test_vectors_are_read_as_angles(tmp_path_factory, azimuth, elevation, length):
    a, e = math.radians(azimuth), math.radians(elevation)
    x, y, z = (
        length * v for v in (math.cos(a) * math.cos(e), math.sin(a) * math.cos(e), math.sin(e))
    )
    path = write(tmp_path_factory.getbasetemp(), f"0,1,0,{x!r},{y!r},{z!r},3\n", "xyz.csv")
    (event,) = dcase_csv.read(path)
    turn = (event.azimuth - azimuth + 180) % 360 - 180
    assert abs(turn) < 1e-6 and abs(event.elevation - elevation) < 1e-6 and event.distance == 3


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("onset,class,source,azimuth,elevation", "'onset', expected a whole number"),
        ("1.5,0,0,0,0", "'1.5', expected a whole number"),
        ("-1,0,0,0,0", "frame -1, expected at least 0"),
        ("0,-2,0,0,0", "class -2"),
        ("0,0,0,nan,0", "'nan', expected a finite number"),
        ("0,0,0,0,91", "elevation 91"),
        ("0,0,0,400,0", "azimuth 400"),
        ("0,0,0,0", "4 columns"),
        ("0,0,0,0,0,0,0", "vector with a length"),
        ("0 0 0 0 0", "1 columns"),
    ],
)
def test_malformed_line_is_named(tmp_path, line, words):
    path = write(tmp_path, f"\n{line}\n")
    with pytest.raises(ConfigError) as error:
        dcase_csv.read(path)
    assert str(error.value).startswith(f"{path}:2: ") and words in str(error.value)


def test_a_header_is_skipped(tmp_path):
    text = "frame,class,source,azimuth,elevation\n3,1,0,-90,12\n"
    assert dcase_csv.read(write(tmp_path, text)) == [Event(3, 1, 0, -90.0, 12.0)]


def test_inconsistent_columns_are_refused(tmp_path):
    path = write(tmp_path, "0,0,0,0,0\n1,0,0,0,0,100\n")
    with pytest.raises(ConfigError, match=r"a\.csv:2: 6 columns, expected 5"):
        dcase_csv.read(path)


def test_reads_folders_and_pairs_of_files(tmp_path):
    line = "0,0,0,0,0,100\n"
    for name in ("ref/dev/a.csv", "ref/dev-2/b.csv", "predictions/a.csv"):
        write(tmp_path, line, name)
    ref, predictions = tmp_path / "ref", tmp_path / "predictions"
    with pytest.raises(ConfigError, match=r"1 of 2 files are missing, the first b\.csv"):
        dcase_csv.read_pairs(ref, predictions, ("cm", "cm"))
    true, partial = dcase_csv.read_pairs(ref, predictions, ("cm", "m"), official=True)
    assert sorted(true) == ["a.csv", "b.csv"] and list(partial) == ["a.csv"]
    assert true["a.csv"][0].distance == 1 and partial["a.csv"][0].distance == 100
    one, other = dcase_csv.read_pairs(
        ref / "dev/a.csv", write(tmp_path, line, "x.csv"), ("cm", "m")
    )
    assert list(one) == list(other) == ["a.csv"]
    write(tmp_path, line, "predictions/c.csv")
    with pytest.raises(ConfigError, match=r"c\.csv has no references"):
        dcase_csv.read_pairs(ref, predictions, ("cm", "m"), official=True)
    write(tmp_path, line, "ref/dev-2/a.csv")
    with pytest.raises(ConfigError, match="same name as"):
        dcase_csv.read_all(ref)
    with pytest.raises(ConfigError, match="no such file"):
        dcase_csv.read_all(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no csv file"):
        dcase_csv.read_all(tmp_path / "empty")


cell = st.integers(0, 600), st.integers(0, 2), st.integers(0, 3)
angle = st.integers(-179, 180), st.integers(-90, 90)
metres = st.integers(1, 2000).map(lambda cm: cm / 100)


@given(
    st.lists(st.builds(Event, *cell, *angle, st.none()))
    | st.lists(st.builds(Event, *cell, *angle, metres))
)
def test_events_survive_a_round_trip(events):
    assert dcase_csv.parse(dcase_csv.format_events(events), "x.csv", "cm") == events


@given(st.text(alphabet='0123456789,.-+einf \n"a', max_size=60))
def test_any_text_gives_events_or_an_error_that_names_the_line(content):
    try:
        events, message = dcase_csv.parse(content, "x.csv"), ""
    except ConfigError as error:
        events, message = [], str(error)
    assert all(isinstance(e, Event) for e in events)
    assert not message or (message.startswith("x.csv:") and "\n" not in message)


def test_a_header_in_another_order_is_refused(tmp_path):
    for header in ("frame,class,source,elevation,azimuth", "frame,class,source,azimuth,distance,x"):
        with pytest.raises(ConfigError, match=r"a\.csv:1: columns frame, class, .*expected frame"):
            dcase_csv.read(write(tmp_path, header + "\n3,1,0,-90,12\n"))
    for header in (
        "\ufeffFrame, Class, Source, Azimuth, Elevation\r",
        "frame_idx,active_class,track,azi,ele",
        "# frame,class,source,azimuth,elevation",
    ):
        (event,) = dcase_csv.read(write(tmp_path, header + "\n3,1,0,-90,12\n"))
        assert event == (3, 1, 0, -90.0, 12.0, None)


def test_six_columns_of_vectors_are_recognised(tmp_path):
    # DCASE 2022 baseline: frame, class, 0, x, y, z; a vector's length is not exactly one.
    (left,) = dcase_csv.read(write(tmp_path, "0,1,0,0.0,1.0,0.0\n"))
    assert left == (0, 1, 0, 90.0, 0.0, None)
    below, up = dcase_csv.read(write(tmp_path, "0,1,0,0.6,0.5,-0.2\n1,1,0,0.1,0.1,0.9\n"))
    assert below.distance is None and below.elevation < 0 < up.elevation
    (polar,) = dcase_csv.read(write(tmp_path, "0,1,0,0,0,1\n"))
    assert polar == (0, 1, 0, 0.0, 0.0, 1.0)
    (polar,) = dcase_csv.read(write(tmp_path, "0,1,0,12.5,0.5,1.1\n"))
    assert polar == (0, 1, 0, 12.5, 0.5, 1.1)
    with pytest.raises(ConfigError, match=r"a\.csv:1: 0.5, 0.4, 0.8 may be x, y, z or azimuth"):
        dcase_csv.read(write(tmp_path, "0,1,0,0.5,0.4,0.8\n"))


def test_distances_that_are_unknown(tmp_path):
    text = "0,1,0,10,0,nan\n1,1,0,10,0,\n2,1,0,10,0,150\n"
    assert [e.distance for e in dcase_csv.read(write(tmp_path, text), "cm")] == [None, None, 1.5]


@pytest.mark.parametrize(
    ("distances", "unit"),
    [
        ((200, 150), "cm"),
        ((2.566, 1.2), "m"),
        ((25.5, 256.6), "cm"),
        ((2, 3), "--unit m or cm"),
        ((), "cm"),
    ],
)
def test_unit_of_distances(distances, unit):
    text = "".join(f"{k},1,0,10,0,{d}\n" for k, d in enumerate(distances))
    rows = {"a.csv": dcase_csv.parse_rows(text, "a.csv")}
    if len(unit) > 2:
        with pytest.raises(ConfigError, match=unit):
            dcase_csv.distance_unit(rows)
    else:
        assert dcase_csv.distance_unit(rows)[0] == unit
    if unit == "m":
        rows["b.csv"] = dcase_csv.parse_rows("0,1,0,10,0,200\n", "b.csv")
        with pytest.raises(ConfigError, match=r"a\.csv has distances as in m, b\.csv as in cm"):
            dcase_csv.distance_unit(rows)


def test_units_that_differ_are_said(tmp_path):
    line = "0,1,0,90,0,200\n"
    ref, same = write(tmp_path, line), write(tmp_path, line, "b.csv")
    notes = []
    dcase_csv.read_pairs(ref, same, ("cm", "cm"), note=notes.append)
    assert not notes
    dcase_csv.read_pairs(ref, same, ("cm", "m"), note=notes.append)
    assert len(notes) == 1 and "100 times" in notes[0] and "--prediction_unit" in notes[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("0;1;0;30;0\n", "separated by ';'"),
        ("0,1,0,30,0\r1,1,0,30,0\r", "its lines end with"),
        ("999999999,1,0,30,0\n", "expected less than 864000"),
        ("caf\u00e9\n".encode("latin-1"), "is not UTF-8"),
    ],
)
def test_files_that_other_programs_write(tmp_path, content, words):
    path = tmp_path / "raw.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=words):
        dcase_csv.read(path)
    path.write_bytes(b'"0","1","0","30","0"\r\n')
    assert dcase_csv.read(path) == [(0, 1, 0, 30.0, 0.0, None)]


LAYOUTS = (
    ("0,1,0,30,0", "1,1,0,-90,12", "frame,class,source,azimuth,elevation"),
    ("0,1,0,30,0,200", "1,1,1,-90,12,150", "2,1,0,0,0,nan"),
    ("0,1,0,30,0,2.566", "1,1,1,-90,12,0.4", "2,1,0,0,0,1"),
    ("0,1,0,0.0,1.0,0.0", "1,1,0,0.6,0.5,-0.2", "2,1,0,0.1,0.1,0.9"),
    ("0,1,0,0.1,0.9,0.1,2.5", "1,1,0,0,0,1,3"),
)
PIECES = [
    *"0,1,0,30,0|1,1,0,0.0,1.0,0.0|2,1,0,9,9,200|3,1,0,0.1,0.9,0.1,2.5|4,1,0,1,1,2.566".split("|"),
    *"frame,class,source,azimuth,elevation|frame,class,source,x,y,z|,|;|nan|1e9|-1".split("|"),
    *("\n", "\n", "\n", "\r\n", "\r", '"', "\ufeff", "\u2028", "\x00", "9" * 400),
]
any_content = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=14).map("".join)


def check_any_content(content):
    """Events, or an error of one line that names the file."""
    events, message = [], ""
    try:
        rows = dcase_csv.parse_rows(content, "x.csv")
        dcase_csv.distance_unit({"x.csv": rows})
        events = dcase_csv.parse(content, "x.csv")
        assert len(events) == len(rows)
    except ConfigError as error:
        message = str(error)
    assert not message or (message.startswith("x.csv") and "\n" not in message)
    assert all(abs(e.azimuth) <= 360 and abs(e.elevation) <= 90 for e in events)


@given(any_content)
def test_any_content_gives_events_or_one_error(content):
    check_any_content(content)


@pytest.mark.soak
def test_fuzz():
    rng = random.Random(0)
    for _ in range(100_000):
        content = "\n".join(rng.choices(rng.choice(LAYOUTS), k=rng.randrange(8)))
        for _ in range(rng.randrange(3)):
            cut = rng.randrange(len(content) + 1)
            content = content[:cut] + rng.choice(PIECES) + content[cut + rng.randrange(3) :]
        check_any_content(content)
