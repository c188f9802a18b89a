"""When should one use a model of which only the predictions are known?

Run by `make evaluate PREDICTIONS="a.csv b.csv" OUT=<folder>` in a project, which need not have run. Each CSV is a
member, named after its file, a row an image: `image_id`, `y_true`, and `logit` or `prob`; or wide, with `logit_<name>`
or `prob_<name>` of every class (`y_true` names the class) or finding (`y_true_<name>`, empty where not labelled).
`patient_id` and `split` may be left out; further columns of the first file are subgroups. One question is answered in
OUT, a folder with metrics/, plots/ and the report, by the stages that need no network; of several findings or
classes OUT has a row each in findings.csv, .html and .md, and a folder each. By the knobs of params.yaml and the words
of card.yaml, or of those that come with the package where the folder has none. Needs no images, no GPU and no torch.
"""

import argparse
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import chdir
from hashlib import sha256
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml
from tqdm import tqdm

from tmv_lib.card import findings
from tmv_lib.data import predictions as wide
from tmv_lib.data.cases import SPLITS
from tmv_lib.data.lists import check_header
from tmv_lib.pipeline.files import AS_WRITTEN, naming, write_csv
from tmv_lib.pipeline.metrics import write_metrics
from tmv_lib.pipeline.params import check_name, read_yaml
from tmv_lib.pipeline.record import Figures, read_metrics
from tmv_lib.pipeline.stage import own_or_default, run
from tmv_lib.report.report import Origin, write_report
from tmv_lib.statistics.resampling import WHOLE

SOURCE = "predictions"  # what cases.csv says of where they come from
COLUMNS = ["image_id", "patient_id", "split", "y_true", "logit"]
NEEDED = {"val": "it fits calibrator and policy", "cal": "it certifies", "test": "it is what the answers are about"}
STAGES = ("calibration", "site", "baseline", "diversity", "uncertainty", "ensemble")
OF_A_FINDING = ("calibration", "site", "uncertainty", "ensemble")
# What the page does not show, and is not worth its time for each of many findings: learning curve, other prevalences.
LEFT_OUT: dict[str, dict[str, Any]] = {"site": {"draws": 20}, "calibration": {"prevalences": []}}
PROCESSES = 4  # at most, each of some hundred MB
NO_PATIENTS = (
    "No column patient_id: each image counts as a patient of its own, and intervals are too narrow if it is not."
)
CUT = (
    "No column split: one site's test set was cut by lot into val, cal and test. What is said of the site compares one"
    " place with itself; nothing is known of another."
)


class Asked(NamedTuple):
    """What the command line asks.

    columns: their name of a column, or of the beginning of several (`prob_`), by ours. positive: the classes, or the
    finding, that the question is about; none: each in turn. primary: findings named beforehand. shares: of val and
    cal, where the file has no splits; seed: of that cut.
    """

    columns: Mapping[str, str] = MappingProxyType({})
    positive: tuple[str, ...] = ()
    primary: tuple[str, ...] = ()
    shares: tuple[float, float] = (0.2, 0.2)
    seed: int = 0


ALL = Asked()


