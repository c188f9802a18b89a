"""The studies on miniatures: worlds whose truth is known, and seeds whose figures are made up."""

import gzip
import subprocess
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from scipy.special import ndtr
from scipy.stats import ttest_ind

from studies import (
    cost,
    foreign,
    fresh_phantoms,
    fuzz,
    intervals,
    planted_marker,
    promises,
    public_predictions,
    referral_rates,
    seeds,
    sites,
    taxonomy,
)
from tmv_lib.calibration.errors import expected_calibration_error
from tmv_lib.calibration.slope import calibration_in_the_large, calibration_slope
from tmv_lib.data.answer import PrepareParams, repairs
from tmv_lib.data.images import square
from tmv_lib.deferral.costs import Prices
from tmv_lib.failures import agreement
from tmv_lib.failures.taxonomy import EVIDENCE, KINDS, REPAIRABLE, SCORED, all_signals, fit_score, sort_errors
from tmv_lib.phantom.plan import plan_cases
from tmv_lib.phantom.radiograph import render
from tmv_lib.pipeline.files import write_csv, write_npy
from tmv_lib.pipeline.params import read
from tmv_lib.site.answer import SiteParams
from tmv_lib.statistics.estimate import mean
from tmv_lib.statistics.ranking import auroc

CALIBRATED, OVERCONFIDENT, SHIFTED, UNEQUAL = intervals.WORLDS


@pytest.mark.parametrize("world", intervals.WORLDS, ids=lambda world: world.name)
def test_a_superpopulation_has_the_slope_the_intercept_and_the_auroc_that_its_world_names(world):
    cases = intervals.superpopulation(world, log2_n=14)
    for logit, slope, separation in zip(cases.logits, world.slopes, world.separations, strict=True):
        assert calibration_slope(cases.y_true, logit) == pytest.approx(slope, abs=0.02)
        assert calibration_in_the_large(cases.y_true, slope * logit) == pytest.approx(world.intercept, abs=0.02)
        assert auroc(cases.y_true, logit) == pytest.approx(ndtr(separation / np.sqrt(2)), abs=0.002)
    assert cases.y_true.mean() == pytest.approx(intervals.PREVALENCE, abs=1e-3)


def test_a_sample_resembles_its_superpopulation_and_its_patients_themselves():
    cases = intervals.sample(CALIBRATED, n_patients=20_000, rng=np.random.default_rng(0))
    whole = intervals.superpopulation(CALIBRATED, log2_n=14)
    table = pd.DataFrame({"patient": cases.patient_id, "y": cases.y_true, "a": cases.logits[0], "b": cases.logits[1]})
    assert table["y"].mean() == pytest.approx(whole.y_true.mean(), abs=0.02)
    assert table["a"].std() == pytest.approx(whole.logits[0].std(), rel=0.02)
    of_patient = table.groupby("patient")["y"]
    assert (of_patient.min() == of_patient.max()).all()
    assert table.groupby("patient").size().mean() == pytest.approx(1.46, abs=0.02)
    # given the label: a patient's images correlate by 0.5, members by 0.8
    table[["a", "b"]] -= table.groupby("y")[["a", "b"]].transform("mean")
    pairs = table.groupby("patient")["a"].agg(["first", "last", "size"])
    assert pairs[pairs["size"] > 1][["first", "last"]].corr().iloc[0, 1] == pytest.approx(0.5, abs=0.03)
    assert table[["a", "b"]].corr().iloc[0, 1] == pytest.approx(0.8, abs=0.02)


def test_limits_are_what_they_say():
    samples = np.random.default_rng(0).normal(3.0, 1.0, 100_000)
    found = intervals.limits(3.0, samples)
    for method in intervals.METHODS:
        assert [found[f"{method}_low"], found[f"{method}_high"]] == pytest.approx([1.04, 4.96], abs=0.05)
    # resamples that lie a standard deviation above the figure: basic mirrors them, bias correction goes left by two
    found = intervals.limits(2.0, samples)
    assert [found["basic_low"], found["basic_high"]] == pytest.approx([4 - 4.96, 4 - 1.04], abs=0.05)
    ends = [found["bias_corrected_low"], found["bias_corrected_high"]]
    assert ends == pytest.approx([3 - 2 - 1.96, 3 - 2 + 1.96], abs=0.2)


