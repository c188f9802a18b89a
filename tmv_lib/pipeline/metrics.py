"""Metrics files. An estimate becomes keys with a suffix here, and `record` makes it an estimate again."""

import json
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tmv_lib.pipeline.files import rounded, whole

SUFFIXES = {
    "value": "",
    "low": "_low",
    "high": "_high",
    "p_value": "_p_value",
    "p_value_holm": "_p_value_holm",
    "absent": "_absent",
    "interval_absent": "_interval_absent",
}


def write_metrics(path: str | Path, metrics: Mapping[str, Any]) -> None:
    """Write a nested dictionary of numbers, words and estimates as JSON, floats `rounded` to six digits.

    An estimate under the key `name` becomes `name`, `name_low`, ..., or `name_absent` (`SUFFIXES`). Raises ValueError
    for NaN, infinity, and two values of one key, with the key.
    """
    with whole(path) as temporary:
        temporary.write_text(json.dumps(plain(metrics), indent=2) + "\n", encoding="utf-8")


def plain(metrics: Mapping[str, Any], key: str = "") -> dict[str, Any]:
    """A nested dictionary as it stands in a metrics file."""
    found: dict[str, Any] = {}
    for name, value in metrics.items():
        for inner, part in _entries(str(name), value):
            if inner in found:
                raise ValueError(f"metric {key}{inner} stands there twice")
            nested = isinstance(part, Mapping)
            found[inner] = plain(part, f"{key}{inner}.") if nested else _scalar(part, f"{key}{inner}")
    return found


def _entries(name: str, value: Any) -> list[tuple[str, Any]]:
    if not is_dataclass(value):
        return [(name, value)]
    # an `Estimate`, known by its fields: whoever writes metrics need not import what computes them
    return [
        (f"{name}{suffix}", part) for field, suffix in SUFFIXES.items() if (part := getattr(value, field)) is not None
    ]


def _scalar(value: Any, key: str) -> Any:
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        if not np.isfinite(value):
            raise ValueError(f"metric {key} is {value}: what cannot be computed is left out, with its reason")
        return float(rounded(float(value), digits=6))
    if isinstance(value, str):
        return value
    raise ValueError(f"metric {key} is a {type(value).__name__}; a metric is a number or a word")
