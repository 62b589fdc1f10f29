# SPDX-License-Identifier: Apache-2.0
"""Results of an ablation: variants, trained with several seeds, compared with a base on one suite.

ablation.json:
{"base", "seeds": [s],
 "suite": {"split", "items", "levels", "scenes", "sounds", "seed", "sha256"},
 "variants": {NAME: {"overall": A, "L1": A, "L2": A, "L3": A,
                     "seeds": {s: {"overall": accuracy, ...}},
                     "against": {"overall": D, ..., "seeds": {s: {"overall": difference, ...}}},
                     "audio", "kind", "drop_experts", "stages", "parameters": {"projector", "all"},
                     "tokens": of a scene, "scenes": {stage: scenes it is trained on}}},
 "matched": of `compare_projectors`,
 "seconds": {kind of job: s, "total"}, "failed": {NAME: reason}}
A = {"accuracy", "low", "high", "items"}: the mean over seeds. D = {"difference", "low", "high",
"low_seeds", "high_seeds", "items"}: the variant minus the base with the same seed, over the seeds
that both have. The base has no "against".

Intervals are of 95 %, from a bootstrap over scenes (with all their items): the uncertainty of these
trained models' accuracy. `low_seeds` and `high_seeds` resample the seeds as well, and so include
the variance of training; with few seeds they are too narrow, by a factor of about
sqrt(1 - 1 / seeds). Recordings are not resampled (as `score.paired_difference` does).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from jaxasa.bench import score, suite
from jaxasa.config import ConfigError
from jaxasa.core import keys

MAX_PARAMETER_SPREAD = 0.05  # share by which the projectors may differ in parameters


def check_same_items(items: Sequence[suite.Item], base: Sequence[suite.Item], name: str) -> None:
    """Raises ConfigError if the suite of variant `name` differs from the base's."""
    own, expected = (
        [(i.id, i.question, i.options, i.answer) for i in part] for part in (items, base)
    )
    differing = next((b for a, b in zip(own, expected, strict=False) if a != b), None)
    if differing is not None or len(items) != len(base):
        place = "their number" if differing is None else f"item {differing[0]}"
        raise ConfigError(f"the suite of {name} differs from the base's in {place}")


def compare(
    items: Sequence[suite.Item],
    correctness: Mapping[str, Mapping[int, np.ndarray]],
    base: str,
    samples: int = 2000,
) -> dict[str, dict]:
    """The accuracies and differences in "variants" of ablation.json.

    correctness: variant -> seed -> bool [items]. samples: of the bootstrap.
    """
    bootstrap = _Bootstrap(items, samples)
    result: dict[str, dict] = {}
    for name, by_seed in correctness.items():
        values = np.array(list(by_seed.values()), float)
        scores: dict = {}
        for group, mask in bootstrap.masks.items():
            low, high = bootstrap.interval(values, group)
            scores[group] = {"accuracy": float(values[:, mask].mean()), "low": low, "high": high}
            scores[group]["items"] = int(mask.sum())
        scores["seeds"] = _by_seed(by_seed, bootstrap.masks)
        shared = [seed for seed in by_seed if seed in correctness.get(base, {})]
        if name != base and shared:
            differences = {s: by_seed[s].astype(float) - correctness[base][s] for s in shared}
            scores["against"] = _against(differences, bootstrap)
        result[name] = scores
    return result


def _by_seed(values: Mapping[int, np.ndarray], masks: Mapping[str, np.ndarray]) -> dict:
    return {
        str(seed): {group: float(row[mask].mean()) for group, mask in masks.items()}
        for seed, row in values.items()
    }


def _against(differences: Mapping[int, np.ndarray], bootstrap: "_Bootstrap") -> dict:
    values, result = np.array(list(differences.values())), {}
    for group, mask in bootstrap.masks.items():
        low, high = bootstrap.interval(values, group)
        low_seeds, high_seeds = bootstrap.interval(values, group, seeds=True)
        result[group] = {
            "difference": float(values[:, mask].mean()),
            "low": low,
            "high": high,
            "low_seeds": low_seeds,
            "high_seeds": high_seeds,
            "items": int(mask.sum()),
        }
    return result | {"seeds": _by_seed(differences, bootstrap.masks)}


