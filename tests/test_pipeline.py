"""The pipeline end to end, through DVC, on a tiny phantom and two small networks, with labels of a site."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from safetensors.numpy import load_file, save_file
from scipy.special import expit, logit

from stages import ensemble
from studies import faults, taxonomy
from tmv_lib.deferral import costs, doubt, policy
from tmv_lib.failures.taxonomy import Score, sort_errors
from tmv_lib.phantom.plan import plan_cases
from tmv_lib.prediction import likeness
from tmv_lib.prediction import system as prediction
from tmv_lib.statistics.estimate import Resampler, difference
from tmv_lib.statistics.ranking import auroc

ROOT = Path(__file__).parents[1]
TRACKED = [
    "dvc.yaml",
    "params.yaml",
    "card.yaml",
    ".gitignore",
    ".dvcignore",
    ".dvc/config",
    ".dvc/plots",
    "stages",
    "tmv_lib",
    "networks",
    "commands",
    "monitor/pipeline.yaml",
    "data/raw/README.md",
    "data/weights/README.md",
    "data/adjudication.csv",
    "data/readings.csv",
    "data/repairs/README.md",
]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


def run(folder: Path, *command: str, fails: bool = False) -> str:
    """Run a command in the project's environment; what it printed, standard error included."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    identity = {
        "GIT_AUTHOR_NAME": "t",
        "GIT_AUTHOR_EMAIL": "t@t",
        "GIT_COMMITTER_NAME": "t",
        "GIT_COMMITTER_EMAIL": "t@t",
    }
    environment = {**os.environ, **identity, "PATH": path}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    printed = done.stdout + done.stderr
    assert (done.returncode != 0) == fails, printed
    return printed


