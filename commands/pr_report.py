"""What does a change do to the figures? Markdown for a pull request, by `make pr-report BASE=origin/main`.

Compares what lies here with the commit where BASE and HEAD part: the figures of the summary with their 95 % intervals,
and the diagrams that changed. Writes pr_report/report.md and, beside it, a PNG per diagram; prints the Markdown.
"""

import argparse
import io
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from tmv_lib.pipeline import diagrams
from tmv_lib.pipeline.stage import run

FOLDER = Path("pr_report")
SUMMARY, ENSEMBLE = "metrics/summary.json", "metrics/ensemble.json"
BOUNDS = ("_low", "_high")


class Value(NamedTuple):
    """A figure of one commit with its 95 % interval; None where it has none."""

    value: Any
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return _rounded(self.value)
        return f"{_rounded(self.value)} ({_rounded(self.low)} to {_rounded(self.high)})"

    def holds(self, other: "Value") -> bool:
        return self.low is not None and self.high is not None and self.low <= other.value <= self.high


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("base", help="a branch or commit")
    base = _told("git", "merge-base", options.parse_args().base, "HEAD").strip()
    changes = json.loads(_told("dvc", "metrics", "diff", "--all", "--json", base))
    known = diagrams.described()
    changed = [plot for plot in _told("git", "diff", "--name-only", base, "--", "plots").split() if plot in known]
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    pictures = {}
    for plot in filter(Path.exists, map(Path, changed)):
        picture = plot.with_suffix(".png").relative_to("plots").as_posix().replace("/", "_")
        (FOLDER / picture).write_bytes(drawn(str(plot), base, known[str(plot)]))
        pictures[known[str(plot)]["title"].splitlines()[0]] = picture
    text = report(changes, pictures, base)
    (FOLDER / "report.md").write_text(text, encoding="utf-8")
    print(text)


def report(changes: dict[str, dict[str, dict[str, Any]]], pictures: dict[str, str], base: str) -> str:
    """The Markdown. changes: what `dvc metrics diff --all --json` says. pictures: file names by title."""
    moved = rows(changes)
    table = ["| figure | base | now | |", "| --- | --- | --- | --- |", *moved]
    others = sum(one.get("old") != one.get("new") for figures in changes.values() for one in figures.values())
    parts = [
        f"### What this does to the figures, against {base[:7]}",
        "\n".join(table) if moved else "No figure of the summary changed.",
        "95 % intervals in brackets. *Within noise*: each value lies in the other's interval.",
        f"Of all metrics {others} values differ: `dvc metrics diff {base[:7]}`.",
        *(f"![{title}]({picture})" for title, picture in pictures.items()),
    ]
    return "\n\n".join(parts) + "\n"


def rows(changes: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """A line per changed figure of the summary, or of the policy where no summary was made."""
    if SUMMARY in changes:
        figures = changes[SUMMARY]
    else:
        figures = {name: one for name, one in changes.get(ENSEMBLE, {}).items() if name.count(".") == 1}
    lines = []
    for name, one in sorted(figures.items()):
        bound = name.endswith(BOUNDS) and name.rpartition("_")[0] in figures
        if bound or one.get("old") == one.get("new"):
            continue
        old, new = (
            Value(one.get(side), *(figures.get(f"{name}{bound}", {}).get(side) for bound in BOUNDS))
            for side in ("old", "new")
        )
        lines.append(f"| {name} | {old} | {new} | {weight(old, new)} |")
    return lines


def weight(old: Value, new: Value) -> str:
    """What a change is worth, by the intervals of both."""
    if None in (old.value, old.low, new.value, new.low):
        return "no interval"
    return "within noise" if old.holds(new) and new.holds(old) else "**beyond noise**"


def drawn(plot: str, base: str, options: dict[str, str]) -> bytes:
    """A diagram of here and of the base, over each other, as PNG."""
    tables = [pd.read_csv(plot).assign(rev=diagrams.REVISION)]
    if _told("git", "ls-tree", base, plot):
        tables.append(pd.read_csv(io.StringIO(_told("git", "show", f"{base}:{plot}"))).assign(rev=base[:7]))
    return diagrams.png(diagrams.filled(pd.concat(tables), name=plot, **options))


def _told(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _rounded(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "absent" if value is None else str(value)


if __name__ == "__main__":
    run(main)
