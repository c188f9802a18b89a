"""Copies of the project with other parameters, in which DVC runs what a study asks for.

A copy shares the cache of the project, so that what the project has run is not run again.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

PROJECT = ["stages", "tmv_lib", "networks", "data", "dvc.yaml", ".dvc", ".dvcignore"]


def lay_out(folder: Path, params: dict[str, Any]) -> None:
    """Bring a copy of the project with these parameters up to date in `folder`; what DVC has done there stays."""
    copy_project(folder)
    shutil.copytree("data/weights", folder / "data/weights", dirs_exist_ok=True)
    root = os.path.relpath(params["prepare"]["root"], folder)
    local = params["prepare"] if params["prepare"]["source"] == "phantom" else params["prepare"] | {"root": root}
    written = yaml.safe_dump(params | {"prepare": local}, sort_keys=False)
    (folder / "params.yaml").write_text(written, encoding="utf-8")
    # The copy is no git repository, and lies in one that ignores it.
    cache = dvc("cache", "dir", folder=Path(), quiet=True).strip()
    (folder / ".dvc/config.local").write_text(
        f"[core]\n    no_scm = true\n[cache]\n    dir = {cache}\n", encoding="utf-8"
    )


def copy_project(folder: Path) -> None:
    """Bring the files of the project's pipeline up to date in `folder`; what else lies there stays."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *PROJECT],
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(os.path.isfile, listed.stdout.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, folder / name)


def dvc(*arguments: str, folder: Path, quiet: bool = False) -> str:
    """Run DVC of this environment in a folder; what it printed where it is quiet. Ends with DVC's code if it fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PATH": path},
        check=False,
        text=True,
        stdout=subprocess.PIPE if quiet else None,
    )
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout or ""
