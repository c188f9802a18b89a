"""What a policy does at any threshold, price, prevalence and reader, on the test split."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from demo.cases import Collection
from demo.disk import NOT_MEASURED, figure
from demo.page import Picture, Section
from tmv_lib.calibration.prevalence import at_prevalence, prevalence_weights
from tmv_lib.card.words import number, share
from tmv_lib.deferral import costs, selective
from tmv_lib.deferral.costs import Prices
from tmv_lib.pipeline import diagrams
from tmv_lib.pipeline.record import read_metrics

ROUNDING = 1e-6  # certainties are stored with eight digits


class Knob(NamedTuple):
    """A knob of `params.yaml`: its place there, and what its slider says, from where to where it goes, its step."""

    place: str
    words: str
    low: float
    high: float
    step: float


KNOBS = {
    "threshold": Knob("deferral.threshold", "Certainty that a decision must reach", 0.0, 1.0, 0.01),
    "false_negative": Knob("deferral.cost.false_negative", "Cost of a missed case", 0.5, 20.0, 0.5),
    "false_positive": Knob("deferral.cost.false_positive", "Cost of a false alarm", 0.5, 20.0, 0.5),
    "review": Knob("deferral.cost.review", "Price of a doctor's reading", 0.0, 2.0, 0.05),
    "reader_sensitivity": Knob(
        "deferral.reader.sensitivity", "Doctor's sensitivity on those handed on", 0.5, 1.0, 0.01
    ),
    "reader_specificity": Knob(
        "deferral.reader.specificity", "Doctor's specificity on those handed on", 0.5, 1.0, 0.01
    ),
}


class Knobs(NamedTuple):
    """What can be turned: the knobs of `KNOBS`, and the prevalence, which has no place in `params.yaml`."""

    threshold: float
    false_negative: float
    false_positive: float
    review: float
    reader_sensitivity: float
    reader_specificity: float
    prevalence: float

    @property
    def prices(self) -> Prices:
        return Prices(
            self.false_negative, self.false_positive, self.review, self.reader_sensitivity, self.reader_specificity
        )


class Point(NamedTuple):
    """What the policy does; counts are of the test images, reweighted to the prevalence. curve: risk by coverage."""

    n: float
    decided: float
    missed: float
    alarmed: float
    reader_missed: float
    reader_alarmed: float
    cost: float
    cost_deciding_all: float
    curve: pd.DataFrame

    @property
    def coverage(self) -> float:
        return self.decided / self.n

    @property
    def risk(self) -> float | None:
        """Error rate among the decided, None where nobody is decided."""
        return (self.missed + self.alarmed) / self.decided if self.decided else None


def knobs(cases: Collection) -> Knobs:
    """The knobs as the run had them, with the prevalence of the test split."""
    params = cases.disk.read("params.yaml")
    own = {name: float(figure(params, knob.place)) for name, knob in KNOBS.items() if name != "threshold"}
    # the one in force, which prices or a budget may have set; in metrics it is rounded
    threshold = figure(cases.disk.read("data/ensemble/policy.json"), "threshold")
    if threshold is None:
        raise ValueError("data/ensemble/policy.json: no such file; `dvc repro` makes it")
    own["threshold"] = float(threshold)
    return Knobs(**own, prevalence=float(cases.table["y_true"].mean()))


def _learned(cases: Collection, at_run: Knobs) -> bool:
    """Whether the run decided by a learned certainty and not by the plain one, which follows from the probability."""
    plain = costs.margins(cases.table, at_run.prices)["margin"]
    return bool(np.abs(plain - cases.table["certainty"]).max() > ROUNDING)


def point(cases: Collection, at: Knobs) -> Point:
    """The policy at these knobs. Another prevalence reweighs the cases, and shifts their probabilities accordingly."""
    table, run = cases.table, knobs(cases)
    y_true, y_prob = table["y_true"].to_numpy(), table["y_prob"].to_numpy()
    weights = np.ones(len(table))
    if at.prevalence != run.prevalence:
        weights = prevalence_weights(y_true, target=at.prevalence)
        clipped = logit(np.clip(y_prob, 1e-9, 1 - 1e-9))
        y_prob = expit(at_prevalence(clipped, source=run.prevalence, target=at.prevalence))
    same = at.prices.errors == run.prices.errors and at.prevalence == run.prevalence
    certainty = table["certainty"] if same else costs.margins(table.assign(y_prob=y_prob), at.prices)["margin"]
    certainty = np.asarray(certainty)
    decision = costs.cheapest_decision(y_prob, **at.prices.errors)
    deferred = costs.decide(certainty, threshold=at.threshold)
    prices = at.prices.of(y_true)
    missed, alarmed = (y_true == 1) & (decision == 0), (y_true == 0) & (decision == 1)
    return Point(
        n=float(weights.sum()),
        decided=float(weights[~deferred].sum()),
        missed=float(weights[missed & ~deferred].sum()),
        alarmed=float(weights[alarmed & ~deferred].sum()),
        reader_missed=float(weights[deferred & (y_true == 1)].sum()) * (1 - at.reader_sensitivity),
        reader_alarmed=float(weights[deferred & (y_true == 0)].sum()) * (1 - at.reader_specificity),
        cost=float(costs.failure_cost(y_true, decision, deferred=deferred, weights=weights, **prices)),
        cost_deciding_all=float(costs.failure_cost(y_true, decision, weights=weights, **prices)),
        curve=pd.DataFrame(selective.risk_coverage_curve(missed | alarmed, certainty, weights=weights)._asdict()),
    )


def _rates(found: Point) -> str:
    return (
        f"Coverage {found.coverage:.1%}; wrong among the decided "
        + ("(nobody is decided)" if found.risk is None else f"{found.risk:.1%}")
        + f"; errors left {found.missed + found.alarmed:.0f} of {found.n:.0f} test images."
    )


def answer(cases: Collection, at: Knobs) -> Section:
    """What the policy does, in words."""
    found, run = point(cases, at), knobs(cases)
    of_hundred = 100 / found.n
    lines = [
        f"**Of 100 patients like these** it decides {of_hundred * found.decided:.0f} and hands"
        f" {of_hundred * (found.n - found.decided):.0f} to a doctor. Among the decided it misses"
        f" {of_hundred * found.missed:.1f} with {cases.names.positive} and raises"
        f" {of_hundred * found.alarmed:.1f} false alarms.",
        _rates(found),
        f"Failure cost per case {found.cost:.3f}; deciding every case {found.cost_deciding_all:.3f}.",
        f"The policy's price: {can_pay(at.prices)}.",
    ]
    if found.reader_missed + found.reader_alarmed > 0:
        lines.append(
            f"The doctor is expected to miss {of_hundred * found.reader_missed:.1f} and to raise"
            f" {of_hundred * found.reader_alarmed:.1f} false alarms among those handed on."
        )
    if _learned(cases, run) and (at.prices.errors != run.prices.errors or at.prevalence != run.prevalence):
        lines.append(
            "The run's certainty was learned at its own prices; here the plain one stands in. The command below learns"
            " it anew."
        )
    return Section("", lines)


def curve(cases: Collection, at: Knobs) -> Picture:
    """The risk-coverage curve as `dvc plots` draws it, with a ring at the point."""
    found = point(cases, at)
    drawn = diagrams.filled(
        found.curve.assign(series="this policy"),
        name="policy",
        root=cases.disk.root,
        template="risk_coverage",
        x="coverage",
        y="selective_risk",
        x_label="Coverage (share of cases decided)",
        y_label="Wrong among them",
    )
    if found.risk is not None:
        axes = {axis: {"field": axis, "type": "quantitative"} for axis in ("x", "y")}
        ring = {"type": "point", "size": 140, "strokeWidth": 2.5, "color": "#222"}
        place = {"values": [{"x": found.coverage, "y": found.risk}]}
        drawn["layer"].append({"data": place, "mark": ring, "encoding": axes})
    alt = f"Risk-coverage curve with a ring at the chosen point: {_rates(found)}"
    return Picture(diagrams.svg(drawn), alt, "Risk and coverage; the ring is the chosen point")


def measured(cases: Collection) -> str:
    """What the stage itself measured at the point of the run, with intervals."""
    found = read_metrics("ensemble", root=cases.disk.root)
    if found is None:
        return f"At the point of the run: {NOT_MEASURED} (`dvc repro ensemble`)."
    coverage, risk, cost = (found["deferral"].estimate(key) for key in ("coverage", "selective_risk", "failure_cost"))
    return (
        f"Measured at the point of the run, with 95 % intervals: coverage {share(coverage)}, wrong among the decided"
        f" {share(risk)}, failure cost per case {number(cost)}."
    )


def can_pay(prices: Prices) -> str:
    """Whether deferral can pay at these prices."""
    if prices.chow_threshold > 0:
        return f"deferral can pay: with true probabilities it does below a certainty of {prices.chow_threshold:.2f}"
    return (
        f"deferral never pays: a review costs {prices.review:g}, an automatic decision is expected to cost at most"
        f" {costs.chow_review_price(0, **prices.errors):.3g}, and the doctor reads with sensitivity"
        f" {prices.sensitivity:g}, specificity {prices.specificity:g}"
    )


def command(cases: Collection, at: Knobs) -> str:
    """The command that computes this point with intervals."""
    run, deferral = knobs(cases), cases.disk.read("params.yaml")["deferral"]
    changed = [name for name in KNOBS if getattr(at, name) != getattr(run, name)]
    if changed and deferral["threshold"] is None and "threshold" not in changed:
        changed.append("threshold")  # or other prices would set another one
    options = [f"-S {KNOBS[name].place}={getattr(at, name):g}" for name in changed]
    if "threshold" in changed and deferral["budget"] is not None:
        options.append("-S deferral.budget=null")
    return " ".join(["dvc exp run", *options]) if options else "dvc repro ensemble"


def prevalence_note(cases: Collection, at: Knobs) -> str:
    """What the command cannot reproduce, or nothing."""
    if at.prevalence == knobs(cases).prevalence:
        return ""
    return (
        "Another prevalence is a what-if of this page: the test images are reweighted and the probabilities told of it."
        " No knob of the pipeline does that."
    )


def along(cases: Collection, at: Knobs, thresholds: np.ndarray) -> pd.DataFrame:
    """What other thresholds would do, of 100 patients like these; a row each, in words."""
    rows = []
    for threshold in thresholds:
        found = point(cases, at._replace(threshold=float(threshold)))
        counts = (f"{100 * count / found.n:.1f}" for count in (found.decided, found.missed, found.alarmed))
        rows.append((f"{threshold:g}", *counts, f"{found.cost:.3f}"))
    return pd.DataFrame(rows, columns=["threshold", "decided", "missed", "alarms", "cost"])
