from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from commands import repair
from tmv_lib.data.answer import PrepareParams
from tmv_lib.data.cases import NOTHING_UNREADABLE, Loaded
from tmv_lib.data.collected import with_collected
from tmv_lib.network.labels import learned
from tmv_lib.phantom.plan import plan_cases

SIZE = 32


def source(task: str = "binary") -> Loaded:
    cases = pd.DataFrame(
        {
            "image_id": list("abcd"),
            "patient_id": list("pqrs"),
            "split": ["train", "val", "cal", "test"],
            "y_true": [0, 1, 0, 1],
            "source": "phantom",
            "width": SIZE,
            "height": SIZE,
        }
    )
    if task == "multiclass":
        cases = cases.drop(columns="y_true").assign(**{"class": ["x", "y", "x", "y"]})
    masks = {"lungs": np.ones((4, SIZE, SIZE), bool)}
    return Loaded(cases, np.zeros((4, SIZE, SIZE), np.uint8), NOTHING_UNREADABLE, masks=masks)


def listed(folder: Path, rows: list[dict]) -> Path:
    for row in rows:
        Image.fromarray(np.full((40, 40), 128, np.uint8)).save(folder / row["path"])
    pd.DataFrame(rows).to_csv(folder / "collected.csv", index=False)
    return folder / "collected.csv"


def collect(folder: Path, *rows: dict, task: str = "binary") -> Loaded:
    options = {"root": folder, "size": SIZE, "how": "stretch", "channels": "grey"}
    return with_collected(source(task), listed(folder, list(rows)), task, **options)


def test_collected_cases_come_after_the_others_and_are_for_training(tmp_path):
    found = collect(tmp_path, {"path": "new.png", "patient_id": "t", "y_true": 1, "ward": "north"})
    assert found.cases["image_id"].tolist() == [*"abcd", "new.png"]
    assert found.cases["split"].tolist() == ["train", "val", "cal", "test", "train"]
    assert found.cases["source"].tolist() == ["phantom"] * 5
    assert found.cases["ward"].tolist()[-1] == "north"
    assert found.images.shape == (5, SIZE, SIZE)
    assert (found.images[4] == 128).all()
    assert found.masks["lungs"].shape == (5, SIZE, SIZE)
    assert not found.masks["lungs"][4].any()


def test_a_patient_in_train_may_be_collected_again_and_one_who_judges_may_not(tmp_path):
    assert len(collect(tmp_path, {"path": "new.png", "patient_id": "p", "y_true": 1}).cases) == 5
    with pytest.raises(ValueError, match=r"collected\.csv: patient_id s is in val, cal, test or local already"):
        collect(tmp_path, {"path": "new.png", "patient_id": "s", "y_true": 1})


def test_a_class_that_nobody_knows_is_named(tmp_path):
    found = collect(tmp_path, {"path": "new.png", "patient_id": "t", "class": "y"}, task="multiclass")
    assert found.cases["class"].tolist()[-1] == "y"
    with pytest.raises(ValueError, match=r"collected\.csv: 'z' is none of x, y"):
        collect(tmp_path, {"path": "new.png", "patient_id": "t", "class": "z"}, task="multiclass")


@pytest.fixture
def phantom(tmp_path, monkeypatch) -> Path:
    """A project of a small phantom that has been prepared, with a queue of training cases."""
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    params["prepare"]["size"] = SIZE
    params["prepare"]["phantom"]["patients"] = {"train": 60, "val": 10, "cal": 10, "test": 10}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    plan = plan_cases(seed=0, **params["prepare"]["phantom"])
    (tmp_path / "data/prepare").mkdir(parents=True)
    (tmp_path / "data/raw").mkdir()
    (tmp_path / "data/failures/queues").mkdir(parents=True)
    plan.to_csv(tmp_path / "data/prepare/cases.csv", index=False)
    train = plan[plan["split"] == "train"]
    train[["image_id"]].head(12).to_csv(tmp_path / "data/failures/queues/relabel_train.csv", index=False)
    train[["image_id"]].tail(7).to_csv(tmp_path / "data/failures/queues/second_reader_train.csv", index=False)
    (tmp_path / "data/readings.csv").write_text("image_id,reader,y_true\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_phantom_stands_in_for_readers_whose_answers_can_be_learned(phantom):
    repair.gather("noise", Path("data/raw"), stand_in=True)
    cases = pd.read_csv("data/prepare/cases.csv")
    read = pd.read_csv("data/readings.csv")
    assert len(read) == 24
    labels = learned(cases, "corrected", task="binary", readings="data/readings.csv")
    repair.gather("ambiguity", Path("data/raw"), stand_in=True)  # another queue, read by five
    assert len(pd.read_csv("data/readings.csv")) == 5 * 7
    wrong = labels != cases["y_true"]
    assert set(cases.loc[wrong, "image_id"]) <= set(read["image_id"])


def test_people_who_have_answered_are_not_stood_in_for(phantom):
    Path("data/readings.csv").write_text("image_id,reader,y_true\nphantom-000000,me,1\n")
    repair.gather("noise", Path("data/raw"), stand_in=True)
    assert len(pd.read_csv("data/readings.csv")) == 1


def test_of_real_images_people_must_have_answered(phantom):
    with pytest.raises(ValueError, match=r"data/readings\.csv: nothing there; this repair needs two readings or more"):
        repair.gather("noise", Path("data/raw"), stand_in=False)
    with pytest.raises(ValueError, match=r"data/raw/collected\.csv: nothing there"):
        repair.gather("blindness", Path("data/raw"), stand_in=False)
    repair.gather("spurious", Path("data/raw"), stand_in=False)


def test_the_phantoms_collector_finds_what_training_never_shows_and_its_list_is_read(phantom):
    repair.gather("blindness", Path("data/raw"), stand_in=True)
    options = {"root": "data/raw", "size": SIZE, "how": "stretch", "channels": "grey"}
    found = with_collected(source(), "data/raw/collected.csv", "binary", **options)
    added = found.cases[4:]
    assert set(added["finding"]) == {"retrocardiac", "pneumothorax"}
    assert (added["y_true"] == 1).all()
    repair.collected(Path("data/raw"), other=True)
    others = pd.read_csv("data/raw/collected.csv")
    assert len(others) == len(added)
    assert not (others["cause"] == "blind").any()


def test_unseen_cases_are_read_from_a_list_with_corrected_labels(phantom):
    listed(phantom, [{"path": "x.png", "patient_id": "t", "y_true": 1, "y_corrected": 0}])
    params = PrepareParams(**yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))["prepare"])
    unseen = repair.read_unseen(Path("collected.csv"), params)
    assert unseen.cases.to_dict("records") == [{"image_id": "x.png", "patient_id": "t", "y_true": 1, "y_corrected": 0}]
    assert unseen.images.shape == (1, SIZE, SIZE)
    listed(phantom, [{"path": "x.png", "patient_id": "t", "y_true": 1, "y_corrected": 2}])
    with pytest.raises(ValueError, match=r"collected\.csv: y_corrected must be 0 or 1, found 2"):
        repair.read_unseen(Path("collected.csv"), params)


def test_real_images_need_unseen_cases_of_their_own(phantom, monkeypatch):
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    params["prepare"]["source"] = "folder"
    Path("params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["repair", "spurious"])
    with pytest.raises(ValueError, match="CASES must name a CSV of cases that nothing has seen"):
        repair.main()
