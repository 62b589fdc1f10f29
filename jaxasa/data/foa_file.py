# SPDX-License-Identifier: Apache-2.0
"""Reads sound files of the user, FOA or binaural, into the conventions of acoustics/foa.py.

    audio = foa_file.read_foa("scene.wav", convention="fuma")  # float32 [N, 4]: W, Y, Z, X, SN3D

WAV and FLAC at any sample rate: 24 kHz (STARSS23) or 48 kHz are resampled to 16 kHz.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from jaxasa.acoustics import foa
from jaxasa.config import ConfigError, check
from jaxasa.core.audio import FULL_SCALE, SAMPLE_RATE
from jaxasa.core.files import atomic_path
from jaxasa.core.workdir import output_of
from jaxasa.data import decode, records
from jaxasa.data.decode import UnusableSound, decode_audio, resample

QUIET_PEAK = 2**-8
SCALED_PEAK = 0.1


def read_foa(
    path: Path | str, convention: str | None = None, note: Callable[[str], None] | None = None
) -> np.ndarray:
    """Returns float32 [N, 4] (W, Y, Z, X, SN3D) at 16 kHz from a WAV or FLAC file.

    convention: "ambix" (ACN, SN3D), "n3d" (ACN, N3D) or "fuma" (W, X, Y, Z, W at -3 dB); None:
    "fuma" if the header states B-format (WAVEX, files called .amb), else "ambix". note: called if
    the header states another convention than the one in use; prints on stderr if None. Raises
    ConfigError naming the file if it is missing, unreadable, empty, not finite, or does not have
    4 channels.
    """
    samples, rate = _decode(Path(path), 4, "W, Y, Z, X", "FOA")
    if decode.states_b_format(Path(path)):
        if convention not in (None, "fuma"):
            text = f"the header states B-format, which is fuma, but it is read as {convention}"
            note(text) if note else print(f"{path}: {text}", file=sys.stderr)
        convention = convention or "fuma"
    convention = convention or "ambix"
    return resample(foa.to_ambix(samples, convention), rate)


def to_int16(recording: np.ndarray) -> np.ndarray:
    """A recording [N, C] of a user as int16: `raise_level`, and peaks above 1 brought to 1.

    The gain is one for all channels, which keeps directions.
    """
    recording = raise_level(recording)
    return records.to_int16(recording / max(1.0, float(np.abs(recording).max(initial=0.0))))


def raise_level(recording: np.ndarray) -> np.ndarray:
    """A recording [N, C] whose peak is brought to 0.1 if it is below 2^-8, else as it is.

    The steps of 16 bits would hide the differences between channels. A recording that has such
    steps already is kept.
    """
    peak = float(np.abs(recording).max(initial=0.0))
    steps = recording * np.float32(FULL_SCALE)
    has_steps = peak * FULL_SCALE >= 0.5 and np.abs(steps - np.rint(steps)).max() < 0.01
    if 0 < peak < QUIET_PEAK and not has_steps:
        return recording * np.float32(SCALED_PEAK / peak)
    return recording


def write_foa(path: Path | str, audio: np.ndarray) -> None:
    """Writes FOA audio `[N, 4]` (W, Y, Z, X, SN3D) at 16 kHz as a WAV or FLAC file of 16 bits.

    Raises `ConfigError` for another shape, samples beyond [-1, 1], and another file type.
    """
    path, audio = Path(path), np.asarray(audio)
    check(path.suffix.lower() in (".wav", ".flac"), "output", str(path), "NAME.wav or NAME.flac")
    ok = audio.ndim == 2 and audio.shape[1] == len(foa.CHANNELS)
    check(ok, "shape of FOA audio", audio.shape, "[N, 4]")
    peak = float(np.abs(audio).max(initial=0.0))
    check(peak <= 1, "peak of the audio", peak, "at most 1")
    with atomic_path(path) as temporary:
        soundfile.write(temporary, audio, SAMPLE_RATE, "PCM_16", format=path.suffix[1:].upper())


def read_binaural(path: Path | str) -> np.ndarray:
    """Returns float32 [N, 2] (left, right ear) at 16 kHz; raises ConfigError as `read_foa` does."""
    samples, rate = _decode(Path(path), 2, "left and right ear", "binaural")
    return resample(samples.astype(np.float32), rate)


def _decode(path: Path, channels: int, names: str, kind: str) -> tuple[np.ndarray, int]:
    if not path.is_file():
        expected = output_of(path, f"a WAV or FLAC file with {channels} channels")
        raise ConfigError(f"{path}: no such file, expected {expected}")
    try:
        samples, rate = decode_audio(path)
    except UnusableSound as reason:
        raise ConfigError(f"{path}: {reason}, expected {kind} audio (WAV or FLAC)") from reason
    count = samples.shape[1]
    if count != channels:
        raise ConfigError(f"{path} has {count} channels, expected {channels} ({names})")
    return samples, rate


def duration_s(path: Path | str) -> float:
    """Length of a sound file in seconds; raises ConfigError if it cannot be read."""
    try:
        return decode.duration_s(Path(path))
    except UnusableSound as error:
        raise ConfigError(f"{path}: unreadable, expected FOA audio (WAV or FLAC)") from error
