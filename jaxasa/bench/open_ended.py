# SPDX-License-Identifier: Apache-2.0
"""Scoring of open-ended answers: values parsed from free text, compared within tolerances.

An item's `open_answer` is {"kind", "value", "text"}. An answer is correct if its value is within
`TOLERANCES` of the true one (20 degrees of azimuth, 10 of elevation, a relative distance error of
0.3, 0.4 s; a count must be equal), or, for kind "name", if it contains that class name and no
other. A text with two different answers, or none, is wrong; a range is two. Reasoning is not
parsed. Texts are read by data/replies.py and data/quantities.py.

    >>> from jaxasa.bench import open_ended
    >>> open_ended.parse_answer("about 30 degrees to the right", "azimuth")
    -30.0
    >>> open_ended.parse_answer("behind me", "azimuth")
    180.0
    >>> open_ended.parse_answer("150 centimetres", "distance")
    1.5
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxasa.bench import score, suite
from jaxasa.data import quantities, replies

TOLERANCES = {"azimuth": 20.0, "elevation": 10.0, "distance": 0.3, "time": 0.4, "count": 0.0}


def parse_answer(text: str, kind: str, names: Collection[str] = ()) -> float | str | None:
    """The answer in free text: degrees, metres, seconds, a count, or one of `names`; or None.

    kind: one of TOLERANCES, or "name".
    """
    answers = {_parse_span(span, kind, names) for span in replies.answer_spans(text)}
    return answers.pop() if len(answers) == 1 else None


def _parse_span(text: str, kind: str, names: Collection[str]) -> float | str | None:
    if kind == "name":
        return replies.match_option(text, list(names))
    return quantities.parse_quantity(text, kind)


def is_within_tolerance(answer: float | str | None, truth: Mapping) -> bool:
    """Whether a parsed answer is correct. truth: an item's `open_answer`."""
    if answer is None:
        return False
    if truth["kind"] == "name":
        return answer == truth["text"]
    error = abs(float(answer) - truth["value"])
    if truth["kind"] == "azimuth":
        error = min(error % 360.0, 360.0 - error % 360.0)
    if truth["kind"] == "distance":
        error /= truth["value"]
    return error <= TOLERANCES[truth["kind"]] + 1e-9


def score_items(items: Sequence[suite.Item], predictions: Mapping[str, str]) -> dict:
    """`score.accuracy_by_group` of open-ended answers, and accuracy by kind of answer.

    Adds "kinds": {kind: A}, and "unparsed": the share of predictions without a (single) answer.
    """
    names = sorted({s["class"] for i in items for s in i.scene["sources"]})
    truths: list[Mapping] = [i.open_answer or {} for i in items]
    kind = np.array([truth["kind"] for truth in truths])
    answers = [parse_answer(predictions[i.id], k, names) for i, k in zip(items, kind, strict=True)]
    hits = np.array(list(map(is_within_tolerance, answers, truths)), bool)
    result = score.accuracy_by_group(items, hits)
    kinds = {k: score.accuracy(hits[kind == k]) for k in sorted(set(kind.tolist()))}
    unparsed = sum(a is None for a in answers) / len(items)
    return result | {"kinds": kinds, "unparsed": unparsed}


def score_file(predictions: str | Path, benchmark_folder: str | Path) -> dict:
    """`score_items` of a predictions.jsonl on the items of a suite that have an open answer."""
    items = [i for i in suite.load(benchmark_folder) if i.open_answer]
    return score_items(items, score.read_predictions(predictions, items))
