"""Figures that remember what was read of them, so that every figure on a card can be traced to its metrics key."""

from collections.abc import Mapping
from typing import Any

from tmv_lib.pipeline.metrics import SUFFIXES
from tmv_lib.pipeline.record import Figures
from tmv_lib.statistics.estimate import Estimate

Read = dict[str, Any]  # by "file key key ...", the value that stands there


class Traced(Figures):
    """Figures that write down in `read` every number and word that somebody asks of them."""

    def __init__(self, values: Mapping[str, Any], where: str, read: Read) -> None:
        super().__init__(values, where)
        self._read = read

    @classmethod
    def of(cls, figures: Figures, read: Read) -> "Traced":
        """The same figures."""
        return cls(figures._values, figures._where, read)

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        if isinstance(value, Figures):
            return Traced(self._values[name], f"{self._where} {name}", self._read)
        self._read[f"{self._where} {name}"] = value
        return value

    def estimate(self, name: str) -> Estimate:
        keys = [f"{name}{suffix}" for suffix in SUFFIXES.values()]
        self._read |= {f"{self._where} {key}": self._values[key] for key in keys if key in self._values}
        return super().estimate(name)
