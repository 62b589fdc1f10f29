"""The data card of a suite: what it holds and what to know before quoting a number on it."""

import collections
from collections.abc import Sequence


def _table(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(v) for v in line) + " |" for line in lines)


def text(items: Sequence, facts: dict) -> str:
    """Markdown from the items and the manifest's facts (counts, takes, leak)."""
    by_task = collections.defaultdict(list)
    for item in items:
        by_task[item.level, item.task].append(item)
    tasks = []
    for (level, task), group in by_task.items():
        answers = collections.Counter(i.answer_text for i in group)
        shares = f"{min(answers.values())} to {max(answers.values())} each"
        direction = "yes" if group[0].direction else "no"
        tasks.append((level, task, len(group), direction, len(answers), shares))
    leak = facts["leak"]
    levels = [
        (
            level,
            count,
            f"{100 * sum(i.direction for i in items if i.level == level) / count:.0f} %",
            f"{100 * leak['task'][level]:.1f} %",
            f"{100 * leak['question'][level]:.1f} %",
        )
        for level, count in facts["levels"].items()
    ]
    takes = [
        (name, *(facts["takes"][split].get(name, 0) for split in ("train", "dev", "test")))
        for name in facts["classes"]
    ]
    level_head = ("level", "items", "direction matters", "guessed by task", "guessed by wording")
    task_head = ("level", "task", "items", "direction matters", "right answers", "times each")
    heard = (
        "first-order ambisonics in the order W, Y, Z, X (ACN) with SN3D\n  gains"
        if facts["channels"] == 4
        else "two channels, the left and the right ear"
    )
    return f"""# Audio scene analysis: {facts["split"]} suite

{facts["items"]} four-option questions over {facts["scenes"]} simulated scenes of
{facts["seconds"]:g} s. Sounds: {facts["sounds"]}. Seed {facts["seed"]}. Chance is 25 %.

## Conventions
- Audio: FLAC, 16 bit, 16 kHz, {heard}; one gain for all channels of a scene.
- x is front, y left, z up. Azimuth in degrees, counter-clockwise, front 0, left +90, in
  (-180, 180]; elevation up; distances in metres, times in seconds (onset is arrival).
- Bearings in words are eight sectors of 45 degrees; near is below 1.6 m.
- `metadata.jsonl`: file_name, id, level, task, question, direction, options, answer (letter),
  scene (what is where; every answer follows from it). Predictions: one `{{"id", "answer"}}` a
  line, answer a letter or free text.

## Levels
{_table(level_head, levels)}

"Guessed" is a reader of texts alone that learnt on the other half of the scenes how often each
option is right, given the task or the wording; above 25 % the questions would leak. Balanced
sets put it a little below, because what is common in one half is rare in the other.

## Tasks
{_table(task_head, tasks)}

Each letter is right equally often, within each task and each right answer. An item whose
direction does not matter can be answered from one channel.

## Takes
Recordings per class in each split; only those of this suite's split are heard in it.

{_table(("class", "train", "dev", "test"), takes)}

## Limits
Simulated shoebox rooms, static sources, a listener who does not move. Items on one scene, and
scenes that share a recording, are not independent: compare systems by the clustered bootstrap
of `jaxasa.bench.score.paired`.
"""
