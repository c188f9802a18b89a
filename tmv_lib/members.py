"""The members by name: networks that the pipeline describes, or models of which only the predictions are known."""

import re
from pathlib import Path

import yaml

from tmv_lib.params import RESERVED, Member, read_members


def named_members(path: str | Path) -> dict[str, Member | None]:
    """Read the section `members`, in its order.

    An entry that is empty (`mine: null`) is a model of somebody else's: its predictions are on disk, and there is no
    network to ask.

    Networks are at least two, as `read_members` has it; of somebody else's models one is enough. Raises ValueError as
    `read_members`, and where some entries are empty and others are not.
    """
    listed = (yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}).get("members") or {}
    if not listed or any(entry is not None for entry in listed.values()):
        return dict(read_members(path))
    for name in listed:
        check_name(str(name), where=f"{path}: members.{name}")
    return dict.fromkeys(listed)


def check_name(name: str, *, where: str) -> None:
    """Raise ValueError, which starts with `where`, for a name that cannot be a column or that figures bear already."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in RESERVED:
        raise ValueError(f"{where}: a name is lower-case letters, digits and _, and none of {sorted(RESERVED)}")
