"""Does an unstable map foretell a later or a stronger failure, beyond confidence?

Run by `make later-failures` after `make repro`; writes docs/later_failures.csv, docs/later_failures.png and a section
of docs/stability.md. Asked are the cases that a member answers rightly today, on the run's test split and on fresh
phantoms, and how each may fail later says `QUESTIONS`. What instability adds to confidence is learned on other fresh
phantoms, to which nothing else was fitted. For the next seed each member is trained once more in a copy of the project.
What is there lies in `.studies/later_failures`; a killed run goes on where it was, so delete the folder after another
training.
"""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import yaml
from matplotlib.figure import Figure
from tqdm import tqdm

from commands import copies
from studies.pages import write_between
from studies.rows import columns
from studies.sites import STRONG
from tmv_lib.calibration.calibrators import Calibrator, read_calibrators
from tmv_lib.data.answer import PrepareParams
from tmv_lib.explanations import attribution
from tmv_lib.network.classifier import Classifier, predict
from tmv_lib.phantom.plan import plan_cases
from tmv_lib.phantom.radiograph import render
from tmv_lib.pipeline import record
from tmv_lib.pipeline.files import write_csv
from tmv_lib.pipeline.params import Member, read, read_members
from tmv_lib.pipeline.pictures import save
from tmv_lib.stability.answer import StabilityParams
from tmv_lib.stability.perturbations import mild
from tmv_lib.stability.similarity import per_case, stability
from tmv_lib.statistics.estimate import Estimate, Resampler, adjust
from tmv_lib.uncertainty import detection

FOLDER = Path(".studies/later_failures")
COPY = FOLDER / "next_seed"
LARGER = 2  # times the changes of `stability`; at 3 no answer of DenseNet-121 is left that holds
DOSE, NOISE = STRONG["test_exposure"], STRONG["test_noise"]
QUESTIONS = {
    "larger change": f"wrong under any of the eight changes at {LARGER} times their size, though not under a mild one",
    "next seed": "wrong by the same architecture, trained with the next seed and calibrated anew",
    "another site": f"wrong on the same film with {DOSE} of the dose and {NOISE} times the noise",
}
FIT, FRESH = {81: 400}, {82: 600}  # patients by seed of the phantoms that are fitted on, and judged
JUDGED = {"test split": ["test"], "fresh phantoms": ["fresh"], "both": ["test", "fresh"]}
RESAMPLES = 2000
TESTED = {  # figures of which the three questions are one family, by their names in the table
    "auroc": "adjusted_error_auroc",
    "gain_over_margin": "gain_over_margin",
    "auroc_gain_given_margin": "auroc_gain_given_confidence",
    "likelihood_gain_given_margin": "likelihood_gain_given_confidence",
}
HEADS = {  # what the page calls them
    "auroc": "AUROC of instability",
    "margin_auroc": "of the margin",
    "gain_over_margin": "difference",
    "auroc_gain_given_margin": "gain given the margin",
    "likelihood_gain_given_margin": "the same, nats a case",
}
BEGINS, ENDS = "<!-- make later-failures writes what follows -->", "<!-- up to here -->"
PAGE = Path("docs/stability.md")


class Network(NamedTuple):
    """A trained network and the calibrator of its logit."""

    model: Classifier
    calibrator: Calibrator

    def fails(self, images: np.ndarray, y_true: np.ndarray) -> np.ndarray:
        """Whether it answers each image wrongly: uint8, or levels in [0, 1], (n, side, side)."""
        logit = predict(self.model, images, batch_size=32).logit
        return (self.calibrator(logit) > 0) != (y_true == 1)


def main() -> None:
    prepare, members = read("params.yaml", "prepare", PrepareParams), read_members("params.yaml")
    if prepare.source != "phantom":
        raise ValueError(
            f"params.yaml: prepare.source is {prepare.source}; films of another site are the phantom's alone"
        )
    train_next(members)
    own = {prepare.seed: prepare.phantom.patients.test}
    cases = pd.concat(
        told(seed, patients, prepare, members).assign(phantom=name)
        for name, phantoms in {"fit": FIT, "test": own, "fresh": FRESH}.items()
        for seed, patients in phantoms.items()
    )
    table = pd.DataFrame([row for judged_on in JUDGED for row in measured(cases, judged_on)])
    write_csv("docs/later_failures.csv", table)
    both = table[table["judged_on"] == "both"]
    save(picture(both), "docs/later_failures.png")
    write_between(PAGE, BEGINS, ENDS, lines(both))


def next_seed(name: str, member: Member) -> str:
    """What the member is called once it is trained with the next seed."""
    return f"{name}_seed{member.seed + 1}"


def train_next(members: dict[str, Member]) -> None:
    """Train each member with the next seed in a copy of the project, and calibrate it there."""
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    asked = {next_seed(name, of): params["members"][name] | {"seed": of.seed + 1} for name, of in members.items()}
    copies.lay_out(COPY, params | {"members": asked})
    copies.dvc("repro", "calibration", folder=COPY)


