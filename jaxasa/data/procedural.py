# SPDX-License-Identifier: Apache-2.0
"""Fourteen synthesised classes: a sound bank that needs no files and no network.

The parameters of a source (pitch, material, rate) are sampled once for each source recording, those
of its excitation (length, timing, strength) for each of its two clips. A clip is a function of
(seed, class, recording, clip).

Units: lengths in seconds, frequencies in hertz. Shapes: N samples at 16 kHz.
"""

import functools
from collections.abc import Callable

import numpy as np
import scipy.signal

from jaxasa.core import keys
from jaxasa.core.audio import SAMPLE_RATE
from jaxasa.data.decode import SoundFile

RECORDINGS_PER_CLASS = 12
CLIPS_PER_RECORDING = 2

Synth = Callable[[np.random.Generator, np.random.Generator], np.ndarray]


def list_files(seed: int) -> list[SoundFile]:
    """Lists 14 classes x 12 recordings x 2 clips."""
    return [
        SoundFile(
            name=f"{label}/{recording:02d}-{clip}",
            labels=(label,),
            recording_id=f"{label}/{recording:02d}",
            open=functools.partial(synthesise, label, recording, clip, seed),
        )
        for label in CLASSES
        for recording in range(RECORDINGS_PER_CLASS)
        for clip in range(CLIPS_PER_RECORDING)
    ]


def synthesise(label: str, recording: int, clip: int, seed: int) -> np.ndarray:
    """Returns float32 [N] at 16 kHz with a peak of 0.5."""
    source = keys.rng(seed, "procedural", label, recording)
    excitation = keys.rng(seed, "procedural", label, recording, clip)
    samples = CLASSES[label](source, excitation)
    return (0.5 * samples / np.abs(samples).max()).astype(np.float32)


def _time(seconds: float) -> np.ndarray:
    return np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE


def _tone(frequency: np.ndarray, harmonics: np.ndarray) -> np.ndarray:
    """Harmonics of a varying frequency [N], without those above 7.5 kHz."""
    fundamental = np.exp(2j * np.pi * np.cumsum(frequency) / SAMPLE_RATE)
    out, harmonic = np.zeros(len(fundamental)), np.ones(len(fundamental), complex)
    highest = frequency.max()
    for k, gain in enumerate(harmonics, start=1):
        harmonic *= fundamental
        wave = gain * harmonic.imag
        out += wave if k * highest < 7500 else wave * (k * frequency < 7500)
    return out


def _band(noise: np.ndarray, low: float, high: float, order: int = 2) -> np.ndarray:
    sections = scipy.signal.butter(order, (low, high), "bandpass", fs=SAMPLE_RATE, output="sos")
    return scipy.signal.sosfilt(sections, noise)


def _modes(seconds: float, frequencies, decays, gains) -> np.ndarray:
    """A struck body: a sum of decaying sines; decays are times to 1/e."""
    t = _time(seconds)[:, None]
    wave = np.exp(-t / np.asarray(decays)) * np.sin(2 * np.pi * np.asarray(frequencies) * t)
    return wave @ np.asarray(gains)


def _sum_events(events: list[tuple[float, np.ndarray]]) -> np.ndarray:
    """Sums (start, samples) pairs."""
    length = max(int(start * SAMPLE_RATE) + len(x) for start, x in events)
    out = np.zeros(length)
    for start, x in events:
        at = int(start * SAMPLE_RATE)
        out[at : at + len(x)] += x
    return out


def _beats(clip: np.random.Generator, count: int, period: float, jitter: float) -> np.ndarray:
    return np.arange(count) * period + clip.uniform(0, jitter * period, count)


def _siren(source: np.random.Generator, clip: np.random.Generator) -> np.ndarray:
    low = source.uniform(350, 900)
    high = low * source.uniform(1.3, 2.2)
    rate = source.uniform(0.4, 3.0)
    wail = source.random() < 0.5
    harmonics = source.uniform(0.1, 1, 6) / np.arange(1, 7)
    t = _time(clip.uniform(2.2, 3.6))
    sweep = np.sin(2 * np.pi * (rate * t + clip.random()))
    sweep = sweep if wail else np.tanh(8 * sweep)
    return _tone(low + (high - low) * (sweep + 1) / 2, harmonics)


