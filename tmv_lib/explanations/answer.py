"""The answer to: where does it look, and does that depend on what it learned?"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field
from scipy.special import expit
from tqdm import tqdm

from tmv_lib.calibration.calibrators import Calibrator
from tmv_lib.explanations import attribution, faithfulness, map_verdict, regions, sanity
from tmv_lib.explanations.attribution import Explained, Method
from tmv_lib.network import classifier
from tmv_lib.pipeline.files import Images
from tmv_lib.pipeline.params import Params, Resamples, Seed
from tmv_lib.statistics.estimate import Estimate, Resampler, adjust, mean
from tmv_lib.statistics.ranking import rank_correlation
from tmv_lib.statistics.resampling import generator

FRACTIONS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
BATCHES = 32  # in memory at once, for several processes to share
DONORS = 8  # other patients with whom a misread image changes its inside, and its frame
OF_CHEST_FILMS = ("midline", "fields")  # regions by a rule that is made for these
NO_CHEST_FILM = "the rule for this region is made for frontal chest films, and colour images are none"
NOTHING_TO_LOOK_AT = "every map of the test split is empty", "no finding of the test split is named on a map"


class ExplanationsParams(Params):
    method: Method
    layers: dict[str, str]
    batch_size: Annotated[int, Field(ge=1, le=65_536)]
    border: Annotated[float, Field(gt=0, lt=0.5)]
    sanity_cases: Annotated[int, Field(ge=8)]
    untrained_networks: Annotated[int, Field(ge=1, le=1000)]
    random_pairs: Annotated[int, Field(ge=1, le=1000)]
    resamples: Resamples
    seed: Seed


class Material(NamedTuple):
    """All cases outside train, row by row: table, images, masks where the source has them; and the median image."""

    cases: pd.DataFrame
    images: Images
    masks: dict[str, np.ndarray]
    typical: np.ndarray


class Member(NamedTuple):
    """One network and what goes with it. fresh(draw): another of its architecture that learned nothing."""

    name: str
    trained: classifier.Classifier
    fresh: Callable[[int], classifier.Classifier]
    calibrator: Calibrator
    layer: str


class Answer(NamedTuple):
    """What one member's maps of the logit tell.

    maps, untrained_maps (n, h, w): of the member, and of a network that learned nothing. target, blank (n,): +1 or -1,
    the class that each of them names. columns (n,) by name. interchanged: calibrated probabilities once insides and
    frames were interchanged. plots: tables by the name of a plot.
    """

    metrics: dict[str, Any]
    columns: dict[str, np.ndarray]
    maps: np.ndarray
    untrained_maps: np.ndarray
    target: np.ndarray
    blank: np.ndarray
    interchanged: regions.Interchanged
    plots: dict[str, pd.DataFrame]


def draw_donors(cases: pd.DataFrame, witness: np.ndarray, members: list[str], *, seed: int) -> np.ndarray:
    """For each case that a member misreads, rows of clear cases of validation: clear to the network without border.

    witness: (n,), the logit of that network.
    """
    y_true, probs = cases["y_true"].to_numpy(), cases[[f"y_prob_{name}" for name in members]].to_numpy()
    return regions.clear_donors(
        y_true,
        cases["patient_id"].to_numpy(),
        witness,
        asked=((probs > 0.5) != (y_true == 1)[:, None]).any(axis=1),
        among=(cases["split"] == "val").to_numpy(),
        number=DONORS,
        rng=np.random.default_rng(seed),
    )


def explain(
    member: Member,
    material: Material,
    donors: np.ndarray,
    chosen: np.ndarray,
    params: ExplanationsParams,
) -> Answer:
    """Every map of one member, what its answers hang on, and what the checks on the `chosen` cases say of the maps.

    donors: rows (n, k) of the cases with which each one changes its inside and its frame, -1 for none.
    """
    cases, images = material.cases, material.images
    target = np.where(cases[f"y_prob_{member.name}"] > 0.5, 1, -1)
    explainer = partial(
        attribution.explainer,
        layer=member.layer,
        batch_size=params.batch_size,
        method=params.method,
    )
    own: Explained = explainer(member.trained, progress=_bar(member, "maps"))(images)
    blank: Explained = explainer(member.fresh(0), progress=_bar(member, "untrained maps"))(images)
    columns, interchanged = look(member, material, own, donors, target, params)
    metrics: dict[str, Any] = {"method": params.method, "layer": member.layer, "grid": own.maps.shape[1]}
    metrics["precision"] = member.trained.precision
    metrics |= where_it_looks(columns, material, own.maps.shape[1:], params)
    if "marker" in cases and isinstance(metrics["border"], dict):  # else every map is empty
        metrics["border"] |= by_marker(columns, cases, target > 0, params)
    check = member.trained, images, own.logit, own.maps
    metrics["completeness"] = sanity.completeness(*check, layer=member.layer, method=params.method)
    some = cases.iloc[chosen]
    metrics["sanity"], levels = check_sanity(member, explainer, images[chosen], own.maps[chosen], some, params)
    maps = own.maps[chosen] * target[chosen, None, None]
    metrics["faithfulness"], curves = check_faithfulness(member, images[chosen], maps, target[chosen], some, params)
    areas = (metrics["faithfulness"][f"{kind}_area_minus_random"] for kind in ("deletion", "insertion"))
    columns["untrained_logit"] = blank.logit
    return Answer(
        {"verdict": map_verdict.judge(metrics["sanity"]["untrained"], *areas)} | metrics,
        columns,
        own.maps,
        blank.maps,
        target,
        np.where(blank.logit > 0, 1, -1),
        interchanged,
        {
            "sanity": levels.assign(series=member.name),
            "faithfulness": curves.assign(series=[f"{member.name} {series}" for series in curves["series"]]),
        },
    )


def _bar(member: Member, what: str) -> Callable[[Iterable[Any]], Iterable[Any]]:
    return partial(tqdm, desc=f"{member.name}: {what}", leave=False)


def read_logits(member: Member, images: np.ndarray, params: ExplanationsParams) -> np.ndarray:
    """The member's own logits (n,) of uint8 images or levels (n, height, width[, 3])."""
    return classifier.predict(member.trained, images, batch_size=params.batch_size).logit


