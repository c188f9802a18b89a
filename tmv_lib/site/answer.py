"""The answer to: is the place where it is used like the place it learned from?"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field
from scipy.special import expit

from tmv_lib.calibration.calibrators import ranking
from tmv_lib.calibration.errors import calibration_test, reliability_curve
from tmv_lib.calibration.prevalence import at_prevalence, prevalence_by_confusion, prevalence_by_em
from tmv_lib.calibration.slope import calibration_in_the_large, calibration_slope
from tmv_lib.data.audit import blocks_explain, id_blocks
from tmv_lib.data.cases import COLUMNS
from tmv_lib.deferral.selective import cases_needed
from tmv_lib.pipeline.files import join, read_csv, read_rows
from tmv_lib.pipeline.params import Params
from tmv_lib.site.learning_curve import MEASURES, Labelled, learning_curve
from tmv_lib.site.shift import (
    FEWEST_PERMUTATIONS,
    LEVEL,
    WORDS,
    domain_test,
    feature_space,
    kolmogorov_smirnov,
    name_shift,
    prevalence_difference,
    share_distance,
)
from tmv_lib.site.triage import accepted, certify_sides, one_image_each
from tmv_lib.site.updating import (
    UPDATES,
    calibration_interaction,
    closed_test,
    cross_fitted_update,
    interval,
    patient_counts,
    resampled_update,
    site_folds,
)
from tmv_lib.statistics.classification import accuracy, brier_score, confusion_counts, negative_log_likelihood
from tmv_lib.statistics.estimate import by_class, counts, curve, figure, mean
from tmv_lib.statistics.tests import holm

CLASSES = {"negative": 0, "positive": 1}
MOST_WORDS = 20  # of one column, the rest together are one more
BLAME = {
    "site": "Calibration differs between source and site, and the site's labels reject the logit as shipped.",
    "home": "Home-grown miscalibration, the source shows the same: its patients that fitted nothing reject the logit as"
    " shipped, and no difference between source and site was shown.",
    "neither": "Neither source nor site rejects the logit as shipped, and no difference between them was shown.",
    "unclear": "These labels do not say whether the site or the source is where a miscalibration comes from.",
}
SHIFTED = {"negative_class": ("y_true_0",), "positive_class": ("y_true_1",), "none": ()}  # else both


class SiteParams(Params):
    components: Annotated[int, Field(ge=1)]
    folds: Annotated[int, Field(ge=2, le=20)]
    foldings: Annotated[int, Field(ge=1, le=50)]
    permutations: Annotated[int, Field(ge=FEWEST_PERMUTATIONS, le=1_000_000)]
    patients: list[Annotated[int, Field(ge=10)]]
    draws: Annotated[int, Field(ge=20)]
    risk: Annotated[float, Field(gt=0, lt=1)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    resamples: Annotated[int, Field(ge=100)]
    seed: Annotated[int, Field(ge=0)]


def gather(members: list[str], params: SiteParams) -> pd.DataFrame:
    """The cases outside train with calibrated logits of every member, and the first one's features as `pc_...`."""
    everyone = read_csv("data/prepare/cases.csv", ["image_id", "patient_id", "split", "y_true"])
    cases = everyone[everyone["split"] != "train"].reset_index(drop=True)
    calibrated = read_csv("data/calibration/cases.csv", ["image_id", *(f"logit_{name}" for name in members)])
    predictions = read_csv(f"data/train/{members[0]}/predictions.csv", ["image_id", "split"])
    path = f"data/train/{members[0]}/features.npy"
    if not Path(path).exists():  # a model of somebody else's
        return join(cases, calibrated)
    read_features = partial(read_rows, path, image_id=predictions["image_id"])
    train = read_features(wanted=predictions.loc[predictions["split"] == "train", "image_id"])
    features = feature_space(train, n_components=params.components)(read_features(wanted=cases["image_id"]))
    table = pd.DataFrame(features).add_prefix("pc_")
    return join(cases, calibrated, table.assign(image_id=cases["image_id"]))


