# SPDX-License-Identifier: Apache-2.0
"""Rewards of GRPO: a correct answer, the format, evidence that agrees with the scene, length.

Each takes the text of a completion. To add a reward, write a function here, and add its weight to
`config.GrpoStage` and its value to `compute_rewards`.
"""

import re
from collections.abc import Sequence

from jaxasa import config
from jaxasa.data import scene_text

LENGTH_PENALTY_START = 0.75  # share of the maximal length
_REPLY = re.compile(r"\s*<think>([^<>]*)</think>\s*<answer>\s*([^<>]*?)\s*</answer>\s*")


def compute_rewards(
    stage: config.GrpoStage,
    completion: str,
    target: str,
    options: Sequence[str],
    sources: Sequence[dict],
    classes: Sequence[str],
    length_fraction: float,
) -> dict[str, float]:
    """Each reward by name, and their weighted "total"; evidence counts only for correct answers.

    target: the correct answer. options: of the question; () if it is open. sources: of the scene,
    see `evidence_reward`. length_fraction: of the maximal length.
    """
    answer = answer_reward(completion, target)
    format = format_reward(completion, options)
    evidence = evidence_reward(completion, sources, classes)
    length = length_reward(length_fraction)
    return {
        "answer": answer,
        "format": format,
        "evidence": evidence,
        "length": length,
        "total": stage.answer_weight * answer
        + stage.format_weight * format
        + stage.evidence_weight * evidence * answer
        + stage.length_weight * length,
    }


def parse_completion(text: str) -> tuple[str, str] | None:
    """(reasoning, answer) of a completion of exactly one `<think>` and one `<answer>` block.

    None for any other text.
    """
    match = _REPLY.fullmatch(text)
    return (match[1], match[2]) if match else None


def answer_of(text: str) -> str:
    """The answer of a well-formed completion. Raises ValueError for any other text."""
    parts = parse_completion(text)
    if parts is None:
        raise ValueError(f"not a reasoning trace and an answer: {text!r}")
    return parts[1]


def answer_reward(completion: str, target: str) -> float:
    """1 if a well-formed completion has exactly the answer `target`, else 0."""
    parts = parse_completion(completion)
    return float(parts is not None and parts[1] == target)


def format_reward(completion: str, options: Sequence[str] = ()) -> float:
    """1 for exactly one `<think>` block followed by exactly one `<answer>` block, else 0.

    options: of which the answer must be one; () for an open question.
    """
    parts = parse_completion(completion)
    return float(parts is not None and (not options or parts[1] in options))


def evidence_reward(completion: str, sources: Sequence[dict], classes: Sequence[str]) -> float:
    """F1 of the claims in the reasoning against the scene's sources, less a cost of false ones.

    sources: {"class", "azimuth", "distance"}. Claims are matched to sources by class, one to one.
    A claim of a class in the scene counts half for its sector (see `sector_score`) and half for
    its distance. False claims (other classes, repeated ones) count against precision, and each
    costs k / (n - k) if the scene has k of n classes: then guessing gains nothing on average, and
    claiming every class nothing at all, even at the right places. Without claims, 0.
    """
    parts = parse_completion(completion)
    claims = scene_text.parse_caption(parts[0], classes) if parts else []
    if not claims or not sources:
        return 0.0
    unmatched = list(sources)
    hits, false_claims = 0.0, 0
    for claim in claims:
        candidates = [s for s in unmatched if s["class"] == claim["class"]]
        if not candidates:
            false_claims += 1
            continue
        scores = [sector_score(claim["sector"], s["azimuth"]) for s in candidates]
        source = candidates[scores.index(max(scores))]
        unmatched.remove(source)
        hits += 0.5 * max(scores)
        hits += 0.5 * (claim["distance"] == scene_text.distance_name(source["distance"]))
    present = len({s["class"] for s in sources})
    cost = present / max(len(classes) - present, 1)
    return max(0.0, 2.0 * (hits - cost * false_claims) / (len(claims) + len(sources)))


def sector_score(sector: str | None, azimuth: float) -> float:
    """1 in the sector that `azimuth` (degrees) lies in, falling to 0 one sector beyond its edge."""
    if sector is None:
        return 0.0
    centre = scene_text.SECTORS.index(sector) * scene_text.SECTOR_WIDTH
    off = abs((azimuth - centre + 180.0) % 360.0 - 180.0) - scene_text.SECTOR_WIDTH / 2
    return min(1.0, max(0.0, 1.0 - off / scene_text.SECTOR_WIDTH))


def length_reward(length_fraction: float) -> float:
    """0 up to LENGTH_PENALTY_START of the maximal length, falling to -1 at all of it.

    length_fraction: length of the completion, as a share of the maximal length. This is the soft
    overlong punishment of DAPO (arXiv:2503.14476, eq. 13).
    """
    return min(0.0, (LENGTH_PENALTY_START - length_fraction) / (1.0 - LENGTH_PENALTY_START))