def _bell(source: np.random.Generator, clip: np.random.Generator) -> np.ndarray:
    pitch = source.uniform(350, 1600)
    ratios = np.array([0.5, 1, 1.19, 1.5, 2, 2.6, 3.1]) * source.uniform(0.97, 1.03, 7)
    decays = source.uniform(0.3, 1.2) / np.sqrt(ratios)
    gains = source.uniform(0.2, 1, 7)
    strike = clip.uniform(0.6, 1, 7) * gains
    starts = _beats(clip, clip.integers(1, 4), source.uniform(0.5, 0.9), 0.05)
    return _sum_events([(s, _modes(1.8, pitch * ratios, decays, strike)) for s in starts])


def _drum(source: np.random.Generator, clip: np.random.Generator) -> np.ndarray:
    pitch, drop = source.uniform(60, 220), source.uniform(1.2, 2.5)
    decay, snare = source.uniform(0.06, 0.3), source.uniform(0, 0.8)
    t = _time(0.6)
    frequency = pitch * (1 + (drop - 1) * np.exp(-t / 0.03))
    starts = _beats(clip, clip.integers(3, 7), source.uniform(0.2, 0.5), 0.1)
    events = []
    for start in starts:
        skin = np.exp(-t / decay) * _tone(frequency, np.array([1, 0.4, 0.2]))
        rattle = _band(clip.standard_normal(len(t)), 1500, 6500) * np.exp(-t / (decay * 0.7))
        events.append((start, clip.uniform(0.6, 1) * (skin + snare * rattle)))
    return _sum_events(events)


def _rain(source: np.random.Generator, clip: np.random.Generator) -> np.ndarray:
    seconds, density = clip.uniform(2.5, 3.8), source.uniform(60, 600)
    low = source.uniform(300, 1500)
    drops = np.zeros(int(seconds * SAMPLE_RATE))
    at = clip.integers(0, len(drops), int(density * seconds))
    np.add.at(drops, at, clip.exponential(1, len(at)) * clip.choice((-1, 1), len(at)))
    hiss = _band(clip.standard_normal(len(drops)), low, source.uniform(4500, 7500))
    return _band(drops, low, 7500) * source.uniform(1, 4) + 0.08 * hiss


def _bird(source: np.random.Generator, clip: np.random.Generator) -> np.ndarray:
    pitch, sweep = source.uniform(2000, 5000), source.uniform(-0.5, 0.6)
    trill, depth = source.uniform(8, 45), source.uniform(0, 0.15)
    length, harmonic = source.uniform(0.06, 0.35), source.uniform(0, 0.4)
    events = []
    for start in _beats(clip, clip.integers(4, 9), length + source.uniform(0.06, 0.25), 0.3):
        t = _time(length * clip.uniform(0.8, 1.2))
        x = t / t[-1]
        bend = 1 + sweep * (x - 0.5) + depth * np.sin(2 * np.pi * trill * t)
        note = _tone(pitch * clip.uniform(0.93, 1.07) * bend, np.array([1, harmonic]))
        events.append((start, clip.uniform(0.5, 1) * np.sin(np.pi * x) ** 0.7 * note))
    return _sum_events(events)


def _engine(source: np.random.Generator, clip: np.random.Generator) -> np.ndarray:
    speed, rough = source.uniform(25, 110), source.uniform(0.01, 0.06)
    harmonics = source.uniform(0.1, 1, 40) * np.arange(1, 41) ** -source.uniform(0.5, 1.3)
    noise, resonance = source.uniform(0.05, 0.4), source.uniform(200, 1500)
    t = _time(clip.uniform(2.5, 3.8))
    drift = np.cumsum(clip.standard_normal(len(t))) / np.sqrt(SAMPLE_RATE)
    rise = 1 + clip.uniform(-0.3, 0.5) * t / t[-1]
    frequency = np.maximum(speed * rise * (1 + rough * drift), 10)
    hum = _tone(frequency, harmonics)
    hiss = _band(clip.standard_normal(len(t)), resonance * 0.5, resonance * 2)
    firing = 0.6 + 0.4 * np.sin(2 * np.pi * np.cumsum(frequency) / SAMPLE_RATE / 2)
    return firing * (hum + noise * 4 * hiss)


