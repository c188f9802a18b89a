"""The policy: a threshold experiment, and 1,000,000 cases."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from benchmarks.measure import Measured, side_by_side
from tmv_lib.deferral import costs as deferral
from tmv_lib.deferral import selective
from tmv_lib.deferral.sweep import threshold_sweep
from tmv_lib.statistics.arrays import FloatArray

COSTS = {"cost_fn": 5.0, "cost_fp": 1.0}
LIMITS: dict[str, Any] = {"risk": 0.05, "delta": 0.1}
GRID = np.linspace(0, 0.95, 20)


def measure() -> Iterator[Measured]:
    seconds, idle = experiments()
    yield Measured("`dvc exp run -S deferral.threshold=0.37`, all of it", seconds, "s", at_most=6)
    yield Measured("`dvc exp run` that changes nothing", idle, "s")
    yield Measured("the experiment takes so many times that", seconds / idle, "times", at_most=3)
    total = 0.0
    for what, call in million():
        (timed,) = side_by_side(call, repeats=1)
        total += timed.seconds
        yield Measured(what, timed.seconds, "s")
    yield Measured("the million cases through all of them", total, "s", at_most=10)


def cases(n: int) -> tuple[np.ndarray, FloatArray, np.ndarray, FloatArray]:
    """Calibrated cases of a reader that is sure of most: y_true, y_prob, error of the cheapest decision, certainty."""
    rng = np.random.default_rng(0)
    y_prob = expit(rng.normal(-0.5, 6.0, n))
    y_true = (rng.random(n) < y_prob).astype(int)
    error = (deferral.cheapest_decision(y_prob, **COSTS) != y_true).astype(int)
    return y_true, y_prob, error, deferral.certainty(y_prob, **COSTS)


def million() -> Iterator[tuple[str, partial]]:
    """Curve, metrics and certificate, each with what it is called."""
    y_true, y_prob, error, certainty = cases(1_000_000)
    yield "`risk_coverage_curve`", partial(selective.risk_coverage_curve, error, certainty)
    for area in (selective.aurc, selective.eaurc, selective.augrc):
        yield f"`{area.__name__}`", partial(area, error, certainty)
    decision = deferral.cheapest_decision(y_prob, **COSTS)
    table = pd.DataFrame({"y_true": y_true, "decision": decision, "baseline": decision, "certainty": certainty})
    prices, thresholds = deferral.Prices(**COSTS, review=0.25), np.linspace(0, 1, 101)
    yield "`threshold_sweep`, 101 thresholds", partial(threshold_sweep, table, prices, thresholds=thresholds)
    yield "`certify_ltt`", partial(selective.certify_ltt, error, certainty, grid=GRID, **LIMITS)


def experiments() -> tuple[float, float]:
    """Seconds of a threshold experiment, and of one that changes nothing, in a clone with the results that lie here."""
    dvc = str(Path(sys.executable).with_name("dvc"))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with TemporaryDirectory() as folder:
        run = partial(subprocess.run, cwd=folder, env={**os.environ, "PATH": path}, check=True, capture_output=True)
        cache = subprocess.run([dvc, "cache", "dir"], check=True, capture_output=True, text=True).stdout.strip()
        subprocess.run(["git", "clone", "--quiet", ".", folder], check=True)
        for name in ("metrics", "plots"):  # another machine's results are not those of the commit
            shutil.copytree(name, Path(folder, name), dirs_exist_ok=True)
        shutil.copy("dvc.lock", folder)
        identity = ["-c", "user.name=bench", "-c", "user.email=bench@localhost"]
        run(["git", *identity, "commit", "--quiet", "--all", "--allow-empty", "--message", "what lies here"])
        run([dvc, "cache", "dir", "--local", str(Path(cache).resolve())])
        run([dvc, "checkout", "--quiet"])
        run([dvc, "status"])  # DVC remembers the digests of files from its last look, as in a folder one works in
        start = perf_counter()
        run([dvc, "exp", "run"])
        idle = perf_counter() - start
        start = perf_counter()
        done = run([dvc, "exp", "run", "--set-param", "deferral.threshold=0.37"], text=True)
        seconds = perf_counter() - start
    ran = [line for line in done.stdout.splitlines() if line.startswith("Running stage")]
    if ran != ["Running stage 'ensemble':"]:
        raise ValueError(f"a threshold experiment must rerun ensemble alone, found {ran}: run `make repro`")
    return seconds, idle
