"""Monitoring: a look at 1,000,000 logged cases with 20,000 labels, beside `RiskMonitoring` of `mapie`."""

import resource
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from scipy.special import expit

from benchmarks.measure import Measured, side_by_side
from studies import monitoring as study
from tmv_lib.monitoring import answer, betting
from tmv_lib.pipeline import log

CASES, LABELS = 1_000_000, 20_000
PARAMS = answer.MonitorParams(
    promises={"missed_positives": 0.1, "false_alarms": 0.2, "referrals": 0.6},
    audit_rate=0.02,
    salt="bench",
    alpha=0.05,
    seed=0,
)


def measure() -> Iterator[Measured]:
    with TemporaryDirectory() as folder:
        path, labels = Path(folder) / "log.csv", Path(folder) / "labels.csv"
        rows, y_true = logged()
        log.append(path, rows)
        read = rows["image_id"].sample(LABELS, random_state=0)
        pd.DataFrame({"image_id": read, "y_true": y_true[read.index]}).to_csv(labels, index=False)
        one = rows[-1:].assign(image_id="one more")
        (appended,) = side_by_side(partial(log.append, path, one), repeats=20)
        yield Measured("appending one row to a million, synced", 1000 * appended.seconds, "ms", at_most=10)
        with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as process:
            seconds, gigabytes = process.submit(looked, path, labels).result()
    yield Measured("a look, files and all", seconds, "s", at_most=10)
    yield Measured("its memory", gigabytes, "GB", at_most=1)
    loss, _ = study.single(1, np.random.default_rng(0), risk=0.25, n=1000)
    bet = partial(betting.wealth, loss[0], study.LIMIT, against="at_most", anew=True)
    ours, theirs = side_by_side(bet, partial(study.of_mapie, loss[0]), repeats=3)
    yield Measured("`betting.wealth`, 1,000 labels", ours.seconds, "s")
    yield Measured("`RiskMonitoring`, 1,000 labels", theirs.seconds, "s")
    after = float(betting.reached(ours.result, study.ALPHA) or np.inf)
    yield Measured("labels until the alarm at a risk of 25 %, 5 % promised: ours", after, "")
    yield Measured("the same, theirs", theirs.result, "", at_least=after)


def logged() -> tuple[pd.DataFrame, np.ndarray]:
    """A thousand days of a thousand patients, and their truth."""
    rng = np.random.default_rng(0)
    p = expit(rng.normal(-0.5, 3, CASES))
    certainty = np.abs(2 * p - 1)
    table = {
        "time": np.repeat(pd.date_range("2026-01-01", periods=CASES // 1000).astype(str), 1000),
        "image_id": [f"study/{k:07}.dcm" for k in range(CASES)],
        "patient_id": [f"p{k:07}" for k in range(CASES)],
        "y_prob": p,
        "certainty": certainty,
        "distance": rng.normal(5, 1, CASES),
        "decision": (p > 0.5).astype(int),
        "deferred": (certainty < 0.7).astype(int),
        **dict.fromkeys(answer.DIGESTS, "0123456789abcdef"),
    }
    return pd.DataFrame(table), (rng.random(CASES) < p).astype(int)


def looked(path: Path, labels: Path) -> tuple[float, float]:
    """Seconds and gigabytes of a look in a process of its own."""
    (timed,) = side_by_side(partial(look, path, labels), repeats=1)
    unit = 1 if sys.platform == "darwin" else 1024
    return timed.seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def look(path: Path, labels: Path) -> answer.Look:
    cases = log.read(path)
    reference = cases[[*answer.DIGESTS, *answer.SIGNALS]][:300]
    return answer.look(cases, log.read_labels(labels, cases), reference, PARAMS)
