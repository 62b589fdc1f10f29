"""Rewards of stage 4: a right answer, the format, evidence that agrees with the scene, length.

Each takes the text of a completion; to add a reward, write a function here and add its weight
to `config.GrpoStage` and to `total`.
"""

import re
from collections.abc import Sequence

from jaxasa import config
from jaxasa.data import scene_text

LONG = 0.75
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


def well_formed(text: str, options: Sequence[str] = ()) -> float:
    """1 for exactly one `<think>` block followed by exactly one `<answer>` block, else 0.

    options: what the answer must be one of; () for an open question.
    """
    found = parse(text)
    return float(found is not None and (not options or found[1] in options))


def evidence(text: str, sources: Sequence[dict], classes: Sequence[str]) -> float:
    """F1 of the claims in the thought against the scene, less what is false in them: 0 to 1.

    sources: {"class", "azimuth", "distance"}. Claims are anchored to classes, one to one. A
    claim of a class that is heard counts half for its bearing (see `bearing`) and half for its
    distance. Others, and repeated ones, count against precision and cost k / (n - k) each where
    k of n classes are heard: then guessing gains nothing on average, and claiming every class
    nothing at all, even in the right places. No claims earn 0.
    """
    found = parse(text)
    claims = scene_text.claims(found[0], classes) if found else []
    if not claims or not sources:
        return 0.0
    left = list(sources)
    hits, false = 0.0, 0
    for claim in claims:
        same = [s for s in left if s["class"] == claim["class"]]
        if not same:
            false += 1
            continue
        places = [bearing(claim["sector"], s["azimuth"]) for s in same]
        source = same[places.index(max(places))]
        left.remove(source)
        hits += 0.5 * max(places)
        hits += 0.5 * (claim["distance"] == scene_text.distance(source["distance"]))
    heard = len({s["class"] for s in sources})
    cost = heard / max(len(classes) - heard, 1)
    return max(0.0, 2.0 * (hits - cost * false) / (len(claims) + len(sources)))


def bearing(sector: str | None, azimuth: float) -> float:
    """1 for the sector that `azimuth` (degrees) lies in, falling to 0 a sector beyond its edge."""
    if sector is None:
        return 0.0
    centre = scene_text.SECTORS.index(sector) * scene_text.SECTOR_WIDTH
    off = abs((azimuth - centre + 180.0) % 360.0 - 180.0) - scene_text.SECTOR_WIDTH / 2
    return min(1.0, max(0.0, 1.0 - off / scene_text.SECTOR_WIDTH))


def length(used: float) -> float:
    """0 for a completion of at most LONG of its room (`used`, a share), falling to -1 at all of it.

    The soft overlong punishment of DAPO (arXiv:2503.14476, eq. 13).
    """
    return min(0.0, (LONG - used) / (1.0 - LONG))


def total(
    stage: config.GrpoStage,
    text: str,
    right_answer: str,
    options: Sequence[str],
    sources: Sequence[dict],
    classes: Sequence[str],
    used: float,
) -> dict[str, float]:
    """Each reward by name and their weighted "total"; evidence pays only with a right answer.

    options: those of the question; () for an open one. used: share of the room for a reply that
    the completion took.
    """
    right, form = answer(text, right_answer), well_formed(text, options)
    shown, long = evidence(text, sources, classes), length(used)
    return {
        "answer": right,
        "format": form,
        "evidence": shown,
        "length": long,
        "total": stage.answer_weight * right
        + stage.format_weight * form
        + stage.evidence_weight * shown * right
        + stage.length_weight * long,
    }
