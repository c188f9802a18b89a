"""Each question, its answer in one sentence from the metrics, its plots, and what it does not show."""

import json
import subprocess
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from demo.disk import NOT_MEASURED, Disk, figure
from demo.page import Picture
from tmv_lib.deferral import guarantee, verdict
from tmv_lib.explanations import map_verdict
from tmv_lib.pipeline import diagrams

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


class Said:
    """Figures of one metrics file in words; what is not there is said to be not measured."""

    def __init__(self, found: dict[str, Any]) -> None:
        self.found = found

    def number(self, *keys: str, form: str = ".2f") -> str:
        """A figure, with its interval where it has one."""
        value, *ends = (figure(self.found, *keys[:-1], f"{keys[-1]}{end}") for end in ("", "_low", "_high"))
        if not _is_number(value):
            return NOT_MEASURED
        if not all(_is_number(end) for end in ends):
            return f"{value:{form}}"
        return f"{value:{form}} ({ends[0]:{form}} to {ends[1]:{form}})"

    def words(self, *keys: str) -> str:
        """A sentence without its full stop."""
        value = figure(self.found, *keys)
        return value.rstrip(".") if isinstance(value, str) else NOT_MEASURED


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _prepare(said: Said, members: list[str]) -> str:
    problems = figure(said.found, "prepare", "problems")
    if not isinstance(problems, dict):
        return f"Problems found in the data: {NOT_MEASURED}."
    found = [
        f"{name.replace('_', ' ')} {next(iter(entry.values()))}"
        for name, entry in problems.items()
        if isinstance(entry, dict) and entry and next(iter(entry.values()))
    ]
    n = said.number("prepare", "splits", "test", "images", form="d")
    return f"Problems found: {', '.join(found) or 'none'}; {n} test images."


def _calibration(said: Said, members: list[str]) -> str:
    parts = []
    for name in members:
        ece = ("calibration", name, "after", "positive_class_ece_uniform")
        parts.append(
            f"{name} is off by {said.number(*ece, 'ece')} on average (chance alone {said.number(*ece, 'noise_floor')})"
        )
    return f"After calibration {'; '.join(parts)}."


def _site(said: Said, members: list[str]) -> str:
    return f"{said.words('site', 'shift', 'words')}."


def _baseline(said: Said, members: list[str]) -> str:
    half = ("baseline", "at_half")
    return (
        f"AUROC {said.number('baseline', 'auroc')}; at even odds sensitivity {said.number(*half, 'sensitivity')},"
        f" specificity {said.number(*half, 'specificity')}."
    )


def _diversity(said: Said, members: list[str]) -> str:
    together = ("diversity", "together")
    both, first, second = (
        said.number(*together, key, form="d") for key in ("double_fault", "only_first_wrong", "only_second_wrong")
    )
    counted = f"Both are wrong in {both} cases, only the first in {first}, only the second in {second}."
    return f"{counted} {said.words('diversity', 'claim')}."


def _uncertainty(said: Said, members: list[str]) -> str:
    parts = []
    for name in members:
        mistakes = ("uncertainty", name, "quadrants", "confident_error")
        parts.append(
            f"{name} makes {said.number(*mistakes, 'n', form='d')} confident mistakes, of which dropout doubts"
            f" {said.number(*mistakes, 'doubted_by_dropout', form='d')}"
        )
    return f"{'; '.join(parts)}."


def _explanations(said: Said, members: list[str]) -> str:
    judged = {name: figure(said.found, "explanations", name, "verdict") for name in members}
    return " ".join(
        f"{name}: {map_verdict.sentence(one) if one else f'{NOT_MEASURED}.'}" for name, one in judged.items()
    )


def _stability(said: Said, members: list[str]) -> str:
    parts = []
    for name in members:
        both = said.number("stability", name, "flipped_and_moved", "answer_flipped_reason_moved", "share")
        claimed = _claimed(said, "stability", name, "errors")
        parts.append(f"{name}: answer and reason both move in a share of {both}. {claimed}")
    return " ".join(parts)


