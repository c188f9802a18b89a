"""Where the files of a system in use lie, and the signals that its inputs are compared with."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from tmv_lib.pipeline.files import write_csv

LOG, LABELS, REFERENCE = Path("monitor/log.csv"), Path("monitor/labels.csv"), Path("monitor/reference.csv")
PARTS = ["weights", "calibrator", "policy"]
REFERENCE_COLUMNS = [*PARTS, "certainty", "distance"]


def read_reference() -> pd.DataFrame:
    """`PARTS`, `certainty` and `distance`, a row per patient that a system was calibrated on."""
    if not REFERENCE.exists() or not REFERENCE.stat().st_size:
        return pd.DataFrame(columns=REFERENCE_COLUMNS)
    return pd.read_csv(REFERENCE, dtype=dict.fromkeys(PARTS, str))[REFERENCE_COLUMNS]


def has_reference(parts: Mapping[str, str]) -> bool:
    """Whether the signals of the system with these digests are there."""
    return bool((read_reference()[PARTS] == [parts[name] for name in PARTS]).all(axis=1).any())


def add_reference(signals: pd.DataFrame, parts: Mapping[str, str]) -> None:
    """Add the signals of a system."""
    known = read_reference()
    new = signals.assign(**parts)[REFERENCE_COLUMNS]
    write_csv(REFERENCE, pd.concat([known, new]) if len(known) else new)
