"""Images without labels from a folder and from a CSV, and what can be wrong with them."""

import numpy as np
import pytest
from PIL import Image
from test_dicom import RAMP, write

from tmv_lib.data.dicom import read_dicom
from tmv_lib.data.images import read_image, square
from tmv_lib.data.table import load_table
from tmv_lib.data.unlabelled import load_unlabelled

HOW = {"size": 12, "how": "pad"}


@pytest.fixture
def folder(tmp_path):
    """A grey PNG, a colour JPEG one level down, a DICOM file without a suffix, a note, and a hidden file."""
    (tmp_path / "ward").mkdir()
    Image.fromarray(RAMP.astype(np.uint8)).save(tmp_path / "b.png")
    Image.fromarray(np.stack([RAMP] * 3, axis=2)[:10].astype(np.uint8)).save(tmp_path / "ward/person7_a.jpeg")
    write(tmp_path / "IM0001", RAMP * 16, bits=12, PatientID="P9", WindowCenter=1000, WindowWidth=900)
    (tmp_path / "note.txt").write_text("not an image")
    (tmp_path / ".b.png").write_bytes(b"")
    return tmp_path


def test_a_folder_gives_what_prepare_would_make_of_the_same_files(folder):
    found = load_unlabelled(folder, patient=r"^(person\d+)", **HOW)
    assert found.cases["image_id"].tolist() == ["IM0001", "b.png", "ward/person7_a.jpeg"]
    assert found.cases["patient_id"].tolist() == ["P9", "b.png", "person7"]
    assert (found.cases["problem"] == "").all()
    (folder / "cases.csv").write_text("path,label\nIM0001,0\nb.png,1\nward/person7_a.jpeg,1\n")
    prepared = load_table(folder / "cases.csv", positive=None, **HOW)
    np.testing.assert_array_equal(found.images, prepared.images)
    assert prepared.cases["patient_id"].tolist()[:2] == ["P9", "b.png"]


def test_the_content_of_a_file_is_read_like_the_file(folder):
    levels, header, *_ = read_image((folder / "IM0001").read_bytes(), name="upload")
    np.testing.assert_array_equal(levels, read_dicom(folder / "IM0001")[0])
    assert header["patient_id"] == "P9"
    with pytest.raises(ValueError, match=r"^upload\.dcm: not a readable DICOM image"):
        read_image(b"nothing", name="upload.dcm")
    with pytest.raises(ValueError, match=r"^upload: not a readable image"):
        read_image(b"", name="upload")


def test_an_image_that_cannot_be_read_keeps_its_row(folder):
    (folder / "a.png").write_bytes((folder / "b.png").read_bytes()[:40])
    write(folder / "c.dcm", np.zeros((4, 4, 4)), NumberOfFrames=4)
    (folder / "list.csv").write_text("path,patient_id\na.png,007\nb.png,007\nc.dcm,\n")
    found = load_unlabelled(folder / "list.csv", **HOW)
    assert found.cases["patient_id"].tolist() == ["007", "007", "c.dcm"]
    assert found.cases["problem"].str.startswith(("a.png: not a readable", "c.dcm: not a readable")).tolist() == [
        True,
        False,
        True,
    ]
    assert "4 frames" in found.cases["problem"][2]
    np.testing.assert_array_equal(found.images, square(RAMP.astype(np.uint8), **HOW)[None])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file\nb.png\n", "column path is missing; the columns are file"),
        ("path\n", "no row below the header"),
        ("path\nb.png\nx.png\ny.png\n", r"row 3: path 'x.png' is no file in .* \(2 such rows\)"),
        ("path\nb.png\n\nb.png\n", "row 3: path 'b.png' is listed twice"),
        ("path,patient_id\nb.png,1\n,2\n", "row 3: path '' is no file"),
        ("path\nnote.txt\n", "none of 1 images can be read; the first: note.txt: not a readable image"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(folder, text, words):
    (folder / "list.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        load_unlabelled(folder / "list.csv", **HOW)


def test_no_image_at_all(tmp_path):
    (tmp_path / "note.txt").write_text("not an image")
    with pytest.raises(ValueError, match="no picture and no DICOM image among 1 files"):
        load_unlabelled(tmp_path, **HOW)
    with pytest.raises(ValueError, match="no such folder or CSV"):
        load_unlabelled(tmp_path / "nowhere", **HOW)
