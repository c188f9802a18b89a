"""The answer to: is the place where it is used like the place it learned from?"""

from functools import partial
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field
from scipy.special import expit
from tqdm import tqdm

from tmv_lib.calibration.errors import reliability_curve
from tmv_lib.calibration.prevalence import at_prevalence, prevalence_by_confusion, prevalence_by_em
from tmv_lib.data.audit import id_blocks, is_block
from tmv_lib.deferral.selective import cases_needed
from tmv_lib.pipeline.params import Params, Resamples, Seed
from tmv_lib.site.calibrated import blame, calibrate_at_site, combined, compare_calibration, labelled
from tmv_lib.site.learning_curve import MEASURES, bands, learning_curve
from tmv_lib.site.shift import (
    FEWEST_PERMUTATIONS,
    domain_test,
    feature_space,
    kolmogorov_smirnov,
    name_shift,
    or_absent,
    share_distance,
)
from tmv_lib.site.triage import accepted, certify_sides, one_image_each
from tmv_lib.statistics.classification import negative_log_likelihood
from tmv_lib.statistics.estimate import Resampler, adjust, curve, mean
from tmv_lib.statistics.resampling import generator

CLASSES = {"negative": 0, "positive": 1}
LOOKS_DIFFERENT = {"negative_class": ("y_true_0",), "positive_class": ("y_true_1",), "none": ()}  # else both


