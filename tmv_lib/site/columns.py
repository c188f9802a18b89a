"""Which further columns of the case table, such as device, view, date or age, differ between source and site."""

from typing import Any

import numpy as np
import pandas as pd

from tmv_lib.data.cases import COLUMNS
from tmv_lib.site.shift import kolmogorov_smirnov, or_absent, share_distance
from tmv_lib.statistics.estimate import adjust
from tmv_lib.statistics.resampling import generator

MOST_WORDS = 20  # of one column, the rest together are one more


def compare_columns(
    table: pd.DataFrame, source: pd.Series, site: pd.Series, *, n_permutations: int, seed: int
) -> dict[str, Any]:
    """A test of each column that varies, by Holm one family, with what it is at source and site.

    table: the whole case table; source, site: `image_id` of both places. The phantom's columns are its maker's, and are
    not tested.
    """
    further = [name for name in table if name not in COLUMNS]
    tests: dict[str, Any] = {}
    if further:
        both = table.set_index("image_id").loc[pd.concat([source, site])]
        both = both.assign(at_site=np.repeat([0, 1], [len(source), len(site)]))
        of_phantom = "phantom" in set(both["source"].unique())
        tests = {
            name: _test(both, name, n_permutations=n_permutations, rng=generator(seed, name))
            for name in further
            if not of_phantom and len(both[name].unique()) > 1
        }
    if not tests:
        return {"absent": "the case table has no further column that varies, such as a device, a view or a date"}
    adjust(tests, distinct=True)
    return tests


def _test(both: pd.DataFrame, name: str, **options: Any) -> dict[str, Any]:
    """The test of a column of words or numbers, and what it is at source and site; missing is a word too."""
    column, domain = both[name], both["at_site"]
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        there = column.notna()
        test = or_absent(kolmogorov_smirnov, column[there], domain[there], both.loc[there, "patient_id"], **options)
        medians = {place: column[domain == k].median() for k, place in enumerate(("source", "site"))}
        return test | {f"median_{place}": median for place, median in medians.items() if np.isfinite(median)}
    words = column.astype(object).where(column.notna(), "missing").astype(str)
    words = words.where(words.isin(words.value_counts().index[:MOST_WORDS]), "other")
    test = or_absent(share_distance, words, domain, both["patient_id"], **options)
    shares = pd.crosstab(words, domain, normalize="columns")
    most = (shares[1] - shares[0]).abs().idxmax()
    ends = {"share_source": float(shares.loc[most, 0]), "share_site": float(shares.loc[most, 1])}
    return test | {"most_different": str(most), **ends}
