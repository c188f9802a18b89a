from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field

from tmv_lib.pipeline.params import Params, read, read_members, read_yaml


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


def test_what_was_read_is_the_readers_own(written):
    path = written("a: [1, 2]")
    read_yaml(path)["a"].append(3)
    assert read_yaml(path) == {"a": [1, 2]}


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
        (f"b: {MEMBER.replace('none', 'data/weights/../../w.pth')}", "files lie in data/weights/"),
        (f"'x; touch PWNED; true': {MEMBER}", "a name is lower-case letters"),
        (f"b: {MEMBER.replace('resnet18', 'x.onnx')}", r"b\.architecture is 'x\.onnx': files lie in data/weights/"),
        (f"b: {MEMBER.replace('resnet18', 'data/weights/x.onnx')}", "weights: none and train: false are needed"),
    ],
)
def test_a_member_that_cannot_work_is_refused(written, change, message):
    with pytest.raises(ValueError, match=message):
        read_members(written(f"members:\n  a: {MEMBER}\n  {change}\n"))


def test_numbers_are_those_of_yaml_1_2_which_dvc_writes(written):
    assert read(written("a: {threshold: 5e-05, passes: 3}"), "a", Example).threshold == 0.00005


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: {threshold: 0.1, passes: 3}\na: {threshold: 0.2, passes: 3}", "line 2: not readable YAML .*duplicate key"),
        ("a:\n\tthreshold: 1", "line 2: not readable YAML"),
        ("a: [1", "not readable YAML"),
        ("a: !!python/object/apply:os.system ['true']", "not readable YAML"),
    ],
)
def test_what_is_no_yaml_is_told_with_its_line(written, text, words):
    with pytest.raises(ValueError, match=rf"params\.yaml: .*{words}"):
        read(written(text), "a", Example)


def test_a_file_that_is_not_there_or_not_text_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.yaml: no such file"):
        read(tmp_path / "none.yaml", "a", Example)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"bytes\.yaml: not UTF-8 text"):
        read(tmp_path / "bytes.yaml", "a", Example)


@pytest.mark.parametrize("members", ["members: []", "members: 3", "a: 1", ""])
def test_members_that_are_no_mapping_are_refused(written, members):
    with pytest.raises(ValueError, match="members must name"):
        read_members(written(members))
