"""Rewards of stage 4: a right answer, the format, and evidence that agrees with the scene.

Each takes the text of a completion; to add a reward, write a function here and add its weight
to `config.GrpoStage` and to `total`.
"""

import re
from collections.abc import Sequence

from jaxasa import config
from jaxasa.data import words

REPLY = re.compile(r"\s*<think>([^<>]*)</think>\s*<answer>\s*([^<>]*?)\s*</answer>\s*")


def parse(text: str) -> tuple[str, str] | None:
    """(thought, answer) of a completion of exactly one thought and one answer, else None."""
    found = REPLY.fullmatch(text)
    return (found[1], found[2]) if found else None


def answer_of(text: str) -> str:
    """The answer of a well-formed completion; ValueError for another."""
    found = parse(text)
    if found is None:
        raise ValueError(f"not a thought and an answer: {text!r}")
    return found[1]


def answer(text: str, right: str) -> float:
    """1 where a well-formed completion answers just the text `right`, else 0."""
    found = parse(text)
    return float(found is not None and found[1] == right)


def well_formed(text: str) -> float:
    """1 for exactly one `<think>` block followed by exactly one `<answer>` block, else 0."""
    return float(parse(text) is not None)


def evidence(text: str, sources: Sequence[dict], classes: Sequence[str]) -> float:
    """F1 of the claims in the thought against the scene, 0 to 1.

    sources: {"class", "azimuth", "distance"}. Claims are anchored to classes, one to one. A
    claim of a class that is heard counts half for its bearing (full in the right sector, half
    of that in a neighbouring one) and half for its distance; other claims, and repeated ones,
    count against precision. No claims earn 0.
    """
    found = parse(text)
    claims = words.claims(found[0], classes) if found else []
    if not claims or not sources:
        return 0.0
    truth = {s["class"]: s for s in sources}
    hits = 0.0
    for claim in claims:
        source = truth.pop(claim["class"], None)
        if source is not None:
            bearing = _bearing(claim["sector"], source["azimuth"])
            hits += 0.5 * bearing
            hits += 0.5 * (claim["distance"] == words.distance(source["distance"]))
    return 2.0 * hits / (len(claims) + len(sources))


def _bearing(sector: str | None, azimuth: float) -> float:
    if sector is None:
        return 0.0
    steps = words.SECTORS.index(sector) - words.SECTORS.index(words.sector(azimuth))
    away = min(steps % len(words.SECTORS), -steps % len(words.SECTORS))
    return {0: 1.0, 1: 0.5}.get(away, 0.0)


def total(
    stage: config.GrpoStage,
    text: str,
    right_answer: str,
    sources: Sequence[dict],
    classes: Sequence[str],
) -> dict[str, float]:
    """Each reward by name and their weighted "total"; evidence pays only with a right answer."""
    right, form = answer(text, right_answer), well_formed(text)
    shown = evidence(text, sources, classes)
    return {
        "answer": right,
        "format": form,
        "evidence": shown,
        "total": stage.answer_weight * right
        + stage.format_weight * form
        + stage.evidence_weight * shown * right,
    }