def has_run(folder: Path, params: dict) -> Path:
    """A copy of the project with these parameters, in which DVC has run."""
    for name in TRACKED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, folder / name)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    if params["prepare"]["local"]:
        plan = plan_cases(seed=params["prepare"]["seed"], **params["prepare"]["phantom"])
        plan.loc[plan["split"] == "test", ["image_id"]].iloc[::3].to_csv(folder / "data/raw/local.csv", index=False)
    run(folder, "git", "init", "--quiet")
    commit(folder, "as downloaded")
    run(folder, "dvc", "repro")
    commit(folder, "what came out")
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    params = faults.tiny(yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8")))
    params["prepare"]["local"] = "local.csv"
    return has_run(tmp_path_factory.mktemp("project"), params)


def commit(folder: Path, message: str) -> None:
    run(folder, "git", "add", "--all")
    run(folder, "git", "commit", "--quiet", "--message", message)


def cases_of(project: Path) -> pd.DataFrame:
    return pd.read_csv(project / "data/ensemble/cases.csv").set_index("image_id")


def test_every_question_has_its_metrics_and_plots(project):
    for name, stage in STAGES.items():
        if name not in ("train", "reference"):
            metrics = json.loads((project / f"metrics/{name}.json").read_text(encoding="utf-8"))
            assert metrics
        entry = stage.get("do", stage)
        written = [*entry.get("plots", []), *entry.get("outs", [])]
        declared = [next(iter(path)) if isinstance(path, dict) else path for path in written]
        for path in (path.replace("${key}", key) for path in declared for key in ("densenet121", "resnet50")):
            assert (project / path).exists(), path


def test_labels_of_the_site_are_a_split_of_their_own(project):
    splits = pd.read_csv(project / "data/prepare/cases.csv").groupby("split")["patient_id"]
    assert not set(splits.get_group("local")) & set(splits.get_group("test"))
    site = json.loads((project / "metrics/site.json").read_text(encoding="utf-8"))["site"]
    assert site["labels_from"] == "local"
    assert site["shift"]["site"]["n_patients"] == splits.get_group("local").nunique()


def test_metrics_of_one_name_do_not_stand_in_two_files(project):
    keys = [
        key for path in (project / "metrics").glob("*.json") for key in json.loads(path.read_text(encoding="utf-8"))
    ]
    assert len(keys) == len(set(keys))


def test_no_member_beats_the_ideal_observer_beyond_its_interval(project):
    truth = pd.read_csv(project / "data/prepare/cases.csv").query("split == 'test'").set_index("image_id")
    y_true = truth["y_true"].to_numpy()
    for name in ("densenet121", "resnet50"):
        said = pd.read_csv(project / f"data/train/{name}/predictions.csv").set_index("image_id").loc[truth.index]
        arrays = (y_true, said["logit"].to_numpy(), truth["posterior"].to_numpy())
        resampler = Resampler(truth["patient_id"].to_numpy(), 200, seed=0)
        above = resampler.estimate(partial(difference, auroc), *arrays, stratify=y_true)
        assert above.low <= 0


def test_the_taxonomy_is_told_against_what_mends(project):
    found = json.loads((project / "metrics/failures.json").read_text(encoding="utf-8"))
    errors = pd.read_csv(project / "data/failures/errors.csv")
    crossed = pd.read_csv(project / "plots/failures/confusion.csv")
    assert crossed.groupby("series")["n"].sum().tolist() == [len(errors)] * 2
    assert found["taxonomy"]["n"] + found["taxonomy"]["mended_by_no_repair"] == len(errors)
    assert {"instability", "lungs", "mutual_information", "oddity_rank"} <= set(found["taxonomy"]["signals"])
    assert set(found["failures"]["ensemble"]) >= {"as_shipped", "site_calibrated", "ceiling"}


def test_nothing_is_left_to_do(project):
    assert "up to date" in run(project, "dvc", "status")
    assert "failed to load" not in run(project, "dvc", "metrics", "diff")  # of what has not run, such as `make monitor`


def test_a_threshold_change_reruns_one_stage_and_defers_a_superset(project):
    before = cases_of(project)
    printed = run(project, "dvc", "exp", "run", "--set-param", "deferral.threshold=0.9")
    assert [line for line in printed.splitlines() if line.startswith("Running stage")] == ["Running stage 'ensemble':"]
    after = cases_of(project)
    assert (after["deferred"] >= before["deferred"]).all()
    assert (after["deferred"] == (after["certainty"] < 0.9)).all()
    assert "deferral.threshold" in run(project, "dvc", "metrics", "diff")
    run(project, "git", "checkout", "--quiet", "--", ".")
    run(project, "dvc", "checkout")


def test_the_diagrams_need_no_network(project):
    run(project, "dvc", "plots", "show")
    page = (project / "dvc_plots/index.html").read_text(encoding="utf-8")
    assert "vega" in page
    for host in ("cdn.jsdelivr.net", "unpkg.com"):
        assert f'src="https://{host}' not in page


LAST = ["explanations", "stability", "uncertainty", "failures", "repair", "ensemble"]
ORDER = [*(name for name in STAGES if name not in LAST), *LAST]


def test_repeating_everything_gives_the_same_bytes(project, tmp_path, monkeypatch):
    """In one process, in which whatever a stage leaves behind in memory would show in the next."""
    folder = tmp_path / "again"
    run(tmp_path, "git", "clone", "--quiet", str(project), str(folder))
    first = run(folder, "git", "rev-list", "--max-parents=0", "HEAD").strip()
    run(folder, "git", "reset", "--quiet", "--hard", first)  # the card names the commit of its code
    shutil.copy(project / "data/raw/local.csv", folder / "data/raw")
    monkeypatch.chdir(folder)
    for name in ORDER:
        for member in ("densenet121", "resnet50") if name == "train" else ("",):
            monkeypatch.setattr(sys, "argv", ["stage", member])
            import_module(f"stages.{name}").main()
    written = [path for part in ("data", "metrics", "plots") for path in (folder / part).rglob("*")]
    files = [path.relative_to(folder) for path in written if path.is_file()]
    assert len(files) > 80
    assert [name for name in files if (folder / name).read_bytes() != (project / name).read_bytes()] == []


def test_a_study_takes_from_the_cache_what_the_project_has_run_and_reads_its_errors(scratch, monkeypatch):
    monkeypatch.chdir(scratch)
    folder = taxonomy.FOLDER / "21"
    shutil.copytree("data/raw", folder / "data/raw")
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    taxonomy.run(folder, params)
    evidence = folder / "data/failures/evidence.csv"
    assert evidence.read_bytes() == Path("data/failures/evidence.csv").read_bytes()
    assert not (folder / "checkpoints").exists()  # nothing was trained
    before = evidence.stat().st_mtime_ns
    taxonomy.run(folder, params)
    assert evidence.stat().st_mtime_ns == before  # what is there is not run again
    errors = taxonomy.errors_of([21], splits=["val", "cal", "test"])
    assert set(errors["model"]) == {"densenet121", "resnet50", "ensemble"}
    assert errors["patient_id"].str.startswith("21 ").all()
    assert errors["instability"].notna().any()
    score = Score(**json.loads((ROOT / taxonomy.SCORE).read_text(encoding="utf-8")))
    found = errors.join(sort_errors(errors, score=score))
    row = taxonomy.measured(found, n_resamples=100, seed=0)
    assert row["n_errors"] == len(errors) > 20
    assert ("kappa" in row) != ("kappa_absent" in row)  # so few errors may be of one kind in a resample
    assert -1 <= row.get("kappa", 0) <= 1


def changed(project: Path, section: str, **values: object) -> None:
    params = yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))
    params[section] |= values
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


