"""JSON values from outside that are not quite JSON: bottomless ones, numbers and texts that cannot be written down."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

DEEPEST = 32
"""No request needs more levels; code that walks a value by calling itself is safe up to here."""
_KEPT_LEVELS = 8
_FLAT = frozenset({str, int, float, bool, type(None)})


def is_bottomless(value: Any) -> bool:
    """Whether objects and lists are nested more than `DEEPEST` levels."""
    level = [value]
    for _ in range(DEEPEST):
        level = [item for one in level for item in _inside(one)]
        if not level:
            return False
    return True


def _inside(value: Any) -> list[Any]:
    if type(value) in _FLAT:  # nearly all are, and asking an abstract class costs more than all the rest
        return []
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else []


def keepable(value: Any, levels: int = _KEPT_LEVELS) -> Any:
    """The value as it can always be written: without what UTF-8 and JSON have no form for, and not too deep."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping | list | tuple) and not levels:
        return "…"
    if isinstance(value, Mapping):
        return {str(keepable(str(name))): keepable(item, levels - 1) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [keepable(item, levels - 1) for item in value]
    return value if value is None or isinstance(value, int | float) else str(value)
