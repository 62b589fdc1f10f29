# SPDX-License-Identifier: Apache-2.0
"""Nested dicts of parameters and their flat form {"a/b/c": leaf}.

>>> flatten({"a": {"b": 1}, "c": 2})
{'a/b': 1, 'c': 2}
>>> split({"a": {"b": 1}, "c": 2}, ["a/.*"])
({'a/b': 1}, {'c': 2})
"""

import re
from collections.abc import Mapping, Sequence

import jax

from jaxasa.config import ConfigError


def flatten(params: Mapping, prefix: str = "") -> dict[str, jax.Array]:
    """{"a/b/c": leaf} of a nested dict."""
    flat = {}
    for name, value in params.items():
        path = f"{prefix}{name}"
        flat.update(flatten(value, f"{path}/") if isinstance(value, Mapping) else {path: value})
    return flat


def split(params: Mapping, patterns: Sequence[str]) -> tuple[dict, dict]:
    """(trainable, frozen) flat dicts: a path is trainable if a pattern matches it in full.

    Raises ConfigError for a pattern that matches no path or is no regular expression.
    """
    flat = flatten(params)
    trainable: set[str] = set()
    for pattern in patterns:
        try:
            matches = {path for path in flat if re.fullmatch(pattern, path)}
        except re.error as error:
            raise ConfigError(f"trainable pattern {pattern!r}: {error}") from None
        if not matches:
            tops = ", ".join(sorted(params))
            raise ConfigError(f"trainable pattern {pattern!r} matches no parameter of {tops}")
        trainable |= matches
    return (
        {path: leaf for path, leaf in flat.items() if path in trainable},
        {path: leaf for path, leaf in flat.items() if path not in trainable},
    )


def merge(trainable: Mapping, frozen: Mapping) -> dict:
    """Nested dict of two flat ones, the inverse of `split`; ValueError for a path in both."""
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
