# SPDX-License-Identifier: Apache-2.0
"""Options of sounds and scenes. Units: metres, seconds, degrees, dB."""

from dataclasses import dataclass, field
from typing import ClassVar

from jaxasa.config.changes import RESULT, SPEED
from jaxasa.config.checks import check, check_at_least, check_local_path, check_range, check_share
from jaxasa.config.materials import TABLE

SPLITS = ("train", "dev", "benchmark")  # of scenes
MATERIALS = ("wall_materials", "floor_materials", "ceiling_materials")
WALL_OPTIONS = (*MATERIALS, "scattering")

ENGINES = ("jaxasa", "pyroomacoustics")


@dataclass(frozen=True)
class Sounds:
    """The sound bank: mono clips with a class and a source recording each.

    bank: "debian" (recordings in Debian packages), "debian_more" (more packages, whose recordings
        are for training alone), "procedural" (synthesised, nothing to download), "folder:PATH" (a
        folder per class), "esc50:PATH", "fsd50k:PATH" or "manifest:PATH" (a CSV file with the
        columns path, class, recording_id).
    classes: class name -> labels of the corpus that it comprises; empty: each label is a class.
    min_recordings: a class with fewer source recordings is left out, with a message.
    max_seconds: longer clips are cut.
    splits: shares of the source recordings of each class given to train, dev and test.
    """

    CHANGES: ClassVar[str] = "data"

    bank: str
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    min_recordings: int = 8
    max_seconds: float = 4.0
    splits: tuple[float, float, float] = (0.6, 0.15, 0.25)

    def __post_init__(self):
        kind, _, path = str(self.bank).partition(":")
        without_path = ("debian", "debian_more", "procedural")
        with_path = ("folder", "esc50", "fsd50k", "manifest")
        ok = self.bank in without_path or (kind in with_path and path)
        expected = ", ".join([*without_path, *(f"{name}:PATH" for name in with_path)])
        check(ok, "Sounds.bank", self.bank, f"one of {expected}")
        check_local_path("Sounds.bank", path)
        check_at_least(self, 3, "min_recordings")
        check_at_least(self, 0.1, "max_seconds")
        ok = len(self.splits) == 3 and all(s > 0 for s in self.splits)
        ok = ok and abs(sum(self.splits) - 1) < 1e-6
        check(ok, "Sounds.splits", self.splits, "three positive shares that sum to 1")


