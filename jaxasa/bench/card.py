# SPDX-License-Identifier: Apache-2.0
"""Data card of a suite: contents, conventions, thresholds and limits, as Markdown for people."""

import collections
from collections.abc import Mapping, Sequence

from jaxasa.bench import open_ended
from jaxasa.data import scene_text
from jaxasa.data.questions import context, reasoning, relations

# Origin of the scenes -> (noun phrase, limits).
SCENE_SOURCES = {
    "jaxasa": ("simulated scenes", "Simulated shoebox rooms."),
    "pyroomacoustics": (
        "scenes simulated with pyroomacoustics",
        "Simulated shoebox rooms (room impulse responses by pyroomacoustics, all else by jaxasa).",
    ),
    "dcase": (
        "windows of recordings in DCASE's layout",
        "Answers follow from the labels of the recordings, in steps of 100 ms and whole degrees;\n"
        "sounds without a label are unknown.",
    ),
}


def _table(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(v) for v in line) + " |" for line in lines)


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.1f} %"


def _bins(edges: Sequence[float], names: Sequence[str], unit: str) -> str:
    """ "dead below 0.22 s, dry to 0.35, live to 0.5, echoing above"."""
    middle = [f"{n} to {e:g}" for n, e in zip(names[1:-1], edges[1:], strict=True)]
    return ", ".join([f"{names[0]} below {edges[0]:g} {unit}", *middle, f"{names[-1]} above"])


def _ranges(items: Sequence) -> str:
    """Table of the ranges of the suite's scenes."""
    scenes = list({i.scene["id"]: i.scene for i in items}.values())
    sources = [s for scene in scenes for s in scene["sources"]]
    values: dict[str, list[float]] = {
        "sources": [len(scene["sources"]) for scene in scenes],
        "distance, m": [s["distance"] for s in sources if s["distance"] is not None],
        "elevation, degrees": [s["elevation"] for s in sources],
        "azimuth, degrees": [s["azimuth"] for s in sources],
        "onset, s": [s["onset"] for s in sources],
        "RT60, s": [scene["rt60"] for scene in scenes if "rt60" in scene],
        "volume, m3": [scene["volume"] for scene in scenes if "volume" in scene],
        "DRR, dB": [s["drr"] for s in sources if "drr" in s],
        "SNR, dB": [scene["snr"] for scene in scenes if "snr" in scene],
    }
    rows = [(n, f"{min(v):.4g}", f"{max(v):.4g}") for n, v in values.items() if v]
    return _table(("quantity", "minimum", "maximum"), rows)


