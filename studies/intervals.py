"""Which figures may carry a patient-bootstrap interval? How often it covers the truth of worlds where that is known.

Run by `make intervals`; writes docs/intervals.csv and docs/intervals.md. A world is a superpopulation of patients with
one to three images. The images of a patient share the label and a random effect, so that they are dependent. The true
logit is log odds of the prevalence + z, with z | y ~ Normal(+-d^2 / 2, d^2): then P(y = 1 | z) is exactly what the
logit says, and what a member reports of it has the slope and the intercept that the world names. The value of a figure
in the superpopulation is its value on two to the eighteenth evenly spaced cases (Sobol points).
"""

import argparse
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit, ndtr, ndtri
from scipy.special import logit as log_odds
from scipy.stats.qmc import Sobol
from tqdm import tqdm

from tmv_lib.calibration.corp import corp_decomposition
from tmv_lib.calibration.errors import (
    debiased_calibration_error,
    expected_calibration_error,
    smooth_calibration_error,
    top_label,
)
from tmv_lib.calibration.slope import calibration_in_the_large, calibration_slope
from tmv_lib.deferral.selective import augrc, aurc
from tmv_lib.pipeline.files import whole, write_csv
from tmv_lib.statistics.arrays import FloatArray, IntArray
from tmv_lib.statistics.classification import (
    accuracy,
    brier_score,
    f1_score,
    logistic_miscalibration,
    negative_log_likelihood,
    negative_predictive_value,
    precision,
    sensitivity,
    specificity,
)
from tmv_lib.statistics.estimate import difference, mean
from tmv_lib.statistics.ranking import auroc, average_precision
from tmv_lib.statistics.resampling import bootstrap
from tmv_lib.statistics.tests import Z_95

PREVALENCE = 0.4
WITHIN_PATIENT = 0.5  # correlation of the true logits of two images of one patient, given the label
BETWEEN_MEMBERS = 0.8  # and of two members' logits of one image
IMAGES = {1: 0.64, 2: 0.26, 3: 0.10}  # a patient; 1.46 on average, as in the real test split
PATIENTS = (428, 120)  # the real test split, and few
ENOUGH = 0.90  # coverage from which an interval is printed
METHODS = ("percentile", "basic", "bias_corrected")
SLOW = "smooth_ece"


class World(NamedTuple):
    """Two members: logit P(y = 1) = intercept + slope * reported logit, and AUROC = Phi(separation / sqrt 2)."""

    name: str
    slopes: tuple[float, float]
    intercept: float
    separations: tuple[float, float]


WORLDS = (
    World("calibrated", slopes=(1, 1), intercept=0, separations=(2, 2)),
    World("overconfident", slopes=(0.7, 0.7), intercept=0, separations=(2, 2)),
    World("shifted", slopes=(1, 1), intercept=-1, separations=(2, 2)),
    World("unequal", slopes=(1, 0.7), intercept=0, separations=(1.6, 2)),
)


class Cases(NamedTuple):
    """Cases (n,) of a world: truth, patient, both members' logits, and the similarity of two explanations."""

    y_true: FloatArray
    patient_id: IntArray
    logits: tuple[FloatArray, FloatArray]
    similarity: FloatArray

    def prob(self, member: int = 0) -> FloatArray:
        return expit(self.logits[member])

    def decided(self, member: int = 0) -> FloatArray:
        return (self.logits[member] > 0).astype(float)

    @property
    def error(self) -> FloatArray:
        return (self.decided() != self.y_true).astype(float)

    @property
    def margin(self) -> FloatArray:
        return np.minimum(self.prob(), 1 - self.prob())


Arrays = Callable[[Cases], tuple[FloatArray, ...]]


class Figure(NamedTuple):
    """A metric, the arrays of the cases that it takes, and what stays fixed when patients are resampled."""

    name: str
    metric: Callable[..., Any]
    arrays: Arrays
    strata: str


