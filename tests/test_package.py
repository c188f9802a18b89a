"""The installed package: what the wheel holds, and that it runs in a folder that holds nothing but a CSV."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pandas as pd
import pytest
import yaml
from test_dependencies import closure
from test_evaluate import predictions

from tmv_lib import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NAMES = {"yaml": "pyyaml", "ruamel": "ruamel.yaml", "PIL": "pillow", "sklearn": "scikit-learn"}  # import: package


@pytest.fixture
def installed(tmp_path) -> Path:
    """A folder laid out as the wheel is, by the table that lays out the wheel."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/tmv_lib").mkdir()
    for part in (ROOT / "tmv_lib").iterdir():
        if part.suffix == ".py":  # files are copied: a module finds its folder by its own path
            (tmp_path / "site/tmv_lib" / part.name).write_bytes(part.read_bytes())
        elif part.name != "__pycache__":
            subprocess.run(["cp", "-r", part, tmp_path / "site/tmv_lib"], check=True)
    for source, target in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"].items():
        (tmp_path / "site" / target).parent.mkdir(exist_ok=True)
        subprocess.run(["cp", "-r", ROOT / source, tmp_path / "site" / target], check=True)
    (tmp_path / "site/torch.py").write_text("raise ModuleNotFoundError('no torch', name='torch')", encoding="utf-8")
    (tmp_path / "site/dvc.py").write_text("raise ModuleNotFoundError('no dvc', name='dvc')", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    return tmp_path


def tmv(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed / "site"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tmv_lib", *arguments]
    folder = installed / "empty"
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_evaluate_answers_in_an_empty_folder_and_its_own_knobs_win(installed):
    predictions(steepness=2).to_csv(installed / "empty/mine.csv", index=False)
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["site"] |= {"draws": 20, "patients": [25]}
    for section in params.values():
        if "resamples" in section:
            section["resamples"] = 100
    packaged = installed / "site/tmv_lib/project/params.yaml"
    packaged.write_text(yaml.safe_dump(params), encoding="utf-8")  # quicker
    done = tmv(installed, "evaluate", "mine.csv", "--out", "report")
    assert done.returncode == 0, done.stderr
    report = (installed / "empty/report/report.html").read_text(encoding="utf-8")
    assert "tmv evaluate mine.csv --out report" in report
    assert f"Version {__version__}" in report
    assert sorted(path.name for path in (installed / "empty").iterdir()) == ["mine.csv", "report"]

    params["calibration"]["bins"] = 1
    (installed / "empty/params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    done = tmv(installed, "evaluate", "mine.csv", "--out", "again")
    assert done.returncode == 1
    assert "params.yaml: calibration.bins is 1" in done.stderr


def test_commands_are_those_of_the_folder_of_commands(installed):
    done = tmv(installed)
    for file in (ROOT / "commands").glob("[!_]*.py"):
        assert f"\n  {file.stem} " in done.stdout
    (installed / "site/tmv_lib/project/commands/mine.py").write_text('"""Mine."""\ndef main(): print("it ran")\n')
    assert "Mine." in tmv(installed).stdout
    assert tmv(installed, "mine").stdout == "it ran\n"


def test_what_is_missing_is_one_line(installed):
    done = tmv(installed, "nope")
    assert done.returncode == 1
    assert done.stderr.startswith("tmv: no command nope; there are accept, answers, ")
    done = tmv(installed, "predict", "films", "--out", "said.csv")
    assert done.returncode == 1
    assert done.stderr.startswith("error: tmv predict needs the package dvc: pip install 'trustworthy-medical-vision[")
    done = tmv(installed, "plan")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: protocol.yaml: no such file; begin with a copy of {installed}")
    done = tmv(installed, "evaluate", "none.csv", "--out", "report")
    assert done.returncode == 1
    assert done.stderr.startswith("error: none.csv: ")
    assert done.stderr.count("\n") == 1


def test_a_black_box_is_monitored_in_a_folder_without_dvc(installed):
    folder = installed / "empty"
    ids = [f"i{k}" for k in range(300)]
    decisions = pd.DataFrame({"image_id": ids, "patient_id": ids, "time": "2026-01-01T00:00:00", "version": "v1"})
    decisions.assign(decision=[k % 2 for k in range(300)]).to_csv(folder / "decisions.csv", index=False)
    assert "300 rows appended" in tmv(installed, "log", "decisions.csv").stdout
    (folder / "due.csv").write_text(tmv(installed, "label").stdout, encoding="utf-8")
    due = pd.read_csv(folder / "due.csv")
    wrong = due.assign(y_true=[1 - int(image[1:]) % 2 for image in due["image_id"]])
    wrong.to_csv(folder / "answers.csv", index=False)
    assert f"{len(due)} new labels" in tmv(installed, "label", "answers.csv").stderr
    assert tmv(installed, "monitor").stdout.startswith("Stop using it")


def test_what_evaluate_imports_is_what_the_package_asks_for():
    """Both ways: a stage that comes to import torch, and a dependency that nothing imports any longer."""
    stages = ("calibration", "site", "baseline", "diversity", "uncertainty", "ensemble")
    scripts = [ROOT / "commands/evaluate.py", ROOT / "tmv_lib/__main__.py"]
    files = set().union(*(closure(path) for path in [*scripts, *(ROOT / f"stages/{stage}.py" for stage in stages)]))
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
    outside = {name.split(".")[0] for name in modules} - sys.stdlib_module_names - {"tmv_lib", "stages", "commands"}
    assert {NAMES.get(name, name) for name in outside} == set(PROJECT["project"]["dependencies"])


def test_the_package_and_the_pipeline_ask_for_the_same():
    lines = (ROOT / "requirements.in").read_text(encoding="utf-8").splitlines()
    wanted = {line.split("#")[0].split("==")[0].strip() for line in lines} - {""}
    extras = PROJECT["project"]["optional-dependencies"]
    assert set(PROJECT["project"]["dependencies"]) | set(extras["pipeline"]) == wanted


def test_make_evaluate_installs_what_the_package_asks_for():
    lines = (ROOT / "requirements-evaluate.in").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line[0] not in "#-"] == PROJECT["project"]["dependencies"]


@pytest.mark.parametrize("target", ["evaluate", "predict"])
def test_make_says_what_is_not_given_before_it_installs_anything(tmp_path, target):
    command = ["make", "--no-print-directory", "-f", str(ROOT / "Makefile"), target]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "is not given: make help says what each command takes" in done.stderr
    assert not list(tmp_path.iterdir())


def test_help_lists_what_make_can_do():
    done = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    listed = {line.split()[0] for line in done.stdout.splitlines()}
    text = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", "")
    assert listed == set(text.split(".PHONY:")[1].split("\n")[0].split())
