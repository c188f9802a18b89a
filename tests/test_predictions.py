"""Predictions as people have them: wide files, other names, no patients, no splits."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.special import expit, logit, softmax

from commands.evaluate import evaluate
from tmv_lib.card import findings
from tmv_lib.data import predictions as wide
from tmv_lib.data.prediction_files import Asked, read_questions
from tmv_lib.statistics.estimate import Estimate

ROOT = Path(__file__).parents[1]


def of_classes(n: int = 1200) -> tuple[pd.DataFrame, np.ndarray]:
    """Three exclusive classes drawn from their own probabilities, two images a patient; and the logits."""
    rng = np.random.default_rng(0)
    z = rng.normal(0, 1.5, (n, 3))
    p = softmax(z, axis=1)
    y = (rng.random(n)[:, None] > p.cumsum(axis=1)).sum(axis=1)
    table = pd.DataFrame({"image_id": [f"i{k}" for k in range(n)], "patient_id": [f"p{k // 2}" for k in range(n)]})
    return table.assign(
        y_true=np.array(list("abc"))[y], **dict(zip(["prob_a", "prob_b", "prob_c"], p.T, strict=True))
    ), z


def of_findings(n: int = 1200) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    table = pd.DataFrame({"image_id": [f"i{k}" for k in range(n)]})
    for name, shift in (("effusion", 0.0), ("hernia", -6.0)):
        z = shift + rng.normal(0, 2, n)
        table[f"prob_{name}"], table[f"y_true_{name}"] = expit(z), (rng.random(n) < expit(z)).astype(float)
    table.loc[::10, "y_true_effusion"] = np.nan
    return table


def read(table: pd.DataFrame, folder: Path, **asked: object):
    table.to_csv(folder / "mine.csv", index=False)
    return read_questions([folder / "mine.csv"], Asked(**asked))


def test_the_logit_of_a_set_of_classes_is_its_log_odds(tmp_path):
    table, _ = of_classes()
    both = read(table, tmp_path, positive=("a", "c")).members["a or c"]["mine"]
    np.testing.assert_allclose(both["logit"], logit(table["prob_a"] + table["prob_c"]), atol=1e-9)
    assert (both["y_true"] == table["y_true"].isin(["a", "c"])).all()


def test_logits_and_probabilities_of_exclusive_classes_say_the_same(tmp_path):
    table, z = of_classes()
    raw = table.drop(columns=["prob_a", "prob_b", "prob_c"]).assign(logit_a=z[:, 0], logit_b=z[:, 1], logit_c=z[:, 2])
    of_p, of_z = (read(one, tmp_path).members["b"]["mine"]["logit"] for one in (table, raw))
    np.testing.assert_allclose(of_p, of_z, atol=1e-9)


def test_an_empty_label_is_never_a_negative_and_is_counted(tmp_path):
    questions = read(of_findings(), tmp_path)
    effusion = questions.members["effusion"]["mine"]
    assert len(effusion) == 1080
    assert len(questions.members["hernia"]["mine"]) == 1200
    assert "effusion 120" in " ".join(questions.remarks)
    assert questions.remarks[0].startswith("No column patient_id")
    assert questions.remarks[1].startswith("No column split")


def test_a_sure_probability_is_clipped_and_counted(tmp_path):
    table = of_findings().rename(columns={"prob_effusion": "prob", "y_true_effusion": "y_true"})
    table = table.drop(columns=["prob_hernia", "y_true_hernia"]).assign(
        y_true=lambda t: t["y_true"].fillna(0).astype(int)
    )
    table.loc[:2, "prob"] = [0.0, 1.0, 1.0]
    questions = read(table, tmp_path)
    assert questions.members[""]["mine"]["logit"][:3].tolist() == pytest.approx([-16.118, 16.118, 16.118], abs=1e-3)
    assert questions.remarks[-1] == "Probabilities nearer to 0 or 1 than 1e-7, and set to it: 3."


def test_a_cut_keeps_patients_whole_and_does_not_hang_on_the_order_of_rows():
    table, _ = of_classes()
    split = wide.cut(table, val=0.2, cal=0.2, seed=0)
    assert split.groupby(table["patient_id"]).nunique().max() == 1
    assert split.value_counts().to_dict() == {"test": 720, "val": 240, "cal": 240}
    shuffled = table.sample(frac=1, random_state=0)
    assert wide.cut(shuffled, val=0.2, cal=0.2, seed=0).sort_index().equals(split)
    assert not wide.cut(table, val=0.2, cal=0.2, seed=1).equals(split)


@pytest.mark.parametrize(
    ("change", "asked", "words"),
    [
        (
            lambda t: t.assign(prob_a=t["prob_a"] + 0.5),
            {},
            r"row 2: total '1\.5\d* ?' of the classes' probabilities is not",
        ),
        (lambda t: t, {"positive": ("a", "b", "c")}, "positive classes a, b, c: some of a, b, c, not all"),
        (lambda t: t, {"positive": ("d",)}, "'d' is no class or finding; there are a, b, c"),
        (lambda t: t, {"primary": ("d",)}, "'d' is no class or finding"),
        (
            lambda t: t.assign(y_true=t["y_true"].where(t.index != 3, "d")),
            {},
            "row 5: y_true 'd' is none of the classes",
        ),
        (lambda t: t.assign(prob_b=t["prob_b"].where(t.index != 3, 2)), {}, "row 5: total"),
        (lambda t: t.drop(columns="y_true"), {}, "column y_true is missing, or y_true_<finding>"),
        (lambda t: t.assign(y_true_a=1), {}, "finding b: an output prob_ or logit_ and a label y_true_"),
        (lambda t: t.assign(logit_a=0.0), {}, "columns prob_a and logit_a: one file holds"),
        (lambda t: t, {"columns": {"split": "Fold"}}, "--column split=Fold: no such column"),
        (lambda t: t.assign(other="v"), {"columns": {"y_true": "other"}}, "--column makes two columns y_true"),
        (lambda t: t[:900], {}, "no column split, and val cut from these 900 images would have 180: at least 200"),
        (lambda t: t, {"shares": (0.6, 0.5)}, r"shares 0\.6 0\.5: of val and cal"),
    ],
)
def test_a_wide_file_that_cannot_be_used_is_named(tmp_path, change, asked, words):
    with pytest.raises(ValueError, match=r"mine\.csv: ") as refused:
        read(change(of_classes()[0]), tmp_path, **asked)
    assert re.search(words, str(refused.value)), str(refused.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.assign(y_true_hernia=np.nan), "finding hernia: column y_true_hernia is empty, nobody labelled it"),
        (lambda t: t.assign(y_true_hernia=2), "row 2: y_true_hernia '2' is none of 0, 1 and empty"),
        (lambda t: t.assign(prob_hernia=-0.1), r"row 2: prob_hernia '-0\.1' is no probability"),
    ],
)
def test_a_label_or_probability_that_is_none_is_named(tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        read(change(of_findings()), tmp_path)


def test_holm_is_over_the_findings_of_one_role_and_primary_ones_come_first():
    def row(name: str, role: str, p_value: float) -> dict:
        return {"finding": name, "role": role, "ece": Estimate(0.1, p_value=p_value)}

    given = [row("a", "exploratory", 0.01), row("b", "primary", 0.03), row("c", "exploratory", 0.02)]
    rows = findings.adjusted(given)
    assert [one["finding"] for one in rows] == ["b", "a", "c"]
    assert [one["ece"].p_value_holm for one in rows] == pytest.approx([0.03, 0.02, 0.02])


def test_a_finding_of_nineteen_patients_gets_no_verdict():
    split = np.repeat(["val", "cal", "test"], 40)
    cases = pd.DataFrame({"patient_id": np.arange(120), "split": split, "y_true": np.tile([0, 1], 60)})
    assert findings.too_few(cases) is None
    first = cases.index[(cases["split"] == "cal") & (cases["y_true"] == 1)][0]
    cases.loc[first, "y_true"] = 0
    assert findings.too_few(cases) == "no verdict: 19 positive patients in cal, at least 20 are needed"


def test_the_example_of_the_documentation_makes_the_page(tmp_path, monkeypatch):
    """The two blocks of docs/extending.md, with few resamples."""
    page = (ROOT / "docs/extending.md").read_text(encoding="utf-8").partition("**Many findings at once.**")[2]
    script, command = re.findall(r"```(?:python)?\n(.*?)```", page, flags=re.DOTALL)[:2]
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for section in params.values():
        if "resamples" in section:
            section["resamples"] = 100
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    shutil.copy(ROOT / "card.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    Path("make.py").write_text(script, encoding="utf-8")
    subprocess.run([sys.executable, "make.py"], check=True)
    done = subprocess.run([sys.executable, *command.split()[1:]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv("chest/findings.csv").set_index("finding")
    assert table.index[:2].tolist() == ["finding_0", "finding_2"]
    assert (table["role"][2:] == "exploratory").all()
    assert len(table) == 14
    rare = table["why"].str.startswith("no verdict")
    assert 0 < rare.sum() < 10
    assert table.loc[rare, "auroc"].isna().all()
    assert table.loc[~rare, "verdict"].isin(["use", "do_not_use", "cannot_tell"]).all()
    assert (table.loc[~rare, "auroc"] > 0.7).all()
    assert table.loc[~rare, "slope"].between(0.5, 1.7).all()
    for ending in ("html", "md"):
        text = Path(f"chest/findings.{ending}").read_text(encoding="utf-8")
        assert "Primary: named beforehand" in text
        assert "No column split" in text
    links = re.findall(r'<a href="(.*?)">(.*?)</a>', Path("chest/findings.html").read_text(encoding="utf-8"))
    assert [name for _, name in links] == table.index[~rare].tolist()
    for link, name in links:
        assert f"<title>Report: {name}, chest</title>" in Path("chest", link).read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="chest: is there already"):
        evaluate([Path("chest.csv")], Path("chest"))
