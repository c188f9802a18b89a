"""The phantom's cases: who has which finding, label, marker and planted cause of failure.

A synthetic frontal chest radiograph whose truth is known, so that every trust instrument can itself be measured
before it is aimed at a patient. This module draws up the plan, one row an image; `radiograph` turns rows into
pixels. Shares are allocated, not tossed: a planted rate holds to within one case in every split.
"""

from collections.abc import Iterable, Mapping
from math import ceil

import numpy as np
import pandas as pd
from scipy.special import expit, logit

SPLITS = ("train", "val", "cal", "test")
SEEN_FINDINGS = ("lobar", "patchy", "interstitial")
UNSEEN_FINDINGS = ("retrocardiac", "pneumothorax")
MIMICS = ("atelectasis", "nipple")
SHIFTED = {"both": (0, 1), "negative": (0,), "positive": (1,)}
# Share of the patients with so many images.
IMAGES_PER_PATIENT = {1: 0.60, 2: 0.25, 3: 0.15}
MIMICKING = 0.25  # share of the films without finding
# The panel's probability that an ambiguous case is positive, and the contrast that goes with it.
PANEL, FAINT = (0.15, 0.85), (0.10, 0.28)
TRUTH = ["image_id", "patient_id", "split", "y_true", "source", "finding", "cause", "y_clean", "marker", "posterior"]
RECIPE = ["amplitude", "mimic", "exposure", "noise", "patient_seed", "case_seed", "clear_finding", "clear_amplitude"]


def plan_cases(
    *,
    patients: Mapping[str, int],
    seed: int,
    prevalence: float = 0.40,
    mislabelled: float = 0.02,
    ambiguous: float = 0.07,
    blind: float = 0.05,
    marker_train: tuple[float, float] = (0.90, 0.06),
    marker_rest: tuple[float, float] = (0.85, 0.12),
    contrast: tuple[float, float] = (0.40, 0.75),
    test_exposure: float = 1.0,
    test_noise: float = 1.0,
    test_shifted: str = "both",
    test_prevalence: float | None = None,
) -> pd.DataFrame:
    """Plan a phantom study: one row an image, with all that determines its pixels and its truth.

    `patients` counts the patients of each split. A patient has one to three images, which share split, anatomy, kind
    of finding and, but for the planted causes, class. A case has one `cause` at most:

    - ambiguous: this share of all images shows a finding of very low contrast; the label is the toss of a panel's
      coin that says 1 with a probability of 0.15 to 0.85, rising with the contrast. The marker is independent of it.
    - mislabelled: this share of each class of `y_true` shows the other class, its usual marker included; there and
      nowhere else `y_clean` differs from `y_true`.
    - blind: this share of the positives outside train has a finding that training never shows, and no marker.
    - spurious: the "P" marker contradicts the label. `marker_train` and `marker_rest` hold P(marker | positive) and
      P(marker | negative) among the cases without another cause. Where training's second is not below its first,
      the marker is no shortcut and no case is spurious.

    `contrast` is the range of `amplitude`, the share of the air along the ray that a clear finding replaces.
    `test_exposure` (dose) and `test_noise` (standard deviation) multiply `exposure` and `noise` on the test split, as
    another site would, in the class of `y_true` that `test_shifted` names (`both`, `negative`, `positive`).
    `test_prevalence` is the share of positives there: images are left out by class from a larger split of the usual
    prevalence, so that each class stays what it is, and the number of patients is met about.

    `posterior` is P(y_true = 1 | finding, amplitude, marker) within the split, for an ideal observer who reads all
    three off the image without error: the panel's probability of an ambiguous case, whose log odds move with those of
    `test_prevalence`; of any other, the share of positives among the split's unambiguous cases with the same kind of
    finding (none, seen, unseen) and marker. `clear_finding` and `clear_amplitude` say what the case shows once its
    finding is a clear one of a kind that training shows. `patient_seed` and `case_seed` feed the renderer's streams,
    one a factor: after a change in one column a row renders to the same image but for that factor.

    Raises ValueError for what lies outside its range, and for shares that cannot hold together.
    """
    rates = {"prevalence": prevalence, "mislabelled": mislabelled, "ambiguous": ambiguous, "blind": blind}
    markers = [("marker_train", rate) for rate in marker_train] + [("marker_rest", rate) for rate in marker_rest]
    _check_rates([*rates.items(), *markers])
    _check_patients(patients)
    _check_site(test_exposure, test_noise, test_shifted, test_prevalence, prevalence)
    if not FAINT[1] <= contrast[0] <= contrast[1] <= 1:
        raise ValueError(f"contrast must be a range within [{FAINT[1]}, 1], found {contrast}")

    splits = []
    for split, streams in zip(SPLITS, np.random.SeedSequence(seed).spawn(len(SPLITS)), strict=True):
        if split not in patients:
            continue
        # Streams of their own: a change of rates leaves patients and their anatomy as they were.
        people, labels, acquisition = (np.random.default_rng(stream) for stream in streams.spawn(3))
        train, site = split == "train", split == "test"
        target = test_prevalence if site else None
        # So many more that there are enough of the class that is wanted more often.
        surplus = 1 if target is None else max(target / prevalence, (1 - target) / (1 - prevalence))
        pool = ceil(patients[split] * surplus)
        cases = _enrol(pool, people).assign(split=split)
        _label(cases, labels, prevalence, mislabelled, ambiguous, 0.0 if train else blind)
        _mark(cases, labels, marker_train if train else marker_rest, marker_train[0] > marker_train[1])
        _expose(cases, acquisition, contrast)
        if target is not None:
            cases = _at_prevalence(cases, patients[split] / pool, prevalence, target)
        there = site & cases["y_true"].isin(SHIFTED[test_shifted])
        cases["exposure"] *= np.where(there, test_exposure, 1.0)
        cases["noise"] = np.where(there, test_noise, 1.0)
        cases["posterior"] = _posterior(cases)
        splits.append(cases)
    plan = pd.concat(splits, ignore_index=True)
    patient = plan.groupby(["split", "patient"], sort=False).ngroup()
    plan["patient_id"] = patient.map("patient-{:05d}".format)
    plan["image_id"] = plan.index.map("phantom-{:06d}".format)
    return plan.assign(source="phantom")[TRUTH + RECIPE]