class Questions(NamedTuple):
    """Members by name of each question, and what limits the answers, in words."""

    members: dict[str, dict[str, pd.DataFrame]]
    remarks: list[str]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("predictions", type=Path, nargs="+", help="a CSV a member")
    options.add_argument("--out", type=Path, required=True, help="the folder to make")
    options.add_argument(
        "--column", action="append", default=[], metavar="OURS=THEIRS", help="patient_id=PatientID, say"
    )
    options.add_argument(
        "--positive", nargs="+", default=[], help="the positive classes, or the one finding, to ask of"
    )
    options.add_argument("--primary", nargs="+", default=[], help="findings named beforehand")
    options.add_argument(
        "--shares", nargs=2, type=float, default=(0.2, 0.2), help="of val and cal where there is no split"
    )
    options.add_argument("--seed", type=int, default=0, help="of that cut")
    given = options.parse_args()
    pairs = [pair.partition("=") for pair in given.column]
    if wrong := ["".join(pair) for pair in pairs if not (pair[0] and pair[2])]:
        raise ValueError(f"--column {wrong[0]}: OURS=THEIRS is asked for, image_id=Name, say")
    asked = Asked(
        {ours: theirs for ours, _, theirs in pairs},
        tuple(given.positive),
        tuple(given.primary),
        tuple(given.shares),
        given.seed,
    )
    program = sys.argv[0] if sys.argv[0].startswith("tmv ") else "python -m commands.evaluate"
    for remark in evaluate(given.predictions, given.out, asked, command=f"{program} {shlex.join(sys.argv[1:])}"):
        print(remark, file=sys.stderr)
    page = next(page for page in ("findings.html", "report.html") if (given.out / page).exists())
    print(f"Open {given.out / page}")


def evaluate(
    predictions: list[Path], out: Path, asked: Asked = ALL, *, command: str = "commands.evaluate.evaluate(...)"
) -> list[str]:
    """Answer the questions in `out`, which is there when all are answered, or not at all; what limits the answers.

    command: what the report says that made it.
    """
    if out.exists():
        raise ValueError(f"{out}: is there already; name another folder, or remove this one")
    questions = read_questions(predictions, asked)
    origin = Origin(command, {path.name: sha256(path.read_bytes()).hexdigest() for path in predictions})
    part = out.with_name(f".{out.name}.{os.getpid()}.part")  # of this run alone
    part.mkdir(parents=True)
    try:
        if len(questions.members) == 1:
            (members,) = questions.members.values()
            answer(part, members, [stage for stage in STAGES if stage != "diversity" or len(members) > 1])
            report(part, members, ", ".join(members), questions.remarks, origin)
        else:
            answer_each(part, questions, asked, origin)
        if questions.remarks:
            (part / "remarks.txt").write_text("\n".join(questions.remarks) + "\n", encoding="utf-8")
        os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return questions.remarks


def answer(folder: Path, members: dict[str, pd.DataFrame], stages: Sequence[str], **knobs: dict[str, Any]) -> None:
    """Put the questions of these stages to the members, in a folder laid out for them with these knobs by section."""
    lay_out(folder, members, **knobs)
    with chdir(folder):
        bar = tqdm(stages)
        for stage in bar:
            bar.set_description(stage)
            import_module(f"stages.{stage}").main()


def report(
    folder: Path, members: dict[str, pd.DataFrame], subject: str, remarks: Sequence[str], origin: Origin
) -> None:
    """Write the report on what was answered in `folder`; a stage's question is the first line of its docstring."""
    first, *others = members
    said = {"baseline": f"How well does {first} read unseen images?"}
    said |= {"diversity": f"Does {others[0]} err on different images?"} if others else {}
    of_stages = {stage: str(import_module(f"stages.{stage}").__doc__).splitlines()[0] for stage in STAGES}
    known = dict.fromkeys(members)  # by their predictions alone
    write_report(folder, known, subject=subject, questions=of_stages | said, remarks=remarks, origin=origin)


def answer_each(folder: Path, questions: Questions, asked: Asked, origin: Origin) -> None:
    """A row per finding, the questions put to each in a process of its own, of which the metrics and plots are kept."""
    rows, waiting = [], {}
    with ProcessPoolExecutor(min(PROCESSES, os.cpu_count() or 1), mp_context=get_context("spawn")) as processes:
        for name, members in questions.members.items():
            role = findings.PRIMARY if name in asked.primary else findings.EXPLORATORY
            cases = next(iter(members.values()))
            if reason := findings.too_few(cases):
                rows.append((name, findings.absent_row(name, role, cases, reason)))
            else:
                told = (questions.remarks, origin)
                waiting[name] = processes.submit(row_of, folder / slug(name), name, role, members, *told)
        for name, row in tqdm(waiting.items(), desc="findings"):
            try:
                rows.append((name, row.result()))
            except ValueError as error:
                processes.shutdown(cancel_futures=True)
                raise ValueError(f"finding {name}: {error}") from None
    order = list(questions.members)
    ordered = [row for _, row in sorted(rows, key=lambda pair: order.index(pair[0]))]
    title = ", ".join(next(iter(questions.members.values())))
    reports = {name: f"{slug(name)}/report.html" for name in waiting}
    findings.write_findings(folder, ordered, title=title, remarks=questions.remarks, reports=reports)