@pytest.fixture
def few_figures(monkeypatch):
    ece = partial(expected_calibration_error, n_bins=15)
    listed = [
        intervals.Figure("mean", mean, lambda cases: (cases.similarity,), "none"),
        intervals.Figure("ece", ece, lambda cases: (cases.y_true, cases.prob()), "none"),
    ]
    monkeypatch.setattr(intervals, "figures", lambda: listed)
    monkeypatch.setattr(intervals, "WORLDS", (CALIBRATED,))
    monkeypatch.setattr(intervals, "PATIENTS", (120, 60))


@pytest.mark.usefixtures("few_figures")
def test_a_mean_is_covered_and_the_ece_of_a_perfect_model_is_not():
    rows = pd.concat([intervals.repeat(k, seed=0, n_resamples=200) for k in range(200)])
    whole_table = intervals.coverage(rows, intervals.truths(log2_n=14))
    table = whole_table[whole_table["n_patients"] == 120].set_index("figure")
    assert table.loc["mean", "percentile"] == pytest.approx(0.95, abs=0.045)  # three Monte Carlo standard errors
    assert table.loc["mean", "truth"] == pytest.approx(ndtr(1 / np.sqrt(2)), abs=1e-3)
    assert table.loc["ece", "percentile"] <= 0.02
    assert table.loc["ece", "too_high"] >= 0.98
    assert (table["percentile"] + table["too_high"] + table["too_low"]).tolist() == pytest.approx([1, 1])
    verdicts = intervals.verdicts(whole_table).set_index("figure")[["printed_120", "printed_60"]]
    assert verdicts.T.to_dict("list") == {"mean": [True, True], "ece": [False, False]}
    page = intervals.page(whole_table, resamples=200)
    printed, withheld = page.split("## Without")
    assert "| mean |" in printed
    assert "| ece |" in withheld


def test_an_interval_may_hold_where_patients_are_many_alone():
    cell = {"fixed": "none", "repeats": 400, "too_high": 0.0, "too_low": 0.0, "basic": 1.0, "bias_corrected": 1.0}
    cells = [
        {**cell, "figure": figure, "n_patients": n_patients, "world": world, "percentile": covered}
        for figure, of_figure in {
            "good": {428: (0.95, 0.94), 120: (0.94, 0.89)},  # 0.89 is no more than two errors of 0.015 below
            "narrow": {428: (0.95, 0.94), 120: (0.89, 0.90)},  # the mean is below
            "one_world": {428: (0.97, 0.86), 120: (0.97, 0.86)},  # the mean is enough, one world is not
        }.items()
        for n_patients, shares in of_figure.items()
        for world, covered in zip("ab", shares, strict=True)
    ]
    found = intervals.verdicts(pd.DataFrame(cells)).set_index("figure")
    assert found["printed_428"].to_dict() == {"good": True, "narrow": True, "one_world": False}
    assert found["printed_120"].to_dict() == {"good": True, "narrow": False, "one_world": False}


@pytest.mark.usefixtures("few_figures")
def test_a_repeat_is_drawn_once_and_is_the_same_again(tmp_path):
    first = intervals.kept(tmp_path, 3, seed=0, n_resamples=20)
    pd.testing.assert_frame_equal(first, intervals.kept(tmp_path, 3, seed=1, n_resamples=20))  # read back
    pd.testing.assert_frame_equal(first, intervals.kept(tmp_path / "again", 3, seed=0, n_resamples=20))
    assert not first.equals(intervals.kept(tmp_path / "other", 4, seed=0, n_resamples=20))


def test_every_figure_can_be_resampled():
    cases = intervals.sample(UNEQUAL, n_patients=60, rng=np.random.default_rng(1))
    weights = np.ones((2, cases.y_true.size))
    for figure in intervals.figures():
        arrays = figure.arrays(cases)
        np.testing.assert_allclose(figure.metric(*arrays, weights=weights), figure.metric(*arrays), atol=1e-6)


