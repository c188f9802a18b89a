"""Which doubts are genuine, and which errors are confident?"""

from functools import partial
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field
from safetensors import safe_open

from tmv_lib import uncertainty
from tmv_lib.files import join, read_csv, read_rows, write_csv, write_metrics
from tmv_lib.params import Params, read, read_members
from tmv_lib.reporting import counts, figure, gain
from tmv_lib.stage import run
from tmv_lib.statistics import auroc, average_precision


class UncertaintyParams(Params):
    passes: Annotated[int, Field(ge=2, le=10_000)]
    neighbours: Annotated[int, Field(ge=1)]
    confident: Annotated[float, Field(gt=0.5, lt=1)]
    resamples: Annotated[int, Field(ge=100)]
    seed: Annotated[int, Field(ge=0)]


def main() -> None:
    params = read("params.yaml", "uncertainty", UncertaintyParams)
    members = read_members("params.yaml")
    rng = np.random.default_rng(params.seed)
    cases = read_csv("data/prepare/cases.csv", ["image_id", "patient_id", "split", "y_true"])
    calibrated = read_csv("data/calibration/cases.csv", ["image_id", *(f"y_prob_{name}" for name in members)])
    cases = join(cases, calibrated)
    probs = cases[[f"y_prob_{name}" for name in members]].to_numpy()
    signals = pd.DataFrame({"image_id": cases["image_id"], "disagreement": probs.max(1) - probs.min(1)})
    convergence, detectors, confident, metrics = [], [], [], {}
    for name, member in members.items():
        ids = read_csv(f"data/train/{name}/predictions.csv", ["image_id"])["image_id"]
        features = read_rows(f"data/train/{name}/features.npy", image_id=ids, wanted=cases["image_id"])
        drawn, curve = dropout_signals(features, f"data/train/{name}/weights.safetensors", member.dropout, params)
        train = (cases["split"] == "train").to_numpy()
        distance = uncertainty.nearest_neighbour_distance(features, features[train], k=params.neighbours)
        signals = signals.assign(**{f"{key}_{name}": value for key, value in drawn.items()})
        signals[f"distance_{name}"] = distance
        convergence += [curve.assign(series=name), curve.assign(series=f"{name}, limit", value=curve["limit"])]

        y_prob = cases[f"y_prob_{name}"]
        table = pd.DataFrame({"margin": np.minimum(y_prob, 1 - y_prob), **drawn, "distance": distance})
        table = table.assign(disagreement=signals["disagreement"])
        test = (cases["split"] == "test").to_numpy()
        wrong = ((y_prob > 0.5).astype(int) != cases["y_true"]).to_numpy()
        metrics[name], rows = judge(cases[test], wrong[test], table[test], params, rng)
        detectors.append(rows.assign(series=name))
        sure = (np.maximum(y_prob, 1 - y_prob) >= params.confident).to_numpy()
        metrics[name] |= quadrants(wrong[test], sure[test])
        mistakes = cases.assign(member=name, y_prob=y_prob, mutual_information=drawn["mutual_information"])
        columns = ["image_id", "member", "y_true", "y_prob", "mutual_information"]
        confident.append(mistakes.loc[test & wrong & sure, columns])
    write_csv("data/uncertainty/cases.csv", signals)
    write_csv("data/uncertainty/confident_errors.csv", pd.concat(confident))
    write_csv("plots/uncertainty/convergence.csv", pd.concat(convergence))
    write_csv("plots/uncertainty/detectors.csv", pd.concat(detectors))
    write_metrics("metrics/uncertainty.json", {"uncertainty": metrics})


def dropout_signals(
    features: np.ndarray, weights: str, rate: float, params: UncertaintyParams
) -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    """Entropies of Monte Carlo dropout on the head, and how the mean mutual information nears its limit."""
    with safe_open(weights, framework="numpy") as stored:
        weight, bias = stored.get_tensor("head.weight")[0], float(stored.get_tensor("head.bias")[0])
    probs = uncertainty.mc_dropout_probs(
        features, weight, bias, rate=rate, passes=params.passes, generator=np.random.default_rng(params.seed)
    )
    limit = uncertainty.dropout_limit(features, weight, bias, rate=rate)
    passes = np.unique(np.geomspace(2, params.passes, 12).round().astype(int))
    means = [uncertainty.entropy_decomposition(probs[:t]).mutual_information.mean() for t in passes]
    curve = pd.DataFrame({"passes": passes, "value": means, "limit": limit.mutual_information.mean()})
    return uncertainty.entropy_decomposition(probs)._asdict(), curve


def judge(
    test: pd.DataFrame, wrong: np.ndarray, table: pd.DataFrame, params: UncertaintyParams, rng: np.random.Generator
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Each uncertainty as a detector of errors, beside the plain margin 1 - max(p, 1 - p)."""
    groups, error = test["patient_id"].to_numpy(), wrong.astype(int)
    resampled = partial(figure, groups=groups, stratify=error, n_resamples=params.resamples, rng=rng)
    found: dict[str, Any] = counts(error, groups)
    found["n_errors"] = found.pop("n_positive")
    rows = []
    for signal in table.columns.astype(str):
        score, margin = table[signal].to_numpy(), table["margin"].to_numpy()
        found[signal] = resampled("error_auroc", auroc, error, score)
        found[signal] |= resampled("error_average_precision", average_precision, error, score)
        if signal != "margin":
            found[signal] |= resampled("gain_over_margin", gain, error, score, margin)
        if "error_auroc" in found[signal]:
            value, low, high = (found[signal][f"error_auroc{end}"] for end in ("", "_low", "_high"))
            rows.append({"signal": signal, "auroc": value, "low": low, "high": high})
    return found, pd.DataFrame(rows, columns=["signal", "auroc", "low", "high"])


def quadrants(wrong: np.ndarray, sure: np.ndarray) -> dict[str, int]:
    """Confidence against correctness: genuine doubt, and confident mistakes."""
    return {
        "confident_right": int((sure & ~wrong).sum()),
        "confident_error": int((sure & wrong).sum()),
        "doubtful_right": int((~sure & ~wrong).sum()),
        "doubtful_error": int((~sure & wrong).sum()),
    }


if __name__ == "__main__":
    run(main)