def row_of(
    folder: Path, name: str, role: str, members: dict[str, pd.DataFrame], remarks: Sequence[str], origin: Origin
) -> dict[str, Any]:
    """The row of one finding, whose report, metrics and plots stay in `folder`."""
    folder.mkdir(parents=True)
    answer(folder, members, OF_A_FINDING, **LEFT_OUT)
    metrics: dict[str, Figures] = {}
    for stage in ("calibration", "site", "ensemble"):
        found = read_metrics(stage, root=folder)
        assert found is not None  # the stage has just written it
        metrics[stage] = found
    report(folder, members, f"{name}, {', '.join(members)}", remarks, origin)
    shutil.rmtree(folder / "data")
    return findings.row(name, role, next(iter(members)), metrics)


def slug(name: str) -> str:
    """A finding's name as that of a folder."""
    return re.sub(r"[^a-z0-9]+", "_", name.casefold()).strip("_") or "finding"


def read_predictions(paths: list[Path]) -> dict[str, pd.DataFrame]:
    """The members of one binary question by name, rows in the order of the first; errors as `read_questions`."""
    (members,) = read_questions(paths, ALL).members.values()
    return members


def read_questions(paths: list[Path], asked: Asked) -> Questions:
    """Every question that these files answer. Raises ValueError naming file, row or column, and what is wrong."""
    questions: dict[str, dict[str, pd.DataFrame]] = {}
    remarks: dict[str, None] = {}
    for path in paths:
        check_name(path.stem.removesuffix(".csv"), where=f"{path}: the file's name, {path.stem}, names the member")
        member = path.stem.removesuffix(".csv")
        if any(member in members for members in questions.values()):
            raise ValueError(f"{path}: two files are named {member}; a file's name names the member")
        with naming(path):
            of_file, said = questions_of(path, asked)
        if questions and set(of_file) != set(questions):
            raise ValueError(f"{path}: asks of {', '.join(of_file)}, {paths[0]} of {', '.join(questions)}")
        remarks |= dict.fromkeys(said if len(paths) == 1 else (f"{member}: {remark}" for remark in said))
        for name, table in of_file.items():
            members = questions.setdefault(name, {})
            members[member] = alike(path, table, paths[0], next(iter(members.values()), table))
    if twice := {slug(name) for name in questions if [*map(slug, questions)].count(slug(name)) > 1}:
        raise ValueError(f"{paths[0]}: two findings would share the folder {min(twice)}; rename one")
    return Questions(questions, list(remarks))


def alike(path: Path, table: pd.DataFrame, first_path: Path, first: pd.DataFrame) -> pd.DataFrame:
    """The table in the row order of the first. Raises ValueError where both say different things of an image."""
    if table is first:
        return table
    known, own = first.set_index("image_id"), table.set_index("image_id")
    if odd := sorted(set(known.index) ^ set(own.index)):
        raise ValueError(f"{path}: {len(odd)} images, {odd[0]} among them, stand in it or in {first_path}, not in both")
    own = own.loc[known.index]
    for column in ("patient_id", "split", "y_true"):
        if (differ := own[column] != known[column]).any():
            image = differ.idxmax()
            raise ValueError(
                f"{path}: {column} of image {image} is {own.loc[image, column]}, {first_path} has"
                f" {known.loc[image, column]}"
            )
    return own.reset_index()


