# SPDX-License-Identifier: Apache-2.0
"""The effect of an option, declared once, in its field: {"changes": ...} of its metadata.

    "data"    each stored scene, and each item of a suite
    "result"  their number, and everything that is trained, answered or scored (the default)
    "speed"   time, memory and logs alone

A class may say so for all its fields: `CHANGES: ClassVar[str] = "data"`.

>>> from jaxasa import config
>>> lora = config.Lora(rank=4)
>>> settings(lora, name="lora")
{'lora.rank': 4, 'lora.alpha': 32.0, 'lora.target_modules': '(q|k|v|o|gate|up|down)'}
>>> settings(lora, "data")
{}
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

DATA, RESULT, SPEED = ({"changes": effect} for effect in ("data", "result", "speed"))
# What changes data changes results too.
_RANK = {"speed": 0, "result": 1, "data": 2}


def settings(value, changing: str = "result", name: str = "") -> dict[str, Any]:
    """Flat {"decoder.width": 64, ...} of all options within `value` that change results or data.

    changing: "data" for those that change data alone. name: prefix of the names. A `value` that is
    no dataclass is an option itself: {name: value}.
    """
    if not dataclasses.is_dataclass(value):
        return {name: value}
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        inner, part = getattr(value, field.name), f"{name}.{field.name}".lstrip(".")
        # A part of a config is looked into, whatever its options change.
        is_part = dataclasses.is_dataclass(inner) and _changes(value, field) != "speed"
        if is_part or _RANK[_changes(value, field)] >= _RANK[changing]:
            flat |= settings(inner, changing, part)
    return flat


def differences(before, now, name: str) -> list[str]:
    """Lines "model.decoder.width was 64, is 128" for each option that changes a result."""
    old, new = settings(before, name=name), settings(now, name=name)
    return [
        f"{option} was {old.get(option)!r}, is {new.get(option)!r}"
        for option in {**old, **new}
        if old.get(option) != new.get(option)
    ]


def speed_options(owner: type, name: str = "") -> Iterator[str]:
    """Names, as in `settings`, of the options of a class and its parts that change speed alone."""
    for field in dataclasses.fields(owner):
        part = f"{name}.{field.name}".lstrip(".")
        if _changes(owner, field) == "speed":
            yield part
        elif isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            yield from speed_options(field.type, part)


def _changes(owner, field: dataclasses.Field) -> str:
    return field.metadata.get("changes", getattr(owner, "CHANGES", "result"))
