"""What an ablation says: variants over several seeds, on one suite, beside a base.

ablation.json:
{"base", "seeds": [s],
 "suite": {"split", "items", "levels", "scenes", "sounds", "seed", "sha256"},
 "variants": {NAME: {"overall": A, "L1": A, "L2": A, "L3": A,
                     "seeds": {s: {"overall": accuracy, ...}},
                     "against": {"overall": D, ..., "seeds": {s: {"overall": difference, ...}}},
                     "hears", "kind", "without", "stages", "parameters": {"projector", "all"},
                     "tokens": of a scene, "scenes": {stage: scenes it is trained on}}},
 "matched": see `matched`, "seconds": {kind of job: s, "total"}, "failed": {NAME: reason}}
A = {"accuracy", "low", "high", "items"}: the mean over seeds. D = {"difference", "low", "high",
"low_seeds", "high_seeds", "items", "seeds"}: the variant less the base with the same seed, over the
seeds that both have; the base has none.

Intervals are of 95 %, from a bootstrap that draws scenes with all their items and seeds: they say
how sure a figure is for these trained models. `low_seeds` and `high_seeds` draw the seeds too, so
that what training leaves to chance is in them; of so few seeds it comes out too narrow by a factor
of sqrt(1 - 1 / seeds), if anything. Recordings are not drawn (score.paired does so).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from jaxasa.bench import score, suite
from jaxasa.config import ConfigError
from jaxasa.core import keys

FILE = "ablation.json"
WITHIN = 0.05  # share by which the projectors may differ in parameters


def check_same(items: Sequence[suite.Item], base: Sequence[suite.Item], name: str) -> None:
    """Raises ConfigError where a variant is asked anything else than the base is."""
    asked = [[(i.id, i.question, i.options, i.answer) for i in some] for some in (items, base)]
    apart = next((b for a, b in zip(*asked, strict=False) if a != b), None)
    if apart is not None or len(items) != len(base):
        where = "their number" if apart is None else f"item {apart[0]}"
        raise ConfigError(f"the suite of {name} differs from the base's in {where}")


def compare(
    items: Sequence[suite.Item],
    right: Mapping[str, Mapping[int, np.ndarray]],
    base: str,
    samples: int = 2000,
) -> dict[str, dict]:
    """What "variants" of ablation.json says of accuracy.

    right: variant -> seed -> bool [items], whether each answer is right. samples: of the bootstrap.
    """
    draws = _Draws(items, samples)
    whole = {name: np.array(list(by_seed.values()), float) for name, by_seed in right.items()}
    result: dict[str, dict] = {}
    for name, values in whole.items():
        found: dict = {}
        for group, mask in draws.masks.items():
            low, high = draws.interval(values, group)
            found[group] = {"accuracy": float(values[:, mask].mean()), "low": low, "high": high}
            found[group]["items"] = int(mask.sum())
        found["seeds"] = _by_seed(right[name], draws.masks)
        both = [seed for seed in right[name] if seed in right.get(base, {})]
        if name != base and both:
            apart = {s: right[name][s].astype(float) - right[base][s] for s in both}
            found["against"] = _against(apart, draws)
        result[name] = found
    return result


def _by_seed(values: Mapping[int, np.ndarray], masks: Mapping[str, np.ndarray]) -> dict:
    return {
        str(seed): {group: float(of[mask].mean()) for group, mask in masks.items()}
        for seed, of in values.items()
    }


def _against(apart: Mapping[int, np.ndarray], draws: "_Draws") -> dict:
    values, found = np.array(list(apart.values())), {}
    for group, mask in draws.masks.items():
        low, high = draws.interval(values, group)
        low_seeds, high_seeds = draws.interval(values, group, seeds=True)
        found[group] = {
            "difference": float(values[:, mask].mean()),
            "low": low,
            "high": high,
            "low_seeds": low_seeds,
            "high_seeds": high_seeds,
            "items": int(mask.sum()),
        }
    return found | {"seeds": _by_seed(apart, draws.masks)}


class _Draws:
    """Bootstrap draws of scenes, the same for all variants. masks: of "overall" and each level."""

    def __init__(self, items: Sequence[suite.Item], samples: int):
        groups = score.groups(items)
        self.masks = {name: mask for name, mask in groups.items() if "/" not in name}
        scenes = {s: n for n, s in enumerate(dict.fromkeys(i.scene["id"] for i in items))}
        self._scene = np.array([scenes[i.scene["id"]] for i in items])
        self._count, self._samples = len(scenes), samples
        even = np.full(len(scenes), 1 / len(scenes))
        self._weight = keys.rng(0, "ablation scenes").multinomial(len(scenes), even, samples)

    def interval(
        self, values: np.ndarray, group: str, seeds: bool = False
    ) -> tuple[float | None, float | None]:
        """95 % of the mean of values [seeds, items] in a group; None for seeds drawn out of one."""
        many, mask = len(values), self.masks[group]
        if seeds and many == 1:
            return None, None
        size = self._weight @ np.bincount(self._scene[mask], minlength=self._count)
        total = np.stack(
            [
                self._weight @ np.bincount(self._scene[mask], row[mask], self._count)
                for row in values
            ],
            1,
        )
        drawn = np.full((self._samples, many), 1 / many)
        if seeds:
            rng = keys.rng(0, "ablation seeds")
            drawn = rng.multinomial(many, np.full(many, 1 / many), self._samples) / many
        some = size > 0
        estimates = (total * drawn).sum(1)[some] / size[some]
        low, high = np.percentile(estimates, [2.5, 97.5])
        return float(low), float(high)


def matched(variants: Mapping[str, Mapping]) -> dict:
    """Whether whole projectors of different kinds are equally large, and see and say equally much.

    {"variants": {NAME: the projector's parameters}, "spread": share by which the largest exceeds
    the smallest, "within": what is allowed, "tokens": [audio tokens of a scene], "scenes": whether
    all are trained on equally many, "met"}; {} where there is but one kind.
    """
    first = next(iter(variants.values()))
    alike = {
        name: v
        for name, v in variants.items()
        if not v["without"] and all(v[k] == first[k] for k in ("hears", "stages"))
    }
    if len({v["kind"] for v in alike.values()}) < 2:
        return {}
    sizes = {name: v["parameters"]["projector"] for name, v in alike.items()}
    spread = max(sizes.values()) / min(sizes.values()) - 1
    tokens = sorted({v["tokens"] for v in alike.values()})
    scenes = all(v["scenes"] == first["scenes"] for v in alike.values())
    return {
        "variants": sizes,
        "spread": spread,
        "within": WITHIN,
        "tokens": tokens,
        "scenes": scenes,
        "met": spread <= WITHIN and len(tokens) == 1 and scenes,
    }


def said_of(found: Mapping) -> str:
    """`matched` in a sentence."""
    if not found:
        return ""
    sizes = ", ".join(f"{name} {size:,}" for name, size in found["variants"].items())
    met = "matched" if found["met"] else "NOT matched"
    scenes = "the same number of scenes" if found["scenes"] else "different numbers of scenes"
    return (
        f"projectors are {met}: {sizes} parameters, {100 * found['spread']:.1f} % apart (at most "
        f"{100 * found['within']:g} %), {' or '.join(map(str, found['tokens']))} audio tokens a "
        f"scene, trained on {scenes}"
    )


def suite_said(asked: Mapping) -> str:
    """The "suite" of an ablation.json in words; one without a split is the benchmark's."""
    name = "the development suite" if asked.get("split") == "dev" else "the benchmark"
    return f"the {asked['items']} items of {name}"


def show(result: Mapping, console: Console) -> None:
    """Prints the table of an ablation.json."""
    variants = result.get("variants", {})
    if not variants:
        return
    seeds = ", ".join(map(str, result["seeds"]))
    title = f"accuracy in %, mean over seeds {seeds} where no others are named"
    title += ", with 95 % intervals over scenes"
    groups = ["overall", *result["suite"]["levels"]]
    table = Table("variant", *groups, "by seed", title=title)
    for name, found in variants.items():
        less, each = found.get("against"), ""
        cells = []
        for group in groups:
            a = found[group]
            low, high = 100 * a["low"], 100 * a["high"]
            cells.append(f"{100 * a['accuracy']:.1f} [dim]({low:.0f}-{high:.0f})[/dim]")
            if less:
                d = less[group]
                low, high = 100 * d["low"], 100 * d["high"]
                apart = f"{100 * d['difference']:+.1f} [dim]({low:+.1f} to {high:+.1f})[/dim]"
                cells[-1] += f"\n{apart}"
        if less:
            by_seed = less["seeds"].items()
            each = ", ".join(f"{seed}: {100 * d['overall']:+.1f}" for seed, d in by_seed)
        has = "" if len(found["seeds"]) == len(result["seeds"]) else ", ".join(found["seeds"])
        table.add_row(f"{name}\n[dim]seed {has}[/dim]" if has else name, *cells, each)
    console.print(table)
    what = f"of {suite_said(result['suite'])}; with a sign: less {result['base']}"
    console.print(what, soft_wrap=True, highlight=False)
    if result["matched"]:
        console.print(said_of(result["matched"]), soft_wrap=True, highlight=False)