MEMBERS = {"first": {"train": True, "seed": 1, "dropout": 0.2}, "second": {"train": True, "seed": 2, "dropout": 0.0}}


def test_a_seed_is_a_member_and_the_projects_own_keeps_its_name():
    members, names = seeds.with_seeds(MEMBERS, [1, 2])
    assert list(members) == ["first", "second_seed1", "first_seed2", "second"]
    assert members["first_seed2"] == {"train": True, "seed": 2, "dropout": 0.2}
    assert names[1, "first"] == "first"
    assert names[1, "second"] == "second_seed1"
    assert all(members[name]["seed"] == seed for (seed, _), name in names.items())


@pytest.mark.parametrize("found", [[1], [1, 1], [1, -2]])
def test_seeds_that_say_nothing_are_refused(found):
    with pytest.raises(ValueError, match="seeds must be two or more different whole numbers"):
        seeds.with_seeds(MEMBERS, found)


def test_a_member_that_is_not_trained_is_refused():
    with pytest.raises(ValueError, match=r"members\.second\.train is false"):
        seeds.with_seeds({**MEMBERS, "second": MEMBERS["second"] | {"train": False}}, [1, 2])


def test_the_copy_has_the_seeds_and_keeps_what_dvc_did(tmp_path, monkeypatch):
    (tmp_path / "stages").mkdir()
    (tmp_path / "data/weights").mkdir(parents=True)
    (tmp_path / ".dvc").mkdir()
    for name in ("stages/train.py", "data/weights/README.md", "dvc.yaml", ".dvc/config", "dvc.lock"):
        (tmp_path / name).write_text(f"# {name} of the project\n")
    (tmp_path / ".gitignore").write_text("/.studies/\n")
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    copy = tmp_path / seeds.FOLDER
    copy.mkdir(parents=True)
    (copy / "dvc.lock").write_text("done here\n")
    names = seeds.lay_out(seeds.FOLDER, {"members": MEMBERS, "prepare": {"source": "folder", "root": "mine"}}, [1, 2])
    params = yaml.safe_load((copy / "params.yaml").read_text())
    assert set(params["members"]) == set(names.values())
    assert (copy / params["prepare"]["root"]).resolve() == tmp_path / "mine"
    assert (copy / "stages/train.py").read_text() == "# stages/train.py of the project\n"
    assert (copy / "dvc.lock").read_text() == "done here\n"
    assert str(tmp_path / ".dvc/cache") in (copy / ".dvc/config.local").read_text()


def made_cases(rng: np.random.Generator, *, noise: dict[str, float]) -> pd.DataFrame:
    """Test cases of two members that see the truth through noise."""
    y_true = np.arange(200) % 2
    cases = pd.DataFrame({"y_true": y_true, "patient_id": [f"p{k // 2}" for k in range(200)]})
    for member, sigma in noise.items():
        logit = 2 * y_true - 1 + sigma * rng.normal(size=200)
        said = {"logit_raw": logit, "logit": logit, "y_prob_raw": 1 / (1 + np.exp(-logit)), "decided": logit > 0}
        said["y_prob"] = said["y_prob_raw"]
        cases = cases.assign(**{f"{name}_{member}": np.asarray(value, float) for name, value in said.items()})
    return cases


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for seed in range(1, 5):
        cases = made_cases(rng, noise={"sharp": 0.5, "dull": 2.0})
        rows.append(seeds.measured(cases, ["sharp", "dull"], n_resamples=100, seed=0).assign(seed=seed))
    return pd.concat(rows)


def test_a_row_a_seed_and_member_and_the_difference_is_theirs(table):
    assert len(table) == 4 * 3
    one = table[table["seed"] == 2].set_index("member")
    for name in seeds.MEASURES:
        assert one.loc["sharp - dull", name] == pytest.approx(one.loc["sharp", name] - one.loc["dull", name])
    assert one.loc["sharp", "auroc_low"] < one.loc["sharp", "auroc"] <= one.loc["sharp", "auroc_high"]
    assert not {"ece_low", "ece_raw_low"} & set(table)
    assert one["logistic_miscalibration_low"].notna().to_dict() == {"sharp": False, "dull": False, "sharp - dull": True}


