"""From a sound file to clips: mono, 16 kHz, trimmed, at one loudness.

`read` decodes, `pieces` cleans and cuts. What cannot serve as a clip raises `Unusable` with
the reason, so that a bank can name and count it and go on: unreadable, empty, not finite,
clipped, silent, shorter than 0.15 s.

Loudness is the RMS of the frames of 10 ms within 25 dB of the loudest: -26 dBFS, or less
where the peak would pass 0.95.

>>> t = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
>>> (clip,) = pieces(0.01 * np.sin(2 * np.pi * 440 * t) * (t > 1), max_seconds=4.0)
>>> round(len(clip) / SAMPLE_RATE, 1), round(20 * np.log10(np.sqrt(np.mean(clip**2))))
(1.0, -26)
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.signal
import soundfile
import soxr

from jaxasa.config import check
from jaxasa.core.audio import FULL_SCALE, SAMPLE_RATE

SHORTEST = 0.15  # seconds; below it there is nothing to name
MOST_PIECES = 6  # of one recording, so that a long one does not drown its class
LOUDNESS = -26.0  # dBFS, RMS of the active frames
PEAK = 0.95
SILENCE = 1e-4  # peak below which a file holds nothing (-80 dBFS)
CLIPPED = 0.005  # share of samples cut off at the top; of 395 recordings 9 have more, most none
SOFT = 0.125  # peak below which nothing is called clipped
FLAT = 3  # samples in a row at the peak: a wave that is not cut off touches its peak once
FLOOR = -40.0  # dB under the loudest frame: the edges that are trimmed
ACTIVE = -25.0  # dB under the loudest frame: the frames whose loudness is set
FRAME = SAMPLE_RATE // 100


class Unusable(Exception):
    """A recording that cannot become a clip; the message is the reason, without the name."""


@dataclass(frozen=True)
class Recording:
    """One file of a sound corpus before decoding.

    name: unique, kept as clip id. labels: as the corpus has them, the most specific first.
    recording_id: the source recording that the file was cut from, unique over the corpus. open:
    returns a path, the bytes of a file, or float samples at 16 kHz; raises `Unusable`. package,
    licence: for the credits. stamp: changes when the file does. training_only: neither dev nor test
    may have it.
    """

    name: str
    labels: tuple[str, ...]
    recording_id: str
    open: Callable[[], Path | bytes | np.ndarray]
    package: str = ""
    licence: str = ""
    stamp: str = ""
    training_only: bool = False


def read(audio: Path | bytes | np.ndarray) -> np.ndarray:
    """Returns mono float32 `[n]` at 16 kHz; raises `Unusable` for what does not decode."""
    if isinstance(audio, np.ndarray):
        return audio.astype(np.float32)
    samples, rate = decode(audio)
    if any(clipped(channel) for channel in samples.T):
        raise Unusable("clipped")
    return resample(mono(samples), rate)


def mono(samples: np.ndarray) -> np.ndarray:
    """The mean `[n]` of the channels of `[n, channels]`, or the strongest where they cancel.

    One channel of a stereo pair may be upside down: a mean 10 dB under the strongest channel.
    """
    mixed = samples.mean(axis=1)
    power = (samples.astype(np.float64) ** 2).mean(axis=0)
    cancelled = (mixed.astype(np.float64) ** 2).mean() < 0.1 * power.max() / samples.shape[1] ** 2
    return samples[:, power.argmax()] if cancelled else mixed


def clipped(samples: np.ndarray) -> bool:
    """Whether a wave `[n]` is cut off: over 0.5 % of it lies flat at its own top or bottom.

    Its own, since a clipped recording may have been made softer afterwards; but under -18 dBFS the
    steps of 16 bit alone make the top of a sine as flat. Lossy codecs round the corners, and
    what they hide is not found.
    """
    if np.abs(samples).max(initial=0.0) < SOFT:
        return False
    for wave in (samples, -samples):
        top = wave.max()
        at = np.concatenate([[0], wave >= top - abs(top) / FULL_SCALE, [0]])
        edges = np.flatnonzero(np.diff(at))
        runs = edges[1::2] - edges[::2]
        if runs[runs >= FLAT].sum() > CLIPPED * len(samples):
            return True
    return False


def decode(audio: Path | bytes) -> tuple[np.ndarray, int]:
    """Returns float32 `[n, channels]` and the file's rate; raises `Unusable`."""
    try:
        source = io.BytesIO(audio) if isinstance(audio, bytes) else str(audio)
        samples, rate = soundfile.read(source, dtype="float32", always_2d=True)
    # TypeError: of a .raw file, which says nothing of its format.
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        # What libsndfile says of a header without a rate, and of nothing else that it opens.
        if "SF_INFO struct incomplete" in str(error):
            raise Unusable("sample rate 0") from error
        samples, rate = _decode_compressed(audio, error)
    if len(samples) == 0:
        raise Unusable("empty")
    if not np.isfinite(samples).all():
        raise Unusable("not finite")
    return samples, rate


