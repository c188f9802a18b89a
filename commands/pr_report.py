"""What does a change do to the figures? Markdown for a pull request, by `make pr-report BASE=origin/main`.

Compares what lies here with the commit where BASE and HEAD part: the figures of the summary with their 95 % intervals,
and the diagrams that changed. Writes pr_report/report.md and, beside it, a PNG per diagram; prints the Markdown.
"""

import argparse
import io
import json
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from tmv_lib.card.words import NOT_MEASURED
from tmv_lib.pipeline import diagrams
from tmv_lib.pipeline.record import Figures
from tmv_lib.pipeline.stage import run
from tmv_lib.statistics.estimate import Estimate

FOLDER = Path("pr_report")
SUMMARY, ENSEMBLE = "metrics/summary.json", "metrics/ensemble.json"
WITH_INTERVAL = {  # figures of the summary, by their place in metrics/ensemble.json
    "auroc": ("ensemble", "in_use", "auroc"),
    "coverage": ("deferral", "coverage"),
    "selective_risk": ("deferral", "selective_risk"),
    "failure_cost": ("deferral", "failure_cost"),
    "deciding_all_cost": ("deferral", "ensemble_decides_all", "cost"),
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("base", help="a branch or commit")
    base = _told("git", "merge-base", options.parse_args().base, "HEAD").strip()
    known = diagrams.described()
    changed = [plot for plot in _told("git", "diff", "--name-only", base, "--", "plots").split() if plot in known]
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    pictures = {}
    for plot in filter(Path.exists, map(Path, changed)):
        picture = plot.with_suffix(".png").relative_to("plots").as_posix().replace("/", "_")
        (FOLDER / picture).write_bytes(drawn(str(plot), base, known[str(plot)]))
        pictures[known[str(plot)]["title"].splitlines()[0]] = picture
    text = report(figures(lambda path: _committed(base, path)), figures(_here), pictures, base)
    (FOLDER / "report.md").write_text(text, encoding="utf-8")
    print(text)


def figures(text_of: Callable[[str], str]) -> dict[str, Estimate]:
    """The summary's figures by name. text_of: the text of a metrics file of one commit, "" where it has none."""
    summary, ensemble = (json.loads(text_of(path) or "{}") for path in (SUMMARY, ENSEMBLE))
    found = {name: Estimate(value) for name, value in summary.get("summary", {}).items()}
    return found | {name: at(Figures(ensemble, ENSEMBLE), place) for name, place in WITH_INTERVAL.items()}


def at(figures: Figures, place: tuple[str, ...]) -> Estimate:
    """The figure at nested keys; absent where one of them is not there, as in an older commit."""
    *groups, name = place
    for group in groups:
        figures = figures.get(group, Figures({}, ENSEMBLE))
    return figures.estimate(name) if name in figures else Estimate(absent=NOT_MEASURED)


def report(old: Mapping[str, Estimate], new: Mapping[str, Estimate], pictures: Mapping[str, str], base: str) -> str:
    """The Markdown. pictures: file names by title."""
    moved = rows(old, new)
    table = ["| figure | base | now | |", "| --- | --- | --- | --- |", *moved]
    parts = [
        f"### What this does to the figures, against {base[:7]}",
        "\n".join(table) if moved else "No figure of the summary changed.",
        "95 % intervals in brackets. *Within noise*: each value lies in the other's interval. All figures:"
        f" `dvc metrics diff {base[:7]}`.",
        *(f"![{title}]({picture})" for title, picture in pictures.items()),
    ]
    return "\n\n".join(parts) + "\n"


def rows(old: Mapping[str, Estimate], new: Mapping[str, Estimate]) -> list[str]:
    """A line per figure whose value changed."""
    none = Estimate(absent=NOT_MEASURED)
    pairs = {name: (old.get(name, none), new.get(name, none)) for name in {**old, **new}}
    return [
        f"| {name.replace('_', ' ')} | {_said(one)} | {_said(other)} | {weight(one, other)} |"
        for name, (one, other) in pairs.items()
        if one.value != other.value
    ]


def weight(old: Estimate, new: Estimate) -> str:
    """What a change is worth, by the intervals of both."""
    if None in (old.low, old.high, new.low, new.high):
        return "no interval"
    (value, low, high), (new_value, new_low, new_high) = old.ends, new.ends
    return "within noise" if low <= new_value <= high and new_low <= value <= new_high else "**beyond noise**"


def drawn(plot: str, base: str, options: dict[str, str]) -> bytes:
    """A diagram of here and of the base, over each other, as PNG."""
    tables = [pd.read_csv(plot).assign(rev=diagrams.REVISION)]
    if text := _committed(base, plot):
        tables.append(pd.read_csv(io.StringIO(text)).assign(rev=base[:7]))
    return diagrams.png(diagrams.filled(pd.concat(tables), name=plot, **options))


def _here(path: str) -> str:
    return Path(path).read_text(encoding="utf-8") if Path(path).exists() else ""


def _committed(commit: str, path: str) -> str:
    return _told("git", "show", f"{commit}:{path}") if _told("git", "ls-tree", commit, path) else ""


def _told(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _said(figure: Estimate) -> str:
    if figure.value is None or figure.low is None or figure.high is None:
        return _rounded(figure.value)
    return f"{_rounded(figure.value)} ({_rounded(figure.low)} to {_rounded(figure.high)})"


def _rounded(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else NOT_MEASURED if value is None else str(value)


if __name__ == "__main__":
    run(main)
