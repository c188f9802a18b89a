"""The stage `site` at the size of the public pneumonia test split, and a million cases recalibrated."""

from collections.abc import Iterator
from functools import partial

import numpy as np
from scipy.special import expit

from benchmarks.measure import Measured, side_by_side
from tmv_lib.site.learning_curve import Labelled, learning_curve
from tmv_lib.site.shift import domain_test
from tmv_lib.site.updating import closed_test

SOURCE, SITE, SITE_PATIENTS, FEATURES = 402, 624, 428, 32
PERMUTATIONS, DRAWS = 9_999, 200
CASES, PATIENTS = 1_000_000, 600_000


def measure() -> Iterator[Measured]:
    rng = np.random.default_rng(0)
    patient = np.r_[np.arange(SOURCE), SOURCE + rng.permutation(np.resize(np.arange(SITE_PATIENTS), SITE))]
    features = rng.normal(size=(SOURCE + SITE, FEATURES))
    at_site = np.repeat([0, 1], [SOURCE, SITE])
    tell_apart = partial(domain_test, features, at_site, patient, n_folds=5, n_foldings=5, n_permutations=PERMUTATIONS)
    y_true, logit = labels(rng, SITE)
    local = Labelled(y_true, logit, patient[SOURCE:])
    learn = partial(
        learning_curve,
        local,
        judged_on=None,
        source_logit=rng.normal(0, 2, SOURCE),
        n_patients=[25, 50, 100, 150, 200, 300],
        n_draws=DRAWS,
        risk=0.05,
        delta=0.1,
    )
    many = labels(rng, CASES)
    recalibrate = partial(closed_test, *many, groups=rng.integers(PATIENTS, size=CASES))
    for what, call, bound in (
        (f"shift test, {PERMUTATIONS:,} permutations, {SITE} cases of the site", partial(tell_apart, rng=rng), 5),
        (f"learning curve, {DRAWS} draws of patients", partial(learn, rng=rng), 20),
        (f"recalibration of {CASES:,} cases", recalibrate, 5),
    ):
        (timed,) = side_by_side(call, repeats=1)
        yield Measured(what, timed.seconds, "s", at_most=bound)


def labels(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and logits that are wrong by a shift and a slope."""
    logit = rng.normal(0, 2, n)
    return (rng.random(n) < expit(0.7 * logit - 1)).astype(float), logit
