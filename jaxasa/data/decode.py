# SPDX-License-Identifier: Apache-2.0
"""Decodes sound files to clips: mono, 16 kHz, trimmed, at one loudness.

`read_mono` decodes a file, `split_into_clips` cleans and cuts it. A sound that cannot be used
raises `UnusableSound` with the reason, which a sound bank counts and reports: unreadable, empty,
not finite, clipped, silent, shorter than 0.15 s.

Loudness is the RMS of the frames (10 ms) within 25 dB of the loudest one. It is set to -26 dBFS, or
less if the peak would exceed 0.95.

>>> t = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
>>> (clip,) = split_into_clips(0.01 * np.sin(2 * np.pi * 440 * t) * (t > 1), max_seconds=4.0)
>>> round(len(clip) / SAMPLE_RATE, 1), round(20 * np.log10(np.sqrt(np.mean(clip**2))))
(1.0, -26)

Shapes: N samples · C channels
"""

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.signal
import soundfile
import soxr

from jaxasa.config import check
from jaxasa.core.audio import FULL_SCALE, SAMPLE_RATE

MIN_CLIP_S = 0.15  # shorter sounds cannot be named
MAX_CLIPS_PER_FILE = 6  # so that a long recording does not dominate its class
LOUDNESS_DBFS = -26.0  # RMS of the active frames
MAX_PEAK = 0.95
SILENT_PEAK = 1e-4  # -80 dBFS
# Part of the samples that are flat at the top: 9 of 395 recordings have more, most have none.
CLIPPED_FRACTION = 0.005
CLIPPED_RUN = 3  # samples in a row at the peak: a wave that is not clipped touches its peak once
MIN_CLIPPING_PEAK = 0.125  # a softer sound is never called clipped
TRIM_DB = -40.0  # relative to the loudest frame: softer frames at the edges are cut off
ACTIVE_DB = -25.0  # relative to the loudest frame: frames that count for loudness
MIN_PART_DB = -30.0  # relative to the loudest part of a file: softer parts give no clip
FRAME = SAMPLE_RATE // 100  # samples
# Above this a header is not believed: encoders that write to a pipe leave the length of a FLAC file
# unknown, and libsndfile then states 2^63 - 1 frames.
_MAX_STATED_BYTES = 2**30
_BLOCK = 2**20  # frames


class UnusableSound(Exception):
    """A sound that cannot become a clip; the message is the reason, without the file's name."""


@dataclass(frozen=True)
class SoundFile:
    """A file of a sound corpus before decoding.

    name: unique, becomes the id of the clip. labels: of the corpus, the most specific first.
    recording_id: the source recording that the file was cut from, unique over the corpus. open:
    returns a path, the bytes of a file, or float samples [N] at 16 kHz; raises `UnusableSound`.
    package, licence: for the credits. stamp: changes if the file does. training_only: the file
    must be neither in dev nor in test.
    """

    name: str
    labels: tuple[str, ...]
    recording_id: str
    open: Callable[[], Path | bytes | np.ndarray]
    package: str = ""
    licence: str = ""
    stamp: str = ""
    training_only: bool = False


def read_mono(audio: Path | bytes | np.ndarray) -> np.ndarray:
    """Returns mono float32 [N] at 16 kHz; raises UnusableSound for unreadable or clipped files."""
    if isinstance(audio, np.ndarray):
        return audio.astype(np.float32)
    samples, rate = decode_audio(audio)
    if any(is_clipped(channel) for channel in samples.T):
        raise UnusableSound("clipped")
    return resample(to_mono(samples), rate)


def to_mono(samples: np.ndarray) -> np.ndarray:
    """The mean [N] of the channels of [N, C], or the strongest channel if they cancel.

    One channel of a stereo pair may be inverted: then the mean is 10 dB below the strongest one.
    """
    mean = samples.mean(axis=1)
    power = (samples.astype(np.float64) ** 2).mean(axis=0)
    is_cancelled = (mean.astype(np.float64) ** 2).mean() < 0.1 * power.max() / samples.shape[1] ** 2
    return samples[:, power.argmax()] if is_cancelled else mean