def told(seed: int, patients: int, prepare: PrepareParams, members: dict[str, Member]) -> pd.DataFrame:
    """Instability and confidence today, and every later failure, on the test split of one phantom.

    A row a case and member: `patient_id`, `member`, `y_true`, the calibrated `logit`, `instability` (missing for a
    constant map), whether it `flipped` under a mild change, and for each of `QUESTIONS` whether it fails.
    """
    path = FOLDER / f"{seed}_{patients}.csv"
    if not path.exists():
        recipe = prepare.phantom.model_dump() | {"patients": {"test": patients}}
        plans = [plan_cases(seed=seed, **recipe | change) for change in ({}, STRONG)]
        films = [render(plan, size=prepare.size, progress=partial(tqdm, desc="films")).images for plan in plans]
        known = plans[0][["patient_id", "y_true"]]
        tables = [of_member(name, of, known["y_true"].to_numpy(), *films) for name, of in members.items()]
        write_csv(path, pd.concat([known.join(table) for table in tables]))
    table = pd.read_csv(path)
    return table.assign(patient_id=f"phantom {seed} " + table["patient_id"])


def of_member(name: str, member: Member, y_true: np.ndarray, *films: np.ndarray) -> pd.DataFrame:
    """What one member says of cases; films: uint8 (n, side, side), those of today and the same of another site."""
    params, (today, elsewhere) = read("params.yaml", "stability", StabilityParams), films
    now, later = load(name, member, root="."), load(next_seed(name, member), member, root=COPY)
    options: dict[str, Any] = {"batch_size": params.batch_size, **record.read_layers()[name]}
    explain = attribution.explainer(now.model, **options)
    seen, levels = explain(today), today.astype(np.float32) / 255.0
    mildly = per_case(
        stability(
            explain,
            today,
            mild(params.model_dump(), seed=params.seed),
            target=np.ones(len(today), dtype=int),
            threshold=now.calibrator.boundary(),
            original=seen,
            progress=partial(tqdm, desc=f"{name}: mild changes"),
        )
    )
    strong = tqdm(mild(larger(params), seed=params.seed).values(), desc=f"{name}: larger changes")
    failures = (
        np.any([now.fails(change.apply(levels), y_true) for change in strong], axis=0),
        later.fails(today, y_true),
        now.fails(elsewhere, y_true),
    )
    found = pd.DataFrame({"member": name, "logit": now.calibrator(seen.logit)})
    found = found.assign(instability=1 - mildly["rank_correlation"], flipped=mildly["flipped"])
    found = found.assign(**dict(zip(QUESTIONS, failures, strict=True)))
    return found.astype(dict.fromkeys(["flipped", *QUESTIONS], int))


def load(name: str, member: Member, *, root: str | Path) -> Network:
    """A member as it lies in a project's folder."""
    model = attribution.load_trained(member, record.weights(name, root=root))
    return Network(model, read_calibrators(Path(root) / record.CALIBRATORS)[name])


def larger(params: StabilityParams) -> dict[str, float]:
    """Sizes of the changes, `LARGER` times those of `stability`; contrast is a factor, 1 where nothing changes."""
    sizes = {
        name: LARGER * getattr(params, name) for name in ("rotation", "translation", "brightness", "noise", "blur")
    }
    return sizes | {"contrast": 1 + LARGER * (params.contrast - 1)}


def measured(cases: pd.DataFrame, judged_on: str) -> list[dict[str, Any]]:
    """A row a member and question; Holm's correction is over the questions, for each member and figure."""
    rows = []
    for member, of_member in cases[cases["phantom"].isin(["fit", *JUDGED[judged_on]])].groupby("member", sort=False):
        found = {question: compared(of_member, question) for question in QUESTIONS}
        for figure in TESTED:
            family = {question: entry[figure] for question, entry in found.items()}
            adjust(family, distinct=True)
            for question, estimate in family.items():
                found[question][figure] = estimate
        for question, entry in found.items():
            row: dict[str, Any] = {"judged_on": judged_on, "member": member, "question": question}
            for name, value in entry.items():
                row |= columns(name, value) if isinstance(value, Estimate) else {name: value}
            rows.append(row)
    return rows


