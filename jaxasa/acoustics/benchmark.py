# SPDX-License-Identifier: Apache-2.0
"""Benchmark of scene rendering against pyroomacoustics: same rooms, one core each, alternating.

A scene is a 6 x 5 x 3 m room and three sources that sound for all of its 10 s: RIRs, convolution,
noise and, in jaxasa, measured labels. The columns are

    ours_ms                   images, then noise tail; frequency-independent walls, no air
    jaxasa_octaves_ms           the same with walls and air per octave band
    jaxasa_full_ms              all images, frequency-independent walls: the reference mode
    pyroomacoustics_ms          image sources up to the order that inverse_sabine recommends,
                                frequency-independent walls; four coincident microphones give FOA
    pyroomacoustics_hybrid_ms   images of order 3 and ray tracing
    jax_rirs_ms                 RIRs only, batched in JAX; wall time on the backend given

All but the last are medians of CPU time on one core; `ratio` is pyroomacoustics_ms / ours_ms. The
benchmark runs in a process of its own, because libraries read the number of threads at start.

    >>> from jaxasa.acoustics import benchmark
    >>> benchmark.benchmark_scene(0.3, 0, octaves=False).seconds
    10.0
"""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from jaxasa.acoustics import pyroom_engine, render, rooms
from jaxasa.acoustics.spec import SceneSpec, Source
from jaxasa.core import cpu, keys
from jaxasa.core.audio import SAMPLE_RATE

RT60S = (0.3, 0.6, 1.0)
ROOM, LISTENER = (6.0, 5.0, 3.0), (3.1, 2.4, 1.5)
SECONDS, SOURCES, SNR = 10.0, 3, 30.0
ROOMS_PER_BATCH = 8  # in JAX
_COLUMNS = {
    "jaxasa": "ours_ms",
    "octaves": "jaxasa_octaves_ms",
    "full": "jaxasa_full_ms",
    "pyroomacoustics": "pyroomacoustics_ms",
    "hybrid": "pyroomacoustics_hybrid_ms",
}


def benchmark_scene(rt60: float, index: int, octaves: bool) -> SceneSpec:
    """Returns scene `index`: random source positions, walls frequency-independent or per octave."""
    rng = keys.rng(0, "benchmark", index)
    absorption = np.repeat(rooms.absorption(ROOM, rt60, air=False)[3], len(rooms.BANDS))
    if octaves:
        # RT60 falls with frequency, as in most rooms, and is below the limit set by air.
        target = rt60 * np.linspace(1.15, 0.7, len(rooms.BANDS))
        absorption = rooms.absorption(ROOM, np.minimum(target, rooms.air_limited_rt60()))
    sources = []
    for k in range(SOURCES):
        position = tuple(rng.uniform([0.5, 0.5, 0.5], np.array(ROOM) - 0.5).tolist())
        sources.append(Source("noise", str(k), "none", 0.0, SECONDS, 1.0, 0.0, position))
    return SceneSpec(
        seed=0,
        split="benchmark",
        index=index,
        seconds=SECONDS,
        room=ROOM,
        absorption=tuple(absorption.tolist()),
        rt60=rt60,
        listener=LISTENER,
        yaw=0.0,
        sources=tuple(sources),
        snr=SNR,
    )


def _dry(clip: str) -> np.ndarray:
    rng = keys.rng(0, "benchmark clip", clip)
    return rng.standard_normal(int(SECONDS * SAMPLE_RATE), np.float32)


def _pyroomacoustics(spec: SceneSpec, dry: dict[str, np.ndarray], hybrid: bool) -> None:
    """Renders the scene: RIRs of four coincident microphones, convolution, noise."""
    order = (
        3
        if hybrid
        else pyroom_engine.import_pyroomacoustics().inverse_sabine(spec.rt60, spec.room)[1]
    )
    room = pyroom_engine.pyroom_shoebox(spec.room, spec.absorption[0], order, ray_tracing=hybrid)
    for source in spec.sources:
        room.add_source(list(source.position), signal=dry[source.clip])
    microphones = pyroom_engine.foa_microphones()
    if hybrid:  # ray tracing does not support arrays with directivities
        for microphone in microphones:
            room.add_microphone(list(spec.listener), directivity=microphone)
    else:
        positions = np.tile(np.array(spec.listener)[:, None], len(microphones))
        room.add_microphone_array(positions, directivity=microphones)
    room.simulate(snr=spec.snr)