def labelled(cases: pd.DataFrame, member: str) -> Labelled:
    """Truth, logit as shipped and patient of these cases."""
    return Labelled(*(cases[name].to_numpy() for name in ("y_true", f"logit_{member}", "patient_id")))


def known_patients(at_site: set[str]) -> dict[str, Any]:
    """How many of the site's patients the networks were trained on; should be 0, and is warned of where it is not."""
    everyone = read_csv("data/prepare/cases.csv", ["patient_id", "split"])
    known = len(at_site & set(everyone.loc[everyone["split"] == "train", "patient_id"]))
    found: dict[str, Any] = {"training_patients_at_the_site": known}
    if known:
        found["warning"] = (
            f"{known} of the {len(at_site)} patients of the site stand in train, too: the networks know them. What"
            " looks like a shift may be memory, and no figure of the site is one of new patients."
        )
    return found


def shifted(
    source: pd.DataFrame, site: pd.DataFrame, members: list[str], params: SiteParams, rng: np.random.Generator
) -> tuple[dict[str, Any], str]:
    """Every test of source against site, by Holm one family, and the name of what they found."""
    both = pd.concat([source.assign(site=0), site.assign(site=1)])
    dealt = {"n_permutations": params.permutations, "rng": rng}
    folded = {**dealt, "n_folds": params.folds, "n_foldings": params.foldings}
    found: dict[str, Any] = {
        name: counts(part["y_true"].to_numpy(), part["patient_id"].to_numpy())
        for name, part in (("source", source), ("site", site))
    }
    parts = {"pooled": both, **{name: both[both["y_true"] == label] for name, label in CLASSES.items()}}
    for name, part in parts.items():
        who = (part["site"], part["patient_id"])
        found[name] = {"features": tested(domain_test, part.filter(like="pc_").to_numpy(), *who, **folded)}
        for member in members:
            found[name][f"logit_{member}"] = tested(kolmogorov_smirnov, part[f"logit_{member}"], *who, **dealt)
    found["prevalence"] = tested(prevalence_difference, both["y_true"], both["site"], both["patient_id"], **dealt)
    correct(found)

    def p_values(name: str) -> list[float]:
        return [test["p_value_holm"] for test in found[name].values() if "p_value_holm" in test] or [1.0]

    name = name_shift(
        negative=p_values("negative"),
        positive=p_values("positive"),
        prevalence=found["prevalence"].get("p_value_holm", 1.0),
        pooled=p_values("pooled"),
    )
    # of two parts of the source itself: must stay quiet, or the tests are not to be believed
    inside = source.assign(site=(source["split"] == "cal").astype(int))
    found["control"] = tested(
        domain_test, inside.filter(like="pc_").to_numpy(), inside["site"], inside["patient_id"], **folded
    )
    return found | {"name": name, "words": WORDS[name]}, name


def correct(found: dict[str, Any]) -> None:
    """Add Holm's `p_value_holm` to every shift test in these nested figures.

    Not `reporting.adjust`: two columns that differ as much as they can have equal figures, and are two tests.
    """
    tests = [entry for part in found.values() if isinstance(part, dict) for entry in (part, *part.values())]
    tests = [entry for entry in tests if isinstance(entry, dict) and "p_value" in entry]
    if tests:
        for entry, p_value in zip(tests, holm([entry["p_value"] for entry in tests]), strict=True):
            entry["p_value_holm"] = float(p_value)


def tested(test: Any, *arrays: Any, **options: Any) -> dict[str, Any]:
    """A shift test as it stands in the metrics file, or the reason why there is none."""
    try:
        return test(*arrays, **options)._asdict()
    except ValueError as error:
        return {"absent": str(error)}