def look(
    member: Member,
    material: Material,
    own: Explained,
    donors: np.ndarray,
    target: np.ndarray,
    params: ExplanationsParams,
) -> tuple[dict[str, np.ndarray], regions.Interchanged]:
    """Per case where the map points, what hiding the border does, and what insides and frames of others do."""
    at_once = BATCHES * params.batch_size
    starts = _bar(member, "border hidden")(range(0, len(material.images), at_once))
    parts = (material.images[start : start + at_once] for start in starts)
    bare = (regions.hide_border(part, material.typical, share=params.border) for part in parts)
    hidden = np.concatenate([read_logits(member, batch, params) for batch in bare])
    interchanged = regions.interchange(
        lambda mixed: member.calibrator.probability(read_logits(member, mixed, params)),
        material.images,
        donors,
        share=params.border,
        progress=_bar(member, "borders interchanged"),
    )
    boundary = member.calibrator.boundary()
    maps = own.maps * target[:, None, None]
    columns = regions.shares(maps, material.masks, share=params.border, positive=target > 0) | {
        "border_effect": own.logit - hidden,
        "border_flips": (own.logit > boundary) != (hidden > boundary),
        **regions.border_to_blame(interchanged, material.cases["y_true"].to_numpy()),
    }
    return columns, interchanged


def on_test(name: str, values: np.ndarray, cases: pd.DataFrame, params: ExplanationsParams) -> dict[str, Any]:
    """A mean over the test cases that have a value, with its interval and their number."""
    there = (cases["split"] == "test").to_numpy() & ~np.isnan(values)
    resampler = Resampler(cases["patient_id"].to_numpy()[there], params.resamples, params.seed)
    return {"n": int(there.sum()), name: resampler.estimate(mean, values[there])}


def where_it_looks(
    columns: dict[str, np.ndarray],
    material: Material,
    grid: tuple[int, ...],
    params: ExplanationsParams,
) -> dict[str, Any]:
    """Shares of the maps on the test split, with intervals, beside chance, and for the finding beside the ceiling."""
    cases, test = material.cases, (material.cases["split"] == "test").to_numpy()
    figures: dict[str, Any] = {}
    for name, column in (("empty_map_rate", "empty"), ("border_flip_rate", "border_flips")):
        figures |= on_test(name, columns[column].astype(float), cases, params)
    counted = Resampler(cases["patient_id"].to_numpy()[test], params.resamples, params.seed)
    figures |= counted.counts(cases["y_true"].to_numpy()[test])
    for name, levels in regions.chance(material.masks, share=params.border, n=len(cases)).items():
        there = test & ~np.isnan(columns[name])
        if name in OF_CHEST_FILMS and material.images.ndim == 4:
            figures[name] = Estimate(absent=NO_CHEST_FILM)
            continue
        if not there.any():
            figures[name] = Estimate(absent=NOTHING_TO_LOOK_AT[name in ("finding", "pointing")])
            continue
        figures[name] = {"chance": float(levels[there].mean())}
        if name == "finding":
            figures[name]["ceiling"] = float(regions.ceiling(material.masks["masks"][there], grid).mean())
        label = "hit_rate" if name == "pointing" else "energy"
        figures[name] |= on_test(label, columns[name], cases, params)
    return figures