def test_spread_and_verdict_are_those_of_the_seeds(table):
    spread = seeds.spread(table).set_index(["member", "measure"])
    auroc_of_dull = table.loc[table["member"] == "dull", ["auroc", "auroc_low", "auroc_high"]]
    assert spread.loc[("dull", "auroc"), "seed_sd"] == pytest.approx(auroc_of_dull["auroc"].std())
    width = (auroc_of_dull["auroc_high"] - auroc_of_dull["auroc_low"]).mean()
    assert spread.loc[("dull", "auroc"), "patient_se"] == pytest.approx(width / 3.919928, rel=1e-6)
    assert np.isnan(spread.loc[("dull", "ece"), "patient_se"])
    versus = seeds.versus(table, ["sharp", "dull"]).set_index("measure")
    # sharp ranks better and has the lower NLL in every seed
    assert versus.loc[["auroc", "nll"], "first_better"].tolist() == [4, 4]
    ordered = table.sort_values("seed").set_index("member")["auroc"]
    assert versus.loc["auroc", "p_value"] == pytest.approx(
        ttest_ind(ordered["sharp"], ordered["dull"], equal_var=False).pvalue
    )


def test_the_page_and_the_picture_show_every_seed(table, tmp_path):
    page = seeds.page(table, ["sharp", "dull"])
    assert "1, 2, 3, 4 on the same images" in " ".join(page.split())
    assert "| auroc | 4 of 4 |" in page
    assert "p = 0.125" in page  # 2 / 2^4
    assert "nan" not in page
    drawing = seeds.picture(table, ["sharp", "dull"])
    assert len(drawing.axes) == 8
    drawing.savefig(tmp_path / "seeds.png")


def test_cases_of_a_seed_are_joined_by_image(tmp_path):
    for name, logit in (("a_seed2", [1.0, -1.0, 2.0]), ("b", [3.0, -3.0, 0.5])):
        (tmp_path / f"data/train/{name}").mkdir(parents=True)
        cases = pd.DataFrame({"image_id": ["x", "y", "z"], "patient_id": ["p", "q", "r"], "y_true": [1, 0, 1]})
        cases.assign(split=["test", "val", "test"], logit=logit).to_csv(
            tmp_path / f"data/train/{name}/predictions.csv", index=False
        )
    (tmp_path / "data/calibration").mkdir()
    calibrated = pd.DataFrame(
        {"image_id": ["z", "y", "x"], "logit_a_seed2": [-4.0, 0.0, 4.0], "logit_b": [1.0, 2.0, 3.0]}
    )
    calibrated.to_csv(tmp_path / "data/calibration/cases.csv", index=False)
    found = seeds.test_cases(tmp_path, members={"a": "a_seed2", "b": "b"})
    assert found["image_id"].tolist() == ["x", "z"]
    assert found["logit_raw_a"].tolist() == [1.0, 2.0]
    assert found["logit_a"].tolist() == [4.0, -4.0]
    assert found["decided_a"].tolist() == [1, 0]
    assert found["logit_b"].tolist() == [3.0, 1.0]


def test_every_phantom_of_the_taxonomy_study_is_another_one():
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    changed = taxonomy.with_seed(params, 21)
    seeds = {changed["prepare"]["seed"], changed["reference"]["seed"]}
    assert seeds | {member["seed"] for member in changed["members"].values()} == {21}
    assert changed["train"]["epochs"] == params["train"]["epochs"]
    seeds_of_a_run = [*taxonomy.FIT, *taxonomy.FRESH, *taxonomy.WITHOUT]
    assert len(set(seeds_of_a_run)) == len(seeds_of_a_run)
    assert not {21, 22, 23, 24, 25} & set(seeds_of_a_run)  # looked at: docs/taxonomy.md


@pytest.mark.parametrize("seed", taxonomy.PLANTED_AT_ZERO)
def test_causes_planted_at_zero_are_in_no_case_of_their_phantom_and_the_others_are(seed):
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    phantom = taxonomy.with_seed(params, seed)["prepare"]["phantom"]
    plan = plan_cases(**phantom | {"patients": {"train": 100, "test": 200}}, seed=seed)
    kinds = taxonomy.PLANTED_AT_ZERO[seed]
    planted = {"clinical ambiguity": "ambiguous", "annotation noise": "mislabelled", "model blindness": "blind"}
    planted["spurious feature"] = "spurious"
    assert set(plan["cause"]) == {"none", *planted.values()} - {planted[kind] for kind in kinds}
    assert {name for changes in kinds.values() for name in changes} <= params["prepare"]["phantom"].keys()


