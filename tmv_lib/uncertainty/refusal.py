"""Which cases are refused as unlike the training images, and what becomes of images that surely are unlike them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from tmv_lib.pipeline.files import Images
from tmv_lib.pipeline.record import few
from tmv_lib.statistics.estimate import Estimate, Resampler, interval_rows, mean
from tmv_lib.uncertainty import out_of_distribution as ood
from tmv_lib.uncertainty.answer import NO_NETWORK, UncertaintyParams

MOST_USUAL = 2000  # validation images that others are compared with, evenly chosen of more
BY_FEATURES = ("distance",)  # the distances to the training features that may refuse an image


class Refusal(NamedTuple):
    """columns: of the cases outside train. pixels, usual: what new images are asked by, None without a network.

    pixels: the detectors that look at pixels; usual: what every detector says of validation, a column per detector.
    """

    metrics: dict[str, Any]
    columns: pd.DataFrame
    pixels: ood.PixelDetectors | None
    usual: pd.DataFrame | None


def detectors(members: list[str]) -> list[str]:
    """Names of all detectors: those of the pixels, and each member's distances."""
    return [*ood.PIXELS, *(f"{kind}_{name}" for name in members for kind in BY_FEATURES)]


def oddities(images: Images, distances: pd.DataFrame, pixels: ood.PixelDetectors) -> pd.DataFrame:
    """What every detector says of images, larger = odder. distances: a column per member and distance."""
    return pd.DataFrame(ood.pixel_oddity(images, pixels), columns=[*ood.PIXELS]).join(distances)


def refuse(oddity: pd.DataFrame, usual: pd.DataFrame) -> pd.DataFrame:
    """`oddity`, the joint p-value of each image, and `out_of_distribution`, 1 where it is refused."""
    joint = ood.joint_p_value(oddity[usual.columns], usual)
    return pd.DataFrame({"oddity": joint, "out_of_distribution": (joint <= ood.REFUSED).astype(int)})


def nothing_measured(cases: pd.DataFrame) -> Refusal:
    """Of models that are known by their predictions nothing is refused."""
    return Refusal({"absent": NO_NETWORK}, cases[[]].assign(oddity=np.nan, out_of_distribution=0), None, None)


def find_unlike(
    cases: pd.DataFrame,
    signals: pd.DataFrame,
    foreign: Mapping[str, pd.DataFrame],
    images: Mapping[str, Images],
    params: UncertaintyParams,
) -> Refusal:
    """Whether each case outside train is unlike the training images, and what becomes of images that surely are.

    signals: a column per distance and member, rows as cases. foreign: by member `image_id`, `kind`, distances of the
    spoiled images and whether it is `confident` on them. images: uint8 (n, side, side) of `train`, `cases`, `foreign`.
    """
    val = (cases["split"] == "val").to_numpy()
    ood.require(int(val.sum()))
    pixels = ood.fit_pixel_detectors(images["train"])
    names = detectors(list(foreign))
    own = oddities(images["cases"], signals, pixels)[names]
    away = pd.concat([of[[*BY_FEATURES]].add_suffix(f"_{name}") for name, of in foreign.items()], axis=1)
    strange = oddities(images["foreign"], away, pixels)[names]
    usual = few(own[val], MOST_USUAL)

    judged = cases.join([refuse(own, usual), _alone(own, usual)])
    judged.loc[usual.index, "oddity"] = ood.usual_p_value(usual)
    judged["out_of_distribution"] = (judged["oddity"] <= ood.REFUSED).astype(int)
    labels = next(iter(foreign.values()))[["image_id", "kind"]].merge(cases[["image_id", "patient_id"]], how="left")
    labels["patient_id"] = labels["patient_id"].fillna(labels["image_id"])  # of an image that is not asked about
    sure = {f"confident_{name}": of["confident"] for name, of in foreign.items()}
    spoiled = labels.join([refuse(strange, usual), _alone(strange, usual)]).assign(**sure)
    metrics = {
        "n_validation": int(val.sum()),
        "detectors": own.shape[1],
        "usual": _of_usual(judged, params),
        "foreign": _of_foreign(spoiled, judged, params),
    }
    return Refusal(metrics, own[[*ood.PIXELS]].join(judged[["oddity", "out_of_distribution"]]), pixels, usual)


def _alone(oddity: pd.DataFrame, usual: pd.DataFrame) -> pd.DataFrame:
    """Whether each detector alone would refuse each image, `alone_<detector>`."""
    refused = ood.alone(oddity, usual) <= ood.REFUSED
    return pd.DataFrame(refused, columns=oddity.columns, index=oddity.index).add_prefix("alone_")


def _of_usual(judged: pd.DataFrame, params: UncertaintyParams) -> dict[str, Any]:
    """The share of each split that is refused, of all and by class: of validation and whatever is like it, 5 %."""
    figures: dict[str, Any] = {}
    for split, rows in judged.groupby("split", sort=False):
        classes = {("negative", "positive")[label]: _share(of, params) for label, of in rows.groupby("y_true")}
        figures[str(split)] = _share(rows, params) | classes
    return figures


def _of_foreign(spoiled: pd.DataFrame, judged: pd.DataFrame, params: UncertaintyParams) -> dict[str, Any]:
    """The same of the foreign images by kind, and the share on which each member is confident all the same.

    On the phantom also of the test images with a finding that training never shows.
    """
    figures: dict[str, Any] = {}
    for kind, rows in spoiled.groupby("kind", sort=False):
        figures[str(kind)] = _share(rows, params) | rows.filter(like="confident_").mean().to_dict()
    if "cause" in judged and len(unseen := judged[(judged["split"] == "test") & (judged["cause"] == "blind")]):
        figures["unseen_finding"] = _share(unseen, params)
    return figures


def _share(rows: pd.DataFrame, params: UncertaintyParams) -> dict[str, Any]:
    """How many, the share refused with its interval, and the share that each detector alone would refuse."""
    resampler = Resampler(rows["patient_id"].to_numpy(), params.resamples, params.seed)
    refused = resampler.estimate(mean, rows["out_of_distribution"].to_numpy(dtype=float))
    return {"n": len(rows), "refused": refused, **rows.filter(like="alone_").mean().to_dict()}


def shares_refused(metrics: dict[str, Any]) -> pd.DataFrame:
    """The shares refused as rows of a diagram, usual images first."""
    rows = [
        row
        for series in ("usual", "foreign")
        for kind, of in metrics.get(series, {}).items()
        for row in interval_rows(of.get("refused", Estimate()), value="share", kind=kind, series=series)
    ]
    return pd.DataFrame(rows, columns=["kind", "share", "low", "high", "series"])