def superpopulation(world: World, *, log2_n: int = 18) -> Cases:
    """Evenly spaced cases, so many that their figures are the truth."""
    uniform = Sobol(4, rng=0).random_base2(log2_n).T
    y_true = (uniform[0] < PREVALENCE).astype(float)
    return _cases(world, y_true, np.arange(y_true.size), ndtri(uniform[1:]))


def sample(world: World, *, n_patients: int, rng: np.random.Generator) -> Cases:
    """Patients of a world, with all their images."""
    patient_id = np.repeat(np.arange(n_patients), rng.choice(list(IMAGES), size=n_patients, p=list(IMAGES.values())))
    y_true = (rng.random(n_patients) < PREVALENCE).astype(float)[patient_id]
    of_patient = rng.normal(size=(3, n_patients))[:, patient_id]
    of_image = rng.normal(size=(3, patient_id.size))
    normals = np.sqrt(WITHIN_PATIENT) * of_patient + np.sqrt(1 - WITHIN_PATIENT) * of_image
    return _cases(world, y_true, patient_id, normals)


def _cases(world: World, y_true: FloatArray, patient_id: IntArray, normals: FloatArray) -> Cases:
    """What the members report, from standard Normals (3, n): the first's, what the second adds, the similarity's."""
    first, added, similarity = normals
    second = BETWEEN_MEMBERS * first + np.sqrt(1 - BETWEEN_MEMBERS**2) * added
    logits = []
    for noise, slope, d in zip((first, second), world.slopes, world.separations):
        true = log_odds(PREVALENCE) + (2 * y_true - 1) * d**2 / 2 + d * noise
        logits.append((true - world.intercept) / slope)
    return Cases(y_true, patient_id, (logits[0], logits[1]), ndtr(1 + similarity))


def figures() -> list[Figure]:
    """Every figure under judgement, named as in the metrics files."""

    def ranked(c: Cases) -> tuple[FloatArray, ...]:
        return c.y_true, c.logits[0]

    def probable(c: Cases) -> tuple[FloatArray, ...]:
        return c.y_true, c.prob()

    def decided(c: Cases) -> tuple[FloatArray, ...]:
        return c.y_true, c.decided()

    def confident(c: Cases) -> tuple[FloatArray, ...]:
        return top_label(c.y_true, c.prob())

    def doubted(c: Cases) -> tuple[FloatArray, ...]:
        return c.error, c.margin

    def kept(c: Cases) -> tuple[FloatArray, ...]:
        return c.error, -c.margin

    def rivals(c: Cases) -> tuple[FloatArray, ...]:
        return c.error, np.abs(c.prob(0) - c.prob(1)), c.margin

    def both_ranked(c: Cases) -> tuple[FloatArray, ...]:
        return c.y_true, *c.logits

    def both_probable(c: Cases) -> tuple[FloatArray, ...]:
        return c.y_true, c.prob(0), c.prob(1)

    def both_decided(c: Cases) -> tuple[FloatArray, ...]:
        return c.y_true, c.decided(0), c.decided(1)

    equal_mass = partial(expected_calibration_error, strategy="quantile")
    errors: dict[str, Callable[..., Any]] = {
        "ece_uniform": expected_calibration_error,
        "ece_quantile": equal_mass,
        "debiased": debiased_calibration_error,
        "smooth_ece": smooth_calibration_error,
    }
    paired: list[tuple[str, Callable[..., Any], Arrays, str]] = [
        ("auroc", auroc, both_ranked, "class"),
        ("average_precision", average_precision, both_ranked, "class none"),
        ("sensitivity", sensitivity, both_decided, "class"),
        ("specificity", specificity, both_decided, "class"),
        ("accuracy", accuracy, both_decided, "class none"),
        ("brier_score", brier_score, both_probable, "class none"),
        ("nll", negative_log_likelihood, both_ranked, "class none"),
        ("ece", expected_calibration_error, both_probable, "class none"),
        ("ece_quantile", equal_mass, both_probable, "none"),
        ("debiased", debiased_calibration_error, both_probable, "none"),
        ("debiased_squared", debiased_squared, both_probable, "none"),
        ("smooth_ece", smooth_calibration_error, both_probable, "none"),
        ("logistic_miscalibration", logistic_miscalibration, both_ranked, "class none"),
        ("miscalibration", miscalibration, both_probable, "none"),
        ("discrimination", discrimination, both_probable, "none"),
    ]
    listed: list[tuple[str, Callable[..., Any], Arrays, str]] = [
        ("auroc", auroc, ranked, "class"),
        ("average_precision", average_precision, ranked, "class none"),
        ("sensitivity", sensitivity, decided, "class"),
        ("specificity", specificity, decided, "class"),
        ("accuracy", accuracy, decided, "class none"),
        ("f1_score", f1_score, decided, "class none"),
        ("precision", precision, decided, "class none"),
        ("negative_predictive_value", negative_predictive_value, decided, "class none"),
        ("brier_score", brier_score, probable, "class none"),
        ("nll", negative_log_likelihood, ranked, "class none"),
        ("slope", calibration_slope, ranked, "none"),
        ("in_the_large", calibration_in_the_large, ranked, "class none"),
        *((f"positive_class_{name}", metric, probable, "none") for name, metric in errors.items()),
        *((f"top_label_{name}", metric, confident, "none") for name, metric in errors.items()),
        ("logistic_miscalibration", logistic_miscalibration, ranked, "none"),
        ("miscalibration", miscalibration, probable, "none"),
        ("discrimination", discrimination, probable, "none"),
        ("pooled_error_auroc", auroc, doubted, "error"),
        ("pooled_average_precision", average_precision, doubted, "error none"),
        ("pooled_gain_over_margin", partial(difference, auroc), rivals, "error"),
        ("aurc", aurc, kept, "error none"),
        ("augrc", augrc, kept, "error none"),
        ("mean_similarity", mean, lambda c: (c.similarity,), "none"),
        ("share_moved", mean, lambda c: ((c.similarity < 0.5).astype(float),), "none"),
        ("disagreement_rate", mean, lambda c: ((c.decided(0) != c.decided(1)).astype(float),), "class none"),
        *((f"{name}_difference", partial(difference, metric), arrays, s) for name, metric, arrays, s in paired),
    ]
    return [Figure(name, metric, arrays, s) for name, metric, arrays, strata in listed for s in strata.split()]