def repaired(
    plan: pd.DataFrame, *, test_exposure: float = 1.0, test_noise: float = 1.0, test_shifted: str = "both"
) -> pd.DataFrame:
    """The rows of a plan with one cause of failure taken away, everything else as it was; one row a case and repair.

    The column `repair` names the cause. spurious: the marker is put to the usual state of the class that the film
    shows, wherever it is not. ambiguous: the faint finding becomes a clear one where the label is 1, and goes where
    it is 0. blind: the finding that training never shows becomes a clear one that it does. (A wrong label is repaired
    by `y_clean`, which changes no pixel.) site: the film is taken with the dose and the noise of home, where
    `plan_cases` changed them, with the same `test_...`. A case in which two causes could be taken away has two rows.
    """
    marker = plan[plan["marker"] != plan["y_clean"]]
    marker = marker.assign(repair="spurious", marker=1 - marker["marker"])
    clear = plan[(plan["cause"] == "blind") | ((plan["cause"] == "ambiguous") & (plan["y_true"] == 1))]
    clear = clear.assign(repair=clear["cause"], finding=clear["clear_finding"], amplitude=clear["clear_amplitude"])
    absent = plan[(plan["cause"] == "ambiguous") & (plan["y_true"] == 0)]
    absent = absent.assign(repair="ambiguous", finding="none", amplitude=0.0)
    moved = plan["split"].isin(["test", "local"]) & plan["y_true"].isin(SHIFTED[test_shifted])
    there = plan[moved & ((test_exposure, test_noise) != (1, 1))]  # both of the site: local patients come from test
    at_home = there.assign(repair="site", exposure=there["exposure"] / test_exposure, noise=1.0)
    return pd.concat([marker, clear, absent, at_home]).sort_values(["image_id", "repair"], ignore_index=True)


