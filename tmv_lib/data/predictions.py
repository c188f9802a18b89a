"""Predictions as people have them, turned into binary questions: one truth in {0, 1} and one logit per image.

A wide table has a column per class or finding, `prob_<name>` or `logit_<name>`. Where `y_true` holds the class of each
image the classes exclude one another; where each finding has its own `y_true_<name>`, 0, 1 or empty (nobody labelled
it, which is no negative), they do not.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import logit, logsumexp

from tmv_lib.statistics.arrays import FloatArray

CLIPPED = 1e-7  # probabilities nearer to 0 or 1 than this are set to it: their logits are finite
LEAST_TOTAL, MOST_TOTAL = 0.99, 1.01  # of the probabilities of exclusive classes
FEWEST_CASES = 200  # of val, cal and test, where one test set is cut
PREFIXES = ("prob_", "logit_")


class Question(NamedTuple):
    """One finding or set of classes against all else: rows with `y_true` and `logit`, and what happened to the rest.

    not_labelled: images that nobody labelled for it. clipped: probabilities that were 0 or 1, or nearly.
    """

    table: pd.DataFrame
    not_labelled: int
    clipped: int


def outputs(table: pd.DataFrame) -> dict[str, str]:
    """Column of each class or finding by its name; empty for a table of one logit or probability.

    Raises ValueError where probabilities and logits are mixed.
    """
    found = {prefix: [str(name) for name in table if str(name).startswith(prefix)] for prefix in PREFIXES}
    if all(found.values()):
        raise ValueError(
            f"columns {found['prob_'][0]} and {found['logit_'][0]}: one file holds probabilities or logits"
        )
    return {name.removeprefix(prefix): name for prefix, names in found.items() for name in names}


def binary(table: pd.DataFrame) -> Question:
    """The question of a table with one column `logit`, or `prob` in its place."""
    if "prob" not in table:
        return Question(table, 0, 0)
    p, clipped = _clipped(table, "prob")
    return Question(table.drop(columns="prob").assign(logit=logit(p)), 0, clipped)


def of_finding(table: pd.DataFrame, finding: str) -> Question:
    """The question of one finding of a wide table. Raises ValueError for a label that is none of 0, 1 and empty."""
    column, label = outputs(table)[finding], table[f"y_true_{finding}"]
    y_true = pd.to_numeric(label, errors="coerce")
    refuse_rows(table, label.notna() & ~y_true.isin([0, 1]), f"y_true_{finding}", "is none of 0, 1 and empty")
    labelled = label.notna().to_numpy()
    if not labelled.any():
        raise ValueError(f"finding {finding}: column y_true_{finding} is empty, nobody labelled it")
    own = table[labelled].assign(y_true=y_true[labelled].astype(int))
    z, clipped = _logits(own, [column])
    return Question(_without_outputs(own).assign(logit=z[:, 0]), int((~labelled).sum()), clipped)


def of_classes(table: pd.DataFrame, positive: Sequence[str]) -> Question:
    """The question whether an image is of one of the `positive` classes, which exclude one another.

    The logit is that of the set: log sum exp of the positive classes' logits less that of the others'. Raises
    ValueError where positive is empty, all classes or names one that is none, and for a row whose class has no column
    or whose probabilities do not sum to 1.
    """
    columns = outputs(table)
    require_known(positive, list(columns))
    if not positive or set(positive) == set(columns):
        raise ValueError(f"positive classes {', '.join(positive) or 'none'}: some of {', '.join(columns)}, not all")
    refuse_rows(table, ~table["y_true"].isin(columns), "y_true", f"is none of the classes {', '.join(columns)}")
    probabilities = next(iter(columns.values())).startswith("prob_")
    if probabilities:
        total = table[list(columns.values())].astype(float).sum(axis=1)
        wrong = ~total.between(LEAST_TOTAL, MOST_TOTAL)
        refuse_rows(table.assign(total=total), wrong, "total", "of the classes' probabilities is not 1")
    z, clipped = _logits(table, list(columns.values()), exclusive=probabilities)
    own = np.isin(list(columns), list(positive))
    odds = logsumexp(z[:, own], axis=1) - logsumexp(z[:, ~own], axis=1)
    y_true = table["y_true"].isin(list(positive)).astype(int)
    return Question(_without_outputs(table).assign(y_true=y_true, logit=odds), 0, clipped)


def cut(table: pd.DataFrame, *, val: float, cal: float, seed: int) -> pd.Series:
    """A split for each image of one site's test set: whole patients by lot, shares `val` and `cal`, the rest `test`.

    Who is drawn depends on the patients' names and the seed alone, so that two models' files are cut alike. Raises
    ValueError where a split would have fewer than 200 images.
    """
    if not (val > 0 and cal > 0 and val + cal < 1):
        raise ValueError(f"shares {val:g} {cal:g}: of val and cal, each above 0 and together below 1")
    patients = np.sort(table["patient_id"].unique())
    ends = np.round(np.cumsum([val, cal]) * len(patients)).astype(int)
    place = np.random.default_rng(seed).permutation(len(patients))
    names = np.array(["val", "cal", "test"])[np.searchsorted(ends, place, side="right")]
    split = table["patient_id"].map(pd.Series(names, index=patients))
    for name in ("val", "cal", "test"):
        if (n := int((split == name).sum())) < FEWEST_CASES:
            raise ValueError(
                f"no column split, and {name} cut from these {len(table)} images would have {n}: at least"
                f" {FEWEST_CASES} are needed to fit, to certify and to evaluate; add images, other shares, or a split"
            )
    return split


def require_known(names: Sequence[str], known: Sequence[str]) -> None:
    """Raise ValueError for a name that is none of the known classes or findings."""
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{unknown[0]!r} is no class or finding; there are {', '.join(known) or 'none'}")


def refuse_rows(table: pd.DataFrame, wrong: pd.Series, column: str, problem: str) -> None:
    """Raise ValueError naming the first wrong row, as counted in its file (the index, the header being row 1)."""
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(f"row {table.index[row] + 2}: {column} '{table[column].iloc[row]}' {problem}")


def _clipped(table: pd.DataFrame, column: str) -> tuple[FloatArray, int]:
    p = pd.to_numeric(table[column], errors="coerce").astype(float)
    refuse_rows(table, ~p.between(0, 1), column, "is no probability in [0, 1]")
    return p.clip(CLIPPED, 1 - CLIPPED).to_numpy(), int((~p.between(CLIPPED, 1 - CLIPPED)).sum())


def _logits(table: pd.DataFrame, columns: list[str], *, exclusive: bool = False) -> tuple[FloatArray, int]:
    """Logits (n, columns), of exclusive classes up to a constant per row, and how many probabilities were clipped."""
    z, clipped = np.empty((len(table), len(columns))), 0
    for k, column in enumerate(columns):
        if column.startswith("prob_"):
            p, more = _clipped(table, column)
            z[:, k], clipped = np.log(p) if exclusive else logit(p), clipped + more
        else:
            value = pd.to_numeric(table[column], errors="coerce").astype(float)
            refuse_rows(table, ~np.isfinite(value), column, "is no finite number")
            z[:, k] = value
    return z, clipped


def _without_outputs(table: pd.DataFrame) -> pd.DataFrame:
    return table[[name for name in table if not str(name).startswith((*PREFIXES, "y_true_"))]]