def differing_columns(
    source: pd.Series, site: pd.Series, params: SiteParams, rng: np.random.Generator
) -> dict[str, Any]:
    """Which further columns of the case table (device, view, date, age) differ, each tested, by Holm one family."""
    table = pd.read_csv("data/prepare/cases.csv", dtype={"image_id": str, "patient_id": str}).set_index("image_id")
    both = table.loc[[*source, *site]].assign(at_site=np.repeat([0, 1], [len(source), len(site)]))
    told = [] if "phantom" in set(both["source"]) else [name for name in table if name not in COLUMNS]
    found, said = {}, {}
    for name in told:
        if len(both[name].unique()) > 1:
            found[name], said[name] = one_column(both, name, n_permutations=params.permutations, rng=rng)
    if not found:
        return {"absent": "the case table has no further column that varies, such as a device, a view or a date"}
    correct(found)
    differ = [said[name] for name, test in found.items() if test.get("p_value_holm", 1.0) < LEVEL]
    if not differ:
        return found | {"words": f"In none of these {len(found)} columns was a difference of source and site shown."}
    return found | {"words": f"Between source and site differ {'; '.join(differ)}."}


def one_column(both: pd.DataFrame, name: str, **dealt: Any) -> tuple[dict[str, Any], str]:
    """The test of a column of words or numbers, and what it is at source and site in words; missing is a word too."""
    column, domain = both[name], both["at_site"]
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        there = column.notna()
        found = tested(kolmogorov_smirnov, column[there], domain[there], both.loc[there, "patient_id"], **dealt)
        source, site = (column[domain == place].median() for place in (0, 1))
        return found, f"{name} (median {source:.8g} at the source, {site:.8g} at the site)"
    words = column.astype(object).where(column.notna(), "missing").astype(str)
    words = words.where(words.isin(words.value_counts().index[:MOST_WORDS]), "other")
    found = tested(share_distance, words, domain, both["patient_id"], **dealt)
    shares = pd.crosstab(words, domain, normalize="columns")
    most = (shares[1] - shares[0]).abs().idxmax()
    return found, f"{name} ({most}: {shares.loc[most, 0]:.0%} of the source, {shares.loc[most, 1]:.0%} of the site)"


def blocks(name: str) -> dict[str, Any]:
    """Whether the file numbers say that the site is another time or place than train, and explain this shift."""
    cases = pd.read_csv("data/prepare/cases.csv", dtype={"image_id": str, "patient_id": str})
    found = id_blocks(cases.assign(split=cases["split"].replace("local", "test")))
    explain, words = blocks_explain(found, shifted=SHIFTED.get(name, ("y_true_0", "y_true_1")))
    return {"explain_the_shift": explain, "words": words}