def _jax_rirs_ms(rt60: float, repeats: int) -> tuple[float, str]:
    """Returns the wall time (ms) per scene of RIRs in a batch, and the name of the backend."""
    import jax

    from jaxasa.acoustics import jax_rir

    specs = [benchmark_scene(rt60, index, octaves=True) for index in range(ROOMS_PER_BATCH)]
    positions = [[source.position for source in spec.sources] for spec in specs]
    walls = [spec.absorption for spec in specs]
    batch = ([ROOM] * len(specs), walls, positions, [LISTENER] * len(specs))
    shape = jax_rir.plan_shape(*batch)
    times = []
    for run in range(repeats + 1):
        start = time.perf_counter()
        jax_rir.batch_rirs(*batch, jax.random.key(run), shape).block_until_ready()
        times.append(1e3 * (time.perf_counter() - start) / len(specs))
    return float(np.median(times[1:])), jax.default_backend()  # the first run compiles


def time_row(rt60: float, repeats: int = 3) -> dict:
    """Returns the row of one RT60 (s), measured in this process; see `run_benchmark`."""
    cpu.tune()
    dry = {str(k): _dry(str(k)) for k in range(SOURCES)}
    times: dict[str, list[float]] = {}

    def measure(name: str, function: Callable, *arguments, **options) -> None:
        start = time.process_time()
        function(*arguments, **options)
        times.setdefault(name, []).append(1e3 * (time.process_time() - start))

    for octaves in (False, True):  # compiled code is loaded and tables are computed
        render.render(benchmark_scene(rt60, 0, octaves), dry.__getitem__, air=octaves)
    for index in range(repeats):
        flat, per_octave = (benchmark_scene(rt60, index, octaves) for octaves in (False, True))
        measure("pyroomacoustics_ms", _pyroomacoustics, flat, dry, hybrid=False)
        measure("pyroomacoustics_hybrid_ms", _pyroomacoustics, flat, dry, hybrid=True)
        measure("jaxasa_full_ms", render.render, flat, dry.__getitem__, full=True, air=False)
        for _ in range(5):
            measure("ours_ms", render.render, flat, dry.__getitem__, air=False)
            measure("jaxasa_octaves_ms", render.render, per_octave, dry.__getitem__)
    row = {name: float(np.median(values)) for name, values in times.items()}
    jax_rirs_ms, backend = _jax_rirs_ms(rt60, repeats)
    return {
        "rt60": rt60,
        **row,
        "jax_rirs_ms": jax_rirs_ms,
        "backend": backend,
        "ratio": row["pyroomacoustics_ms"] / row["ours_ms"],
        "hybrid_ratio": row["pyroomacoustics_hybrid_ms"] / row["ours_ms"],
        "octaves_ratio": row["jaxasa_octaves_ms"] / row["ours_ms"],
        "scenes_per_s": 1e3 / row["ours_ms"],
        "times_real_time": 1e3 * SECONDS / row["ours_ms"],
    }


def run_benchmark(times=RT60S, repeats: int = 3, log: Callable[[str], None] = print) -> dict:
    """Returns {"rows": [...]}, one for each RT60 (s) of `times`, and logs each as it is measured.

    Raises ConfigError if pyroomacoustics is not installed.
    """
    pyroom_engine.import_pyroomacoustics()
    log(f"{SECONDS:.0f} s scenes, {SOURCES} sources, {ROOM} m, CPU time in ms per scene")
    log("  RT60" + "".join(f"{heading:>17}" for heading in (*_COLUMNS, "ratio")))
    rows = []
    context = multiprocessing.get_context("spawn")
    with cpu.one_thread_each(), ProcessPoolExecutor(1, mp_context=context) as pool:
        for rt60 in times:
            row = pool.submit(time_row, rt60, repeats).result()
            rows.append(row)
            cells = "".join(f"{row[column]:17.1f}" for column in _COLUMNS.values())
            log(f"{rt60:5.1f}s{cells}{row['ratio']:16.0f}x")
            log(
                f"       {row['scenes_per_s']:.0f} scenes/s, {row['times_real_time']:.0f} times "
                f"real time; octave bands take {row['octaves_ratio']:.2f} times as long; RIRs in "
                f"JAX on {row['backend']}: {row['jax_rirs_ms']:.1f} ms per scene"
            )
    return {"rows": rows}
