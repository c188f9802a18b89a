"""Each question, its answer from the metrics, its plots, and what it does not show."""

import json
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from demo.disk import NOT_MEASURED, Disk, figure
from demo.page import Picture
from tmv_lib.card.answers import answer
from tmv_lib.card.answers import questions as asked
from tmv_lib.deferral import guarantee, verdict
from tmv_lib.pipeline import diagrams
from tmv_lib.pipeline.record import read_metrics

Figures = dict[str, tuple[str, ...]]  # what a figure is called, and where it stands in the metrics

# What no figure of a stage says.
LIMITS = {
    "prepare": "It finds copies and broken files, not a wrong label.",
    "calibration": "It speaks of patients like those measured; elsewhere the same probability can be false.",
    "site": "With few local labels a difference can go unseen, and what it finds holds for this site alone.",
    "baseline": "A good ranking does not say that a probability is true, nor what happens in another hospital.",
    "diversity": "One training of each network: another seed may turn it round.",
    "uncertainty": "A network can be sure and wrong: doubt does not catch what it cannot see.",
    "explanations": "A map shows where the network looked, not where disease is, nor that the reason is right.",
    "stability": "A constant map is perfectly stable: a stable reason need not be a right one.",
    "failures": "The kinds were fitted on synthetic images; on real ones nobody knows the truth.",
    "ensemble": "Costs are examples, and the guarantee holds for patients like those of the calibration split alone.",
}


class Evidence(NamedTuple):
    """One question: its answer, its plots, and what it does not show. figures: by name, None where not measured."""

    stage: str
    question: str
    answer: str
    figures: dict[str, float | None]
    limit: str


def _figures(members: list[str]) -> dict[str, Figures]:
    """The figures by which two revisions are compared."""
    each = {
        "calibration": ("ECE after calibration", ("calibration", "{}", "after", "positive_class_ece_uniform", "ece")),
        "uncertainty": ("confident mistakes", ("uncertainty", "{}", "quadrants", "confident_error", "n")),
        "explanations": ("deletion minus random", ("explanations", "{}", "faithfulness", "deletion_area_minus_random")),
        "stability": (
            "flip rate, reason moved",
            ("stability", "{}", "flipped_and_moved", "answer_flipped_reason_moved", "share"),
        ),
    }
    found: dict[str, Figures] = {
        stage: {f"{words}, {name}": tuple(key.format(name) for key in keys) for name in members}
        for stage, (words, keys) in each.items()
    }
    found["prepare"] = {"test images": ("prepare", "splits", "test", "images")}
    found["site"] = {"prevalence at the site": ("site", "prevalence", "site")}
    found["baseline"] = {"AUROC of the baseline": ("baseline", "auroc")}
    found["diversity"] = {"cases both get wrong": ("diversity", "together", "double_fault")}
    found["failures"] = {"errors of the ensemble at even odds": ("failures", "ensemble", "n_errors")}
    found["ensemble"] = {
        "coverage": ("deferral", "coverage"),
        "wrong among the decided": ("deferral", "selective_risk"),
        "failure cost per case": ("deferral", "failure_cost"),
        "errors left": ("deferral", "errors_left"),
    }
    return found


def judgement(disk: Disk) -> list[str]:
    """The verdict on the policy and what is promised of it, in sentences; empty where `ensemble` has not run."""
    found = read_metrics("ensemble", root=disk.root)
    return [] if found is None else [*verdict.sentences(found["verdict"]), *guarantee.sentences(found["guarantee"])]


def questions(disk: Disk) -> list[Evidence]:
    """Every question of `dvc.yaml` with an answer, in its order."""
    wanted = _figures(disk.members())
    found = []
    for stage, question in asked(disk.root).items():
        metrics = disk.metrics(stage)
        numbers = {name: figure(metrics, *keys) for name, keys in wanted[stage].items()}
        found.append(Evidence(stage, question, _answer(disk, stage), numbers, LIMITS[stage]))
    return found


def _answer(disk: Disk, stage: str) -> str:
    try:
        words = answer(stage, disk.root)
    except ValueError as error:
        return f"The answer cannot be given. {error}"
    if stage == "ensemble" and disk.metrics(stage):
        words = " ".join([words, *judgement(disk)[1:]])
    return words[0].upper() + words[1:]


