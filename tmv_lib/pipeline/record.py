"""What the stages left on disk, each table and file read in one place, under one name and in one unit everywhere.

Every label is read through the question (`pipeline/question.py`): `y_true` in {0, 1}, one logit, and no case that is
not labelled for it. Per member m: `score_m`, the network's own logit; `logit_m`, calibrated; `y_prob_m`, the
probability of that; `cross_fitted_logit_m`, the same but for the cases of val, whose calibrator other patients fitted.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from safetensors import safe_open

from tmv_lib.pipeline.files import AS_WRITTEN, Rows, join, read_csv, read_rows
from tmv_lib.pipeline.metrics import SUFFIXES, with_reasons
from tmv_lib.pipeline.question import Question, output_columns, read_labels, read_task
from tmv_lib.pipeline.question import read_question as read_asked
from tmv_lib.statistics.estimate import Estimate

CASES = "data/prepare/cases.csv"
SPINE = ["image_id", "patient_id", "split", "y_true"]
PARAMS = "params.yaml"
CALIBRATED = ("logit", "y_prob", "cross_fitted_logit")
CALIBRATORS = "data/calibration/calibrators.json"
SITE = "data/site/cases.csv"
ADJUDICATION = "data/adjudication.csv"
REPAIRS = "data/repairs"
REPAIR = ["seed", "image_id", "patient_id", "y_before", "y_after", "y_prob_before", "y_prob_after", "run"]
MOST_REFERENCES = 20_000  # more cost time that grows with the square of the cases, and tell hardly more
NO_SITE = f"{SITE}: no such file; the stage `site` makes it"


class Head(NamedTuple):
    """The linear outputs of a network that the question asks: weight (k, d), bias (k,), their question.

    One output where the question is about one; else every class's.
    """

    weight: np.ndarray
    bias: np.ndarray
    question: Question


def read_question(*, root: str | Path = ".") -> Question:
    """The question that is put to the networks of this run."""
    path, task = Path(root) / PARAMS, read_task(Path(root) / PARAMS)
    labels = pd.DataFrame() if task == "binary" else read_labels(Path(root) / CASES, task)
    return read_asked(path, labels)


def read_labelled(further: Iterable[str] = (), *, root: str | Path = ".") -> pd.DataFrame:
    """`image_id`, `patient_id`, `split`, `y_true` and further columns of the cases that the question is about."""
    path, task = Path(root) / CASES, read_task(Path(root) / PARAMS)
    if task == "binary":
        return read_csv(path, [*SPINE, *further])
    cases = read_question(root=root).of(read_labels(path, task))
    return join(cases, read_csv(path, ["image_id", *further]))


def read_scores(path: str | Path, columns: list[str], *, root: str | Path = ".") -> pd.DataFrame:
    """Columns of a table of a network's outputs, and its answer to the question, the logit `score`."""
    question = read_question(root=root)
    outputs = output_columns(question.names)
    table = read_csv(path, [*columns, *outputs])
    return table[columns].assign(score=question.logit(table[outputs].to_numpy()))


def read_outputs(member: str, *, root: str | Path = ".") -> pd.DataFrame:
    """Every output of one network for every case with its labels, whatever the question."""
    path, question = Path(root) / f"data/train/{member}/predictions.csv", read_question(root=root)
    labels = read_labels(path, question.task)
    return join(labels, read_csv(path, ["image_id", *output_columns(question.names)]))


def count_asked(*, root: str | Path = ".") -> dict[str, Any]:
    """The question: what yes means, and by split the number of cases that are not labelled for it.

    Empty where the task is binary: there is no other question then.
    """
    question = read_question(root=root)
    if question.task == "binary":
        return {}
    labels = read_labels(Path(root) / CASES, question.task)
    left_out = labels[~labels["image_id"].isin(question.of(labels)["image_id"])]
    counted = left_out["split"].value_counts(sort=False).to_dict()
    asked = ", ".join(question.names[k] for k in question.positive)
    return {"question": {"positive": asked, "not_labelled": counted}}


def read_predictions(member: str, *, root: str | Path = ".") -> pd.DataFrame:
    """What one network says of every case: `image_id`, `patient_id`, `split`, `y_true`, `score`."""
    path, task = Path(root) / f"data/train/{member}/predictions.csv", read_task(Path(root) / PARAMS)
    if task == "binary":
        return read_scores(path, SPINE, root=root)
    labelled = read_question(root=root).of(read_labels(path, task))
    return join(labelled, read_scores(path, ["image_id"], root=root))