class _Bootstrap:
    """Bootstrap samples of scenes, the same for all variants. masks: "overall" and each level."""

    def __init__(self, items: Sequence[suite.Item], samples: int):
        groups = score.group_masks(items)
        self.masks = {name: mask for name, mask in groups.items() if "/" not in name}
        scenes = {s: n for n, s in enumerate(dict.fromkeys(i.scene["id"] for i in items))}
        self._scene = np.array([scenes[i.scene["id"]] for i in items])
        self._count, self._samples = len(scenes), samples
        even = np.full(len(scenes), 1 / len(scenes))
        self._weight = keys.rng(0, "ablation scenes").multinomial(len(scenes), even, samples)

    def interval(
        self, values: np.ndarray, group: str, seeds: bool = False
    ) -> tuple[float | None, float | None]:
        """95 % interval of the mean of values [seeds, items] in a group.

        seeds: whether to resample the seeds too; (None, None) if there is only one.
        """
        num_seeds, mask = len(values), self.masks[group]
        if seeds and num_seeds == 1:
            return None, None
        size = self._weight @ np.bincount(self._scene[mask], minlength=self._count)
        total = np.stack(
            [
                self._weight @ np.bincount(self._scene[mask], row[mask], self._count)
                for row in values
            ],
            1,
        )
        weight = np.full((self._samples, num_seeds), 1 / num_seeds)
        if seeds:
            rng = keys.rng(0, "ablation seeds")
            even = np.full(num_seeds, 1 / num_seeds)
            weight = rng.multinomial(num_seeds, even, self._samples) / num_seeds
        is_drawn = size > 0
        estimates = (total * weight).sum(1)[is_drawn] / size[is_drawn]
        low, high = np.percentile(estimates, [2.5, 97.5])
        return float(low), float(high)


def compare_projectors(variants: Mapping[str, Mapping]) -> dict:
    """Whether projectors of different kinds have equal size, token count and training data.

    Only variants with all experts, and the audio and stages of the first, are compared.
    {"variants": {NAME: the projector's parameters}, "spread": relative excess of the largest over
    the smallest, "within": what is allowed, "tokens": [audio tokens a scene], "scenes": whether
    all are trained on the same number, "met": whether all are equal}; {} if there is one kind only.
    """
    first = next(iter(variants.values()))
    comparable = {
        name: v
        for name, v in variants.items()
        if not v["drop_experts"] and all(v[k] == first[k] for k in ("audio", "stages"))
    }
    if len({v["kind"] for v in comparable.values()}) < 2:
        return {}
    sizes = {name: v["parameters"]["projector"] for name, v in comparable.items()}
    spread = max(sizes.values()) / min(sizes.values()) - 1
    tokens = sorted({v["tokens"] for v in comparable.values()})
    scenes = all(v["scenes"] == first["scenes"] for v in comparable.values())
    return {
        "variants": sizes,
        "spread": spread,
        "within": MAX_PARAMETER_SPREAD,
        "tokens": tokens,
        "scenes": scenes,
        "met": spread <= MAX_PARAMETER_SPREAD and len(tokens) == 1 and scenes,
    }


def describe_matching(matching: Mapping) -> str:
    """The result of `compare_projectors` in a sentence; "" if it is empty."""
    if not matching:
        return ""
    sizes = ", ".join(f"{name} {size:,}" for name, size in matching["variants"].items())
    verdict = "matched" if matching["met"] else "NOT matched"
    scenes = "the same number of scenes" if matching["scenes"] else "different numbers of scenes"
    return (
        f"The projectors are {verdict}: {sizes} parameters, a spread of "
        f"{100 * matching['spread']:.1f} % (at most {100 * matching['within']:g} %), "
        f"{' or '.join(map(str, matching['tokens']))} audio tokens a scene, trained on {scenes}."
    )


def describe_suite(facts: Mapping) -> str:
    """The "suite" of an ablation.json in words."""
    name = "the development suite" if facts.get("split") == "dev" else "the benchmark"
    return f"the {facts['items']} items of {name}"


def print_table(result: Mapping, console: Console) -> None:
    """Prints the table of an ablation.json."""
    variants = result.get("variants", {})
    if not variants:
        return
    seeds = ", ".join(map(str, result["seeds"]))
    title = f"accuracy in % with 95 % intervals; mean over seeds {seeds} unless others are named"
    groups = ["overall", *result["suite"]["levels"]]
    table = Table("variant", *groups, "difference by seed", title=title)
    for name, variant in variants.items():
        differences, by_seed = variant.get("against"), ""
        cells = []
        for group in groups:
            a = variant[group]
            low, high = 100 * a["low"], 100 * a["high"]
            cell = f"{100 * a['accuracy']:.1f} [dim]({low:.0f}-{high:.0f})[/dim]"
            if differences:
                d = differences[group]
                low, high = 100 * d["low"], 100 * d["high"]
                cell += f"\n{100 * d['difference']:+.1f} [dim]({low:+.1f} to {high:+.1f})[/dim]"
            cells.append(cell)
        if differences:
            rows = differences["seeds"].items()
            by_seed = ", ".join(f"{seed}: {100 * row['overall']:+.1f}" for seed, row in rows)
        is_partial = len(variant["seeds"]) < len(result["seeds"])
        note = f"\n[dim]seed {', '.join(variant['seeds'])}[/dim]" if is_partial else ""
        table.add_row(name + note, *cells, by_seed)
    console.print(table)
    note = f"On {describe_suite(result['suite'])}. Second lines: difference from {result['base']}."
    console.print(note, soft_wrap=True, highlight=False)
    if result["matched"]:
        console.print(describe_matching(result["matched"]), soft_wrap=True, highlight=False)
