import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxasa.bench import dcase
from jaxasa.config import ConfigError


def write(tmp_path, text, name="a.csv"):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_the_three_layouts(tmp_path):
    five = dcase.read(write(tmp_path, "0,1,2,-30,10\n\n7,1,0,170,-5\n"))
    assert five == [dcase.Event(0, 1, 2, -30.0, 10.0), dcase.Event(7, 1, 0, 170.0, -5.0)]
    (six,) = dcase.read(write(tmp_path, " 3, 12, 0, 45, 0, 250 \r\n"), "cm")
    assert six == (3, 12, 0, 45.0, 0.0, 2.5)
    assert dcase.read(write(tmp_path, "3,12,-1,45,0,2.5"), "m")[0].distance == 2.5
    assert dcase.read(write(tmp_path, "")) == []


@given(st.floats(-180, 180), st.floats(-89, 89), st.floats(0.1, 10))
def test_vectors_are_read_as_angles(tmp_path_factory, azimuth, elevation, length):
    a, e = math.radians(azimuth), math.radians(elevation)
    x, y, z = (
        length * v for v in (math.cos(a) * math.cos(e), math.sin(a) * math.cos(e), math.sin(e))
    )
    path = write(tmp_path_factory.getbasetemp(), f"0,1,0,{x!r},{y!r},{z!r},3\n", "xyz.csv")
    (event,) = dcase.read(path)
    turn = (event.azimuth - azimuth + 180) % 360 - 180
    assert abs(turn) < 1e-6 and abs(event.elevation - elevation) < 1e-6 and event.distance == 3


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("frame,class,source,azimuth,elevation", "'frame', expected a whole number"),
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
def test_what_is_no_event_is_named_by_file_and_line(tmp_path, line, words):
    path = write(tmp_path, f"\n{line}\n")
    with pytest.raises(ConfigError) as error:
        dcase.read(path)
    assert str(error.value).startswith(f"{path}:2: ") and words in str(error.value)


def test_lines_of_other_width(tmp_path):
    path = write(tmp_path, "0,0,0,0,0\n1,0,0,0,0,100\n")
    with pytest.raises(ConfigError, match=r"a\.csv:2: 6 columns, expected 5"):
        dcase.read(path)


def test_folders_and_files(tmp_path):
    line = "0,0,0,0,0,100\n"
    for name in ("ref/dev/a.csv", "ref/dev-2/b.csv", "said/a.csv"):
        write(tmp_path, line, name)
    ref, said = tmp_path / "ref", tmp_path / "said"
    with pytest.raises(ConfigError, match=r"1 of 2 files are missing, the first b\.csv"):
        dcase.read_both(ref, said, ("cm", "cm"))
    truth, few = dcase.read_both(ref, said, ("cm", "m"), official=True)
    assert sorted(truth) == ["a.csv", "b.csv"] and list(few) == ["a.csv"]
    assert truth["a.csv"][0].distance == 1 and few["a.csv"][0].distance == 100
    one, other = dcase.read_both(ref / "dev/a.csv", write(tmp_path, line, "x.csv"), ("cm", "m"))
    assert list(one) == list(other) == ["a.csv"]
    write(tmp_path, line, "said/c.csv")
    with pytest.raises(ConfigError, match=r"c\.csv has no references"):
        dcase.read_both(ref, said, ("cm", "m"), official=True)
    write(tmp_path, line, "ref/dev-2/a.csv")
    with pytest.raises(ConfigError, match="same name as"):
        dcase.read_all(ref)
    with pytest.raises(ConfigError, match="no such file"):
        dcase.read_all(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no csv file"):
        dcase.read_all(tmp_path / "empty")
