"""What does mending a kind of failure buy, on cases that nothing has seen?

Run by `make repair KIND=spurious|noise|blindness|ambiguity` in a project that has run. It trains the members as they
are and repaired, by three training seeds each, in copies of the project below `.studies/repairs`, asks both about
unseen cases, writes what they say to data/repairs/<kind>.csv, runs the stage `repair`, and leaves the repaired project
as the DVC experiment `repair-<kind>`. A killed run goes on where it was. CASES is a CSV of unseen cases with `path`,
`patient_id`, `y_true` and, at will, `y_corrected`; the phantom draws them itself, and stands in for people.
"""

import argparse
import hashlib
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from commands import copies
from tmv_lib.calibration.calibrators import read_calibrators
from tmv_lib.data.answer import PrepareParams
from tmv_lib.data.collected import read_labelled
from tmv_lib.deferral.answer import read_prices
from tmv_lib.explanations import attribution
from tmv_lib.failures import training_labels
from tmv_lib.network import classifier
from tmv_lib.network.labels import corrected
from tmv_lib.phantom import stand_ins
from tmv_lib.pipeline import record
from tmv_lib.pipeline.files import AS_WRITTEN, read_csv, write_csv
from tmv_lib.pipeline.params import read, read_members, read_yaml
from tmv_lib.pipeline.stage import run
from tmv_lib.repairs import answer
from tmv_lib.repairs.change import COLLECTED, KINDS, MATERIAL, changed, changes
from tmv_lib.repairs.unseen import require_unseen
from tmv_lib.statistics.resampling import generator

FOLDER = Path(".studies/repairs")
READINGS = "data/readings.csv"
SEEDS = 3
READERS = {"noise": 2, "ambiguity": 5}  # whom the phantom stands in for
QUEUES = {"noise": training_labels.RELABEL, "ambiguity": training_labels.SECOND_READER}
PATIENTS = 600  # of the phantom that nobody has seen
COLLECTED_FROM = 120  # patients, among whose films the phantom's collector finds those of the subtype
UNSEEN, COLLECTION = 1_000, 2_000  # seeds of their own


class Unseen(NamedTuple):
    """Cases to judge by, `image_id`, `patient_id`, `y_true`, `y_corrected` and, where planted, `cause`, and images."""

    cases: pd.DataFrame
    images: np.ndarray


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("kind", choices=list(KINDS))
    options.add_argument("--cases", type=Path, help="a CSV of unseen cases")
    given = options.parse_args()
    params, prices = read_yaml("params.yaml"), read_prices("params.yaml")
    source = read("params.yaml", "prepare", PrepareParams)
    if params["task"] != "binary":
        raise ValueError(f"params.yaml: task is {params['task']!r}: repairs are measured where it is binary")
    if source.source != "phantom" and given.cases is None:
        raise ValueError(f"CASES must name a CSV of cases that nothing has seen: prepare.source is {source.source!r}")
    unseen = read_unseen(given.cases, source) if given.cases else draw_unseen(source)
    seen = read_csv(record.CASES, ["image_id", "patient_id"])
    require_unseen(unseen.cases, unseen.images, seen, np.load("data/prepare/images.npy", mmap_mode="r"))
    gather(given.kind, Path(source.root), stand_in=source.source == "phantom")

    change = changes(given.kind, params, prices)
    arms = {"as it is": params, given.kind: changed(params, change)}
    measured = measure(arms, unseen, FOLDER / given.kind)
    evidence = pd.read_csv("data/failures/evidence.csv", **AS_WRITTEN)
    write_csv(f"{record.REPAIRS}/{given.kind}.csv", measured.assign(run=answer.run_of(evidence)), digits=6)
    copies.dvc("repro", "--single-item", "repair", folder=Path(), quiet=True)
    leave_experiment(given.kind, change, source)
    found = record.read_metrics("repair")
    if found is not None:
        print("\n".join(answer.sentences(given.kind, found["repair"][given.kind])))


