"""Do repairs keep what failures promises? Five phantoms, every repair, three training seeds each.

Run by `make repairs`; writes docs/repairs.csv, docs/repairs_by_cause.csv, docs/repairs.png and the figures of
docs/repairs.md. Of every phantom DVC runs what `failures` needs, in a copy of the project below
`.studies/repaired_phantoms`, with two networks of 19,000 weights on images of 48 pixels, so that 240 trainings take an
hour. Then both are trained as they are, repaired in four ways, and repaired by three queues of other cases, and asked
about 600 patients that nobody has seen. A killed run goes on where it was; delete the folder to begin anew.
"""

from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import yaml
from matplotlib.figure import Figure
from scipy.stats import t
from tqdm import tqdm

from commands import copies, repair
from studies.pages import write_between
from studies.rows import columns
from studies.taxonomy import CHEAPER
from tmv_lib.calibration import calibrators
from tmv_lib.data.answer import PrepareParams
from tmv_lib.data.cases import NOTHING_UNREADABLE, Loaded
from tmv_lib.data.collected import with_collected
from tmv_lib.deferral.answer import read_prices
from tmv_lib.deferral.costs import Prices
from tmv_lib.network import classifier, training
from tmv_lib.network.answer import start
from tmv_lib.network.labels import learned
from tmv_lib.network.training import TrainParams
from tmv_lib.pipeline import record
from tmv_lib.pipeline.files import AS_WRITTEN, Rows, read_csv, write_csv
from tmv_lib.pipeline.params import Member, read, read_members
from tmv_lib.pipeline.pictures import save
from tmv_lib.repairs import answer, gain
from tmv_lib.repairs.change import COLLECTED, KINDS, changed, changes
from tmv_lib.statistics.resampling import generator

FOLDER = Path(".studies/repaired_phantoms")
PHANTOMS = (81, 82, 83, 84, 85)
SIZE = 48
SHUFFLED = ("noise", "ambiguity", "blindness")  # the repairs that a queue leads
CAUSES = {"spurious": "spurious", "noise": "mislabelled", "blindness": "blind", "ambiguity": "ambiguous"}
BEGINS, ENDS = "<!-- make repairs writes what follows -->", "<!-- up to here -->"
PAGE = Path("docs/repairs.md")


def main() -> None:
    params, prices = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8")), read_prices("params.yaml")
    rows, causes = list[dict[str, Any]](), list[dict[str, Any]]()
    for phantom in tqdm(PHANTOMS, desc="phantoms"):
        project = FOLDER / str(phantom)
        own = of_phantom(params, phantom)
        if not (project / "data/failures/evidence.csv").exists():
            copies.lay_out(project, own)
            copies.dvc("repro", "failures", folder=project)
        arms = {kind: changed(own, changes(kind, own, prices)) for kind in KINDS}
        arms |= {f"{kind}, shuffled": arms[kind] for kind in SHUFFLED}
        each = tqdm(list(arms.items()), desc=f"phantom {phantom}")
        measured = {name: measure(project, own, Arm(name, its)) for name, its in each}
        found, by_cause = summarised(project, measured, prices)
        rows += [{"phantom": phantom} | row for row in found]
        causes += [{"phantom": phantom} | row for row in by_cause]
    table, of_causes = pd.DataFrame(rows), pd.DataFrame(causes)
    write_csv("docs/repairs.csv", table, digits=4)
    write_csv("docs/repairs_by_cause.csv", of_causes, digits=4)
    save(picture(table), "docs/repairs.png")
    write_between(PAGE, BEGINS, ENDS, lines(table, of_causes))


def of_phantom(params: dict[str, Any], phantom: int) -> dict[str, Any]:
    """The project's parameters for one phantom, small and cheap."""
    cheaper = {name: params[name] | values for name, values in CHEAPER.items()}
    small = params["members"]["densenet121"] | {"architecture": "networks.small:small"}
    new = params | cheaper | {"members": {"one": small | {"seed": 10}, "two": small | {"seed": 20}}}
    new["prepare"] = params["prepare"] | {"seed": phantom, "size": SIZE}
    new["train"] = params["train"] | {"epochs": 8, "learning_rate": 0.005}
    few = {name: section | {"resamples": 100} for name, section in new.items() if "resamples" in str(section)}
    return new | {name: section for name, section in few.items() if "resamples" in params[name]}


class Arm(NamedTuple):
    """A repair by its name, with "shuffled" where its queue is of other cases, and its parameters."""

    name: str
    params: dict[str, Any]

    @property
    def kind(self) -> str:
        return self.name.partition(",")[0]

    @property
    def shuffled(self) -> bool:
        return self.name != self.kind

    @property
    def file(self) -> str:
        return self.name.replace(", ", "_")


