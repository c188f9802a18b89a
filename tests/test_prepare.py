"""The stage `prepare` on a made list: labels of a site, images of nobody's, labels that say neither."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from stages import prepare

ROOT = Path(__file__).parents[1]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a list of 120 pictures, two a patient, the last 20 patients of them in test, and its params."""
    rng = np.random.default_rng(0)
    (tmp_path / "mine").mkdir()
    for k in range(120):
        Image.fromarray(rng.integers(0, 256, (32, 32), dtype=np.uint8)).save(tmp_path / f"mine/i{k:03d}.png")
    patient = np.arange(120) // 2
    columns = {"name": [f"i{k:03d}" for k in range(120)], "who": [f"p{k}" for k in patient], "label": patient % 2}
    listed = pd.DataFrame({**columns, "split": np.where(patient >= 40, "test", ""), "site": "here"})
    listed.astype({"label": object}).to_csv(tmp_path / "mine/cases.csv", index=False)
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["prepare"] |= {"source": "table", "root": "mine", "size": 32}
    params["prepare"]["table"] |= {"image": "{name}.png", "patient_column": "who"}
    monkeypatch.chdir(tmp_path)
    return tmp_path, params["prepare"]


def run(params: dict, task: str = "binary") -> tuple[pd.DataFrame, dict]:
    with open("params.yaml", "w", encoding="utf-8") as file:
        yaml.safe_dump({"task": task, "prepare": params}, file)
    prepare.main()
    with open("metrics/prepare.json", encoding="utf-8") as file:
        return pd.read_csv("data/prepare/cases.csv"), json.load(file)["prepare"]


def test_local_cases_leave_test_and_nothing_else_changes(project, capsys):
    folder, params = project
    before, _ = run(params)
    images = np.load("data/prepare/images.npy")
    (folder / "mine/local.csv").write_text("image_id,y_true\ni080.png,1\ni083.png,\n")
    after, found = run(params | {"local": "local.csv"})
    moved = after["split"] == "local"
    assert after.loc[moved, "image_id"].tolist() == ["i080.png", "i081.png", "i082.png", "i083.png"]
    assert after.loc[moved, "y_true"].tolist() == [1, 0, 1, 1]  # the first is the site's own reading
    pd.testing.assert_frame_equal(before[~moved], after[~moved])
    np.testing.assert_array_equal(images, np.load("data/prepare/images.npy"))
    assert found["splits"]["local"] == {"images": 4, "positives": 3, "patients": 2}
    assert "unknown" not in found["patients"]
    assert "warning" not in capsys.readouterr().err


def test_images_of_nobody_and_labels_that_say_neither_are_told(project, capsys):
    folder, params = project
    listed = pd.read_csv(folder / "mine/cases.csv").drop(columns="who").astype({"label": str})
    listed.loc[[3, 4, 5], "label"] = "-1"
    listed.to_csv(folder / "mine/cases.csv", index=False)
    params["table"] |= {"patient_column": "patient_id", "uncertain": {"-1.0": "ignore"}}
    cases, found = run(params)
    assert len(cases) == found["patients"]["unknown"] == 117
    assert found["problems"]["ignored_label"]["images"] == 3
    assert "warning: of 117 images nobody says whose they are" in capsys.readouterr().err


def test_a_list_may_be_joined_by_one_column(project):
    folder, params = project
    listed = pd.read_csv(folder / "mine/cases.csv")
    listed[["name", "label"]].sample(frac=1, random_state=0).to_csv(folder / "mine/labels.csv", index=False)
    expected, _ = run(params)
    listed.drop(columns="label").to_csv(folder / "mine/cases.csv", index=False)
    params["table"]["join"] = ["labels.csv"]
    pd.testing.assert_frame_equal(run(params)[0], expected)