def is_clipped(samples: np.ndarray) -> bool:
    """True if more than 0.5 % of a wave [N] is flat at its own maximum or minimum.

    Its own, since a clipped recording may have been attenuated afterwards. Below -18 dBFS the
    steps of 16 bits alone make the top of a sine flat. Lossy codecs round the corners, so clipping
    before them is not found.
    """
    if np.abs(samples).max(initial=0.0) < MIN_CLIPPING_PEAK:
        return False
    for wave in (samples, -samples):
        top = wave.max()
        is_flat = np.concatenate([[0], wave >= top - abs(top) / FULL_SCALE, [0]])
        edges = np.flatnonzero(np.diff(is_flat))
        runs = edges[1::2] - edges[::2]
        if runs[runs >= CLIPPED_RUN].sum() > CLIPPED_FRACTION * len(samples):
            return True
    return False


def decode_audio(audio: Path | bytes) -> tuple[np.ndarray, int]:
    """Returns float32 [N, C] and the file's sample rate (Hz); raises `UnusableSound`."""
    try:
        source = io.BytesIO(audio) if isinstance(audio, bytes) else os.fsencode(audio)
        with _SequentialFile(source) as file:
            rate = file.samplerate
            if _states_length(file):
                samples = file.read(file.frames, dtype="float32", always_2d=True)
            else:
                samples = np.concatenate([np.zeros((0, file.channels), np.float32), *_blocks(file)])
    # TypeError: of a .raw file, which does not contain its format.
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        # libsndfile's message for a header without a rate, and for nothing else that it opens.
        if "SF_INFO struct incomplete" in str(error):
            raise UnusableSound("sample rate 0") from error
        samples, rate = _decode_compressed(audio, error)
    if len(samples) == 0:
        raise UnusableSound("empty")
    if not np.isfinite(samples).all():
        raise UnusableSound("not finite")
    return samples, rate


class _SequentialFile(soundfile.SoundFile):
    """A sound file that is read from start to end, without the seeks that unknown lengths fail."""

    def seekable(self) -> bool:
        return False


def _states_length(file: soundfile.SoundFile) -> bool:
    return 4 * file.frames * file.channels <= _MAX_STATED_BYTES


def _blocks(file: soundfile.SoundFile) -> Iterator[np.ndarray]:
    while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
        yield block


def duration_s(path: Path) -> float:
    """Length of a sound file in seconds, by its header or, if that has none, by its samples.

    Raises `UnusableSound` if it cannot be read.
    """
    try:
        with _SequentialFile(os.fsencode(path)) as file:
            frames = file.frames if _states_length(file) else sum(map(len, _blocks(file)))
            return frames / file.samplerate
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        raise UnusableSound("unreadable") from error


def states_b_format(path: Path) -> bool:
    """True if a WAVEX file has the subformat of Ambisonic B-format (W, X, Y, Z, W at -3 dB)."""
    try:
        with _SequentialFile(os.fsencode(path)) as file:
            return file.format == "WAVEX" and "(Ambisonic B)" in file.extra_info
    except (soundfile.SoundFileError, OSError, TypeError):
        return False


def _decode_compressed(audio: Path | bytes, error: Exception) -> tuple[np.ndarray, int]:
    # libsndfile reads no AAC and few damaged MP3s; librosa uses the system's decoders.
    if isinstance(audio, bytes) or audio.suffix.lower() not in (".mp3", ".m4a", ".aac", ".mp4"):
        raise UnusableSound("unreadable") from error
    import warnings

    import librosa

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            samples, rate = librosa.load(audio, sr=None, mono=False, dtype=np.float32)
        except Exception as failure:  # audioread's back ends raise errors of all kinds
            raise UnusableSound("unreadable") from failure
    return np.atleast_2d(samples).T, int(rate)


