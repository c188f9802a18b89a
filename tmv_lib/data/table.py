"""Images in a list: a CSV with a row an image, or several, its label and whatever else is known about it."""

import glob
import os
import re
from collections.abc import Mapping
from io import StringIO
from pathlib import Path, PurePath
from string import Formatter
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from tmv_lib.data.cases import COLUMNS, SPLITS, Loaded
from tmv_lib.data.images import Channels, How, Progress, conversions, read_squares, told
from tmv_lib.data.lists import is_file, read_list, refuse
from tmv_lib.pipeline.question import CLASS, FINDING, Task

Meaning = Literal["ignore", "positive", "negative"]
Rows = Literal["one", "any", "most", "all"]
MEANS = {"ignore": np.nan, "positive": 1.0, "negative": 0.0}
ALSO_VAL = ("valid", "validate", "validation")
AROUND = " []'\""  # what surrounds a label where the cell holds a list of them
OURS = ("image_id", "width", "height")  # of the list these are names and boxes of its own, ours are read off the files


class Labelling(NamedTuple):
    """Where a list's labels stand and what they mean, as `load_table` says."""

    positive: str | None
    column: str | None
    separator: str | None
    findings: list[str]
    uncertain: Mapping[str, Meaning]
    rows: Rows
    both: bool


def load_table(
    path: str | Path,
    *,
    root: str | Path | None = None,
    size: int,
    how: How,
    positive: str | None,
    join: list[str] | None = None,
    image: str = "{path}",
    label_column: str | None = "label",
    label_separator: str | None = None,
    findings: list[str] | None = None,
    uncertain: Mapping[str, Meaning] | None = None,
    rows: Rows = "one",
    reader_column: str | None = None,
    patient_column: str = "patient_id",
    patient: str | None = None,
    split_column: str = "split",
    both: bool = True,
    task: Task = "binary",
    channels: Channels = "grey",
    progress: Progress = iter,
) -> Loaded:
    """Read every image that the CSV lists: PNG, JPEG or DICOM.

    root: the folder that the image paths start from; None: the folder of the CSV.
    join: further CSVs beside it, each with one row for every value of the columns that it shares with the list so far.
    image: the path of a row's image, with columns in braces (`{id:.2}` for the first two letters of one); a `*` stands
        for any name of a folder, where that leaves one file.
    positive: the label that is y_true = 1; None: the labels are 0 and 1. Against one other label; against all others
        where a cell holds several labels (label_separator, such as `|`; a list as Python writes it wants `,`) or an
        image has several rows.
    findings: where the task is multilabel, the labels of label_column that are findings; or, where that is None, the
        columns of 0 and 1 that hold one finding each. Where the task is multiclass label_column names the class.
    uncertain: what a label means that is neither, "" being an empty cell: the row is ignored, positive or negative.
        Of findings it is then not labelled; a class can be ignored alone.
    rows: one an image; or several, and y_true = 1 where any, most (more than half) or all of them are positive. With a
        reader_column readers are counted instead, who are positive where any of their rows is. Further columns that
        differ within an image are left out.
    patient: regular expression, searched in the image's path: the named groups become columns, `patient` the patient
        and `split` the split. None: patient_column. That and split_column may be missing under their default names.
        Without patients, a DICOM file's own patient id counts where it has one; any other image is a patient of its
        own. A split may be empty; valid, validate and validation mean val.
    both: whether there must be positives and negatives, or two classes; not in a list that adds to another source.
    The image_id is the path below root. Further columns with a name are kept, but for those that the path is made of;
    DICOM headers add `manufacturer`, `view_position` and `study_date` where the CSV does not have them. Raises
    ValueError for whatever cannot be used, naming column, file and row (the header is row 1); an image that is there
    but cannot be read is left out and listed in `unreadable`, one whose labels are all ignored is left out and counted.
    """
    root = Path(path).parent if root is None else Path(root)
    template = _template(path, image)
    fields = [field for _, field, _ in template if field]
    columns = {"patient_id": patient_column, "split": split_column}
    labelling = Labelling(positive, label_column, label_separator, findings or [], uncertain or {}, rows, both)
    _check_asked(path, task, labelling)
    labels = [label_column] if label_column else labelling.findings
    if clash := sorted(set(labels) & {*fields, reader_column, *columns.values()}):
        raise ValueError(f"{path}: column {clash[0]} is to be a label and something else as well")
    needed = [*fields, *labels, *([reader_column] if reader_column else [])]
    needed += [column for ours, column in columns.items() if column != ours]
    text = _joined(path, join or [], {*needed, *columns.values()})
    further = _further(path, text, needed, [*fields, *labels, reader_column, *columns.values()], task)

    listed = text[[column for column in columns.values() if column in text]].rename(
        columns={column: ours for ours, column in columns.items()}
    )
    listed["image_id"] = _paths(path, text, template, root)
    if patient:
        listed = listed.assign(**_searched(path, listed["image_id"].rename("image"), patient))
    _check_rows(path, listed, columns)
    meant = _labels(path, text, task, labelling)
    listed = listed.join([meant, _typed(text)[[name for name in further if name not in listed]]])
    united = _united(path, listed, text[reader_column] if reader_column else None, rows, list(meant))
    ignored = listed["image_id"].nunique() - len(united)
    names = list(united["image_id"])
    found, images = read_squares(root, names, size=size, how=how, channels=channels, progress=progress)
    read = [
        {"patient_id": case["image_id"], "split": "", **_header(file), **case, "source": "table"}
        for file, case in zip(found, united.to_dict("records"), strict=True)
        if "problem" not in file
    ]
    cases = pd.DataFrame(read)
    first = [*COLUMNS[:3], *meant, COLUMNS[-1], "width", "height"]
    cases = cases[[*first, *cases.columns.difference(first, sort=False)]]
    tables = told(names, found, "problem"), told(names, found, "remark")
    return Loaded(cases, images, *tables, ignored=ignored, converted=conversions(found))


