"""Users' sound files, FOA or for two ears, read into the conventions of acoustics/foa.py.

    audio = foa_file.read("scene.wav", order="fuma")  # float32 [N, 4]: W, Y, Z, X, SN3D, 16 kHz

WAV and FLAC at any rate: 24 kHz (STARSS23) and 48 kHz files are resampled to 16 kHz.
"""

from pathlib import Path

import numpy as np
import soundfile

from jaxasa.acoustics import foa
from jaxasa.config import ConfigError
from jaxasa.data.decode import Unusable, decode, resample


def read(path: Path | str, order: str = "ambix") -> np.ndarray:
    """Returns float32 `[N, 4]` (W, Y, Z, X, SN3D) at 16 kHz from a WAV or FLAC file.

    order: "ambix" (ACN, SN3D), "n3d" (ACN, N3D) or "fuma" (W, X, Y, Z, W at -3 dB). Raises
    `ConfigError` naming the file if it is missing, unreadable, empty, not finite, or has other
    than 4 channels.
    """
    samples, rate = _decode(Path(path), 4, "W, Y, Z, X", "FOA")
    return resample(foa.from_convention(samples, order), rate)


def read_binaural(path: Path | str) -> np.ndarray:
    """Returns float32 `[N, 2]` (left, right ear) at 16 kHz; raises `ConfigError` as `read`."""
    samples, rate = _decode(Path(path), 2, "left and right ear", "binaural")
    return resample(samples.astype(np.float32), rate)


def _decode(path: Path, channels: int, names: str, kind: str) -> tuple[np.ndarray, int]:
    if not path.is_file():
        what = f"a WAV or FLAC file with {channels} channels"
        raise ConfigError(f"{path}: no such file, expected {what}")
    try:
        samples, rate = decode(path)
    except Unusable as reason:
        raise ConfigError(f"{path}: {reason}, expected {kind} audio (WAV or FLAC)") from reason
    found = samples.shape[1]
    if found != channels:
        raise ConfigError(f"{path} has {found} channels, expected {channels} ({names})")
    return samples, rate


def seconds(path: Path | str) -> float:
    """Length of a sound file by its header; raises `ConfigError` naming a file that has none."""
    try:
        info = soundfile.info(str(path))
    except (soundfile.SoundFileError, OSError) as error:
        raise ConfigError(f"{path}: unreadable, expected FOA audio (WAV or FLAC)") from error
    return info.frames / info.samplerate
