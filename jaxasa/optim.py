"""Which parameters learn, and the optimizer that moves them.

Parameters are a nested dict of arrays. What learns is a flat dict {path: array} with paths
such as "decoder/layers/q/kernel", so that the optimizer, its state and the gradient know
nothing of what is frozen.
"""

import re
from collections.abc import Mapping, Sequence

import jax
import optax
import optax.contrib

from jaxasa import config
from jaxasa.config import ConfigError


def flatten(params: Mapping, above: str = "") -> dict[str, jax.Array]:
    """Nested dict -> {"a/b/c": leaf}."""
    flat = {}
    for name, value in params.items():
        path = f"{above}{name}"
        flat.update(flatten(value, f"{path}/") if isinstance(value, Mapping) else {path: value})
    return flat


def split(params: Mapping, patterns: Sequence[str]) -> tuple[dict, dict]:
    """(trainable, frozen) flat dicts; trainable is what a pattern matches in full.

    Raises ConfigError for a pattern that matches no path or is no regular expression.
    """
    flat = flatten(params)
    chosen: set[str] = set()
    for pattern in patterns:
        try:
            found = {path for path in flat if re.fullmatch(pattern, path)}
        except re.error as error:
            raise ConfigError(f"trainable pattern {pattern!r}: {error}") from None
        if not found:
            tops = ", ".join(sorted(params))
            raise ConfigError(f"trainable pattern {pattern!r} matches no parameter of {tops}")
        chosen |= found
    trainable = {path: leaf for path, leaf in flat.items() if path in chosen}
    return trainable, {path: leaf for path, leaf in flat.items() if path not in chosen}


def merge(trainable: Mapping, frozen: Mapping) -> dict:
    """Nested dict of both flat dicts; inverse of `split`. ValueError for a path in both."""
    both = set(trainable) & set(frozen)
    if both:
        raise ValueError(f"in both halves: {sorted(both)}")
    nested: dict = {}
    for path, leaf in sorted({**frozen, **trainable}.items()):
        *folders, name = path.split("/")
        place = nested
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = leaf
    return nested


def schedule(stage: config.Stage) -> optax.Schedule:
    """Step -> learning rate: linear warm-up, then a cosine down to 10 % at the last step.

    A warm-up longer than half the run is cut to half of it, so that short runs learn too.
    """
    warmup = min(stage.warmup, stage.steps // 2)
    peak = stage.learning_rate
    rise = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
    fall = optax.cosine_decay_schedule(peak, stage.steps - warmup, alpha=0.1)
    return optax.join_schedules([rise, fall], [warmup])


def make(stage: config.Stage) -> optax.GradientTransformation:
    """Global-norm clip (0: none), then AdamW or Muon on a flat dict at `schedule`.

    AdamW decays no vectors. Muon (arXiv:2502.16982) orthogonalises the momentum of each kernel, at
    0.2 in root mean square as Adam's updates are, so that both take the same learning rates; it
    decays kernels, and all else is moved by Adam with Nesterov's momentum.
    """
    rate, decay = schedule(stage), stage.weight_decay
    if stage.optimizer == "muon":
        moved = optax.contrib.muon(
            rate,
            adam_b2=0.95,
            weight_decay=decay,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=_kernels,
        )
    else:
        moved = optax.adamw(rate, b2=0.95, weight_decay=decay, mask=decayed)
    clip = optax.clip_by_global_norm(stage.clip) if stage.clip else optax.identity()
    return optax.chain(clip, moved)


def _kernels(trainable: Mapping) -> dict:
    """{path: input and output axes of a kernel, None for what is none}; other axes are a batch."""
    axes = optax.contrib.MuonDimensionNumbers(-2, -1)
    return {path: axes if path.endswith("/kernel") else None for path in trainable}


def decayed(trainable: Mapping) -> dict[str, bool]:
    """{path: is a matrix}. The leading axis of scanned layers is no dimension of a parameter."""

    def is_matrix(path: str, leaf) -> bool:
        *folders, name = path.split("/")
        return name not in ("bias", "scale") and leaf.ndim - ("layers" in folders) >= 2

    return {path: is_matrix(path, leaf) for path, leaf in trainable.items()}