def test_agreement_by_shuffled_evidence_is_that_of_chance():
    rng = np.random.default_rng(0)
    n = 800
    cause = rng.choice([kind for kind in KINDS if kind != "site"], n)
    table = pd.DataFrame({name: rng.random(n) for name in EVIDENCE})
    table["y_true"] = rng.integers(0, 2, n)
    for name in ("members_disagree", "border_flips"):
        table[name] = table[name] > 0.5
    table["oddity_rank"] = np.where(cause == "model blindness", 0.99, 0.3)
    table["neighbour_agreement"] = np.where(cause == "annotation noise", 0.0, 0.8)
    table["members_disagree"] = cause == "clinical ambiguity"
    table["ensemble_prob"] = np.where(cause == "clinical ambiguity", 0.5, table["y_true"] == 0)
    table["border_misleads"] = (cause == "spurious feature") * 1.0
    table["border_mends"] = (cause == "spurious feature") * 1.0
    errors = table.assign(cause=cause, patient_id=np.arange(n).astype(str), model="net")
    score = fit_score(table, cause, enough=0.6, provenance={"n_errors": {}})
    found = errors.join(sort_errors(table, score=score))
    resampling = {"n_resamples": 100, "seed": 0}
    row = taxonomy.measured(found, **resampling)
    by_chance = taxonomy.measured(taxonomy.shuffled(errors, score, rng), **resampling)
    assert row["kappa"] > 0.9
    assert row["recall of model blindness"] > 0.9
    assert by_chance["kappa_low"] < 0 < by_chance["kappa_high"]
    rows = pd.DataFrame([row | {"seed": "pooled"}, by_chance | {"seed": "shuffled signals"}])
    # a phantom of 200 errors each, in which half of the errors that look like the kind are left
    without = pd.concat([found[:200].assign(seed=seed) for seed in taxonomy.WITHOUT])
    absent = taxonomy.planted_at_zero(without, **resampling)
    assert absent["most_likely"].tolist() == [(found["best"][:200] == kind).mean() for kind in absent["kind"]]
    signals = agreement.discriminate(all_signals(errors), cause, groups=errors["patient_id"], **resampling)
    text = taxonomy.page(rows, found, score, absent, signals)
    assert f"{row['kappa']:.2f} (" in text
    assert "| shuffled signals | 800 |" in text
    assert f"| annotation noise | 62 | 200 | {(cause[:200] == 'annotation noise').sum()} |" in text
    assert "| oddity rank |" in text
    assert "| border flips (not read) |" in text
    assert "nan" not in text


def test_the_six_kinds_are_measured_where_a_site_was_planted():
    rng = np.random.default_rng(1)
    n = 300
    cause = rng.choice(REPAIRABLE, n)
    four = np.where(cause == "site", rng.choice(SCORED, n), cause)  # what the score finds of it
    sure = rng.random(n) < 0.5
    found = pd.DataFrame({"cause": cause, "best": cause, "kind": np.where(sure, cause, "undetermined")})
    found = found.assign(runner_up=four, patient_id=np.arange(n).astype(str), y_true=rng.integers(0, 2, n))
    row = taxonomy.with_site(found, n_resamples=100, seed=0)
    assert row["kappa"] == pytest.approx(1)
    assert row["right"] == row["recall of site"] == 1
    assert row["kappa_of_the_score"] == pytest.approx(agreement.kappa(cause, four))
    assert row["n called site"] == (sure & (cause == "site")).sum()
    home = found[cause != "site"]
    rows = [row | {"seed": 1, "shift": "both"}, taxonomy.with_site(home, n_resamples=100, seed=0) | {"seed": 1}]
    text = taxonomy.section(pd.DataFrame(rows).fillna({"shift": "none"}))
    assert f"| 1 | both | {n} | 0 | {(cause == 'site').sum()} | {row['n called site']} | 1.00 (1.00 to 1.00) |" in text
    assert f"| 0 | 0 |{3 * ' 1.00 (1.00 to 1.00) |'} no figure | no figure |" in text
    phantom = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))["prepare"]["phantom"]
    assert all(shift.keys() <= phantom.keys() for shift in taxonomy.SHIFTS.values())