def measure(project: Path, as_it_is: dict[str, Any], arm: Arm) -> pd.DataFrame:
    """What the members say of unseen cases as they are and repaired in this arm, a row a training seed and case."""
    path = project / f"unseen/{arm.file}.csv"
    if not path.exists():
        unseen = repair.draw_unseen(read(project / "params.yaml", "prepare", PrepareParams))
        given = unseen.cases["y_true"]
        labels = unseen.cases["y_corrected"] if arm.params["train"]["labels"] == "corrected" else given
        cases = unseen.cases.drop(columns=["y_true", "y_corrected"]).assign(y_before=given, y_after=labels)
        tables = []
        for seed in range(repair.SEEDS):
            before, after = (said(project, one, seed, unseen) for one in (Arm("as_it_is", as_it_is), arm))
            tables.append(cases.assign(seed=seed, y_prob_before=before, y_prob_after=after))
        write_csv(path, pd.concat(tables), digits=6)
    table = read_csv(path, [name for name in record.REPAIR if name != "run"])
    return table.join(pd.read_csv(path, usecols=["cause"]))


def said(project: Path, arm: Arm, seed: int, unseen: repair.Unseen) -> np.ndarray:
    """Mean calibrated probability (n,) of the members trained in this arm with so much larger seeds."""
    path = project / f"unseen/{arm.file}_{seed}.csv"
    if not path.exists():
        loaded, labels = gathered(project, arm)
        probs = []
        for name, member in read_members(project / "params.yaml").items():
            checkpoint = project / f"checkpoints/{arm.file}_{name}_{seed}.pt"
            seeded = member.model_copy(update={"seed": member.seed + seed})
            probs.append(trained(seeded, loaded, labels, TrainParams(**arm.params["train"]), checkpoint, unseen))
        write_csv(path, unseen.cases[["image_id"]].assign(y_prob=np.mean(probs, axis=0)), digits=6)
    return read_csv(path, ["y_prob"])["y_prob"].to_numpy()


def gathered(project: Path, arm: Arm) -> tuple[Loaded, np.ndarray]:
    """The cases of a phantom with what the arm's people have read or collected, and the labels that are learned."""
    cases = pd.read_csv(project / record.CASES, **AS_WRITTEN)
    loaded = Loaded(cases, np.load(project / "data/prepare/images.npy"), NOTHING_UNREADABLE)
    if arm.kind == "blindness":
        root = project / "data/raw"
        repair.collected(root, params=project / "params.yaml", other=arm.shuffled)
        options: dict[str, Any] = {"root": root, "size": SIZE, "how": "stretch", "channels": "grey"}
        loaded = with_collected(loaded, root / COLLECTED, "binary", **options)
    if arm.kind in repair.QUEUES:
        repair.readings(arm.kind, root=project, queue=others(project, arm.kind) if arm.shuffled else None)
    how = arm.params["train"]["labels"]
    return loaded, learned(loaded.cases, how, task="binary", readings=project / repair.READINGS)


def others(project: Path, kind: str) -> pd.DataFrame:
    """As many training cases as a queue has, drawn by lot from all of train."""
    queue = read_csv(project / f"data/failures/queues/{repair.QUEUES[kind]}.csv", ["image_id"])
    cases = record.of_split(read_csv(project / record.CASES, ["image_id", "split"]), "train")
    seed = read(project / "params.yaml", "prepare", PrepareParams).seed
    drawn = generator(seed, f"shuffled {kind}").permutation(len(cases))[: len(queue)]
    return cases.iloc[drawn][["image_id"]].reset_index(drop=True)


def trained(
    member: Member, loaded: Loaded, labels: np.ndarray, params: TrainParams, checkpoint: Path, unseen: repair.Unseen
) -> np.ndarray:
    """Calibrated probability (n,) of unseen cases by one member, trained and calibrated as the stages would."""
    model = start(member.architecture, weights="none", dropout=member.dropout, seed=member.seed, precision="auto")
    split = loaded.cases["split"]
    parts = (np.flatnonzero(split == name) for name in ("train", "val"))
    fit, val = ((Rows(loaded.images, rows), labels[rows]) for rows in parts)
    training.fit(model, fit, val, params, seed=member.seed, checkpoint=checkpoint, report=lambda epoch: None)
    checkpoint.unlink()
    raw = [classifier.predict(model, images, batch_size=64).logit for images in (val[0], unseen.images)]
    groups, rng = loaded.cases.loc[split == "val", "patient_id"], np.random.default_rng(0)
    choice = calibrators.choose_calibrator(val[1], raw[0], groups=groups, n_folds=5, rng=rng)
    return calibrators.fit_calibrator(choice.name, val[1], raw[0], groups=groups).probability(raw[1])


