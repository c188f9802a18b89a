"""`evaluate` of one model: 22,000 and 200,000 cases, and 14 findings of 22,000"""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import pandas as pd
from scipy.special import expit

from benchmarks.measure import Measured
from commands.evaluate import PROCESSES


def measure() -> Iterator[Measured]:
    with TemporaryDirectory() as folder:
        room = Path(folder)
        seconds = {}
        for n in (22_000, 200_000):
            cases(n).to_csv(room / f"cases_{n}.csv", index=False)
            seconds[n], wall = run(room / f"cases_{n}.csv", room / f"out_{n}")
            yield Measured(f"{n:,} cases, processor", seconds[n], "s", at_most=15 if n == 22_000 else np.inf)
            yield Measured(f"{n:,} cases, clock", wall, "s")
        per_case = (seconds[200_000] - seconds[22_000]) / 178_000
        million = seconds[22_000] + 978_000 * per_case
        yield Measured("1,000,000 cases at what a further case takes, processor", million, "s", at_most=60)
        ratio = seconds[200_000] / seconds[22_000]
        yield Measured("nine times the cases take more processor time by", ratio, "times", at_most=9)
        findings(22_000).to_csv(room / "findings.csv", index=False)
        processor, wall = run(room / "findings.csv", room / "findings")
        cores = min(PROCESSES, os.cpu_count() or 1)
        yield Measured("14 findings of 22,000 cases, processor, per core in use", processor / cores, "s", at_most=90)
        yield Measured("14 findings of 22,000 cases, clock", wall, "s")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    yield Measured("peak memory of the largest process", peak, "GiB", at_most=1)


def run(path: Path, out: Path) -> tuple[float, float]:
    """Seconds of the processor and of the clock that the command takes, with one thread, as `make evaluate` runs it."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), perf_counter()
    command = [sys.executable, "-m", "commands.evaluate", str(path), "--out", str(out)]
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, perf_counter() - start


def cases(n: int) -> pd.DataFrame:
    """One to three images a patient, who resemble one another; a model that is somewhat too sure."""
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(n), rng.integers(1, 4, n))[:n]
    lot = rng.permutation(patient.max() + 1) / (patient.max() + 1)
    z = -1.2 + rng.normal(0, 1.2, lot.size)[patient] + rng.normal(0, 2, n)
    split = np.array(["val", "cal", "test"])[np.searchsorted([0.25, 0.5], lot, side="right")]
    return pd.DataFrame(
        {
            "image_id": [f"i{k:07d}" for k in range(n)],
            "patient_id": [f"p{k:07d}" for k in patient],
            "split": split[patient],
            "y_true": (rng.random(n) < expit(z)).astype(int),
            "logit": 1.3 * (z + rng.normal(0, 0.5, n)),
        }
    )


def findings(n: int) -> pd.DataFrame:
    """Fourteen findings of falling prevalence, probabilities, no splits."""
    rng, one = np.random.default_rng(1), cases(n)
    patient, _ = pd.factorize(one["patient_id"])
    columns = {}
    for k in range(14):
        z = -1.5 - 0.25 * k + rng.normal(0, 1, patient.max() + 1)[patient] + rng.normal(0, 1.8, n)
        columns[f"prob_f{k}"] = expit(1.2 * (z + rng.normal(0, 1, n))).round(4)
        columns[f"y_true_f{k}"] = (rng.random(n) < expit(z)).astype(int)
    return one[["image_id", "patient_id"]].assign(**columns)
