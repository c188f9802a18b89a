"""The wide picture of README: the card's verdict, two diagrams of the report, and where the networks look.

Run by `make first-sight` after `make repro`, with docs/trust_card.png and docs/overlays.png as they are.
"""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import vl_convert
from PIL import Image

from tmv_lib.card.answers import ANSWERS
from tmv_lib.pipeline.files import whole
from tmv_lib.pipeline.record import read_metrics
from tmv_lib.pipeline.stage import run
from tmv_lib.report.diagrams import diagrams

PICTURE = Path("docs/first_sight.png")
HEIGHT, GAP = 640, 24  # pixels
CARD = (0, 0, 1, 0.55)  # what is shown of the card and of the overlays: left, top, right, bottom, as shares
OVERLAYS = (0, 0.037, 0.555, 0.39)


def main() -> None:
    made = diagrams({stage: read_metrics(stage) for stage in ANSWERS}, Path())
    first, *_ = made
    reliability = next(one for one in made if "87 %" in one.question)
    drawn = [Image.open(BytesIO(vl_convert.svg_to_png(one.svg, scale=2))) for one in (first, reliability)]
    columns = [part("docs/trust_card.png", CARD), stacked(drawn), part("docs/overlays.png", OVERLAYS)]
    columns = [column.resize((round(column.width * HEIGHT / column.height), HEIGHT)) for column in columns]
    picture = Image.new("RGB", (sum(one.width for one in columns) + 2 * GAP, HEIGHT), "white")
    left = 0
    for column in columns:
        picture.paste(column, (left, 0))
        left += column.width + GAP
    with whole(PICTURE) as temporary:
        picture.quantize(256, Image.Quantize.MAXCOVERAGE).save(temporary, "png", optimize=True)
    print(PICTURE)


def part(path: str, shares: tuple[float, float, float, float]) -> Image.Image:
    """A part of a picture. shares: left, top, right and bottom edge in [0, 1]."""
    image = Image.open(path).convert("RGB")
    left, top, right, bottom = shares
    w, h = image.size
    return image.crop((round(left * w), round(top * h), round(right * w), round(bottom * h)))


def stacked(images: Sequence[Image.Image]) -> Image.Image:
    """Images one below the other on white."""
    column = Image.new("RGB", (max(one.width for one in images), sum(one.height for one in images)), "white")
    top = 0
    for one in images:
        column.paste(one.convert("RGB"), (0, top))
        top += one.height
    return column


if __name__ == "__main__":
    run(main)
