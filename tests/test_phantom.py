"""The phantom: rates hold, a row fixes its bytes, one changed factor changes nothing else, the truth is the truth."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

from tmv_lib.phantom.plan import SEEN_FINDINGS, SPLITS, UNSEEN_FINDINGS, plan_cases, repaired
from tmv_lib.phantom.radiograph import render
from tmv_lib.statistics.estimate import Resampler, difference
from tmv_lib.statistics.ranking import auroc

SIZE = 48
NULL = {"mislabelled": 0, "ambiguous": 0, "blind": 0, "marker_train": (0, 0), "marker_rest": (0, 0)}


@pytest.fixture(scope="module")
def plan():
    return plan_cases(patients={"train": 300, "val": 120, "cal": 120, "test": 240}, seed=7)


@pytest.fixture(scope="module")
def sample(plan):
    """A few cases of every finding, mimic and cause."""
    return plan.groupby(["finding", "mimic", "cause", "marker"], sort=False).head(4).reset_index(drop=True)


@pytest.fixture(scope="module")
def films(sample):
    return render(sample, size=SIZE)


# ---- pixels: a row alone determines its bytes


def test_bytes_do_not_depend_on_order_or_company(sample, films):
    shuffled = sample.sample(frac=1, random_state=0)
    np.testing.assert_array_equal(render(shuffled, size=SIZE).images, films.images[shuffled.index])
    alone = render(sample.iloc[[5]], size=SIZE)
    for part, whole in zip(alone, films, strict=True):
        np.testing.assert_array_equal(part[0], whole[5])


def test_a_row_survives_a_csv_file(sample, films, tmp_path):
    sample.to_csv(tmp_path / "cases.csv", index=False)
    np.testing.assert_array_equal(render(pd.read_csv(tmp_path / "cases.csv"), size=SIZE).images, films.images)


def test_same_seed_same_study_other_seed_other_study():
    first, again, other = (plan_cases(patients={"test": 4}, seed=seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    np.testing.assert_array_equal(render(first, size=32).images, render(again, size=32).images)
    assert not np.array_equal(render(first, size=32).images[0], render(other, size=32).images[0])


def test_changed_rates_leave_patients_and_their_seeds_alone(plan):
    other = plan_cases(patients={"test": 240}, seed=7, blind=0.2, prevalence=0.5, mislabelled=0.1)
    seeds = ["patient_seed", "case_seed"]
    np.testing.assert_array_equal(plan.loc[plan.split == "test", seeds], other[seeds])


def test_shapes_and_grey_levels(sample, films):
    assert films.images.shape == films.masks.shape == films.lungs.shape == (len(sample), SIZE, SIZE)
    assert (films.images.dtype, films.masks.dtype, films.lungs.dtype) == (np.uint8, bool, bool)
    black, dark, middle, bright = np.percentile(films.images, [1, 25, 50, 95])
    assert black < 10 < 60 < dark < middle < 180 < bright < 250


def test_a_case_looks_alike_at_any_size(sample):
    small, large = (render(sample.head(8), size=size).images.astype(float) for size in (56, 112))
    shrunk = large.reshape(8, 56, 2, 56, 2).mean(axis=(2, 4))
    assert np.corrcoef(small.ravel(), shrunk.ravel())[0, 1] > 0.99


# ---- anatomy


def test_lungs_are_two_dark_fields_of_plausible_area(films):
    assert np.all((films.lungs.mean(axis=(1, 2)) > 0.2) & (films.lungs.mean(axis=(1, 2)) < 0.45))
    for image, lung in zip(films.images, films.lungs, strict=True):
        assert ndimage.label(lung, np.ones((3, 3)))[1] == 2
        assert image[lung].mean() < image[SIZE * 3 // 4 :, SIZE // 4 : SIZE * 3 // 4].mean() - 30


def test_masks_are_empty_without_finding_and_inside_the_lungs_with_one(sample, films):
    np.testing.assert_array_equal(films.masks.any(axis=(1, 2)), sample["finding"] != "none")
    inside = (films.masks & films.lungs).sum(axis=(1, 2)) / np.maximum(films.masks.sum(axis=(1, 2)), 1)
    assert inside[sample["finding"] != "none"].min() > 0.8
    assert films.masks.mean(axis=(1, 2)).max() < 0.25


def test_retrocardiac_masks_lie_behind_the_heart(sample, films):
    hidden = films.masks[sample["finding"] == "retrocardiac"]
    rows, columns = hidden.mean(axis=(0, 2)) @ np.arange(SIZE), hidden.mean(axis=(0, 1)) @ np.arange(SIZE)
    centre = np.array([rows, columns]) / hidden.mean(axis=(1, 2)).mean() / SIZE**2
    assert np.all((centre * SIZE > [0.5 * SIZE, 0.5 * SIZE]) & (centre * SIZE < [0.75 * SIZE, 0.7 * SIZE]))


def test_images_of_one_patient_are_more_alike_than_strangers(plan):
    normal = plan[(plan["finding"] == "none") & (plan["mimic"] == "none") & (plan["marker"] == 0)]
    pairs = normal.groupby("patient_id").head(2).groupby("patient_id").filter(lambda images: len(images) == 2).head(60)
    images = render(pairs, size=SIZE).images.reshape(len(pairs), -1).astype(float)
    likeness = np.corrcoef(images - images.mean(axis=0))
    own = likeness[np.arange(0, len(pairs), 2), np.arange(1, len(pairs), 2)]
    assert own.mean() > np.mean(likeness[0::2, 1::2][~np.eye(len(own), dtype=bool)]) + 0.3


# ---- one factor changed, everything else the same, noise included


def test_another_marker_changes_its_corner_only(sample, films):
    changed = render(sample.assign(marker=1 - sample["marker"]), size=SIZE)
    rows, columns = np.nonzero((changed.images != films.images).any(axis=0))
    assert rows.max() < 0.2 * SIZE
    assert columns.min() >= 0.8 * SIZE
    np.testing.assert_array_equal(changed.masks, films.masks)
    corner = np.s_[:, : int(0.2 * SIZE), int(0.8 * SIZE) :]
    marked = (sample["marker"] == 1).to_numpy()[:, None, None]
    gain = np.where(marked, films.images, changed.images).astype(int) - np.where(marked, changed.images, films.images)
    assert gain[corner].max(axis=(1, 2)).min() > 30


def test_a_marker_twin_differs_inside_the_letters_box_alone(sample):
    size = 112
    twins = [render(sample.assign(marker=marker), size=size).images for marker in (0, 1)]
    rows, columns = np.nonzero((twins[0] != twins[1]).any(axis=0))
    # In [-1, 1]: a P begins at 0.77 across and -0.90 down, each +- 0.02, is 0.65 wide and 1 high in units of 0.14, and
    # its strokes reach 0.10 of these units beyond; a pixel at the edge is partly covered.
    reach, pixel = 0.10 * 0.14, 2 / size
    left, right = 0.75 - reach - pixel, 0.79 + 0.65 * 0.14 + reach + pixel
    top, bottom = -0.92 - reach - pixel, -0.88 + 0.14 + reach + pixel
    assert (left + 1) / 2 * size <= columns.min() <= columns.max() <= (right + 1) / 2 * size
    assert (top + 1) / 2 * size <= rows.min() <= rows.max() <= (bottom + 1) / 2 * size
    assert (columns.max() - columns.min()) * (rows.max() - rows.min()) < 0.02 * size**2


def test_finding_of_no_contrast_is_no_finding(sample):
    ill = sample[sample["finding"] != "none"].head(12)
    faded, absent = ill.assign(amplitude=0.0), ill.assign(finding="none")
    np.testing.assert_array_equal(render(faded, size=SIZE).images, render(absent, size=SIZE).images)


@pytest.mark.parametrize("finding", SEEN_FINDINGS)
def test_more_contrast_brightens_the_mask(sample, finding):
    faint = sample[sample["finding"] == finding].head(6).assign(amplitude=0.1, noise=0.0)
    films, clear = render(faint, size=SIZE), render(faint.assign(amplitude=0.4), size=SIZE)
    np.testing.assert_array_equal(films.masks, clear.masks)
    for before, after, mask in zip(films.images, clear.images, films.masks, strict=True):
        assert after[mask].mean() > before[mask].mean() + 8


def test_unseen_finding_can_be_replaced_by_a_seen_one(sample):
    blind = sample[sample["cause"] == "blind"]
    repaired = render(blind.assign(finding=blind["clear_finding"], amplitude=blind["clear_amplitude"]), size=SIZE)
    assert set(blind["clear_finding"]) <= set(SEEN_FINDINGS)
    assert repaired.masks.any(axis=(1, 2)).all()
    np.testing.assert_array_equal(repaired.lungs, render(blind, size=SIZE).lungs)


def test_a_repair_takes_one_cause_away_and_nothing_else(plan):
    rest = plan[plan["split"] != "train"]
    mended = repaired(rest)
    before = rest.set_index("image_id").loc[mended["image_id"]].reset_index()
    changes = {"spurious": {"marker"}, "ambiguous": {"finding", "amplitude"}, "blind": {"finding", "amplitude"}}
    for repair, allowed in changes.items():
        here = (mended["repair"] == repair).to_numpy()
        assert here.any()
        old, new = before[here].fillna(0), mended[here].fillna(0)
        assert {name for name in rest if (old[name] != new[name]).any()} <= allowed
    spurious = mended[mended["repair"] == "spurious"]
    assert (spurious["marker"] == spurious["y_clean"]).all()
    assert set(rest.loc[rest["cause"].isin(["spurious", "blind"]), "image_id"]) <= set(spurious["image_id"])
    ambiguous = mended[mended["repair"] == "ambiguous"]
    assert ((ambiguous["finding"] != "none") == (ambiguous["y_true"] == 1)).all()
    assert (ambiguous.loc[ambiguous["y_true"] == 1, "amplitude"] >= 0.4).all()
    assert set(mended.loc[mended["repair"] == "blind", "finding"]) <= set(SEEN_FINDINGS)


def test_a_planted_site_is_repaired_by_the_film_as_at_home_and_no_other_phantom_is():
    options = {"patients": {"val": 20, "test": 40}, "seed": 3}
    home = plan_cases(**options)
    assert "site" not in set(repaired(home)["repair"])
    for shifted, classes in (("both", [0, 1]), ("negative", [0])):
        shift = {"test_exposure": 0.7, "test_noise": 1.6, "test_shifted": shifted}
        there = plan_cases(**options, **shift)
        mended = repaired(there, **shift)
        at_home = mended[mended["repair"] == "site"]
        moved = home[(home["split"] == "test") & home["y_true"].isin(classes)]
        assert at_home["image_id"].tolist() == moved["image_id"].tolist()
        np.testing.assert_array_equal(render(at_home, size=SIZE).images, render(moved, size=SIZE).images)
        others = mended[mended["repair"] != "site"].reset_index(drop=True)
        pd.testing.assert_frame_equal(others, repaired(there))


def test_mean_intensity_does_not_give_the_label_away(plan):
    test = plan[plan["split"] == "test"].head(300)
    mean = render(test, size=32).images.mean(axis=(1, 2))
    assert 0.4 < roc_auc_score(test["y_true"], mean) < 0.65


# ---- the plan: planted rates and their truth


@pytest.mark.parametrize("split", SPLITS)
def test_rates_hold_to_within_a_case(plan, split):
    cases = plan[plan["split"] == split]
    positives, negatives = cases[cases["y_true"] == 1], cases[cases["y_true"] == 0]
    assert len(positives) == round(0.40 * len(cases))
    assert (cases["cause"] == "ambiguous").sum() == round(0.07 * len(cases))
    assert (positives["cause"] == "mislabelled").sum() == round(0.02 * len(positives))
    assert (negatives["cause"] == "mislabelled").sum() == round(0.02 * len(negatives))
    assert (cases["cause"] == "blind").sum() == (0 if split == "train" else round(0.05 * len(positives)))
    empty = cases[cases["finding"] == "none"]
    assert (cases["mimic"] != "none").sum() == (empty["mimic"] != "none").sum() == round(0.25 * len(empty))


def test_unseen_findings_are_never_in_train(plan):
    unseen = plan["finding"].isin(UNSEEN_FINDINGS)
    assert not (unseen & (plan["split"] == "train")).any()
    np.testing.assert_array_equal(unseen, plan["cause"] == "blind")
    assert set(plan.loc[unseen & (plan["split"] == "test"), "finding"]) == set(UNSEEN_FINDINGS)
    assert not plan.loc[unseen, "marker"].any()


@pytest.mark.parametrize(("split", "positive", "negative"), [("train", 0.90, 0.06), ("test", 0.85, 0.12)])
def test_marker_speaks_for_the_label_and_conflicts_are_spurious(plan, split, positive, negative):
    usual = plan[(plan["split"] == split) & plan["cause"].isin(["none", "spurious"])]
    rate = usual.groupby("y_true")["marker"].mean()
    assert rate[1] == pytest.approx(positive, abs=0.01)
    assert rate[0] == pytest.approx(negative, abs=0.01)
    np.testing.assert_array_equal(usual["cause"] == "spurious", usual["marker"] != usual["y_true"])


def test_marker_is_independent_of_the_coin(plan):
    ambiguous = plan[(plan["cause"] == "ambiguous") & (plan["split"] == "test")]
    rate = ambiguous.groupby("y_true")["marker"].mean()
    assert abs(rate[1] - rate[0]) < 1 / ambiguous["y_true"].value_counts().min()


def test_labels_are_flipped_where_the_cause_is_mislabelled(plan):
    np.testing.assert_array_equal(plan["y_true"] != plan["y_clean"], plan["cause"] == "mislabelled")
    clear = plan[plan["cause"] != "ambiguous"]
    np.testing.assert_array_equal(clear["y_clean"] == 1, clear["finding"] != "none")
    flipped = plan[plan["cause"] == "mislabelled"]
    np.testing.assert_array_equal(flipped["marker"], flipped["y_clean"])


def test_patients_stay_in_one_split_with_one_class(plan):
    assert len(plan[["patient_id", "split", "patient_seed"]].drop_duplicates()) == plan["patient_id"].nunique()
    assert plan["patient_seed"].nunique() == plan["patient_id"].nunique()
    assert plan["image_id"].is_unique
    assert plan["case_seed"].is_unique
    assert set(plan.groupby("patient_id").size()) == {1, 2, 3}
    clear = plan[plan["cause"] != "ambiguous"]
    mixed = clear.groupby(["split", "patient_id"])["y_clean"].nunique().eq(2)
    assert mixed.groupby("split").sum().max() <= 1


def test_order_of_the_rows_gives_nothing_away(plan):
    position = np.arange((plan["split"] == "train").sum())
    assert abs(roc_auc_score(plan.loc[plan["split"] == "train", "y_true"], position) - 0.5) < 0.1


def test_no_reader_of_the_image_beats_the_ideal_observer_beyond_its_interval():
    """The best that can be fitted to everything the renderer knows, on cases that it has not seen."""
    cases = plan_cases(patients={"train": 3000, "test": 1500}, seed=5)
    table = pd.get_dummies(cases[["finding", "mimic"]]).assign(
        marker=cases["marker"], amplitude=cases["amplitude"], exposure=cases["exposure"], both=cases["amplitude"] ** 2
    )
    train, test = ((cases["split"] == split).to_numpy() for split in ("train", "test"))
    model = HistGradientBoostingClassifier(random_state=0).fit(table[train], cases["y_true"][train])
    y_true, score = cases["y_true"].to_numpy()[test], model.predict_proba(table[test])[:, 1]
    posterior, patients = cases["posterior"].to_numpy()[test], cases["patient_id"].to_numpy()[test]
    resampler = Resampler(patients, 200, seed=0)
    above = resampler.estimate(partial(difference, auroc), y_true, score, posterior, stratify=y_true)
    assert auroc(y_true, score) > 0.9
    assert above.low <= 0


def test_posterior_is_calibrated_and_bounds_every_observer():
    cases = plan_cases(patients={"test": 20_000}, seed=3, ambiguous=0.3)
    bins = cases.groupby(np.floor(cases["posterior"] * 10))
    assert len(bins) == 11
    np.testing.assert_allclose(bins["y_true"].mean(), bins["posterior"].mean(), atol=0.03)
    ideal = roc_auc_score(cases["y_true"], cases["posterior"])
    for marker_weight in (-0.1, 0.0, 0.01, 0.1, 1.0):
        observer = cases["amplitude"] + marker_weight * cases["marker"]
        assert roc_auc_score(cases["y_true"], observer) < ideal < 1


def test_contrast_follows_the_panel(plan):
    ambiguous = plan[plan["cause"] == "ambiguous"]
    assert ambiguous["amplitude"].between(0.10, 0.28).all()
    assert ambiguous["posterior"].between(0.15, 0.85).all()
    assert np.corrcoef(ambiguous["amplitude"], ambiguous["posterior"])[0, 1] == pytest.approx(1)
    clear = plan[(plan["finding"] != "none") & (plan["cause"] != "ambiguous")]
    assert clear["amplitude"].between(0.40, 0.75).all()


# ---- variants


def test_null_phantom_has_no_cause():
    cases = plan_cases(patients={"train": 60, "test": 60}, seed=1, **NULL)
    assert (cases["cause"] == "none").all()
    assert not cases["marker"].any()
    np.testing.assert_array_equal(cases["posterior"], cases["y_true"])


def test_decorrelated_marker_tells_nothing():
    cases = plan_cases(patients={"train": 300}, seed=1, marker_train=(0.5, 0.5), mislabelled=0)
    rate = cases.groupby("y_true")["marker"].mean()
    assert rate[1] == pytest.approx(rate[0], abs=0.01)
    assert not (cases["cause"] == "spurious").any()


def test_another_site_shifts_exposure_and_noise_of_the_test_split_alone():
    patients = {"val": 8, "test": 8}
    home = plan_cases(patients=patients, seed=2)
    away = plan_cases(patients=patients, seed=2, test_exposure=1.6, test_noise=3.0)
    test = (home["split"] == "test").to_numpy()
    before, after = render(home, size=SIZE).images.astype(float), render(away, size=SIZE).images.astype(float)
    np.testing.assert_array_equal(before[~test], after[~test])
    assert after[test].mean() < before[test].mean() - 10
    assert np.diff(after[test]).std() > np.diff(before[test]).std()


@pytest.mark.parametrize(("shifted", "darker"), [("negative", [0]), ("positive", [1]), ("both", [0, 1])])
def test_a_shift_may_happen_to_one_class_alone(shifted, darker):
    home = plan_cases(patients={"cal": 40, "test": 40}, seed=2)
    away = plan_cases(patients={"cal": 40, "test": 40}, seed=2, test_exposure=0.5, test_noise=2.0, test_shifted=shifted)
    there = (home["split"] == "test") & home["y_true"].isin(darker)
    changed = home.assign(exposure=home["exposure"].where(~there, home["exposure"] * 0.5))
    changed = changed.assign(noise=changed["noise"].where(~there, 2.0))
    pd.testing.assert_frame_equal(away, changed)


@pytest.mark.parametrize("prevalence", [0.15, 0.75])
def test_another_prevalence_leaves_each_class_what_it_is(prevalence):
    options = {"patients": {"cal": 60, "test": 6000}, "seed": 3}
    home, away = plan_cases(**options), plan_cases(**options, test_prevalence=prevalence)
    pd.testing.assert_frame_equal(home[home["split"] == "cal"], away[away["split"] == "cal"])
    before, after = (plan[plan["split"] == "test"] for plan in (home, away))
    assert after["y_true"].mean() == pytest.approx(prevalence, abs=1e-3)
    assert len(after) == pytest.approx(len(before), rel=0.01)
    assert after["patient_id"].nunique() == pytest.approx(6000, rel=0.1)
    for name in ("cause", "finding", "marker", "mimic"):
        shares = [part.groupby("y_true")[name].value_counts(normalize=True) for part in (before, after)]
        assert (shares[0] - shares[1]).abs().max() < 0.05  # the 900 ill patients of the smaller one: 3 x 0.016
    bins = after.groupby(np.floor(after["posterior"] * 10))
    assert (bins["y_true"].mean() - bins["posterior"].mean()).abs()[bins.size() > 100].max() < 0.1


# ---- errors


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"patients": {}}, "patients"),
        ({"patients": {"dev": 3}}, "train, val, cal, test"),
        ({"patients": {"train": 0}}, "at least 1"),
        ({"prevalence": 1.2}, "prevalence"),
        ({"mislabelled": -0.1}, "mislabelled"),
        ({"marker_rest": (0.5, 1.5)}, "marker_rest"),
        ({"contrast": (0.5, 0.2)}, "contrast"),
        ({"contrast": (0.2, 0.6)}, "contrast must be a range within \\[0.28, 1\\], found"),
        ({"contrast": (0.4, 1.1)}, "contrast"),
        ({"test_noise": -1}, "test_noise at least 0, found 1.0 and -1"),
        ({"test_exposure": 0}, "test_exposure"),
        ({"test_shifted": "ill"}, "test_shifted must be one of both, negative, positive, found 'ill'"),
        ({"test_prevalence": 1.0}, "test_prevalence"),
        ({"test_prevalence": 0.5, "prevalence": 0.0}, "test_prevalence"),
        ({"prevalence": 0.1, "ambiguous": 0.6}, "add up"),
        ({"blind": 0.7, "ambiguous": 0.5}, "add up"),
        ({"prevalence": 1.0, "ambiguous": 0.1}, "add up"),
    ],
)
def test_bad_arguments_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        plan_cases(**{"patients": {"test": 100}, "seed": 0, **changed})


def test_too_small_a_picture_is_refused(plan):
    with pytest.raises(ValueError, match="at least 32 pixels, found 16"):
        render(plan.head(1), size=16)
