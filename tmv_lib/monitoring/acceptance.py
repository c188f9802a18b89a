"""May it be switched on here? A protocol that is fixed before the first label, and bets on each of its promises.

A promise is accepted once bets against "its risk is at least the limit" have reached 1 / alpha, and rejected once bets
against "its risk is at most the limit" have reached m / alpha, m the number of promises. All must be accepted: a system
with one false promise is accepted with probability at most alpha, and one whose promises are all true is rejected with
probability at most alpha, both however often one looks.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field, StringConstraints, model_validator

from tmv_lib.monitoring import betting, losses
from tmv_lib.pipeline.params import Params
from tmv_lib.statistics.estimate import Estimate

STREAMS = 2000  # simulated acceptance tests per row of a plan
BETTER, WORSE = (0.0, 0.2, 0.4, 0.6), (1.5, 2.0, 3.0)  # true risks of a plan, in limits

Text = Annotated[str, StringConstraints(min_length=1, max_length=160, strip_whitespace=True)]
Promise = Literal["missed_positives", "false_alarms", "missed_of_positives", "false_alarms_of_negatives", "referrals"]


class Protocol(Params):
    """What is promised, of whom, and how many patients it may take.

    promises: the largest share of patients that may break each, see `losses.PROMISES`. sample: `consecutive` patients,
    or `enriched` with positives: there only promises per true class mean anything. subgroups: a column of the labelled
    table and its values, of each of which all promises must hold as well. most_patients: after so many, what is not
    accepted is not shown.
    """

    system: Text
    place: Text
    sample: Literal["consecutive", "enriched"]
    promises: Annotated[dict[Promise, Annotated[float, Field(gt=0, lt=1)]], Field(min_length=1)]
    subgroups: dict[str, list[str]]
    alpha: Annotated[float, Field(gt=0, lt=0.5)]
    most_patients: Annotated[int, Field(ge=1, le=100_000)]

    @model_validator(mode="after")
    def _per_class_where_enriched(self) -> "Protocol":
        for name in self.promises:
            if self.sample == "enriched" and name not in losses.BY_CLASS:
                raise ValueError(
                    f"{name} depends on the share of positives, which an enriched sample does not tell;"
                    f" promise {' or '.join(losses.BY_CLASS[:2])} there"
                )
        return self

    @property
    def n_promises(self) -> int:
        return len(self.promises) * (1 + sum(len(values) for values in self.subgroups.values()))

    @property
    def rejection_alpha(self) -> float:
        return self.alpha / self.n_promises


def judge(cases: pd.DataFrame, protocol: Protocol) -> dict[str, Any]:
    """What the labelled cases say: `answer` accept, reject, go_on or not_shown, and the same per promise and group.

    cases: as in `losses`, every label known, with the columns of the subgroups; patients beyond the most that the
    protocol may take are left out.
    """
    visits = losses.first_visits(cases)
    visits = visits[visits["patient"] < protocol.most_patients].reset_index(drop=True)
    n_patients = int(visits["patient"].nunique())
    ended = n_patients >= protocol.most_patients
    found: dict[str, dict[str, Any]] = {}
    for group, own in _groups(visits, protocol):
        found[group] = {name: _standing(own, name, limit, protocol, ended) for name, limit in protocol.promises.items()}
    answers = [one["answer"] for of_group in found.values() for one in of_group.values()]
    answer = next((word for word in ("reject", "go_on", "not_shown") if word in answers), "accept")
    return {
        "answer": answer,
        "n_images": len(visits),
        "n_patients": n_patients,
        "most_patients": protocol.most_patients,
        "alpha": protocol.alpha,
        "groups": found,
    }


def _groups(visits: pd.DataFrame, protocol: Protocol) -> Iterator[tuple[str, pd.DataFrame]]:
    yield "all", visits
    for column, values in protocol.subgroups.items():
        for value in values:
            own = visits[visits[column].astype(str) == value].reset_index(drop=True)
            yield f"{column} {value}", own.assign(patient=pd.factorize(own["patient"])[0])


def _standing(visits: pd.DataFrame, name: str, limit: float, protocol: Protocol, ended: bool) -> dict[str, Any]:
    everybody = np.ones(visits["patient"].nunique(), dtype=bool)
    loss = losses.of_patients(visits, name, due=everybody, rate=1.0)["low"].to_numpy()
    alpha = {"accept": protocol.alpha, "reject": protocol.rejection_alpha}
    wealth = {
        "accept": betting.wealth(loss, limit, against="at_least"),
        "reject": betting.wealth(loss, limit, against="at_most"),
    }
    after = {answer: betting.reached(wealth[answer], alpha[answer]) for answer in wealth}
    reached = {answer: n for answer, n in after.items() if n is not None}
    answer = min(reached, key=reached.__getitem__, default="not_shown" if ended else "go_on")
    risk = Estimate(absent="there is no such patient yet")
    if loss.size:
        risk = Estimate(float(loss.mean()), *betting.confidence_interval(loss, protocol.alpha))
    figures: dict[str, Any] = {"answer": answer, "limit": limit, "n": loss.size, "errors": float(loss.sum())}
    figures |= {"risk": risk, "fewest": betting.fewest(limit, protocol.alpha)}
    figures |= {"after": reached[answer]} if answer in reached else {}
    evidence = {name: float(of.max(initial=0.0)) / -np.log(alpha[name]) for name, of in wealth.items()}
    return figures | {"evidence_for": evidence["accept"], "evidence_against": evidence["reject"]}


def plan(protocol: Protocol, rng: np.random.Generator) -> pd.DataFrame:
    """How many patients of whom a promise speaks, all labelled, it takes to accept or reject it at several true risks.

    Columns: `promise`, `limit`, `true_risk`, `ends_in` (accept or reject), `median`, `nine_in_ten` (patients; missing
    where it is more than the protocol may take) and `within`, the share of `STREAMS` simulated tests that ended so
    within the most patients.
    """
    rows = []
    for name, limit in protocol.promises.items():
        for risk in (risk for factor in (*BETTER, *WORSE) if (risk := factor * limit) < 1):
            accepts = risk < limit
            alpha = protocol.alpha if accepts else protocol.rejection_alpha
            n = patients_needed(risk, limit, alpha, accepts=accepts, most=protocol.most_patients, rng=rng)
            told = np.quantile(n, [0.5, 0.9], method="inverted_cdf")
            quantiles = {
                key: value if np.isfinite(value) else np.nan
                for key, value in zip(("median", "nine_in_ten"), told, strict=True)
            }
            row = {"promise": name, "limit": limit, "true_risk": risk, "ends_in": "accept" if accepts else "reject"}
            rows.append(row | quantiles | {"within": float(np.isfinite(n).mean())})
    return pd.DataFrame(rows)


def patients_needed(
    risk: float,
    limit: float,
    alpha: float,
    *,
    accepts: bool,
    most: int,
    rng: np.random.Generator,
    streams: int = STREAMS,
) -> np.ndarray:
    """Patients (streams,) until a promise is accepted or rejected at a true risk; infinite where `most` are too few."""
    against: betting.Against = "at_least" if accepts else "at_most"
    parts = []
    for n_streams in np.diff(np.linspace(0, streams, 21).astype(int)):  # a twentieth at once: memory
        loss = (rng.random((n_streams, most)) < risk).astype(float)
        there = betting.wealth(loss, limit, against=against) >= -np.log(alpha)
        parts.append(np.where(there.any(axis=1), there.argmax(axis=1) + 1.0, np.inf))
    return np.concatenate(parts)