def debiased_squared(y_true: FloatArray, y_prob: FloatArray, *, weights: Any = None) -> Any:
    return debiased_calibration_error(y_true, y_prob, weights=weights) ** 2


def miscalibration(y_true: FloatArray, y_prob: FloatArray, *, weights: Any = None) -> Any:
    return corp_decomposition(y_true, y_prob, weights=weights).miscalibration


def discrimination(y_true: FloatArray, y_prob: FloatArray, *, weights: Any = None) -> Any:
    return corp_decomposition(y_true, y_prob, weights=weights).discrimination


def limits(value: float, samples: FloatArray) -> dict[str, float]:
    """Ends of the 95 % interval by each method, of a figure and its resamples (Efron & Tibshirani 1993, 13 and 14)."""
    percentile = np.quantile(samples, [0.025, 0.975])
    # z0 = Phi^-1 of the share of resamples below the figure; the interval's ends are the quantiles Phi(2 z0 -+ 1.96)
    below = ((samples < value).mean() + (samples <= value).mean()) / 2
    z0 = ndtri(np.clip(below, 0.5 / samples.size, 1 - 0.5 / samples.size))
    corrected = np.quantile(samples, ndtr(2 * z0 + np.array([-Z_95, Z_95])))
    ends = zip(METHODS, (percentile, 2 * value - percentile[::-1], corrected))
    return {f"{method}_{end}": float(limit) for method, pair in ends for end, limit in zip(("low", "high"), pair)}


