"""How far two codings of errors agree, and how well a signal tells the kinds apart."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from tmv_lib.failures.taxonomy import KINDS, REPAIRABLE, SCORED
from tmv_lib.statistics.estimate import Resampler, mean
from tmv_lib.statistics.ranking import auroc
from tmv_lib.uncertainty.detection import FEWEST


def agreement(errors: pd.DataFrame, *, n_resamples: int, seed: int) -> dict[str, Any]:
    """How far sorted errors agree with the repairs that mend them, each figure with its interval over patients.

    errors: `cause` by `cause_of_errors`, `best` and `kind` by `sort_errors`, and `patient_id`. kappa: of the kind
    that is most likely. Errors that no repair mends are counted apart: no kind is right for them.
    """
    known = errors[errors["cause"] != "undetermined"]
    decided = known[known["kind"] != "undetermined"]
    counts = {"n": len(known), "n_decided": len(decided), "mended_by_no_repair": len(errors) - len(known)}
    figures: dict[str, Any] = {**counts}
    for name, table, column in (("kappa", known, "best"), ("kappa_where_it_decides", decided, "kind")):
        resampler = Resampler(table["patient_id"].to_numpy(), n_resamples, seed)
        figures[name] = resampler.estimate(kappa, table["cause"].to_numpy(), table[column].to_numpy())
    for kind in KINDS:
        here = errors[errors["cause"] == kind]
        figures[kind] = {"n": len(here)} | {f"called {other}": int((here["kind"] == other).sum()) for other in KINDS}
        if kind in REPAIRABLE:
            resampler = Resampler(here["patient_id"].to_numpy(), n_resamples, seed)
            figures[kind]["recall"] = resampler.estimate(mean, (here["best"] == kind).to_numpy(dtype=float))
    return figures


def confusion(errors: pd.DataFrame, column: str) -> pd.DataFrame:
    """Counts (6, 6) of errors by the repair that mends them (rows) and the kind that the column names."""
    crossed = pd.crosstab(errors["cause"], errors[column])
    return crossed.reindex(index=list(KINDS), columns=list(KINDS), fill_value=0)


def discriminate(
    table: pd.DataFrame, cause: ArrayLike, *, groups: np.ndarray, n_resamples: int, seed: int
) -> dict[str, Any]:
    """How well each signal alone tells each kind from the other three: one-vs-rest AUROC, below 0.5 where it is low.

    table: a column per signal, a row per error whose cause (n,) is one of the four; NaN where a signal is missing, and
    such an error is left out. groups: the patient of each (n,). With fewer than 20 patients of the kind, or of the
    rest, there is a value and no interval that would hold.
    """
    cause = np.asarray(cause)
    figures: dict[str, Any] = {}
    for name in table:
        score = table[name].to_numpy(dtype=float)
        there = np.isfinite(score)
        figures[str(name)] = {}
        for kind in SCORED:
            of_kind, patients = (cause == kind)[there], groups[there]
            n_patients, n_others = (len(np.unique(patients[side])) for side in (of_kind, ~of_kind))
            options: dict[str, Any] = {"stratify": of_kind, "interval": min(n_patients, n_others) >= FEWEST}
            resampler = Resampler(patients, n_resamples, seed)
            ranked = resampler.estimate(auroc, of_kind.astype(int), score[there], **options)
            figures[str(name)][kind] = {"n": int(of_kind.sum()), "n_patients": n_patients, "auroc": ranked}
    return figures


def kappa(truth: ArrayLike, coded: ArrayLike, *, weights: ArrayLike | None = None) -> Any:
    """Cohen's kappa of two codings (n,), or one a row of weights (resamples, n); 0 is what chance would reach.

    With agreement `a` and the agreement by chance `c`, that of the two marginals: `(a - c) / (1 - c)`. (Cohen 1960.)
    Raises ValueError for no case, and where both name one and the same code only.
    """
    truth, coded = np.asarray(truth), np.asarray(coded)
    if len(truth) == 0:
        raise ValueError("there is no such case")
    w = np.ones((1, len(truth))) if weights is None else np.atleast_2d(np.asarray(weights, dtype=float))
    w = w / w.sum(axis=1, keepdims=True)
    agreed, chance = w @ (truth == coded), np.zeros(len(w))
    for code in sorted(set(truth.tolist()) | set(coded.tolist())):  # words have no order of their own in a set
        chance += (w @ (truth == code)) * (w @ (coded == code))
    if np.any(chance > 1 - 1e-12):
        raise ValueError("only one kind is named, by both, among all cases or in a resample of them")
    value = np.minimum((agreed - chance) / (1 - chance), 1)  # which rounding would pass
    return float(value[0]) if weights is None else value


def shuffled_kappa(
    truth: ArrayLike, found: ArrayLike, groups: ArrayLike, *, n_permutations: int = 999, rng: np.random.Generator
) -> dict[str, Any]:
    """What Cohen's kappa would be were the codes `found` those of other patients: mean, 95th percentile, and p-value.

    truth, found, groups (n,). A patient's codes stay together and go to a patient with as many, so that images of one
    patient, and one image in several models, are no proof of more. p = (1 + #{shuffled >= observed}) / (1 + B), the
    chance of so high a kappa without any agreement. Absent with its reason where there is no kappa.
    """
    truth, found = np.asarray(truth), np.asarray(found)
    try:
        observed = kappa(truth, found)
    except ValueError as reason:
        return {"absent": str(reason)}
    patient, _ = pd.factorize(np.asarray(groups))
    order = np.argsort(patient, kind="stable")
    sizes = np.bincount(patient)
    starts = np.cumsum(sizes) - sizes
    own = [order[starts[sizes == size][:, None] + np.arange(size)] for size in np.unique(sizes)]  # (patients, size)
    # shuffling keeps both marginals, and with them the agreement by chance
    codes = sorted(set(truth.tolist()) | set(found.tolist()))
    chance = sum(float((truth == code).mean() * (found == code).mean()) for code in codes)
    agreed = [
        sum(int((truth[rows] == found[rng.permutation(rows)]).sum()) for rows in own) for _ in range(n_permutations)
    ]
    shuffled = (np.array(agreed) / len(truth) - chance) / (1 - chance)
    at_least = int((shuffled >= observed - 1e-12).sum())
    return {
        "n_permutations": n_permutations,
        "mean": float(shuffled.mean()),
        "p95": float(np.quantile(shuffled, 0.95)),
        "p_value": (1 + at_least) / (1 + n_permutations),
    }