@pytest.fixture
def scratch(project, tmp_path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(project, tmp_path / "scratch", symlinks=True))


def test_a_bad_parameter_stops_the_stage_with_its_name(scratch):
    changed(scratch, "deferral", threshold=1.5)
    printed = run(scratch, "dvc", "repro", "ensemble", fails=True)
    assert "error: params.yaml: deferral.threshold is 1.5: input should be less than or equal to 1" in printed
    assert "Traceback" not in printed
    assert "params.yaml still holds it" in printed
    assert not (scratch / "metrics/ensemble.json").exists()


def test_a_whole_run_ends_with_verdict_and_card_and_says_nothing_of_dvc(scratch):
    changed(scratch, "deferral", threshold=0.5)
    printed = run(scratch, "python", "-m", "commands.repro")
    assert "ensemble: Which cases go to a doctor, and what does that buy?" in printed
    assert "\nVerdict: " in printed
    assert "the whole answer on one page: plots/ensemble/trust_card.html\n" in printed
    assert not any(words in printed for words in ("Running stage", "didn't change", "git add", "dvc push", "dvc.lock"))


def test_a_folder_of_images_that_is_not_there_is_named_with_its_parameter(scratch):
    changed(scratch, "prepare", root="nowhere")
    printed = run(scratch, "python", "-m", "commands.repro", fails=True)
    assert printed.startswith("error: params.yaml: prepare.root is nowhere: there is no such folder")
    assert "Traceback" not in printed


def leaves(values: dict, place: str = "") -> dict[str, object]:
    """Nested metrics as DVC flattens them."""
    found: dict[str, object] = {}
    for key, value in values.items():
        found |= leaves(value, f"{place}{key}.") if isinstance(value, dict) else {f"{place}{key}": value}
    return found


def test_metrics_hold_no_sentence(project):
    for path in (project / "metrics").glob("*.json"):
        values = leaves(json.loads(path.read_text(encoding="utf-8")))
        assert all(len(value) <= 40 for value in values.values() if isinstance(value, str)), path
    assert 9 <= len(leaves(json.loads((project / "metrics/summary.json").read_text(encoding="utf-8")))) <= 12
    absent = pd.read_csv(project / "data/ensemble/absent.csv")
    written = leaves(json.loads((project / "metrics/ensemble.json").read_text(encoding="utf-8")))
    assert len(absent)
    assert set(absent["metric"]) == {key for key in written if key.endswith("absent")}


def test_a_threshold_moves_nothing_that_cannot_depend_on_it(scratch):
    changed(scratch, "deferral", threshold=0.0)
    run(scratch, "dvc", "repro", "ensemble")
    moved = json.loads(run(scratch, "dvc", "metrics", "diff", "--json"))
    assert set(moved) == {"metrics/ensemble.json", "metrics/summary.json"}
    keys = moved["metrics/ensemble.json"]
    assert {"deferral.coverage", "deferral.coverage_low", "deferral.failure_cost", "deferral.threshold"} <= set(keys)
    assert not [key for key in keys if not key.startswith(("deferral.", "guarantee.", "verdict."))]
    decided_by_all = re.compile(
        r"deferral\.(n|n_\w+|cost\..*|reader\..*|ranking\..*|deciding_all_\w+|errors_deciding_all|out_of_distribution.*"
        r"|\w+_decides_all\.cost.*|calibration_of_decided\.all\..*|disagreement\.\w+\.(n|n_errors|error_rate.*)"
        r"|\w+\.accuracy_at_half.*|subgroups\..*gap_deciding_all.*|doctor_reads_all_cost|net_benefit_deciding_all.*)"
    )
    assert not [key for key in keys if decided_by_all.fullmatch(key)]
    table = run(scratch, "dvc", "metrics", "diff")
    assert max(map(len, table.splitlines())) < 160


