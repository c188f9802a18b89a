"""Logistic regressions of one design on many rows of outcomes or weights at once, by damped Newton."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from tmv_lib.statistics.arrays import FloatArray

ROUNDING = 1e-12  # of a loss: what rises by less than this share has not risen
CELLS = 2**18  # (rows, cases) of one batch: 2 MiB


def fit_logistic(
    design: ArrayLike,
    y_true: ArrayLike,
    *,
    weights: ArrayLike,
    ridge: float = 0.0,
    centre: ArrayLike | None = None,
    offset: ArrayLike | None = None,
) -> FloatArray:
    """Coefficients (rows, d) of logit P(y = 1) = offset + x beta, one regression per row.

    design: x (n, d), shared by all rows. y_true: (n,) or (rows, n), shares of positives in [0, 1]. weights: (rows, n)
    or (n,), at least 0. ridge: at least 0, weight of |beta - centre|^2 / 2, centre (d,), 0 where it is left out: a
    Normal prior of variance 1 / ridge on every coefficient, the intercept included. It keeps the answer finite where
    the classes are separable. offset: (n,).

    Each step is halved until the loss does not rise: a full Newton step overshoots where probabilities are near 0
    and 1, and can end far away from the optimum without any sign of it. A row's answer depends to the last bit on its
    own outcomes and weights alone, whatever as many other rows hold. Raises ValueError for a ridge below 0, and where
    no optimum is reached in 200 steps: without a ridge, where the design separates the classes of a row, all but does
    so, or has dependent columns.
    """
    x = np.asarray(design, dtype=float)
    y, w = np.atleast_2d(np.asarray(y_true, dtype=float)), np.atleast_2d(np.asarray(weights, dtype=float))
    if not ridge >= 0:
        raise ValueError(f"ridge must be at least 0, found {ridge}")
    rows, (n, d) = max(len(y), len(w)), x.shape
    if {y.shape[1], w.shape[1]} != {n} or not {len(y), len(w)} <= {1, rows}:
        raise ValueError(f"outcomes {y.shape} and weights {w.shape} do not fit a design of {n} cases")
    upper = np.triu_indices(d)
    products = x[:, upper[0]] * x[:, upper[1]]
    base = np.zeros(n) if offset is None else np.asarray(offset, dtype=float)
    mean = np.zeros(d) if centre is None else np.asarray(centre, dtype=float)

    size = max(1, CELLS // n)
    found = []
    for start in range(0, rows, size):
        here = slice(start, start + size)
        outcome, weight = (part if len(part) == 1 else part[here] for part in (y, w))
        found.append(_newton(x, products, outcome, weight, min(size, rows - start), base, ridge, mean))
    return np.concatenate(found)


def _newton(
    x: FloatArray,
    products: FloatArray,
    y: FloatArray,
    w: FloatArray,
    rows: int,
    offset: FloatArray,
    ridge: float,
    centre: FloatArray,
) -> FloatArray:
    d = x.shape[1]
    upper = np.triu_indices(d)

    # sum_i w_i [log(1 + exp(eta_i)) - y_i eta_i] + ridge / 2 |beta - centre|^2, eta = offset + x beta
    def loss(beta: FloatArray) -> tuple[FloatArray, FloatArray]:
        eta = beta @ x.T + offset
        away = ((beta - centre) ** 2).sum(axis=1)
        return (w * (np.logaddexp(0, eta) - y * eta)).sum(axis=1) + ridge / 2 * away, eta

    beta = np.tile(centre, (rows, 1))
    least, eta = loss(beta)
    moving = np.ones(rows, dtype=bool)
    for _ in range(200):
        p = expit(eta)
        gradient = (w * (p - y)) @ x + ridge * (beta - centre)
        hessian = np.empty((rows, d, d))
        hessian[:, upper[0], upper[1]] = hessian[:, upper[1], upper[0]] = (w * p * (1 - p)) @ products
        hessian += ridge * np.eye(d)
        try:
            full = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        except np.linalg.LinAlgError:
            break
        step = np.where(moving[:, None], full, 0)
        reached, eta = loss(beta - step)
        while (worse := reached > least * (1 + ROUNDING)).any():
            step[worse] /= 2
            reached, eta = loss(beta - step)
        beta, least = beta - step, reached
        moving &= np.abs(step).max(axis=1) > 1e-7 * (1 + np.abs(beta).max(axis=1))
        if not moving.any():
            # where x beta separates the classes a larger beta is always better, though rounding hides by how much
            right = ((y == 1) & (beta @ x.T > 0)) | ((y == 0) & (beta @ x.T < 0)) | (w == 0)
            if ridge == 0 and right.all(axis=1).any():
                break
            return beta
    raise ValueError(
        "the logistic fit did not converge: the design all but separates the classes, or its columns are dependent"
    )