def resample(samples: np.ndarray, rate: int) -> np.ndarray:
    """Returns samples [N] or [N, C] as float32 at 16 kHz.

    Raises ConfigError for a rate (Hz) of 0 or less.
    """
    check(rate > 0, "sample rate", rate, "hertz above 0")
    if rate != SAMPLE_RATE:
        samples = soxr.resample(samples, rate, SAMPLE_RATE, "HQ")
    return np.ascontiguousarray(samples, dtype=np.float32)


def split_into_clips(samples: np.ndarray, max_seconds: float) -> list[np.ndarray]:
    """Cleans a recording [N] and cuts it into at most six clips of at most `max_seconds`.

    Removes DC (30 Hz high-pass) and silence at the edges, and sets the loudness. The clips of a
    long recording are spread evenly. Raises `UnusableSound` if it is silent or shorter than 0.15 s.
    """
    if np.abs(samples).max(initial=0.0) < SILENT_PEAK:
        raise UnusableSound("silent")
    samples = _trim(_remove_dc(samples))
    longest = int(max_seconds * SAMPLE_RATE)
    count = max(1, len(samples) // longest + (len(samples) % longest >= SAMPLE_RATE))
    chosen = np.unique(
        np.linspace(0, count - 1, min(count, MAX_CLIPS_PER_FILE)).round().astype(int)
    )
    parts = [_trim(samples[k * longest : (k + 1) * longest]) for k in chosen]
    threshold = max(_loudness_dbfs(part) for part in parts) + MIN_PART_DB
    min_samples = MIN_CLIP_S * SAMPLE_RATE
    parts = [p for p in parts if _loudness_dbfs(p) > threshold and len(p) >= min_samples]
    if not parts:
        raise UnusableSound(f"shorter than {MIN_CLIP_S} s")
    return [_set_loudness(_fade(part)) for part in parts]


def _remove_dc(samples: np.ndarray) -> np.ndarray:
    # Old 8-bit effects have offsets that drift, which subtracting the mean would not remove.
    sections = scipy.signal.butter(2, 30, "highpass", fs=SAMPLE_RATE, output="sos")
    pad = min(len(samples) - 1, SAMPLE_RATE // 20)
    return scipy.signal.sosfiltfilt(sections, samples, padlen=pad).astype(np.float32)


def _frames_db(samples: np.ndarray) -> np.ndarray:
    padded = np.pad(samples, (0, -len(samples) % FRAME)).reshape(-1, FRAME)
    return 10 * np.log10((padded.astype(np.float64) ** 2).mean(axis=1) + 1e-12)


def _trim(samples: np.ndarray) -> np.ndarray:
    level = _frames_db(samples)
    active = np.flatnonzero(level > level.max() + TRIM_DB)
    return samples[active[0] * FRAME : (active[-1] + 1) * FRAME]


def _loudness_dbfs(samples: np.ndarray) -> float:
    level = _frames_db(samples)
    active = level[level > level.max() + ACTIVE_DB]
    return float(10 * np.log10(np.mean(10 ** (active / 10))))


def _set_loudness(samples: np.ndarray) -> np.ndarray:
    gain = 10 ** ((LOUDNESS_DBFS - _loudness_dbfs(samples)) / 20)
    return (samples * min(gain, MAX_PEAK / np.abs(samples).max())).astype(np.float32)


def _fade(samples: np.ndarray) -> np.ndarray:
    """Fades in over 2 ms and out over 10 ms, so that a cut edge does not click."""
    envelope = np.ones(len(samples), np.float32)
    rise, fall = SAMPLE_RATE // 500, SAMPLE_RATE // 100
    envelope[:rise] = np.linspace(0, 1, rise, endpoint=False)
    envelope[-fall:] = np.linspace(1, 0, fall)
    return samples * envelope
