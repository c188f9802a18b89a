"""Which system said it: digests of all its parts, and what its signals were on the patients calibrated on."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from tmv_lib.pipeline import record
from tmv_lib.pipeline.files import join, read_csv
from tmv_lib.prediction.system import System

DIGITS = 16


def digests(system: System) -> dict[str, str]:
    """Digests of `weights`, `calibrator` (with the site's update where that decides) and `policy`."""
    root, members = system.root, system.policy.members
    updates = [repr(system.networks[name].update).encode() for name in members]
    return {
        "weights": _digest(record.weights(name, root=root).read_bytes() for name in members),
        "calibrator": _digest([(root / record.CALIBRATORS).read_bytes(), *updates]),
        "policy": _digest([(root / "data/ensemble/policy.json").read_bytes()]),
    }


def reference(system: System) -> pd.DataFrame:
    """`certainty` and `distance` of one image of each patient calibrated on: of `cal`, or of the site's own cases."""
    root, first = Path(system.root), system.policy.members[0]
    cases = read_csv(root / record.CASES, ["image_id", "patient_id", "split"])
    split = "cal"
    if system.policy.calibration == "site":
        split = "local" if "local" in set(cases["split"]) else "test"
    cases = record.of_split(cases, split).drop_duplicates("patient_id")
    certainty = read_csv(root / "data/ensemble/cases.csv", ["image_id", "certainty"])
    distance = read_csv(root / "data/uncertainty/cases.csv", ["image_id", f"distance_{first}"])
    return join(cases[["image_id"]], certainty, distance).set_axis(["image_id", "certainty", "distance"], axis=1)


def _digest(parts: Iterable[bytes]) -> str:
    made = hashlib.sha256()
    for part in parts:
        made.update(hashlib.sha256(part).digest())
    return made.hexdigest()[:DIGITS]