def _check_patients(patients: Mapping[str, int]) -> None:
    if not patients or set(patients) - set(SPLITS) or min(patients.values()) < 1:
        raise ValueError(f"patients must be at least 1 for some of {', '.join(SPLITS)}, found {dict(patients)}")


def _check_rates(rates: Iterable[tuple[str, float]]) -> None:
    for name, rate in rates:
        if not 0 <= rate <= 1:
            raise ValueError(f"{name} must lie in [0, 1], found {rate}")


def _check_site(exposure: float, noise: float, shifted: str, test_prevalence: float | None, prevalence: float) -> None:
    if exposure <= 0 or noise < 0:
        raise ValueError(f"test_exposure must be above 0 and test_noise at least 0, found {exposure} and {noise}")
    if shifted not in SHIFTED:
        raise ValueError(f"test_shifted must be one of {', '.join(SHIFTED)}, found {shifted!r}")
    if test_prevalence is not None and not 0 < min(test_prevalence, prevalence) <= max(test_prevalence, prevalence) < 1:
        raise ValueError(
            f"test_prevalence, and prevalence beside it, must lie in (0, 1), found {test_prevalence} and {prevalence}"
        )


def _enrol(n_patients: int, rng: np.random.Generator) -> pd.DataFrame:
    """The images of n patients, those of one patient side by side, and the seeds of both."""
    bounds = np.rint(np.cumsum([0.0, *IMAGES_PER_PATIENT.values()]) * n_patients).astype(int)
    n_images = rng.permutation(np.repeat(list(IMAGES_PER_PATIENT), np.diff(bounds)))
    patient = np.repeat(np.arange(n_patients), n_images)
    cases = pd.DataFrame({"patient": patient, "patient_seed": rng.integers(2**31, size=n_patients)[patient]})
    return cases.assign(case_seed=rng.integers(2**31, size=patient.size))


def _label(
    cases: pd.DataFrame, rng: np.random.Generator, prevalence: float, mislabelled: float, ambiguous: float, blind: float
) -> None:
    """Fill in labels, findings, the panel's probability, and every cause but the spurious one."""
    n = len(cases)
    order = rng.permutation(n)[cases["patient"]]
    unclear = rng.permutation(n)[: round(ambiguous * n)]
    panel = rng.permutation(np.linspace(*PANEL, unclear.size))
    # Systematic sampling: every coin keeps its own probability, and their sum is met to within one.
    toss = np.diff(np.floor(np.cumsum([rng.random(), *panel]))).astype(int)

    n_positive = round(prevalence * n)
    n_missed, n_overcalled = round(mislabelled * (n - n_positive)), round(mislabelled * n_positive)
    n_blind, n_ill = round(blind * n_positive), n_positive - toss.sum() - n_overcalled + n_missed
    queue = np.setdiff1d(np.arange(n), unclear)
    queue = queue[np.argsort(order[queue], kind="stable")]
    if n_ill < n_missed + n_blind or queue.size - n_ill < n_overcalled:
        raise ValueError(
            f"prevalence {prevalence}, mislabelled {mislabelled}, ambiguous {ambiguous} and blind {blind} add up to "
            f"more than {n} images can hold"
        )
    # Whole patients are ill or well, so that to know the patient is to know the class: one at most is both.
    ill, well = rng.permutation(queue[:n_ill]), rng.permutation(queue[n_ill:])
    missed, hidden, overcalled = ill[:n_missed], ill[n_missed : n_missed + n_blind], well[:n_overcalled]

    cases["clear_finding"] = np.array(SEEN_FINDINGS)[order % len(SEEN_FINDINGS)]
    cases["finding"], cases["cause"], cases["panel"], cases["y_clean"] = "none", "none", np.nan, 0
    cases.loc[unclear, "panel"], cases.loc[unclear, "y_clean"], cases.loc[ill, "y_clean"] = panel, toss, 1
    cases["y_true"] = cases["y_clean"]
    cases.loc[missed, "y_true"], cases.loc[overcalled, "y_true"] = 0, 1
    shown = np.concatenate([ill, unclear])
    cases.loc[shown, "finding"] = cases.loc[shown, "clear_finding"]
    cases.loc[hidden, "finding"] = np.resize(UNSEEN_FINDINGS, n_blind)
    for cause, members in {"ambiguous": unclear, "blind": hidden, "mislabelled": [*missed, *overcalled]}.items():
        cases.loc[members, "cause"] = cause