def made_images(root: Path, n: int) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in ("NORMAL", "PNEUMONIA"):
            (root / split / label).mkdir(parents=True, exist_ok=True)
            for k in range(n):
                picture = Image.fromarray(rng.integers(0, 255, (70, 64), dtype=np.uint8))
                picture.save(root / split / label / f"{split}{label}{k}-a.png")


def test_an_image_added_reruns_prepare(scratch):
    made_images(scratch / "mine", 30)
    changed(scratch, "prepare", source="folder", root="mine", local=None)
    params = yaml.safe_load((scratch / "params.yaml").read_text(encoding="utf-8"))
    params["prepare"]["folder"]["patient"] = r"^(?P<patient>\w+)-"
    (scratch / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    run(scratch, "dvc", "repro", "prepare")
    assert "up to date" in run(scratch, "dvc", "status", "prepare")
    assert len(np.load(scratch / "data/prepare/images.npy")) == 120
    made_images(scratch / "mine", 31)
    assert "mine" in run(scratch, "dvc", "status", "prepare")


def of_test(project: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """The test split as `prepare` left it: its rows of the case table, and its images."""
    cases = pd.read_csv(project / "data/prepare/cases.csv", dtype={"image_id": str, "patient_id": str})
    there = (cases["split"] == "test").to_numpy()
    return cases[there].reset_index(drop=True), np.load(project / "data/prepare/images.npy")[there]


@pytest.mark.parametrize("kind", doubt.KINDS)
def test_an_image_is_judged_as_the_test_split_was_by_every_doubt(scratch, monkeypatch, kind):
    changed(scratch, "deferral", threshold=0.4, calibration="shipped")
    learn = doubt.learn
    forced = {"used": True, "weights": {kind: 2.0}}
    monkeypatch.setattr(doubt, "learn", lambda *a, **k: learn(*a, **k)._replace(**forced))
    monkeypatch.chdir(scratch)
    ensemble.main()
    system = prediction.load(scratch)
    assert list(system.policy.weights) == [kind]
    cases, images = of_test(scratch)
    scored = prediction.score(system, images[::-1]).cases[::-1].reset_index(drop=True)
    said = cases_of(scratch).loc[cases["image_id"]].reset_index()
    for name in ("y_prob", "certainty"):
        np.testing.assert_allclose(scored[name], said[name], atol=1e-5)
    for name in ("decision", "deferred", "reason", "out_of_distribution"):
        assert scored[name].tolist() == said[name].fillna("").tolist()
    plain = costs.certainty(scored["y_prob"], **system.policy.prices)
    assert (scored["certainty"] < plain - 0.01).any()  # the doubt has told on some


def test_a_system_that_is_no_longer_that_of_the_run_is_told(scratch, monkeypatch):
    monkeypatch.chdir(scratch)
    ensemble.main()
    prediction.check(prediction.load(scratch))
    weights = scratch / "data/train/densenet121/weights.safetensors"
    stored = load_file(weights)
    save_file(stored | {"head.bias": stored["head.bias"] + 1}, weights)
    with pytest.raises(ValueError, match=r"logit_densenet121 of image .* on record"):
        prediction.check(prediction.load(scratch))


def test_calibrated_at_a_site_an_image_is_read_by_the_update_from_all_its_cases(scratch, monkeypatch):
    changed(scratch, "deferral", threshold=0.4, calibration="site")
    monkeypatch.chdir(scratch)
    ensemble.main()
    system, (cases, images) = prediction.load(scratch), of_test(scratch)
    prediction.check(system)
    scored = prediction.score(system, images).cases
    calibrated = pd.read_csv("data/calibration/cases.csv").set_index("image_id").loc[cases["image_id"]]
    measured = json.loads(Path("metrics/site.json").read_text(encoding="utf-8"))["site"]
    for name in system.networks:
        update = measured[name]["update"]
        by_hand = expit(update["intercept"] + update["slope"] * calibrated[f"logit_{name}"])
        np.testing.assert_allclose(scored[f"y_prob_{name}"], by_hand, atol=1e-5)
    deciding = pd.DataFrame({name: logit(scored[f"y_prob_{name}"]) for name in system.networks})
    np.testing.assert_allclose(scored["y_prob"], policy.probability(system.policy, deciding), atol=1e-6)
    # The policy was made with updates from the other patients: near, but not these.
    cross_fitted = cases_of(scratch).loc[cases["image_id"], "y_prob"].to_numpy()
    assert 0 < np.abs(scored["y_prob"] - cross_fitted).mean() < 0.1


def test_a_batch_that_looks_different_is_said_to_and_no_more(project):
    system, (cases, images) = prediction.load(project), of_test(project)
    outcomes = {}
    for name, batch in {"as it is": images, "inverted": 255 - images}.items():
        scored = prediction.score(system, batch)
        outcomes[name] = likeness.compare(system, scored, cases["patient_id"])
    patient, names = pd.factorize(cases["patient_id"])
    assert (
        f"No difference from the cases calibrated on was shown in {len(names)} patients" in outcomes["as it is"].words
    )
    assert outcomes["inverted"].words.startswith(f"Looks different, harm unknown: these {len(names)} patients")
    assert all("one in twenty is called different" in outcome.words for outcome in outcomes.values())
    few = likeness.compare(system, scored, names[np.minimum(patient, 18)])
    assert few.words.startswith("Too few to say whether they look like the cases calibrated on: 19 patients")
    known = pd.read_csv(project / "data/prepare/cases.csv", dtype=str).query("split == 'val'")["patient_id"].iloc[0]
    mixed = likeness.compare(system, scored, cases["patient_id"].where(cases.index > 0, known))
    assert "Too few" not in mixed.words  # a patient calibrated on is left out of the comparison


def test_predict_writes_a_row_an_image_and_one_a_patient(project, tmp_path):
    cases, images = of_test(project)
    rows = []
    for row, image in zip(cases.head(8).itertuples(), images[:8], strict=True):
        Image.fromarray(image).save(tmp_path / f"{row.image_id}.png")
        rows.append(f"{row.image_id}.png,{row.patient_id}")
    (tmp_path / "torn.png").write_bytes((tmp_path / f"{cases['image_id'][0]}.png").read_bytes()[:60])
    rows.append(f"torn.png,{cases['patient_id'][0]}")
    (tmp_path / "new.csv").write_text("path,patient_id\n" + "\n".join(rows))
    printed = run(
        project, "python", "-m", "commands.predict", str(tmp_path / "new.csv"), "--out", str(tmp_path / "out/said.csv")
    )
    assert "could not be read: torn.png: not a readable image" in printed
    said = pd.read_csv(tmp_path / "out/said.csv", keep_default_na=False).set_index("image_id")
    before = cases_of(project).loc[cases["image_id"].head(8)]
    np.testing.assert_allclose(said["y_prob"].head(8).astype(float), before["y_prob"], atol=1e-6)
    assert said["decision"].head(8).astype(int).tolist() == before["decision"].tolist()
    assert said.loc["torn.png", ["answer", "y_prob", "decision"]].tolist() == ["to a doctor", "", ""]
    patients = pd.read_csv(tmp_path / "out/said_patients.csv").set_index("patient_id")
    assert patients["n_images"].sum() == 9
    assert patients.loc[cases["patient_id"][0], "answer"] == "to a doctor"
    batch = json.loads((tmp_path / "out/said_batch.json").read_text(encoding="utf-8"))
    assert (batch["images"]["n"], batch["n_unreadable"]) == (9, 1)
    assert batch["likeness"]["words"].startswith("Too few to say")
    assert run(project, "git", "status", "--porcelain") == ""


def test_what_predict_says_is_monitored(project, tmp_path):
    shutil.copytree(project, tmp_path / "in_use", symlinks=True)
    folder, (cases, images) = tmp_path / "in_use", of_test(project)
    (folder / "images").mkdir()
    for name, image in zip(cases["image_id"], images, strict=True):
        Image.fromarray(image).save(folder / f"images/{name}.png")
    command = ["python", "-m", "commands.predict", "images", "--out", "said.csv", "--time", "2026-03-01T09:00"]
    for path in (folder / "monitor").glob("*.csv"):
        path.unlink()  # of other tests
    run(folder, *command)
    run(folder, *command)  # the same images again count once
    logged = pd.read_csv(folder / "monitor/log.csv")
    said = pd.read_csv(folder / "said.csv")
    assert len(logged) == 2 * len(said)
    np.testing.assert_allclose(logged["certainty"].head(len(said)), said["certainty"], atol=1e-6)
    assert logged[["weights", "calibrator", "policy"]].drop_duplicates().shape == (1, 3)
    due = pd.read_csv(io.StringIO(run(folder, "python", "-m", "commands.label")), dtype=str)
    truth = cases.set_index(cases["image_id"] + ".png")["y_true"]
    due.assign(y_true=due["image_id"].map(truth)).to_csv(folder / "answers.csv", index=False)
    run(folder, "python", "-m", "commands.label", "answers.csv")
    shutil.copy(folder / "monitor/pipeline.yaml", folder / "monitor/dvc.yaml")
    run(folder, "dvc", "repro", "monitor/dvc.yaml")
    printed = run(folder, "python", "-m", "commands.monitor")
    assert f"Last looked at {2 * len(said)} images of {len(said)} patients" in printed
    card = (folder / "monitor/trust_card.md").read_text(encoding="utf-8")
    assert "Last looked at" in card
    assert "Last looked at" not in (folder / "plots/ensemble/trust_card.md").read_text(encoding="utf-8")
    run(folder, *command, "--time", "2026-03-02")  # a look does not make the run another one
    assert "is earlier than" in run(folder, *command, fails=True)


def test_somebody_else_takes_the_run_from_a_folder_and_reports_a_change(scratch, tmp_path):
    remote = ("dvc", "remote", "add", "--quiet", "--local", "--default", "team", str(tmp_path / "remote"))
    run(scratch, *remote)
    run(scratch, "dvc", "push", "--run-cache")
    clone = tmp_path / "clone"
    run(tmp_path, "git", "clone", "--quiet", str(scratch), str(clone))
    run(clone, *remote)
    run(clone, "dvc", "pull", "--run-cache")
    shutil.copy(scratch / "data/raw/local.csv", clone / "data/raw")  # one's own data go neither with git nor with DVC
    assert "Data and pipelines are up to date." in run(clone, "dvc", "repro", "--dry")
    for artifact in yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["artifacts"].values():
        assert (clone / artifact["path"]).read_bytes() == (scratch / artifact["path"]).read_bytes()

    changed(clone, "deferral", threshold=0.2)
    run(clone, "dvc", "repro", "ensemble")
    printed = run(clone, sys.executable, "-m", "commands.pr_report", "HEAD")
    assert printed.startswith("### What this does to the figures, against ")
    assert (clone / "pr_report/report.md").read_text(encoding="utf-8") in printed
    pictures = re.findall(r"!\[.+\]\((.+)\)", printed)
    assert "ensemble_net_benefit.png" in pictures
    assert {(clone / "pr_report" / picture).read_bytes()[:8] for picture in pictures} == {b"\x89PNG\r\n\x1a\n"}


def test_predict_without_trained_members_says_which_command_makes_them(tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    for package in ("commands", "tmv_lib"):
        shutil.copytree(ROOT / package, tmp_path / package)
    printed = run(tmp_path, "python", "-m", "commands.predict", "images", "--out", "said.csv", fails=True)
    assert "error: data/ensemble/policy.json: no such file; `make repro` trains the members" in printed
    assert not (tmp_path / "said.csv").exists()


def test_the_transcript_of_the_readme_can_be_typed_as_it_stands(scratch):
    """Its figures are the default run's; here every command runs, and the same question has the same answer."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Ask again")[2]
    block = re.findall(r"```\n(.*?)```", text, flags=re.DOTALL)[0]
    environment, *commands = re.findall(r"^\$ (.*)$", block, flags=re.MULTILINE)
    assert environment == "source .venv/bin/activate"
    printed, coverages = {}, []
    for command in commands:
        printed[command] = run(scratch, "bash", "-c", command)
        figures = json.loads((scratch / "metrics/ensemble.json").read_text(encoding="utf-8"))
        coverages.append(figures["deferral"]["coverage"])
        if command.startswith("git checkout params.yaml"):
            assert not run(scratch, "git", "diff", "--name-only", "params.yaml")  # no price of before spoils the loop
    (table,) = (text for command, text in printed.items() if command.startswith("dvc exp show"))
    rows = dict(re.findall(r"\[(t0\.\d)\] +(\S+)", table))  # the first column of figures is the coverage
    assert set(rows) == {"t0.3", "t0.5", "t0.9"}
    assert float(rows["t0.5"]) == pytest.approx(coverages[0], rel=1e-4)  # as at first, when nothing else was changed
    assert run(scratch, "git", "log", "-1", "--format=%s").strip() == "Threshold 0.5"
    assert (scratch / "dvc_plots/index.html").is_file()