def repeat(k: int, *, seed: int, n_resamples: int, thinned: int = 1) -> pd.DataFrame:
    """The k-th sample of every world and size: a row a figure with its value and its interval by each method.

    Slow figures are left out of all samples but every `thinned`-th.
    """
    rows = []
    for (place, world), n_patients in product(enumerate(WORLDS), PATIENTS):
        cases = sample(world, n_patients=n_patients, rng=np.random.default_rng([seed, k, place, n_patients]))
        strata = {"class": cases.y_true, "error": cases.error, "none": None}
        for figure in figures():
            if SLOW in figure.name and k % thinned:
                continue
            arrays = figure.arrays(cases)
            value = float(figure.metric(*arrays))
            resampled = bootstrap(
                figure.metric,
                *arrays,
                groups=cases.patient_id,
                stratify=strata[figure.strata],
                n_resamples=n_resamples,
                rng=np.random.default_rng([seed, k, place, n_patients, 1]),
            )
            row = {"figure": figure.name, "fixed": figure.strata, "world": world.name, "n_patients": n_patients}
            rows.append(row | {"value": value} | limits(value, resampled.samples))
    return pd.DataFrame(rows)


def truths(*, log2_n: int = 18) -> pd.DataFrame:
    """The value of each figure in each world: figure, world, truth."""
    rows = {}
    for world in WORLDS:
        cases = superpopulation(world, log2_n=log2_n)
        for figure in figures():
            if (figure.name, world.name) not in rows:
                rows[figure.name, world.name] = float(figure.metric(*figure.arrays(cases)))
    return pd.DataFrame([(*key, truth) for key, truth in rows.items()], columns=["figure", "world", "truth"])


def coverage(rows: pd.DataFrame, truth: pd.DataFrame) -> pd.DataFrame:
    """Per figure, resampling, world and size: how often each method covers, and on which side the percentiles miss."""
    rows = rows.merge(truth, on=["figure", "world"], validate="many_to_one")
    for method in METHODS:
        rows[method] = rows["truth"].between(rows[f"{method}_low"], rows[f"{method}_high"])
    rows["too_high"] = rows["percentile_low"] > rows["truth"]
    rows["too_low"] = rows["percentile_high"] < rows["truth"]
    rows["width"] = rows["percentile_high"] - rows["percentile_low"]
    means = ["truth", "value", *METHODS, "too_high", "too_low", "width"]
    groups = rows.groupby(["figure", "fixed", "world", "n_patients"], sort=False)
    return groups[means].mean().assign(repeats=groups.size()).reset_index()


def verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """Per figure and resampling: mean and least coverage of the percentiles at each size, and whether it is enough.

    Enough (`printed_<size>`) is a mean over the worlds of `ENOUGH`, where no single world lies below that by more than
    two Monte Carlo standard errors. Beside it the least coverage of the other methods, and the mean share of misses.
    """
    keys = ["figure", "fixed"]
    groups = table.groupby(keys, sort=False)
    found = groups[["too_high", "too_low"]].mean()
    found[[f"least_{method}" for method in METHODS]] = groups[list(METHODS)].min()
    slack = 2 * np.sqrt(ENOUGH * (1 - ENOUGH) / groups["repeats"].min())
    for n_patients, of_size in table.groupby("n_patients"):
        worlds = of_size.groupby(keys)["percentile"]
        found[f"mean_{n_patients}"], found[f"least_{n_patients}"] = worlds.mean(), worlds.min()
        enough = (found[f"mean_{n_patients}"] >= ENOUGH) & (found[f"least_{n_patients}"] >= ENOUGH - slack)
        found[f"printed_{n_patients}"] = enough
    return found.reset_index()


