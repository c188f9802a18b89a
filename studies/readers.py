"""Do the intervals of a reader study cover the truth? Simulated studies of readers and cases whose truth is known.

Run by `make reader-studies`; writes docs/readers.csv. The model is that of Roe & Metz (1997): the score of reader j for
case k of class t in arm i is

    mu_i t + R_jt + (arm R)_ijt + C_kt + (arm C)_ikt + (R C)_jkt + E_ijkt

with Normal effects, the last four of variance 1 together, and the four structures of variances of Hillis (2018, table
2): data correlated highly or little, readers alike or not. A score above the threshold is a positive answer. Then the
AUROC of the mean reader is Phi(mu / sqrt(2 + 4 v)) and the sensitivity Phi((mu - threshold) / sqrt(1 + 2 v)), where v
is the variance of R, and of arm R.
"""

from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri
from tqdm import tqdm

from tmv_lib.pipeline.files import write_csv
from tmv_lib.readers.answer import estimate, estimate_difference
from tmv_lib.readers.obuchowski_rockette import Jackknifed, jackknife, summarise
from tmv_lib.statistics.arrays import FloatArray, IntArray
from tmv_lib.statistics.estimate import mean
from tmv_lib.statistics.ranking import auroc

REPEATS = 1000
GAIN = 0.4  # of mu, in the second arm
SENSITIVITIES = (0.8, 0.95, 0.98)  # of the mean reader in the first arm


class Structure(NamedTuple):
    """Variances of R and arm R, of C and arm C, of R C, and of E."""

    reader: float
    case: float
    reader_case: float
    error: float


STRUCTURES = {
    "cases correlated, readers alike": Structure(0.0082, 0.3, 0.2, 0.2),
    "cases correlated, readers differ": Structure(0.0447, 0.3, 0.2, 0.2),
    "cases hardly correlated, readers alike": Structure(0.0082, 0.1, 0.2, 0.6),
    "cases hardly correlated, readers differ": Structure(0.0447, 0.1, 0.2, 0.6),
}
SEPARATIONS = (0.75, 1.5, 2.5)  # mu of the first arm: AUROCs of about 0.70, 0.85 and 0.96


class Design(NamedTuple):
    """Readers, cases of each class, and whether a reader reads each case in one arm alone."""

    readers: int
    per_class: int
    split: bool


DESIGNS = {
    "5 readers, 100 cases, crossover": Design(5, 50, split=False),
    "5 readers, 100 cases, split": Design(5, 50, split=True),
    "5 readers, 30 cases, crossover": Design(5, 15, split=False),  # as many as are deferred, say
    "2 readers, 100 cases, crossover": Design(2, 50, split=False),
    "1 reader, 100 cases, crossover": Design(1, 50, split=False),
}


class Study(NamedTuple):
    """Truth of the cases (cases,); scores and whether they were read, (arms, readers, cases); each reader's own mean
    score for a class in an arm, (arms, readers, classes)."""

    y_true: IntArray
    score: FloatArray
    read: np.ndarray
    level: FloatArray


def main() -> None:
    rng = np.random.default_rng(0)
    usual, *others = DESIGNS
    cells = list(product([usual], STRUCTURES, SEPARATIONS))
    cells += product(others, list(STRUCTURES)[1:3], SEPARATIONS[1:])  # with fewer worlds
    rows = [row for cell in tqdm(cells, desc="designs and worlds") for row in coverage(*cell, rng=rng)]
    write_csv("docs/readers.csv", pd.DataFrame(rows), digits=4)


def draw(design: Design, structure: Structure, mu: float, rng: np.random.Generator) -> Study:
    """A study of two arms."""
    n_readers, n_cases = design.readers, 2 * design.per_class
    y_true = np.repeat([0, 1], design.per_class)

    def effect(variance: float, *shape: int) -> FloatArray:
        return rng.normal(0, np.sqrt(variance), shape)

    separation = np.array([mu, mu + GAIN])[:, None, None] * np.array([0, 1])
    level = separation + effect(structure.reader, 1, n_readers, 2) + effect(structure.reader, 2, n_readers, 2)
    score = level[:, :, y_true] + effect(structure.case, 1, 1, n_cases) + effect(structure.case, 2, 1, n_cases)
    score += effect(structure.reader_case, 1, n_readers, n_cases) + effect(structure.error, 2, n_readers, n_cases)
    read = np.ones(score.shape, dtype=bool)
    if design.split:
        half = np.tile(np.arange(design.per_class) % 2 == 0, (n_readers, 1))
        first = np.hstack([rng.permuted(half, axis=1) for _ in range(2)])
        read = np.stack([first, ~first])
    return Study(y_true, score, read, level)


def coverage(design: str, structure: str, mu: float, *, rng: np.random.Generator, repeats: int = REPEATS) -> list[dict]:
    """How often the intervals of each figure, and of its difference, cover, and symmetric ones by t: a row each."""
    of, variances = DESIGNS[design], STRUCTURES[structure]
    spread = 1 + 2 * variances.reader
    thresholds = {f"sensitivity of {share:g}": mu - float(ndtri(share)) * np.sqrt(spread) for share in SENSITIVITIES}
    found: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    for _ in range(repeats):
        study = draw(of, variances, mu, rng)
        for name, threshold in [("auroc", None), *thresholds.items()]:
            truth = truths(study, mu, spread, threshold, own=of.readers == 1)
            arms = [figures(study, arm, threshold) for arm in range(2)]
            difference = arms[1].minus(arms[0])
            for kind, figure, estimated, true in (
                ("arm", arms[0], estimate(arms[0], of.per_class), truth[0]),
                ("difference", difference, estimate_difference(difference, of.per_class), truth[1] - truth[0]),
            ):
                (_, low, high), plain = estimated.ends, summarise(figure)
                by_t = abs(plain.value - true) <= plain.reach
                found.setdefault((name, kind), []).append((low <= true <= high, by_t, high - low, true))
    rows = []
    for (name, kind), results in found.items():
        covered, by_t, width, truth = np.mean(results, axis=0)
        row = {"design": design, "structure": structure, "mu": mu, "figure": name, "of": kind, "truth": truth}
        rows.append(row | {"coverage": covered, "coverage_by_t": by_t, "width": width, "repeats": repeats})
    return rows


def truths(study: Study, mu: float, spread: float, threshold: float | None, *, own: bool) -> FloatArray:
    """The true figure of each arm, of the mean reader or of the only one, whose own it is."""
    if own:
        negative, positive = study.level[:, 0, 0], study.level[:, 0, 1]
        return ndtr((positive - negative) / np.sqrt(2)) if threshold is None else ndtr(positive - threshold)
    separation = np.array([mu, mu + GAIN])
    if threshold is None:
        return ndtr(separation / np.sqrt(2 * spread))
    return ndtr((separation - threshold) / np.sqrt(spread))


def figures(study: Study, arm: int, threshold: float | None) -> Jackknifed:
    """The AUROC of each reader of an arm, or the sensitivity above a threshold."""
    reader, case = np.nonzero(study.read[arm])
    score, y_true = study.score[arm][reader, case], study.y_true[case]
    shape = len(study.y_true), study.score.shape[1]
    if threshold is None:
        return jackknife(auroc, y_true, score, reader=reader, patient=case, shape=shape)
    own, n = y_true == 1, len(study.y_true) // 2
    right = (score[own] > threshold).astype(float)
    return jackknife(mean, right, reader=reader[own], patient=case[own] - n, shape=(n, shape[1]))


if __name__ == "__main__":
    main()