def _mark(cases: pd.DataFrame, rng: np.random.Generator, rates: tuple[float, float], shortcut: bool) -> None:
    """Fill in the marker, and the cause of the cases whose label it contradicts."""
    y, cause = cases["y_true"].to_numpy(), cases["cause"].to_numpy()
    positive, negative = rates
    either = y.mean() * positive + (1 - y.mean()) * negative
    # Elsewhere a class has the marker that most of it has; a blind case that of the negatives.
    usual = np.where(cases["y_clean"] == 1, positive >= 0.5, negative >= 0.5).astype(int)
    marker = np.where(cause == "blind", int(negative >= 0.5), usual)
    of_kind = (1, "none", positive), (0, "none", negative), (1, "ambiguous", either), (0, "ambiguous", either)
    for label, kind, rate in of_kind:
        members = rng.permutation(np.flatnonzero((y == label) & (cause == kind)))
        marker[members] = np.arange(members.size) < round(rate * members.size)
    cases["marker"] = marker
    cases.loc[shortcut & (cause == "none") & (marker != y), "cause"] = "spurious"


def _expose(cases: pd.DataFrame, rng: np.random.Generator, contrast: tuple[float, float]) -> None:
    """Fill in the contrast of each finding, the mimics of the films without one, and the dose."""
    cases["clear_amplitude"] = rng.uniform(*contrast, size=len(cases))
    faint = np.interp(cases["panel"], PANEL, FAINT)
    cases["amplitude"] = np.where(cases["panel"].isna(), cases["clear_amplitude"], faint)
    cases["exposure"] = np.exp(rng.normal(0, 0.15, size=len(cases)))
    empty = rng.permutation(np.flatnonzero(cases["finding"] == "none"))
    cases.loc[empty, "amplitude"] = 0.0
    mimicking = empty[: round(MIMICKING * empty.size)]
    cases["mimic"] = "none"
    cases.loc[mimicking, "mimic"] = np.resize(MIMICS, mimicking.size)


def _at_prevalence(cases: pd.DataFrame, share: float, prevalence: float, target: float) -> pd.DataFrame:
    """The first images of each class, in all this share of the images, the share `target` of them positive.

    Images are left out by their label and by nothing else. The panel's coin of those that stay is another one:
    p(y | image) moves with p(y).
    """
    n = round(share * len(cases))
    n_positive = round(target * n)
    rank = cases.groupby("y_true").cumcount()
    cases = cases[rank < np.where(cases["y_true"] == 1, n_positive, n - n_positive)].reset_index(drop=True)
    return cases.assign(panel=expit(logit(cases["panel"]) + logit(target) - logit(prevalence)))


def _posterior(cases: pd.DataFrame) -> pd.Series:
    kinds = {"none": "none"} | dict.fromkeys(SEEN_FINDINGS, "seen") | dict.fromkeys(UNSEEN_FINDINGS, "unseen")
    kind = cases["finding"].map(kinds)
    unambiguous = cases["y_true"].where(cases["panel"].isna())
    return cases["panel"].fillna(unambiguous.groupby([kind, cases["marker"]]).transform("mean"))
