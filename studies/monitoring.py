"""Do alarms and acceptance keep their levels, and how long do they take? Simulated patients whose true risk is known.

Run by `make monitoring`; writes docs/monitoring.csv and docs/acceptance.csv. 2,000 streams a row, each of up to 2,000
patients who were read, unless it says otherwise; promised is a risk of at most 5 %, at alpha 5 %. Beside ours
stand what one might do instead, and MAPIE's `RiskMonitoring` (100 streams, its online level at 5 % as well).
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from mapie.exchangeability_testing import RiskMonitoring
from mapie.risk_control.risks import BinaryRisk
from scipy.stats import beta as beta_distribution
from scipy.stats import binom
from tqdm import tqdm

from tmv_lib.monitoring import acceptance, betting, conformal
from tmv_lib.pipeline.files import write_csv
from tmv_lib.statistics.arrays import FloatArray
from tmv_lib.statistics.tests import wilson_interval

STREAMS, PATIENTS, AT_ONCE, PEERS = 2000, 2000, 100, 100
LIMIT, ALPHA = 0.05, 0.05
RISKS = (0.10, 0.15, 0.25)
AUDIT_RATES = (0.05, 0.1, 0.25, 0.5, 1.0)
REFERRED, RISK_REFERRED = 0.4, 0.08  # share of patients with a deferred image, and the risk of their decided images
GOOD, GOOD_RISK = (0, 200, 1000), 0.02  # patients before the risk rises to 15 %
REFERENCE = 300

Draw = Callable[[int, np.random.Generator], tuple[FloatArray, FloatArray]]  # streams to losses and weights


def main() -> None:
    rows = [*levels(), *delays(), *after_good_times(), *inputs()]
    write_csv("docs/monitoring.csv", pd.DataFrame(rows), digits=4)
    write_csv("docs/acceptance.csv", pd.DataFrame(accepted()), digits=4)


def single(
    n_streams: int, rng: np.random.Generator, *, risk: float, n: int = PATIENTS
) -> tuple[FloatArray, FloatArray]:
    """Patients with one image each."""
    return (rng.random((n_streams, n)) < risk).astype(float), np.ones((n_streams, n))


def alike(n_streams: int, rng: np.random.Generator, *, correlation: float, images: int = 3) -> FloatArray:
    """Errors (streams, patients, images) at risk `LIMIT`, those of a patient correlated: a chance of their own each."""
    shape = (n_streams, PATIENTS // images)
    if correlation == 1:
        return np.repeat((rng.random(shape) < LIMIT).astype(float)[..., None], images, axis=2)
    total = 1 / correlation - 1
    chance = beta_distribution(LIMIT * total, (1 - LIMIT) * total).rvs(shape, random_state=rng)
    return (rng.random((*shape, images)) < chance[..., None]).astype(float)


def audited(n_streams: int, rng: np.random.Generator, *, rate: float, weighted: bool) -> tuple[FloatArray, FloatArray]:
    """Patients who were read, at risk `LIMIT` of all: those with a deferred image always, of the others a share."""
    share = REFERRED / (REFERRED + (1 - REFERRED) * rate)
    referred = rng.random((n_streams, PATIENTS)) < share
    others = (LIMIT - REFERRED * RISK_REFERRED) / (1 - REFERRED)
    loss = (rng.random(referred.shape) < np.where(referred, RISK_REFERRED, others)).astype(float)
    return loss, np.where(referred & weighted, rate, 1.0)


def pending(n_streams: int, rng: np.random.Generator, *, missing: float) -> tuple[FloatArray, FloatArray]:
    """A share of the labels never comes; these patients count as right."""
    loss, weight = single(n_streams, rng, risk=LIMIT)
    return np.where(rng.random(loss.shape) < missing, 0.0, loss), weight


def reported(n_streams: int, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """The trap: one patient in ten is audited, and every fifth error among the others is reported and let in."""
    extra = 9 * LIMIT / 5  # of them come to one audited patient
    loss, weight = single(n_streams, rng, risk=LIMIT)
    return np.where(rng.random(loss.shape) < extra / (1 + extra), 1.0, loss), weight


def per_image(n_streams: int, rng: np.random.Generator, *, correlation: float) -> tuple[FloatArray, FloatArray]:
    """The trap: every image is evidence of its own."""
    loss = alike(n_streams, rng, correlation=correlation).reshape(n_streams, -1)
    return loss, np.ones(loss.shape)


def per_patient(n_streams: int, rng: np.random.Generator, *, correlation: float) -> tuple[FloatArray, FloatArray]:
    loss = alike(n_streams, rng, correlation=correlation).mean(axis=2)
    return loss, np.ones(loss.shape)


def levels() -> Iterator[dict[str, Any]]:
    """How often there is ever an alarm although the risk is 5 %."""
    draws: dict[tuple[str, str], Draw] = {("ours", "one image a patient"): partial(single, risk=LIMIT)}
    for rate in AUDIT_RATES:
        name = f"audit rate {rate:g}, {REFERRED:.0%} referred at risk {RISK_REFERRED:.0%}"
        draws["ours", name] = partial(audited, rate=rate, weighted=True)
        if rate == min(AUDIT_RATES):
            draws["trap: unweighted", name] = partial(audited, rate=rate, weighted=False)
    for correlation in (0.3, 0.6, 1.0):
        name = f"three images a patient, correlation {correlation:g}"
        draws["ours", name] = partial(per_patient, correlation=correlation)
        draws["trap: every image bets", name] = partial(per_image, correlation=correlation)
    draws["ours", "three labels in ten never come"] = partial(pending, missing=0.3)
    draws["trap: every fifth error of the others is let in", "audit rate 0.1"] = reported
    for (way, world), draw in draws.items():
        _, ever = alarms(draw, f"{way}, {world}")
        yield row("a false alarm, ever", way, world, np.isfinite(ever))
    weekly = binom(50, LIMIT).rvs((STREAMS, 52), random_state=np.random.default_rng(0))
    wrong = (binom.sf(weekly - 1, 50, LIMIT) <= ALPHA).any(axis=1)
    yield row("a false alarm, ever", "trap: a test of its own every week", "50 labels a week, 52 weeks", wrong)


def delays() -> Iterator[dict[str, Any]]:
    """Patients until the alarm, from the first one on."""
    for risk in RISKS:
        _, ours = alarms(partial(single, risk=risk), f"risk {risk}")
        loss, _ = single(PEERS, np.random.default_rng(1), risk=risk)
        peer = np.array([of_mapie(stream) for stream in tqdm(loss, desc=f"MAPIE, risk {risk}")])
        for way, n in (("ours", ours), ("MAPIE RiskMonitoring", peer)):
            yield waited("patients until the alarm", way, f"true risk {risk:.0%}", n)


def after_good_times() -> Iterator[dict[str, Any]]:
    """Patients from the change on until the alarm, with bets opened anew and with those of the first day alone."""
    for good in GOOD:
        for way, anew in (("ours", True), ("bets of the first day alone", False)):

            def draw(n_streams: int, rng: np.random.Generator, good: int = good) -> tuple[FloatArray, FloatArray]:
                before, _ = single(n_streams, rng, risk=GOOD_RISK, n=good)
                after, _ = single(n_streams, rng, risk=0.15, n=PATIENTS)
                loss = np.concatenate([before, after], axis=1)
                return loss, np.ones(loss.shape)

            _, n = alarms(draw, f"{good} good ones, {way}", anew=anew, streams=500)
            world = f"risk 15 % after {good} patients at {GOOD_RISK:.0%} (500 streams)"
            yield waited("patients until the alarm", way, world, n - good)


def inputs() -> Iterator[dict[str, Any]]:
    """The conformal test martingale: false alarms, and the delay when values fall by half a standard deviation."""
    rng = np.random.default_rng(0)
    ever: dict[float, list[float]] = {0.0: [], 0.5: []}
    for _ in tqdm(range(STREAMS), desc="inputs"):
        for change, waits in ever.items():
            reference, stream = rng.normal(size=REFERENCE), rng.normal(size=500) - change
            there = conformal.martingale(conformal.p_values(reference, stream, rng=rng)) >= -np.log(ALPHA)
            waits.append(there.argmax() + 1.0 if there.any() else np.inf)
    world = f"inputs, {REFERENCE} patients calibrated on, 500 new ones"
    yield row("a false alarm, ever", "ours", world, np.isfinite(ever[0.0]))
    yield waited("patients until the alarm", "ours", f"{world} lower by half a standard deviation", np.array(ever[0.5]))


def accepted() -> Iterator[dict[str, Any]]:
    """Labelled patients until a promise of at most 5 % is accepted, and how often it is although it is false."""
    yield {
        "event": "patients until accepted",
        "way": "ours",
        "world": "no error",
        "median": betting.fewest(LIMIT, ALPHA),
    }
    for risk, event in ((0.01, "patients until accepted"), (0.02, "patients until accepted"), (0.05, "accepted, ever")):
        n = acceptance.patients_needed(
            risk, LIMIT, ALPHA, accepts=True, most=PATIENTS, rng=np.random.default_rng(0), streams=STREAMS
        )
        world = f"true risk {risk:.0%}"
        yield waited(event, "ours", world, n) if risk < LIMIT else row(event, "ours", world, np.isfinite(n))
    for risk in RISKS:
        n = acceptance.patients_needed(
            risk, LIMIT, ALPHA, accepts=False, most=PATIENTS, rng=np.random.default_rng(0), streams=STREAMS
        )
        yield waited("patients until rejected", "ours", f"true risk {risk:.0%}", n)


def alarms(draw: Draw, name: str, *, anew: bool = True, streams: int = STREAMS) -> tuple[FloatArray, FloatArray]:
    """The largest evidence of each stream, and the patients until its alarm, infinite where there is none."""
    rng, parts = np.random.default_rng(0), []
    for _ in tqdm(range(streams // AT_ONCE), desc=name):
        loss, weight = draw(AT_ONCE, rng)
        parts.append(betting.wealth(loss, LIMIT, against="at_most", weight=weight, anew=anew))
    wealth = np.concatenate(parts)
    there = wealth >= -np.log(ALPHA)
    return wealth.max(axis=1), np.where(there.any(axis=1), there.argmax(axis=1) + 1.0, np.inf)


def of_mapie(loss: FloatArray) -> float:
    """Patients until `RiskMonitoring` speaks of a harmful shift."""
    error = BinaryRisk(lambda y, y_pred: y != y_pred, lambda y, y_pred: np.ones(y.shape, bool), higher_is_better=False)
    monitor = RiskMonitoring(risk=error, test_level=2 * ALPHA, threshold=LIMIT, warn=False)  # half of it is online
    monitor.update(loss.astype(int), np.zeros(loss.size, dtype=int))
    there = monitor.online_risk_lower_bound_sequence_history > LIMIT
    return there.argmax() + 1.0 if there.any() else np.inf


def row(event: str, way: str, world: str, happened: np.ndarray) -> dict[str, Any]:
    count, n = int(np.sum(happened)), int(np.size(happened))
    low, high = wilson_interval(count, n)
    return {"event": event, "way": way, "world": world, "share": count / n, "low": low, "high": high}


def waited(event: str, way: str, world: str, n: FloatArray) -> dict[str, Any]:
    median, nine = (float(value) for value in np.quantile(n, [0.5, 0.9], method="inverted_cdf"))
    return {"event": event, "way": way, "world": world, "median": median, "nine_in_ten": nine}


if __name__ == "__main__":
    main()
