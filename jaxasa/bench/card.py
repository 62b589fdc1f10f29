"""The data card of a suite: what it holds and what to know before quoting a number on it."""

import collections
from collections.abc import Mapping, Sequence

from jaxasa.bench import open_ended
from jaxasa.data import scene_text
from jaxasa.data.questions import context, reasoning, relations

# What the scenes of a suite are, and what that leaves open.
SCENE_SOURCES = {
    "jaxasa": ("simulated scenes", "Simulated shoebox rooms."),
    "pyroomacoustics": (
        "scenes simulated with pyroomacoustics",
        "Simulated shoebox rooms (responses by pyroomacoustics, the rest by jaxasa).",
    ),
    "dcase": (
        "windows of recordings in DCASE's layout",
        "Answers follow from the labels of the recordings, in steps of 100 ms and whole degrees;\n"
        "what was not labelled is not known.",
    ),
}


def _table(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(v) for v in line) + " |" for line in lines)


def _share(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.1f} %"


def _between(edges: Sequence[float], names: Sequence[str], unit: str) -> str:
    """ "dead below 0.22 s, dry to 0.35, live to 0.5, echoing above"."""
    middle = [f"{n} to {e:g}" for n, e in zip(names[1:-1], edges[1:], strict=True)]
    return ", ".join([f"{names[0]} below {edges[0]:g} {unit}", *middle, f"{names[-1]} above"])


def _ranges(items: Sequence) -> str:
    """The ranges that the suite's scenes take up."""
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
    return _table(("quantity", "least", "most"), rows)


def text(items: Sequence, facts: Mapping, audit: Mapping) -> str:
    """Markdown from the items, the manifest's facts (counts, recordings) and the audit's scores."""
    by_task = collections.defaultdict(list)
    for item in items:
        by_task[item.level, item.task].append(item)
    tasks = []
    for (level, task), group in by_task.items():
        answers = collections.Counter(i.answer_text for i in group)
        shares = f"{min(answers.values())} to {max(answers.values())} each"
        direction = "yes" if group[0].direction else "no"
        read = _share(audit["tasks"][task].get("text_only"))
        kinds = sorted({i.open["kind"] for i in group if i.open}) or ["none"]
        row = (level, task, len(group), direction, "25 %", read, len(answers), shares, *kinds)
        tasks.append(row)
    levels = [
        (
            level,
            count,
            f"{100 * sum(i.direction for i in items if i.level == level) / count:.0f} %",
            *(_share(audit["levels"][level].get(f"{r}_only")) for r in ("text", "options")),
            _share(audit["levels"][level]["oracle"]),
        )
        for level, count in facts["levels"].items()
    ]
    recordings = [
        (name, *(facts["recordings"][split].get(name, 0) for split in ("train", "dev", "test")))
        for name in facts["classes"]
    ]
    level_head = ("level", "items", "direction matters", "text only", "options only", "oracle")
    task_head = ("level", "task", "items", "direction matters", "chance", "text only")
    answers_head = ("right answers", "times each", "open form")
    left_out = ", ".join(facts["left_out"]) or "none"
    margin = facts["margin"]
    steps = ", ".join(scene_text.metres(s) for s in scene_text.STEPS)
    low, high = context.AUDIBLE_DRR_DB
    heard = (
        "first-order ambisonics in the order W, Y, Z, X (ACN) with SN3D\n  gains"
        if facts["channels"] == 4
        else "two channels, the left and the right ear"
    )
    what, limits = SCENE_SOURCES[facts["scene_source"]]
    return f"""# Audio scene analysis: {facts["split"]} suite

{facts["items"]} four-option questions over {facts["scenes"]} {what} of
{facts["seconds"]:g} s. Sounds: {facts["sounds"]}. Seed {facts["seed"]}. Chance is 25 %.

## Conventions
- Audio: FLAC, 16 bit, 16 kHz, {heard}; one gain for all channels of a scene.
- x is front, y left, z up. Azimuth in degrees, counter-clockwise, front 0, left +90, in
  (-180, 180]; elevation up; distances in metres, times in seconds (onset is arrival).
- `metadata.jsonl`: file_name, id, level, task, question, direction, options, answer (letter),
  scene (what is where; every answer follows from it), about (what the question chose of the
  scene), open (how an answer without options is scored). Predictions: one `{{"id", "answer"}}` a
  line, answer a letter or free text.

## Bins and what is not asked
- Bearings: eight sectors of 45 degrees around front, front-left, left, ...; those asked about
  keep {margin:g} degrees from the boundary that decides, a third of that in elevation.
- Left and right: sources within {context.MARGIN_DEG:g} degrees of the median plane are not counted.
- Near is below {scene_text.NEAR:g} m. Distances by name: {steps}, whichever is
  nearest by ratio and within {100 * 0.132:.0f} %; only with a DRR of {low:g} to {high:g} dB.
- Elevation: {_between(scene_text.ELEVATION_EDGES, scene_text.ELEVATIONS, "degrees")}.
- RT60: {_between(scene_text.DECAY_EDGES, scene_text.DECAYS, "s")}; 10 % around an edge is not asked.
- Rooms: small up to {reasoning.SMALL_LARGE[0]:g} m3, large from {reasoning.SMALL_LARGE[1]:g}; dry up
  to {reasoning.DRY_LIVE[0]:g} s, live from {reasoning.DRY_LIVE[1]:g}.
- Of two sources: alike up to {relations.NEARER_EDGES[0]:g} times the distance, much nearer or
  farther from {relations.NEARER_EDGES[1]:g} times; 15 % around both is not asked.
- Compared in time: {context.MIN_TIME_GAP_S:g} s apart at least; in distance, a factor of {context.MIN_DISTANCE_RATIO:g}; in
  level at the listener, {context.MIN_LEVEL_GAP_DB:g} dB; in elevation, {context.MIN_ELEVATION_GAP_DEG:g} degrees.
- A walk is asked about only where 25 % more or less of each distance leads to the same sector.
- Where something moves, only what does not depend on where things are is asked, and motion.

## Ranges
{_ranges(items)}

## Levels
{_table(level_head, levels)}

Chance is 25 % in every task. Text only and options only are classifiers of words that learnt
from {audit["drawn"]} items drawn in the same way on other scenes, scored on as many others; well
above 25 % the questions would leak. The oracle reads `scene`.

## Tasks
{_table((*task_head, *answers_head), tasks)}

Each letter is right equally often, within each task and each right answer. An item whose
direction does not matter can be answered from one channel. Left out, since these scenes do not
give four different answers: {left_out}.

## Open form
The question without its options. An answer is right within {open_ended.TOLERANCES["azimuth"]:g} degrees
of azimuth, {open_ended.TOLERANCES["elevation"]:g} of elevation, {open_ended.TOLERANCES["distance"]:g} of the
distance, {open_ended.TOLERANCES["time"]:g} s; counts and names must be equal. Chance is not a quarter.

## Source recordings
Recordings per class in each split; only those of this suite's split are heard in it.

{_table(("class", "train", "dev", "test"), recordings)}

## Limits
{limits} Items on one scene, and
scenes that share a recording, are not independent: compare systems by the clustered bootstrap
of `jaxasa.bench.score.paired_difference`.
"""
