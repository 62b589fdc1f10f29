# SPDX-License-Identifier: Apache-2.0
"""Times scenes against pyroomacoustics on the same rooms, one core each, in turn.

A scene: a 6 x 5 x 3 m room, three sources that sound for all of its 10 s, responses,
convolution, noise; ours also measures its labels. The columns are

    ours_ms                     hybrid (images, then tail), flat walls, no air
    octaves_ms                  the same with walls and air per octave band
    full_ms                     every image, flat walls: the reference mode
    pyroomacoustics_ms          its image sources to its own advised order, flat walls; four
                                coincident microphones (omni, three figures of eight) give FOA
    pyroomacoustics_hybrid_ms   its images of order 3 and ray tracing
    jax_ms                      responses alone, batched in JAX; wall time of the backend named

all but the last in time of one core, medians; `ratio` is pyroomacoustics_ms / ours_ms. Runs in a
process of its own, so that libraries read how many threads they may start (one).

    >>> from jaxasa.acoustics import benchmark
    >>> benchmark.benchmark_scene(0.3, 0, octaves=False).seconds
    10.0
"""

import math
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from jaxasa.acoustics import pyroom_engine, render, rooms, scenes
from jaxasa.core import cpu, keys
from jaxasa.core.audio import SAMPLE_RATE

RT60S = (0.3, 0.6, 1.0)
ROOM, LISTENER = (6.0, 5.0, 3.0), (3.1, 2.4, 1.5)
SECONDS, SOURCES, SNR = 10.0, 3, 30.0
ROOMS_PER_BATCH = 8  # of the batch in JAX


