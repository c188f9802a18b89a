"""What is to be said of every class or finding? The question of each in turn, and a row for each on one page.

Run by `make findings` in a project that has trained with `task: multiclass` or `multilabel`. Each question is a DVC
experiment of its own, `finding-<name>`, which runs the stages after training alone and leaves the project as it is.
Writes findings/findings.csv, .html and .md; findings named beforehand, in `findings.primary`, come first.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dvc.api
import pandas as pd
from tqdm import tqdm

from tmv_lib.card import findings
from tmv_lib.pipeline import record
from tmv_lib.pipeline.metrics import ABSENT
from tmv_lib.pipeline.params import Params, read, read_members
from tmv_lib.pipeline.question import Question, read_labels, read_task
from tmv_lib.pipeline.stage import run

FOLDER = Path("findings")
STAGES = ("calibration", "site", "ensemble")


class FindingsParams(Params):
    """primary: the classes or findings named before anything was looked at; all others are exploratory."""

    primary: list[str]


def main() -> None:
    task, primary = read_task("params.yaml"), read("params.yaml", "findings", FindingsParams).primary
    if task == "binary":
        raise ValueError("params.yaml: task is binary, which has one question; multiclass and multilabel have several")
    labels, names = read_labels(record.CASES, task), record.read_question().names
    if unknown := [name for name in primary if name not in names]:
        raise ValueError(f"params.yaml: findings.primary names {unknown[0]}; there are {', '.join(names)}")
    members = list(read_members("params.yaml"))
    rows = []
    for place, name in enumerate(tqdm(names, desc="findings")):
        role = findings.PRIMARY if name in primary else findings.EXPLORATORY
        cases = Question(task, names, [place]).labelled(labels)
        rows.append(row_of(name, role, cases, members[0], asked=experiment))
    findings.write_findings(FOLDER, rows, title=", ".join(members))
    print(FOLDER / "findings.html")


def row_of(
    name: str, role: str, cases: pd.DataFrame, member: str, *, asked: Callable[[str], dict[str, record.Figures]]
) -> dict[str, Any]:
    """The row of one finding. asked: gives the metrics of its stages, where there are patients enough for a verdict."""
    if reason := findings.too_few(cases):
        return findings.absent_row(name, role, cases, reason)
    return findings.row(name, role, member, asked(name))


def experiment(name: str) -> dict[str, record.Figures]:
    """The metrics of the DVC experiment that asks of one class or finding, run anew; DVC knows what it need not run."""
    title = f"finding-{findings.slug(name)}"
    subprocess.run(["dvc", "exp", "remove", "--quiet", title], capture_output=True, check=False)  # of an earlier run
    asks = f"question.positive={json.dumps([name])}"
    done = subprocess.run(
        ["dvc", "exp", "run", "--temp", "--name", title, "--set-param", asks],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        raise ValueError(f"finding {name}: the experiment {title} failed, see above")
    with TemporaryDirectory() as folder:
        for path in (place.format(stage) for stage in STAGES for place in ("metrics/{}.json", ABSENT)):
            copy = Path(folder, path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(dvc.api.read(path, rev=title), encoding="utf-8")
        return {stage: found for stage in STAGES if (found := record.read_metrics(stage, root=folder))}


if __name__ == "__main__":
    run(main)
