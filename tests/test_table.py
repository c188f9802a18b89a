"""A CSV of images, and everything that can be wrong with it."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

from tmv_lib.sources.table import load_table


def picture(path, level, *, shape=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(shape, level, dtype=np.uint8)).save(path)


def dicom(path, level, **elements):
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = ComputedRadiographyImageStorage, generate_uid()
    data.Rows, data.Columns, data.SamplesPerPixel, data.PixelRepresentation = 8, 8, 1, 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 8, 8, 7
    data.PhotometricInterpretation = "MONOCHROME2"
    data.PixelData = bytes([level] * 64)
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    data.save_as(path, enforce_file_format=True)


def load(folder, text, **options):
    """Load `text` as a CSV that lies in `folder`, with whatever of a.png and b.png it needs."""
    for level, name in enumerate(("a.png", "b.png"), start=1):
        picture(folder / name, 10 * level)
    (folder / "cases.csv").write_text(text)
    return load_table(folder / "cases.csv", **{"size": 8, "how": "stretch", "positive": None} | options)


def test_columns_splits_and_subgroups_arrive(tmp_path):
    loaded = load(tmp_path, "path,label,patient_id,split,age,sex\na.png,1,007,train,61,F\nb.png,0,8,,,M\n")
    expected = pd.DataFrame(
        {
            "image_id": ["a.png", "b.png"],
            "patient_id": ["007", "8"],
            "split": ["train", ""],
            "y_true": [1, 0],
            "source": "table",
            "width": 8,
            "height": 8,
            "age": [61.0, np.nan],
            "sex": ["F", "M"],
        }
    )
    pd.testing.assert_frame_equal(loaded.cases, expected)
    assert loaded.images.dtype == np.uint8
    assert loaded.images[:, 0, 0].tolist() == [10, 20]
    assert list(loaded.unreadable.columns) == ["path", "problem"]
    assert loaded.unreadable.empty


def test_columns_of_other_names(tmp_path):
    text = "file,finding,subject,fold\na.png,ill,p,test\nb.png,None,q,val\n"
    names = {"path_column": "file", "label_column": "finding", "patient_column": "subject", "split_column": "fold"}
    cases = load(tmp_path, text, positive="ill", **names).cases
    assert cases[["image_id", "patient_id", "split", "y_true"]].to_numpy().tolist() == [
        ["a.png", "p", "test", 1],
        ["b.png", "q", "val", 0],
    ]


def test_without_patients_each_image_is_one(tmp_path):
    cases = load(tmp_path, "path,label\na.png,1\nb.png,0\n").cases
    assert cases["patient_id"].tolist() == ["a.png", "b.png"]
    assert cases["split"].tolist() == ["", ""]


def test_labels_may_be_written_as_decimals(tmp_path):
    assert load(tmp_path, "path,label\na.png,1.0\nb.png,0.0\n").cases["y_true"].tolist() == [1, 0]


def test_paths_start_from_root_where_it_is_given(tmp_path):
    picture(tmp_path / "images" / "x" / "c.png", 7)
    picture(tmp_path / "images" / "d.png", 9)
    loaded = load(tmp_path, "path,label\n./x/c.png,1\nd.png,0\n", root=tmp_path / "images")
    assert loaded.cases["image_id"].tolist() == ["x/c.png", "d.png"]
    assert loaded.images[:, 0, 0].tolist() == [7, 9]


def test_sizes_are_those_of_the_files(tmp_path):
    picture(tmp_path / "wide.png", 200, shape=(10, 30))
    loaded = load(tmp_path, "path,label\nwide.png,1\nb.png,0\n", how="pad")
    assert loaded.cases[["width", "height"]].to_numpy().tolist() == [[30, 10], [8, 8]]
    assert loaded.images.shape == (2, 8, 8)
    assert loaded.images[0, [0, -1]].max() == 0


def test_dicom_is_read_beside_pictures_and_tells_its_header(tmp_path):
    dicom(tmp_path / "c", 70, PatientID="p1", Manufacturer="Acme", ViewPosition="AP", StudyDate="20200131")
    loaded = load(tmp_path, "path,label\nc,1\nb.png,0\n")
    assert loaded.images[0, 0, 0] == 70
    assert loaded.cases["patient_id"].tolist() == ["p1", "b.png"]
    assert loaded.cases.loc[0, ["manufacturer", "view_position", "study_date"]].tolist() == ["Acme", "AP", "20200131"]
    assert loaded.cases.loc[1, ["manufacturer", "view_position", "study_date"]].isna().all()


def test_the_table_goes_before_the_header(tmp_path):
    dicom(tmp_path / "c.dcm", 70, PatientID="p1", Manufacturer="Acme")
    cases = load(tmp_path, "path,label,patient_id,manufacturer\nc.dcm,1,q,Other\nb.png,0,r,\n").cases
    assert cases["patient_id"].tolist() == ["q", "r"]
    assert cases["manufacturer"][0] == "Other"


def test_unreadable_images_are_left_out_and_listed(tmp_path):
    (tmp_path / "c.png").write_bytes(b"no picture")
    (tmp_path / "d.dcm").write_bytes(b"no DICOM")
    loaded = load(tmp_path, "path,label\na.png,1\nc.png,0\nd.dcm,1\nb.png,0\n")
    assert loaded.cases["image_id"].tolist() == ["a.png", "b.png"]
    assert loaded.images[:, 0, 0].tolist() == [10, 20]
    assert loaded.unreadable["path"].tolist() == ["c.png", "d.dcm"]
    assert loaded.unreadable["problem"].str.contains("not a readable").all()


def test_progress_sees_every_row(tmp_path):
    seen = []
    load(tmp_path, "path,label\na.png,1\nb.png,0\n", progress=lambda rows: (seen.append(row) or row for row in rows))
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("image,label\na.png,1\n", {}, "column path is missing; needed are path, label, there are image, label"),
        ("path,y\na.png,1\n", {}, "column label is missing"),
        ("path,label\na.png,1\n", {"patient_column": "subject"}, "column subject is missing"),
        ("path,label,source\na.png,1,x\nb.png,0,y\n", {}, "column source bears a name"),
        ("path,label,subject,patient_id\n", {"patient_column": "subject"}, "column patient_id bears a name"),
        ("path,label\n", {}, "no row below the header"),
        ("", {}, "not a readable CSV"),
        ("path,label\na.png,1\nc.png,0\n", {}, r"row 3: path 'c.png' is no file in "),
        ("path,label\na.png,1\nb.png,0\n./a.png,1\n", {}, "row 4: path 'a.png' is listed twice"),
        ("path,label\na.png,1\n,0\n", {}, "row 3: path '' is empty"),
        ("path,label\na.png,1\nb.png,\n", {}, "row 3: label '' is empty"),
        ("path,label,patient_id\na.png,1,p\nb.png,0,\n", {}, "row 3: patient_id '' is empty"),
        ("path,label,split\na.png,1,train\nb.png,0,dev\n", {}, "row 3: split 'dev' is none of train, val, cal, test"),
        ("path,label\na.png,1\nb.png,1\n", {}, "one class only, every label is '1'"),
        ("path,label\na.png,1\nb.png,2\n", {}, "labels must be 0 and 1, found 1, 2"),
        ("path,label\na.png,ill\nb.png,well\n", {}, "labels must be 0 and 1, found ill, well"),
        ("path,label\na.png,ill\nb.png,well\n", {"positive": "sick"}, "one of them 'sick', found ill, well"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, options, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, text, **options)


def test_a_third_label_is_refused(tmp_path):
    picture(tmp_path / "c.png", 3)
    with pytest.raises(ValueError, match="labels must be two, one of them 'ill', found ill, unsure, well"):
        load(tmp_path, "path,label\na.png,ill\nb.png,well\nc.png,unsure\n", positive="ill")


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.csv: not a readable CSV"):
        load_table(tmp_path / "nowhere.csv", size=8, how="stretch", positive=None)


def test_no_readable_image_at_all(tmp_path):
    for name in ("c.png", "d.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match="no readable image in 2 files"):
        load(tmp_path, "path,label\nc.png,1\nd.png,0\n")
