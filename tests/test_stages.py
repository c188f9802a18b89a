"""The stages after training on made tables: three members, a source without masks, few errors or none."""

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.numpy import save_file

ROOT = Path(__file__).parents[1]
MEMBERS = ("densenet121", "net", "net_2")  # one name inside another
AFTER_TRAINING = ("calibration", "baseline", "diversity", "uncertainty", "failures", "ensemble")


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
    cases.to_csv(folder / "data/prepare/cases.csv", index=False)
    np.save(folder / "data/prepare/images.npy", rng.integers(0, 256, (300, 32, 32), dtype=np.uint8))
    explained, moved = later[["image_id"]].copy(), later[["image_id"]].copy()
    (folder / "data/explanations").mkdir()
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
        np.save(folder / f"data/explanations/maps_{name}.npy", rng.normal(size=(len(later), 7, 7)))
        explained[f"border_effect_{name}"] = rng.normal(size=len(later))
        explained[f"border_flips_{name}"] = rng.random(len(later)) < 0.1
        moved[f"instability_{name}"] = rng.random(len(later))
    moved.loc[moved.index[0], "instability_net"] = np.nan  # a constant map
    explained.to_csv(folder / "data/explanations/cases.csv", index=False)
    (folder / "data/stability").mkdir()
    moved.to_csv(folder / "data/stability/cases.csv", index=False)
    return cases


def run_stages(folder: Path, monkeypatch: pytest.MonkeyPatch, *names: str, **deferral: float) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    member = next(iter(params["members"].values()))
    params["members"] = dict.fromkeys(MEMBERS, member)
    params["deferral"] |= deferral
    for section in params.values():
        if "resamples" in section:
            section["resamples"] = 100
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    monkeypatch.chdir(folder)
    for name in names:
        import_module(f"stages.{name}").main()


def metrics(folder: Path, name: str) -> dict:
    return json.loads((folder / f"metrics/{name}.json").read_text(encoding="utf-8"))


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


@pytest.mark.parametrize(("threshold", "rate"), [(0.0, 0.0), (1.0, 1.0)])
def test_nobody_or_everybody_deferred(tmp_path, monkeypatch, threshold, rate):
    made_tables(tmp_path, separation=1.0)
    run_stages(tmp_path, monkeypatch, *AFTER_TRAINING, threshold=threshold)
    found = metrics(tmp_path, "ensemble")["deferral"]
    assert found["deferral_rate"] == pytest.approx(rate, abs=1e-9)
    if rate == 1.0:
        assert found["failure_cost"] == 0.25
        assert "there is no such case" in found["selective_risk_absent"]
    else:
        assert found["errors_avoided"] == 0
        assert found["ensemble_decides_all"]["reduction"] == 0
        assert "break_even_review_price" not in found


def test_no_error_is_not_certainty(tmp_path, monkeypatch):
    made_tables(tmp_path, separation=9.0)
    run_stages(tmp_path, monkeypatch, *AFTER_TRAINING)
    found = metrics(tmp_path, "ensemble")["deferral"]
    assert found["selective_risk"] == 0
    # Wilson at k = 0 with 40 patients: z^2 / (n + z^2)
    assert found["selective_risk_high"] == pytest.approx(1.959964**2 / (40 + 1.959964**2), rel=1e-6)
    assert "reduction_absent" in found["ensemble_decides_all"]


def test_a_table_without_a_class_is_named(tmp_path, monkeypatch):
    made_tables(tmp_path, separation=1.0)
    path = tmp_path / "data/train/net/predictions.csv"
    table = pd.read_csv(path)
    table[(table["split"] != "val") | (table["y_true"] == 0)].to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"net/predictions\.csv: split val must hold both classes"):
        run_stages(tmp_path, monkeypatch, "calibration")