@dataclass(frozen=True)
class Scenes:
    """Ranges that scenes are sampled from, and how many of each split are rendered.

    seconds: length of a scene. sources: least and most sources. length, width, height: of shoebox
    rooms. rt60: nominal; scenes are labelled with the measured one. distance: of a source from the
    listener. min_separation: least angle between two sources. snr: of diffuse ambient noise.
    gain: of a source, independent of its distance. speed_perturbation: playback rate of a clip.

    overlap: share of a source that is still to come when the next one starts, from 0 (one after
        the other) to 1 (all at once); () leaves onsets free, at least 0.4 s apart.
    moving_source_prob: probability that a source walks while it sounds, at walk_speed (m/s). It
        keeps to `distance`; min_separation holds at its start.
    listener_turn_prob: probability that the listener turns; turn_rate: degrees a second.
    wall_materials, floor_materials, ceiling_materials: materials (config/materials.py) that each
        of the four walls, the floor and the ceiling are drawn from. Only rooms and materials with
        a nominal RT60 in `rt60` are used; the measured one is longer, often two to three times, if
        low bands decay slowest. (): all surfaces of a room absorb alike, by an RT60 drawn from
        `rt60`.
    scattering: (low, high) of the share, 0 to 1, by which walls make late reverberation
        isotropic; () for none.
    sensor_snr: (low, high) of the white noise of the microphones; () for none.
    engine: of room impulse responses: "jaxasa", or "pyroomacoustics", another simulator to test
        on (acoustics/pyroom_engine.py; static sources and FOA only, 10 to 100 times slower).
    rir_rooms: rooms of a bank of RIRs, from which training scenes are mixed on the fly instead of
        being stored; rir_positions_per_room: source positions in each. 0 stores scenes.
    """

    CHANGES: ClassVar[str] = "data"

    train: int = field(metadata=RESULT)
    dev: int = field(metadata=RESULT)
    benchmark: int = field(metadata=RESULT)
    seconds: float = 5.0
    sources: tuple[int, int] = (1, 3)
    length: tuple[float, float] = (4.0, 9.0)
    width: tuple[float, float] = (3.5, 7.0)
    height: tuple[float, float] = (2.4, 3.6)
    rt60: tuple[float, float] = (0.15, 0.7)
    distance: tuple[float, float] = (0.6, 4.0)
    min_separation: float = 30.0
    snr: tuple[float, float] = (20.0, 40.0)
    gain: tuple[float, float] = (-6.0, 6.0)
    speed_perturbation: tuple[float, float] = (1.0, 1.0)
    overlap: tuple[float, ...] = ()
    moving_source_prob: float = 0.0
    walk_speed: tuple[float, float] = (0.3, 2.0)
    listener_turn_prob: float = 0.0
    turn_rate: tuple[float, float] = (10.0, 90.0)
    wall_materials: tuple[str, ...] = ()
    floor_materials: tuple[str, ...] = ()
    ceiling_materials: tuple[str, ...] = ()
    scattering: tuple[float, ...] = ()
    sensor_snr: tuple[float, ...] = ()
    engine: str = "jaxasa"
    rir_rooms: int = field(default=0, metadata=RESULT)
    rir_positions_per_room: int = field(default=6, metadata=RESULT)
    scenes_per_shard: int = 100
    workers: int = field(default=2, metadata=SPEED)

    def __post_init__(self):
        check_at_least(self, 1, "train", "dev", "benchmark", "scenes_per_shard", "workers")
        check_at_least(self, 0.5, "seconds")
        check_at_least(self, 0.0, "min_separation")
        check_range(self, "length", "width", "height", low=1.0)
        check_range(self, "sources", low=1)
        check_range(self, "rt60", low=0.05)
        check_range(self, "distance", low=0.05)
        check_range(self, "snr", "gain", low=-100.0)
        check_range(self, "speed_perturbation", low=0.25)
        check_range(self, "walk_speed", "turn_rate", low=0.0)
        check(self.walk_speed[1] <= 10, "Scenes.walk_speed", self.walk_speed, "at most 10 m/s")
        if self.overlap:
            check_range(self, "overlap", low=0.0)
            check(self.overlap[1] <= 1, "Scenes.overlap", self.overlap, "shares up to 1")
        if self.sensor_snr:
            check_range(self, "sensor_snr", low=-100.0)
        check_share(self, "moving_source_prob", "listener_turn_prob")
        self._check_walls()
        check_at_least(self, 0, "rir_rooms")
        check(self.engine in ENGINES, "Scenes.engine", self.engine, "one of " + ", ".join(ENGINES))
        if self.engine != "jaxasa":
            expected = f"0, for Scenes.engine is {self.engine!r}"
            check(
                self.moving_source_prob == 0,
                "Scenes.moving_source_prob",
                self.moving_source_prob,
                expected,
            )
            check(self.rir_rooms == 0, "Scenes.rir_rooms", self.rir_rooms, expected)
            for name in WALL_OPTIONS:
                value, expected = getattr(self, name), f"() for Scenes.engine is {self.engine!r}"
                check(value == (), f"Scenes.{name}", value, expected)
        check(
            1 <= self.rir_positions_per_room <= 8,
            "Scenes.rir_positions_per_room",
            self.rir_positions_per_room,
            "1 to 8",
        )
        if self.rir_rooms:
            most, expected = self.sources[1], "at least as many as Scenes.sources"
            check(
                most <= self.rir_positions_per_room,
                "Scenes.rir_positions_per_room",
                self.rir_positions_per_room,
                f"{expected} ({most})",
            )
            expected = f"0.0, as scenes are mixed from {self.rir_rooms} stored rooms"
            check(
                self.moving_source_prob == 0,
                "Scenes.moving_source_prob",
                self.moving_source_prob,
                expected,
            )
        check(self.sources[1] <= 8, "Scenes.sources", self.sources, "at most 8 sources")

    def _check_walls(self):
        for name in MATERIALS:
            value, option = getattr(self, name), f"Scenes.{name}"
            check(isinstance(value, (tuple, list)), option, value, "materials in (...)")
            for material in value:
                ok = isinstance(material, str) and material in TABLE
                check(ok, option, material, "one of " + ", ".join(TABLE))
        for name in MATERIALS:
            ok = bool(getattr(self, name)) or not any(getattr(self, other) for other in MATERIALS)
            expected = "materials, as sides, floor and ceiling go together"
            check(ok, f"Scenes.{name}", getattr(self, name), expected)
        if self.scattering:
            check_range(self, "scattering", low=0.0)
            check(self.scattering[1] <= 1, "Scenes.scattering", self.scattering, "shares up to 1")
