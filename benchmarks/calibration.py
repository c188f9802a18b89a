"""A table of 1,000,000 predictions through every public function of `tmv_lib.calibration`."""

import inspect
import resource
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from scipy.special import expit

from benchmarks.measure import Measured, side_by_side
from tmv_lib.calibration import calibrators, corp, errors, prevalence, slope

CASES, PATIENTS = 1_000_000, 600_000
MODULES = (errors, corp, slope, prevalence, calibrators)
PARTS = {errors.as_probabilities, errors.by_level, errors.require_draws, slope.weighted_logits}  # of the others


def measure() -> Iterator[Measured]:
    total = 0.0
    for what, function, arguments in calls(table()):
        (timed,) = side_by_side(partial(function, **arguments), repeats=1)
        total += timed.seconds
        yield Measured(f"`{what}`", timed.seconds, "s")
    yield Measured("all of them", total, "s", at_most=30)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes, elsewhere KiB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
    yield Measured("peak memory of that process", peak, "GB", at_most=2)


def table() -> dict[str, Any]:
    """What the parameters of those functions mean here, by name; what has a default keeps it."""
    rng = np.random.default_rng(0)
    logit = rng.normal(-0.5, 2.0, CASES)
    return {
        "y_true": (rng.random(CASES) < expit(0.7 * logit + 0.2)).astype(int),
        "y_prob": expit(logit),
        "logit": logit,
        "groups": rng.integers(PATIENTS, size=CASES),
        "site": rng.integers(2, size=CASES),
        "n_folds": 5,
        "source": 0.5,
        "target": 0.2,
        "rng": rng,
    }


def calls(values: dict[str, Any]) -> Iterator[tuple[str, Callable[..., Any], dict[str, Any]]]:
    """Each public function once, `fit_calibrator` once a calibrator, with the arguments that it asks for."""
    for what, function in public().items():
        asked = [name for name, p in inspect.signature(function).parameters.items() if p.default is p.empty]
        strangers = set(asked) - {*values, "name"}
        if strangers:
            raise ValueError(f"calibration.{what} asks for {sorted(strangers)}: say in benchmarks/calibration.py what")
        arguments = {name: values[name] for name in asked if name != "name"}
        if function is calibrators.fit_calibrator:
            for name in calibrators.CALIBRATORS:
                yield f"{what}({name})", function, {"name": name, **arguments}
        elif "name" in asked:
            name = list(calibrators.CALIBRATORS)[-1]  # the dearest
            yield f"{what}({name})", function, {"name": name, **arguments}
        else:
            yield what, function, arguments


def public() -> dict[str, Callable[..., Any]]:
    """Functions that the modules of `tmv_lib.calibration` define, by name.

    But for those that read or write a file, and `PARTS`, which are measured in the functions that call them.
    """
    return {
        name: function
        for module in MODULES
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__
        and not name.startswith("_")
        and function not in PARTS
        and "path" not in inspect.signature(function).parameters
    }
