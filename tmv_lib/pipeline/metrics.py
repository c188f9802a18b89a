"""Metrics files: numbers, booleans and words, which DVC sets side by side for two revisions.

An estimate becomes keys with a suffix here, and `record` makes it an estimate again. Why a figure is absent is a
sentence, and stands in a table among what else the stage left; the metrics say that the figure is absent.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tmv_lib.pipeline.files import read_csv, rounded, whole, write_csv

SUFFIXES = {
    "value": "",
    "low": "_low",
    "high": "_high",
    "p_value": "_p_value",
    "p_value_holm": "_p_value_holm",
    "absent": "_absent",
    "interval_absent": "_interval_absent",
}


ABSENT = "data/{}/absent.csv"  # of a stage: `metric`, the place of a key that ends in absent, and the `reason`


def write_metrics(stage: str, metrics: Mapping[str, Any], *, root: str | Path = ".") -> None:
    """Write a nested dictionary of numbers, words and estimates as metrics/<stage>.json, and data/<stage>/absent.csv.

    Floats are `rounded` to six digits. An estimate under the key `name` becomes `name`, `name_low`, ..., or
    `name_absent` (`SUFFIXES`): true, with the reason in the table. Raises ValueError for NaN, infinity, and two values
    of one key, with the key.
    """
    reasons: dict[str, str] = {}

    def told(place: str, reason: Any) -> Any:
        if not isinstance(reason, str):  # a count of a class of that name
            return reason
        reasons[place] = reason
        return True

    values = _absences(plain(metrics), told)
    table = pd.DataFrame({"metric": list(reasons), "reason": list(reasons.values())})
    write_csv(Path(root) / ABSENT.format(stage), table)
    with whole(Path(root) / f"metrics/{stage}.json") as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def with_reasons(values: Mapping[str, Any], stage: str, *, root: str | Path = ".") -> dict[str, Any]:
    """What stands in a metrics file, with the reason of each figure that is absent, or where the reason should be."""
    path = Path(root) / ABSENT.format(stage)
    reasons = read_csv(path, ["metric", "reason"]).set_index("metric")["reason"] if path.is_file() else {}
    unknown = f"of what {path} would say, which is not there"
    return _absences(values, lambda place, value: reasons.get(place, unknown) if value is True else value)


def _absences(values: Mapping[str, Any], change: Callable[[str, Any], Any], place: str = "") -> dict[str, Any]:
    """Nested values, each that says that a figure is absent as `change` makes it of its place and itself."""
    changed: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            changed[key] = _absences(value, change, f"{place}{key}.")
        else:
            changed[key] = change(f"{place}{key}", value) if key.endswith("absent") else value
    return changed


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