def _check_asked(path: str | Path, task: Task, asked: Labelling) -> None:
    """Refuse options that do not go with the task."""
    wrong = ""
    if task != "binary" and asked.positive is not None:
        wrong = f"positive must be null (question.positive says it), found {asked.positive!r}"
    elif task == "multilabel" and (not asked.findings or len(set(asked.findings)) < len(asked.findings)):
        wrong = f"findings must name each finding once, found {asked.findings}"
    elif task != "multilabel" and (asked.findings or asked.column is None):
        wrong = f"findings must be null and label_column a column, found {asked.findings} and {asked.column!r}"
    elif task == "multiclass" and (
        asked.rows != "one" or asked.separator is not None or set(asked.uncertain.values()) - {"ignore"}
    ):
        options = f"rows: {asked.rows}, label_separator: {asked.separator!r}, uncertain: {dict(asked.uncertain)}"
        wrong = f"an image has one row and one class, or is ignored, found {options}"
    elif task == "multilabel" and asked.column is None and asked.separator is not None:
        wrong = f"label_separator must be null where findings are columns, found {asked.separator!r}"
    if wrong:
        raise ValueError(f"{path}: with task: {task} {wrong}")


def _template(path: str | Path, image: str) -> list[tuple[str, str | None, str]]:
    """Text, column and format of every part of the template."""
    try:
        parts = [(literal, field, spec or "") for literal, field, spec, _ in Formatter().parse(image)]
        [format("", spec) for _, _, spec in parts]
    except ValueError as error:
        raise ValueError(f"{path}: the image path {image!r} cannot be read ({error})") from error
    if not any(field for _, field, _ in parts):
        raise ValueError(f"{path}: the image path {image!r} names no column, as {{path}} would")
    return parts


def _header(file: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in file.items() if name not in ("remark", "converted")}


def _joined(path: str | Path, join: list[str], known: set[str]) -> pd.DataFrame:
    """The list as text, with the further ones joined to it; "" where these have no such row."""
    text = read_list(path, known)
    for name in join:
        other = Path(path).parent / name
        more = read_list(other, known)
        shared = [column for column in text if column in more]
        if not shared:
            raise ValueError(f"{other}: shares no column with {path}, which has {', '.join(text)}")
        repeated = more.duplicated(shared)
        if repeated.any():
            row = int(repeated.idxmax())
            said = ", ".join(f"{column} {more.loc[row, column]!r}" for column in shared)
            raise ValueError(f"{other}: row {row}: {said} stands there for the second time")
        text = text.merge(more, "left", shared).fillna("").set_axis(text.index)
    return text


def _typed(text: pd.DataFrame) -> pd.DataFrame:
    """The same with numbers and missing values, as pandas reads them."""
    return pd.read_csv(StringIO(text.to_csv(index=False)), low_memory=False).set_axis(text.index)


