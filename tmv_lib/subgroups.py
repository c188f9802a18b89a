"""Which columns of a case table name subgroups, and how much more often one of them is misread than the rest."""

from typing import Any

import numpy as np
import pandas as pd

# Names, and what only the phantom's maker knows.
NO_SUBGROUP = ("image_id", "patient_id", "split", "source", "cause", "clear_finding")
MOST_SUBGROUPS = 20


def subgroup_columns(cases: pd.DataFrame) -> list[str]:
    """The columns of words, with two to twenty different ones, that name a subgroup."""
    words = cases.select_dtypes(["object", "string"])
    return [name for name in words if name not in NO_SUBGROUP and 2 <= words[name].nunique() <= MOST_SUBGROUPS]


def above_the_rest(
    error: np.ndarray, y_true: np.ndarray, inside: np.ndarray, *, weights: np.ndarray | None = None
) -> Any:
    """Error rate of a subgroup less what the rest would have with the subgroup's share of each class, in [-1, 1].

    With `W_c` the subgroup's cases of class c and `r_c` the error rate of the rest in class c: the subgroup's errors
    less `sum_c W_c r_c`, over `sum_c W_c` (direct standardisation). A subgroup that lives in one class is compared
    within that class; that a class is harder is no finding about the subgroup.

    error, y_true (n,) in {0, 1}, inside (n,) boolean; a float, or one a row of weights (resamples, n). NaN where a
    resample leaves the subgroup, or a class of the rest, without a case. Raises ValueError where the rest has no case
    of a class that the subgroup has.
    """
    w = np.ones(len(error)) if weights is None else weights
    of_group, of_rest = w * inside, w * ~inside
    expected = 0.0
    for label in np.unique(y_true[inside]):
        here = (y_true == label).astype(float)
        if not here[~inside].any():
            raise ValueError(f"nothing to compare with: outside this subgroup no case has y_true = {int(label)}")
        expected = expected + (of_group @ here) * (of_rest @ (error * here)) / (of_rest @ here)
    return (of_group @ error - expected) / of_group.sum(axis=-1)
