"""May it be switched on here? Run by `make accept PREDICTIONS=<labelled CSV>`, after each batch of cases.

The CSV has a row per image, in the order in which the patients came: `image_id`, `patient_id`, `decision` (0 or 1),
`y_true`, and where they are known `deferred` (1: a doctor decides), `time` and the columns of subgroups. A vendor's
black box says no more than that. Rows are added to its end, never changed. Writes metrics/acceptance.json and
acceptance/report.html, to be signed.
"""

import argparse
import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd

from tmv_lib.card import in_use, signed
from tmv_lib.data.decisions import read_decisions
from tmv_lib.monitoring.acceptance import Protocol, judge
from tmv_lib.pipeline.files import whole, write_json
from tmv_lib.pipeline.metrics import write_metrics
from tmv_lib.pipeline.params import read
from tmv_lib.pipeline.record import read_metrics
from tmv_lib.pipeline.stage import PROJECT, run

PROTOCOL, FOLDER = Path("protocol.yaml"), Path("acceptance")
RECORD = FOLDER / "record.json"
WHAT_COUNTS = ["image_id", "patient_id", "decision", "deferred", "y_true"]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("predictions", type=Path, help="a CSV of decisions and labels")
    given = options.parse_args()
    protocol, commit = read_protocol(), committed(PROTOCOL)
    cases = read_decisions(given.predictions, ["image_id", "patient_id", "y_true", *protocol.subgroups])
    cases = in_order(given.predictions, cases)
    made = {"protocol": digest(PROTOCOL), "rows": len(cases), "digest": digest_of(cases)}
    if RECORD.exists():
        require_continued(given.predictions, cases, json.loads(RECORD.read_text(encoding="utf-8")))
    write_json(RECORD, made)
    write_metrics("acceptance", {"acceptance": judge(cases, protocol)})
    figures = read_metrics("acceptance")
    assert figures is not None  # it has just been written
    with whole(FOLDER / "report.html") as temporary:
        origin = f"protocol.yaml at commit {commit[:10]}, SHA-256 {made['protocol']}; cases SHA-256 {made['digest']}."
        temporary.write_text(signed.judged(protocol, figures, origin), encoding="utf-8")
    print("\n".join(in_use.acceptance(figures)))


def read_protocol() -> Protocol:
    """What is to be shown. Raises ValueError where nobody has written it: it is no default's business."""
    if not PROTOCOL.exists():
        raise ValueError(f"{PROTOCOL}: no such file; begin with a copy of {PROJECT / PROTOCOL}")
    return read(PROTOCOL, "protocol", Protocol)


def committed(path: Path) -> str:
    """The commit that last changed a file. Raises ValueError where git does not have it as it is."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments, "--", str(path)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"{path}: git does not know it ({done.stderr.strip()})")
        return done.stdout.strip()

    commit = git("log", "-1", "--format=%H")
    if not commit or git("status", "--porcelain"):
        raise ValueError(f"{path}: not committed as it is; `git commit` it before the first case is read")
    return commit


def in_order(path: Path, cases: pd.DataFrame) -> pd.DataFrame:
    """The cases with `time`, "" where the CSV has none. Raises ValueError naming a row that is out of order."""
    if "time" not in cases:
        return cases.assign(time="")
    early = cases["time"] < cases["time"].shift(fill_value="")
    if early.any():
        row = int(early.idxmax())
        raise ValueError(f"{path}: row {row}: time {cases['time'][row]} is earlier than that of the row before it")
    return cases


def require_continued(path: Path, cases: pd.DataFrame, record: dict[str, Any]) -> None:
    """Raise ValueError where protocol or rows are not those of the test that was begun."""
    again = f"remove {FOLDER}/ to begin another test, which is another chance of a false acceptance"
    if record["protocol"] != digest(PROTOCOL):
        raise ValueError(f"{PROTOCOL}: changed since the first label came in; {again}")
    if len(cases) < record["rows"] or digest_of(cases[: record["rows"]]) != record["digest"]:
        raise ValueError(f"{path}: its first {record['rows']} rows are not those of the last look; {again}")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digest_of(cases: pd.DataFrame) -> str:
    """Of all that the answer rests on."""
    return hashlib.sha256(cases[WHAT_COUNTS].to_csv(index=False).encode()).hexdigest()


if __name__ == "__main__":
    run(main)
