"""Many findings on one page: a row per finding from the metrics of its run, as values, and one template per format."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd

from tmv_lib.card import pages, words
from tmv_lib.deferral import guarantee, verdict
from tmv_lib.pipeline.files import for_spreadsheets, whole, write_csv
from tmv_lib.pipeline.metrics import plain
from tmv_lib.pipeline.record import Figures
from tmv_lib.statistics.estimate import Estimate
from tmv_lib.statistics.tests import holm

FEWEST_POSITIVE = 20  # patients of a split with the finding, below which there is no verdict
PRIMARY, EXPLORATORY = "primary", "exploratory"
TESTED = ("ece", "site_calibration")  # what Holm's adjustment is made for, each over the findings of one role
ANSWERS = {verdict.USE: "use", verdict.DO_NOT_USE: "do not use", verdict.CANNOT_TELL: "cannot tell"}
SITE = {"none": "no difference shown", "prevalence": "prevalence differs", "unnamed": "looks different"}


def slug(name: str) -> str:
    """A finding's name as that of a folder."""
    return re.sub(r"[^a-z0-9]+", "_", name.casefold()).strip("_") or "finding"


def too_few(cases: pd.DataFrame) -> str | None:
    """Why a finding gets no verdict: fewer than 20 positive patients, or negative ones, in a split; None where it does.

    cases: `patient_id`, `split`, `y_true`, of the finding's labelled images.
    """
    for split in ("val", "cal", "test"):
        rows = cases[cases["split"] == split]
        for label, name in ((1, "positive"), (0, "negative")):
            n = rows.loc[rows["y_true"] == label, "patient_id"].nunique()
            if n < FEWEST_POSITIVE:
                return f"no verdict: {n} {name} patients in {split}, at least {FEWEST_POSITIVE} are needed"
    return None


def row(name: str, role: str, member: str, metrics: Mapping[str, Figures]) -> dict[str, Any]:
    """The values of one finding. metrics: of `calibration`, `site` and `ensemble`; member: whose calibration it is.

    Calibration is that of the calibrated logit on test; `certified` are the promises kept, on cal. `site` says what
    looks different; `site_calibration` is the difference of intercepts, with the p-value of one line for both places.
    """
    calibrated, ensemble = metrics["calibration"]["calibration"][member]["after"], metrics["ensemble"]
    deferral, ece, site = ensemble["deferral"], calibrated["positive_class_ece_uniform"], metrics["site"]["site"]
    kept = [key for key in guarantee.PROMISES if ensemble["guarantee"].get(key, {}).get("status") in guarantee.KEPT]
    n, n_positive, interaction = deferral["n"], deferral["n_positive"], site[member]["interaction"]
    differs = Estimate(absent=interaction.get("absent"))
    if "absent" not in interaction:
        differs = replace(interaction.estimate("intercept_difference"), p_value=interaction["p_value"])
    return {
        **{"finding": name, "role": role, "n": n, "n_positive": n_positive, "n_patients": deferral["n_patients"]},
        "prevalence": n_positive / n,
        "auroc": ensemble["ensemble"]["in_use"].estimate("auroc"),
        **{"ece": Estimate(ece["ece"], p_value=ece["p_value"]), "ece_noise_floor_p95": ece["noise_floor_p95"]},
        "slope": calibrated.estimate("slope"),
        "coverage": deferral.estimate("coverage"),
        "selective_risk": deferral.estimate("selective_risk"),
        "failure_cost": deferral.estimate("failure_cost"),
        "doctor_reads_all_cost": deferral["doctor_reads_all_cost"],
        "certified": " ".join(kept) or "nothing",
        "site": site["shift"]["name"],
        "site_calibration": differs,
        "verdict": ensemble["verdict"]["answer"],
        "why": " ".join(verdict.sentences(ensemble["verdict"], cases="images", positive=words.plain(name).lower())),
    }