def questions_of(path: Path, asked: Asked) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """The tables of one file by question, checked, and what was done to it that limits the answers, in words."""
    table = read_table(path, asked.columns)
    remarks = []
    if "patient_id" not in table:
        table, remarks = table.assign(patient_id=table["image_id"]), [NO_PATIENTS]
    if "split" not in table:
        val, cal = asked.shares
        table = table.assign(split=wide.cut(table, val=val, cal=cal, seed=asked.seed))
        remarks.append(CUT)
    names = list(wide.outputs(table))
    labelled = [str(name).removeprefix("y_true_") for name in table if str(name).startswith("y_true_")]
    for options in (asked.positive, asked.primary):
        wide.require_known(options, names)
    if not names:
        asked_of = {path.stem: wide.binary(table)}
    elif labelled:
        if lone := sorted(set(names) ^ set(labelled)):
            raise ValueError(
                f"finding {lone[0]}: an output prob_ or logit_ and a label y_true_ are needed, one is missing"
            )
        if len(asked.positive) > 1:
            raise ValueError(f"positive {', '.join(asked.positive)}: findings do not exclude one another, name one")
        asked_of = {name: wide.of_finding(table, name) for name in asked.positive or names}
    elif "y_true" not in table:
        raise ValueError("column y_true is missing, or y_true_<finding> of every finding")
    elif asked.positive:
        asked_of = {" or ".join(asked.positive): wide.of_classes(table, asked.positive)}
    else:
        asked_of = {name: wide.of_classes(table, [name]) for name in names}
    many = len(asked_of) > 1
    for what, counts in (
        ("Images that are not labelled, and left out", {name: one.not_labelled for name, one in asked_of.items()}),
        (
            "Probabilities nearer to 0 or 1 than 1e-7, and set to it",
            {name: one.clipped for name, one in asked_of.items()},
        ),
    ):
        if told := [f"{name} {count:,}" if many else f"{count:,}" for name, count in counts.items() if count]:
            remarks.append(f"{what}: {', '.join(told)}.")
    checked = {name: read_member(one.table, one_class=many) for name, one in asked_of.items()}
    return checked if names else {"": next(iter(checked.values()))}, remarks


def read_table(path: Path, columns: Mapping[str, str]) -> pd.DataFrame:
    """The CSV with our names of its columns. Raises ValueError for one that is missing, empty, or named twice."""
    renamed = set(columns.values())
    check_header(path, [name for name in (*COLUMNS, "prob") if name not in columns])
    try:
        text = {columns.get(name, name): str for name in ("image_id", "patient_id", "split", "y_true")}
        table = pd.read_csv(path, **AS_WRITTEN | {"dtype": text})
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable CSV ({error})") from error
    table = table.loc[:, ~table.columns.str.startswith("Unnamed: ")]  # the index of a saved table
    for ours, theirs in columns.items():
        found = [name for name in table if name == theirs or (ours.endswith("_") and name.startswith(theirs))]
        if not found:
            raise ValueError(f"--column {ours}={theirs}: no such column; the columns are {', '.join(table.columns)}")
        table = table.rename(columns={name: ours + name.removeprefix(theirs) for name in found})
    if table.columns.has_duplicates:
        twice = table.columns[table.columns.duplicated()][0]
        raise ValueError(f"--column makes two columns {twice}; {', '.join(sorted(renamed))} were renamed")
    if "logit" in table and "prob" in table:
        raise ValueError("columns logit and prob: one of them is the model's answer, name the other otherwise")
    one = "prob" if "prob" in table else "logit"
    for name in ("image_id",) if wide.outputs(table) else ("image_id", "y_true", one):
        if name not in table:
            raise ValueError(f"column {name} is missing; the columns are {', '.join(table.columns)}")
    for name in ("image_id", "patient_id", "split", "y_true", one):
        if name in table and table[name].isna().any():
            raise ValueError(f"column {name} is empty in row {int(table[name].isna().argmax()) + 2}")
    if table.empty:
        raise ValueError("no row below the header")
    return table