class SiteParams(Params):
    components: Annotated[int, Field(ge=1, le=10_000)]
    folds: Annotated[int, Field(ge=2, le=20)]
    foldings: Annotated[int, Field(ge=1, le=50)]
    permutations: Annotated[int, Field(ge=FEWEST_PERMUTATIONS, le=1_000_000)]
    patients: list[Annotated[int, Field(ge=10)]]
    draws: Annotated[int, Field(ge=20, le=100_000)]
    risk: Annotated[float, Field(gt=0, lt=1)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    resamples: Resamples
    seed: Seed


class Places(NamedTuple):
    """Cases of the source that fitted no network, the site's labelled cases, and those that judge.

    local is test itself where the site sent no split of its own: each case is then judged by what others taught.
    left_out: patients that the site sent and who stand in test as well.
    """

    source: pd.DataFrame
    local: pd.DataFrame
    test: pd.DataFrame
    left_out: int


def find_places(cases: pd.DataFrame) -> Places:
    """Sort cases outside train by place. Raises ValueError where no patient of val or cal is left for the source."""
    test, sent = (cases[cases["split"] == split] for split in ("test", "local"))
    judging = sent["patient_id"].isin(test["patient_id"] if len(sent) else [])
    local = test if judging.all() else sent[~judging]
    at_site = pd.concat([local["patient_id"], test["patient_id"]]).unique()
    source = cases[cases["split"].isin(["val", "cal"]) & ~cases["patient_id"].isin(at_site)]
    for split in ("val", "cal"):
        if not (source["split"] == split).any():
            raise ValueError(f"every patient of {split} is one of the site: no source is left")
    return Places(source, local, test, int(sent.loc[judging, "patient_id"].nunique()))


def add_components(cases: pd.DataFrame, train: np.ndarray, own: np.ndarray, params: SiteParams) -> pd.DataFrame:
    """The cases with `pc_...`: their features (n, d) in the principal components of the training cases'."""
    components = feature_space(train, n_components=params.components)(own)
    return cases.join(pd.DataFrame(components).add_prefix("pc_"))


def compare_looks(places: Places, members: list[str], params: SiteParams) -> dict[str, Any]:
    """Every test of source against site, by Holm one family, and the `name` of what they show.

    The cases' first features are the columns `pc_...`. `control` compares two parts of the source itself: it must stay
    quiet, or the tests are not to be believed.
    """
    source, site = places.source, places.local
    both = pd.concat([source.assign(site=0), site.assign(site=1)])
    both["patient_id"] = pd.factorize(both["patient_id"], sort=True)[0]  # names are sorted once, not for each test
    folds: dict[str, Any] = {"n_folds": params.folds, "n_foldings": params.foldings}

    def options(name: str) -> dict[str, Any]:
        return {"n_permutations": params.permutations, "rng": generator(params.seed, name)}

    figures: dict[str, Any] = {
        name: Resampler(part["patient_id"].to_numpy(), params.resamples, params.seed).counts(part["y_true"].to_numpy())
        for name, part in (("source", source), ("site", site))
    }
    parts = {"pooled": both, **{name: both[both["y_true"] == label] for name, label in CLASSES.items()}}
    for name, part in parts.items():
        who = (part["site"], part["patient_id"])
        looks = part.filter(like="pc_").to_numpy()
        figures[name] = {"features": or_absent(domain_test, looks, *who, **options("features"), **folds)}
        for member in members:
            logit = part[f"logit_{member}"]
            figures[name][f"logit_{member}"] = or_absent(kolmogorov_smirnov, logit, *who, **options("logit"))
    who = (both["site"], both["patient_id"])
    figures["prevalence"] = or_absent(share_distance, both["y_true"], *who, **options("prevalence"))
    adjust(figures, distinct=True)
    p_values = {
        name: [test["p_value_holm"] for test in figures[name].values() if "p_value_holm" in test] or [1.0]
        for name in parts
    }
    name = name_shift(**p_values, prevalence=figures["prevalence"].get("p_value_holm", 1.0))
    inside = source.assign(site=(source["split"] == "cal").astype(int))
    control = inside.filter(like="pc_").to_numpy(), inside["site"], inside["patient_id"]
    return figures | {"control": or_absent(domain_test, *control, **options("control"), **folds), "name": name}


def known_patients(places: Places, table: pd.DataFrame) -> int:
    """How many of the site's patients the networks were trained on; should be 0. table: the case table."""
    trained = table.loc[table["split"] == "train", "patient_id"]
    at_site = pd.concat([places.local["patient_id"], places.test["patient_id"]])
    return int(at_site[at_site.isin(trained)].nunique())


def file_numbers(table: pd.DataFrame, name: str) -> dict[str, Any]:
    """Whether the file numbers say that the site is another time or place than train, and explain the shift `name`."""
    blocks = id_blocks(table.assign(split=table["split"].replace("local", "test")))
    classes = {label: {**block, "is_block": is_block(block)} for label, block in blocks.items()}
    different = LOOKS_DIFFERENT.get(name, classes)
    return {"explain_the_shift": any(classes[y]["is_block"] for y in classes if y in different), **classes}


def prevalence(places: Places, member: str, name: str, params: SiteParams) -> dict[str, Any]:
    """Shares of positives, counted and as estimated without labels, and whether correcting for them is allowed.

    `correction`: `allowed` where nothing but the prevalence looks different, `not_made` where nothing does, else
    `refused`.
    """
    source, local, test, _ = places
    logit, shipped = test[f"logit_{member}"].to_numpy(), float(source.loc[source["split"] == "val", "y_true"].mean())
    both = pd.concat([source[source["split"] == "cal"].assign(site=0), test.assign(site=1)])
    of_local, of_test, of_both = (
        Resampler(rows["patient_id"].to_numpy(), params.resamples, params.seed) for rows in (local, test, both)
    )
    counted = of_local.estimate(mean, local["y_true"].to_numpy())
    confused = (both[column].to_numpy() for column in ("y_true", f"logit_{member}", "site"))
    figures: dict[str, Any] = {
        "source": shipped,
        "site": counted,
        "estimated_by_em": of_test.estimate(partial(prevalence_by_em, source=shipped), logit),
        # of each place as many
        "estimated_by_confusion": of_both.estimate(prevalence_by_confusion, *confused, stratify=both["site"]),
    }
    if name != "prevalence":
        return figures | {"correction": "not_made" if name == "none" else "refused"}
    corrected = at_prevalence(logit, source=shipped, target=float(counted.value or 0))
    before, after = (float(negative_log_likelihood(test["y_true"], z)) for z in (logit, corrected))
    return figures | {"correction": "allowed", "nll_as_shipped": before, "nll_corrected": after}


def calibrate(
    places: Places, cases: pd.DataFrame, members: list[str], params: SiteParams
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Figures of every member and of their mean, and a table of `site_logit_m` and `ceiling_logit_m` by `image_id`.

    Cases that are not the site's keep the logit as shipped.
    """
    source, local, test, _ = places
    logits, metrics = cases.set_index("image_id")[[]], dict[str, Any]()
    for member in tqdm(members, desc="calibrated at the site", leave=False):
        figures, updated = calibrate_at_site(local, test, member, params)
        for kind, values in updated.items():
            logits[f"{kind}_{member}"] = cases.set_index("image_id")[f"logit_{member}"]
            logits.loc[values.index, f"{kind}_{member}"] = values
        held = source[source["split"] == "cal"]
        metrics[member] = figures | {"interaction": compare_calibration(held, local, member, params)}
    interactions = {member: metrics[member]["interaction"] for member in members}
    adjust(interactions, distinct=True)
    for member, interaction in interactions.items():
        interaction["blame"] = blame(interaction, metrics[member]["update"]["name"])
    here = logits.loc[test["image_id"]]
    calibrations = {
        "as_shipped": test[[f"logit_{name}" for name in members]],
        "site_calibrated": here.filter(like="site_logit_"),
        "ceiling": here.filter(like="ceiling_logit_"),
    }
    return metrics | {"ensemble": combined(test, calibrations)}, logits


def learn(places: Places, member: str, params: SiteParams) -> tuple[dict[str, Any], pd.DataFrame]:
    """What the labels of n patients make of the model, judged by the test cases that did not teach.

    Medians as shipped, and by measure and number of patients what labels change, median and band; and rows to draw.
    """
    try:
        learned = learning_curve(
            labelled(places.local, member),
            judged_on=None if places.local is places.test else labelled(places.test, member),
            source_logit=places.source[f"logit_{member}"],
            n_patients=params.patients,
            n_draws=params.draws,
            risk=params.risk,
            delta=params.delta,
            rng=generator(params.seed, "learning curve"),
        )
    except ValueError as error:
        return {"absent": str(error)}, pd.DataFrame(columns=["measure", "n", "median", "low", "high"])
    banded = bands(learned)
    taught, ends = banded[banded["n"] > 0].astype({"n": str}).set_index("n"), ["median", "low", "high"]
    change = {measure: rows[ends].to_dict("index") for measure, rows in taught.groupby("measure", sort=False)}
    shipped = learned.loc[learned["n"] == 0, list(MEASURES)].median().to_dict()
    return {"as_shipped": shipped, "change": change}, banded


def certify(places: Places, member: str, params: SiteParams) -> dict[str, Any]:
    """What one labelled image of each local patient guarantees of the model as shipped, a side at a time.

    Of patients to come at this site, drawn like these: at most `risk` of the decisions on a certified side are wrong,
    with probability 1 - delta for both sides together.
    """
    single = places.local.iloc[one_image_each(places.local["patient_id"], rng=generator(params.seed, "certificate"))]
    y_true, logit, _ = labelled(single, member)
    shipped = places.source[f"logit_{member}"]
    sides = certify_sides(y_true, logit, source_logit=shipped, risk=params.risk, delta=params.delta)
    figures: dict[str, Any] = {"n_patients": len(single), "risk": params.risk, "delta": params.delta}
    figures["coverage"] = float(accepted(logit, sides).mean())
    needed = partial(cases_needed, params.risk, params.delta / 2)
    for name, side, here in (("positive", sides.positive, logit > 0), ("negative", sides.negative, logit <= 0)):
        figures[name] = (
            {"certified": True, "threshold": float(side.threshold), "n": side.n_accepted, "errors": side.errors}
            if side.certified
            else {
                "certified": False,
                "n": int(here.sum()),
                "errors": int(((logit[here] > 0) != y_true[here]).sum()),
                "needed": needed(errors=0),
                "needed_with_one_error": needed(errors=1),
            }
        )
    return figures


def reliability(cases: pd.DataFrame, members: list[str], logits: pd.DataFrame) -> pd.DataFrame:
    """Reliability where it was calibrated (`cal`, other patients) and at the site, as shipped and site-calibrated."""
    cal, test = (cases[cases["split"] == split] for split in ("cal", "test"))
    diagrams = []
    for member in members:
        for phase, part, logit in (
            ("source", cal, cal[f"logit_{member}"]),
            ("site, as shipped", test, test[f"logit_{member}"]),
            ("site, site-calibrated", test, logits.loc[test["image_id"], f"site_logit_{member}"].to_numpy()),
        ):
            diagram = reliability_curve(part["y_true"], expit(logit), n_bins=10)
            diagrams.append(pd.DataFrame(diagram._asdict()).assign(series=member, phase=phase))
    return pd.concat(diagrams)


def logit_distributions(places: Places, member: str) -> pd.DataFrame:
    """Distribution functions of the logit as shipped, by place and class."""
    steps = []
    for place, part in (("source", places.source), ("site", places.local)):
        for name, label in CLASSES.items():
            logit = np.sort(part.loc[part["y_true"] == label, f"logit_{member}"].to_numpy())
            share = (1 + np.arange(logit.size)) / max(logit.size, 1)
            steps.append(curve(f"{name}, {place}", logit=logit, share=share))
    return pd.concat(steps)
