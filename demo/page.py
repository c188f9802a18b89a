"""What a page says, before anybody decides how it is drawn: the app and the static export show the same."""

from typing import NamedTuple

import pandas as pd


class Picture(NamedTuple):
    """A picture with what it says in words; `image` holds the bytes of a PNG, or SVG text."""

    image: bytes | str
    alt: str
    caption: str


class Section(NamedTuple):
    """A heading and what stands below it, in this order: sentences (Markdown), pictures, a table, and a note on it."""

    title: str
    lines: list[str]
    pictures: list[Picture] = []  # noqa: RUF012
    table: pd.DataFrame | None = None
    note: str = ""


NOT_CLINICAL = "Not for clinical use: a research tool, not a medical device."