def read_member(table: pd.DataFrame, *, one_class: bool = False) -> pd.DataFrame:
    """The table of one question, checked; rows are counted as in the file, the header being row 1.

    one_class: whether a split may lack a class, as a rare finding's may, which then gets no verdict.
    """
    logit, y_true = pd.to_numeric(table["logit"], errors="coerce"), pd.to_numeric(table["y_true"], errors="coerce")
    for column, wrong, allowed in (
        ("image_id", table["image_id"].duplicated(), "stands there already"),
        ("split", ~table["split"].isin(SPLITS), f"is none of {', '.join(SPLITS)}"),
        ("y_true", ~y_true.isin([0, 1]), "is neither 0 nor 1"),
        ("logit", ~np.isfinite(logit), "is no finite number"),
    ):
        wide.refuse_rows(table, wrong, column, allowed)
    if logit.between(0, 1).all():
        raise ValueError(
            "every value of column logit lies in [0, 1], as probabilities do; name it prob (--column prob=logit), or"
            " prob_<name> in a wide file"
        )
    for split, use in NEEDED.items():
        labels = set(y_true[table["split"] == split])
        if labels != {0, 1} and not one_class:
            found = sorted(map(int, labels))
            raise ValueError(f"split {split} must hold both classes, found y_true {found}: {use}")
    fixed = table[table["split"].isin(["train", *NEEDED])].groupby("patient_id")["split"].nunique()
    if (fixed > 1).any():
        raise ValueError(
            f"{int((fixed > 1).sum())} patients, {fixed.idxmax()} among them, stand in two of the splits train,"
            f" {', '.join(NEEDED)}: what one fits the other must not evaluate"
        )
    return table.assign(logit=logit, y_true=y_true.astype(int)).reset_index(drop=True)


def lay_out(folder: Path, members: dict[str, pd.DataFrame], **knobs: dict[str, Any]) -> None:
    """The files that the stages look for, as `prepare` and `train` would have left them; other knobs by section."""
    params = read_yaml(own_or_default("params.yaml"))
    kept = {name: params[name] | knobs.get(name, {}) for name in (*STAGES, "deferral")}
    told = {"task": "binary", "question": {"positive": []}, "prepare": {"source": SOURCE}}
    told |= {"members": dict.fromkeys(members), **kept}
    (folder / "params.yaml").write_text(yaml.safe_dump(told, sort_keys=False), encoding="utf-8")
    shutil.copy(own_or_default("card.yaml"), folder)
    cases = next(iter(members.values())).drop(columns="logit").assign(source=SOURCE)
    write_csv(folder / "data/prepare/cases.csv", cases)
    splits = {
        split: {"images": len(rows), "positives": int(rows["y_true"].sum()), "patients": rows["patient_id"].nunique()}
        for split, rows in cases.groupby("split")
    }
    torn = cases.groupby("patient_id")["split"].transform("nunique") > 1  # by local alone: others are refused
    problems = {"patient_in_two_splits": {"images": int(torn.sum())}}
    told_of: dict[str, Any] = {"splits": splits, "problems": problems}
    evaluated = cases.loc[cases["split"] != "train", "patient_id"].nunique()
    if evaluated > WHOLE:  # docs/speed.md says of which figures
        told_of["intervals"] = f"of figures of more than {WHOLE} patients, from a bag of little bootstraps"
    write_metrics(folder / "metrics/prepare.json", {"prepare": told_of})
    for name, table in members.items():
        write_csv(folder / f"data/train/{name}/predictions.csv", table[COLUMNS], digits=9)


if __name__ == "__main__":
    run(main)