def prevalence(
    source: pd.DataFrame,
    local: pd.DataFrame,
    test: pd.DataFrame,
    member: str,
    name: str,
    params: SiteParams,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Shares of positives, counted and as estimated without labels, and whether correcting for them is allowed."""
    logit, shipped = test[f"logit_{member}"].to_numpy(), float(source.loc[source["split"] == "val", "y_true"].mean())
    resampling: dict[str, Any] = {"n_resamples": params.resamples, "rng": rng}
    found: dict[str, Any] = {"source": shipped}
    found |= figure("site", mean, local["y_true"].to_numpy(), groups=local["patient_id"], **resampling)
    by_em = partial(prevalence_by_em, source=shipped)
    found |= figure("estimated_by_em", by_em, logit, groups=test["patient_id"], **resampling)
    both = pd.concat([source[source["split"] == "cal"].assign(site=0), test.assign(site=1)])
    asked = (both[column].to_numpy() for column in ("y_true", f"logit_{member}", "site"))
    resampling |= {
        "groups": both["patient_id"],
        "stratify": both["site"],
    }  # of each place as many
    found |= figure("estimated_by_confusion", prevalence_by_confusion, *asked, **resampling)
    if name not in ("none", "prevalence"):
        reason = f"refused: a correction for prevalence holds where nothing else differs. {WORDS[name]}"
        return found | {"correction": reason}
    if name == "none":
        return found | {"correction": "not made: no difference of the prevalence was shown"}
    corrected = at_prevalence(logit, source=shipped, target=found["site"])
    before, after = (float(negative_log_likelihood(test["y_true"], z)) for z in (logit, corrected))
    return found | {"correction": "allowed", "nll_as_shipped": before, "nll_corrected": after}


def require_ranking(local: pd.DataFrame, member: str) -> None:
    """Raise ValueError where the site's labels say that the scores rank the wrong way: no update may hide that."""
    y_true, logit, groups = labelled(local, member)
    if set(y_true) != {0, 1}:
        return
    found = ranking(y_true, logit, groups=groups)
    if found.high < 0.5:
        raise ValueError(
            f"data/prepare/cases.csv: {member} ranks the cases of the site the wrong way: AUROC {found.auroc:.3f}, its"
            f" upper 97.5 % bound over patients {found.high:.3f}; are the labels of the site reversed?"
        )


def three_columns(
    local: pd.DataFrame,
    test: pd.DataFrame,
    member: str,
    logits: pd.DataFrame,
    params: SiteParams,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """One member on the test cases as shipped, site-calibrated and at its ceiling; fills in the logits of both."""
    y_true, shipped, groups = labelled(test, member)
    require_ranking(local, member)
    chosen = closed_test(*labelled(local, member)[:2], groups=local["patient_id"])
    found: dict[str, Any] = {
        "update": {
            "name": UPDATES[int(chosen.choice[0])],
            "intercept": float(chosen.intercept[0]),
            "slope": float(chosen.slope[0]),
            "against_keep": float(chosen.against_keep[0]),
            "against_intercept": float(chosen.against_intercept[0]),
            "design_effect": float(chosen.design_effect[0]),
        }
    }
    measured = partial(column, y_true, groups=groups, params=params, rng=rng)
    found["as_shipped"] = measured(shipped)
    if local is test:
        folded = cross_fitted(test, member, params, rng)
        found["update"]["times_chosen_cross_fitted"] = folded["times_chosen"]
        calibrated = folded["logit"]
        found["site_calibrated"] = measured(calibrated, intervals=False) | folded["intervals"]
    else:
        calibrated = chosen.intercept[0] + chosen.slope[0] * shipped
        found["site_calibrated"] = measured(calibrated)
        others = cross_fitted(local, member, params, rng)["logit"]
        logits.loc[local["image_id"], f"site_logit_{member}"] = others
    best = closed_test(y_true, shipped, groups=groups)
    ceiling = best.intercept[0] + best.slope[0] * np.asarray(shipped)
    found["ceiling"] = measured(ceiling, intervals=False)
    logits.loc[test["image_id"], f"site_logit_{member}"] = calibrated
    logits.loc[test["image_id"], f"ceiling_logit_{member}"] = ceiling
    return found


def interaction(
    source: pd.DataFrame, local: pd.DataFrame, member: str, params: SiteParams, rng: np.random.Generator
) -> dict[str, Any]:
    """Whether the logit as shipped is calibrated otherwise at the site than on `cal`, patients that fitted nothing."""
    held = source[source["split"] == "cal"]
    at_home = closed_test(*labelled(held, member)[:2], groups=held["patient_id"])
    found: dict[str, Any] = {"update_at_source": UPDATES[int(at_home.choice[0])]}
    both = pd.concat([held.assign(site=0), local.assign(site=1)])
    y_true, logit, groups = labelled(both, member)
    try:
        tested = calibration_interaction(
            y_true, logit, both["site"], groups=groups, n_resamples=params.resamples, rng=rng
        )
    except ValueError as error:
        return found | {"absent": str(error)}
    found |= {"p_value": tested.p_value, "design_effect": tested.design_effect}
    for name in ("intercept_difference", "slope_difference"):
        values = getattr(tested, name)
        low, high = np.quantile(values[1:], [0.025, 0.975])
        found |= {name: float(values[0]), f"{name}_low": float(low), f"{name}_high": float(high)}
    return found


def blamed(found: dict[str, Any], at_site: str) -> dict[str, str]:
    """Who is to blame for a miscalibration, by `interaction`, adjusted by Holm, and the update taken at the site."""
    differs = found.get("p_value_holm", 1.0) < LEVEL
    home, here = found["update_at_source"] != "keep", at_site != "keep"
    if "absent" in found or (differs and not here) or (here and not differs and not home):
        blame = "unclear"
    else:
        blame = "site" if differs else "home" if home else "neither"
    return {"blame": blame, "words": BLAME[blame]}


def cross_fitted(cases: pd.DataFrame, member: str, params: SiteParams, rng: np.random.Generator) -> dict[str, Any]:
    """Each case updated by other patients, with intervals of the whole procedure; as shipped where they are too few."""
    y_true, shipped, groups = labelled(cases, member)
    n_patients = cases["patient_id"].nunique()
    if n_patients < params.folds:
        words = f"{n_patients} patients are fewer than the {params.folds} folds: the logits stay as shipped"
        return {"logit": shipped, "times_chosen": {}, "intervals": {"intervals_absent": words}}
    folds = site_folds(groups, n_folds=params.folds, n_foldings=params.foldings, rng=rng)
    fitted = cross_fitted_update(y_true, shipped, groups=groups, folds=folds)
    weights = patient_counts(groups, n_resamples=params.resamples, rng=rng)
    resampled = resampled_update(y_true, shipped, groups=groups, folds=folds, weights=weights)
    intervals: dict[str, Any] = {}
    # slope and calibration-in-the-large of logits refitted in every resample are 1 and 0 but for rounding: no interval
    for name in ("nll", "brier_score", "accuracy"):
        intervals |= interval(name, FIGURES[name], y_true, resampled, weights)
    return {"logit": fitted.logit, "times_chosen": fitted.times_chosen, "intervals": intervals}


def of_probability(metric: Any, y_true: Any, logit: Any, *, weights: Any = None) -> Any:
    """A metric of probabilities, of the logit."""
    return metric(y_true, expit(logit), weights=weights)


def of_decision(metric: Any, y_true: Any, logit: Any, *, weights: Any = None) -> Any:
    """A metric of decisions at p > 0.5, of the logit."""
    return metric(y_true, (np.asarray(logit) > 0).astype(int), weights=weights)


FIGURES: dict[str, Callable[..., Any]] = {
    "nll": negative_log_likelihood,
    "brier_score": partial(of_probability, brier_score),
    "accuracy": partial(of_decision, accuracy),
    "slope": calibration_slope,
    "in_the_large": calibration_in_the_large,
}


def column(
    y_true: np.ndarray,
    logit: np.ndarray,
    *,
    groups: np.ndarray,
    params: SiteParams,
    rng: np.random.Generator,
    intervals: bool = True,
) -> dict[str, Any]:
    """Calibration and decisions at p > 0.5 of one logit on the test cases; an ECE beside its noise floor."""
    decided = (logit > 0).astype(int)
    _, false_positive, false_negative, _ = confusion_counts(y_true, decided)
    found: dict[str, Any] = {"false_positive": false_positive, "false_negative": false_negative}
    resampling: dict[str, Any] = {"groups": groups, "n_resamples": params.resamples, "rng": rng}
    for name, metric in FIGURES.items():
        found |= figure(name, metric, y_true, logit, interval=intervals, **resampling)
    if intervals:
        found |= by_class(y_true, decided, **resampling)
    return found | {"ece": calibration_test(y_true, expit(logit), rng=rng)._asdict()}


def together(test: pd.DataFrame, members: list[str], logits: pd.DataFrame) -> dict[str, Any]:
    """The mean of the members' probabilities in three columns: its errors, and how often the members disagree."""
    y_true, here = test["y_true"].to_numpy(), logits.loc[test["image_id"]]
    shipped = test.set_index("image_id")[[f"logit_{name}" for name in members]]
    found: dict[str, Any] = {}
    for name, part in (
        ("as_shipped", shipped),
        ("site_calibrated", here.filter(like="site_logit_")),
        ("ceiling", here.filter(like="ceiling_logit_")),
    ):
        y_prob, decided = expit(part.to_numpy()).mean(axis=1), part.to_numpy() > 0
        _, false_positive, false_negative, _ = confusion_counts(y_true, (y_prob > 0.5).astype(int))
        found[name] = {"false_positive": false_positive, "false_negative": false_negative}
        found[name] |= {"accuracy": float(accuracy(y_true, (y_prob > 0.5).astype(int)))}
        found[name] |= {"disagree": int((decided != decided[:, :1]).any(axis=1).sum())}
    return found


def learn(
    local: pd.DataFrame,
    test: pd.DataFrame,
    source: pd.DataFrame,
    member: str,
    params: SiteParams,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """What the labels of n patients make of the model, judged by the test cases that did not teach."""
    return learning_curve(
        labelled(local, member),
        judged_on=None if local is test else labelled(test, member),
        source_logit=source[f"logit_{member}"],
        n_patients=params.patients,
        n_draws=params.draws,
        risk=params.risk,
        delta=params.delta,
        rng=rng,
    )


def bought(learned: pd.DataFrame, banded: pd.DataFrame) -> dict[str, Any]:
    """The learning curve as it stands in the metrics file: medians as shipped, and by measure and number of patients
    what labels change, median and band.
    """
    shipped = learned.loc[learned["n"] == 0, list(MEASURES)].median()
    found: dict[str, Any] = {"as_shipped": shipped.to_dict(), "change": {}}
    for row in banded[banded["n"] > 0].to_dict("records"):
        ends = {name: float(row[name]) for name in ("median", "low", "high")}
        found["change"].setdefault(row["measure"], {})[f"{row['n']}"] = ends
    return found


def certificate(
    source: pd.DataFrame, local: pd.DataFrame, member: str, params: SiteParams, rng: np.random.Generator
) -> dict[str, Any]:
    """What one labelled image of each local patient guarantees of the model as shipped, a side at a time."""
    single = local.iloc[one_image_each(local["patient_id"], rng=rng)]
    y_true, logit, _ = labelled(single, member)
    sides = certify_sides(y_true, logit, source_logit=source[f"logit_{member}"], risk=params.risk, delta=params.delta)
    found: dict[str, Any] = {
        "population": f"patients to come at this site, drawn like these {len(single)}, one image of each",
        "risk": params.risk,
        "delta": params.delta,
        "coverage": float(accepted(logit, sides).mean()),
    }
    for name, side, there in (("positive", sides.positive, logit > 0), ("negative", sides.negative, logit <= 0)):
        if side.certified:
            found[name] = {"threshold": float(side.threshold), "n": side.n_accepted, "errors": side.errors}
            found[name]["words"] = (
                f"at most {params.risk:.0%} of these decisions are wrong, with {1 - params.delta:.0%} confidence for"
                " both sides together"
            )
            continue
        needed = cases_needed(params.risk, params.delta / 2)
        wrong = int(((logit > 0) != y_true)[there].sum())
        found[name] = {
            "words": f"nothing can be certified: {int(there.sum())} patients are decided this way, {wrong} of them "
            f"wrongly; it takes {needed} without an error, {cases_needed(params.risk, params.delta / 2, errors=1)} "
            "with one"
        }
    return found


def reliability(cases: pd.DataFrame, members: list[str], logits: pd.DataFrame) -> pd.DataFrame:
    """Reliability where it was calibrated (`cal`, other patients) and at the site, as shipped and site-calibrated."""
    diagrams = []
    for member in members:
        cal, test = (cases[cases["split"] == split] for split in ("cal", "test"))
        site_logit = logits.loc[test["image_id"], f"site_logit_{member}"].to_numpy()
        for phase, part, logit in (
            ("source", cal, cal[f"logit_{member}"]),
            ("site, as shipped", test, test[f"logit_{member}"]),
            ("site, site-calibrated", test, site_logit),
        ):
            found = reliability_curve(part["y_true"], expit(logit), n_bins=10)
            diagrams.append(pd.DataFrame(found._asdict()).assign(series=member, phase=phase))
    return pd.concat(diagrams)


def distributions(source: pd.DataFrame, site: pd.DataFrame, member: str) -> pd.DataFrame:
    """Distribution functions of the logit as shipped, by place and class."""
    steps = []
    for place, part in (("source", source), ("site", site)):
        for name, label in CLASSES.items():
            logit = np.sort(part.loc[part["y_true"] == label, f"logit_{member}"].to_numpy())
            share = (1 + np.arange(logit.size)) / max(logit.size, 1)
            steps.append(curve(f"{name}, {place}", logit=logit, share=share))
    return pd.concat(steps)