def _typing(source: np.random.Generator, clip: np.random.Generator) -> np.ndarray:
    body, decay = source.uniform(900, 3500, 3), source.uniform(0.004, 0.014, 3)
    rate, click = source.uniform(5, 11), source.uniform(0.3, 1.5)
    events = []
    for start in _beats(clip, clip.integers(8, 20), 1 / rate, 0.7):
        for delay, gain in ((0.0, 1.0), (clip.uniform(0.06, 0.1), 0.4)):
            key = _modes(0.08, body * clip.uniform(0.85, 1.15), decay, (1, 0.7, 0.5))
            burst = clip.standard_normal(len(key)) * np.exp(-_time(0.08) / 0.002)
            events.append((start + delay, gain * clip.uniform(0.5, 1) * (key + click * burst)))
    return _sum_events(events)


def _footsteps(source: np.random.Generator, clip: np.random.Generator) -> np.ndarray:
    low, high = source.uniform(60, 250), source.uniform(700, 3500)
    heel, scrape = source.uniform(0.02, 0.06), source.uniform(0.05, 0.6)
    events = []
    for start in _beats(clip, clip.integers(4, 7), source.uniform(0.4, 0.65), 0.08):
        t = _time(0.3)
        noise = clip.standard_normal(len(t))
        thump = _band(noise, low, low * 3) * np.exp(-t / heel) * 3
        toe = _band(noise, high * 0.5, high * 1.5) * np.exp(-np.abs(t - 0.09) / 0.04)
        events.append((start, clip.uniform(0.6, 1) * (thump + scrape * toe)))
    return _sum_events(events)


def _fire(source: np.random.Generator, clip: np.random.Generator) -> np.ndarray:
    seconds, rate = clip.uniform(2.5, 3.8), source.uniform(8, 50)
    roar = source.uniform(0.1, 0.6)
    noise = clip.standard_normal(int(seconds * SAMPLE_RATE))
    bed = roar * _band(noise, 40, source.uniform(200, 700))
    events = [(0.0, bed)]
    for start in clip.uniform(0, seconds - 0.1, int(rate * seconds)):
        t = _time(clip.uniform(0.004, 0.03))
        centre = clip.uniform(1200, 5500)
        snap = _band(clip.standard_normal(len(t)), centre * 0.6, centre * 1.3)
        events.append((start, clip.exponential(0.7) * snap * np.exp(-t / (t[-1] / 4))))
    return _sum_events(events)


def _strings(source: np.random.Generator, clip: np.random.Generator) -> np.ndarray:
    """Karplus-Strong (1983): a delay line of one period fed back through a two-tap average."""
    open_string = source.uniform(82, 330)
    damping, pick = source.uniform(0.990, 0.999), source.uniform(1500, 7000)
    intervals = source.choice((0, 2, 3, 4, 5, 7, 9, 10, 12), 4)
    low = scipy.signal.butter(1, pick, fs=SAMPLE_RATE, output="sos")
    events = []
    for start in _beats(clip, clip.integers(3, 7), source.uniform(0.2, 0.5), 0.1):
        pitch = open_string * 2 ** (clip.choice(intervals) / 12)
        period = int(SAMPLE_RATE / pitch - 0.5)
        feedback = np.zeros(period + 2)
        feedback[0], feedback[period], feedback[period + 1] = 1, -damping / 2, -damping / 2
        pluck = np.zeros(int(1.4 * SAMPLE_RATE))
        pluck[:period] = scipy.signal.sosfilt(low, clip.uniform(-1, 1, period))
        note = scipy.signal.lfilter((1,), feedback, pluck)
        events.append((start, clip.uniform(0.6, 1) * note))
    return _sum_events(events)


