"""Which subgroups a case table names, and how much more often one is misread than the rest at the same class mix."""

import re
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import bdtr, ndtr, ndtri

from tmv_lib.statistics.arrays import FloatArray
from tmv_lib.statistics.estimate import Estimate
from tmv_lib.statistics.tests import holm_distinct, wilson_interval

BoolArray = NDArray[np.bool_]

NO_SUBGROUP = ("image_id", "patient_id", "split", "source", "y_true")
# What only the phantom's maker knows.
PLANTED = ("cause", "y_clean", "posterior", "amplitude", "clear_finding", "clear_amplitude")
IDENTIFIER = re.compile(r"^unnamed: \d+$|(^|[ _])(id|uid|index|seed)$", re.IGNORECASE)
MOST_SUBGROUPS = 20  # different words in a column
MOST_LEVELS = 10  # different numbers in a column; with more it is cut into thirds
FEWEST = 20  # patients of a class, inside and outside a subgroup, that a gap in this class needs
POWER = float(ndtri(0.975) + ndtri(0.8))  # standard errors that a two-sided test at 5 % finds in 80 of 100 samples


class Subgroup(NamedTuple):
    """A subgroup, its cases (n,), and whether the truth defines it, so that nobody can know it beforehand."""

    name: str
    inside: BoolArray
    defined_by_truth: bool


def subgroup_columns(cases: pd.DataFrame) -> list[str]:
    """The columns that can name subgroups: words or numbers that differ, and are no identifiers.

    An identifier has an identifier's name (`Unnamed: 0`, `..._id`, `index`, `seed`), or is a whole number that (nearly)
    every patient has for himself. Of words there may be two to twenty.
    """
    strangers = {*NO_SUBGROUP, *(PLANTED if set(cases.get("source", ())) == {"phantom"} else ())}
    patients = cases["patient_id"].nunique() if "patient_id" in cases else len(cases)
    return [str(name) for name in cases if name not in strangers and _names_groups(cases[name], str(name), patients)]


def _names_groups(column: pd.Series, name: str, patients: int) -> bool:
    distinct = column.nunique()
    if distinct < 2 or IDENTIFIER.search(name):
        return False
    if not pd.api.types.is_numeric_dtype(column):
        return distinct <= MOST_SUBGROUPS
    whole = bool((column.dropna() % 1 == 0).all())
    return not (whole and distinct > MOST_LEVELS and distinct >= 0.9 * patients)


def find(columns: pd.DataFrame, y_true: FloatArray) -> list[Subgroup]:
    """The subgroups that columns name, and those of every pair of levels of the two most populated columns.

    columns: what `subgroup_columns` chose, (n, columns); y_true (n,) in {0, 1}. A number with up to ten values makes
    a subgroup of each, with more a subgroup of each third, named by its range. The most populated columns have a value
    for the most cases, then the fewest levels; one that the truth defines is not among them.

    A column is defined by the truth where its values tell the class: where naming for each value the commoner class
    leaves at most a fifth of the mistakes of naming the commoner class for all (Goodman & Kruskal 1954, lambda of
    0.8; a wrong label may break the rule). So is a single value under which a class has at most a tenth of its share of
    all cases, where chance would do that less than once in a thousand.
    """
    y = np.asarray(y_true, dtype=float)
    words = pd.DataFrame({name: _levels(columns[name]) for name in columns}, index=columns.index)
    told = {name: _tells_class(words[name], y) for name in words}
    levels = {
        name: {f"{name}: {v}": (words[name] == v).to_numpy() for v in sorted(words[name].dropna().unique())}
        for name in words
    }
    found = [
        Subgroup(level, inside, told[name] or _one_class(inside, y))
        for name in words
        for level, inside in levels[name].items()
    ]
    open_ = [name for name in words if not told[name]]
    first = sorted(open_, key=lambda name: (-words[name].notna().sum(), words[name].nunique()))[:2]
    for (a, here), (b, there) in product(*(levels[name].items() for name in first)) if len(first) == 2 else ():
        if (here & there).any():
            found.append(Subgroup(f"{a}, {b}", here & there, _one_class(here & there, y)))
    return found


def _levels(column: pd.Series) -> pd.Series:
    """The words of a column; of numbers their levels, or thirds with their ranges."""
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        return column.astype(object).where(column.notna()).map(str, na_action="ignore")
    if column.nunique() <= MOST_LEVELS:
        return column.map(_plain, na_action="ignore").astype(object)
    lower, upper = column.quantile([1 / 3, 2 / 3])
    third = (column > lower).astype(int) + (column > upper)
    ends = column.groupby(third).agg(["min", "max"])
    names = {k: f"{_plain(low)} to {_plain(high)}" for k, low, high in ends.itertuples()}
    return third.map(names).where(column.notna()).astype(object)


def _plain(number: float) -> str:
    return str(int(number)) if float(number).is_integer() else f"{number:.4g}"


def _tells_class(words: pd.Series, y: FloatArray) -> bool:
    known = words.notna().to_numpy()
    fewer = pd.crosstab(words[known], y[known]).min(axis=1).sum() if len(np.unique(y[known])) == 2 else 0
    unaided = min(y[known].sum(), (1 - y[known]).sum())
    return bool(unaided > 0 and fewer <= 0.2 * unaided)