def absent_row(name: str, role: str, cases: pd.DataFrame, reason: str) -> dict[str, Any]:
    """What is known of a finding without a verdict: how many test cases and positives, and why."""
    test = cases[cases["split"] == "test"]
    n, n_positive = len(test), int(test["y_true"].sum())
    counts = {"n": n, "n_positive": n_positive, "n_patients": test["patient_id"].nunique()}
    share = {"prevalence": n_positive / n} if n else {}
    return {"finding": name, "role": role, **counts, **share, "verdict": "none", "why": reason}


def adjusted(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, primary findings first, with Holm's adjustment of each test over the findings of one role."""
    ordered = sorted(rows, key=lambda one: one["role"] != PRIMARY)
    for role in (PRIMARY, EXPLORATORY):
        own = [one for one in ordered if one["role"] == role]
        for name in TESTED:
            tested = [one for one in own if name in one and one[name].p_value is not None]
            for one, p in zip(tested, holm([one[name].p_value for one in tested]) if tested else (), strict=True):
                one[name] = replace(one[name], p_value_holm=float(p))
    return ordered


def write_findings(
    folder: str | Path,
    rows: Sequence[dict[str, Any]],
    *,
    title: str,
    remarks: Sequence[str] = (),
    reports: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write `findings.csv`, `findings.html` and `findings.md` into a folder.

    remarks: what limits them, in words. reports: of some findings the page that tells all, relative to the folder.
    """
    ordered = adjusted(rows)
    table = pd.DataFrame([plain(one) for one in ordered])
    first = [name for name in table if name not in ("verdict", "why")]
    write_csv(Path(folder) / "findings.csv", for_spreadsheets(table[[*first, "verdict", "why"]]), digits=6)
    for ending in ("html", "md"):
        with whole(Path(folder) / f"findings.{ending}") as temporary:
            temporary.write_text(
                render(ordered, ending, title=title, remarks=remarks, reports=reports), encoding="utf-8"
            )


def render(
    rows: Sequence[dict[str, Any]], ending: str, *, title: str, remarks: Sequence[str], reports: Mapping[str, str]
) -> str:
    """The page as `html`, one file that needs no network, or as `md`; rows as `adjusted` gives them."""
    roles = {role: [one for one in rows if one["role"] == role] for role in (PRIMARY, EXPLORATORY)}
    page = {role: [_cells(one) for one in own] for role, own in roles.items() if own}
    why = [(one["finding"], one["why"]) for one in rows]
    values = {"title": title, "page": page, "heads": HEADS, "why": why, "remarks": remarks, "reports": reports}
    return pages.fill(f"card/findings.{ending}.j2", **values, fewest=FEWEST_POSITIVE)


HEADS = (
    *("finding", "verdict", "images (patients)", "positive", "AUROC", "ECE (noise floor, p)", "slope"),
    *("decided", "wrong of the decided", "cost (doctor reads all)", "certified", "site (calibration differs, p)"),
)


def _cells(one: Mapping[str, Any]) -> list[str]:
    """A row in words."""
    share = f"{100 * one['prevalence']:.2f} %" if "prevalence" in one else "not applicable"
    counts = [f"{one['n']:,} ({one['n_patients']:,})", f"{share} ({one['n_positive']:,})"]
    if "auroc" not in one:
        return [one["finding"], "none", *counts, *["not measured"] * (len(HEADS) - 4)]
    ece, site = one["ece"], SITE.get(one["site"], words.plain(one["site"]) + " looks different")
    p_value = one["site_calibration"].p_value_holm
    return [
        one["finding"],
        ANSWERS[one["verdict"]],
        *counts,
        words.number(one["auroc"]),
        f"{ece.value:.4f} ({one['ece_noise_floor_p95']:.4f}, {ece.p_value_holm:.3f})",
        words.number(one["slope"]),
        words.share(one["coverage"]),
        words.share(one["selective_risk"]),
        f"{words.number(one['failure_cost'])}; {one['doctor_reads_all_cost']:.3f}",
        ", ".join(words.plain(key) for key in one["certified"].split()),
        f"{site} ({'not tested' if p_value is None else f'{p_value:.3f}'})",
    ]