def test_the_test_patients_of_another_phantom_take_the_place_of_ours_and_nothing_else_moves(tmp_path):
    section = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))["prepare"]
    phantom = section["phantom"] | taxonomy.SHIFTS["both"]
    phantom["patients"] = phantom["patients"] | {"test": 40}
    params = PrepareParams(**section | {"phantom": phantom, "size": 32})
    plan = plan_cases(patients={"val": 20, "test": 30}, seed=1)
    films = render(plan, size=32)
    mends, mended = repairs(plan, params, "binary")
    for name, array in {"images": films.images, "masks": films.masks, "lungs": films.lungs, "repairs": mended}.items():
        write_npy(tmp_path / f"{name}.npy", array)
    write_csv(tmp_path / "cases.csv", plan.assign(width=32, height=32))
    write_csv(tmp_path / "repairs.csv", mends)
    taxonomy.move_test(tmp_path, params, 9)
    cases, images = pd.read_csv(tmp_path / "cases.csv"), np.load(tmp_path / "images.npy")
    val = (plan["split"] == "val").to_numpy()
    assert cases["image_id"][: val.sum()].tolist() == plan.loc[val, "image_id"].tolist()
    np.testing.assert_array_equal(images[: val.sum()], films.images[val])
    there = plan_cases(patients={"test": 40}, seed=9, **taxonomy.SHIFTS["both"], blind=0.04, ambiguous=0.06)
    np.testing.assert_array_equal(images[val.sum() :], render(there, size=32).images)
    kept = pd.read_csv(tmp_path / "repairs.csv")
    assert len(kept) == len(np.load(tmp_path / "repairs.npy"))
    assert set(kept["image_id"]) <= set(cases["image_id"])
    assert (kept["repair"] == "site").sum() == len(there)


def test_the_border_catches_a_trained_network_that_reads_a_marker_and_no_other():
    """A short version of `make planted-marker`: two networks, each trained for some seconds."""
    patients = {"train": 260, "val": 40, "cal": 10, "test": 60}
    asked = {
        name: planted_marker.ask(world, patients=patients, epochs=4, seed=0, size=64)
        for name, world in planted_marker.WORLDS.items()
    }
    by_marker, by_finding = (found.columns for found in asked.values())
    assert by_marker["border_flips"].mean() > 0.15
    assert by_finding["border_flips"].mean() < 0.1
    # by 0.06 with one thread, by more than 0.1 with two: so short a training follows the rounding
    assert np.nanmean(by_marker["border"]) > np.nanmean(by_finding["border"]) + 0.03


def quarters(images: np.ndarray) -> pd.DataFrame:
    """A look without a network: grey level and graininess of the quarters, and which half is the brighter."""
    side = images.shape[1] // 2
    tiles = images[:, : 2 * side, : 2 * side].reshape(len(images), 2, side, 2, side).astype(float)
    level, grain = tiles.mean(axis=(2, 4)), np.diff(tiles, axis=4).std(axis=(2, 4))
    features = np.hstack([level.reshape(len(images), -1), grain.reshape(len(images), -1)])
    return pd.DataFrame(features).add_prefix("pc_").assign(logit_net=level[:, 1].sum(axis=1) - level[:, 0].sum(axis=1))


def test_planted_shifts_of_rendered_images_are_named():
    """A short version of `make sites`, with one seed and no network."""
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    site = SiteParams(**params["site"])
    table = sites.told(1, params["prepare"]["phantom"], site, quarters, size=48)
    assert list(table["right"]) == [right for right, _ in sites.SITES]
    assert (table["named"] == table["right"]).sum() >= 7
    assert (table["control_p_value"] > 0.01).all()
    updates = sites.kept(np.random.default_rng(0), repeats=40)
    assert updates["keep"][0] > 0.85
    assert updates["keep"].iloc[-1] < updates["keep"][0]  # a calibrator of 100 cases is itself wrong
    text = sites.page(table, updates, site)
    assert "| test_prevalence: 0.65 | `prevalence` | 1 |" in text
    assert "nan" not in text


