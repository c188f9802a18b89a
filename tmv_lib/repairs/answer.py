"""The answer to: what would mending each kind of failure buy, and what did it buy?"""

import hashlib
from typing import Any

import numpy as np
import pandas as pd

from tmv_lib.deferral.costs import Prices
from tmv_lib.failures import taxonomy
from tmv_lib.pipeline import record
from tmv_lib.pipeline.params import Params, Resamples, Seed
from tmv_lib.repairs import gain
from tmv_lib.repairs.change import KINDS, second_reader
from tmv_lib.statistics.estimate import Estimate, Resampler, interval_rows

SERIES = {"predicted": "predicted", "obtained": "obtained on unseen cases"}


class RepairParams(Params):
    resamples: Resamples
    seed: Seed


def answer(
    evidence: pd.DataFrame,
    errors: pd.DataFrame,
    measured: dict[str, pd.DataFrame | None],
    prices: Prices,
    params: RepairParams,
) -> dict[str, Any]:
    """Of each repair what it is predicted to gain on test, what it gained on unseen cases, and what else changed.

    evidence, errors: as `failures` has them, here the ensemble's. measured: by repair as `record.read_measured_repair`;
    one that was measured against another run than the evidence is of is absent.
    """
    test = evidence[(evidence["model"] == "ensemble") & (evidence["split"] == "test")]
    kinds = test["image_id"].map(errors[errors["model"] == "ensemble"].set_index("image_id")["kind"])
    resampler, run = Resampler(test["patient_id"].to_numpy(), params.resamples, params.seed), run_of(evidence)
    figures: dict[str, Any] = {}
    for kind, of in KINDS.items():
        expected = gain.predicted(test, (kinds == of).to_numpy(), of, prices, resampler)
        figures[kind] = {"predicted": expected, "obtained": found(kind, measured[kind], prices, run)}
        pairs = {name: (expected[name], figures[kind]["obtained"].get(name)) for name in gain.COMPARED}
        held = {name: gain.within(*pair) for name, pair in pairs.items() if pair[1] is not None}
        figures[kind]["predicted_within_obtained"] = {name: one for name, one in held.items() if one is not None}
    return figures


def found(kind: str, measured: pd.DataFrame | None, prices: Prices, run: str) -> dict[str, Any]:
    """What a repair gained, and where the cause of each case is known whose errors it mended or made."""
    if measured is None:
        return {"absent": f"not measured; `make repair KIND={kind}` measures it"}
    if (measured["run"] != run).any():
        return {"absent": f"measured against another run; `make repair KIND={kind}` measures it anew"}
    seed, patient = (measured[name].to_numpy() for name in ("seed", "patient_id"))
    repaired = second_reader(prices) if kind == "ambiguity" else prices
    before = gain.Arm(measured["y_before"].to_numpy(), measured["y_prob_before"].to_numpy(), prices)
    after = gain.Arm(measured["y_after"].to_numpy(), measured["y_prob_after"].to_numpy(), repaired)
    figures = gain.obtained(seed, patient, before, after)
    if (measured["y_before"] != measured["y_after"]).any():
        # what the labels alone gained is no gain of the network
        alone = gain.obtained(seed, patient, before._replace(y_true=after.y_true), after)
        figures["by_the_corrected_labels"] = {name: alone[name] for name in gain.COMPARED}
    if "cause" in measured:
        causes = gain.errors_by_cause(measured["cause"].to_numpy(), seed, patient, before, after)
        figures["errors_by_cause"] = causes
    return figures


def rows(figures: dict[str, Any]) -> pd.DataFrame:
    """A row a repair and measure, predicted and obtained, for the diagram."""
    drawn: list[dict[str, Any]] = []
    for kind, of in figures.items():
        for series, label in SERIES.items():
            for name in gain.COMPARED:
                if isinstance(one := of[series].get(name), Estimate):
                    measure = name.removesuffix("_gain").replace("_", " ").replace("auroc", "AUROC")
                    drawn += interval_rows(one, value="gain", measure=f"{kind}: {measure}", series=label)
    return pd.DataFrame(drawn, columns=["measure", "series", "gain", "low", "high"])


def sentences(kind: str, figures: record.Figures) -> list[str]:
    """What a repair was predicted to gain and what it gained, a line a measure, of its part of metrics/repair.json."""
    said = [f"{kind} ({KINDS[kind]}, which needs {taxonomy.NEEDS[KINDS[kind]]}):"]
    found, promised = figures["obtained"], figures["predicted"]
    if "absent" in found:
        return [*said, f"  {found['absent']}"]
    for name in gain.MEASURES:
        told = _told(found.estimate(name))
        before = f", predicted {_told(promised.estimate(name))}" if name in gain.COMPARED else ""
        said.append(f"  {name.removesuffix('_gain').replace('_', ' ')}: gained {told}{before}")
    return said


def _told(one: Estimate) -> str:
    if one.value is None:
        return f"no figure, {one.absent}"
    return f"{one.value:+.4f} ({one.low:+.4f} to {one.high:+.4f})"


def run_of(evidence: pd.DataFrame) -> str:
    """The name of a run: a digest of what its ensemble says of the test cases."""
    said = evidence[(evidence["model"] == "ensemble") & (evidence["split"] == "test")]["y_prob"]
    return hashlib.sha256(np.round(said.to_numpy(), 6).astype("<f8").tobytes()).hexdigest()[:12]
