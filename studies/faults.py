"""What a kill, a full disk or a second run does to the pipeline.

Run by `make test-faults`; writes docs/faults.csv. A tiny phantom with two small networks is run by DVC undisturbed,
then again from nothing while the whole process group is killed at random moments, until `KILLS` kills have met it and a
run has come to its end: every output must have the undisturbed run's bytes, and nothing else may be left. The same for
the commands. Then single faults, each with what must be said of it.
"""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import yaml

from commands.copies import copy_project
from tmv_lib.pipeline.files import write_csv

KILLS, OF_COMMANDS = 42, 5
# Between the start of a run and its kill: mostly soon, and now and then late, or no long stage would ever end.
SOON, LATE = (0.3, 20.0), (20.0, 60.0)
OUTPUTS = ("data", "metrics", "plots")
NAMES = ("100 % with blanks, 'quotes' and Röntgen",)
COMMANDS: dict[str, tuple[list[str], tuple[str, ...]]] = {  # arguments, and what is made
    "evaluate": (["mine.csv", "--out", "evaluated"], ("evaluated",)),
    "predict": (["images", "--out", "said.csv"], ("said.csv", "said_patients.csv", "said_batch.json")),
}
MEGABYTES = 1  # of the disk that is too small


def main() -> int:
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        first = laid_out(Path(folder) / "project")
        run(first, "dvc", "repro")
        run(first, "git", "add", "--all")
        run(first, "git", "commit", "--quiet", "--message", "what came out")
        studies: list[Callable[[], dict[str, Any]]] = [
            partial(killed_pipeline, first, random.Random(0)),
            *(partial(killed_command, first, random.Random(1), name) for name in COMMANDS),
            *(partial(single, fault, first, Path(folder) / "spoiled") for fault in FAULTS),
            *(partial(odd_place, first, Path(folder) / name) for name in NAMES),
        ]
        for study in studies:
            rows.append(study())
            print(rows[-1], file=sys.stderr)
            write_csv("docs/faults.csv", pd.DataFrame(rows))
    return int(not all(found["held"] for found in rows))


def row(fault: str, problem: str, *, times: int = 1) -> dict[str, Any]:
    """A row of the table: what was done, how often, and what did not hold, "" where all did."""
    return {"fault": fault.rstrip("."), "times": times, "held": not problem, "problem": problem}


def tiny(params: dict[str, Any]) -> dict[str, Any]:
    """The default parameters, made small."""
    params["prepare"]["size"] = 64
    params["prepare"]["phantom"]["patients"] = {"train": 60, "val": 30, "cal": 30, "test": 60}
    for member, architecture in zip(params["members"].values(), ("resnet18", "mobilenet_v3_small"), strict=True):
        member["architecture"] = architecture
    params["train"]["epochs"] = params["reference"]["epochs"] = 2
    params["explanations"]["sanity_cases"] = 8
    params["site"] |= {"draws": 20, "patients": [10, 20]}
    for section in params.values():
        if "resamples" in section:
            section["resamples"] = 100
    return params