def by_marker(
    columns: dict[str, np.ndarray],
    cases: pd.DataFrame,
    positive: np.ndarray,
    params: ExplanationsParams,
) -> dict[str, Any]:
    """Among test cases that are named positive, with and without a marker: border energy and border flips."""
    figures: dict[str, Any] = {}
    for kind, marked in (("with_marker", 1), ("without_marker", 0)):
        here = positive & (cases["marker"] == marked).to_numpy()
        figures[kind] = {}
        for name, column in (("energy", "border"), ("flip_rate", "border_flips")):
            figures[kind] |= on_test(name, np.where(here, columns[column], np.nan), cases, params)
    return figures


def check_sanity(
    member: Member,
    explainer: Callable[..., Callable[[np.ndarray], Explained]],
    images: np.ndarray,
    maps: np.ndarray,
    cases: pd.DataFrame,
    params: ExplanationsParams,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Each level of the cascade of randomised networks against random pairs of the raw maps, for metrics and plot."""
    similarity: dict[str, list[np.ndarray]] = {}
    flat = maps.reshape(len(maps), -1)
    for draw in range(params.untrained_networks):
        cascade = sanity.cascade(member.trained, member.fresh(draw))
        for level, hybrid in tqdm(cascade, desc=f"{member.name}: randomised, draw {draw + 1}", leave=False):
            other = explainer(hybrid)(images).maps.reshape(flat.shape)
            similarity.setdefault(level, []).append(rank_correlation(flat, other))
    groups = cases["patient_id"].to_numpy()
    reference = sanity.random_pairs(maps, groups=groups, pairs=params.random_pairs, rng=generator(params.seed, "pairs"))
    resampler = Resampler(groups, params.resamples, params.seed)
    levels = {"random pairs": sanity.describe(reference, resampler)}
    levels |= {level: sanity.compare_level(np.stack(of), reference, resampler) for level, of in similarity.items()}
    known = {level: of["similarity"] for level, of in levels.items() if of["similarity"].value is not None}
    rows = [{"level": level, "similarity": of.value, "low": of.low, "high": of.high} for level, of in known.items()]
    counted = {"untrained_networks": params.untrained_networks, "pairs_per_case": params.random_pairs}
    return {"n": len(cases), **counted, **levels}, pd.DataFrame(rows, columns=["level", "similarity", "low", "high"])


def check_faithfulness(
    member: Member,
    images: np.ndarray,
    maps: np.ndarray,
    target: np.ndarray,
    cases: pd.DataFrame,
    params: ExplanationsParams,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Areas under deletion and insertion by map minus those at random, with intervals, and the mean curves.

    maps (n, h, w): of the class that the member names, `target` (n,).
    """
    boundary = member.calibrator.boundary()

    def probability(levels: np.ndarray) -> np.ndarray:
        return expit((read_logits(member, levels, params) - boundary) * target)

    orders = {"by map": maps, "at random": faithfulness.random_order(maps, rng=generator(params.seed, "order"))}
    curves = faithfulness.deletion_and_insertion(probability, images, orders, fractions=FRACTIONS)
    resampler = Resampler(cases["patient_id"].to_numpy(), params.resamples, params.seed)
    figures: dict[str, Any] = {"n": len(cases)}
    for kind in ("deletion", "insertion"):
        by_map, at_random = (faithfulness.area(curves[kind, order], FRACTIONS) for order in orders)
        figures[f"{kind}_area_minus_random"] = resampler.estimate(mean, by_map - at_random, null=0.0)
    adjust(figures)
    rows = [
        pd.DataFrame({"series": f"{kind} {order}", "fraction": FRACTIONS, "probability": curve.mean(axis=1)})
        for (kind, order), curve in curves.items()
    ]
    return figures, pd.concat(rows)


def compare_members(
    answers: dict[str, Answer], cases: pd.DataFrame, params: ExplanationsParams
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Columns of every case and figures of the test split that need all members: agreement, and borders to blame."""
    table = cases[["image_id"]]
    for name, answer in answers.items():
        table = table.assign(**{f"{key}_{name}": column for key, column in answer.columns.items()})
    first, second, *_ = answers.values()
    table = table.assign(map_agreement=sanity.agreement(first.maps, second.maps))
    pairs = zip(*(answer.interchanged for answer in answers.values()), strict=True)
    mean_of_members = regions.Interchanged(*(np.mean(of, axis=0) for of in pairs))
    of_ensemble = regions.border_to_blame(mean_of_members, cases["y_true"].to_numpy())
    table = table.assign(**{f"{kind}_ensemble": column for kind, column in of_ensemble.items()})
    metrics: dict[str, Any] = {name: answer.metrics for name, answer in answers.items()}
    metrics["map_agreement"] = on_test("rank_correlation", table["map_agreement"].to_numpy(), cases, params)
    for name, answer in answers.items():
        misread = (cases[f"y_prob_{name}"] > 0.5) != (cases["y_true"] == 1)
        for column in ("border_misleads", "border_mends"):
            of_errors = np.where(misread, answer.columns[column], np.nan)
            metrics[name][f"{column}_of_errors"] = on_test("rate", of_errors, cases, params)
    return table, metrics