def benchmark_scene(rt60: float, index: int, octaves: bool) -> scenes.SceneSpec:
    """Returns scene `index`: sources at places of its own, walls flat or per octave band."""
    rng = keys.rng(0, "benchmark", index)
    absorption = np.repeat(rooms.absorption(ROOM, rt60, air=False)[3], len(rooms.BANDS))
    if octaves:
        # Duller upwards, as rooms are, below what the air allows.
        target = rt60 * np.linspace(1.15, 0.7, len(rooms.BANDS))
        ceiling = 0.9 * 6 * math.log(10) / (rooms.SPEED_OF_SOUND * rooms.AIR_ABSORPTION)
        absorption = rooms.absorption(ROOM, np.minimum(target, ceiling))
    sources = []
    for k in range(SOURCES):
        place = tuple(rng.uniform([0.5, 0.5, 0.5], np.array(ROOM) - 0.5).tolist())
        sources.append(scenes.Source("noise", str(k), "none", 0.0, SECONDS, 1.0, 0.0, place))
    return scenes.SceneSpec(
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


def _pyroomacoustics(spec: scenes.SceneSpec, dry: dict[str, np.ndarray], hybrid: bool) -> None:
    """Renders the scene: responses of four coincident microphones, convolution, noise."""
    order = (
        3
        if hybrid
        else pyroom_engine.import_pyroomacoustics().inverse_sabine(spec.rt60, spec.room)[1]
    )
    box = pyroom_engine.pyroom_shoebox(spec.room, spec.absorption[0], order, ray_tracing=hybrid)
    for source in spec.sources:
        box.add_source(list(source.position), signal=dry[source.clip])
    shapes = pyroom_engine.foa_microphones()
    if hybrid:  # refuses arrays
        for shape in shapes:
            box.add_microphone(list(spec.listener), directivity=shape)
    else:
        places = np.tile(np.array(spec.listener)[:, None], len(shapes))
        box.add_microphone_array(places, directivity=shapes)
    box.simulate(snr=spec.snr)


def _jax_ms(rt60: float, repeats: int) -> tuple[float, str]:
    """Returns the wall time (ms) of a scene's responses in a batch, and the backend's name."""
    import jax

    from jaxasa.acoustics import jax_rir

    specs = [benchmark_scene(rt60, index, octaves=True) for index in range(ROOMS_PER_BATCH)]
    places = [[source.position for source in spec.sources] for spec in specs]
    walls = [spec.absorption for spec in specs]
    arguments = ([ROOM] * len(specs), walls, places, [LISTENER] * len(specs))
    shape = jax_rir.plan_shape(*arguments)
    taken = []
    for turn in range(repeats + 1):
        start = time.perf_counter()
        jax_rir.batch_rirs(*arguments, jax.random.key(turn), shape).block_until_ready()
        taken.append(1e3 * (time.perf_counter() - start) / len(specs))
    return float(np.median(taken[1:])), jax.default_backend()  # the first one compiles


def time_row(rt60: float, repeats: int = 3) -> dict:
    """Returns the row of one RT60 (s), in this process; see `run`."""
    cpu.tune()
    dry = {str(k): _dry(str(k)) for k in range(SOURCES)}
    taken: dict[str, list[float]] = {}

    def take(name: str, work: Callable, *arguments, **options) -> None:
        start = time.process_time()
        work(*arguments, **options)
        taken.setdefault(name, []).append(1e3 * (time.process_time() - start))

    for walls in (False, True):  # compiled code is loaded, tables are made
        render.render(benchmark_scene(rt60, 0, walls), dry.__getitem__, air=walls)
    for index in range(repeats):
        flat, octaves = (benchmark_scene(rt60, index, o) for o in (False, True))
        take("pyroomacoustics_ms", _pyroomacoustics, flat, dry, hybrid=False)
        take("pyroomacoustics_hybrid_ms", _pyroomacoustics, flat, dry, hybrid=True)
        take("full_ms", render.render, flat, dry.__getitem__, full=True, air=False)
        for _ in range(5):
            take("ours_ms", render.render, flat, dry.__getitem__, air=False)
            take("octaves_ms", render.render, octaves, dry.__getitem__)
    row = {name: float(np.median(times)) for name, times in taken.items()}
    jax_ms, backend = _jax_ms(rt60, repeats)
    ours = row["ours_ms"]
    return {
        "rt60": rt60,
        **row,
        "jax_ms": jax_ms,
        "backend": backend,
        "ratio": row["pyroomacoustics_ms"] / ours,
        "hybrid_ratio": row["pyroomacoustics_hybrid_ms"] / ours,
        "octaves_ratio": row["octaves_ms"] / ours,
        "scenes_per_s": 1e3 / ours,
        "times_real_time": 1e3 * SECONDS / ours,
    }


def run_benchmark(times=RT60S, repeats: int = 3, log: Callable[[str], None] = print) -> dict:
    """Returns {"rows": [...]}, a row for each RT60 (s) of `times`; shows each when it is there.

    Raises ConfigError where pyroomacoustics is not installed.
    """
    pyroom_engine.import_pyroomacoustics()
    log(f"{SECONDS:.0f} s scenes, {SOURCES} sources, {ROOM} m, ms of one core a scene")
    columns = ("ours", "octaves", "full", "pyroomacoustics", "its hybrid", "ratio")
    log("  RT60" + "".join(f"{name:>17}" for name in columns))
    rows = []
    context = multiprocessing.get_context("spawn")
    with cpu.one_thread_each(), ProcessPoolExecutor(1, mp_context=context) as pool:
        for rt60 in times:
            row = pool.submit(time_row, rt60, repeats).result()
            rows.append(row)
            values = ("ours", "octaves", "full", "pyroomacoustics", "pyroomacoustics_hybrid")
            cells = "".join(f"{row[v + '_ms']:17.1f}" for v in values)
            log(f"{rt60:5.1f}s{cells}{row['ratio']:16.0f}x")
            log(
                f"       {row['scenes_per_s']:.0f} scenes/s, {row['times_real_time']:.0f} times "
                f"real time; octave bands cost {row['octaves_ratio']:.2f}x flat walls; responses "
                f"in JAX on {row['backend']}: {row['jax_ms']:.1f} ms a scene"
            )
    return {"rows": rows}