def _one_class(inside: BoolArray, y: FloatArray) -> bool:
    n, positive, share = int(inside.sum()), float(y[inside].sum()), float(y.mean())
    return any(
        rarer <= 0.1 * n * of_all and bdtr(rarer, n, of_all) < 0.001
        for rarer, of_all in ((positive, share), (n - positive, 1 - share))
    )


def standardised_gap(
    error: FloatArray, y_true: FloatArray, inside: BoolArray, classes: list[int], *, weights: Any = None
) -> Any:
    """Error rate of a subgroup less that of the rest, both standardised to the whole set's mix of classes, in [-1, 1].

    With `pi_c` the share of class c, `r_c` the error rate in this class inside and `s_c` outside the subgroup:
    `sum_c pi_c (r_c - s_c) / sum_c pi_c` over the classes named (direct standardisation). That a class is harder, and
    commoner in the subgroup, is no gap. error, y_true (n,) in {0, 1}; a float, or one a row of weights (resamples, n).
    """
    w = np.ones(len(error)) if weights is None else weights
    gap, total = 0.0, 0.0
    for label in classes:
        here = y_true == label
        share = w @ here.astype(float)
        rates = [(w @ (error * of)) / (w @ of) for of in ((here & side).astype(float) for side in (inside, ~inside))]
        gap, total = gap + share * (rates[0] - rates[1]), total + share
    return gap / total


def comparable(y_true: FloatArray, inside: BoolArray, groups: np.ndarray, among: BoolArray) -> list[int]:
    """The classes of which the cases `among` have at least 20 patients inside the subgroup and as many outside."""
    cells = {label: [groups[side & among & (y_true == label)] for side in (inside, ~inside)] for label in (0, 1)}
    return [label for label, sides in cells.items() if min(len(np.unique(who)) for who in sides) >= FEWEST]


def gap(
    error: FloatArray, y_true: FloatArray, inside: BoolArray, *, groups: np.ndarray, prefix: str = "gap"
) -> dict[str, Any]:
    """`standardised_gap` with its 95 % interval, p-value, and the smallest gap that so many patients could have shown.

    error, y_true (n,) in {0, 1}, inside (n,) boolean, groups (n,) the patients. `prefix_rests_on` names the classes
    with at least 20 patients inside and outside; without any the gap is absent. A resample of patients knows no error
    in a cell that has none, so nothing is resampled: with m patients of a cell as trials (fewer than its images, which
    is cautious) the interval joins the Wilson intervals of the cells' rates (MOVER: Zou & Donner 2008; for one class
    Newcombe's 1998), the p-value is that of the stratified difference with the pooled variance
    `v = sum_c pi_c^2 q_c (1 - q_c) (1 / m_in + 1 / m_out)`, q_c the error rate of class c in all, and
    `prefix_smallest` is `(z_0.975 + z_0.8) sqrt(v)`, what a two-sided test at 5 % would find in 80 of 100 samples.
    """
    y, e = np.asarray(y_true, dtype=float), np.asarray(error, dtype=float)
    classes = comparable(y, inside, groups, np.ones(len(y), dtype=bool))
    if not classes:
        return {prefix: Estimate(absent=f"no class has {FEWEST} patients inside this subgroup and as many outside")}
    below, above, variance = 0.0, 0.0, 0.0
    shares = np.array([(y == label).mean() for label in classes])
    for label, share in zip(classes, shares / shares.sum(), strict=True):
        sides = (y == label) & inside, (y == label) & ~inside
        trials = np.array([len(np.unique(groups[side])) for side in sides])
        rates = np.array([e[side].mean() for side in sides])
        low, high = wilson_interval(rates * trials, trials)
        down, up = rates - low, high - rates
        below += share**2 * (down[0] ** 2 + up[1] ** 2)
        above += share**2 * (up[0] ** 2 + down[1] ** 2)
        pooled = e[y == label].mean()
        variance += share**2 * pooled * (1 - pooled) * (1 / trials).sum()
    value = float(standardised_gap(e, y, inside, classes))
    z = abs(value) / np.sqrt(variance) if variance > 0 else 0.0
    return {
        prefix: Estimate(value, value - float(np.sqrt(below)), value + float(np.sqrt(above)), float(2 * ndtr(-z))),
        f"{prefix}_smallest": POWER * float(np.sqrt(variance)),
        f"{prefix}_rests_on": "both classes" if len(classes) == 2 else ("negatives", "positives")[classes[0]],
    }


def adjust_gaps(
    figures: dict[str, dict[str, Any]], subgroups: list[Subgroup], y_true: FloatArray, *, prefix: str = "gap"
) -> None:
    """Add Holm's p-value to each gap: a subgroup and its complement, among the classes compared, are one test, and
    subgroups that the truth defines are a family of their own.
    """

    def test(one: Subgroup) -> tuple[str, bytes]:
        on = str(figures[one.name][f"{prefix}_rests_on"])
        inside = one.inside if on == "both classes" else one.inside[y_true == (on == "positives")]
        return on, (inside ^ inside[0]).tobytes()

    measured = [one for one in subgroups if figures[one.name][prefix].p_value is not None]
    for by_truth in (False, True):
        if own := [one for one in measured if one.defined_by_truth == by_truth]:
            p_values = holm_distinct([figures[one.name][prefix].p_value for one in own], [test(one) for one in own])
            for one, p_value in zip(own, p_values.tolist(), strict=True):
                figures[one.name][prefix] = replace(figures[one.name][prefix], p_value_holm=p_value)
