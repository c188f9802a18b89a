"""The part of a page that a study writes, between two lines that stand in it."""

from pathlib import Path

from tmv_lib.pipeline.files import whole


def write_between(page: Path, begins: str, ends: str, lines: list[str]) -> None:
    """Put lines between `begins` and `ends`; what people wrote around them stays."""
    before, _, rest = page.read_text(encoding="utf-8").partition(begins)
    with whole(page) as temporary:
        words = "\n".join([begins, "", *lines, "", ends])
        temporary.write_text(before + words + rest.partition(ends)[2], encoding="utf-8")
