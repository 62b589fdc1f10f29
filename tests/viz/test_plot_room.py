# SPDX-License-Identifier: Apache-2.0
import math

import matplotlib.image
import numpy as np
import pytest

from jaxasa.acoustics import measure, rir, rooms, scenes
from jaxasa.cli import main
from jaxasa.config import Scenes
from jaxasa.core import keys
from jaxasa.viz import plot_room

ROOM, LISTENER, SOURCE = (6.0, 5.0, 3.0), (4.0, 2.0, 1.5), (1.5, 3.5, 1.2)


def test_returned_acoustics_are_those_of_the_rir(tmp_path):
    view = plot_room.view_of_shoebox(ROOM, 0.5, LISTENER, (SOURCE, (5.0, 4.0, 1.0)))
    result = plot_room.plot_room(view, 0, tmp_path / "room.png")
    room = rooms.Shoebox(ROOM, view.absorption)
    response = rir.shoebox_rir(room, SOURCE, LISTENER, keys.rng(0, "draw"))
    assert result["rt60"] == measure.rt60(response)
    assert list(result["bands"].values()) == measure.octave_rt60(response, rooms.BANDS).tolist()
    assert result["drr"] == measure.drr(response, math.dist(SOURCE, LISTENER))
    assert set(result["bands"]) == {int(band) for band in rooms.BANDS}
    # Roughly nominal: T20 of one hybrid RIR varies by some percent per band.
    middle = [result["bands"][band] for band in (500, 1000, 2000, 4000)]
    assert np.mean(middle) == pytest.approx(0.5, rel=0.15)
    image = matplotlib.image.imread(tmp_path / "room.png")
    assert image.shape[0] > 800 and image.shape[1] > 1200
    assert [p.name for p in tmp_path.iterdir()] == ["room.png"]
    # No panel is empty.
    rows, columns = (n // 2 for n in image.shape[:2])
    for part in (image[:rows, :columns], image[:rows, columns:], image[rows:, :columns]):
        assert part[..., :3].std() > 0.02


def test_first_reflections_are_mirror_images():
    view = plot_room.view_of_shoebox(ROOM, 0.5, LISTENER, (SOURCE,))
    result = plot_room._first_order_offsets(view, SOURCE) + np.array(LISTENER)
    assert {tuple(np.round(p, 6)) for p in result} == {
        SOURCE,
        (-1.5, 3.5, 1.2),
        (10.5, 3.5, 1.2),
        (1.5, -3.5, 1.2),
        (1.5, 6.5, 1.2),
        (1.5, 3.5, -1.2),
        (1.5, 3.5, 4.8),
    }


def test_scene_in_json(tmp_path, capsys):
    clips = [scenes.Clip(str(i), f"class{i}", f"recording{i}", 1.0) for i in range(3)]
    spec = scenes.sample_scene(Scenes(train=1, dev=1, benchmark=1), clips, 0, "dev", 4)
    path, out = tmp_path / "scene.json", tmp_path / "scene.png"
    path.write_text(spec.to_json())
    last = len(spec.sources) - 1
    assert main.main(["plot", str(out), "--scene", str(path), "--source_index", str(last)]) == 0
    assert "RT60" in capsys.readouterr().out and out.stat().st_size > 10_000
    view = plot_room.view_of_scene(spec)
    assert view.sources[last] == (spec.sources[last].label, spec.sources[last].position)


def test_default_room_is_plotted_without_arguments(tmp_path):
    assert main.main(["plot", str(tmp_path / "room.png")]) == 0
    assert (tmp_path / "room.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["room.jpg"], "ends in .png"),
        (["no/room.png"], "folder that exists"),
        (["room.png", "--source", "7", "1", "1"], "source 1 is (7.0, 1.0, 1.0)"),
        (["room.png", "--listener", "4", "-2", "1"], "listener"),
        (["room.png", "--source", "4", "2", "1.51"], "0.05 m from the listener"),
        (["room.png", "--room", "0", "5", "3"], "room is (0.0, 5.0, 3.0)"),
        (["room.png", "--rt60", "0.01"], "Sabine"),
        (["room.png", "--rt60", "nan"], "rt60 is nan"),
        (["room.png", "--source_index", "1"], "source is 1, expected 0 to 0"),
        (["room.png", "--scene", "none.json"], "none.json"),
    ],
    ids=lambda value: value if isinstance(value, str) else "_".join(value[1:3]),
)
def test_invalid_arguments_are_named(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert main.main(["plot", *arguments]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
