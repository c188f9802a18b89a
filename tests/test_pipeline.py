"""The pipeline end to end, through DVC, on a tiny phantom and two small networks."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

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


def tiny(params: dict) -> dict:
    """The default parameters, made small."""
    params["prepare"] |= {"size": 64}
    params["prepare"]["phantom"]["patients"] = {"train": 60, "val": 30, "cal": 30, "test": 40}
    for member, architecture in zip(params["members"].values(), ("resnet18", "mobilenet_v3_small"), strict=True):
        member["architecture"] = architecture
    params["train"]["epochs"] = params["reference"]["epochs"] = 2
    params["explanations"]["sanity_cases"] = 8
    params["site"] |= {"permutations": 99, "draws": 20, "patients": [10, 20]}
    for section in params.values():
        if "resamples" in section:
            section["resamples"] = 100
    return params


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    for name in TRACKED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, folder / name)
    for name in ("data/raw", "data/weights"):
        (folder / name).mkdir(parents=True)
        shutil.copy(ROOT / name / "README.md", folder / name)
    params = tiny(yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8")))
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    run(folder, "git", "init", "--quiet")
    commit(folder, "as downloaded")
    run(folder, "dvc", "repro")
    commit(folder, "what came out")
    return folder


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


def test_metrics_of_one_name_do_not_stand_in_two_files(project):
    keys = [
        key for path in (project / "metrics").glob("*.json") for key in json.loads(path.read_text(encoding="utf-8"))
    ]
    assert len(keys) == len(set(keys))


def test_nothing_is_left_to_do(project):
    assert "up to date" in run(project, "dvc", "status")


def test_a_threshold_change_reruns_one_stage_and_defers_a_superset(project):
    before = cases_of(project)
    printed = run(project, "dvc", "exp", "run", "--set-param", "deferral.threshold=0.9")
    assert [line for line in printed.splitlines() if line.startswith("Running stage")] == ["Running stage 'ensemble':"]
    after = cases_of(project)
    assert (after["deferred"] >= before["deferred"]).all()
    assert (after["deferred"] == (after["kappa"] < 0.9)).all()
    assert "deferral.threshold" in run(project, "dvc", "metrics", "diff")
    run(project, "git", "checkout", "--quiet", "--", ".")
    run(project, "dvc", "checkout")


def test_the_diagrams_need_no_network(project):
    run(project, "dvc", "plots", "show")
    page = (project / "dvc_plots/index.html").read_text(encoding="utf-8")
    assert "vega" in page
    for host in ("cdn.jsdelivr.net", "unpkg.com"):
        assert f'src="https://{host}' not in page


def test_repeating_everything_gives_the_same_bytes(project):
    before = (project / "dvc.lock").read_bytes()
    shutil.rmtree(project / "checkpoints")  # or training would only be read back
    run(project, "dvc", "repro", "--force")
    assert (project / "dvc.lock").read_bytes() == before
    assert run(project, "git", "status", "--porcelain") == ""


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
    assert not (scratch / "metrics/ensemble.json").exists()


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
    changed(scratch, "prepare", source="folder", root="mine")
    params = yaml.safe_load((scratch / "params.yaml").read_text(encoding="utf-8"))
    params["prepare"]["folder"]["patient"] = r"^(?P<patient>\w+)-"
    (scratch / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    run(scratch, "dvc", "repro", "prepare")
    assert "up to date" in run(scratch, "dvc", "status", "prepare")
    assert len(np.load(scratch / "data/prepare/images.npy")) == 120
    made_images(scratch / "mine", 31)
    assert "mine" in run(scratch, "dvc", "status", "prepare")
