"""DVC does not follow imports: what a stage declares must be what its script really imports."""

import ast
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
MONITOR = yaml.safe_load((ROOT / "monitor/pipeline.yaml").read_text(encoding="utf-8"))["stages"]


def imported(path: Path) -> set[Path]:
    """Files of this repository that a Python file imports directly."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found |= {file for name in names if (file := ROOT / f"{name.replace('.', '/')}.py").is_file()}
    return found


def closure(path: Path) -> set[Path]:
    """A file and everything of this repository that it imports, directly or not."""
    done: set[Path] = set()
    todo = {path}
    while todo:
        done |= todo
        todo = {file for known in todo for file in imported(known)} - done
    return done


def declared(stage: dict) -> set[str]:
    return {name for name in stage.get("do", stage)["deps"] if name.startswith(("stages/", "tmv_lib/"))}


@pytest.mark.parametrize("name", [*STAGES, *MONITOR])
def test_declared_code_is_the_import_closure(name):
    """A stage depends on its script and on whole wings: what a wing's other modules hold may change with it."""
    script = ROOT / f"stages/{name}.py"
    wings = {str(file.parent.relative_to(ROOT)) for file in closure(script) - {script}}
    assert declared((STAGES | MONITOR)[name]) == {f"stages/{name}.py", *wings}


@pytest.mark.parametrize("name", STAGES)
def test_key_script_and_section_bear_one_name(name):
    stage = STAGES[name].get("do", STAGES[name])
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    assert stage["cmd"].startswith(f"python -m stages.{name}")
    assert name in params
    assert name in stage["params"]


def test_only_the_stages_that_run_the_network_import_torch():
    with_torch = {
        name
        for name in STAGES
        if any("import torch" in file.read_text(encoding="utf-8") for file in closure(ROOT / f"stages/{name}.py"))
    }
    assert with_torch == {"train", "reference", "explanations", "stability"}


def test_the_deferral_section_belongs_to_ensemble_alone():
    users = [name for name, stage in STAGES.items() if "deferral" in stage.get("do", stage)["params"]]
    assert users == ["ensemble"]


def test_no_command_of_a_stage_holds_text_of_a_user():
    """What stands in braces is text of params.yaml, and DVC hands the line to a shell."""
    for stage in STAGES.values():
        assert "$" not in stage.get("do", stage)["cmd"]


def test_the_viewer_binds_to_this_computer_alone():
    config = tomllib.loads((ROOT / ".streamlit/config.toml").read_text(encoding="utf-8"))
    assert config["server"]["address"] == "localhost"
    assert config["browser"]["gatherUsageStats"] is False


@pytest.mark.parametrize("path", sorted(ROOT.glob("requirements*.txt")), ids=lambda path: path.name)
def test_every_pin_has_hashes_and_stands_for_what_is_asked(path):
    """pip refuses a file without its hash as soon as one pin has one; a pin by hand is found here."""
    pins = path.read_text(encoding="utf-8").replace("\\\n", "").splitlines()[1:]
    assert pins
    assert not [
        pin
        for pin in pins
        if not re.fullmatch(r"[\w.-]+(\[\w,]+\])?==\S+( ; .+?)?(\s+--hash=sha256:[0-9a-f]{64})+", pin)
    ]
    asked = path.with_suffix(".in").read_text(encoding="utf-8").splitlines()
    names = {re.split(r"[<=> \[]", line)[0].lower().replace(".", "-") for line in asked if line and line[0] not in "#-"}
    assert names <= {re.split(r"==|\[", pin)[0].lower().replace(".", "-") for pin in pins}


@pytest.mark.parametrize(
    ("does", "code", "told"),
    [
        ("exit 0", 0, "pip-audit: no known vulnerability"),
        ("echo 'torch 1.0 CVE-1'; exit 1", 2, "torch 1.0 CVE-1"),
        ("echo 'no network' >&2; exit 1", 0, "pip-audit: its data cannot be reached, nothing was audited"),
    ],
)
def test_a_known_vulnerability_fails_and_no_network_does_not(tmp_path, does, code, told):
    for name in (".installed", ".installed-dev"):
        (tmp_path / name).touch()
    (tmp_path / "pip-audit").write_text(f"#!/bin/sh\n{does}\n", encoding="utf-8")
    (tmp_path / "pip-audit").chmod(0o755)
    command = ["make", "--no-print-directory", "audit", f"BIN={os.path.relpath(tmp_path, ROOT)}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, f"{told}\n")
