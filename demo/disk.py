"""What `dvc repro` left on disk, read anew whenever a file changes; what is not there, or cannot be read, is None."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

NOT_MEASURED = "not measured"


class Disk(NamedTuple):
    """The files below `root`, the folder of the repository."""

    root: Path

    def metrics(self, stage: str) -> dict[str, Any]:
        """The metrics of a stage; empty where they are not there."""
        return _read(self.root / f"metrics/{stage}.json") or {}

    def yaml(self, path: str) -> dict[str, Any]:
        """A YAML file; empty where it is not there."""
        return _read(self.root / path) or {}

    def table(self, path: str) -> pd.DataFrame | None:
        """A CSV file, ids as text. Not to be changed: the next reader gets the same table."""
        return _read(self.root / path)

    def array(self, path: str) -> np.ndarray | None:
        """A .npy file, memory-mapped."""
        return _read(self.root / path)

    def state(self, *paths: str) -> tuple[Any, ...]:
        """What changes when one of these files does; to cache what is computed from them."""
        return tuple((path, _stamp(self.root / path)) for path in paths)

    def members(self) -> list[str]:
        """The names of the networks, the baseline first."""
        return list(self.yaml("params.yaml").get("members", {}))


def figure(found: dict[str, Any], *keys: str) -> Any:
    """The entry of nested metrics under these keys, None where it is not there."""
    value: Any = found
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


def _read(path: Path) -> Any:
    stamp = _stamp(path)
    return None if stamp is None else _parsed(path, stamp)


@lru_cache(maxsize=256)
def _parsed(path: Path, stamp: tuple[int, int]) -> Any:
    try:
        if path.suffix == ".json":
            return json.loads(path.read_text(encoding="utf-8"))
        if path.suffix == ".yaml":
            return yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r")
        return pd.read_csv(path, dtype={"image_id": str, "patient_id": str, "split": str})
    except (OSError, ValueError, yaml.YAMLError):
        return None
