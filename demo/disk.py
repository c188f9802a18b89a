"""What `dvc repro` left on disk, read anew whenever a file changes; what is not there, or cannot be read, is None."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

from tmv_lib.pipeline.files import AS_WRITTEN

NOT_MEASURED = "not measured"


class Disk(NamedTuple):
    """The files below `root`, the folder of the repository."""

    root: Path

    def read(self, path: str) -> Any:
        """A JSON or YAML file, a .npy file memory-mapped, or a CSV file as a table, ids as text.

        Not to be changed: the next reader gets the same.
        """
        stamp = _stamp(self.root / path)
        return None if stamp is None else _parsed(self.root / path, stamp)

    def mapping(self, path: str) -> dict[str, Any]:
        """A JSON or YAML file; empty where it is not there."""
        return self.read(path) or {}

    def state(self, *paths: str) -> tuple[Any, ...]:
        """What changes when one of these files does; to cache what is computed from them."""
        return tuple((path, _stamp(self.root / path)) for path in paths)

    def members(self) -> list[str]:
        """The names of the networks, the baseline first."""
        return list(self.mapping("params.yaml").get("members", {}))


def figure(found: Any, place: str) -> Any:
    """The entry of nested mappings at a place such as `deferral.cost.review`, None where it is not there."""
    for key in place.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


@lru_cache(maxsize=256)
def _parsed(path: Path, stamp: tuple[int, int]) -> Any:
    try:
        if path.suffix == ".json":
            return json.loads(path.read_text(encoding="utf-8"))
        if path.suffix == ".yaml":
            return yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r")
        return pd.read_csv(path, **AS_WRITTEN)
    except (OSError, ValueError, yaml.YAMLError):
        return None
