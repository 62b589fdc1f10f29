"""Users' first-order ambisonics files, read into the conventions of acoustics/foa.py.

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
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such file, expected a WAV or FLAC file with 4 channels")
    try:
        samples, rate = decode(path)
    except Unusable as reason:
        raise ConfigError(f"{path}: {reason}, expected FOA audio (WAV or FLAC)") from reason
    channels = samples.shape[1]
    if channels != 4:
        raise ConfigError(f"{path} has {channels} channels, expected 4 (W, Y, Z, X)")
    return resample(foa.from_convention(samples, order), rate)


def seconds(path: Path | str) -> float:
    """Length of a sound file by its header; raises `ConfigError` naming a file that has none."""
    try:
        info = soundfile.info(str(path))
    except (soundfile.SoundFileError, OSError) as error:
        raise ConfigError(f"{path}: unreadable, expected FOA audio (WAV or FLAC)") from error
    return info.frames / info.samplerate
