"""Files of predictions as people have them, read into binary questions and checked.

A file is a member, named after it. Columns bear our names or those that the command line gives; `patient_id` and
`split` may be missing, and what that costs is said. `predictions` has the arithmetic of a wide table.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pandas as pd

from tmv_lib.data import predictions as wide
from tmv_lib.data.cases import SPLITS
from tmv_lib.data.lists import check_header
from tmv_lib.pipeline.files import AS_WRITTEN, as_headed, naming
from tmv_lib.pipeline.params import check_name

COLUMNS = ["image_id", "patient_id", "split", "y_true", "logit"]
NEEDED = {"val": "it fits calibrator and policy", "cal": "it certifies", "test": "it is what the answers are about"}
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
        table = as_headed(pd.read_csv(path, **AS_WRITTEN | {"dtype": text}))
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
