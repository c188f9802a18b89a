"""A policy as `ensemble` fitted it, in numbers that lie on disk, and what it says of cases.

Whoever has the calibrated logits of the members and the signals of a case gets from here what the stage itself says of
it: probability, certainty, decision, referral and its reason.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from tmv_lib import deferral
from tmv_lib.files import whole
from tmv_lib.statistics import FloatArray, as_binary, patient_folds, rank_among

REASONS = {
    "disagreement": "members disagree",
    "mutual_information": "unsure under dropout",
    "instability": "unstable explanation",
    "distance": "unlike the training images",
}
UNUSUAL = 0.9  # rank among validation above which a signal is a reason


class FittedPolicy(NamedTuple):
    """What a policy is made of.

    members: names, in the order of their logits. calibration: `shipped` or `site`, which calibrated logits decide.
    combine: `mean_probability`, `mean_logit` or `stacking`. stack: intercept and a weight a member, of stacking.
    cost_fn, cost_fp: prices of the errors. threshold: certainty that a decision must reach, in [0, 1].
    weights: of the learned certainty, by name: `constant`, `log_odds_of_error`, each signal; empty where the margin
        decides.
    medians, gaps: of the signals on validation, for `deferral.fill_signals`.
    """

    members: list[str]
    calibration: str
    combine: str
    stack: list[float]
    cost_fn: float
    cost_fp: float
    threshold: float
    weights: dict[str, float]
    medians: dict[str, float]
    gaps: list[str]

    @property
    def prices(self) -> dict[str, float]:
        return {"cost_fn": self.cost_fn, "cost_fp": self.cost_fp}


def write_policy(path: str | Path, policy: FittedPolicy) -> None:
    """Write it as JSON, every number in full."""
    with whole(path) as temporary:
        temporary.write_text(json.dumps(policy._asdict(), indent=2) + "\n", encoding="utf-8")


def read_policy(path: str | Path) -> FittedPolicy:
    """Read what `write_policy` wrote. Raises ValueError naming the file where it is not there or no policy."""
    try:
        return FittedPolicy(**json.loads(Path(path).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; `make repro` trains the members and fits the policy") from None
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: no policy of this version ({error}); `make repro` makes it anew") from None


def fit_stack(y_true: ArrayLike, logits: ArrayLike) -> list[float]:
    """Intercept and a weight a member of the logistic regression of y_true (n,) on calibrated logits (n, members)."""
    fitted = LogisticRegression().fit(np.asarray(logits), as_binary(y_true))
    return [float(fitted.intercept_[0]), *(float(weight) for weight in fitted.coef_[0])]


def combine(logits: ArrayLike, *, stack: list[float]) -> dict[str, FloatArray]:
    """The ensemble's probability (n,) in three ways, from calibrated logits (n, members)."""
    z = np.asarray(logits, dtype=float)
    return {
        "mean_probability": expit(z).mean(axis=1),
        "mean_logit": expit(z.mean(axis=1)),
        "stacking": expit(stack[0] + z @ np.array(stack[1:])),
    }


def cross_fitted_prob(
    y_true: ArrayLike, logits: ArrayLike, *, groups: ArrayLike, way: str, n_folds: int, rng: np.random.Generator
) -> FloatArray:
    """The ensemble's probability (n,) of the cases that a stack is fitted on, each by what other patients fitted.

    logits: (n, members), calibrated on other patients' cases. groups: (n,) patients. way: a key of `combine`; the means
    fit nothing, and draw no folds.
    """
    y_true, z = as_binary(y_true), np.asarray(logits, dtype=float)
    if way != "stacking":
        return combine(z, stack=[0.0] * (1 + z.shape[1]))[way]
    fold = patient_folds(y_true, groups, n_folds=n_folds, rng=rng)
    stacked = np.empty(len(z))
    for k in range(n_folds):
        stack = fit_stack(y_true[fold != k], z[fold != k])
        stacked[fold == k] = combine(z[fold == k], stack=stack)["stacking"]
    return stacked


def unusual(signals: pd.DataFrame, reference: pd.DataFrame, *, kind: str, above: float = UNUSUAL) -> np.ndarray:
    """Whether a signal of this kind, of any member, lies above this share of the reference cases, (n,) boolean."""
    columns = [name for name in signals if name.startswith(kind)]
    if not columns:
        return np.zeros(len(signals), dtype=bool)
    ranks = np.stack([rank_among(signals[name].to_numpy(), reference[name].to_numpy()) for name in columns])
    return np.asarray(ranks.max(axis=0) > above)


def reasons(signals: pd.DataFrame, reference: pd.DataFrame, *, close: np.ndarray) -> list[str]:
    """Why each case is doubtful: a margin too small (`close`), every signal above nine tenths of validation, a gap.

    signals, reference: what `deferral.fill_signals` returns, of these cases and of validation.
    """
    found: list[list[str]] = [["close to the decision boundary"] if near else [] for near in close]
    gaps = signals.filter(regex="^missing_").to_numpy().any(axis=1)
    marked = {words: unusual(signals, reference, kind=kind) for kind, words in REASONS.items()}
    for words, here in (marked | {"a signal could not be measured": gaps}).items():
        for place in np.flatnonzero(here):
            found[place].append(words)
    return ["; ".join(words) or "several signals together" for words in found]


def judge(policy: FittedPolicy, logits: pd.DataFrame, signals: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """What the policy says of new cases: `y_prob`, `kappa`, `decision`, `deferred`, `reason` ("" where decided).

    logits: calibrated, a column a member, (n, members). signals: a column a signal that `policy.medians` names, not a
    number where it could not be measured. reference: the filled signals of validation.
    """
    y_prob = combine(logits[policy.members], stack=policy.stack)[policy.combine]
    filled = deferral.fill_signals(signals, medians=policy.medians, gaps=policy.gaps)
    margin = deferral.certainty(y_prob, **policy.prices)
    kappa = margin
    if policy.weights:
        known = filled[list(policy.weights)[2:]]
        kappa = deferral.learned_certainty_of(y_prob, known, list(policy.weights.values()), **policy.prices)
    deferred = deferral.decide(kappa, threshold=policy.threshold)
    said = reasons(filled, reference, close=margin < policy.threshold)
    return pd.DataFrame(
        {
            "y_prob": y_prob,
            "kappa": kappa,
            "decision": deferral.cheapest_decision(y_prob, **policy.prices),
            "deferred": deferred,
            "reason": np.where(deferred, said, ""),
        },
        index=logits.index,
    )
