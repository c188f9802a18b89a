"""Does the reason survive a change that does not matter?"""

from functools import partial
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from tqdm import tqdm

from tmv_lib import explanations, figures, network, stability
from tmv_lib.calibration import decision_boundary
from tmv_lib.explanations import Explained
from tmv_lib.files import join, read_csv, write_csv, write_metrics
from tmv_lib.params import Params, read, read_members
from tmv_lib.reporting import counts, figure, gain, mean
from tmv_lib.stage import run
from tmv_lib.statistics import auroc, average_precision


class StabilityParams(Params):
    rotation: Annotated[float, Field(gt=0, le=45)]
    translation: Annotated[float, Field(gt=0, le=0.25)]
    brightness: Annotated[float, Field(gt=0, le=0.5)]
    contrast: Annotated[float, Field(gt=1, le=2)]
    noise: Annotated[float, Field(gt=0, le=0.5)]
    blur: Annotated[float, Field(gt=0, le=10)]
    moved_quantile: Annotated[float, Field(gt=0.5, lt=1)]
    batch_size: Annotated[int, Field(ge=1)]
    precision: network.Precision
    resamples: Annotated[int, Field(ge=100)]
    seed: Annotated[int, Field(ge=0)]


def main() -> None:
    params = read("params.yaml", "stability", StabilityParams)
    members = read_members("params.yaml")
    cases = read_csv("data/prepare/cases.csv", ["image_id", "patient_id", "split", "y_true"])
    calibrated = [f"{kind}_{name}" for name in members for kind in ("logit", "y_prob")]
    cases = join(cases, read_csv("data/calibration/cases.csv", ["image_id", *calibrated]))
    kept = (cases["split"] != "train").to_numpy()
    images = np.load("data/prepare/images.npy", mmap_mode="r")[kept]
    cases = cases[kept].reset_index(drop=True)
    layers = read_csv("data/explanations/layers.csv", ["member", "layer"]).set_index("member")["layer"]
    rng = np.random.default_rng(params.seed)
    perturbations = mild(params)
    table, metrics, plotted = cases[["image_id"]], {}, []
    for name, member in members.items():
        predictions = join(cases, read_csv(f"data/train/{name}/predictions.csv", ["image_id", "logit"]))
        model = network.build(member.architecture, weights="none", dropout=member.dropout)
        network.load_weights(model, f"data/train/{name}/weights.safetensors")
        model = model.to(network.available_device()).to(memory_format=torch.channels_last)
        explain = explanations.explainer(
            model, layer=layers[name], batch_size=params.batch_size, precision=params.precision
        )
        maps = np.load(f"data/explanations/maps_{name}.npy")
        target = np.where(cases[f"y_prob_{name}"] > 0.5, 1, -1)
        compared = stability.stability(
            explain,
            images,
            perturbations,
            target=target,
            threshold=decision_boundary(predictions["logit"], predictions[f"logit_{name}"]),
            original=Explained(predictions["logit"].to_numpy(), maps),
            batch_size=params.batch_size,
            progress=partial(tqdm, desc=f"{name}: perturbed"),
        )
        per_case = compared.groupby("case").agg(similarity=("rank_correlation", "mean"), flipped=("flipped", "any"))
        instability = 1 - per_case["similarity"].to_numpy()
        columns = {f"instability_{name}": instability, f"flipped_{name}": per_case["flipped"].to_numpy()}
        table = table.assign(**columns)
        metrics[name], drawn = per_perturbation(compared, cases, params, rng)
        plotted.append(drawn.assign(series=name))
        metrics[name] |= flipped_and_moved(cases, instability, per_case["flipped"].to_numpy(), params, rng)
        metrics[name]["detector"] = detector(cases, name, instability, params, rng)
        figures.save(
            gallery(explain, images, cases, perturbations, name, instability, target),
            f"plots/stability/gallery/{name}.png",
        )
    write_csv("data/stability/cases.csv", table)
    write_csv("plots/stability/similarity.csv", pd.concat(plotted))
    write_metrics("metrics/stability.json", {"stability": metrics})


def mild(params: StabilityParams) -> dict[str, stability.Perturbation]:
    """The changes that should not matter."""
    return {
        f"rotation +{params.rotation:g}°": stability.rotation(params.rotation),
        f"rotation -{params.rotation:g}°": stability.rotation(-params.rotation),
        "translation": stability.translation(params.translation),
        "brightness": stability.brightness(params.brightness),
        "contrast": stability.contrast(params.contrast),
        "noise": stability.noise(params.noise, seed=params.seed),
        "blur": stability.blur(params.blur),
    }