def summarised(
    project: Path, measured: dict[str, pd.DataFrame], prices: Prices
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of what was predicted and obtained, an arm and measure each; and of errors by their planted cause."""
    evidence, errors = (
        pd.read_csv(project / f"data/failures/{name}.csv", **AS_WRITTEN) for name in ("evidence", "errors")
    )
    run = answer.run_of(evidence)
    own = {kind: measured[kind].assign(run=run) for kind in KINDS}
    figures = answer.answer(evidence, errors, own, prices, answer.RepairParams(resamples=1000, seed=0))
    rows, causes = [], []
    for arm, table in measured.items():
        kind = arm.partition(",")[0]
        found = figures[arm]["obtained"] if arm in KINDS else answer.found(kind, table.assign(run=run), prices, run)
        for name in gain.MEASURES:
            row = {"arm": arm, "measure": name.removesuffix("_gain")} | columns("gain", found[name])
            expected = figures[kind]["predicted"].get(name)
            if expected is not None and arm in KINDS:
                row |= columns("predicted", expected) | {"kept": gain.within(expected, found[name])}
            rows.append(row)
        for cause, of in found["errors_by_cause"].items():
            told = {"arm": arm, "cause": cause, "n": of["n"], "error_rate": of["error_rate"]}
            causes.append(told | columns("fell_by", of["fell_by"]))
    return rows, causes


def pooled(table: pd.DataFrame, of: list[str], value: str) -> pd.DataFrame:
    """Mean over phantoms with the 95 % interval of as many phantoms, by Student's t."""
    grouped = table.dropna(subset=[value]).groupby(of, sort=False)[value]
    found = grouped.agg(["mean", "sem", "count"])
    reach = found["sem"] * t.ppf(0.975, found["count"] - 1)
    return found.assign(low=found["mean"] - reach, high=found["mean"] + reach).reset_index()


def lines(table: pd.DataFrame, causes: pd.DataFrame) -> list[str]:
    """The figures of the page."""
    repairs = table[table["arm"].isin(KINDS) & table["predicted"].notna()].dropna(subset=["kept"])
    kept = repairs["kept"].astype(bool)
    text = [
        f"{kept.sum()} of {len(kept)} promises were kept ({kept.mean():.0%}): the predicted gain lies in the interval",
        "of the obtained one. Gains are means over the phantoms, with 95 % intervals by Student's t over them:",
        "",
        "| repair | measure | predicted | obtained | promises kept |",
        "| --- | --- | --- | --- | --- |",
    ]
    every = pooled(table, ["arm", "measure"], "gain").set_index(["arm", "measure"])
    for (arm, measure), row in every.iterrows():
        promise = repairs[(repairs["arm"] == arm) & (repairs["measure"] == measure)]
        cells = ["", ""]
        if len(promise):
            cells = [f"{promise['predicted'].mean():+.4f}", f"{promise['kept'].astype(bool).sum()} of {len(promise)}"]
        if arm in KINDS:
            text.append(f"| {arm} | {measure.replace('_', ' ')} | {cells[0]} | {_told(row)} | {cells[1]} |")
    text += ["", "The same repairs where the queue holds as many other cases, drawn by lot:", ""]
    text += ["| queue | accuracy | AUROC | failure cost |", "| --- | --- | --- | --- |"]
    for kind in SHUFFLED:
        for arm, name in ((kind, "its own"), (f"{kind}, shuffled", "shuffled")):
            cells = [_told(every.loc[(arm, measure)]) for measure in ("accuracy", "auroc", "failure_cost")]
            text.append(f"| {kind}, {name} | {' | '.join(cells)} |")
    return [*text, "", *of_causes(causes)]


def of_causes(causes: pd.DataFrame) -> list[str]:
    """Which repair mends which cause: the errors that each planted cause made, and by how much they became fewer."""
    text = ["By how much the error rate fell among the unseen cases of each planted cause (rows), by repair:", ""]
    text += [f"| cause | error rate before | {' | '.join(KINDS)} |", f"|{' --- |' * (len(KINDS) + 2)}"]
    fell = pooled(causes, ["cause", "arm"], "fell_by").set_index(["cause", "arm"])
    for cause, rate in causes.groupby("cause")["error_rate"].mean().items():
        cells = [_told(fell.loc[(cause, kind)]) for kind in KINDS]
        text.append(f"| {cause} | {rate:.2f} | {' | '.join(cells)} |")
    return text


def _told(row: pd.Series) -> str:
    return f"{row['mean']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f})"


def picture(table: pd.DataFrame) -> Figure:
    """Predicted against obtained gain of every repair and phantom, a panel a measure."""
    measures = {"accuracy": "Accuracy", "auroc": "AUROC", "failure_cost": "Failure cost saved per case"}
    figure, axes = plt.subplots(1, len(measures), figsize=(12, 4.2), layout="constrained")
    repairs = table[table["arm"].isin(KINDS) & table["predicted"].notna()]
    for axis, (measure, label) in zip(axes, measures.items(), strict=True):
        own = repairs[repairs["measure"] == measure]
        legend = axis is axes[0]
        sns.scatterplot(own, x="predicted", y="gain", hue="arm", style="arm", s=60, ax=axis, legend=legend)
        axis.vlines(own["predicted"], own["gain_low"], own["gain_high"], color="0.6", linewidth=1, zorder=0)
        axis.axline((0, 0), slope=1, color="0.3", linestyle="--", linewidth=1)
        axis.axhline(0, color="0.8", linewidth=1)
        right = float(own["predicted"].max()) * 1.1
        axis.set(xlabel="Predicted gain", ylabel="Obtained gain", title=label, xlim=(-0.05 * right, right))
    axes[0].legend(title=None, frameon=False)
    return figure


if __name__ == "__main__":
    main()
