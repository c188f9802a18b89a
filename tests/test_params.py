from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field

from tmv_lib.pipeline.params import Params, read, read_members


class Example(Params):
    threshold: Annotated[float, Field(ge=0, le=1)]
    passes: int


@pytest.fixture
def written(tmp_path):
    def write(text: str) -> Path:
        (tmp_path / "params.yaml").write_text(text)
        return tmp_path / "params.yaml"

    return write


def test_a_good_section_is_read(written):
    assert read(written("a: {threshold: 1, passes: 3}"), "a", Example) == Example(threshold=1.0, passes=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {threshold: 1.5, passes: 3}", r"a\.threshold is 1\.5: .*less than or equal to 1"),
        ('a: {threshold: "0.5", passes: 3}', r"a\.threshold is '0\.5': .*valid number"),
        ("a: {threshold: 0.5, passes: 3.5}", r"a\.passes is 3\.5: .*valid integer"),
        ("a: {threshold: 0.5, passes: 3, treshold: 1}", r"a\.treshold is not a parameter"),
        ("a: {threshold: 0.5}", r"a\.passes is missing"),
        ("b: {}", r"section a is missing"),
    ],
)
def test_a_bad_value_is_one_line_with_key_value_and_what_is_allowed(written, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(written(text), "a", Example)
    assert "\n" not in str(caught.value)
    assert "params.yaml" in str(caught.value)


def test_one_member_is_no_ensemble(written):
    with pytest.raises(ValueError, match=r"members must name at least two networks, found \['alone'\]"):
        read_members(written("members: {alone: {}}"))


MEMBER = "{architecture: resnet18, weights: none, dropout: 0.1, train: true, seed: 1}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (f"ensemble: {MEMBER}", r"members\.ensemble: a name is lower-case letters"),
        (f"My net: {MEMBER}", r"members\.My net: a name is"),
        (f"b: {MEMBER.replace('true', 'false')}", r"members\.b\.train is false and weights is none"),
        (
            f"b: {MEMBER.replace('none', '../w.pth')}",
            r"members\.b\.weights is '\.\./w\.pth': files lie in data/weights/",
        ),
    ],
)
def test_a_member_that_cannot_work_is_refused(written, change, message):
    with pytest.raises(ValueError, match=message):
        read_members(written(f"members:\n  a: {MEMBER}\n  {change}\n"))
