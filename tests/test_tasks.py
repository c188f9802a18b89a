"""Several classes and findings, in colour, end to end: coloured cells through DVC, and stage by stage."""

import json
import os
import shutil
import sys
import warnings
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from safetensors.numpy import load_file
from scipy.special import logsumexp
from sklearn.metrics import confusion_matrix, roc_auc_score

import commands.findings
from commands.findings import experiment
from demo import answers, maps
from demo import cases as viewer
from demo.disk import Disk
from studies import faults
from tests.test_pipeline import ORDER, ROOT, cases_of, has_run, run
from tmv_lib.network import classifier
from tmv_lib.phantom.cells import CLASSES
from tmv_lib.pipeline import record
from tmv_lib.prediction import system as prediction

TRAINED = {"prepare", "train@densenet121", "train@resnet50", "reference"}
LATER = {*ORDER} - {"prepare", "train", "reference"}


def tiny(task: str, positive: list[str]) -> dict:
    """Small parameters of coloured cells, 28 pixels a side: the smallest that leave a map of 7 x 7."""
    params = faults.tiny(yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8")))
    params |= {"task": task, "question": {"positive": positive}}
    params["prepare"] |= {"size": 28, "channels": "colour"}
    params["prepare"]["phantom"]["patients"] = {"train": 40, "val": 24, "cal": 20, "test": 30}
    params["train"] |= {"batch_size": 16, "positive_weight": "balanced"}
    for member in params["members"].values():
        member["architecture"] = "networks.small:small"
    params["stability"]["blur"] = 0.3
    return params


@pytest.fixture(scope="module")
def classes(tmp_path_factory) -> Path:
    """A project of three exclusive classes that DVC has run, asked about one of them."""
    return has_run(tmp_path_factory.mktemp("classes"), tiny("multiclass", ["monocyte"]))


@pytest.fixture(scope="module")
def findings(tmp_path_factory) -> Path:
    """A folder in which every stage has run on two findings, one of them not labelled everywhere.

    The second network is an ONNX file: what came out of its training, exported.
    """
    folder = tmp_path_factory.mktemp("findings")
    for name in ("card.yaml", "data/adjudication.csv"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    params = tiny("multilabel", ["platelets"])
    params["train"]["precision"] = "float32"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)

        def stage(name: str, member: str = "") -> None:
            Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
            patch.setattr(sys, "argv", ["stage", member])
            import_module(f"stages.{name}").main()

        for name in ORDER:
            for member in ("densenet121", "resnet50") if name == "train" else ("",):
                stage(name, member)
            if name == "train":
                shutil.copy("data/train/resnet50/predictions.csv", "in_torch.csv")
                params["members"]["resnet50"] |= {"architecture": "data/weights/exported.onnx", "train": False}
                export("resnet50", "data/weights/exported.onnx")
                stage(name, "resnet50")
    return folder


def export(member: str, path: str) -> None:
    """The network that a member's training left, as an ONNX file that takes one image at a time."""
    model = classifier.build("networks.small:small", weights="none", dropout=0.0, n_outputs=2)
    classifier.load_weights(model, record.weights(member))
    Path(path).parent.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this exporter will go
        torch.onnx.export(
            torch.nn.Sequential(model.body, model.head).eval(), torch.zeros(1, 3, 28, 28), path, dynamo=False
        )


def test_images_are_in_colour_and_every_split_has_every_class(classes):
    cases = pd.read_csv(classes / "data/prepare/cases.csv")
    assert np.load(classes / "data/prepare/images.npy").shape == (len(cases), 28, 28, 3)
    assert "y_true" not in cases
    assert (cases.groupby("split")["class"].nunique() == len(CLASSES)).all()
    counted = json.loads((classes / "metrics/prepare.json").read_text())["prepare"]["splits"]["test"]["classes"]
    assert counted == cases[cases["split"] == "test"]["class"].value_counts().to_dict()


def test_the_logit_is_the_log_odds_of_the_positive_classes(classes):
    outputs = pd.read_csv(classes / "data/train/resnet50/predictions.csv")
    z = outputs[[f"logit_{name}" for name in CLASSES]].to_numpy()
    asked = record.read_predictions("resnet50", root=classes)
    place = CLASSES.index("monocyte")
    others = np.delete(z, place, axis=1)
    np.testing.assert_allclose(asked["score"], z[:, place] - logsumexp(others, axis=1), rtol=1e-12)
    assert asked["y_true"].tolist() == (outputs["class"] == "monocyte").astype(int).tolist()


def test_another_question_runs_the_stages_after_training_alone(classes):
    before = cases_of(classes)
    weights = (classes / "data/train/resnet50/weights.safetensors").read_bytes()
    printed = run(classes, "dvc", "exp", "run", "-S", "question.positive=[granulocyte,lymphocyte]")
    ran = {line.split("'")[1] for line in printed.splitlines() if line.startswith("Running stage")}
    assert ran == LATER
    assert (classes / "data/train/resnet50/weights.safetensors").read_bytes() == weights
    asked = json.loads((classes / "metrics/baseline.json").read_text())["baseline"]["question"]["positive"]
    assert asked == "granulocyte, lymphocyte"
    after = cases_of(classes)
    assert (before["y_prob"] - after["y_prob"]).abs().max() > 0.1
    run(classes, "git", "checkout", "--quiet", "--", ".")
    run(classes, "dvc", "checkout")


def test_classes_have_their_confusion_and_their_own_auroc(classes):
    outputs = pd.read_csv(classes / "data/train/densenet121/predictions.csv").query("split == 'test'")
    z = outputs[[f"logit_{name}" for name in CLASSES]].to_numpy()
    probs = np.exp(z - logsumexp(z, axis=1)[:, None])
    found = json.loads((classes / "metrics/baseline.json").read_text())["baseline"]["classes"]
    peer = confusion_matrix(outputs["class"], np.array(CLASSES)[z.argmax(axis=1)], labels=list(CLASSES))
    assert [list(found[name]["called"].values()) for name in CLASSES] == peer.tolist()
    assert found["accuracy"] == pytest.approx(np.trace(peer) / peer.sum(), abs=1e-6)
    for k, name in enumerate(CLASSES):
        assert found[name]["recall"] == pytest.approx(peer[k, k] / peer[k].sum(), abs=1e-6)
        assert found[name]["auroc"] == pytest.approx(roc_auc_score(outputs["class"] == name, probs[:, k]), abs=1e-6)


@pytest.mark.parametrize("project", ["classes", "findings"])
def test_a_network_is_asked_what_its_saved_outputs_are_asked(project, request):
    folder = request.getfixturevalue(project)
    cases = record.of_split(record.read_labelled(root=folder), "test")
    system = prediction.load(folder)
    scored = prediction.score(system, record.read_images(cases["image_id"], root=folder)).cases
    said = cases_of(folder).loc[cases["image_id"]]
    np.testing.assert_allclose(scored["y_prob"], said["y_prob"], atol=1e-5)
    assert scored["deferred"].tolist() == said["deferred"].tolist()
    with pytest.raises(ValueError, match=r"images must be uint8 \(n, 28, 28, 3\)"):
        prediction.score(system, np.zeros((1, 28, 28), np.uint8))


def test_what_is_not_labelled_for_a_finding_leaves_its_question_and_is_counted(findings):
    cases = pd.read_csv(findings / "data/prepare/cases.csv")
    unlabelled = cases["y_true_platelets"].isna()
    assert 0 < unlabelled.sum() < len(cases)
    asked = record.read_labelled(root=findings)
    assert asked["image_id"].tolist() == cases.loc[~unlabelled, "image_id"].tolist()
    assert asked["y_true"].tolist() == cases.loc[~unlabelled, "y_true_platelets"].tolist()
    told = json.loads((findings / "metrics/baseline.json").read_text())["baseline"]["question"]["not_labelled"]
    assert told == cases[unlabelled]["split"].value_counts().to_dict()
    card = (findings / "plots/ensemble/trust_card.md").read_text(encoding="utf-8")
    assert f"{unlabelled.sum()} images are not labelled for it and left out" in card
    # the map and the dropout of a finding are those of its own output
    head = record.read_head("resnet50", root=findings)
    stored = load_file(findings / "data/train/resnet50/weights.safetensors")
    np.testing.assert_array_equal(head.weight, stored["head.weight"][1:])


def test_an_onnx_file_answers_and_is_explained_as_the_network_that_was_exported(findings):
    """That maps are alike to the last digits is in test_graph.py: here they are made and pass through every stage."""
    logits = [f"logit_{name}" for name in ("parasite", "platelets")]
    ours, theirs = (pd.read_csv(findings / path) for path in ("data/train/resnet50/predictions.csv", "in_torch.csv"))
    np.testing.assert_allclose(ours[logits], theirs[logits], atol=1e-5)
    told = json.loads((findings / "metrics/explanations.json").read_text())["explanations"]["resnet50"]
    assert (told["layer"], told["grid"]) == ("body.graph", 7)
    assert told["completeness"]["largest_gap"] < 1e-4 < told["completeness"]["mean_effect"]


def test_predict_reads_colour_and_widens_grey(classes, tmp_path):
    images = np.load(classes / "data/prepare/images.npy")[-2:]
    Image.fromarray(images[0]).save(tmp_path / "one.png")
    Image.fromarray(images[1][..., 0]).save(tmp_path / "two.png")
    run(classes, "python", "-m", "commands.predict", str(tmp_path), "--out", str(tmp_path / "said.csv"))
    said = pd.read_csv(tmp_path / "said.csv", keep_default_na=False).set_index("image_id")
    last = pd.read_csv(classes / "data/prepare/cases.csv")["image_id"].iloc[-2]
    assert said.loc["one.png", "y_prob"] == pytest.approx(cases_of(classes).loc[last, "y_prob"], abs=1e-5)
    assert len(said) == 2


@pytest.mark.parametrize("project", ["classes", "findings"])
def test_the_viewer_shows_the_question_in_colour(project, request):
    folder = request.getfixturevalue(project)
    known = viewer.collect(Disk(folder))
    table = pd.read_csv(folder / "data/prepare/cases.csv").set_index("image_id")
    images = np.load(folder / "data/prepare/images.npy")
    for number, case in known.table.iterrows():
        row = table.index.get_loc(case["image_id"])
        np.testing.assert_array_equal(viewer.image(known, number), images[row])
        told = answers.reveal(known, number).title
        assert told == ("The system gives no answer" if case["deferred"] else "The system's answer")
        assert case["deferred"] or len(maps.further(known, number)) > len(known.members)
    asked = {"classes": "monocyte", "findings": "platelets"}[project]
    assert known.names == viewer.Names(asked, f"no {asked}", image="Image")
    by_hand = table["class"] == asked if project == "classes" else table[f"y_true_{asked}"] == 1
    assert (known.table["y_true"] == known.table["image_id"].map(by_hand)).all()
    near = viewer.nearest(known, known.table.index[0])
    train = known.everything.set_index("row")
    assert all(train.loc[one.row, ["split", "y_true"]].tolist() == ["train", one.y_true] for one in near)


def test_every_finding_has_its_row_on_one_page(classes):
    """So few patients that no class gets a verdict, in words."""
    print(run(classes, "python", "-m", "commands.findings"))
    table = pd.read_csv(classes / "findings/findings.csv")
    cases = pd.read_csv(classes / "data/prepare/cases.csv").query("split == 'test'")
    assert table["finding"].tolist() == list(CLASSES)
    assert table["n"].tolist() == [len(cases)] * len(CLASSES)
    assert table["n_positive"].tolist() == [int((cases["class"] == name).sum()) for name in CLASSES]
    assert set(table["role"]) == {"exploratory"}
    assert table["why"].str.contains("at least 20 are needed").all()
    for name in CLASSES:
        assert name in (classes / "findings/findings.html").read_text(encoding="utf-8")
    shutil.rmtree(classes / "findings")


def test_a_finding_asked_of_by_an_experiment_has_the_figures_of_that_run(classes):
    metrics = asked_of_in(classes, "granulocyte")
    assert set(metrics) == {"calibration", "site", "ensemble"}
    n = int((pd.read_csv(classes / "data/prepare/cases.csv").query("split == 'test'")["class"] == "granulocyte").sum())
    assert metrics["ensemble"]["deferral"]["n_positive"] == n
    assert "monocyte" in (classes / "params.yaml").read_text()  # the project is as it was
    assert run(classes, "git", "status", "--porcelain") == ""


def asked_of_in(folder: Path, name: str) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        return experiment(name)


def test_findings_are_refused_where_there_is_one_question(tmp_path, monkeypatch):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"params\.yaml: task is binary, which has one question"):
        commands.findings.main()