def per_perturbation(
    compared: pd.DataFrame, cases: pd.DataFrame, params: StabilityParams, rng: np.random.Generator
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Mean similarities on the test split a perturbation, with intervals, the floor, and how often the answer flips."""
    test = cases[cases["split"] == "test"]
    found: dict[str, Any] = counts(test["y_true"].to_numpy(), test["patient_id"].to_numpy())
    drawn = []
    for name, part in compared[compared["case"].isin(test.index)].groupby("perturbation", sort=False):
        entry: dict[str, Any] = {}
        for measure in ("rank_correlation", "structural_similarity", "top_overlap", "centre_shift", "floor", "flipped"):
            there = part[part[measure].notna()]
            groups = cases["patient_id"].to_numpy()[there["case"]]
            values = there[measure].to_numpy(dtype=float)
            entry |= figure(measure, mean, values, groups=groups, n_resamples=params.resamples, rng=rng)
        entry["constant_maps"] = int(part["rank_correlation"].isna().sum())
        found[str(name)] = entry
        if "rank_correlation" in entry:
            ends = {end: entry[f"rank_correlation_{end}"] for end in ("low", "high")}
            drawn.append({"perturbation": name, "similarity": entry["rank_correlation"], **ends})
    return found, pd.DataFrame(drawn, columns=["perturbation", "similarity", "low", "high"])


def flipped_and_moved(
    cases: pd.DataFrame,
    instability: np.ndarray,
    flipped: np.ndarray,
    params: StabilityParams,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Prediction flipped x explanation moved on the test split; what counts as moved comes from validation."""
    val, test = ((cases["split"] == split).to_numpy() for split in ("val", "test"))
    limit = float(np.nanquantile(instability[val], params.moved_quantile))
    found: dict[str, Any] = {"moved_above": limit, "constant_maps": int(np.isnan(instability[test]).sum())}
    test = test & ~np.isnan(instability)
    moved, groups = instability > limit, cases["patient_id"].to_numpy()
    for answer, here in (("kept", test & ~flipped), ("flipped", test & flipped)):
        for reason, there in (("kept", ~moved), ("moved", moved)):
            found |= {f"answer_{answer}_reason_{reason}": int((here & there).sum())}
        found |= figure(
            f"moved_rate_where_answer_{answer}",
            mean,
            moved[here].astype(float),
            groups=groups[here],
            n_resamples=params.resamples,
            rng=rng,
        )
    return found


def detector(
    cases: pd.DataFrame, name: str, instability: np.ndarray, params: StabilityParams, rng: np.random.Generator
) -> dict[str, Any]:
    """Do unstable explanations go with errors? Instability alone, and against the plain margin."""
    there = (cases["split"] == "test").to_numpy() & ~np.isnan(instability)
    y_prob, y_true = cases[f"y_prob_{name}"].to_numpy()[there], cases["y_true"].to_numpy()[there]
    error = ((y_prob > 0.5) != y_true).astype(int)
    groups = cases["patient_id"].to_numpy()[there]
    resampled = partial(figure, groups=groups, stratify=error, n_resamples=params.resamples, rng=rng)
    found: dict[str, Any] = {"n": len(error), "n_errors": int(error.sum())}
    found |= resampled("error_auroc", auroc, error, instability[there])
    found |= resampled("error_average_precision", average_precision, error, instability[there])
    return found | resampled("gain_over_margin", gain, error, instability[there], np.minimum(y_prob, 1 - y_prob))


def gallery(
    explain: Any,
    images: np.ndarray,
    cases: pd.DataFrame,
    perturbations: dict[str, stability.Perturbation],
    name: str,
    instability: np.ndarray,
    target: np.ndarray,
) -> figures.Figure:
    """The most and the least stable right and wrong test cases under every perturbation, maps where they fell."""
    test = (cases["split"] == "test").to_numpy() & ~np.isnan(instability)
    wrong = ((cases[f"y_prob_{name}"] > 0.5).astype(int) != cases["y_true"]).to_numpy()
    rows = []
    for words, error in (("right", False), ("wrong", True)):
        like = np.flatnonzero(test & (wrong == error))
        like = like[np.argsort(instability[like], kind="stable")]
        ends = [*(("stable", case) for case in like[:2]), *(("unstable", case) for case in like[2:][-2:])]
        for kind, case in ends:
            levels = images[[case]].astype(np.float32) / 255
            panels = [("as it is", images[case], explain(levels).maps[0] * target[case])]
            for label, perturbation in perturbations.items():
                changed = perturbation.apply(levels)
                seen = explain(changed)
                panels.append((f"{label}: {seen.logit[0]:+.1f}", changed[0] * 255, seen.maps[0] * target[case]))
            rows.append((f"{kind}, {words}, truth {cases['y_true'][case]}", images[case], panels))
    return figures.case_rows(rows, title=f"{name}: the same image under each mild change, its map and its logit")


if __name__ == "__main__":
    run(main)