def read_unseen(path: Path, source: PrepareParams) -> Unseen:
    """Cases that a CSV lists, its images beside it."""
    options: dict[str, Any] = {"size": source.size, "how": source.square, "channels": source.channels}
    known = pd.DataFrame({"y_true": []})
    read_in = read_labelled(path, "binary", known, progress=partial(tqdm, desc="unseen cases"), **options)
    cases = read_in.cases
    labels = cases["y_corrected"] if "y_corrected" in cases else cases["y_true"]
    if not labels.isin([0, 1]).all():
        raise ValueError(f"{path}: y_corrected must be 0 or 1, found {labels[~labels.isin([0, 1])].iloc[0]}")
    return Unseen(cases[["image_id", "patient_id", "y_true"]].assign(y_corrected=labels), read_in.images)


def draw_unseen(source: PrepareParams, *, patients: int = PATIENTS) -> Unseen:
    """A fresh phantom by the recipe of the test split; two readers have read every film again."""
    seed = source.seed + UNSEEN
    recipe = source.phantom.model_dump()
    cases, images = stand_ins.draw("unseen", recipe, patients=patients, seed=seed, size=source.size)
    again = stand_ins.read_again(cases, n_readers=READERS["noise"], rng=generator(seed, "unseen"))
    positive = again.groupby("image_id")["y_true"].sum()[cases["image_id"]].to_numpy()
    labels = corrected(cases["y_true"].to_numpy(), positive, np.full(len(cases), READERS["noise"]))
    images = np.repeat(images[..., None], 3, axis=3) if source.channels == "colour" else images
    return Unseen(cases[["image_id", "patient_id", "y_true", "cause"]].assign(y_corrected=labels), images)


def gather(kind: str, root: Path, *, stand_in: bool) -> None:
    """Make sure that what people must have done before is there; the phantom does it, and says so.

    Raises ValueError saying what is needed.
    """
    if kind not in MATERIAL:
        return
    if kind == "blindness":
        place, there = root / COLLECTED, (root / COLLECTED).exists()
    else:
        readers = read_csv(READINGS, ["image_id", "reader"])["reader"].astype(str)
        # what the phantom's readers said of another queue is no answer
        place, there = Path(READINGS), not readers.str.startswith(stand_ins.READER).all()
    if not there and not stand_in:
        raise ValueError(f"{place}: nothing there; this repair needs {MATERIAL[kind]}")
    if not there:
        found = collected(root) if kind == "blindness" else readings(kind)
        print(f"the phantom stands in for people: {found}; take them away afterwards", file=sys.stderr)


def readings(kind: str, *, root: Path = Path(), queue: pd.DataFrame | None = None) -> str:
    """Let the phantom's readers read a queue of training cases; what they said goes to data/readings.csv."""
    queue = pd.read_csv(root / f"data/failures/queues/{QUEUES[kind]}.csv") if queue is None else queue
    plan = pd.read_csv(root / record.CASES, **AS_WRITTEN).set_index("image_id", drop=False)
    rng = generator(read(root / "params.yaml", "prepare", PrepareParams).seed, f"readers {kind}")
    read_again = stand_ins.read_again(plan.loc[queue["image_id"]], n_readers=READERS[kind], rng=rng)
    write_csv(root / READINGS, read_again)
    return f"{len(read_again)} readings of {len(queue)} training cases in {root / READINGS}"


def collected(root: Path, *, params: Path = Path("params.yaml"), other: bool = False) -> str:
    """Let the phantom's collector find films of the subtype that training never shows, or as many others."""
    source = read(params, "prepare", PrepareParams)
    recipe = source.phantom.model_dump() | {"blind": 0.8}
    seed = source.seed + COLLECTION
    cases, images = stand_ins.draw("collected", recipe, patients=COLLECTED_FROM, seed=seed, size=source.size)
    blind = (cases["cause"] == "blind").to_numpy()
    here = ~blind & (np.cumsum(~blind) <= blind.sum()) if other else blind
    stand_ins.save_list(root / COLLECTED, cases[here], images[here])
    return f"{here.sum()} films in {root / COLLECTED}"