def _claimed(said: Said, *errors: str) -> str:
    """Whether unstable explanations find errors among cases called alike, class by class, and against the margin."""
    claim = figure(said.found, *errors, "claim")
    if not isinstance(claim, dict):
        return f"Whether unstable explanations go with errors: {NOT_MEASURED}."
    entry = (*errors, str(claim.get("measure")))
    within = []
    for label in ("positive", "negative"):
        few = figure(said.found, *entry, f"called_{label}", "error_auroc_absent")
        size = (
            "too few errors to say"
            if isinstance(few, str)
            else f"AUROC {said.number(*entry, f'called_{label}', 'error_auroc')}"
        )
        within.append(f"Do unstable explanations go with errors among cases it calls {label}: {size}.")
    adjusted = said.number(*entry, "adjusted_error_auroc")
    gain = said.number(*entry, "gain_over_margin", form=".3f")
    return (
        f"{' '.join(within)} Adjusted for the answer {adjusted}: {said.words(*errors, 'claim', 'answer')}."
        f" Against the plain margin: {said.words(*errors, 'claim', 'over_margin')} ({gain})."
    )


def _failures(said: Said, members: list[str]) -> str:
    own = ("failures", "ensemble")
    found = figure(said.found, *own)
    if not isinstance(found, dict):
        return f"Kinds of mistakes: {NOT_MEASURED}."
    kinds = [
        f"{name} {entry['n']}" for name, entry in found.items() if isinstance(entry, dict) and "accuracy_gain" in entry
    ]
    return f"{said.number(*own, 'n_errors', form='d')} errors of the ensemble at even odds: {', '.join(kinds)}."


def _ensemble(said: Said, members: list[str]) -> str:
    return " ".join([*verdict.sentences(said.found["verdict"]), *guarantee.sentences(said.found["guarantee"])])


ANSWERS: dict[str, Callable[[Said, list[str]], str]] = {
    "prepare": _prepare,
    "calibration": _calibration,
    "site": _site,
    "baseline": _baseline,
    "diversity": _diversity,
    "uncertainty": _uncertainty,
    "explanations": _explanations,
    "stability": _stability,
    "failures": _failures,
    "ensemble": _ensemble,
}


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
    """The verdict on the policy, in sentences; empty where `ensemble` has not run."""
    found = disk.metrics("ensemble")
    return verdict.sentences(found["verdict"]) if "verdict" in found else []


def questions(disk: Disk) -> list[Evidence]:
    """Every question of `dvc.yaml` that this page can answer, in its order."""
    stages, members = disk.yaml("dvc.yaml").get("stages", {}), disk.members()
    wanted = _figures(members)
    found = []
    for stage, entry in stages.items():
        if stage not in ANSWERS:
            continue
        metrics = disk.metrics(stage)
        answer = (
            ANSWERS[stage](Said(metrics), members)
            if metrics
            else f"{NOT_MEASURED.capitalize()}: run `dvc repro {stage}`."
        )
        numbers = {name: figure(metrics, *keys) for name, keys in wanted[stage].items()}
        found.append(Evidence(stage, entry["desc"], answer, numbers, LIMITS[stage]))
    return found


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
    told = _git(disk, "log", "-20", "--format=%h %s", "--", "metrics")
    return told.splitlines() if told else []


def compared(disk: Disk, revision: str) -> pd.DataFrame | None:
    """Each question's figures here and at another git revision; None where there is no such revision."""
    commit = _git(disk, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if not commit:
        return None
    wanted, rows = _figures(disk.members()), []
    for evidence in questions(disk):
        told = _git(disk, "show", f"{commit.strip()}:metrics/{evidence.stage}.json")
        try:
            there = json.loads(told) if told else {}
        except ValueError:
            there = {}
        for name, value in evidence.figures.items():
            other = figure(there, *wanted[evidence.stage][name])
            both = _is_number(value) and _is_number(other)
            change = f"{value - other:+.3g}" if both else ""
            rows.append((evidence.stage, name, _shown(value), _shown(other), change))
    return pd.DataFrame(rows, columns=["stage", "figure", "here", "there", "change"])


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
