# SPDX-License-Identifier: Apache-2.0
"""`jaxasa ask --plot` on invented sources."""

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxasa.config import ConfigError
from jaxasa.viz import plot_answer

ANSWER = {
    "question": "Where is the $dog$?",
    "options": ("left", "right", "front", "back"),
    "answer": "left",
    "thought": "dog left near , bird back far . so left",
}


def track(name, azimuth, active, **more):
    frames = np.arange(50)
    activity = np.where((frames >= active[0]) & (frames < active[1]), 0.9, 0.02)
    turning = np.full(50, float(azimuth))
    source = {"class": name, "azimuth": azimuth, "elevation": 20.0, "distance": 1.5}
    return source | {
        "presence": 0.9,
        "step": 0.02,
        "activity": activity,
        "azimuths": turning,
        "elevations": turning * 0,
        **more,
    }


@pytest.fixture
def plotted(monkeypatch, tmp_path):
    """`plotted(tracks)`: the figure that was saved, and its file."""
    figures = []
    save = Figure.savefig

    def keep(self, *args, **kwargs):
        figures.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)

    def plot(tracks, answer=ANSWER, channels=4):
        tone = np.sin(2 * np.pi * 2000 * np.arange(16_000) / 16_000)
        audio = np.zeros((16_000, channels), np.int16)
        audio[8000:, 0] = (8000 * tone[8000:]).astype(np.int16)
        plot_answer.plot_answer(answer, tracks, audio, tmp_path / "answer.png")
        return figures[-1], tmp_path / "answer.png"

    return plot


def test_figure_shows_directions_and_times(plotted, tmp_path):
    figure, path = plotted([track("dog", 90.0, (10, 20)), track("bird", -170.0, (30, 50))])
    assert matplotlib.image.imread(path).shape[:2] == (770, 1320)
    assert [p.name for p in tmp_path.iterdir()] == ["answer.png"]
    directions, text, spectrum, bearing, activity = figure.axes
    # Left is on the left, and dots are at the predicted directions.
    assert directions.get_xlim() == (180, -180)
    assert [tuple(line.get_xydata()[0]) for line in directions.lines] == [(90, 20), (-170, 20)]
    labels = [t.get_text() for t in directions.texts]
    assert labels == ["dog, 1.5 m\n+90°, +20° up", "bird, 1.5 m\n-170°, +20° up"]
    shown = text.texts[0].get_text()
    for words in ("Where is the $dog$?", "A. left", "D. back", "Answer: left", "Thought: dog left"):
        assert words in shown
    # The tone at 2 kHz is in the second half alone.
    level = spectrum.images[0].get_array()
    loud = np.argwhere(level > -3)
    assert set(loud[:, 0]) <= {63, 64, 65} and loud[:, 1].min() > 0.45 * level.shape[1]
    # Azimuth only where the slot is active: frames 10 to 19, 0.2 to 0.4 s.
    time, azimuth = bearing.lines[0].get_data()
    np.testing.assert_allclose(time[np.isfinite(azimuth)], 0.02 * np.arange(10, 20) + 0.01)
    assert set(azimuth[np.isfinite(azimuth)]) == {90.0}
    assert [t.get_text() for t in activity.get_legend().get_texts()] == ["dog", "bird"]


def test_track_through_the_back_has_a_gap(plotted):
    path = np.linspace(170, 190, 50)
    passing = track("dog", 180.0, (0, 50), azimuths=(path + 180) % 360 - 180)
    figure, _ = plotted([passing])
    shown = figure.axes[3].lines[0].get_ydata()
    steps = np.abs(np.diff(shown))
    assert np.isnan(shown).sum() == 1 and np.nanmax(steps) < 1


def test_no_source_and_binaural_audio(plotted):
    free = ANSWER | {"options": None, "thought": "", "answer": "word " * 400}
    figure, _ = plotted([], free, channels=2)
    directions, text, spectrum, *_ = figure.axes
    assert directions.get_title() == "No source detected"
    assert text.texts[0].get_text().endswith("…")
    assert spectrum.get_title().endswith("mean of both ears")


def test_invalid_output_names(tmp_path):
    with pytest.raises(ConfigError, match=r"--plot is .*answer.jpg.*, expected a name that ends"):
        plot_answer.check_output(tmp_path / "answer.jpg")
    with pytest.raises(ConfigError, match="expected a file in a folder that exists"):
        plot_answer.check_output(tmp_path / "no" / "answer.png")
