"""Models of which only the predictions are known, simulated so that the answers are known."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.special import expit

from commands import evaluate
from tmv_lib.data.prediction_files import read_predictions
from tmv_lib.pipeline.metrics import with_reasons
from tmv_lib.statistics.ranking import auroc

ROOT = Path(__file__).parents[1]


def predictions(*, steepness: float = 1.0, noise: float = 0.0) -> pd.DataFrame:
    """Two images a patient with labels drawn from expit(z), and a model that says steepness * (z + noise)."""
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(1500), 2)
    z = rng.normal(0, 2.5, 3000)
    said = steepness * (z + noise * np.random.default_rng(1).normal(size=3000))
    return pd.DataFrame(
        {
            "image_id": [f"i{k}" for k in range(3000)],
            "patient_id": [f"p{k}" for k in patient],
            "split": np.select([patient < 600, patient < 900], ["val", "cal"], "test"),
            "y_true": (rng.random(3000) < expit(z)).astype(int),
            "logit": said,
            "sex": np.where(patient % 3 == 0, "f", "m"),
        }
    )


def write_quick_knobs(folder: Path) -> None:
    """The knobs and the card of the project in a folder, with few resamples."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["site"] |= {"draws": 20, "patients": [25]}
    for section in params.values():
        if "resamples" in section:
            section["resamples"] = 100
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    shutil.copy(ROOT / "card.yaml", folder)


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """The knobs of the project, made quick, and two files: one overconfident, one noisy and in another order."""
    write_quick_knobs(tmp_path)
    predictions(steepness=2).to_csv(tmp_path / "mine.csv", index=False)
    predictions(noise=0.5).sample(frac=1, random_state=0).to_csv(tmp_path / "yours.csv", index=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def metrics(folder: Path, name: str) -> dict:
    """With the reasons of what is absent."""
    return with_reasons(json.loads((folder / f"metrics/{name}.json").read_text(encoding="utf-8")), name, root=folder)


def test_one_model_is_evaluated_in_a_process_that_has_no_torch(project):
    (project / "without").mkdir()
    (project / "without/torch.py").write_text("raise ImportError('torch is imported')", encoding="utf-8")
    command = [sys.executable, "-m", "commands.evaluate", "mine.csv", "--out", "evaluated"]
    environment = {"PYTHONPATH": f"{project / 'without'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    refused = subprocess.run([sys.executable, "-c", "import torch"], env=environment, capture_output=True, check=False)
    assert refused.returncode == 1
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, test = project / "evaluated", predictions().query("split == 'test'").set_index("image_id")

    slopes = {
        phase: metrics(found, "calibration")["calibration"]["mine"][phase]["slope"] for phase in ("before", "after")
    }
    assert slopes["before"] == pytest.approx(0.5, abs=0.1)  # the logits are twice what they should be
    assert slopes["after"] == pytest.approx(1, abs=0.2)
    assert metrics(found, "baseline")["baseline"]["auroc"] == pytest.approx(
        auroc(test["y_true"], test["logit"]), rel=1e-5
    )
    of_policy = metrics(found, "ensemble")["deferral"]
    cases = pd.read_csv(found / "data/ensemble/cases.csv").set_index("image_id").loc[test.index]
    calibrated = pd.read_csv(found / "data/calibration/cases.csv").set_index("image_id").loc[test.index]
    np.testing.assert_allclose(cases["y_prob"], calibrated["y_prob_mine"], atol=1e-8)  # it is the ensemble
    assert of_policy["coverage"] == pytest.approx((cases["certainty"] >= of_policy["threshold"]).mean(), rel=1e-5)
    assert not of_policy["learned"]["used"]
    assert metrics(found, "ensemble")["verdict"]["answer"] in ("use", "do_not_use", "cannot_tell")
    assert set(of_policy["subgroups"]) >= {"sex: f", "sex: m"}

    assert metrics(found, "prepare")["prepare"]["intervals"] == "little_bootstraps"  # 1,500 patients

    # what only a network could tell is said to be missing
    assert of_policy["failures"]["absent"].startswith("not measured")
    assert metrics(found, "uncertainty")["uncertainty"]["mine"]["dropout_absent"].startswith("not measured")
    assert "not measured" in metrics(found, "site")["site"]["shift"]["pooled"]["features"]["absent"]
    assert not (found / "metrics/diversity.json").exists()
    card = (found / "plots/ensemble/trust_card.md").read_text(encoding="utf-8")
    assert "known by its predictions alone" in card
    assert "not measured: the stage `explanations` has not run" in card
    assert (found / "plots/ensemble/trust_card.html").exists()


def test_two_models_are_compared_whatever_the_order_of_their_rows(project):
    evaluate.evaluate([Path("mine.csv"), Path("yours.csv")], Path("once"))
    predictions(noise=0.5).to_csv("yours.csv", index=False)
    evaluate.evaluate([Path("mine.csv"), Path("yours.csv")], Path("again"))
    for path in sorted(Path("once/metrics").iterdir()):
        assert path.read_bytes() == Path("again/metrics", path.name).read_bytes()
    assert metrics(project / "once", "diversity")["diversity"]["together"]["auroc_difference"] > 0  # noise only harms
    detected = metrics(project / "once", "uncertainty")["uncertainty"]["yours"]
    assert {"margin", "disagreement", "members_mutual_information", "quadrants", "dropout_absent"} <= set(detected)


def test_nothing_is_left_of_an_evaluation_that_fails(project, monkeypatch):
    def fail(*_args: object, **_options: object) -> None:
        raise ValueError("no")

    monkeypatch.setattr("stages.site.main", fail)
    before = sorted(path.name for path in project.iterdir())
    with pytest.raises(ValueError, match="no"):
        evaluate.evaluate([Path("mine.csv")], Path("evaluated"))
    assert sorted(path.name for path in project.iterdir()) == before
    with pytest.raises(ValueError, match="is there already"):
        evaluate.evaluate([Path("mine.csv")], project)


def test_a_reversed_model_is_refused_and_nothing_is_left(project):
    predictions(steepness=-1).to_csv("turned.csv", index=False)
    before = sorted(path.name for path in project.iterdir())
    command = [sys.executable, "-m", "commands.evaluate", "mine.csv", "turned.csv", "--out", "evaluated"]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "data/train/turned/predictions.csv: the scores rank the wrong way: AUROC on val is 0.1" in done.stderr
    assert "the labels or the sign of the logit are reversed" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in project.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.drop(columns="logit"), r"mine\.csv: column logit is missing"),
        (lambda t: t.assign(logit=t["logit"].where(t.index != 4)), r"mine\.csv: column logit is empty in row 6"),
        (lambda t: t.assign(logit=t["logit"].astype(object).where(t.index != 4, "x")), "row 6: logit 'x' is no finite"),
        (lambda t: t.assign(logit=t["logit"].where(t.index != 4, np.inf)), "row 6: logit 'inf' is no finite"),
        (lambda t: t.assign(y_true=t["y_true"].where(t.index != 4, 2)), "row 6: y_true '2' is neither 0 nor 1"),
        (lambda t: t.assign(split=t["split"].where(t.index != 4, "dev")), "row 6: split 'dev' is none of train"),
        (lambda t: t.assign(image_id=t["image_id"].where(t.index != 4, "i0")), "row 6: image_id 'i0' stands there"),
        (lambda t: t[t["split"] != "cal"], r"split cal must hold both classes, found y_true \[\]: it certifies"),
        (lambda t: t[(t["split"] != "val") | (t["y_true"] == 1)], r"split val must hold both classes"),
        (lambda t: t.assign(patient_id=t["patient_id"].where(t.index != 2999, "p0")), "1 patients, p0 among them"),
        (lambda t: t.assign(logit=expit(t["logit"])), r"mine\.csv: every value of column logit lies in \[0, 1\]"),
        (lambda t: t.rename(columns={"split": "Split"}), r"mine\.csv: column 'Split' is nearly 'split'; rename it"),
        (lambda t: t.rename(columns={"patient_id": "Patient ID "}), "column 'Patient ID ' is nearly 'patient_id'"),
        (lambda t: t.rename(columns={"sex": "logit"}), r"mine\.csv: column 'logit' is there 2 times"),
        (lambda t: t.iloc[:-1], r"yours\.csv: 1 images, i2999 among them"),
        (
            lambda t: t.assign(y_true=t["y_true"].where(t.index != 4, 1 - t["y_true"])),
            r"yours\.csv: y_true of image i4",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named(project, change, words):
    change(predictions()).to_csv("mine.csv", index=False)
    with pytest.raises(ValueError, match=words):
        read_predictions([Path("mine.csv"), Path("yours.csv")])


def test_names_stay_what_they_are_and_an_index_is_no_column(project):
    table = predictions()
    named = {"i0": "NA", "i1": "1e5", "i2": "007"}
    table.assign(image_id=table["image_id"].replace(named), patient_id="NA" + table["patient_id"]).to_csv("saved.csv")
    read = read_predictions([Path("saved.csv")])["saved"]
    assert read["image_id"][:3].tolist() == ["NA", "1e5", "007"]
    assert read["patient_id"][0] == "NAp0"
    assert list(read) == list(table)


def test_two_evaluations_at_once_leave_each_other_alone(project, monkeypatch):
    parts = []
    monkeypatch.setattr(evaluate, "lay_out", lambda part, members: parts.append(part) or (part / "own").write_text(""))
    monkeypatch.setattr(evaluate, "STAGES", ())
    monkeypatch.setattr(evaluate, "report", lambda *_: None)
    evaluate.evaluate([Path("mine.csv")], Path("one"))
    with pytest.raises(ValueError, match="one: is there already"):
        evaluate.evaluate([Path("mine.csv")], Path("one"))
    evaluate.evaluate([Path("mine.csv")], Path("two"))
    assert len(set(parts)) == 2
    assert not [path for path in project.iterdir() if path.suffix == ".part"]


def test_a_file_names_its_member(project):
    for name in ("Mine 2.csv", "ensemble.csv"):
        shutil.copy("mine.csv", name)
        with pytest.raises(ValueError, match="a name is lower-case letters"):
            read_predictions([Path(name)])
    Path("more").mkdir()
    shutil.copy("mine.csv", "more")
    with pytest.raises(ValueError, match="two files are named mine"):
        read_predictions([Path("mine.csv"), Path("more/mine.csv")])