def _further(path: str | Path, table: pd.DataFrame, needed: list[str], used: list[str | None], task: Task) -> list[str]:
    """The columns that nothing here needs to know; ValueError for one that is needed and missing, or bears our name."""
    missing = [column for column in needed if column not in table]
    if missing:
        there = ", ".join(table.columns)
        raise ValueError(f"{path}: column {missing[0]} is missing; needed are {', '.join(needed)}, there are {there}")
    further = [column for column in table if column not in (*used, *OURS)]
    ours = {CLASS} if task == "multiclass" else {name for name in further if name.startswith(FINDING)}
    clash = sorted({*COLUMNS, *(ours if task != "binary" else ())} & set(further))
    if clash:
        raise ValueError(f"{path}: column {clash[0]} bears a name that the case table uses; rename it")
    return further


def _paths(path: str | Path, text: pd.DataFrame, template: list[tuple[str, str | None, str]], root: Path) -> pd.Series:
    """Each row's image, a file below root, in one spelling."""
    fields = sorted({field for _, field, _ in template if field})
    for field in fields:
        refuse(path, text[field] == "", text[field], "is empty")

    def filled(case: dict[str, str]) -> str:
        name = "".join(literal + (format(case[field], spec) if field else "") for literal, field, spec in template)
        return PurePath(os.path.normpath(name)).as_posix()

    rows = text[fields].to_dict("records")
    names = pd.Series([filled(case) for case in rows], text.index, name="image")
    if any("*" in literal for literal, _, _ in template):
        patterns = [filled({field: glob.escape(value) for field, value in case.items()}) for case in rows]
        found = pd.Series([glob.glob(pattern, root_dir=root) for pattern in patterns], text.index)
        refuse(path, found.str.len() > 1, names, f"is several files in {root}")
        names = found.str[0].fillna(names).rename("image")
    refuse(path, names.map(lambda name: name.startswith(("/", "../"))), names, f"lies outside {root}")
    there = {name: is_file(root / name) for name in names.unique()}
    refuse(path, ~names.map(there), names, f"is no file in {root}")
    return names


def _searched(path: str | Path, names: pd.Series, pattern: str) -> dict[str, pd.Series]:
    """The named groups of the pattern in the image paths, `patient` as `patient_id`."""
    try:
        known = re.compile(pattern).groupindex
    except re.error as error:
        raise ValueError(f"{path}: the patient pattern {pattern!r} cannot be read ({error})") from error
    if "patient" not in known:
        raise ValueError(f"{path}: the patient pattern {pattern!r} has no group (?P<patient>...), the patient's name")
    groups = names.str.extract(pattern)
    refuse(path, groups["patient"].isna(), names, f"does not hold the patient pattern {pattern!r}")
    named = groups[list(known)].rename(columns={"patient": "patient_id"})
    clash = sorted(set(named) & {*OURS, "y_true", "source"})
    if clash:
        raise ValueError(f"{path}: group {clash[0]} of the patient pattern bears a name that the case table uses")
    return {str(name): named[name] for name in named}


def _check_rows(path: str | Path, listed: pd.DataFrame, columns: dict[str, str]) -> None:
    """Refuse a patient without a name and an unknown split."""
    if "patient_id" in listed:
        refuse(path, listed["patient_id"] == "", listed["patient_id"].rename(columns["patient_id"]), "is empty")
    if "split" in listed:
        listed["split"] = listed["split"].fillna("").replace(dict.fromkeys(ALSO_VAL, "val"))
        unknown = ~listed["split"].isin([*SPLITS, ""])
        refuse(path, unknown, listed["split"].rename(columns["split"]), f"is none of {', '.join(SPLITS)}")


def _written(label: str) -> str:
    """A label in one spelling: 1.0 is 1. Any other stays the text that it is: 01, 1E3 and 1119302008 are codes."""
    return re.sub(r"^(-?\d+)\.0*$", r"\1", label)


def _labels(path: str | Path, text: pd.DataFrame, task: Task, labelling: Labelling) -> pd.DataFrame:
    """The label columns of each row: `y_true`, `class`, or one per finding; missing where it is to be ignored."""
    _, column, separator, findings, uncertain, rows, both = labelling
    if task == "multiclass":
        return pd.DataFrame({CLASS: _classes(path, text[str(column)], uncertain, both=both)})
    if task == "binary":
        several = separator is not None or rows != "one"
        return pd.DataFrame({"y_true": _answers(path, text[str(column)], labelling, several)})
    columns = {}
    for finding in findings:
        cells, label = (text[finding], None) if column is None else (text[column], finding)
        try:
            answers = _answers(path, cells, labelling._replace(positive=label), several=True)
        except ValueError as error:
            raise ValueError(f"finding {finding}: {error}") from error
        columns[f"{FINDING}{finding}"] = answers
    return pd.DataFrame(columns)