class Plot(NamedTuple):
    """A diagram with its title."""

    title: str
    picture: Picture


def plots(disk: Disk, stage: str) -> list[Plot]:
    """Every diagram and picture that `dvc.yaml` names for a stage and that is there."""
    found: list[Plot] = []
    for entry in disk.yaml("dvc.yaml").get("stages", {}).get(stage, {}).get("plots", []):
        for path, options in entry.items() if isinstance(entry, dict) else [(entry, {})]:
            if path.endswith(".csv"):
                found += _diagram(disk, path, options)
            elif Path(path).suffix in ("", ".png"):
                whole = disk.root / path
                files = [whole] if whole.suffix == ".png" else sorted(whole.glob("*.png"))
                found += [_sheet(file) for file in files if file.is_file()]
    return found


def _sheet(file: Path) -> Plot:
    title = file.stem.replace("_", " ").capitalize()
    alt = f"{title}, as the stage drew it. A picture of single cases shows no rate. Not for clinical use."
    return Plot(title, Picture(file.read_bytes(), alt, ""))


FACETS = ["measure", "series", "phase"]  # columns that part a diagram in words


def _diagram(disk: Disk, path: str, options: dict[str, Any]) -> list[Plot]:
    table = disk.table(path)
    if table is None or table.empty:
        return []
    x, y, template = options["x"], options["y"], options["template"]
    facets = [name for name in FACETS if name in table and (template in _IN_ROWS or name != "series")]
    words = []
    for key, part in table.groupby(facets, sort=False) if facets else [((), table)]:
        if template == "confusion":
            values = "; ".join(f"{row[y]} called {row[x]}: {row['n']}" for _, row in part.iterrows() if row["n"])
        elif template in _IN_ROWS:
            values = "; ".join(f"{row[y]} {row[x]:.2f}" for _, row in part.iterrows())
        else:
            values = _ends(part, x, y)
        words.append(": ".join([*(str(word).replace("_", " ") for word in key), values]))
    drawn = _drawn(disk.root, path, disk.state(path, "dvc.yaml", f".dvc/plots/{template}.json"))
    return [Plot(options["title"], Picture(drawn, f"{options['title']}. {' '.join(words)}", ""))]


_IN_ROWS = ("confusion", "interval", "choice")


@lru_cache(maxsize=64)
def _drawn(root: Path, path: str, state: tuple[Any, ...]) -> str:
    """A diagram as SVG; state: what it was made from, so that it is drawn anew when that changes."""
    return diagrams.svg(diagrams.specification(path, root=root))


def _ends(part: pd.DataFrame, x: str, y: str) -> str:
    """Where each line begins and ends, for those who do not see it."""
    series = part.groupby("series", sort=False) if "series" in part else [("", part)]
    ends = []
    for name, own in series:
        first, last = own.iloc[0], own.iloc[-1]
        ends.append(f"{name}: from {first[y]:.2f} at {first[x]:.2f} to {last[y]:.2f} at {last[x]:.2f}".lstrip(": "))
    return "; ".join(ends) + "."


def revisions(disk: Disk) -> list[str]:
    """Git revisions with other metrics to compare with: the last commits that changed them, as "hash subject"."""
    logged = _git(disk, "log", "-20", "--format=%h %s", "--", "metrics")
    return logged.splitlines() if logged else []


def compared(disk: Disk, revision: str) -> pd.DataFrame | None:
    """Each question's figures here and at another git revision; None where there is no such revision."""
    commit = _git(disk, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if not commit:
        return None
    wanted, rows = _figures(disk.members()), []
    for evidence in questions(disk):
        shown = _git(disk, "show", f"{commit.strip()}:metrics/{evidence.stage}.json")
        try:
            there = json.loads(shown) if shown else {}
        except ValueError:
            there = {}
        for name, value in evidence.figures.items():
            other = figure(there, *wanted[evidence.stage][name])
            both = _is_number(value) and _is_number(other)
            change = f"{value - other:+.3g}" if both else ""
            rows.append((evidence.stage, name, _shown(value), _shown(other), change))
    return pd.DataFrame(rows, columns=["stage", "figure", "here", "there", "change"])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    return f"{value:.3g}" if _is_number(value) else NOT_MEASURED


def _git(disk: Disk, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(disk.root), *arguments], capture_output=True, text=True, encoding="utf-8", timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
