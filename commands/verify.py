"""Is what lies on disk whole? `make verify` says what is damaged, and the command that mends it.

DVC takes a cached file for what its name says, and its lock files for readable: a kill at the wrong moment, or a bad
disk, makes both false.
"""

import hashlib
import json
import sys
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from dvc.utils.strictyaml import load
from tqdm import tqdm

from tmv_lib.pipeline.stage import run

CHUNK = 2**20
LEFT = "part of a file that a killed run left: remove it"


def main() -> None:
    problems = [*of_lock(Path("dvc.lock")), *of_running(Path(".dvc/tmp/rwlock")), *of_parts(Path())]
    if not problems:
        problems = of_cache(Path(Repo(".").cache.local_cache_dir))
    for problem in problems:
        print(problem)
    if problems:
        sys.exit(1)
    print("dvc.lock can be read, every cached file is what its name says, and no part of a file was left behind")


def of_lock(lock: Path) -> list[str]:
    """What is wrong with the lock file."""
    try:
        load(str(lock), schema=COMPILED_LOCKFILE_SCHEMA)  # as DVC reads it: a kill cuts it where YAML can still be read
    except (FileNotFoundError, DvcException) as error:
        state = "no such file" if isinstance(error, FileNotFoundError) else "empty or torn by a kill"
        return [f"{lock}: {state}: `git checkout {lock}` brings back the last one committed"]
    return []


def of_running(lock: Path) -> list[str]:
    """What is wrong with the file in which DVC notes who reads and writes what; no run has it where there is none."""
    try:
        if lock.exists():
            json.loads(lock.read_text(encoding="utf-8"))
    except ValueError:
        return [f"{lock}: torn by a kill, and no run starts: `rm {lock}` once no other run goes on"]
    return []


def of_cache(cache: Path) -> list[str]:
    """Every file of the cache whose content has another MD5 than its name says."""
    files = [file for file in sorted((cache / "files/md5").glob("??/*")) if file.is_file()]
    if not files:
        return [f"{cache}: holds no file: `make repro` fills it, or `dvc pull` where there is a remote"]
    parts = [file for file in files if file.name.startswith(".")]
    whole = tqdm([file for file in files if file not in parts], desc="cache", leave=False)
    broken = [file for file in whole if digest(file) != file.parent.name + file.stem]
    return [
        *[f"{file}: damaged: remove it, then `make repro`, or `dvc pull` where there is a remote" for file in broken],
        *[f"{file}: {LEFT}" for file in parts],
    ]


def of_parts(root: Path) -> list[str]:
    """Parts of files that a killed run left behind."""
    parts = [
        file for folder in ("data", "metrics", "plots", "checkpoints") for file in (root / folder).rglob(".*.part*")
    ]
    return [f"{file}: {LEFT}" for file in sorted(parts)]


def digest(file: Path) -> str:
    """The MD5 of a file, which DVC names it by."""
    made = hashlib.md5(usedforsecurity=False)
    with file.open("rb") as content:
        while part := content.read(CHUNK):
            made.update(part)
    return made.hexdigest()


if __name__ == "__main__":
    run(main)
