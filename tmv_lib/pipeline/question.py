"""What the networks are trained to tell apart, and the question, yes or no, that is then put to them.

By `task` a network has one output and tells two classes apart (`binary`); or an output per class, of which a case has
one (`multiclass`); or an output per finding, of which a case has any number, and some not labelled (`multilabel`).
`prepare`, `train` and `reference` know the task alone. Whatever is read after them is read through the question: its
`y_true` in {0, 1}, its one logit, its cases. So another `question.positive` trains nothing again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import logsumexp

from tmv_lib.pipeline.files import AS_WRITTEN, naming, read_csv
from tmv_lib.pipeline.params import Params, read, read_value

Task = Literal["binary", "multiclass", "multilabel"]

CLASS = "class"  # the column of a case's class
FINDING = "y_true_"  # how the column of a finding begins: 1, 0, or empty where it is not labelled
ASKED_SPLITS = ("train", "val", "cal", "test")  # which need both answers; `local` may do without


class Asked(Params):
    """positive: the classes, or the one finding, that the question is about; empty where the task is binary."""

    positive: list[str]


class Question(NamedTuple):
    """The question put to networks of some task.

    names: of the network's outputs, the classes or findings; empty where the task is binary. positive: places of the
    outputs that mean yes.
    """

    task: Task
    names: list[str]
    positive: list[int]

    @property
    def others(self) -> list[int]:
        """Places of the outputs that mean no: the other classes; an output of its own has none."""
        return [k for k in range(len(self.names)) if k not in self.positive] if self.task == "multiclass" else []

    def logit(self, outputs: np.ndarray) -> np.ndarray:
        """The question's logit (n,) from a network's outputs z (n, k), the log odds of yes.

        Of exclusive classes log sum_yes exp(z) - log sum_no exp(z), with softmax the log odds of the positive classes;
        else the output itself.
        """
        if not self.others:
            return outputs[:, self.positive[0]]
        return np.asarray(logsumexp(outputs[:, self.positive], axis=1) - logsumexp(outputs[:, self.others], axis=1))

    def of(self, table: pd.DataFrame) -> pd.DataFrame:
        """As `labelled`. Raises ValueError where a split that needs both answers lacks one."""
        answered = self.labelled(table)
        for split, labels in answered.groupby("split")["y_true"]:
            if self.task != "binary" and split in ASKED_SPLITS and labels.nunique() < 2:
                lacking = "no case with it" if labels.iloc[0] == 0 else "no case without it"
                asked = [self.names[k] for k in self.positive]
                raise ValueError(f"question.positive is {asked}: split {split} has {lacking}")
        return answered

    def labelled(self, table: pd.DataFrame) -> pd.DataFrame:
        """The table with `y_true` in {0, 1} where its labels stood, without the cases that are not labelled for it."""
        if self.task == "binary":
            return table
        columns = label_columns(self.task, table)
        asked = [self.names[k] for k in self.positive]
        classes = self.task == "multiclass"
        y_true = table[CLASS].isin(asked).astype(int) if classes else table[f"{FINDING}{asked[0]}"]
        place = table.columns.get_loc(columns[0])
        answered = table.drop(columns=columns)
        answered.insert(int(place), "y_true", y_true)
        return answered[answered["y_true"].notna()].astype({"y_true": int}).reset_index(drop=True)


BINARY = Question("binary", [], [0])


def read_task(path: str | Path) -> Task:
    """What the networks tell apart, from `params.yaml`."""
    task: Task = read_value(path, "task", Task)
    return task


def label_columns(task: Task, table: pd.DataFrame) -> list[str]:
    """The columns of a case table that hold labels."""
    if task == "multilabel":
        return [name for name in table if str(name).startswith(FINDING)]
    return [{"binary": "y_true", "multiclass": CLASS}[task]]


def output_names(task: Task, cases: pd.DataFrame) -> list[str]:
    """Classes in alphabetical order, or findings in that of their columns; none where the task is binary."""
    if task == "multiclass":
        return sorted(cases[CLASS].unique())
    return [name.removeprefix(FINDING) for name in label_columns(task, cases)] if task == "multilabel" else []


def output_columns(names: Sequence[str]) -> list[str]:
    """What the columns of a network's outputs are called."""
    return [f"logit_{name}" for name in names] or ["logit"]


def with_outputs(cases: pd.DataFrame, outputs: np.ndarray, names: Sequence[str]) -> pd.DataFrame:
    """The cases with a network's outputs, (n,) or (n, k), as columns."""
    columns = output_columns(names)
    return cases.join(pd.DataFrame(outputs.reshape(len(cases), len(columns)), cases.index, columns))


def targets(task: Task, cases: pd.DataFrame) -> np.ndarray:
    """What a network is trained on: y_true (n,), the class's number (n,), or findings (n, k), NaN: not labelled."""
    if task == "multiclass":
        return np.searchsorted(output_names(task, cases), cases[CLASS])
    if task == "multilabel":
        return cases[label_columns(task, cases)].to_numpy(dtype=float)
    return cases["y_true"].to_numpy()


def read_labels(path: str | Path, task: Task) -> pd.DataFrame:
    """`image_id`, `patient_id`, `split` and the labels of a case table; findings may be empty."""
    spine = ["image_id", "patient_id", "split"]
    if task != "multilabel":
        return read_csv(path, [*spine, *label_columns(task, pd.DataFrame())])
    read_csv(path, spine)
    table = pd.read_csv(path, **AS_WRITTEN)
    if not (findings := label_columns(task, table)):
        raise ValueError(f"{path}: no column {FINDING}<finding>; the columns are {', '.join(table.columns)}")
    return table[[*spine, *findings]]


def read_question(path: str | Path, cases: pd.DataFrame) -> Question:
    """The question that `params.yaml` puts to networks trained on these cases.

    Raises ValueError where what it names is nothing, everything, or no class or finding of the cases.
    """
    task, asked = read_task(path), read(path, "question", Asked).positive
    names = output_names(task, cases)
    with naming(f"{path}: question.positive is {asked}"):
        if task == "binary":
            if asked:
                raise ValueError("with task: binary it must be [], the source says what is positive")
            return BINARY
        kind = {"multiclass": "classes", "multilabel": "findings"}[task]
        there = f"the {kind} are {', '.join(names)}"
        if not asked:
            raise ValueError(f"with task: {task} it must name what is asked about; {there}")
        if unknown := [name for name in asked if name not in names]:
            raise ValueError(f"{unknown[0]} is none of them; {there}")
        if len(set(asked)) < len(asked):
            raise ValueError("it names one twice")
        if task == "multilabel" and len(asked) > 1:
            raise ValueError("a question is about one finding")
        if task == "multiclass" and len(asked) == len(names):
            raise ValueError(f"these are all classes; {there}")
    return Question(task, names, [names.index(name) for name in asked])