def measure(
    arms: dict[str, dict[str, Any]],
    unseen: Unseen,
    folder: Path,
) -> pd.DataFrame:
    """What the ensemble says of unseen cases in two arms, a row a training seed and case.

    arms: parameters of the project as it is, and repaired.
    """
    names = list(arms)
    shares = tqdm([(seed, arm) for seed in range(SEEDS) for arm in names], desc="trainings")
    said = {(seed, arm): in_arm(folder, arm, seed, arms[arm], unseen) for seed, arm in shares}
    tables = []
    for seed in range(SEEDS):
        before, after = (said[seed, arm] for arm in names)
        cases = unseen.cases.drop(columns=["y_true", "y_corrected"])
        both = {"y_before": unseen.cases["y_true"], "y_after": unseen.cases["y_true"]}
        if arms[names[1]]["train"]["labels"] == "corrected":
            both["y_after"] = unseen.cases["y_corrected"]
        tables.append(cases.assign(seed=seed, **both, y_prob_before=before, y_prob_after=after))
    return pd.concat(tables, ignore_index=True)


def in_arm(folder: Path, arm: str, seed: int, params: dict[str, Any], unseen: Unseen) -> np.ndarray:
    """Mean calibrated probability (n,) of the members that were trained in this arm with this seed more than given."""
    home = (folder.parent / "as_is" if arm == "as it is" else folder) / str(seed)
    members = {name: one | {"seed": one["seed"] + seed} for name, one in params["members"].items()}
    lay_out(home, params | {"members": members})
    copies.dvc("repro", "calibration", folder=home, quiet=True)
    # what DVC has run, and of whom it is asked, name what was said: nothing that is there is of another run
    asked = hashlib.sha256((home / "dvc.lock").read_bytes() + unseen.images.tobytes()).hexdigest()[:12]
    path = home / f"unseen_{asked}.csv"
    if not path.exists():
        y_prob = np.mean(list(probabilities(home, unseen.images).values()), axis=0)
        write_csv(path, unseen.cases[["image_id"]].assign(y_prob=y_prob), digits=9)
    return read_csv(path, ["image_id", "y_prob"])["y_prob"].to_numpy()


def lay_out(home: Path, params: dict[str, Any]) -> None:
    """A copy of the project with these parameters, with the readings and images there are, and what is trained."""
    copies.lay_out(home, params)
    shutil.copy(READINGS, home / READINGS)
    if params["prepare"]["source"] == "phantom":
        shutil.copytree(params["prepare"]["root"], home / params["prepare"]["root"], dirs_exist_ok=True)
    checkpoints = Path("checkpoints").absolute()
    checkpoints.mkdir(exist_ok=True)
    if not (home / "checkpoints").exists():
        (home / "checkpoints").symlink_to(checkpoints)


def probabilities(home: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    """By member the calibrated probability (n,) of each image, by the weights and calibrators in a project."""
    question, calibrators = record.read_question(root=home), read_calibrators(home / record.CALIBRATORS)
    found = {}
    for name, member in read_members(home / "params.yaml").items():
        model = attribution.load_trained(member.below(home), record.weights(name, root=home), question)
        raw = classifier.predict(
            model, images, batch_size=32, progress=partial(tqdm, desc=f"{name}: unseen", leave=False)
        )
        found[name] = calibrators[name].probability(raw.logit)
    return found


def leave_experiment(kind: str, change: dict[str, Any], source: PrepareParams) -> None:
    """Leave the repaired project as an experiment of DVC; what is trained is not trained again."""
    name, root = f"repair-{kind}", Path(source.root)
    if source.source != "phantom":
        change = change | {"prepare.root": root.absolute()}
    sets = [option for key, value in change.items() for option in ("--set-param", f"{key}={value}")]
    # in a folder of its own, so that the working tree stays as it is; what git does not track is named
    untracked = [Path("checkpoints"), root / COLLECTED, (root / COLLECTED).with_suffix("")]
    kept = [option for path in untracked if path.exists() for option in ("--copy-paths", str(path))]
    command = ["exp", "run", "--quiet", "--force", "--name", name, "--temp", *kept, *sets, "calibration"]
    copies.dvc(*command, folder=Path(), quiet=True)
    adopted = f"`dvc exp apply {name} && make repro` adopts it"
    print(f"left as the experiment {name}: `dvc exp show`; {adopted}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
