"""What the audit finds in a study whose faults are planted here."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter, shift

from tmv_lib.data.audit import audit_images, id_blocks, near_duplicates
from tmv_lib.data.cases import NOTHING_UNREADABLE
from tmv_lib.site.answer import file_numbers


def pictures(n, *, size=64, seed=0):
    """Smooth random images, each of its own, over the full range of grey levels."""
    rng = np.random.default_rng(seed)
    noise = np.stack([gaussian_filter(rng.normal(size=(size, size)), size / 24) for _ in range(n)])
    low, high = noise.min(axis=(1, 2), keepdims=True), noise.max(axis=(1, 2), keepdims=True)
    return (20 + 215 * (noise - low) / (high - low)).astype(np.uint8)


def table(n, **columns):
    number = [f"{row:03d}" for row in range(n)]
    plain = {"image_id": number, "patient_id": number, "split": "train", "y_true": 0, "source": "table"}
    return pd.DataFrame(plain | {"width": 64, "height": 64} | columns)


def found(audit, problem):
    return audit.findings.loc[audit.findings["problem"] == problem, "image_id"].tolist()


def jpeg(image, quality):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def half(image):
    small = Image.fromarray(image).resize((image.shape[1] // 2, image.shape[0] // 2), Image.Resampling.BILINEAR)
    return np.asarray(small.resize(image.shape[::-1], Image.Resampling.BILINEAR))


def test_a_sound_study_has_no_findings():
    audit = audit_images(pictures(40), table(40), NOTHING_UNREADABLE)
    assert audit.findings.empty
    assert list(audit.findings.columns) == ["image_id", "split", "problem", "detail"]
    assert all(count == 0 for problem in audit.counts["problems"].values() for count in problem.values())


def test_every_planted_fault_is_found_and_nothing_else():
    images = pictures(10)
    images[1] = images[0]  # identical, other label
    images[3] = 0.8 * images[2] + 20  # near, other split and label
    images[4] = images[5] = 99  # blank, and no duplicates of each other
    cases = table(
        10,
        y_true=[0, 1, 0, 1, 0, 1, 0, 1, 0, 1],
        split=["train", "train", "train", "test", "train", "train", "train", "val", "train", "train"],
        patient_id=["p0", "p1", "p2", "p3", "p4", "p5", "p6", "p6", "p8", "p8"],
    )
    audit = audit_images(images, cases, pd.DataFrame({"path": ["x.png"], "problem": ["cut off"]}))
    assert found(audit, "duplicate") == ["000", "001"]
    assert found(audit, "contradicting_label") == ["000", "001"]
    assert found(audit, "near_duplicate") == ["002", "003"]
    assert found(audit, "duplicate_across_splits") == ["002", "003"]
    assert found(audit, "patient_in_two_splits") == ["006", "007"]
    assert found(audit, "blank") == ["004", "005"]
    assert found(audit, "unreadable") == ["x.png"]
    assert audit.counts["problems"] == {
        "duplicate": {"images": 2, "groups": 1},
        "near_duplicate": {"images": 2, "groups": 1},
        "duplicate_across_splits": {"images": 2, "groups": 1},
        "contradicting_label": {"images": 2, "groups": 1},
        "patient_in_two_splits": {"images": 2, "groups": 1},
        "blank": {"images": 2},
        "unreadable": {"files": 1},
    }
    details = audit.findings.set_index(["problem", "image_id"])["detail"]
    assert details["duplicate", "000"] == "000 (train, y_true 0), 001 (train, y_true 1)"
    assert details["duplicate_across_splits", "003"] == "002 (train, y_true 0), 003 (test, y_true 1)"
    assert details["blank", "004"] == "standard deviation 0.00"
    assert details["unreadable", "x.png"] == "cut off"


def test_a_near_copy_of_identical_images_joins_their_group():
    images = pictures(4)
    images[1] = images[0]
    images[2] = jpeg(images[0], 90)
    audit = audit_images(images, table(4, split=["train", "train", "test", "test"]), NOTHING_UNREADABLE)
    assert found(audit, "duplicate") == ["000", "001"]
    assert found(audit, "near_duplicate") == ["000", "001", "002"]
    assert audit.counts["problems"]["duplicate_across_splits"] == {"images": 3, "groups": 1}


def test_details_of_a_large_group_show_every_split_and_label_first():
    images = np.repeat(pictures(1), 7, axis=0)
    cases = table(7, split=["train"] * 6 + ["test"], y_true=[0] * 5 + [1, 0])
    expected = "000 (train, y_true 0), 005 (train, y_true 1), 006 (test, y_true 0), 001 (train, y_true 0), ..."
    details = audit_images(images, cases, NOTHING_UNREADABLE).findings.query("problem == 'duplicate'")["detail"]
    assert details.tolist() == [expected] * 7


def test_order_of_rows_does_not_matter():
    images, cases = pictures(30), table(30, split=["train", "test"] * 15)
    images[7], images[11] = images[2], jpeg(images[3], 80)
    order = np.random.default_rng(1).permutation(30)
    one, other = (
        audit_images(images, cases, NOTHING_UNREADABLE),
        audit_images(images[order], cases.iloc[order], NOTHING_UNREADABLE),
    )
    assert one.counts == other.counts
    for problem in one.findings["problem"].unique():
        assert found(one, problem) == sorted(found(other, problem))


@pytest.mark.parametrize("size", [28, 64, 100, 224])
@pytest.mark.parametrize(
    "copy",
    [
        lambda image: jpeg(image, 50),
        lambda image: (255 * (image / 255) ** 0.8).astype(np.uint8),
        lambda image: (0.7 * image + 40).astype(np.uint8),
        half,
    ],
    ids=["jpeg", "gamma", "contrast", "half"],
)
def test_near_copies_are_found_at_every_size(size, copy):
    originals = pictures(20, size=224)
    both = np.concatenate([originals, [copy(image) for image in originals]])
    scaled = np.stack([np.asarray(Image.fromarray(image).resize((size, size))) for image in both])
    assert near_duplicates(scaled).tolist() == [[row, row + 20] for row in range(20)]


def test_same_outline_is_not_the_same_picture():
    outline = pictures(1, size=128, seed=1)[0] * 0.8
    grain = 40 * gaussian_filter(np.random.default_rng(2).normal(size=(2, 128, 128)), (0, 1.5, 1.5))
    images = (outline + grain).clip(0, 255).astype(np.uint8)
    assert np.corrcoef(images[0].ravel(), images[1].ravel())[0, 1] > 0.9
    assert len(near_duplicates(images)) == 0


def test_a_negative_and_a_moved_copy_are_other_pictures():
    image = pictures(1)[0]
    moved = shift(image.astype(float), (0, 4), mode="nearest").astype(np.uint8)
    assert len(near_duplicates(np.stack([image, 255 - image, moved]))) == 0


def test_pairs_agree_with_correlations_of_every_pair():
    images = pictures(60, size=32)
    images[30:] = (images[:30].astype(float) * 0.6 + images[15:45] * np.linspace(0, 0.3, 30)[:, None, None]).astype(
        np.uint8
    )

    def edges(image, side):
        small = np.asarray(image, dtype=float).reshape(side, 32 // side, side, 32 // side).mean(axis=(1, 3))
        padded = 4 * small - np.roll(small, 1, 0) - np.roll(small, -1, 0) - np.roll(small, 1, 1) - np.roll(small, -1, 1)
        return padded[1:-1, 1:-1].ravel()

    expected = np.ones((60, 60), dtype=bool)
    for side in (16, 32):
        expected &= np.corrcoef([edges(image, side) for image in images]) >= 0.9
    pairs = near_duplicates(images, similarity=0.9)
    assert 5 < len(pairs) < 35
    np.testing.assert_array_equal(pairs, np.argwhere(np.triu(expected, 1)))


def test_counts_of_splits_patients_and_sizes():
    cases = table(
        5,
        split=["train", "train", "train", "test", "test"],
        y_true=[1, 0, 1, 0, 1],
        patient_id=["a", "a", "b", "c", "c"],
        width=[64, 100, 20, 300, 64],
        height=[64, 80, 70, 300, 64],
    )
    counts = audit_images(pictures(5), cases, NOTHING_UNREADABLE).counts
    assert counts["splits"] == {
        "test": {"images": 2, "positives": 1, "patients": 1},
        "train": {"images": 3, "positives": 2, "patients": 2},
    }
    assert counts["patients"] == {"all": 3, "with_several_images": 2, "most_images": 2}
    assert counts["sizes"] == {
        "width_min": 20,
        "width_max": 300,
        "height_min": 64,
        "height_max": 300,
        "not_square": 2,
        "enlarged": 1,
    }
    assert "id_blocks" not in counts


def numbered(numbers, test, *, pattern="case-{:04d}", per_patient=1, **columns):
    """A table of numbered images of which those in `test` are the test split."""
    rows = pd.DataFrame({"number": np.repeat(numbers, per_patient), "copy": list(range(per_patient)) * len(numbers)})
    return pd.DataFrame(
        {
            "image_id": [f"any/{pattern.format(row.number)}-{row.copy}" for row in rows.itertuples()],
            "patient_id": [f"p{number}" for number in rows["number"]],
            "split": np.where(rows["number"].isin(test), "test", "train"),
            "y_true": 0,
            "source": "folder",
        }
        | columns
    )


def test_a_block_beyond_trains_range_is_seen():
    blocks = id_blocks(numbered(range(1, 201), range(1, 41)))
    # Of the 40 test patients only the last has a train patient beside it.
    expected = {"test_images": 40, "outside_train_range": 1.0, "among_test": 39 / 40, "among_test_by_chance": 0.04}
    assert blocks["y_true_0"] == pytest.approx(expected)


def test_a_block_within_trains_range_is_seen():
    blocks = id_blocks(numbered(range(1, 201), range(101, 141)))
    expected = {"test_images": 40, "outside_train_range": 0.0, "among_test": 38 / 40, "among_test_by_chance": 0.04}
    assert blocks["y_true_0"] == pytest.approx(expected)


@pytest.mark.parametrize("per_patient", [1, 3])
def test_a_random_split_is_no_block(per_patient):
    test = np.random.default_rng(0).permutation(np.arange(1, 2001))[:600]
    blocks = id_blocks(numbered(range(1, 2001), test, per_patient=per_patient))["y_true_0"]
    assert blocks["test_images"] == 600 * per_patient
    assert blocks["outside_train_range"] < 0.01
    assert blocks["among_test_by_chance"] == pytest.approx(0.09)
    # 600 patients, chance 0.09: a standard deviation of about 0.015.
    assert blocks["among_test"] == pytest.approx(0.09, abs=0.05)


def test_classes_and_series_are_numbered_apart():
    sick = numbered(range(500, 600), range(500, 530), pattern="sick{}", y_true=1)
    well = numbered(range(1, 101), range(1, 101, 4), pattern="well{}")
    more = numbered(range(900, 1000), range(950, 1000), pattern="NORMAL2-{}", patient_id=[f"m{i}" for i in range(100)])
    blocks = id_blocks(pd.concat([sick, well, more]))
    assert blocks["y_true_1"]["outside_train_range"] == 1.0
    # 25 test images of `well`, one of them (number 1) below train's, and 50 of `more`, all above.
    assert blocks["y_true_0"]["test_images"] == 75
    assert blocks["y_true_0"]["outside_train_range"] == pytest.approx(51 / 75)


@pytest.mark.parametrize(
    "cases",
    [
        numbered(range(1, 101), range(1, 11)),
        numbered(range(1, 101), []),
        numbered(range(1, 101), range(1, 41), source="phantom"),
        numbered(range(1, 101), range(1, 41)).assign(image_id=["a" * row for row in range(1, 101)]),
        numbered(range(1, 101), range(1, 41)).assign(patient_id="one"),
    ],
    ids=["too few", "no test", "own numbers", "no numbers", "one patient"],
)
def test_what_ids_cannot_tell_is_left_out(cases):
    assert id_blocks(cases) == {}


def test_images_and_cases_must_be_equally_many():
    with pytest.raises(ValueError, match="images and cases must be equally many, found 3 and 4"):
        audit_images(pictures(3), table(4), NOTHING_UNREADABLE)


@pytest.mark.parametrize(
    ("test", "name", "explain", "is_block"),
    [
        (range(101, 141), "negative_class", True, True),
        (range(101, 141), "both_classes", True, True),
        (range(101, 141), "positive_class", False, True),  # the class that looks different is another
        (range(101, 141), "none", False, True),
        (range(1, 201, 5), "both_classes", False, False),
        (range(1, 201, 5), "none", False, False),
        (range(1, 11), "negative_class", False, None),  # cannot tell
    ],
)
@pytest.mark.parametrize("split", ["test", "local"])
def test_blocks_explain_a_shift_of_their_class(test, name, explain, is_block, split):
    found = file_numbers(numbered(range(1, 201), test).replace({"split": {"test": split}}), name)
    assert found.pop("explain_the_shift") == explain
    assert {label: block["is_block"] for label, block in found.items()} == (
        {} if is_block is None else {"y_true_0": is_block}
    )


def test_in_colour_copies_are_found_by_their_luminance_and_classes_counted_by_name():
    images = np.stack([pictures(8), pictures(8, seed=1), pictures(8, seed=2)], axis=3)
    images[1], images[3], images[4] = images[0], 0.8 * images[2] + 20, [200, 0, 0]
    kinds = ["a", "b", "a", "a", "b", "b", "c", "c"]
    cases = table(8).drop(columns="y_true").assign(**{"class": kinds})
    audit = audit_images(images, cases, NOTHING_UNREADABLE, task="multiclass", converted={"grey_as_colour": 2})
    assert found(audit, "duplicate") == found(audit, "contradicting_label") == ["000", "001"]
    assert found(audit, "near_duplicate") == ["002", "003"]
    assert found(audit, "blank") == ["004"]
    assert audit.counts["splits"]["train"] == {"images": 8, "patients": 8, "classes": {"a": 3, "b": 3, "c": 2}}
    assert audit.counts["problems"]["grey_as_colour"] == {"images": 2}
    assert audit.findings["detail"].iloc[0] == "000 (train, a), 001 (train, b)"


def test_findings_are_counted_with_those_that_nobody_labelled():
    cases = table(4).drop(columns="y_true").assign(y_true_mass=[1, 0, 0, np.nan])
    counts = audit_images(pictures(4), cases, NOTHING_UNREADABLE, task="multilabel").counts
    assert counts["splits"]["train"]["findings"] == {"mass": {"positive": 1, "negative": 2, "not_labelled": 1}}