def _classes(path: str | Path, cells: pd.Series, uncertain: Mapping[str, Meaning], *, both: bool) -> pd.Series:
    """The class of each row, missing where it is to be ignored."""
    ignored = {_written(label) for label in uncertain}
    classes = cells.map(_written)
    refuse(path, (classes == "") & ~classes.isin(ignored), cells, "is empty")
    classes = classes.mask(classes.isin(ignored))
    found = sorted(classes.dropna().unique())
    if len({name.casefold() for name in found}) < len(found):
        raise ValueError(f"{path}: two labels differ in their case alone: {', '.join(found)}")
    if both and len(found) < 2:
        raise ValueError(f"{path}: one class only, every label is {cells.iloc[0]!r}")
    return classes


def _answers(path: str | Path, cells: pd.Series, labelling: Labelling, several: bool) -> pd.Series:
    """What each row says: 1, 0, or missing where it is to be ignored."""
    positive, separator, uncertain = labelling.positive, labelling.separator, labelling.uncertain
    means = {_written(label): MEANS[meaning] for label, meaning in uncertain.items()}
    parts = cells.map(lambda cell: [part.strip(AROUND) for part in cell.split(separator)] if separator else [cell])
    labels = parts.map(lambda cell: [_written(part) for part in cell])
    if "" not in means:
        refuse(path, labels.map(lambda cell: "" in cell), cells, "is empty")
    found = sorted({label for cell in labels for label in cell} - set(means))
    if not found:
        raise ValueError(f"{path}: nobody labelled it: no cell says yes or no")
    wanted = "1" if positive is None else _written(positive)
    spelled = {label.casefold(): label for label in found}
    if odd := [label for label in found if spelled[label.casefold()] != label]:
        raise ValueError(f"{path}: labels {odd[0]!r} and {spelled[odd[0].casefold()]!r} differ in their case alone")
    if positive is None and not set(found) <= {"0", "1"}:
        raise ValueError(f"{path}: without `positive` the labels must be 0 and 1, found {', '.join(found[:5])}")
    if (labelling.both and wanted not in found) or (len(found) > 2 and not several):
        must = "must hold" if several else "must be two, one of them"
        raise ValueError(f"{path}: the labels {must} {wanted!r}, found {', '.join(found[:5])}")

    def answer(cell: list[str]) -> float:
        return 1.0 if wanted in cell else next((means[label] for label in cell if label in means), 0.0)

    answers = labels.map(answer)
    if labelling.both and len(answers.dropna().unique()) < 2:
        raise ValueError(f"{path}: one class only, every label is {cells.iloc[0]!r}")
    return answers


def _united(
    path: str | Path, listed: pd.DataFrame, reader: pd.Series | None, rows: Rows, labels: list[str]
) -> pd.DataFrame:
    """One row an image, in the order of the list, each label from all of its rows that are not ignored."""
    if rows == "one":
        refuse(path, listed["image_id"].duplicated(), listed["image_id"].rename("image"), "is listed twice")
    told = listed[listed[labels].notna().any(axis=1)]
    by_image = told.drop(columns=labels).groupby("image_id", sort=False)
    differ = by_image.nunique(dropna=False).gt(1)
    for name in differ.columns.intersection(["patient_id", "split"]):
        if differ[name].any():
            raise ValueError(f"{path}: the rows of image {differ[name].idxmax()!r} do not agree on {name}")
    one = told.drop_duplicates("image_id").drop(columns=differ.columns[differ.any()])
    if labels == [CLASS]:
        return one
    who = told.index if reader is None else reader[told.index]
    return one.assign(**{name: one["image_id"].map(_of_rows(told, name, who, rows)) for name in labels})


def _of_rows(told: pd.DataFrame, label: str, who: Any, rows: Rows) -> pd.Series:
    """The label of each image, 0 or 1, from those of its rows that have one, or of its readers."""
    share = told[label].groupby([told["image_id"], who]).max().groupby("image_id").mean().dropna()
    positive = {"one": share > 0, "any": share > 0, "most": share > 0.5, "all": share == 1}[rows]
    return positive.astype(int)