def _decode_compressed(audio: Path | bytes, error: Exception) -> tuple[np.ndarray, int]:
    # libsndfile knows no AAC and few damaged MP3s; librosa asks the system's decoders.
    if isinstance(audio, bytes) or audio.suffix.lower() not in (".mp3", ".m4a", ".aac", ".mp4"):
        raise Unusable("unreadable") from error
    import warnings

    import librosa

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            samples, rate = librosa.load(audio, sr=None, mono=False, dtype=np.float32)
        except Exception as failure:  # audioread's back ends raise whatever they like
            raise Unusable("unreadable") from failure
    return np.atleast_2d(samples).T, int(rate)


def resample(samples: np.ndarray, rate: int) -> np.ndarray:
    """Returns `samples` (`[n]` or `[n, channels]`) as float32 at 16 kHz.

    Raises ConfigError for a rate (Hz) of 0 or less.
    """
    check(rate > 0, "sample rate", rate, "hertz above 0")
    if rate != SAMPLE_RATE:
        samples = soxr.resample(samples, rate, SAMPLE_RATE, "HQ")
    return np.ascontiguousarray(samples, dtype=np.float32)


def pieces(samples: np.ndarray, max_seconds: float) -> list[np.ndarray]:
    """Cuts a recording `[n]` into at most six clips of at most `max_seconds`, cleaned.

    Cleaned: no DC (30 Hz high-pass), no leading or trailing silence, active frames at
    -26 dBFS unless the peak would pass 0.95. Raises `Unusable` for silence and for less than
    0.15 s.
    """
    if np.abs(samples).max(initial=0.0) < SILENCE:
        raise Unusable("silent")
    samples = _trim(_remove_dc(samples))
    longest = int(max_seconds * SAMPLE_RATE)
    count = max(1, len(samples) // longest + (len(samples) % longest >= SAMPLE_RATE))
    chosen = np.unique(np.linspace(0, count - 1, min(count, MOST_PIECES)).round().astype(int))
    parts = [_trim(samples[k * longest : (k + 1) * longest]) for k in chosen]
    loudest = max(_loudness(part) for part in parts)
    parts = [p for p in parts if _loudness(p) > loudest - 30 and len(p) >= SHORTEST * SAMPLE_RATE]
    if not parts:
        raise Unusable(f"shorter than {SHORTEST} s")
    return [_level(_fade(part)) for part in parts]


def _remove_dc(samples: np.ndarray) -> np.ndarray:
    # Old 8-bit effects carry offsets that drift, which a subtracted mean would leave behind.
    sections = scipy.signal.butter(2, 30, "highpass", fs=SAMPLE_RATE, output="sos")
    pad = min(len(samples) - 1, SAMPLE_RATE // 20)
    return scipy.signal.sosfiltfilt(sections, samples, padlen=pad).astype(np.float32)


def _frames_db(samples: np.ndarray) -> np.ndarray:
    padded = np.pad(samples, (0, -len(samples) % FRAME)).reshape(-1, FRAME)
    return 10 * np.log10((padded.astype(np.float64) ** 2).mean(axis=1) + 1e-12)


def _trim(samples: np.ndarray) -> np.ndarray:
    level = _frames_db(samples)
    active = np.flatnonzero(level > level.max() + FLOOR)
    return samples[active[0] * FRAME : (active[-1] + 1) * FRAME]


def _loudness(samples: np.ndarray) -> float:
    level = _frames_db(samples)
    active = level[level > level.max() + ACTIVE]
    return float(10 * np.log10(np.mean(10 ** (active / 10))))


def _level(samples: np.ndarray) -> np.ndarray:
    gain = 10 ** ((LOUDNESS - _loudness(samples)) / 20)
    return (samples * min(gain, PEAK / np.abs(samples).max())).astype(np.float32)


def _fade(samples: np.ndarray) -> np.ndarray:
    """2 ms in and 10 ms out, so that a cut edge does not click."""
    envelope = np.ones(len(samples), np.float32)
    rise, fall = SAMPLE_RATE // 500, SAMPLE_RATE // 100
    envelope[:rise] = np.linspace(0, 1, rise, endpoint=False)
    envelope[-fall:] = np.linspace(1, 0, fall)
    return samples * envelope
