"""What a page says, before anybody decides how it is drawn: the app and the static export show the same."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from demo import pictures
from demo.disk import NOT_MEASURED

NOT_CLINICAL = "Not for clinical use: a research tool, not a medical device."


class Picture(NamedTuple):
    """A picture with what it says in words; `image` holds the bytes of a PNG, or SVG text."""

    image: bytes | str
    alt: str
    caption: str


class Overlay(NamedTuple):
    """One member's map of the answer that is given, and that of an untrained network, each (h, w) or None."""

    member: str
    names: str
    own: np.ndarray | None
    untrained: np.ndarray | None
    verdict: str

    @property
    def line(self) -> str:
        """Whose map it is, and whether it deserves a look."""
        return f"**{self.member}**, for {self.names}. {self.verdict}"

    @property
    def panels(self) -> list[tuple[np.ndarray | None, str, str]]:
        """Each map with what it says, for those who do not see it, and its caption."""
        untrained = f"untrained {self.member}"
        return [
            (self.own, strongest(f"Map of {self.member} for {self.names}", self.own), self.member),
            (self.untrained, strongest(f"Map of an {untrained}", self.untrained), f"{untrained}, same scale"),
        ]

    @property
    def sizes(self) -> str:
        """What the one scale of both maps, shares of a map's own maximum, leaves out."""
        if self.own is None or self.untrained is None:
            return "Colours are shares of the map's own maximum."
        own, untrained = (pictures.scale_of(each) for each in (self.own, self.untrained))
        return (
            "Colours are shares of each map's own maximum, on one scale from 0 to 1:"
            f" {own:.2g} here and {untrained:.2g} in the untrained network."
        )


def strongest(what: str, attribution: np.ndarray | None) -> str:
    """Where a map is strongest, in words."""
    if attribution is None:
        return f"{what}: {NOT_MEASURED}."
    return f"{what}: strongest {pictures.where(attribution)}. {pictures.MAP_NOTE}"


class Section(NamedTuple):
    """A heading, or none, and what stands below it, in this order: sentences (Markdown), maps, pictures, a table."""

    title: str
    lines: list[str]
    pictures: list[Picture] = []  # noqa: RUF012
    table: pd.DataFrame | None = None
    overlays: list[Overlay] = []  # noqa: RUF012


def looked(overlays: list[Overlay]) -> Section:
    """The section of the maps."""
    return Section("Where the networks looked", [pictures.MAP_NOTE], overlays=overlays)