def text(items: Sequence, facts: Mapping, audit: Mapping) -> str:
    """The card, from the items, the manifest's facts (counts, recordings) and the audit."""
    by_task = collections.defaultdict(list)
    for item in items:
        by_task[item.level, item.task].append(item)
    tasks = []
    for (level, task), group in by_task.items():
        answers = collections.Counter(i.answer_text for i in group)
        counts = f"{min(answers.values())} to {max(answers.values())}"
        direction = "yes" if group[0].direction else "no"
        probe = _percent(audit["tasks"][task].get("text_only"))
        kinds = sorted({i.open_answer["kind"] for i in group if i.open_answer}) or ["none"]
        row = (level, task, len(group), direction, "25 %", probe, len(answers), counts, *kinds)
        tasks.append(row)
    levels = [
        (
            level,
            count,
            f"{100 * sum(i.direction for i in items if i.level == level) / count:.0f} %",
            *(_percent(audit["levels"][level].get(f"{kind}_only")) for kind in ("text", "options")),
            _percent(audit["levels"][level]["oracle"]),
        )
        for level, count in facts["levels"].items()
    ]
    recordings = [
        (name, *(facts["recordings"][split].get(name, 0) for split in ("train", "dev", "test")))
        for name in facts["classes"]
    ]
    level_head = ("level", "items", "depend on direction", "text only", "options only", "oracle")
    task_head = ("level", "task", "items", "depends on direction", "chance", "text only")
    answers_head = ("right answers", "items per answer", "open-ended")
    left_out = ", ".join(facts["left_out"]) or "none"
    margin = facts["margin"]
    steps = ", ".join(scene_text.nearest_distance_step(s) for s in scene_text.DISTANCE_STEPS_M)
    low, high = context.AUDIBLE_DRR_DB
    channels = (
        "first-order ambisonics, channels W, Y, Z, X (ACN) with SN3D\n  gains"
        if facts["channels"] == 4
        else "two channels, the left and the right ear"
    )
    elevations = _bins(scene_text.ELEVATION_EDGES_DEG, scene_text.ELEVATION_NAMES, "degrees")
    decays = _bins(scene_text.RT60_EDGES_S, scene_text.REVERBERANCE_NAMES, "s")
    volumes, rt60s = reasoning.ROOM_VOLUME_EDGES_M3, reasoning.ROOM_RT60_EDGES_S
    alike, much = relations.RELATIVE_DISTANCE_EDGES
    gaps = (
        f"{context.MIN_TIME_GAP_S:g} s in time; a factor of {context.MIN_DISTANCE_RATIO:g} in "
        f"distance;\n  {context.MIN_LEVEL_GAP_DB:g} dB in level at the listener; "
        f"{context.MIN_ELEVATION_GAP_DEG:g} degrees in elevation"
    )
    near = open_ended.TOLERANCES
    scene_kind, limits = SCENE_SOURCES[facts["scene_source"]]
    return f"""# Audio scene analysis: {facts["split"]} suite

{facts["items"]} four-option questions about {facts["scenes"]} {scene_kind} of
{facts["seconds"]:g} s. Sounds: {facts["sounds"]}. Seed {facts["seed"]}. Chance is 25 %.

## Conventions
- Audio: FLAC, 16 bit, 16 kHz, {channels}; one gain for all channels of a scene.
- x points to the front, y to the left, z up. Azimuth in degrees, counter-clockwise, front 0,
  left +90, in (-180, 180]; elevation in degrees, up is positive; distances in metres, times in
  seconds (an onset is the arrival at the listener).
- `metadata.jsonl`: file_name, id, level, task (question type), question, direction (whether the
  answer depends on the directions of sounds), options, answer (letter), scene (its description,
  from which every answer follows), template_args (the random choices that filled the question's
  template), open_answer (key to an answer without options). Predictions: one
  `{{"id", "answer"}}` per line, with a letter or free text as the answer.

## Bins and thresholds
- Directions: eight sectors of 45 degrees around front, front-left, left, ...; questions keep
  {margin:g} degrees from the boundary that decides, a third of that in elevation.
- Questions about sides: no source is within {context.MARGIN_DEG:g} degrees of the median plane.
- Near is below {scene_text.NEAR_M:g} m. Distances are named {steps}: the nearest by
  ratio, within {100 * 0.132:.0f} %, and only if the DRR is {low:g} to {high:g} dB.
- Elevation: {elevations}.
- RT60: {decays}; not within 10 % of an edge.
- Rooms: small up to {volumes[0]:g} m3, large from {volumes[1]:g}; dry up to {rt60s[0]:g} s,
  live from {rt60s[1]:g}.
- Two distances: alike up to a ratio of {alike:g}, much nearer or farther from {much:g}; not within
  15 % of either.
- Smallest differences: {gaps}.
- Questions about a walk: errors of 25 % in either distance lead to the same sector.
- Scenes with a moving source or listener: only questions that do not depend on positions, and
  questions about the motion.

## Ranges
{_ranges(items)}

## Levels
{_table(level_head, levels)}

Chance is 25 % in every task. "Text only" and "options only" are word-based classifiers trained on
{audit["drawn"]} items that were selected in the same way on other scenes, and tested on as many
others; an accuracy well above 25 % would mean that the questions reveal their answers. The oracle
reads `scene`.

## Tasks
{_table((*task_head, *answers_head), tasks)}

Each letter is right equally often within each task and each right answer. Items that do not depend
on direction can be answered from one channel. Left out, because fewer than four different answers
occur in these scenes: {left_out}.

## Open-ended form
The question without its options. An answer is right within {near["azimuth"]:g} degrees of
azimuth, {near["elevation"]:g} degrees of elevation, {near["distance"]:g} of the distance, or
{near["time"]:g} s; counts and names must be equal. Chance is not 25 %.

## Source recordings
Number of recordings per class and split; this suite uses those of its own split only.

{_table(("class", "train", "dev", "test"), recordings)}

## Limits
{limits} Items about one scene, and
scenes that share a recording, are not independent: compare systems by the clustered bootstrap
of `jaxasa.bench.score.paired_difference`.
"""
