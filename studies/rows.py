"""An estimate as columns of a table that a study writes, every digit kept."""

from typing import Any

from tmv_lib.pipeline.metrics import SUFFIXES
from tmv_lib.statistics.estimate import Estimate


def columns(name: str, estimate: Estimate) -> dict[str, Any]:
    """The columns `name`, `name_low`, `name_high` and the like of what the estimate holds."""
    held = {f"{name}{suffix}": getattr(estimate, field) for field, suffix in SUFFIXES.items()}
    return {column: value for column, value in held.items() if value is not None}