PAGE = """# Which figures carry an interval

A 95 % interval that covers the truth in half of all studies is worse than none. `make intervals` draws {repeats}
samples of each of {worlds} made worlds whose truth is known, and counts how often the interval covers it: patients
with one to three images that resemble each other; members that are calibrated, overconfident (slope 0.7), shifted
(intercept -1), and an unequal pair (calibrated but ranking worse, against overconfident); {large} and {small}
patients. Intervals come from `tmv_lib.statistics.bootstrap` with {resamples} resamples of the patients, the 2.5 % and
97.5 % percentiles. Coverage by world is in `intervals.csv`; its Monte Carlo standard error is {error:.3f} a world
({slow:.3f} for the smooth ECE, which is drawn more rarely). A figure carries an interval where the mean coverage at
each size is at least {enough} and no world lies below that by more than two such errors.

`fixed` is what a resample keeps: `class`, the number of positive and of negative patients; `error`, that of patients
with and without an error; `none`, only the number of patients. Keeping the classes fixed takes away how the
prevalence would vary from one group of patients to the next, so that what depends on the prevalence gets too narrow
an interval: several figures therefore stand in both lists.

## With an interval

{printed}

## With an interval where patients are many

At {large} patients these cover as promised, at {small} a little less.

{narrow}

## Without

The share of intervals that lie wholly above the truth tells why: noise counts as miscalibration, a resample adds its
own, and a quantity that cannot be negative has nowhere else to go. The last two columns are the basic and the
bias-corrected bootstrap, which do not mend it.

{withheld}

## What stands in their place

- An ECE comes with its noise floor and the p-value of the observed one, not with an interval.
- The difference in ECE of two members covers where they are equally calibrated, and fails where they are not: the
  noise weighs on the better one. It comes without an interval; who is better calibrated is tested by the difference
  in logistic miscalibration, where the noise of two members on the same cases cancels.
- The fixed classes are for AUROC, sensitivity and specificity; errors fixed for AUROC as a detector of errors.
"""


def page(table: pd.DataFrame, *, resamples: int) -> str:
    """The page of this study in Markdown."""
    found = verdicts(table)
    large, small = PATIENTS
    with_many, with_few = found[f"printed_{large}"], found[f"printed_{small}"]
    coverages = [f"{kind}_{n_patients}" for n_patients in PATIENTS for kind in ("mean", "least")]
    misses = ["too_high", "too_low", *(f"least_{method}" for method in METHODS[1:])]
    repeats, slow = table["repeats"].max(), table["repeats"].min()
    return PAGE.format(
        repeats=repeats,
        worlds=len(WORLDS) * len(PATIENTS),
        large=large,
        small=small,
        resamples=resamples,
        error=np.sqrt(ENOUGH * (1 - ENOUGH) / repeats),
        slow=np.sqrt(ENOUGH * (1 - ENOUGH) / slow),
        enough=f"{100 * ENOUGH:.0f} %",
        printed=_markdown(found[with_many & with_few], coverages),
        narrow=_markdown(found[with_many & ~with_few], coverages),
        withheld=_markdown(found[~with_many], coverages + misses),
    )


def _markdown(found: pd.DataFrame, columns: list[str]) -> str:
    """A Markdown table of shares with two decimals."""
    header = ["figure", "fixed", *(column.replace("_", " ") for column in columns)]
    lines = [header, ["---"] * len(header)]
    lines += [[row["figure"], row["fixed"], *(f"{row[c]:.2f}" for c in columns)] for _, row in found.iterrows()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repeats", type=int, default=80, help="samples of each world (80)")
    options.add_argument("--resamples", type=int, default=200, help="of the patients of a sample (200)")
    options.add_argument("--processes", type=int, default=2)
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    # A repeat that is done is kept, so that a killed run goes on; remove the folder after a change of this study.
    folder = Path(f".studies/intervals/seed-{chosen.seed}-resamples-{chosen.resamples}")
    draw = partial(kept, folder, seed=chosen.seed, n_resamples=chosen.resamples, thinned=4)
    with ProcessPoolExecutor(chosen.processes) as processes:
        drawn = processes.map(draw, range(chosen.repeats))
        rows = pd.concat(tqdm(drawn, total=chosen.repeats, desc="samples of every world"))
    table = coverage(rows, truths())
    write_csv("docs/intervals.csv", table)
    with whole("docs/intervals.md") as temporary:
        temporary.write_text(page(table, resamples=chosen.resamples), encoding="utf-8")


def kept(folder: Path, k: int, **options: int) -> pd.DataFrame:
    """The k-th repeat, read back from the folder where it has been drawn before."""
    path = folder / f"{k}.csv"
    if not path.exists():
        write_csv(path, repeat(k, **options))
    return pd.read_csv(path, keep_default_na=False)


if __name__ == "__main__":
    main()