def test_foreign_images_are_of_eight_kinds_and_more_and_each_folder_is_one(tmp_path):
    (tmp_path / "blood_cells/a").mkdir(parents=True)
    levels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(levels).save(tmp_path / "blood_cells/a/one.png")
    bring, prepare = partial(square, size=32, how="stretch"), read("params.yaml", "prepare", PrepareParams)
    test = np.random.default_rng(0).integers(0, 256, (60, 32, 32), dtype=np.uint8)
    kinds = foreign.collect(test, [tmp_path / "blood_cells"], bring, prepare)
    assert len(kinds) >= 8
    assert len(kinds["blood cells"]) == 1
    assert min(len(kinds[kind]) for kind in ("CT slices", "MR slices")) >= 2
    assert len(kinds["photographs"]) > 100
    assert sum(map(len, kinds.values())) > 500
    assert {(of.shape[1:], of.dtype) for of in kinds.values()} == {((32, 32), np.dtype(np.uint8))}
    with pytest.raises(ValueError, match="nothing: no PNG or JPEG below it"):
        foreign.collect(test, [tmp_path / "nothing"], bring, prepare)


def test_what_is_refused_is_not_decided_however_certain():
    asked = pd.DataFrame({"kind": ["a", "a", "a", "b"], "oddity": [0.01, 0.5, 0.5, 0.05], "alone_layout": True})
    found = foreign.table(asked.assign(certainty=[1.0, 0.2, 0.8, 1.0]), threshold=0.5).set_index("kind")
    assert found.loc["a", ["n", "refused", "decided", "decided_without_the_rule"]].tolist() == [3, 1, 1, 2]
    assert found.loc["a", "surest_decided"] == 0.8
    assert found.loc["b", ["refused", "decided", "alone_layout"]].tolist() == [1, 0, 1]


def test_the_three_answers_about_a_site_add_up_and_follow_the_risk():
    rng = np.random.default_rng(0)
    for images in (1, 2):
        kept, broken = (
            {row["event"]: row["share"] for row in promises.sites(images, risk, rng, repeats=10)} for risk in (0.0, 0.6)
        )
        assert kept == {"said: broken": 0, "said: holds": 1, "said: cannot tell": 0}
        assert broken == {"said: broken": 1, "said: holds": 0, "said: cannot tell": 0}


def test_promises_of_a_calibrated_model_are_made_and_seldom_broken(monkeypatch):
    monkeypatch.setattr(promises, "POPULATION", 5000)
    row = promises.fresh_populations(2, 1.0, np.random.default_rng(0), repeats=5)
    assert row["any promise made"] > 0
    assert row["share"] <= 0.4


def test_a_policy_and_its_rivals_cost_what_they_cost():
    cases = pd.DataFrame(
        {
            "patient_id": list("aabb"),
            "y_true": [1, 0, 0, 1],
            "y_prob": [0.9, 0.3, 0.05, 0.02],
            "decision": [1, 1, 0, 0],
            "deferred": [False, True, False, False],
            "out_of_distribution": False,
            "baseline": [0, 0, 0, 1],
        }
    )
    rows = {row["policy"]: row for row in fresh_phantoms.compared("x", cases, Prices(5.0, 1.0, 0.25))}
    assert rows["this policy"]["cost"] == pytest.approx((0 + 0.25 + 0 + 5) / 4)
    assert rows["the first member alone decides every case"]["cost"] == pytest.approx(5 / 4)
    assert rows["all called positive"]["cost"] == pytest.approx(2 / 4)
    assert rows["all called negative"]["cost"] == pytest.approx(10 / 4)
    assert rows["a doctor reads every case"]["difference"] == pytest.approx(5.25 / 4 - 0.25)
    margin, plain = (rows[f"{name} at the same referral rate"] for name in ("margin", "plain margin"))
    assert margin["difference"] == plain["difference"] == 0  # the least certain case by either is the one deferred


