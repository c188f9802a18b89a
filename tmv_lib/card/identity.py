"""Which run a card is about: version, commit, digests of data and weights, and when the data were first recorded.

A card lies in the commit that records it and so cannot name that one. It names the last commit that touched what made
it, and says so where the working tree held changes that no commit has.
"""

import hashlib
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tmv_lib import __version__
from tmv_lib.card.words import NOT_MEASURED

MADE_BY = ("stages", "tmv_lib", "networks", "params.yaml", "card.yaml")  # a change of these makes another card
DATA = "data/prepare/"


class Identity(NamedTuple):
    """What tells one run from another; "" where git does not know.

    commit, committed: the last commit that touched `MADE_BY`, and its date. changed: whether the working tree held
    changes of these beside it. data, weights: MD5 by file and by member, as DVC knows them; no weights where the
    members are known by their predictions. recorded: date of the commit that first had all these data in dvc.lock.
    """

    version: str
    commit: str
    committed: str
    changed: bool
    data: dict[str, str]
    recorded: str
    weights: dict[str, str]

    def words(self) -> list[str]:
        """The same in sentences."""
        commit = f"{self.commit} of {self.committed}" if self.commit else f"{NOT_MEASURED}: no commit holds it"
        changed = ", and changes beside it that no commit holds" if self.changed else ""
        recorded = self.recorded or f"{NOT_MEASURED}: no commit of dvc.lock holds them yet"
        lacking = "not applicable because the members are known by their predictions"
        return [
            f"Version {self.version}. Last commit of what made this card: {commit}{changed}.",
            f"Data (MD5): {_listed(self.data) or NOT_MEASURED}; first recorded: {recorded}.",
            f"Weights (MD5): {_listed(self.weights) or lacking}.",
        ]


def identify(root: Path, digests: Mapping[str, str]) -> Identity:
    """The identity of the run below root. digests: MD5 by path of the files that the card was made from."""
    data = {path.removeprefix(DATA): md5 for path, md5 in digests.items() if path.startswith(DATA)}
    weights = {path.split("/")[2]: md5 for path, md5 in digests.items() if path.endswith("weights.safetensors")}
    commit, _, date = _git(root, "log", "-1", "--format=%H %cs", "--", *MADE_BY).partition(" ")
    changed = bool(commit and _git(root, "status", "--porcelain", "--", *MADE_BY))
    return Identity(__version__, commit[:10], date, changed, data, _recorded(root, list(data.values())), weights)


def digest(path: Path) -> str:
    """The MD5 of a file, under which DVC knows it: `dvc.lock` says what the stage that made it read in its turn."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _listed(digests: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {md5[:10]}" for name, md5 in digests.items())


def _recorded(root: Path, digests: list[str]) -> str:
    """The latest of the dates on which each of these was first seen in dvc.lock."""
    dates = [_git(root, "log", "--reverse", "--format=%cs", f"-S{md5}", "--", "dvc.lock")[:10] for md5 in digests]
    return max(dates) if dates and all(dates) else ""


def _git(root: Path, *arguments: str) -> str:
    """What git says about the folder; nothing where there is no git, or no repository."""
    try:
        told = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(root), *arguments], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return told.stdout.strip() if told.returncode == 0 else ""