def laid_out(folder: Path) -> Path:
    """A copy of the project with small parameters and a git repository and a cache of its own."""
    copy_project(folder)
    for name in ("commands", "data/raw", "data/weights"):
        shutil.copytree(name, folder / name, dirs_exist_ok=True)
    for name in ("card.yaml", ".gitignore"):
        shutil.copy(name, folder / name)
    params = tiny(yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8")))
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    run(folder, "git", "init", "--quiet")
    for name in ("user.name", "user.email"):
        run(folder, "git", "config", name, "faults@localhost")
    run(folder, "git", "add", "--all")
    run(folder, "git", "commit", "--quiet", "--message", "as downloaded")
    return folder


def copied(first: Path, folder: Path) -> Path:
    """A copy of a project that a fault may spoil."""
    shutil.rmtree(folder, ignore_errors=True)
    return Path(shutil.copytree(first, folder, symlinks=True))


def started(folder: Path, *command: str, **options: Any) -> subprocess.Popen[str]:
    """A command of this environment in a folder, in a process group of its own."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True, **options
    )


def run(folder: Path, *command: str, fails: bool = False) -> str:
    """What a command printed. Raises RuntimeError where it ends otherwise than it must."""
    process = started(folder, *command)
    printed = "".join(process.communicate())
    if (process.returncode != 0) != fails:
        raise RuntimeError(f"{' '.join(command)} in {folder}: exit {process.returncode}\n{printed[-2000:]}")
    return printed


def outputs(folder: Path) -> dict[str, str]:
    """The digest of every file that the pipeline left, and of its lock file."""
    files = [path for name in OUTPUTS for path in (folder / name).rglob("*") if path.is_file()]
    return {
        str(path.relative_to(folder)): hashlib.md5(path.read_bytes()).hexdigest()
        for path in [*files, folder / "dvc.lock"]
    }


def differences(found: dict[str, str], right: dict[str, str]) -> str:
    """Files that are missing, too many or different."""
    odd = sorted(name for name in found.keys() | right.keys() if found.get(name) != right.get(name))
    return f"{len(odd)} files differ: {', '.join(odd[:3])}" if odd else ""


def disturbed(
    folder: Path,
    rng: random.Random,
    *command: str,
    moments: list[tuple[float, float]],
    most: int,
    made: tuple[str, ...] = (),
) -> int:
    """Run a command, its whole group killed at random moments, until it ends by itself; how often it was killed.

    made: what it makes and does not make twice, removed before each start: a kill may come after it is whole.
    """
    kills = 0
    while True:
        removed(folder, made)
        print(f"{' '.join(command)}: {kills} kills so far", file=sys.stderr)
        process = started(folder, *command)
        try:
            printed = "".join(process.communicate(timeout=rng.uniform(*rng.choice(moments)) if kills < most else None))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
            continue
        if process.returncode == 0:
            return kills
        mend_lock(folder, printed)


def mend_lock(folder: Path, printed: str) -> None:
    """Do what `make verify` says of a lock file that a kill has torn; any other failure is one."""
    said = "".join(started(folder, "python", "-m", "commands.verify").communicate())
    told: dict[str, tuple[str, ...]] = {"git checkout dvc.lock": ("git", "checkout", "--quiet", "dvc.lock")}
    told |= {"rm .dvc/tmp/rwlock": ("rm", ".dvc/tmp/rwlock")}
    mended = [run(folder, *command) for words, command in told.items() if f"`{words}`" in said]
    if not mended:
        raise RuntimeError(f"{printed[-3000:]}\n{said}")


def killed_pipeline(first: Path, rng: random.Random) -> dict[str, Any]:
    """The whole pipeline, killed at random moments again and again."""
    right, kills, problem = outputs(first), 0, ""
    while kills < KILLS and not problem:
        folder = copied(first, first.with_name("killed"))
        for name in (*OUTPUTS, ".dvc/cache", ".dvc/tmp", "checkpoints", "dvclive"):
            shutil.rmtree(folder / name, ignore_errors=True)
        run(folder, "git", "checkout", "--quiet", "data")
        kills += disturbed(folder, rng, "dvc", "repro", moments=[SOON, SOON, SOON, LATE], most=KILLS)
        problem = differences(outputs(folder), right)
    return row("SIGKILL of `dvc repro` at random moments", problem, times=kills)


def killed_command(first: Path, rng: random.Random, name: str) -> dict[str, Any]:
    """A command on what the pipeline left, killed at random moments."""
    arguments, made = COMMANDS[name]
    shutil.copy(first / "data/train/densenet121/predictions.csv", first / "mine.csv")
    (first / "images").mkdir()
    shutil.copy("docs/overlays.png", first / "images/one.png")
    command, kills, problem = ["python", "-m", f"commands.{name}", *arguments], 0, ""
    run(first, *command)
    right = contents(first, made)
    while kills < OF_COMMANDS and not problem:
        kills += disturbed(first, rng, *command, moments=[(0.3, 25.0)], most=KILLS, made=made)
        problem = differences(contents(first, made), right)
    left = [path.name for path in first.glob(".evaluated.*.part")]  # a killed process cannot remove its own
    removed(first, (*made, *left, "images", "mine.csv", "monitor/log.csv", "monitor/reference.csv"))
    return row(f"SIGKILL of `make {name}` at random moments", problem, times=kills)


def removed(folder: Path, names: tuple[str, ...]) -> None:
    """Remove files and folders where they are there."""
    for name in names:
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).unlink(missing_ok=True)


def single(fault: Callable[[Path], str], first: Path, folder: Path) -> dict[str, Any]:
    """One fault in a copy of the project; what ends otherwise than it must is its problem."""
    try:
        problem = fault(copied(first, folder))
    except RuntimeError as error:
        problem = str(error)[-300:]
    return row(fault.__doc__ or "", problem)


def contents(folder: Path, made: tuple[str, ...]) -> dict[str, str]:
    """The digest of every file of these, folders included."""
    files = [file for path in made for file in [folder / path, *(folder / path).rglob("*")] if file.is_file()]
    return {str(file.relative_to(folder)): hashlib.md5(file.read_bytes()).hexdigest() for file in files}


def lacking(printed: str, *words: str) -> str:
    """What should have been said and was not, or a traceback."""
    if "Traceback" in printed:
        return f"a traceback: {printed[-200:]}"
    missing = [word for word in words if word not in printed]
    return f"not said: {missing[0]!r}; said: {printed[-200:]}" if missing else ""


def second_run(folder: Path) -> str:
    """A second `dvc repro` beside a running one."""
    (folder / "params.yaml").write_text(
        (folder / "params.yaml").read_text().replace("threshold: null", "threshold: 0.5")
    )
    one = started(folder, "dvc", "repro", "--force")
    time.sleep(8)
    said = run(folder, "dvc", "repro", fails=True)
    os.killpg(one.pid, signal.SIGTERM)
    one.communicate()
    return lacking(said, "lock")


def damaged_cache(folder: Path) -> str:
    """A byte of a cached file changed."""
    file = next(path for path in sorted((folder / ".dvc/cache/files/md5").glob("??/*")) if path.suffix != ".dir")
    file.chmod(0o644)
    file.write_bytes(b"x" + file.read_bytes()[1:])
    return lacking(
        run(folder, "python", "-m", "commands.verify", fails=True), str(file.name), "damaged", "`make repro`"
    )


def empty_lock(folder: Path) -> str:
    """An empty lock file."""
    (folder / "dvc.lock").write_text("")
    said = run(folder, "python", "-m", "commands.verify", fails=True)
    run(folder, "git", "checkout", "--quiet", "dvc.lock")
    return lacking(said, "`git checkout dvc.lock`") or lacking(run(folder, "dvc", "status", "dvc.yaml"), "up to date")


def damaged_checkpoint(folder: Path) -> str:
    """Every checkpoint cut in half."""
    right = outputs(folder)
    for file in (folder / "checkpoints").rglob("*.pt"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    said = run(folder, "dvc", "repro", "--force", "train", "reference")
    return lacking(said, "damaged", "training begins anew") or differences(outputs(folder), right)


def edited_policy(folder: Path) -> str:
    """A policy edited by hand, then `make predict`."""
    (folder / "images").mkdir()
    shutil.copy("docs/overlays.png", folder / "images/one.png")
    policy = folder / "data/ensemble/policy.json"
    policy.chmod(0o644)
    policy.write_text(policy.read_text().replace('"threshold": 0.', '"threshold": 0.0', 1))
    said = run(folder, "python", "-m", "commands.predict", "images", "--out", "said.csv", fails=True)
    return lacking(said, "ensemble", "not what its last run left") or str([*folder.glob("said*")] or "")


def hostile_member(folder: Path) -> str:
    """A member named `x; touch PWNED; true`."""
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["members"]["x; touch PWNED; true"] = params["members"]["resnet50"]
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    said = run(folder, "dvc", "repro", fails=True)
    return "the shell ran it" if (folder / "PWNED").exists() else lacking(said)


def full_disk(folder: Path) -> str:
    """A disk that is full."""
    small = folder / "data/prepare"
    shutil.rmtree(small)
    small.mkdir()
    mounted = f"mount -t tmpfs -o size={MEGABYTES}m tmpfs '{small}'"
    command = f"{mounted} && python -m stages.prepare; status=$?; ls -A '{small}'; exit $status"
    process = started(folder, "unshare", "--mount", "sh", "-c", command)
    printed = "".join(process.communicate())
    if process.returncode == 0:
        return "it ended well"
    return lacking(printed, "data/prepare/", "cannot be written") or ("a part is left" if ".part" in printed else "")


FAULTS: list[Callable[[Path], str]] = [
    second_run,
    damaged_cache,
    empty_lock,
    damaged_checkpoint,
    edited_policy,
    hostile_member,
    full_disk,
]


def odd_place(first: Path, folder: Path) -> dict[str, Any]:
    """The pipeline from nothing in a folder of this name: the same bytes."""
    copied(first, folder)
    for name in (".dvc/cache", "metrics"):
        shutil.rmtree(folder / name)
    run(folder, "dvc", "repro", "--force")
    return row(f"a folder named {folder.name!r}", differences(outputs(folder), outputs(first)))


if __name__ == "__main__":
    sys.exit(main())