def _whistle(source: np.random.Generator, clip: np.random.Generator) -> np.ndarray:
    pitch, vibrato = source.uniform(900, 2400), source.uniform(4, 8)
    depth, breath = source.uniform(0.002, 0.03), source.uniform(0.02, 0.2)
    intervals = 2 ** (source.integers(-5, 8, 5) / 12)
    events, start = [], 0.0
    for _ in range(clip.integers(2, 5)):
        t = _time(clip.uniform(0.35, 0.9))
        bend = 1 + depth * np.sin(2 * np.pi * vibrato * t) + 0.1 * np.exp(-t / 0.04)
        tone = _tone(pitch * clip.choice(intervals) * bend, np.array([1, 0.05]))
        air = breath * _band(clip.standard_normal(len(t)), pitch * 0.8, pitch * 1.3)
        rim = np.minimum(1, np.minimum(t, t[-1] - t) / 0.05)
        events.append((start, rim * (tone + air)))
        start += t[-1] + clip.uniform(0.02, 0.2)
    return _sum_events(events)


def _dog(source: np.random.Generator, clip: np.random.Generator) -> np.ndarray:
    pitch, length = source.uniform(180, 650), source.uniform(0.12, 0.32)
    formants = source.uniform((400, 1000, 2200), (900, 1900, 3500))
    growl = source.uniform(0.1, 0.6)
    events = []
    for start in _beats(clip, clip.integers(2, 6), length + source.uniform(0.15, 0.5), 0.2):
        t = _time(length * clip.uniform(0.85, 1.15))
        x = t / t[-1]
        bend = clip.uniform(0.9, 1.1) * (0.8 + 0.5 * np.sin(np.pi * x**0.7))
        voice = _tone(pitch * bend, np.ones(20)) + growl * 8 * clip.standard_normal(len(t))
        mouth = sum(_band(voice, f * 0.8, f * 1.25, 1) for f in formants)
        events.append((start, clip.uniform(0.7, 1) * np.sin(np.pi * x) ** 0.5 * mouth))
    return _sum_events(events)


def _alarm(source: np.random.Generator, clip: np.random.Generator) -> np.ndarray:
    first, ratio = source.uniform(700, 3000), source.choice((1.0, 1.26, 1.5))
    on, off = source.uniform(0.06, 0.35), source.uniform(0.05, 0.3)
    harmonics = np.where(np.arange(9) % 2 == 0, source.uniform(0, 1, 9), 0) / np.arange(1, 10)
    harmonics[0] = 1
    events = []
    for k in range(int(clip.uniform(1.8, 3.2) / (on + off)) + 1):
        t = _time(on)
        rim = np.minimum(1, np.minimum(t, t[-1] - t) / 0.003)
        frequency = np.full(len(t), first * (ratio if k % 2 else 1) * clip.uniform(0.998, 1.002))
        events.append((k * (on + off), rim * _tone(frequency, harmonics)))
    return _sum_events(events)


def _blast(source: np.random.Generator, clip: np.random.Generator) -> np.ndarray:
    low, decay = source.uniform(300, 2500), source.uniform(0.1, 0.7)
    crack, rumble = source.uniform(0.2, 2), source.uniform(0.3, 1.5)
    t = _time(min(4 * decay + 0.3, 2.5))
    noise = clip.standard_normal(len(t))
    body = _band(noise, 30, low) * np.exp(-t / decay)
    snap = noise * np.exp(-t / 0.006)
    tail = _band(clip.standard_normal(len(t)), 30, 200) * np.exp(-t / (1.5 * decay))
    return body + crack * snap + rumble * tail * (1 - np.exp(-t / 0.05))


CLASSES: dict[str, Synth] = {
    "alarm": _alarm,
    "bell": _bell,
    "bird": _bird,
    "blast": _blast,
    "dog": _dog,
    "drum": _drum,
    "engine": _engine,
    "fire": _fire,
    "footsteps": _footsteps,
    "rain": _rain,
    "siren": _siren,
    "strings": _strings,
    "typing": _typing,
    "whistle": _whistle,
}