def read_cases(members: Iterable[str], *, further: Iterable[str] = (), root: str | Path = ".") -> pd.DataFrame:
    """The case table of every split, further columns of it, and what each member says of each case."""
    root, members = Path(root), list(members)
    cases = read_labelled(further, root=root)
    for name in members:
        own = read_predictions(name, root=root)[["image_id", "score"]]
        cases = join(cases, own.rename(columns={"score": f"score_{name}"}))
    columns = [f"{kind}_{name}" for name in members for kind in CALIBRATED]
    return join(cases, read_csv(root / "data/calibration/cases.csv", ["image_id", *columns]))


def read_case_table(*, root: str | Path = ".") -> pd.DataFrame:
    """The cases that the question is about with every column that the source has, ids as text."""
    return read_question(root=root).of(pd.read_csv(Path(root) / CASES, **AS_WRITTEN))


def outside_train(cases: pd.DataFrame) -> pd.DataFrame:
    """The cases that no network was trained on, numbered anew."""
    return cases[cases["split"] != "train"].reset_index(drop=True)


def of_split(cases: pd.DataFrame, *splits: str) -> pd.DataFrame:
    """The cases of these splits, numbered anew."""
    return cases[cases["split"].isin(splits)].reset_index(drop=True)


def few(table: pd.DataFrame, most: int) -> pd.DataFrame:
    """The table, or of a longer one at most so many rows, evenly chosen."""
    return table.iloc[:: max(1, -(-len(table) // most))]


def reference_cases(cases: pd.DataFrame) -> pd.DataFrame:
    """The training cases among which neighbours are sought: all, or `few` of more than `MOST_REFERENCES`."""
    return few(of_split(cases, "train"), MOST_REFERENCES)


def read_images(wanted: pd.Series, *, root: str | Path = ".") -> Rows:
    """uint8 images (n, side, side), or in colour (n, side, side, 3), of the wanted `image_id`, read when asked for."""
    ids = read_csv(Path(root) / CASES, ["image_id"])["image_id"]
    return read_rows(Path(root) / "data/prepare/images.npy", image_id=ids, wanted=wanted)


def read_masks(wanted: pd.Series, *, root: str | Path = ".") -> dict[str, np.ndarray]:
    """`masks` (of the finding) and `lungs`, boolean (n, side, side) of the wanted images, where the source has them."""
    ids = read_csv(Path(root) / CASES, ["image_id"])["image_id"]
    paths = {name: Path(root) / f"data/prepare/{name}.npy" for name in ("masks", "lungs")}
    return {name: read_rows(path, image_id=ids, wanted=wanted)[:] for name, path in paths.items() if path.exists()}


def marker_column(*, root: str | Path = ".") -> list[str]:
    """`marker` where the case table has it as 0 and 1; words of a source's own say something else."""
    table = pd.read_csv(Path(root) / CASES, usecols=lambda name: name == "marker")
    return [name for name in table if table[name].isin([0, 1]).all()]


def cause_column(*, root: str | Path = ".") -> list[str]:
    """`cause` where the cases are the phantom's, which alone says what was planted."""
    table = pd.read_csv(Path(root) / CASES, usecols=lambda name: name in ("source", "cause"))
    return ["cause"] if set(table["source"].unique()) == {"phantom"} else []


def read_witness(wanted: pd.Series, *, root: str | Path = ".") -> np.ndarray:
    """The logit (n,) of the network that never sees the border, for the wanted `image_id`."""
    table = read_scores(Path(root) / "data/reference/predictions.csv", ["image_id"], root=root)
    return join(wanted.to_frame("image_id"), table)["score"].to_numpy()


def weights(member: str, *, root: str | Path = ".") -> Path:
    """Where a member's weights lie."""
    return Path(root) / f"data/train/{member}/weights.safetensors"


def read_features(member: str, wanted: pd.Series, *, root: str | Path = ".") -> np.ndarray:
    """Pooled features (n, d) of a member, or of the witness `reference`, for the wanted `image_id`."""
    folder = Path(root) / ("data/reference" if member == "reference" else f"data/train/{member}")
    ids = read_csv(folder / "predictions.csv", ["image_id"])["image_id"]
    return read_rows(folder / "features.npy", image_id=ids, wanted=wanted)[:]


def read_head(member: str, *, root: str | Path = ".") -> Head:
    """The outputs of a member's linear head that the question asks, without its network."""
    question = read_question(root=root)
    asked = slice(None) if question.others else question.positive
    with safe_open(weights(member, root=root), framework="numpy") as stored:
        return Head(stored.get_tensor("head.weight")[asked], stored.get_tensor("head.bias")[asked], question)


def read_foreign(member: str, *, root: str | Path = ".") -> tuple[pd.DataFrame, np.ndarray]:
    """What a member says of the spoiled images, `image_id`, `kind`, `score`, and their features (n, d)."""
    folder = Path(root) / f"data/train/{member}"
    table = read_scores(folder / "foreign.csv", ["image_id", "kind"], root=root)
    features = np.load(folder / "foreign.npy")
    if len(features) != len(table):
        raise ValueError(f"{folder / 'foreign.npy'}: {len(features)} rows for {len(table)} images")
    return table, features


def read_changed(member: str, wanted: pd.Series, *, root: str | Path = ".") -> np.ndarray:
    """The member's logits (changes, n) of the wanted images under each mild change of `stability`."""
    table = read_csv(Path(root) / "data/stability/logits.csv", ["image_id", "member", "perturbation", "logit"])
    own = table[table["member"] == member]
    return own.pivot_table(index="perturbation", columns="image_id", values="logit")[wanted].to_numpy()


def read_layers(*, root: str | Path = ".") -> dict[str, dict[str, str]]:
    """By member the `layer` that `explanations` explained, and the `method`."""
    table = read_csv(Path(root) / "data/explanations/layers.csv", ["member", "layer", "method"])
    return table.set_index("member").to_dict("index")


def read_maps(member: str, *, root: str | Path = ".") -> tuple[np.ndarray, np.ndarray]:
    """Maps (n, h, w) of the cases outside train: of a member, and of a network that learned nothing."""
    folder = Path(root) / "data/explanations"
    return np.load(folder / f"maps_{member}.npy"), np.load(folder / f"untrained_{member}.npy")


def read_untrained_logits(member: str, wanted: pd.Series, *, root: str | Path = ".") -> np.ndarray:
    """Logits (n,) of the network that learned nothing, for the wanted `image_id`."""
    name = f"untrained_logit_{member}"
    table = read_csv(Path(root) / "data/explanations/cases.csv", ["image_id", name])
    return join(wanted.to_frame("image_id"), table)[name].to_numpy()


def has_features(member: str, *, root: str | Path = ".") -> bool:
    """Whether a member's features are there; of somebody else's model only the predictions are known."""
    return (Path(root) / f"data/train/{member}/features.npy").exists()


def read_signals(path: str | Path, columns: list[str]) -> pd.DataFrame:
    """`image_id` and these columns, whose fields may be empty: a constant map has no stability, say.

    Raises ValueError naming a file or column that is not there.
    """
    read_csv(path, ["image_id"])
    table = pd.read_csv(path, **AS_WRITTEN)
    if lacking := [name for name in columns if name not in table]:
        raise ValueError(f"{path}: signal {lacking[0]} is missing; the columns are {', '.join(table.columns)}")
    return table[["image_id", *columns]]


def read_signal_columns(
    cases: pd.DataFrame, columns: Mapping[str, list[str]], *, root: str | Path = "."
) -> pd.DataFrame:
    """The cases with columns of `data/<stage>/cases.csv` by stage, whose fields may be empty."""
    return join(cases, *(read_signals(Path(root) / f"data/{stage}/cases.csv", of) for stage, of in columns.items()))


def has_signal(stage: str, name: str, *, root: str | Path = ".") -> bool:
    """Whether a stage left this column."""
    return name in pd.read_csv(Path(root) / f"data/{stage}/cases.csv", nrows=0)


def read_planted_truth(*, root: str | Path = ".") -> list[pd.DataFrame]:
    """`image_id`, `cause` and `y_clean` of the phantom's cases, a list of one; an empty list for other sources."""
    if not cause_column(root=root):
        return []
    return [read_csv(Path(root) / CASES, ["image_id", "cause", "y_clean"])]


def read_failures(*, root: str | Path = ".") -> pd.DataFrame:
    """The sorted errors of every model: `image_id`, `model`, `kind`, `y_true`."""
    return read_csv(Path(root) / "data/failures/errors.csv", ["image_id", "model", "kind", "y_true"])


def read_shift(*, root: str | Path = ".") -> dict[str, Any] | None:
    """What `site` says of the looks of the site: `name`, and whether it is `shifted`; None where it has not run."""
    path = Path(root) / "data/site/shift.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def read_blame(*, root: str | Path = ".") -> dict[str, str]:
    """By member whose `site` says a miscalibration there is; empty where it has not run."""
    path = Path(root) / "data/site/blame.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def read_repairs(member: str, *, root: str | Path = ".") -> pd.DataFrame:
    """What a member says of the phantom's mended images: `image_id`, `repair`, `score`."""
    return read_scores(Path(root) / f"data/train/{member}/repairs.csv", ["image_id", "repair"], root=root)


def read_measured_repair(kind: str, *, root: str | Path = ".") -> pd.DataFrame | None:
    """What a repair was measured to say of unseen cases, a row a case and training seed; None where it was not.

    `y_before` is the label as it was, `y_after` with corrections; `cause` stands beside where it was planted. Raises
    ValueError where a case of it is one that the run has seen.
    """
    path = Path(root) / REPAIRS / f"{kind}.csv"
    if not path.exists():
        return None
    measured = read_csv(path, REPAIR).join(pd.read_csv(path, usecols=lambda name: name == "cause"))
    seen = read_csv(Path(root) / CASES, ["image_id", "patient_id"])
    for column in ("image_id", "patient_id"):
        if (twice := measured[column].isin(seen[column])).any():
            told = measured.loc[twice, column].iloc[0]
            raise ValueError(f"{path}: {column} {told} is in {CASES}: a queue was made from these")
    return measured


def read_calibrations(cases: pd.DataFrame, members: list[str], *, site: str | Path = SITE) -> dict[str, pd.DataFrame]:
    """Each member's calibrated logits of the cases, a column a member: as shipped, calibrated at the site, the ceiling.

    cases: with `image_id` and `logit_<member>`. site: the table of the stage `site`; as shipped alone where there is
    none. Raises ValueError naming the file where it lacks a column or a case.
    """
    logits = {"as_shipped": cases[[f"logit_{name}" for name in members]].set_axis(members, axis=1)}
    if not Path(site).exists():
        return logits
    kinds = {"site_calibrated": "site_logit", "ceiling": "ceiling_logit"}
    table = read_csv(site, ["image_id", *(f"{kind}_{name}" for kind in kinds.values() for name in members)])
    table = join(cases[["image_id"]], table)
    for name, kind in kinds.items():
        logits[name] = table[[f"{kind}_{member}" for member in members]].set_axis(members, axis=1)
    return logits


class Figures(Mapping[str, Any]):
    """Figures read from a metrics file: nested mappings whose keys must be there.

    `figures["deferral"]["n"]` is a value or the Figures below it, `figures.estimate("auroc")` an `Estimate`. A key that
    is not there raises ValueError naming the file, the key and what is there: a renamed metric is never "not measured".
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values, self._where = values, where

    def __getitem__(self, name: str) -> Any:
        if name not in self._values:
            raise ValueError(f"{self._where}: no metric {name!r}; there are {', '.join(self._values)}")
        value = self._values[name]
        return Figures(value, f"{self._where} {name}") if isinstance(value, Mapping) else value

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a key that may be left out."""
        return self[name] if name in self._values else default

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def absences(self) -> Iterator[tuple[str, str]]:
        """Every figure that is not there: its keys, parted by blanks, and the reason."""
        for name, value in self._values.items():
            if isinstance(value, Mapping):
                yield from ((f"{name} {inner}".strip(), reason) for inner, reason in self[name].absences())
            elif (name == "absent" or name.endswith("_absent")) and isinstance(value, str):
                yield name.removesuffix("absent").removesuffix("_"), value

    def estimate(self, name: str) -> Estimate:
        """The figure of this name, which is there or absent with its reason."""
        if f"{name}_absent" not in self._values:
            self[name]  # raises where it is neither
        return Estimate(**{field: self._values.get(f"{name}{suffix}") for field, suffix in SUFFIXES.items()})


def read_metrics(stage: str, *, root: str | Path = ".") -> Figures | None:
    """The metrics of a stage; None where the stage has not run, and that alone is "not measured".

    Raises ValueError for a file that is no JSON.
    """
    path = Path(root) / f"metrics/{stage}.json"
    if not path.is_file():
        return None
    try:
        return Figures(with_reasons(json.loads(path.read_text(encoding="utf-8")), stage, root=root), str(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not a metrics file ({error}); `dvc repro {stage}` makes it") from None