def test_public_predictions_are_joined_by_image_and_know_their_patients(tmp_path):
    rng = np.random.default_rng(0)
    images = [f"{patient:08d}_{k:03d}.png" for patient in range(200) for k in range(2)]
    truth = rng.integers(0, 2, (400, 14))
    lines = [f"{image} {' '.join(map(str, row))}" for image, row in zip(images, truth, strict=True)]
    pd.Series(lines).sample(frac=1, random_state=0).to_csv(tmp_path / "test_list.txt.gz", index=False, header=False)
    probs = pd.DataFrame(np.clip(truth, 0.1, 0.9), columns=[f"prob_{name}" for name in public_predictions.FINDINGS])
    probs.assign(**{"Image Index": images}).to_csv(tmp_path / "preds.csv.gz", index=False)
    table = public_predictions.read(tmp_path)
    assert table["patient_id"].nunique() == 200
    for name in public_predictions.FINDINGS:
        assert ((table[f"prob_{name}"] > 0.5) == (table[f"y_true_{name}"] == 1)).all()


def test_scores_of_tissues_become_a_wide_table(tmp_path):
    scores, targets = np.log(np.full((20, 9), 1 / 9)), np.arange(20) % 9
    with gzip.open(tmp_path / "scores.npy.gz", "wb") as stream:
        np.save(stream, scores)
    np.save(tmp_path / "targets.npy", targets)
    table = public_predictions.read_tissues(tmp_path)
    assert table["y_true"][8] == "adenocarcinoma_epithelium"
    assert len(table.filter(like="logit_").columns) == 9


def test_a_share_of_referrals_is_met_exactly_and_costs_what_it_costs():
    cases = pd.DataFrame({"patient_id": range(200), "y_true": [1, 0, 1, 0] * 50, "out_of_distribution": False})
    y_prob, alone = np.tile([0.9, 0.2, 0.05, 0.02], 50), np.tile([0.9, 0.6, 0.1, 0.1], 50)
    prices = Prices(5.0, 1.0, 0.25)
    none, half = (referral_rates.saved(cases, y_prob, alone, rate, prices) for rate in (0.0, 0.5))
    assert none["cost"] == pytest.approx((0 + 1 + 5 + 0) / 4)
    assert none["reduction"] == pytest.approx(0)  # alone: the same two errors at p > 0.5
    assert half["cost"] == pytest.approx((0 + 0.25 + 0.25 + 0) / 4)  # 0.2 and 0.05 are nearest to 1 / 6
    assert half["reduction"] == pytest.approx(1 - 0.5 / 6)


def test_hostile_copies_are_read_or_refused_by_the_name_of_their_file():
    """A short version of `make fuzz`."""
    with warnings.catch_warnings():
        table = fuzz.fuzzed(copies=5, seed=1)
    assert (table["inputs"] == 5).all()
    assert table["refused"].sum() > len(table)  # the empty file alone is one of each
    failures = table[table[list(fuzz.OURS)].sum(axis=1) > 0]
    assert failures.empty, failures[["way_in", "example"]].to_dict("records")


def test_what_400_000_images_cost_is_what_one_costs_times_how_often_it_passes():
    seconds = {("densenet121", "map"): 9.0, ("resnet18", "training"): 0.5, ("resnet18", "pass"): 0.25}
    rows = [(*key, 1, value, 2 * value) for key, value in seconds.items()]
    rows.append(("resnet18", "pass", 2, 100.0, 100.0))  # of two threads, which no core's hours are told by
    told = cost.totals(pd.DataFrame(rows, columns=["architecture", "what", "threads", "cpu_seconds", "gflop"]))
    assert told.loc["densenet121", "hours"] == pytest.approx(400_000 * 0.4 * (1 + 1 + 8) * 9 / 3600)
    assert told.loc["resnet18", "hours"] == pytest.approx((8 * 240_000 * 0.5 + (8 * 40_000 + 400_000) * 0.25) / 3600)
    assert told.loc["resnet18", "petaflop"] == pytest.approx(told.loc["resnet18", "hours"] * 3600 * 2 / 1e6)
