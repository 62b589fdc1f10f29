"""Users' first-order ambisonics files, read into the conventions of acoustics/foa.py."""

from pathlib import Path

import numpy as np

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
