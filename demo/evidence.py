"""Each question, its answer from the metrics, its plots, and what it does not show."""

import json
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from demo.disk import NOT_MEASURED, Disk, figure
from demo.page import Picture, Section
from tmv_lib.card.answers import ANSWERS, answer
from tmv_lib.card.answers import questions as asked
from tmv_lib.card.facts import Facts
from tmv_lib.card.policy import Run
from tmv_lib.card.sections import section
from tmv_lib.deferral import guarantee
from tmv_lib.pipeline import diagrams
from tmv_lib.pipeline.params import read
from tmv_lib.pipeline.record import CASES, read_metrics

# By which figures two revisions are compared: what each is called, and where it stands in the metrics; {} is a member.
FIGURES = {
    "prepare": {"test images": "prepare.splits.test.images"},
    "calibration": {"ECE after calibration, {}": "calibration.{}.after.positive_class_ece_uniform.ece"},
    "site": {"prevalence at the site": "site.prevalence.site"},
    "baseline": {"AUROC of the baseline": "baseline.auroc"},
    "diversity": {"cases both get wrong": "diversity.together.double_fault"},
    "uncertainty": {"confident mistakes, {}": "uncertainty.{}.quadrants.confident_error.n"},
    "explanations": {"deletion minus random, {}": "explanations.{}.faithfulness.deletion_area_minus_random"},
    "stability": {"flip rate, reason moved, {}": "stability.{}.flipped_and_moved.answer_flipped_reason_moved.share"},
    "failures": {"errors of the ensemble at even odds": "failures.ensemble.n_errors"},
    "ensemble": {
        "coverage": "deferral.coverage",
        "wrong among the decided": "deferral.selective_risk",
        "failure cost per case": "deferral.failure_cost",
        "errors left": "deferral.errors_left",
    },
    "acceptance": {"patients of the acceptance test": "acceptance.n_patients"},
    "monitor": {"patients monitored": "monitor.n_patients"},
}
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
    "acceptance": "It speaks of patients like those of the test: the same scanner, season and referrals.",
    "monitor": "It counts what was read: without labels nobody knows, and a rare error can stay unseen for long.",
}


class Evidence(NamedTuple):
    """One question: its answer, its plots, and what it does not show. figures: by name, None where not measured."""

    stage: str
    question: str
    answer: str
    figures: dict[str, Any]
    limit: str


def first_page(disk: Disk) -> list[Section]:
    """What the trust card says first, in its words: when to use the system, when not, and what happens to 100 cases."""
    try:
        source = ", ".join(sorted(disk.read(CASES)["source"].unique()))
        facts = read(disk.root / "card.yaml", "card", Facts).about(source)
        run = Run({stage: read_metrics(stage, root=disk.root) for stage in ANSWERS}, facts, {})
        made = [section(key, run) for key in ("verdict", "use", "do_not_use", "happens")]
    except ValueError as error:
        return [Section("When should I use this?", [f"The answer cannot be given. {error}"])]
    return [Section(each.title, each.words) for each in made]


def questions(disk: Disk) -> list[Evidence]:
    """Every question of `dvc.yaml` with an answer, in its order."""
    found = []
    for stage, question in asked(disk.root).items():
        figures = _figures(disk, stage, disk.read(f"metrics/{stage}.json"))
        found.append(Evidence(stage, question, _answer(disk, stage), figures, LIMITS[stage]))
    return found


def _figures(disk: Disk, stage: str, metrics: Any) -> dict[str, Any]:
    """The figures of a stage by name, None where not measured."""
    return {
        words.format(name): figure(metrics, place.format(name))
        for words, place in FIGURES[stage].items()
        for name in (disk.members() if "{}" in words else [""])
    }


def _answer(disk: Disk, stage: str) -> str:
    try:
        words = answer(stage, disk.root)
    except ValueError as error:
        return f"The answer cannot be given. {error}"
    if stage == "ensemble":
        found = read_metrics("ensemble", root=disk.root)
        words = " ".join([words, *([] if found is None else guarantee.sentences(found["guarantee"]))])
    return words[0].upper() + words[1:]


def plots(disk: Disk, stage: str) -> list[Picture]:
    """Every diagram and picture that `dvc.yaml` names for a stage and that is there; its caption is its title."""
    found: list[Picture] = []
    file = "monitor/dvc.yaml" if stage == "monitor" else "dvc.yaml"
    for entry in figure(disk.read(file), f"stages.{stage}.plots") or []:
        for path, options in entry.items() if isinstance(entry, dict) else [(entry, {})]:
            if path.endswith(".csv"):
                found += _diagram(disk, path, options)
            elif Path(path).suffix in ("", ".png"):
                whole = disk.root / path
                files = [whole] if whole.suffix else sorted(whole.glob("*.png"))
                found += [_sheet(file) for file in files if file.is_file()]
    return found


def _sheet(file: Path) -> Picture:
    title = file.stem.replace("_", " ").capitalize()
    alt = f"{title}, as the stage drew it. A picture of single cases shows no rate. Not for clinical use."
    return Picture(file.read_bytes(), alt, title)


def _diagram(disk: Disk, path: str, options: dict[str, Any]) -> list[Picture]:
    table = disk.read(path)
    if table is None or table.empty:
        return []
    x, y, template = (options[name] for name in ("x", "y", "template"))
    title, *reading = options["title"].splitlines()
    in_rows = template in ("confusion", "interval", "choice")
    facets = [name for name in ("measure", "series", "phase") if name in table and (in_rows or name != "series")]
    words = []
    for key, part in table.groupby(facets, sort=False) if facets else [((), table)]:
        if template == "confusion":
            values = "; ".join(f"{row[y]} called {row[x]}: {row['n']}" for _, row in part.iterrows() if row["n"])
        elif in_rows:
            values = "; ".join(f"{row[y]} {row[x]:.2f}" for _, row in part.iterrows())
        else:
            values = _ends(part, x, y)
        words.append(": ".join([*(str(word).replace("_", " ") for word in key), values]))
    drawn = _drawn(disk.root, path, disk.state(path, "dvc.yaml", "monitor/dvc.yaml", f".dvc/plots/{template}.json"))
    return [Picture(drawn, f"{title}. {' '.join([*reading, *words])}", title)]


@lru_cache(maxsize=64)
def _drawn(root: Path, path: str, state: tuple[Any, ...]) -> str:
    """A diagram as SVG, its title left to the page; state: what it was made from, to draw it anew when that changes."""
    specification = diagrams.specification(path, root=root)
    return diagrams.svg({key: value for key, value in specification.items() if key != "title"})


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
    rows = []
    for evidence in questions(disk):
        shown = _git(disk, "show", f"{commit.strip()}:metrics/{evidence.stage}.json")
        try:
            there = json.loads(shown) if shown else None
        except ValueError:
            there = None
        for (name, here), other in zip(
            evidence.figures.items(), _figures(disk, evidence.stage, there).values(), strict=True
        ):
            change = f"{here - other:+.3g}" if _is_number(here) and _is_number(other) else ""
            rows.append((evidence.stage, name, _shown(here), _shown(other), change))
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
