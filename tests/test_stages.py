"""The stages after training on made tables: three members, a source without masks, few errors or none."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.numpy import save_file
from threadpoolctl import threadpool_info

from commands import answers
from tmv_lib.deferral import doubt
from tmv_lib.deferral import policy as fitted_policy
from tmv_lib.deferral.answer import gather, signal_columns
from tmv_lib.failures import taxonomy, training_labels
from tmv_lib.pipeline import record
from tmv_lib.pipeline.metrics import with_reasons
from tmv_lib.site.answer import Places, SiteParams, prevalence
from tmv_lib.site.calibrated import blame

ROOT = Path(__file__).parents[1]
MEMBERS = ("densenet121", "net", "net_2")  # one name inside another
AFTER_TRAINING = ("calibration", "site", "baseline", "diversity", "uncertainty", "failures", "ensemble")


def made_cases(rng: np.random.Generator) -> pd.DataFrame:
    """Two images a patient; rows in a random order, so that row positions mean nothing."""
    patient = np.repeat(np.arange(150), 2)
    split = np.select([patient < 50, patient < 90, patient < 110], ["train", "val", "cal"], "test")
    columns = {"image_id": [f"i{k:03d}" for k in range(300)], "patient_id": [f"p{k}" for k in patient]}
    cases = pd.DataFrame({**columns, "split": split, "y_true": patient % 2, "source": "folder"})
    return cases.iloc[rng.permutation(300)].reset_index(drop=True)


def made_tables(folder: Path, *, separation: float) -> pd.DataFrame:
    """What `prepare`, `train`, `explanations` and `stability` would have left."""
    rng = np.random.default_rng(0)
    cases = made_cases(rng)
    later = cases[cases["split"] != "train"]
    (folder / "data/prepare").mkdir(parents=True)
    (folder / "data/adjudication.csv").write_text("image_id,kind\n")
    cases.to_csv(folder / "data/prepare/cases.csv", index=False)
    np.save(folder / "data/prepare/images.npy", rng.integers(0, 256, (300, 32, 32), dtype=np.uint8))
    (folder / "data/reference").mkdir(parents=True)
    witness = cases[["image_id", "patient_id", "split", "y_true"]]
    witness = witness.assign(logit=separation * (2 * cases["y_true"] - 1) + rng.normal(size=300))
    witness.to_csv(folder / "data/reference/predictions.csv", index=False)
    seen = np.random.default_rng(1).normal(size=(300, 8)) + cases["y_true"].to_numpy()[:, None]
    np.save(folder / "data/reference/features.npy", seen.astype(np.float32))
    explained, moved = later[["image_id"]].copy(), later[["image_id"]].copy()
    changed: list[pd.DataFrame] = []
    foreign = later.loc[later["split"] == "val", ["image_id"]].head(20).assign(kind="noise")
    foreign.to_csv(folder / "data/prepare/foreign.csv", index=False)
    np.save(folder / "data/prepare/foreign.npy", np.tile(np.arange(0, 256, 8, dtype=np.uint8), (20, 32, 1)))
    (folder / "data/explanations").mkdir()
    (folder / "data/stability").mkdir()
    for name in MEMBERS:
        home = folder / "data/train" / name
        home.mkdir(parents=True)
        features = rng.normal(size=(300, 12)).astype(np.float32) + cases["y_true"].to_numpy()[:, None]
        np.save(home / "features.npy", features)
        save_file(
            {"head.weight": np.ones((1, 12), np.float32), "head.bias": np.zeros(1, np.float32)},
            home / "weights.safetensors",
        )
        logit = separation * (2 * cases["y_true"] - 1) + rng.normal(size=300)
        predictions = cases[["image_id", "patient_id", "split", "y_true"]].assign(logit=logit)
        predictions.to_csv(home / "predictions.csv", index=False)
        np.save(home / "foreign.npy", rng.normal(0, 9, (len(foreign), 12)).astype(np.float32))
        foreign.assign(logit=rng.normal(size=len(foreign))).to_csv(home / "foreign.csv", index=False)
        maps = rng.normal(size=(len(later), 7, 7))
        for kind in ("maps", "untrained"):
            np.save(folder / f"data/explanations/{kind}_{name}.npy", maps)
        explained[f"border_effect_{name}"] = rng.normal(size=len(later))
        explained[f"border_flips_{name}"] = rng.random(len(later)) < 0.1
        moved[f"instability_{name}"] = rng.random(len(later))
        for perturbation in ("blur", "noise"):
            shaken = predictions.loc[later.index, ["image_id", "logit"]].assign(member=name, perturbation=perturbation)
            changed.append(shaken.assign(logit=shaken["logit"] + rng.normal(0, 0.3, len(later))))
    moved.loc[moved.index[0], "instability_net"] = np.nan  # a constant map
    explained[["map_agreement", *(f"border_{name}" for name in MEMBERS)]] = rng.random((len(later), 1 + len(MEMBERS)))
    for name in (*MEMBERS, "ensemble"):
        explained[[f"border_misleads_{name}", f"border_mends_{name}"]] = rng.integers(0, 9, (len(later), 2)) / 8
    explained.to_csv(folder / "data/explanations/cases.csv", index=False)
    pd.concat(changed).to_csv(folder / "data/stability/logits.csv", index=False)
    moved.to_csv(folder / "data/stability/cases.csv", index=False)
    return cases


def run_stages(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *names: str,
    combined: str = "mean_probability",
    **deferral: object,
) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    member = next(iter(params["members"].values()))
    params["members"] = dict.fromkeys(MEMBERS, member)
    for name, value in deferral.items():
        params["deferral"][name] = params["deferral"][name] | value if isinstance(value, dict) else value
    params["ensemble"]["combine"] = combined
    for section in params.values():
        if "resamples" in section:
            section["resamples"] = 100
    params["site"] |= {"draws": 20}
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    (folder / "card.yaml").write_text((ROOT / "card.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.chdir(folder)
    for name in names:
        import_module(f"stages.{name}").main()


@pytest.fixture(scope="module")
def once(tmp_path_factory) -> Path:
    """Every stage after training, with many errors."""
    folder = tmp_path_factory.mktemp("answered")
    made_tables(folder, separation=1.0)
    with pytest.MonkeyPatch.context() as monkeypatch:
        run_stages(folder, monkeypatch, *AFTER_TRAINING)
    return folder


@pytest.fixture
def answered(once, tmp_path) -> Path:
    """A copy of it that a test may spoil."""
    return Path(shutil.copytree(once, tmp_path / "answered"))


def cases_of(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "data/prepare/cases.csv")


def metrics(folder: Path, name: str) -> dict:
    """With the reasons of what is absent."""
    return with_reasons(json.loads((folder / f"metrics/{name}.json").read_text(encoding="utf-8")), name, root=folder)


@pytest.mark.parametrize("separation", [1.0, 1.8, 9.0])  # many errors, few, none
def test_every_stage_finishes_whatever_the_number_of_errors(tmp_path, monkeypatch, separation):
    cases = made_tables(tmp_path, separation=separation)
    run_stages(tmp_path, monkeypatch, *AFTER_TRAINING)
    y_true = cases.set_index("image_id")["y_true"]
    calibrated = pd.read_csv("data/calibration/cases.csv").set_index("image_id")
    test = cases.loc[cases["split"] == "test", "image_id"]
    for name in MEMBERS:
        wrong = int(((calibrated.loc[test, f"y_prob_{name}"] > 0.5) != y_true[test]).sum())
        assert metrics(tmp_path, "failures")["failures"][name]["n_errors"] == wrong
        assert (separation < 9) == (wrong > 0)
    assert "taxonomy" not in metrics(tmp_path, "failures")


def test_tables_are_joined_by_id(tmp_path, monkeypatch):
    made_tables(tmp_path, separation=1.0)
    run_stages(tmp_path, monkeypatch, "calibration", "baseline", "diversity")
    before = [metrics(tmp_path, name) for name in ("calibration", "baseline", "diversity")]
    path = tmp_path / "data/train/net/predictions.csv"
    pd.read_csv(path).sample(frac=1, random_state=0).to_csv(path, index=False)
    calibrated = pd.read_csv("data/calibration/cases.csv").set_index("image_id")["logit_net_2"]
    run_stages(tmp_path, monkeypatch, "calibration", "baseline", "diversity")
    again = pd.read_csv("data/calibration/cases.csv").set_index("image_id")["logit_net_2"]
    pd.testing.assert_series_equal(calibrated, again)
    after = metrics(tmp_path, "diversity")["diversity"]["together"]
    assert after["double_fault"] == before[2]["diversity"]["together"]["double_fault"]


def test_nobody_or_everybody_deferred(answered, monkeypatch):
    run_stages(answered, monkeypatch, "ensemble", threshold=1.0)
    found = metrics(answered, "ensemble")["deferral"]
    assert found["deferral_rate"] == 1
    assert found["failure_cost"] == 0.25
    assert "there is no such case" in found["selective_risk_absent"]
    path = answered / "data/uncertainty/cases.csv"
    pd.read_csv(path).assign(out_of_distribution=0).to_csv(path, index=False)
    run_stages(answered, monkeypatch, "ensemble", threshold=0.0)
    found = metrics(answered, "ensemble")["deferral"]
    assert found["deferral_rate"] == pytest.approx(0, abs=1e-9)
    assert found["errors_avoided"] == 0
    assert found["ensemble_decides_all"]["reduction"] == 0
    assert "no case is deferred" in found["break_even_review_price_absent"]


def test_no_error_is_not_certainty(tmp_path, monkeypatch):
    made_tables(tmp_path, separation=9.0)
    run_stages(tmp_path, monkeypatch, *AFTER_TRAINING)
    found = metrics(tmp_path, "ensemble")["deferral"]
    assert found["selective_risk"] == 0
    # Wilson at k = 0 with 40 patients: z^2 / (n + z^2)
    assert found["selective_risk_high"] == pytest.approx(1.959964**2 / (40 + 1.959964**2), rel=1e-5)
    assert "reduction_absent" in found["ensemble_decides_all"]


def test_a_table_without_a_class_is_named(tmp_path, monkeypatch):
    made_tables(tmp_path, separation=1.0)
    path = tmp_path / "data/train/net/predictions.csv"
    table = pd.read_csv(path)
    table[(table["split"] != "val") | (table["y_true"] == 0)].to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"net/predictions\.csv: split val must hold both classes"):
        run_stages(tmp_path, monkeypatch, "calibration")


def test_every_signal_is_judged_and_every_test_case_has_its_quadrant(tmp_path, monkeypatch):
    cases = made_tables(tmp_path, separation=0.3)
    monkeypatch.setattr("tmv_lib.uncertainty.detection.FEWEST", 5)  # sixty test cases have few errors of a kind
    run_stages(tmp_path, monkeypatch, "calibration", "uncertainty")
    found = metrics(tmp_path, "uncertainty")["uncertainty"]["net"]
    for signal in ("predictive_entropy", "augmented_mutual_information", "members_mutual_information", "mahalanobis"):
        assert found[signal]["gain_over_margin"] == pytest.approx(
            found[signal]["adjusted_error_auroc"] - found["margin"]["adjusted_error_auroc"], abs=2e-6
        )
        assert found[signal]["over_margin"] in ("better", "worse", "no worthwhile gain", "not shown")
    assert "over_margin" not in found["margin"]
    listed = pd.read_csv("data/uncertainty/quadrants.csv")
    assert len(listed) == len(MEMBERS) * (cases["split"] == "test").sum()
    mistakes = listed["quadrant"].str.endswith("error")
    assert mistakes[: mistakes.sum()].all()
    assert (np.diff((listed.loc[mistakes, "y_prob"] - 0.5).abs()) <= 0).all()
    one = listed[listed["member"] == "net"]["quadrant"].value_counts()
    assert {name: found["quadrants"][name]["n"] for name in one.index} == one.to_dict()


def test_images_unlike_the_training_images_are_refused_and_usual_ones_are_not(tmp_path, monkeypatch):
    cases = made_tables(tmp_path, separation=1.0)
    unseen = (cases["split"] == "test") & (cases["y_true"] == 1) & (np.arange(300) % 3 == 0)
    phantom = cases.assign(source="phantom", cause=np.where(unseen, "blind", "none"))
    phantom.to_csv(tmp_path / "data/prepare/cases.csv", index=False)
    run_stages(tmp_path, monkeypatch, "calibration", "uncertainty")
    found = metrics(tmp_path, "uncertainty")["out_of_distribution"]
    assert (found["n_validation"], found["detectors"]) == (80, 6)
    noise = found["foreign"]["noise"]  # really a ramp, among images of noise
    assert (noise["n"], noise["refused"], noise["alone_texture"]) == (20, 1, 1)
    assert {f"confident_{name}" for name in MEMBERS} <= set(noise)
    assert found["foreign"]["unseen_finding"]["n"] == unseen.sum()
    said = pd.read_csv("data/uncertainty/cases.csv").merge(cases, on="image_id")
    for split, of in found["usual"].items():
        rows = said[said["split"] == split]
        assert of["refused"] == pytest.approx(rows["out_of_distribution"].mean(), rel=1e-5)
        assert of["positive"]["n"] + of["negative"]["n"] == of["n"] == len(rows)
        assert of["refused"] < 0.15
    assert found["usual"]["val"]["refused"] <= 0.05
    assert (said["out_of_distribution"] == (said["oddity"] <= 0.05)).all()
    drawn = pd.read_csv("plots/uncertainty/out_of_distribution.csv").set_index("kind")
    assert drawn.loc["noise", ["share", "high"]].tolist() == [1, 1]
    assert drawn.loc["noise", "low"] < 1


def test_too_few_validation_images_to_refuse_any_are_said(tmp_path, monkeypatch):
    cases = made_tables(tmp_path, separation=1.0)
    few = cases["split"].where((cases["split"] != "val") | (cases.groupby("split").cumcount() < 18), "test")
    cases.assign(split=few).to_csv(tmp_path / "data/prepare/cases.csv", index=False)
    with pytest.raises(ValueError, match=r"data/prepare/cases\.csv: 18 validation images, .* at 5% takes at least 19"):
        run_stages(tmp_path, monkeypatch, "calibration", "uncertainty")


def test_a_readers_kinds_are_compared_with_ours(tmp_path, monkeypatch):
    made_tables(tmp_path, separation=1.0)
    run_stages(tmp_path, monkeypatch, "calibration", "uncertainty", "failures")
    errors = pd.read_csv("data/failures/errors.csv").query("model == 'ensemble'")
    assert len(errors) > 3
    told = errors[["image_id", "kind"]].head(4)
    told.to_csv("data/adjudication.csv", index=False)
    run_stages(tmp_path, monkeypatch, "failures")
    found = metrics(tmp_path, "failures")["failures"]["adjudication"]
    assert (found["n"], found["agree"]) == (4, 4)
    pd.concat([told, told[:1]]).to_csv("data/adjudication.csv", index=False)
    with pytest.raises(ValueError, match=r"data/adjudication\.csv: row 6: .* stands there more than once"):
        run_stages(tmp_path, monkeypatch, "failures")
    told.assign(kind="bad luck").to_csv("data/adjudication.csv", index=False)
    with pytest.raises(ValueError, match=r"data/adjudication\.csv: row 2: kind is 'bad luck'"):
        run_stages(tmp_path, monkeypatch, "failures")
    told.assign(image_id="nobody").to_csv("data/adjudication.csv", index=False)
    with pytest.raises(ValueError, match="row 2: 'nobody' is no error"):
        run_stages(tmp_path, monkeypatch, "failures")


def test_subgroups_are_the_columns_of_the_case_table_compared_at_the_same_mix_of_classes(tmp_path, monkeypatch):
    cases = made_tables(tmp_path, separation=1.0)
    monkeypatch.setattr("tmv_lib.data.subgroups.FEWEST", 5)
    run_stages(tmp_path, monkeypatch, "calibration", "uncertainty", "failures")
    assert "not measurable" in metrics(tmp_path, "failures")["failures"]["ensemble"]["subgroups"]["absent"]
    germ = np.where(cases["y_true"] == 0, "none", np.where(cases["image_id"] < "i260", "virus", "bacteria"))
    cases.assign(germ=germ, site=1 + np.arange(300) % 2).to_csv("data/prepare/cases.csv", index=False)
    run_stages(tmp_path, monkeypatch, "failures")
    found = metrics(tmp_path, "failures")["failures"]["ensemble"]
    groups = found["subgroups"]
    of_germ = {name: one for name, one in groups.items() if name.startswith("germ")}
    assert set(groups) - set(of_germ) == {"site: 1", "site: 2"}
    assert set(of_germ) == {"germ: bacteria", "germ: none", "germ: virus"}
    assert all(one["defined_by_truth"] == (name in of_germ) for name, one in groups.items())
    assert sum(group["n_errors"] for group in of_germ.values()) == found["n_errors"]
    # bacteria and viruses are positives alone: each is the rest of the other, and normal films are nobody's
    gap = groups["germ: bacteria"]["error_rate"] - groups["germ: virus"]["error_rate"]
    assert groups["germ: bacteria"]["gap"] == pytest.approx(gap, abs=2e-6)
    assert groups["germ: virus"]["gap"] == pytest.approx(-gap, abs=2e-6)
    assert groups["germ: virus"]["gap_rests_on"] == "positives"
    assert "gap_absent" in groups["germ: none"]
    assert groups["site: 1"]["gap_p_value_holm"] == groups["site: 1"]["gap_p_value"]


def test_kinds_are_told_in_three_columns_and_the_files_are_those_as_shipped(tmp_path, monkeypatch):
    cases = made_tables(tmp_path, separation=1.0)
    run_stages(tmp_path, monkeypatch, "calibration", "uncertainty", "failures")
    before, found = pd.read_csv("data/failures/errors.csv"), metrics(tmp_path, "failures")["failures"]
    assert "the stage `site` makes it" in found["site_calibrated_absent"]
    made_site(tmp_path, cases, shifted=True)
    run_stages(tmp_path, monkeypatch, "failures")
    pd.testing.assert_frame_equal(before, pd.read_csv("data/failures/errors.csv"))
    found = metrics(tmp_path, "failures")["failures"]
    for model in (*MEMBERS, "ensemble"):
        assert found[model]["ceiling"]["n_errors"] == found[model]["site_calibrated"]["n_errors"] == 0
        shipped = found[model]["as_shipped"]
        assert {key: found[model][key] for key in ("n_errors", "false_negative", "false_positive")} == {
            key: shipped[key] for key in ("n_errors", "false_negative", "false_positive")
        }
        kinds = [entry for entry in shipped.values() if isinstance(entry, dict)]
        assert sum(entry["n"] for entry in kinds) == shipped["n_errors"] > 0
        assert sum(entry["false_negative"] for entry in kinds) == shipped["false_negative"]
        assert shipped["site"]["n"] == 0  # nobody said that the site is to blame
    (tmp_path / "data/site/blame.json").write_text(json.dumps({MEMBERS[0]: "site", MEMBERS[1]: "home"}))
    run_stages(tmp_path, monkeypatch, "failures")
    after, found = pd.read_csv("data/failures/errors.csv"), metrics(tmp_path, "failures")["failures"]
    named = after["kind"] == "site"
    mended = after["site_prob"].notna() & (after["site_prob"].gt(0.5) == after["y_true"].eq(1))
    plain = before["p_undetermined"] > before[[f"p_{kind.replace(' ', '_')}" for kind in taxonomy.SCORED]].max(axis=1)
    assert named.equals(plain & mended)
    assert (before.loc[named, "kind"] == "undetermined").all()
    assert set(after.loc[named, "model"]) == {MEMBERS[0], "ensemble"}
    told = ["image_id", "model", "kind", "reason", "needs"]
    pd.testing.assert_frame_equal(before.loc[~named, told], after.loc[~named, told])
    for model in (*MEMBERS, "ensemble"):
        assert found[model]["site"]["n"] == (named & (after["model"] == model)).sum()
        assert found[model]["site_calibrated"]["site"]["n"] == found[model]["ceiling"]["site"]["n"] == 0
    waiting = pd.read_csv("data/failures/queues/recalibrate.csv")
    assert sorted(waiting["image_id"]) == sorted(after.loc[named & (after["model"] == "ensemble"), "image_id"])
    assert waiting["probability"].gt(0.5).all()


def test_severity_and_what_repairs_gain_add_up_to_the_failure_cost(answered, monkeypatch):
    run_stages(answered, monkeypatch, "ensemble", cost={"false_negative": 3.0, "false_positive": 0.5}, threshold=0.0)
    errors = metrics(answered, "failures")["failures"]["ensemble"]
    found = metrics(answered, "ensemble")["deferral"]["failures"]
    kinds = [entry for name, entry in found.items() if name != "without a kind"]
    cost = 3.0 * errors["false_negative"] + 0.5 * errors["false_positive"]
    assert sum(entry["n"] for entry in kinds) == errors["n_errors"]
    assert sum(entry["failure_cost_gain"] for entry in kinds) == pytest.approx(cost / 80, rel=1e-5)  # 40 test patients
    gains = [entry for entry in errors.values() if isinstance(entry, dict) and "accuracy_gain" in entry]
    assert sum(entry["accuracy_gain"] for entry in gains) == pytest.approx(errors["n_errors"] / 80, rel=1e-5)
    assert all(entry["auroc_gain"] >= 0 for entry in gains)
    for entry in kinds:
        if "severity_absent" in entry:
            assert "at least 2 patients" in entry["severity_absent"]
            continue
        assert entry["n"] * entry["severity"] == pytest.approx(80 * entry["failure_cost_gain"], rel=1e-5)
        assert 0.5 <= entry["severity_low"] <= entry["severity"] <= entry["severity_high"] <= 3.0


def test_every_error_of_the_ensemble_waits_in_one_queue_the_likeliest_first(tmp_path, monkeypatch):
    made_tables(tmp_path, separation=0.3)
    run_stages(tmp_path, monkeypatch, "calibration", "uncertainty", "failures")
    errors = pd.read_csv("data/failures/errors.csv").query("model == 'ensemble'").set_index("image_id")
    waiting = {path.stem: pd.read_csv(path) for path in Path("data/failures/queues").glob("*.csv")}
    for name in (training_labels.RELABEL, training_labels.SECOND_READER):
        assert set(waiting.pop(name)["image_id"]) <= set(cases_of(tmp_path).query("split == 'train'")["image_id"])
    assert set(waiting) == set(taxonomy.QUEUES.values())
    assert sorted(pd.concat(waiting.values())["image_id"]) == sorted(errors.index)
    for kind, queue in taxonomy.QUEUES.items():
        table = waiting[queue]
        assert (errors.loc[table["image_id"], "kind"] == kind).all()
        assert (np.diff(table["probability"]) <= 0).all()
        assert table["reason"].str.len().gt(20).all()
    assert set(" ".join(pd.concat(waiting.values())["members_that_err"]).split()) <= {*MEMBERS, "none"}
    assert len(pd.read_csv("plots/failures/confusion.csv")) == 0  # nobody knows the truth


def test_one_error_is_sorted_without_an_interval(tmp_path, monkeypatch):
    cases = made_tables(tmp_path, separation=9.0)
    wrong = cases.loc[(cases["split"] == "test") & (cases["y_true"] == 1), "image_id"].iloc[0]
    for path in (tmp_path / "data/train").glob("*/predictions.csv"):
        table = pd.read_csv(path)
        table.loc[table["image_id"] == wrong, "logit"] = -9.0
        table.to_csv(path, index=False)
    run_stages(tmp_path, monkeypatch, "calibration", "uncertainty", "failures")
    found = metrics(tmp_path, "failures")["failures"]["ensemble"]
    assert (found["n_errors"], found["false_negative"]) == (1, 1)
    [kind] = [kind for kind in taxonomy.KINDS if found[kind]["n"]]
    assert "at least 2 patients" in found[kind]["share_absent"]
    assert pd.read_csv(f"data/failures/queues/{taxonomy.QUEUES[kind]}.csv")["image_id"].tolist() == [wrong]


def test_signals_that_are_missing_are_named_and_empty_ones_are_left_empty(tmp_path, monkeypatch):
    made_tables(tmp_path, separation=1.0)
    run_stages(tmp_path, monkeypatch, "calibration", "uncertainty")
    path = tmp_path / "data/stability/cases.csv"
    table = pd.read_csv(path)
    table.assign(**{f"instability_{name}": np.nan for name in MEMBERS}).to_csv(path, index=False)
    run_stages(tmp_path, monkeypatch, "failures")
    evidence = pd.read_csv("data/failures/evidence.csv")
    assert evidence["instability"].isna().all()
    assert evidence[["expected_entropy", "border", "map_agreement"]].notna().all(axis=None)
    assert "lungs" not in evidence  # no masks, no share
    table.drop(columns="instability_net").to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"data/stability/cases\.csv: signal instability_net is missing"):
        run_stages(tmp_path, monkeypatch, "failures")
    path.unlink()
    with pytest.raises(ValueError, match=r"data/stability/cases\.csv: no such file"):
        run_stages(tmp_path, monkeypatch, "failures")


def test_images_without_patients_are_each_their_own(tmp_path, monkeypatch):
    made_tables(tmp_path, separation=1.0)
    for path in (tmp_path / "data/prepare/cases.csv", *(tmp_path / "data/train").glob("*/predictions.csv")):
        table = pd.read_csv(path)
        table.assign(patient_id=table["image_id"]).to_csv(path, index=False)
    run_stages(tmp_path, monkeypatch, "calibration", "uncertainty", "failures")
    found = metrics(tmp_path, "failures")["failures"]["ensemble"]
    assert found["n_errors"] == sum(found[kind]["n"] for kind in taxonomy.KINDS) > 0
    queue = pd.concat(pd.read_csv(path) for path in Path("data/failures/queues").glob("*.csv"))
    assert (queue["patient_id"] == queue["image_id"]).all()


def test_the_site_of_local_patients_is_calibrated_on_them_alone(tmp_path, monkeypatch):
    cases = made_tables(tmp_path, separation=1.0)
    half = (cases["split"] == "test") & (cases["patient_id"].str[1:].astype(int) % 4 < 2)
    resplit(tmp_path, set(cases.loc[half, "image_id"]), "local")
    run_stages(tmp_path, monkeypatch, "calibration", "site")
    before, found = pd.read_csv("data/site/cases.csv").set_index("image_id"), metrics(tmp_path, "site")["site"]
    assert found["labels_from"] == "local"
    path = tmp_path / "data/prepare/cases.csv"
    table = pd.read_csv(path)
    table["y_true"] = np.where(table["split"] == "test", 1 - table["y_true"], table["y_true"])
    table.to_csv(path, index=False)
    run_stages(tmp_path, monkeypatch, "site")
    after = pd.read_csv("data/site/cases.csv").set_index("image_id")
    columns = [f"site_logit_{name}" for name in MEMBERS]
    pd.testing.assert_frame_equal(before[columns], after[columns])  # the truth of the test cases plays no part


def resplit(folder: Path, moved: set[str], split: str) -> None:
    """Put these images into another split, in every table that says one."""
    for path in (folder / "data/prepare/cases.csv", *(folder / "data/train").glob("*/predictions.csv")):
        table = pd.read_csv(path)
        table.loc[table["image_id"].isin(moved), "split"] = split
        table.to_csv(path, index=False)


def test_every_stage_copes_with_a_local_split_even_of_one_class(tmp_path, monkeypatch):
    cases = made_tables(tmp_path, separation=1.0)
    test = cases[(cases["split"] == "test")]
    moved = set(test.loc[test["y_true"] == 1, "image_id"].iloc[:16])
    resplit(tmp_path, moved, "local")
    run_stages(tmp_path, monkeypatch, *AFTER_TRAINING)
    assert metrics(tmp_path, "baseline")["baseline"]["n"] == len(test) - len(moved)
    found = metrics(tmp_path, "site")["site"]
    assert found["shift"]["site"]["n"] == found["shift"]["site"]["n_positive"] > 0
    assert found["net"]["update"]["name"] == "keep"  # one class teaches nothing
    assert "those of one alone" in found["shift"]["negative"]["features"]["absent"]


def test_a_site_of_ten_cases_is_answered(tmp_path, monkeypatch):
    cases = made_tables(tmp_path, separation=1.0)
    few = cases.loc[cases["split"] == "test", "patient_id"].drop_duplicates().head(5)
    resplit(tmp_path, set(cases.loc[cases["patient_id"].isin(few), "image_id"]), "local")
    run_stages(tmp_path, monkeypatch, "calibration", "site")
    found = metrics(tmp_path, "site")["site"]
    assert found["shift"]["site"]["n"] == 10
    assert "p_value_holm" in found["shift"]["pooled"]["features"]
    assert "needs 5 patients of each place" in found["shift"]["negative"]["features"]["absent"]
    assert found["shift"]["name"] == "none"
    assert "needs more than the 5 there are" in found["learning_curve"]["absent"]
    assert not found["certificate"]["negative"]["certified"]


@pytest.mark.parametrize(
    ("name", "correction"),
    [
        ("prevalence", "allowed"),
        ("none", "not_made"),
        ("negative_class", "refused"),
        ("both_classes", "refused"),
        ("unnamed", "refused"),
    ],
)
def test_prevalence_is_corrected_where_nothing_else_differs_and_nowhere_else(name, correction):
    rng = np.random.default_rng(0)

    def drawn(share: float, split: str) -> pd.DataFrame:
        y_true = (rng.random(20_000) < share).astype(int)
        return pd.DataFrame({"split": split, "y_true": y_true, "logit_net": rng.normal(4 * y_true - 2, 2)})

    # the log odds of two Normals of variance 4 at -2 and 2 are the score itself, at equal shares
    source, test = pd.concat([drawn(0.5, "val"), drawn(0.5, "cal")]), drawn(0.1, "test")
    source = source.assign(patient_id=np.arange(len(source)))
    test = test.assign(patient_id=np.arange(len(test)) + len(source))
    knobs = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["site"] | {"resamples": 100}
    found = prevalence(Places(source, test, test, 0), "net", name, SiteParams(**knobs))
    assert found["correction"] == correction
    assert found["estimated_by_em"].value == pytest.approx(0.1, abs=0.03)
    assert found["estimated_by_confusion"].value == pytest.approx(0.1, abs=0.03)
    for estimate in (found["estimated_by_em"], found["estimated_by_confusion"]):
        assert 0 < estimate.low < estimate.value < estimate.high < 0.2
    assert ("nll_corrected" in found) == (name == "prevalence")
    if name == "prevalence":
        assert found["nll_corrected"] < found["nll_as_shipped"] - 0.05


@pytest.mark.parametrize(
    ("p_value", "at_source", "at_site", "blamed"),
    [
        (0.049, "keep", "both", "site"),
        (0.049, "both", "both", "site"),
        (0.05, "both", "both", "home"),
        (0.5, "intercept", "keep", "home"),
        (0.5, "keep", "keep", "neither"),
        (0.5, "keep", "intercept", "unclear"),
        (0.049, "both", "keep", "unclear"),
        (None, "both", "both", "unclear"),
    ],
)
def test_the_site_is_blamed_for_what_the_source_does_not_show(p_value, at_source, at_site, blamed):
    found = {"update_at_source": at_source}
    found |= {"absent": "one class"} if p_value is None else {"p_value_holm": p_value}
    assert blame(found, at_site) == blamed


def test_a_model_that_is_wrong_at_home_is_not_blamed_on_the_site(tmp_path, monkeypatch):
    cases = made_tables(tmp_path, separation=1.0)
    run_stages(tmp_path, monkeypatch, "calibration")
    path = Path("data/calibration/cases.csv")
    table = pd.read_csv(path).set_index("image_id")
    where = cases.set_index("image_id").loc[table.index]
    rng = np.random.default_rng(0)
    for name in MEMBERS:
        table[f"logit_{name}"] = 2 * (where["y_true"] - 0.5) + rng.normal(0, 1, len(table)) + 3
    table.reset_index().to_csv(path, index=False)
    run_stages(tmp_path, monkeypatch, "site")
    found = metrics(tmp_path, "site")["site"]
    for name in MEMBERS:
        assert found[name]["interaction"]["blame"] == "home"
        assert found[name]["interaction"]["update_at_source"] != "keep"
        assert found[name]["interaction"]["p_value_holm"] >= 0.05
    for name in MEMBERS:
        table.loc[where["split"] == "test", f"logit_{name}"] -= 6
    table.reset_index().to_csv(path, index=False)
    run_stages(tmp_path, monkeypatch, "site")
    found = metrics(tmp_path, "site")["site"]
    for name in MEMBERS:
        assert found[name]["interaction"]["blame"] == "site"
        assert found[name]["interaction"]["intercept_difference_low"] > 0
        assert found[name]["interaction"]["p_value_holm"] >= found[name]["interaction"]["p_value"]


def test_a_local_patient_who_stands_in_test_too_teaches_nothing(tmp_path, monkeypatch):
    cases = made_tables(tmp_path, separation=1.0)
    test = cases[(cases["split"] == "test")].sort_values("image_id")
    first = test.drop_duplicates("patient_id")["image_id"]  # of each of the 40 patients one image, the other stays
    resplit(tmp_path, set(first[:20]), "local")
    run_stages(tmp_path, monkeypatch, "calibration", "site")
    found = metrics(tmp_path, "site")["site"]
    assert (found["labels_from"], found["local_patients_left_out"]) == ("test", 20)
    resplit(tmp_path, set(test.loc[test["patient_id"].isin(test["patient_id"].iloc[:10]), "image_id"]), "local")
    run_stages(tmp_path, monkeypatch, "calibration", "site")
    found = metrics(tmp_path, "site")["site"]
    whole = test["patient_id"].iloc[:10].nunique()
    assert (found["labels_from"], found["local_patients_left_out"]) == ("local", 20 - whole)
    assert found["shift"]["site"]["n_patients"] == whole


def test_a_column_that_differs_is_named_with_its_shares(tmp_path, monkeypatch):
    cases = made_tables(tmp_path, separation=1.0)
    run_stages(tmp_path, monkeypatch, "calibration", "site")
    assert "no further column" in metrics(tmp_path, "site")["site"]["shift"]["columns"]["absent"]
    test, rng = (cases["split"] == "test").to_numpy(), np.random.default_rng(0)
    told = cases.assign(
        manufacturer=np.where(test, rng.choice(["Acme", None], 300), "Best"),
        study_date=rng.integers(20180101, 20190101, 300) + 10000 * test,
        sex=rng.choice(["F", "M"], 300),
        width=512,
    )
    told.to_csv("data/prepare/cases.csv", index=False)
    run_stages(tmp_path, monkeypatch, "site")
    found = metrics(tmp_path, "site")["site"]["shift"]["columns"]
    assert set(found) == {"manufacturer", "study_date", "sex"}
    maker = found["manufacturer"]
    assert (maker["most_different"], maker["share_source"], maker["share_site"]) == ("Best", 1, 0)
    assert found["study_date"]["median_source"] // 10000 == 2018
    assert found["study_date"]["median_site"] // 10000 == 2019
    assert max(found[name]["p_value_holm"] for name in ("manufacturer", "study_date")) < 0.05
    assert found["sex"]["p_value_holm"] > 0.05
    # the columns are a family of their own
    assert found["manufacturer"]["p_value_holm"] == pytest.approx(3 * found["manufacturer"]["p_value"], rel=1e-5)


def test_the_numbers_of_the_files_are_asked_whether_they_explain_the_shift(tmp_path, monkeypatch):
    cases = made_tables(tmp_path, separation=1.0)  # patients, and so images, are numbered split by split
    run_stages(tmp_path, monkeypatch, "calibration", "site")
    found = metrics(tmp_path, "site")["site"]["shift"]
    assert found["name"] == "none"
    assert not found["id_blocks"]["explain_the_shift"]
    block = found["id_blocks"]["y_true_0"]
    assert block["is_block"]
    assert block["among_test"] > block["among_test_by_chance"]
    path = tmp_path / "data/train/densenet121/features.npy"
    away = ((cases["split"] == "test") & (cases["y_true"] == 0)).to_numpy()
    np.save(path, np.load(path) + 3 * away[:, None].astype(np.float32))
    run_stages(tmp_path, monkeypatch, "site")
    found = metrics(tmp_path, "site")["site"]["shift"]
    assert found["name"] == "negative_class"
    assert found["id_blocks"]["explain_the_shift"]


def test_flipping_one_patient_moves_nothing_as_shipped_and_not_its_own_logit(tmp_path, monkeypatch):
    cases = made_tables(tmp_path, separation=1.0)
    run_stages(tmp_path, monkeypatch, "calibration", "site")
    before = pd.read_csv("data/site/cases.csv").set_index("image_id")
    shipped = pd.read_csv("data/calibration/cases.csv")
    patient = cases.loc[cases["split"] == "test", "patient_id"].iloc[0]
    own = cases.loc[cases["patient_id"] == patient, "image_id"]
    path = tmp_path / "data/prepare/cases.csv"
    table = pd.read_csv(path)
    table.loc[table["patient_id"] == patient, "y_true"] = 1 - table["y_true"]
    table.to_csv(path, index=False)
    run_stages(tmp_path, monkeypatch, "site")
    after = pd.read_csv("data/site/cases.csv").set_index("image_id")
    pd.testing.assert_series_equal(before.loc[own, "site_logit_net"], after.loc[own, "site_logit_net"])
    pd.testing.assert_frame_equal(shipped, pd.read_csv("data/calibration/cases.csv"))
    held = cases.loc[cases["split"] == "cal", "image_id"]
    expected = shipped.set_index("image_id").loc[held, "logit_net"]
    np.testing.assert_allclose(after.loc[held, "site_logit_net"], expected)


def test_a_site_too_small_to_say_anything_says_so(tmp_path, monkeypatch):
    cases = made_tables(tmp_path, separation=1.0)
    test = cases[cases["split"] == "test"]
    kept = pd.concat([test[test["y_true"] == label].sort_values("patient_id").head(4) for label in (0, 1)])
    dropped = set(test["image_id"]) - set(kept["image_id"])
    for path in (tmp_path / "data/prepare/cases.csv", *(tmp_path / "data/train").glob("*/predictions.csv")):
        table = pd.read_csv(path)
        there = ~table["image_id"].isin(dropped)
        table[there].to_csv(path, index=False)
        if path.name == "predictions.csv":
            features = np.load(path.with_name("features.npy"))
            np.save(path.with_name("features.npy"), features[there.to_numpy()])
    run_stages(tmp_path, monkeypatch, "calibration", "site")
    found = metrics(tmp_path, "site")["site"]
    assert "needs 5 patients of each place" in found["shift"]["pooled"]["features"]["absent"]
    assert found["shift"]["name"] == "none"
    assert "fewer than the 5 folds" in found["net"]["site_calibrated"]["intervals_absent"]
    assert "needs more than the 4 there are" in found["learning_curve"]["absent"]
    assert not found["certificate"]["positive"]["certified"]


def test_a_site_that_is_the_training_data_is_counted(tmp_path, monkeypatch):
    made_tables(tmp_path, separation=1.0)
    run_stages(tmp_path, monkeypatch, "calibration")
    path = tmp_path / "data/prepare/cases.csv"
    table = pd.read_csv(path)
    train = table.loc[table["split"] == "train", "patient_id"].unique()
    test = table.loc[table["split"] == "test", "patient_id"].unique()
    table["patient_id"] = table["patient_id"].replace(dict(zip(test[:7], train[:7], strict=True)))
    table.to_csv(path, index=False)
    run_stages(tmp_path, monkeypatch, "site")
    found = metrics(tmp_path, "site")["site"]["shift"]
    assert found["training_patients_at_the_site"] == 7


def test_a_site_that_is_the_source_leaves_nothing_to_compare(tmp_path, monkeypatch):
    made_tables(tmp_path, separation=1.0)
    run_stages(tmp_path, monkeypatch, "calibration")
    path = tmp_path / "data/prepare/cases.csv"
    table = pd.read_csv(path)
    test = table.loc[table["split"] == "test", "patient_id"].unique()
    table.loc[table["split"] == "cal", "patient_id"] = test[0]
    table.to_csv(path, index=False)
    with pytest.raises(ValueError, match="every patient of cal is one of the site"):
        run_stages(tmp_path, monkeypatch, "site")


def made_site(folder: Path, cases: pd.DataFrame, *, shifted: bool) -> None:
    """What `site` would leave: there the probabilities know the truth."""
    later = cases[cases["split"] != "train"]
    known = np.where(later["y_true"] == 1, 6.0, -6.0)
    columns = {f"{kind}_logit_{name}": known for name in MEMBERS for kind in ("site", "ceiling")}
    (folder / "data/site").mkdir()
    later[["image_id"]].assign(**columns).sample(frac=1, random_state=0).to_csv(
        folder / "data/site/cases.csv", index=False
    )
    (folder / "data/site/shift.json").write_text(json.dumps({"name": "ward", "shifted": shifted}))


def test_the_policy_is_told_as_shipped_and_as_calibrated_at_the_site(tmp_path, monkeypatch):
    cases = made_tables(tmp_path, separation=1.0)
    run_stages(tmp_path, monkeypatch, *(name for name in AFTER_TRAINING if name != "site"))
    assert "site_calibrated_absent" in metrics(tmp_path, "ensemble")["deferral"]
    with pytest.raises(ValueError, match=r"deferral\.calibration is site, and the stage `site` has not run"):
        run_stages(tmp_path, monkeypatch, "ensemble", calibration="site")
    made_site(tmp_path, cases, shifted=True)
    run_stages(tmp_path, monkeypatch, "ensemble")
    found = metrics(tmp_path, "ensemble")
    assert found["deferral"]["site_calibrated"]["errors_deciding_all"] == 0
    assert found["deferral"]["ceiling"]["errors_deciding_all"] == 0
    assert found["deferral"]["as_shipped"]["errors_deciding_all"] == found["deferral"]["errors_deciding_all"] > 0
    assert found["guarantee"]["site_looks_different"]
    assert not found["guarantee"]["lapses"]  # a difference of the images is no harm by itself
    run_stages(tmp_path, monkeypatch, "ensemble", calibration="site")
    found = metrics(tmp_path, "ensemble")
    assert found["deferral"]["errors_deciding_all"] == 0
    assert found["guarantee"]["lapses"]
    assert "Nothing is promised" in Path("plots/ensemble/trust_card.md").read_text(encoding="utf-8")


def test_a_budget_sets_the_threshold_and_a_dear_review_never_pays(answered, monkeypatch):
    run_stages(answered, monkeypatch, "ensemble", budget=0.0, cost={"review": 2.0})
    found = metrics(answered, "ensemble")["deferral"]
    assert "you hand cases to a doctor to save cost: it never pays" in Path("plots/ensemble/trust_card.md").read_text(
        encoding="utf-8"
    )
    assert not found["deferral_can_pay"]
    assert found["threshold"] < 0.3
    assert found["chow_threshold"] == 0


def test_threshold_prices_and_budget_imply_one_another(answered, monkeypatch):
    run_stages(answered, monkeypatch, "ensemble")
    found = metrics(answered, "ensemble")["deferral"]
    assert (found["threshold"], found["threshold_from"]) == (pytest.approx(0.7), "prices")
    run_stages(answered, monkeypatch, "ensemble", threshold=0.4)
    found = metrics(answered, "ensemble")["deferral"]
    assert (found["threshold"], found["threshold_from"]) == (0.4, "params")
    assert found["chow_threshold"] == pytest.approx(0.7)
    assert found["chow_review_price"] == pytest.approx(0.6 * 5 / 6)
    with pytest.raises(ValueError, match="threshold and budget both set the threshold"):
        run_stages(answered, monkeypatch, "ensemble", threshold=0.4, budget=0.2)


def test_what_is_out_of_distribution_is_decided_nowhere(answered, monkeypatch):
    path = answered / "data/uncertainty/cases.csv"
    table = pd.read_csv(path)
    table["out_of_distribution"] = (np.arange(len(table)) % 7 == 0).astype(int)
    table.to_csv(path, index=False)
    run_stages(answered, monkeypatch, "ensemble", threshold=0.0)
    cases = pd.read_csv("data/ensemble/cases.csv", keep_default_na=False).set_index("image_id")
    foreign = cases.loc[table.loc[table["out_of_distribution"] == 1, "image_id"]]
    assert foreign["deferred"].all()
    assert set(foreign["reason"]) == {"unlike the training images"}
    assert cases["deferred"].sum() == len(foreign)  # threshold 0 defers nobody else
    found = metrics(answered, "ensemble")["deferral"]
    assert found["out_of_distribution"] == pytest.approx(found["deferral_rate"]) == pytest.approx(1 / 7, abs=0.05)
    sweep = pd.read_csv("plots/ensemble/threshold.csv").query("threshold == 0").set_index("series")
    assert sweep.loc["test", "deferral_rate"] == pytest.approx(found["deferral_rate"])


def test_the_policy_on_disk_says_of_a_case_what_the_stage_said(tmp_path, monkeypatch):
    made_tables(tmp_path, separation=1.0)
    run_stages(tmp_path, monkeypatch, *(name for name in AFTER_TRAINING if name != "ensemble"))
    members = list(MEMBERS)
    cases = record.outside_train(record.read_cases(members))
    table = record.read_signal_columns(cases, signal_columns(members, networks=True))
    cases, signals, calibrations = gather(cases, table, record.read_calibrations(cases, members))
    logits = calibrations["as_shipped"]
    rows = np.flatnonzero(cases["split"] == "test")[::-1]  # other cases beside it play no part
    learn = doubt.learn
    for used, combine, knobs in (
        (False, "choose", {"budget": 0.4}),
        (False, "stacking", {"threshold": 0.8}),
        (True, "mean_logit", {"cost": {"false_negative": 2.0}, "threshold": 0.8}),
    ):
        weights = {"disagreement": 1.5, "border_reliance": 0.5, "instability": 0.7} if used else {}
        forced = {"used": used, "weights": weights}
        monkeypatch.setattr(doubt, "learn", lambda *a, **k: learn(*a, **k)._replace(**forced))  # noqa: B023
        run_stages(tmp_path, monkeypatch, "ensemble", combined=combine, **knobs)
        said = pd.read_csv("data/ensemble/cases.csv", keep_default_na=False).iloc[rows]
        policy = fitted_policy.read_policy("data/ensemble/policy.json")
        foreign = cases["out_of_distribution"].iloc[rows]
        again = fitted_policy.apply(policy, logits.iloc[rows], signals.iloc[rows], foreign)
        assert bool(policy.weights) == used
        for name in ("y_prob", "certainty"):
            np.testing.assert_allclose(again[name], said[name], atol=1e-7)
        for name in ("decision", "deferred", "reason"):
            assert again[name].tolist() == said[name].tolist()
        assert 0 < again["deferred"].mean() < 1
        assert again.loc[again["deferred"], "reason"].ne("").all()


def test_a_policy_that_is_not_there_or_of_another_version_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"policy\.json: no such file; `make repro`"):
        fitted_policy.read_policy(tmp_path / "policy.json")
    (tmp_path / "policy.json").write_text('{"members": []}')
    with pytest.raises(ValueError, match="no policy of this version"):
        fitted_policy.read_policy(tmp_path / "policy.json")


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"cost": {"false_negative": 0.0}}, r"deferral\.cost\.false_negative is 0\.0: input should be greater than 0"),
        (
            {"cost": {"false_positive": -1.0}},
            r"deferral\.cost\.false_positive is -1\.0: input should be greater than 0",
        ),
        ({"cost": {"review": -0.1}}, r"deferral\.cost\.review is -0\.1: input should be greater than or equal to 0"),
        ({"cost": {"false_negative": float("inf")}}, r"deferral\.cost\.false_negative is inf"),
        ({"threshold": 1.2}, r"deferral\.threshold is 1\.2: input should be less than or equal to 1"),
        ({"threshold": -0.1}, r"deferral\.threshold is -0\.1"),
        ({"reader": {"sensitivity": 0.0}}, r"deferral\.reader\.sensitivity is 0\.0"),
        ({"cost": {"fn": 5.0}}, r"deferral\.cost\.fn is not a parameter"),
    ],
)
def test_a_price_or_threshold_out_of_range_is_named(tmp_path, monkeypatch, knobs, words):
    with pytest.raises(ValueError, match=words):
        run_stages(tmp_path, monkeypatch, "ensemble", **knobs)
    assert not (tmp_path / "metrics").exists()


def test_a_signal_may_be_missing_for_some_or_for_all_but_not_its_column(answered, monkeypatch):
    cases = cases_of(answered)
    path = answered / "data/stability/cases.csv"
    moved = pd.read_csv(path)
    val = moved["image_id"].isin(cases.loc[cases["split"] == "val", "image_id"])
    moved.loc[val, "instability_net_2"] = np.nan
    moved.loc[moved.index % 3 == 0, "instability_densenet121"] = np.nan
    moved.to_csv(path, index=False)
    run_stages(answered, monkeypatch, "ensemble")
    moved.drop(columns="instability_net").to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"data/stability/cases\.csv: signal instability_net is missing"):
        run_stages(answered, monkeypatch, "ensemble")
    maps = answered / "data/explanations/cases.csv"
    pd.read_csv(maps).drop(columns="border_effect_net").to_csv(maps, index=False)
    moved.to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"data/explanations/cases\.csv: signal border_effect_net is missing"):
        run_stages(answered, monkeypatch, "ensemble")


@pytest.mark.parametrize("label", [0, 1])
def test_a_test_split_of_one_class_leaves_out_what_needs_both(answered, monkeypatch, label):
    monkeypatch.chdir(answered)
    cases = cases_of(answered)
    path = answered / "data/prepare/cases.csv"
    cases[(cases["split"] != "test") | (cases["y_true"] == label)].to_csv(path, index=False)
    np.save(answered / "data/prepare/images.npy", np.zeros((len(pd.read_csv(path)), 32, 32), dtype=np.uint8))
    errors = pd.read_csv("data/failures/errors.csv")
    errors[errors["y_true"] == label].to_csv("data/failures/errors.csv", index=False)
    run_stages(answered, monkeypatch, "ensemble")
    found = metrics(answered, "ensemble")
    lacking = ("decided_specificity", "decided_sensitivity")[label == 0]
    assert f"{lacking}_absent" in found["deferral"]
    assert "precision_absent" in found["deferral"]["at_prevalence"]["0.2"]
    assert "auroc_absent" in found["ensemble"]["mean_probability"]
    assert "not applicable because" in Path("plots/ensemble/trust_card.md").read_text(encoding="utf-8")


def test_a_calibration_split_without_cases_is_named(answered, monkeypatch):
    path = answered / "data/prepare/cases.csv"
    table = pd.read_csv(path)
    table["split"] = table["split"].replace("cal", "val")
    table.to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"data/prepare/cases\.csv: split cal has 0 patients"):
        run_stages(answered, monkeypatch, "ensemble")


def test_the_card_is_read_from_the_metrics_that_there_are(answered, monkeypatch):
    monkeypatch.chdir(answered)
    home = answered / "plots/ensemble"

    def card() -> list[str]:
        return [(home / f"trust_card.{ending}").read_text(encoding="utf-8") for ending in ("html", "md")]

    before = card()
    path = answered / "metrics/calibration.json"
    for text in before:
        assert "you would rely on what was not measured: prepare, explanations, stability." in text
        assert "nothing for folder yet" in text
        assert hashlib.md5(path.read_bytes()).hexdigest()[:10] in text
        assert "None" not in text.replace("weights None", "")
    assert (
        before[0].count("data:image/png;base64,")
        == pd.read_csv("data/failures/errors.csv").query("model == 'ensemble'")["kind"].nunique()
    )
    run_stages(answered, monkeypatch, "ensemble")
    assert card() == before
    told = json.loads(path.read_text(encoding="utf-8"))
    told["calibration"]["net"]["before"]["positive_class_ece_uniform"]["ece"] = 0.9876
    path.write_text(json.dumps(told), encoding="utf-8")
    run_stages(answered, monkeypatch, "ensemble")
    assert all("0.988" in after and "0.988" not in text for after, text in zip(card(), before, strict=True))
    run_stages(answered, monkeypatch, "ensemble", threshold=0.6)
    assert all("its certainty in the case is 0.6 or more" in text for text in card())
    own = told["calibration"]["net"]["before"]["positive_class_ece_uniform"]
    own["error"] = own.pop("ece")
    path.write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(ValueError, match=r"metrics/calibration\.json calibration net before .*no metric 'ece'"):
        run_stages(answered, monkeypatch, "ensemble")
    path.unlink()
    run_stages(answered, monkeypatch, "ensemble")
    assert all("not measured: the stage `calibration` has not run" in text for text in card())


def test_promises_hang_on_nothing_but_the_seed(answered, monkeypatch):
    """Which image of a patient certifies is drawn apart from folds and resamples."""
    run_stages(answered, monkeypatch, "ensemble", promise={"missed_positives": 0.4})
    before = metrics(answered, "ensemble")["guarantee"]
    path = answered / "data/prepare/cases.csv"
    table = pd.read_csv(path).assign(ward="a")
    table["ward"] = np.where(table["patient_id"].str[-1].astype(int) % 2, "a", "b")  # more figures, more resamples
    table.to_csv(path, index=False)
    run_stages(answered, monkeypatch, "ensemble", promise={"missed_positives": 0.4})
    assert metrics(answered, "ensemble")["guarantee"] == before
    assert before["missed_positives"]["status"] in ("kept", "kept_above", "not_shown")


def test_the_sweep_carries_every_figure_of_the_threshold(answered, monkeypatch):
    run_stages(answered, monkeypatch, "ensemble", threshold=0.6, reader={"sensitivity": 0.9, "specificity": 0.8})
    found = metrics(answered, "ensemble")["deferral"]
    sweep = pd.read_csv("plots/ensemble/threshold.csv")
    row = sweep[(sweep["series"] == "test") & (sweep["threshold"] == 0.6)].iloc[0]
    names = ["coverage", "deferral_rate", "selective_risk", "errors_left", "errors_avoided", "failure_cost"]
    same = {name: name for name in [*names, "net_benefit", "break_even_review_price"]}
    same |= {"sensitivity": "decided_sensitivity", "specificity": "decided_specificity"}
    for column, name in same.items():
        if name not in found:
            assert f"{name}_absent" in found  # a value, and no interval that every resample has
            continue
        assert row[column] == pytest.approx(found[name], rel=1e-5), name
    assert row["reduction"] == pytest.approx(found["baseline_decides_all"]["reduction"], rel=1e-5)
    for series in ("random", "margin", "plain margin", "oracle"):
        rival = sweep[(sweep["series"] == f"test, {series}") & (sweep["threshold"] == 0.6)].iloc[0]
        assert rival["failure_cost"] == pytest.approx(found[f"{series.replace(' ', '_')}_deferral_cost"], rel=1e-5)


def test_another_processor_writes_the_same_bytes(tmp_path, monkeypatch):
    """The kernels of two processors add in another order; what differs by that must not show."""
    if not any(library["internal_api"] == "openblas" for library in threadpool_info()):
        pytest.skip("this numpy is not built with OpenBLAS, whose kernels can be chosen")
    code = """
