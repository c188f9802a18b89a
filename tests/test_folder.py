import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tmv_lib.data.folder import load_folder
from tmv_lib.data.images import read_grey, square

OPTIONS = {
    "size": 16,
    "how": "stretch",
    "classes": ["NORMAL", "PNEUMONIA"],
    "positive": "PNEUMONIA",
    "patient": r"^(?P<patient>p\d+)_(?P<pathogen>virus|bacteria)?",
}


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("train/NORMAL/p1_.png", "train/PNEUMONIA/p2_virus.jpeg", "test/PNEUMONIA/p3_bacteria.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 30), dtype=np.uint8)).save(path)
    return tmp_path


def test_names_become_ids_patients_labels_and_columns(root):
    cases = load_folder(root, **OPTIONS).cases.set_index("image_id")
    assert cases["y_true"].to_dict() == {
        "test/PNEUMONIA/p3_bacteria": 1,
        "train/NORMAL/p1_": 0,
        "train/PNEUMONIA/p2_virus": 1,
    }
    assert sorted(cases["patient_id"]) == ["p1", "p2", "p3"]
    assert cases["pathogen"]["train/PNEUMONIA/p2_virus"] == "virus"
    assert set(cases["width"]) == {30}
    assert set(cases["height"]) == {20}


def test_an_unreadable_image_is_listed_and_left_out(root):
    (root / "train/NORMAL/p4_.png").write_bytes(b"not a picture")
    loaded = load_folder(root, **OPTIONS)
    assert len(loaded.cases) == len(loaded.images) == 3
    assert loaded.unreadable["path"].tolist() == ["train/NORMAL/p4_.png"]
    assert "p4_.png: not a readable image" in loaded.unreadable["problem"][0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["NORMAL", "COVID"], "positive": "COVID"}, "unknown class"),
        ({"positive": "COVID"}, "one of them 'COVID'"),
        ({"patient": r"^person(\d+)"}, "finds nothing in this file name"),
        ({"patient": r"^p\d+"}, "has no group"),
    ],
)
def test_bad_options_are_named(root, options, message):
    with pytest.raises(ValueError, match=message):
        load_folder(root, **(OPTIONS | options))


def test_bad_folders_are_named(root):
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        load_folder(root / "nowhere", **OPTIONS)
    (root / "holdout").mkdir()
    with pytest.raises(ValueError, match="holdout: unknown split; allowed are train, val"):
        load_folder(root, **OPTIONS)


@pytest.mark.parametrize(
    ("how", "expected"), [("pad", [0, 200, 0]), ("crop", [200, 200, 200]), ("stretch", [200, 200, 200])]
)
def test_how_an_image_becomes_square(how, expected):
    wide = np.full((30, 90), 200, np.uint8)
    found = square(wide, size=30, how=how)
    assert found.shape == (30, 30)
    assert found[[3, 15, 26], 15].tolist() == expected


def test_sixteen_bits_keep_their_upper_eight(tmp_path):
    Image.fromarray(np.array([[0, 255], [256, 65535]], np.uint16)).save(tmp_path / "deep.png")
    assert read_grey(tmp_path / "deep.png")[0].tolist() == [[0, 0], [1, 255]]


@pytest.mark.skipif(
    not Path(os.environ.get("TMV_CHEST_XRAY", "nowhere")).is_dir(),
    reason="TMV_CHEST_XRAY does not name the folder of the real chest radiographs",
)
def test_the_real_radiographs():
    patient = r"^(?P<patient>person\d+_(?P<pathogen>virus|bacteria)|(NORMAL2-)?IM-\d+)"
    cases = load_folder(os.environ["TMV_CHEST_XRAY"], **(OPTIONS | {"patient": patient})).cases
    assert cases.groupby(["split", "y_true"]).size().to_dict() == {
        ("train", 0): 1341,
        ("train", 1): 3875,
        ("test", 0): 234,
        ("test", 1): 390,
    }
    assert cases.groupby("split")["patient_id"].nunique().to_dict() == {"train": 3654, "test": 428}


def test_a_folder_local_is_a_split(root):
    (root / "test").rename(root / "local")
    cases = load_folder(root, **OPTIONS).cases
    assert cases.loc[cases["split"] == "local", "image_id"].tolist() == ["local/PNEUMONIA/p3_bacteria"]


def test_whatever_lies_in_a_class_is_read_or_has_its_reason(root):
    (root / "train/NORMAL/ward 3").mkdir()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(root / "train/NORMAL/ward 3/p5_.tif")
    (root / "train/NORMAL/p6_.txt").write_text("no picture")
    (root / "train/NORMAL/.hidden").write_text("")
    (root / ".cache").mkdir()
    loaded = load_folder(root, **OPTIONS)
    assert "train/NORMAL/ward 3/p5_" in set(loaded.cases["image_id"])
    assert loaded.unreadable["path"].tolist() == ["train/NORMAL/p6_.txt"]
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(root / "train/NORMAL/ward 3/p5_.png")
    with pytest.raises(ValueError, match=r"ward 3/p5_: two files of this name that differ in their suffix alone"):
        load_folder(root, **OPTIONS)


def coloured(path, shade):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((20, 30, 3), shade, dtype=np.uint8)).save(path)


MANY = OPTIONS | {"classes": ["a", "b", "c"], "positive": None, "patient": None, "task": "multiclass"}


def test_any_number_of_class_folders_in_colour(tmp_path):
    for split in ("train", "test"):
        for shade, name in zip(([250, 0, 0], [0, 250, 0], [90, 90, 90]), "abc", strict=True):
            coloured(tmp_path / split / name / "1.png", shade)
    loaded = load_folder(tmp_path, **MANY, channels="colour")
    assert loaded.cases["class"].tolist() == ["a", "b", "c"] * 2
    assert loaded.images.shape == (6, 16, 16, 3)
    assert loaded.images[0, 0, 0].tolist() == [250, 0, 0]
    assert loaded.converted == {"grey_as_colour": 2}
    grey = load_folder(tmp_path, **MANY)
    assert grey.images.shape == (6, 16, 16)
    assert grey.converted == {"colour_as_grey": 4}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"positive": "a"}, "with task: multiclass classes must be two or more folders and positive null"),
        ({"classes": ["a", "a", "b"]}, "two or more folders"),
        ({"classes": ["a", "b"]}, "c: unknown class; allowed are a, b"),
        ({"classes": ["a", "b", "c", "d"]}, "d: no such folder; every split needs one per class"),
        ({"task": "multilabel"}, "with task: multilabel give a table or a MedMNIST set"),
    ],
)
def test_class_folders_that_do_not_go_with_the_task(tmp_path, options, said):
    for split in ("train", "test"):
        for name in "abc":
            coloured(tmp_path / split / name / "1.png", 90)
    with pytest.raises(ValueError, match=said):
        load_folder(tmp_path, **MANY | options)


def test_class_folders_that_differ_between_splits(tmp_path):
    for path in ("train/a/1.png", "train/b/1.png", "train/c/1.png", "test/a/1.png", "test/c/1.png"):
        coloured(tmp_path / path, 90)
    with pytest.raises(ValueError, match=r"test/b: no such folder; every split needs one per class"):
        load_folder(tmp_path, **MANY)
