"""What a page says, before anybody decides how it is drawn: the app and the static export show the same."""

from base64 import b64encode
from html import escape
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


def source(picture: bytes | str) -> str:
    """A picture, the bytes of a PNG or SVG text, within the page."""
    kind, data = ("svg+xml", picture.encode()) if isinstance(picture, str) else ("png", picture)
    return f"data:image/{kind};base64,{b64encode(data).decode()}"


def figure(picture: Picture) -> str:
    """A picture with its caption, as HTML that fetches nothing."""
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
    return f'<figure><img src="{source(picture.image)}" alt="{escape(picture.alt)}">{caption}</figure>'


class Overlay(NamedTuple):
    """One member's map of the answer that is given, and that of an untrained network, each (h, w) or None.

    verdict: whether the maps of this member deserve a look, in a sentence; usable: whether they do.
    """

    member: str
    names: str
    own: np.ndarray | None
    untrained: np.ndarray | None
    verdict: str
    usable: bool

    @property
    def line(self) -> str:
        """Whose map it is, and whether it deserves a look."""
        return f"**{self.member}**, for {self.names}. {self.verdict}"

    @property
    def alt(self) -> str:
        """What the map says, for those who do not see it."""
        return strongest(f"Map of {self.member} for {self.names}", self.own)

    def side_by_side(self, image: np.ndarray) -> "Section":
        """The map and the untrained network's over a uint8 image (side, side[, 3]), each scaled to its own maximum."""
        alt = strongest(f"Map of an untrained {self.member}", self.untrained)
        captions = (self.member, f"untrained {self.member}")
        shown, lines = [], [self.line]
        for attribution, caption, words in zip((self.own, self.untrained), captions, (self.alt, alt), strict=True):
            if attribution is None:
                lines.append(words)
                continue
            under = pictures.view(image)
            laid = pictures.over(under, pictures.coloured(attribution), opacity=pictures.OPACITY)
            size = f"{caption}, maximum {pictures.scale_of(attribution):.2g}"
            shown.append(Picture(pictures.png(laid), words, size))
        return Section("", lines, shown)


def strongest(what: str, attribution: np.ndarray | None) -> str:
    """Where a map is strongest, in words."""
    if attribution is None:
        return f"{what}: {NOT_MEASURED}."
    return f"{what}: strongest {pictures.where(attribution)}. {pictures.MAP_NOTE}"


class Section(NamedTuple):
    """A heading, or none, and what stands below it, in this order: sentences (Markdown), pictures, a table."""

    title: str
    lines: list[str]
    pictures: list[Picture] = []  # noqa: RUF012
    table: pd.DataFrame | None = None


def looked(overlay: Overlay) -> Section:
    """What is said of the one map that is laid over a film."""
    return Section("Where the network looked", [f"{overlay.line} {pictures.MAP_NOTE}"])
