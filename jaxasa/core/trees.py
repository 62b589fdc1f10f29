"""Nested parameter dicts and their flat form {"a/b/c": leaf}."""

import re
from collections.abc import Mapping, Sequence

import jax

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
