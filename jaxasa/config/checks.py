# SPDX-License-Identifier: Apache-2.0
"""Checks of options: an error is one line that names the field, its value and the expectation."""

import math
import re
from collections.abc import Iterable


class ConfigError(ValueError):
    """An option or input that the user must correct: one line, exit code 2."""


def check(condition: bool, field: str, value, expected: str) -> None:
    """Raises ConfigError naming `field` (`Class.field`), its `value` and what was `expected`."""
    if not condition:
        raise ConfigError(f"{field} is {value!r}, expected {expected}")


def check_local_path(field: str, path: str) -> None:
    """Raises ConfigError for a path with a URL scheme, which would become a folder of that name."""
    is_url = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path) is not None
    expected = "a local path: mount the storage (Cloud Storage FUSE, NFS) or copy it first"
    check(not is_url, field, path, expected)


def check_local_paths(owner, *fields: str) -> None:
    """Checks that each field, a path or a tuple of paths, is local (`check_local_path`)."""
    for name in fields:
        value = getattr(owner, name)
        paths: Iterable = (value,) if isinstance(value, str) else value
        for path in paths:
            check_local_path(f"{type(owner).__name__}.{name}", str(path))


def check_range(owner, *fields: str, low: float) -> None:
    """Checks that each field is a pair (low, high) with `low` <= low <= high."""
    for name in fields:
        value = getattr(owner, name)
        ok = (
            isinstance(value, (tuple, list))
            and len(value) == 2
            and all(isinstance(v, (int, float)) and math.isfinite(v) for v in value)
            and low <= value[0] <= value[1]
        )
        check(ok, f"{type(owner).__name__}.{name}", value, f"(low, high) with {low} <= low <= high")


def check_at_least(owner, low, *fields: str) -> None:
    """Checks that each field is a number of at least `low`."""
    for name in fields:
        value = getattr(owner, name)
        ok = isinstance(value, (int, float)) and not isinstance(value, bool) and value >= low
        check(ok, f"{type(owner).__name__}.{name}", value, f"a number of at least {low}")


def check_share(owner, *fields: str) -> None:
    """Checks that each field is a share or probability, from 0 to 1."""
    for name in fields:
        value = getattr(owner, name)
        ok = isinstance(value, (int, float)) and 0 <= value <= 1
        check(ok, f"{type(owner).__name__}.{name}", value, "a share from 0 to 1")
