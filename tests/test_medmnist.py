"""MedMNIST sets from archives made here."""

import numpy as np
import pytest
from PIL import Image

from tmv_lib.data.medmnist import load_medmnist

COUNTS = {"train": 6, "val": 3, "test": 4}


def archive(path, *, size=28, labels=2, colour=False, columns=1):
    """Write an archive of random images whose labels run 0, 1, ... in turn; return its arrays."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in COUNTS.items():
        shape = (n, size, size, 3) if colour else (n, size, size)
        arrays[f"{split}_images"] = rng.integers(0, 256, shape, dtype=np.uint8)
        turn = np.arange(n)[:, None] % labels
        arrays[f"{split}_labels"] = (turn if columns == 1 else turn == np.arange(columns)).astype(np.uint8)
    np.savez(path, **arrays)
    return arrays


def test_images_labels_and_splits_are_kept(tmp_path):
    arrays = archive(tmp_path / "pneumoniamnist.npz")
    loaded = load_medmnist(dataset="pneumoniamnist", size=28, root=tmp_path)
    cases, images = loaded.cases, loaded.images
    np.testing.assert_array_equal(images, np.concatenate([arrays[f"{split}_images"] for split in COUNTS]))
    assert cases["y_true"].tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0, 0, 1, 0, 1]
    assert cases["split"].value_counts().to_dict() == COUNTS
    assert cases["image_id"].is_unique
    assert cases["patient_id"].is_unique
    assert cases.iloc[6][["image_id", "source", "width", "height"]].tolist() == [
        "pneumoniamnist/val/000000",
        "medmnist",
        28,
        28,
    ]
    assert loaded.unreadable.empty


@pytest.mark.parametrize("size", [64, 128, 224])
def test_larger_sizes_bear_the_size_in_their_name(tmp_path, size):
    archive(tmp_path / f"breastmnist_{size}.npz", size=size)
    assert load_medmnist(dataset="breastmnist", size=size, root=tmp_path).images.shape == (13, size, size)


def test_root_may_be_the_file(tmp_path):
    archive(tmp_path / "mine.npz", size=64)
    assert len(load_medmnist(dataset="breastmnist", size=64, root=tmp_path / "mine.npz").cases) == 13


def test_positive_names_either_label_of_a_binary_set(tmp_path):
    archive(tmp_path / "breastmnist.npz")
    benign = load_medmnist(dataset="breastmnist", size=28, root=tmp_path, positive="normal, benign").cases["y_true"]
    malignant = load_medmnist(dataset="breastmnist", size=28, root=tmp_path, positive="malignant").cases["y_true"]
    assert (benign + malignant == 1).all()
    assert malignant[0] == 1


def test_one_label_against_the_rest(tmp_path):
    archive(tmp_path / "octmnist.npz", labels=4)
    cases = load_medmnist(dataset="octmnist", size=28, root=tmp_path, positive="drusen").cases
    assert cases.loc[cases["split"] == "train", "y_true"].tolist() == [0, 0, 1, 0, 0, 0]


def test_one_finding_of_a_set_with_several_an_image(tmp_path):
    archive(tmp_path / "chestmnist.npz", labels=3, columns=14)
    cases = load_medmnist(dataset="chestmnist", size=28, root=tmp_path, positive="cardiomegaly").cases
    assert cases.loc[cases["split"] == "train", "y_true"].tolist() == [0, 1, 0, 0, 1, 0]


def test_colour_becomes_luminance(tmp_path):
    arrays = archive(tmp_path / "dermamnist.npz", colour=True, labels=7)
    images = load_medmnist(dataset="dermamnist", size=28, root=tmp_path, positive="dermatofibroma").images
    assert images.shape == (13, 28, 28)
    # ITU-R 601: 0.299 R + 0.587 G + 0.114 B.
    luminance = arrays["train_images"] @ np.array([0.299, 0.587, 0.114])
    assert np.abs(images[:6] - luminance).max() <= 1
    np.testing.assert_array_equal(images[0], np.asarray(Image.fromarray(arrays["train_images"][0]).convert("L")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "mnist"}, "dataset must be one of pathmnist, .*, found 'mnist'"),
        ({"dataset": "nodulemnist3d"}, "dataset must be one of"),
        ({"size": 96}, "size must be one of 28, 64, 128, 224 for MedMNIST, found 96"),
        ({"dataset": "octmnist"}, "positive must be one of its labels choroidal neovascularization; .*; normal$"),
        ({"dataset": "chestmnist"}, "positive must be one of its labels atelectasis"),
        ({"positive": "flu"}, "positive must be one of its labels normal; pneumonia, found 'flu'"),
        ({"root": "nowhere.npz"}, r"nowhere\.npz: no such file; it can be had from https://"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        load_medmnist(**{"dataset": "pneumoniamnist", "size": 28, "root": tmp_path} | options)


def test_files_that_are_not_the_set_are_named(tmp_path):
    path = tmp_path / "pneumoniamnist_64.npz"
    archive(path, size=28)
    with pytest.raises(
        ValueError, match=r"_64\.npz: train_images must be uint8 \(n, 64, 64\).*found uint8 \(6, 28, 28\)"
    ):
        load_medmnist(dataset="pneumoniamnist", size=64, root=tmp_path)
    np.savez(path, train_images=np.zeros((1, 64, 64), dtype=np.uint8))
    with pytest.raises(ValueError, match="train_labels is missing; it has train_images"):
        load_medmnist(dataset="pneumoniamnist", size=64, root=tmp_path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"not a whole \.npz file"):
        load_medmnist(dataset="pneumoniamnist", size=64, root=tmp_path)


def test_a_failed_download_says_what_to_put_where(tmp_path, monkeypatch):
    def offline(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", offline)
    with pytest.raises(ValueError, match=r"pneumoniamnist_128\.npz: not there, .* put the file from https://zenodo"):
        load_medmnist(dataset="pneumoniamnist", size=128, root=tmp_path / "new")


def test_every_label_of_a_set_in_colour(tmp_path):
    arrays = archive(tmp_path / "bloodmnist.npz", labels=8, colour=True)
    options = {"dataset": "bloodmnist", "size": 28, "root": tmp_path, "task": "multiclass"}
    loaded = load_medmnist(**options, channels="colour")
    assert loaded.cases["class"].iloc[:2].tolist() == ["basophil", "eosinophil"]
    np.testing.assert_array_equal(loaded.images[:6], arrays["train_images"])
    grey = load_medmnist(**options)
    assert grey.converted == {"colour_as_grey": 13}
    peer = np.asarray(Image.fromarray(arrays["train_images"][0]).convert("L"))
    np.testing.assert_array_equal(grey.images[0], peer)


def test_every_finding_of_a_set(tmp_path):
    archive(tmp_path / "chestmnist.npz", labels=14, columns=14)
    cases = load_medmnist(dataset="chestmnist", size=28, root=tmp_path, task="multilabel").cases
    assert cases["y_true_atelectasis"].iloc[:2].tolist() == [1, 0]
    assert sum(name.startswith("y_true_") for name in cases) == 14


@pytest.mark.parametrize(
    ("dataset", "options", "said"),
    [
        ("chestmnist", {"task": "multiclass"}, "chestmnist is a set for task: multilabel or binary"),
        ("bloodmnist", {"task": "multilabel"}, "bloodmnist is a set for task: multiclass or binary"),
        ("bloodmnist", {"task": "multiclass", "positive": "platelet"}, "positive must be null"),
    ],
)
def test_a_set_that_does_not_go_with_the_task(tmp_path, dataset, options, said):
    with pytest.raises(ValueError, match=said):
        load_medmnist(dataset=dataset, size=28, root=tmp_path, **options)