def compared(cases: pd.DataFrame, question: str) -> dict[str, Any]:
    """Instability and margin as alarms of one later failure among the cases of one member that are right today.

    cases: as `told` gives them, with `phantom`, whose cases `fit` teach and whose others are judged. Whoever flips
    under a mild change is not asked about a larger one: that failure is seen today. Counts are of those judged.
    """
    right = ((cases["logit"] > 0) == (cases["y_true"] == 1)) & cases["instability"].notna()
    steady = cases["flipped"] == 0 if question == "larger change" else True
    asked = cases[right & steady]
    test = (asked["phantom"] != "fit").to_numpy()
    failed, logit, called = asked[question].to_numpy(), asked["logit"].to_numpy(), asked["y_true"].to_numpy()
    resampler = Resampler(asked["patient_id"].to_numpy(), RESAMPLES, seed=0)
    signals = {"instability": asked["instability"].to_numpy()}
    found = detection.detectors(failed, logit, signals, called=called, fit=~test, test=test, resampler=resampler)
    own = found["instability"]
    margin = detection.detector(
        failed[test], -np.abs(logit[test]), called=called[test], resampler=resampler.among(test)
    )
    entry = {"n": int(test.sum()), "n_failed": int(failed[test].sum()), "rests_on": own.get("rests_on", "none")}
    entry["n_fitted"], entry["n_failed_fitted"] = int((~test).sum()), int(failed[~test].sum())
    reason = own.get("given_confidence", own["adjusted_error_auroc"])
    entry |= {name: own.get(key, reason) for name, key in TESTED.items()}
    return entry | {"margin_auroc": margin["adjusted_error_auroc"]}


def lines(rows: pd.DataFrame) -> list[str]:
    """What was asked, the table of the page, and a sentence a member; rows: those of `measured`, judged on one set."""
    text = [*(f"- *{question}*: {words}." for question, words in QUESTIONS.items()), ""]
    heads = ["member", "failure", "failed", "rests on", *HEADS.values()]
    text += [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for row in rows.to_dict("records"):
        failed = f"{row['n_failed']} of {row['n']}"
        cells = [row["member"], row["question"], failed, row["rests_on"].replace("_", " ")]
        text.append(f"| {' | '.join([*cells, *(words(row, name) for name in HEADS)])} |")
    return [*text, "", *(sentence(of) for _, of in rows.groupby("member", sort=False))]


def words(row: dict[str, Any], name: str) -> str:
    """A figure with its interval, and with Holm's p-value where it has one, or a dash."""
    if name not in row or np.isnan(row[name]):
        return "-"
    p_value = row.get(f"{name}_p_value_holm", np.nan)
    said = "" if np.isnan(p_value) else f"; p {p_value:.3f}"
    return f"{row[name]:.3f} ({row[f'{name}_low']:.3f} to {row[f'{name}_high']:.3f}{said})"


def sentence(rows: pd.DataFrame) -> str:
    """What the rows of one member come to, at 5 % after Holm; a better alarm gains more than 0.02 throughout."""
    said = {name: rows[f"{name}_p_value_holm"] < detection.LEVEL for name in TESTED}
    found = {
        "foretells": said["auroc"] & (rows["auroc"] > 0.5),
        "is a better alarm than the margin for": said["gain_over_margin"]
        & (rows["gain_over_margin_low"] > detection.WORTHWHILE),
        "is a worse one for": said["gain_over_margin"] & (rows["gain_over_margin_high"] < 0),
        "adds to it for": said["likelihood_gain_given_margin"] & (rows["likelihood_gain_given_margin"] > 0),
    }
    if (few := rows["likelihood_gain_given_margin"].isna()).any():
        found["has too few failures to tell what it adds for"] = few
    listed = {what: ", ".join(rows.loc[here, "question"]) or "none" for what, here in found.items()}
    return f"- {rows['member'].iloc[0]}: instability " + "; ".join(f"{what} {of}" for what, of in listed.items()) + "."


def picture(rows: pd.DataFrame) -> Figure:
    """Both alarms above, what instability has over the margin below; a member a column, bars 95 % over patients."""
    members, places = rows["member"].unique(), np.arange(len(QUESTIONS))
    figure, axes = plt.subplots(
        2, len(members), figsize=(10, 5.6), layout="constrained", sharex="row", sharey=True, squeeze=False
    )
    figure.suptitle("Right today, wrong later: who says so beforehand? Bars: 95 % over patients", fontsize=10)
    above = {"auroc": "instability", "margin_auroc": "margin"}
    below = {"gain_over_margin": "instead of the margin", "auroc_gain_given_margin": "beside the margin"}
    parts = ((axes[0], above, "AUROC", 0.5), (axes[1], below, "AUROC that instability gains", 0.0))
    for line, names, label, none in parts:
        for axis, member in zip(line, members, strict=True):
            own = rows[rows["member"] == member].set_index("question").loc[list(QUESTIONS)]
            axis.axvline(none, color="0.4", linewidth=0.8, linestyle="--")
            for shift, (name, alarm) in zip((-0.12, 0.12), names.items(), strict=True):
                value = own[name].astype(float)
                reach = [value - own[f"{name}_low"], own[f"{name}_high"] - value]
                axis.errorbar(value, places + shift, xerr=reach, fmt="o", markersize=5, elinewidth=2, label=alarm)
            for place in places[own[list(names)].isna().all(axis=1).to_numpy()]:
                axis.text(none, place, "  too few failures", va="center", fontsize=8, color="0.4")
            axis.set(title=member, xlabel=label, yticks=places, yticklabels=list(QUESTIONS), ylim=(2.5, -0.5))
        line[-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


if __name__ == "__main__":
    main()