import runpy
runpy.run_module("stages.calibration", run_name="__main__")
from threadpoolctl import threadpool_info
print({library.get("architecture") for library in threadpool_info()})
"""
    kernels, written = set(), []
    for kernel in ("Haswell", "Prescott"):
        folder = tmp_path / kernel
        made_tables(folder, separation=1.0)
        run_stages(folder, monkeypatch)
        environment = os.environ | {"OPENBLAS_CORETYPE": kernel, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
        kernels.add(done.stdout)
        made = [folder / "metrics/calibration.json", *(folder / "plots").rglob("*.csv")]
        written.append({str(path.relative_to(folder)): path.read_bytes() for path in made})
    if len(kernels) == 1:
        pytest.skip(f"this processor runs one kernel only: {kernels.pop().strip()}")
    assert written[0] == written[1]


def test_a_run_ends_with_its_verdict(answered, monkeypatch, capsys):
    monkeypatch.chdir(answered)
    shutil.copy(ROOT / "dvc.yaml", answered)
    answers.main()
    shown = capsys.readouterr().out
    found = metrics(answered, "ensemble")
    assert {"use": "Use it", "do_not_use": "Do not use it", "cannot_tell": "Cannot tell"}[
        found["verdict"]["answer"]
    ] in shown
    assert shown.rstrip().endswith("plots/ensemble/trust_card.html")
    (answered / "metrics/ensemble.json").unlink()
    with pytest.raises(ValueError, match=r"metrics/ensemble\.json: no such file; `make repro`"):
        answers.main()


def test_a_site_whose_labels_are_reversed_stops_with_that_sentence(answered, monkeypatch):
    path = answered / "data/prepare/cases.csv"
    table = pd.read_csv(path)
    table["y_true"] = np.where(table["split"] == "test", 1 - table["y_true"], table["y_true"])
    table.to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"ranks the cases of the site the wrong way: AUROC 0\.\d+"):
        run_stages(answered, monkeypatch, "site")


def test_a_split_with_too_few_patients_is_named(answered, monkeypatch):
    path = answered / "data/prepare/cases.csv"
    table = pd.read_csv(path)
    first = table.loc[table["split"] == "test", "patient_id"].iloc[0]
    table[(table["split"] != "test") | (table["patient_id"] == first)].to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"split test has 1 patients, `ensemble` with 5 folds needs 2 or more"):
        run_stages(answered, monkeypatch, "ensemble")
