"""A CSV of images, and everything that can be wrong with it."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

from tmv_lib.data.table import load_table


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
    names = {"image": "{file}", "label_column": "finding", "patient_column": "subject", "split_column": "fold"}
    cases = load(tmp_path, text, positive="ill", **names).cases
    assert cases[["image_id", "patient_id", "split", "y_true"]].to_numpy().tolist() == [
        ["a.png", "p", "test", 1],
        ["b.png", "q", "val", 0],
    ]


def test_the_split_column_may_say_local(tmp_path):
    cases = load(tmp_path, "path,label,split\na.png,1,local\nb.png,0,test\n").cases
    assert cases["split"].tolist() == ["local", "test"]


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
        (
            "path,label,subject,patient_id\na.png,1,p,q\n",
            {"patient_column": "subject"},
            "column patient_id bears a name",
        ),
        ("path,label\n", {}, "no row below the header"),
        ("", {}, "not a readable CSV"),
        ("path,label\na.png,1\nc.png,0\n", {}, r"row 3: image 'c.png' is no file in "),
        ("path,label\na.png,1\nb.png,0\n./a.png,1\n", {}, "row 4: image 'a.png' is listed twice"),
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
    with pytest.raises(ValueError, match=r"none of 2 images can be read; the first: c\.png: not a readable image"):
        load(tmp_path, "path,label\nc.png,1\nd.png,0\n")


# ---- the lists of public data sets, by their own headers (docs/data.md has the same parameters)

NIH = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)
CHEXPERT = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,"
    "Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)
MIMIC_LABELS = (
    "subject_id,study_id,Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,"
    "Lung Opacity,No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
)
MIMIC_METADATA = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
    "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
)
PADCHEST = (
    ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,ViewPosition_DICOM,Projection,"
    "MethodProjection,Pediatric,Manufacturer_DICOM,Labels,Localizations"
)
VINDR_PCXR = (
    "image_id,rad_ID,No finding,Bronchitis,Brocho-pneumonia,Other disease,Bronchiolitis,Situs inversus,Pneumonia,"
    "Pleuro-pneumonia,Diagphramatic hernia,Tuberculosis,Congenital emphysema,CPAM,Hyaline membrane disease,"
    "Mediastinal tumor,Lung tumor"
)


def listed(folder, header, *rows, **options):
    """Load a list of this header and rows, `cases.csv`, with the parameters that docs/data.md gives for it."""
    (folder / "cases.csv").write_text("\n".join([header, *rows, ""]))
    return load_table(folder / "cases.csv", **{"size": 8, "how": "stretch", "positive": None} | options)


def test_nih_chestxray14(tmp_path):
    for name in ("images_001/images/00000001_000.png", "images_002/images/00000002_000.png", "images_002/x.png"):
        picture(tmp_path / name, 50)
    loaded = listed(
        tmp_path,
        NIH,
        "00000001_000.png,Infiltration|Pneumonia,0,1,58,M,PA,2682,2749,0.143,0.143,",
        "00000002_000.png,No Finding,0,2,81,F,AP,2682,2749,0.143,0.143,",
        image="images_*/images/{Image Index}",
        label_column="Finding Labels",
        label_separator="|",
        positive="Pneumonia",
        patient_column="Patient ID",
    )
    cases = loaded.cases
    assert cases["image_id"].tolist() == ["images_001/images/00000001_000.png", "images_002/images/00000002_000.png"]
    assert cases["y_true"].tolist() == [1, 0]
    assert cases["patient_id"].tolist() == ["1", "2"]
    assert cases["View Position"].tolist() == ["PA", "AP"]
    assert not [name for name in cases if name.startswith("Unnamed") or name == "Image Index"]


def test_rsna_pneumonia(tmp_path):
    (tmp_path / "stage_2_train_images").mkdir()
    for name in ("0004cfab", "00436515"):
        dicom(tmp_path / f"stage_2_train_images/{name}.dcm", 60, PatientID=name, ViewPosition="PA")
    rows = ["0004cfab,,,,,0", "00436515,264.0,152.0,213.0,379.0,1", "00436515,562.0,152.0,256.0,453.0,1"]
    options = {"image": "stage_2_train_images/{patientId}.dcm", "label_column": "Target", "patient_column": "patientId"}
    cases = listed(tmp_path, "patientId,x,y,width,height,Target", *rows, rows="any", **options).cases
    assert cases[["patient_id", "y_true", "width", "view_position"]].to_numpy().tolist() == [
        ["0004cfab", 0, 8, "PA"],
        ["00436515", 1, 8, "PA"],
    ]
    assert "x" not in cases
    with pytest.raises(ValueError, match=r"row 4: image 'stage_2_train_images/00436515\.dcm' is listed twice"):
        listed(tmp_path, "patientId,x,y,width,height,Target", *rows, **options)


CHEXPERT_ROWS = {"patient00001": "1.0", "patient00002": "-1.0", "patient00003": "0.0", "patient00004": ""}


@pytest.mark.parametrize(
    ("uncertain", "y_true"),
    [
        ({"-1": "ignore", "": "negative"}, [1, 0, 0]),
        ({"-1": "positive", "": "negative"}, [1, 1, 0, 0]),
        ({"-1": "negative", "": "ignore"}, [1, 0, 0]),
    ],
)
def test_chexpert(tmp_path, uncertain, y_true):
    rows = []
    for patient, label in CHEXPERT_ROWS.items():
        name = f"CheXpert-v1.0-small/train/{patient}/study1/view1_frontal.jpg"
        picture(tmp_path / name, 50)
        rows.append(f"{name},Female,68,Frontal,AP,,,,,,,,{label},,,,,,")
    options = {"image": "{Path}", "label_column": "Pneumonia", "patient": r"/(?P<patient>patient\d+)/study"}
    loaded = listed(tmp_path, CHEXPERT, *rows, uncertain=uncertain, **options)
    assert loaded.cases["y_true"].tolist() == y_true
    assert loaded.ignored == 4 - len(y_true)
    assert loaded.cases["patient_id"].str.fullmatch(r"patient\d+").all()
    assert set(loaded.cases["AP/PA"]) == {"AP"}
    with pytest.raises(ValueError, match=r"row 5: Pneumonia '' is empty"):
        listed(tmp_path, CHEXPERT, *rows, uncertain={"-1": "ignore"}, **options)


def test_a_split_may_stand_in_the_path(tmp_path):
    names = [f"CheXpert/{split}/patient{k}/view1.jpg" for k, split in enumerate(["train", "valid"])]
    for name in names:
        picture(tmp_path / name, 50)
    pattern = r"/(?P<split>train|valid)/(?P<patient>patient\d+)/"
    cases = listed(tmp_path, "Path,label", f"{names[0]},0", f"{names[1]},1", image="{Path}", patient=pattern).cases
    assert cases["split"].tolist() == ["train", "val"]


def test_mimic_cxr_jpg_is_joined_from_three_lists(tmp_path):
    rows, splits = [], []
    for dicom_id, subject, study, view, split in [
        ("02aa", "10000032", "50414267", "PA", "train"),
        ("174f", "10000032", "50414267", "LATERAL", "train"),
        ("2a28", "11000764", "57375967", "AP", "validate"),
        ("68b5", "11000898", "50771383", "AP", "test"),
    ]:
        picture(tmp_path / f"files/p{subject[:2]}/p{subject}/s{study}/{dicom_id}.jpg", 50)
        rows.append(f"{dicom_id},{subject},{study},CHEST (PA AND LAT),{view},3056,2544,21800506,213014.5,,,")
        splits.append(f"{dicom_id},{study},{subject},{split}")
    # the study of the last image has no row
    labels = ["10000032,50414267,,,,,,,,,1.0,,,0.0,,", "11000764,57375967,,,,,,,,,,,,1.0,,"]
    (tmp_path / "mimic-cxr-2.0.0-chexpert.csv").write_text("\n".join([MIMIC_LABELS, *labels, ""]))
    (tmp_path / "mimic-cxr-2.0.0-split.csv").write_text("\n".join(["dicom_id,study_id,subject_id,split", *splits, ""]))
    options = {
        "join": ["mimic-cxr-2.0.0-chexpert.csv", "mimic-cxr-2.0.0-split.csv"],
        "image": "files/p{subject_id:.2}/p{subject_id}/s{study_id}/{dicom_id}.jpg",
        "label_column": "Pneumonia",
        "uncertain": {"-1": "ignore", "": "ignore"},
        "patient_column": "subject_id",
    }
    loaded = listed(tmp_path, MIMIC_METADATA, *rows, **options)
    cases = loaded.cases
    assert cases[["patient_id", "split", "y_true", "ViewPosition", "StudyDate"]].to_numpy().tolist() == [
        ["10000032", "train", 0, "PA", 21800506],
        ["10000032", "train", 0, "LATERAL", 21800506],
        ["11000764", "val", 1, "AP", 21800506],
    ]
    assert loaded.ignored == 1
    assert cases["image_id"][2] == "files/p11/p11000764/s57375967/2a28.jpg"
    (tmp_path / "mimic-cxr-2.0.0-chexpert.csv").write_text("\n".join([MIMIC_LABELS, labels[0], labels[0], ""]))
    message = "chexpert.csv: row 3: subject_id '10000032', study_id '50414267' stands there for the second time"
    with pytest.raises(ValueError, match=message):
        listed(tmp_path, MIMIC_METADATA, *rows, **options)
    (tmp_path / "mimic-cxr-2.0.0-chexpert.csv").write_text("id,Pneumonia\n1,1\n")
    with pytest.raises(ValueError, match=r"chexpert\.csv: shares no column with .*cases\.csv, which has dicom_id"):
        listed(tmp_path, MIMIC_METADATA, *rows, **options)


def test_padchest(tmp_path):
    for name in ("0/a.png", "1/b.png", "1/c.png"):
        picture(tmp_path / name, 50)
    cases = listed(
        tmp_path,
        PADCHEST,
        "0,a.png,0,20140915,s1,p1,1930.0,F,POSTEROANTERIOR,PA,Manual review,No,Philips,\"['pneumonia', 'nodule']\",[]",
        "1,b.png,1,20150110,s2,p2,1951.0,M,AP,AP,Manual review,No,Imaging Dynamics,['normal'],[]",
        "2,c.png,1,20150110,s2,p2,1951.0,M,LATERAL,L,Manual review,No,Imaging Dynamics,,[]",
        image="{ImageDir}/{ImageID}",
        label_column="Labels",
        label_separator=",",
        positive="pneumonia",
        uncertain={"": "ignore"},
        patient_column="PatientID",
    ).cases
    assert cases[["image_id", "patient_id", "y_true", "Projection", "Manufacturer_DICOM"]].to_numpy().tolist() == [
        ["0/a.png", "p1", 1, "PA", "Philips"],
        ["1/b.png", "p2", 0, "AP", "Imaging Dynamics"],
    ]


@pytest.mark.parametrize(("rows", "y_true"), [("any", [1, 1, 0]), ("most", [1, 0, 0]), ("all", [0, 0, 0])])
def test_vindr_cxr_unites_readers(tmp_path, rows, y_true):
    (tmp_path / "train").mkdir()
    for name in ("img1", "img2", "img3"):
        dicom(tmp_path / f"train/{name}.dicom", 60, Manufacturer="Acme")
    boxes = [
        "img1,Pleural effusion,10,R1,1,2,3,4",
        "img1,Nodule/Mass,8,R1,1,2,3,4",  # a second box of the same reader
        "img1,Pleural effusion,10,R2,1,2,3,4",
        "img1,No finding,14,R3,,,,",
        "img2,Pleural effusion,10,R1,1,2,3,4",
        "img2,Pleural effusion,10,R1,5,6,7,8",  # two boxes, one reader of three
        "img2,Nodule/Mass,8,R2,1,2,3,4",
        "img2,No finding,14,R3,,,,",
        "img3,No finding,14,R1,,,,",
        "img3,No finding,14,R2,,,,",
        "img3,No finding,14,R3,,,,",
    ]
    cases = listed(
        tmp_path,
        "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max",
        *boxes,
        image="train/{image_id}.dicom",
        label_column="class_name",
        positive="Pleural effusion",
        rows=rows,
        reader_column="rad_id",
    ).cases
    assert cases["image_id"].tolist() == ["train/img1.dicom", "train/img2.dicom", "train/img3.dicom"]
    assert cases["y_true"].tolist() == y_true
    assert cases["patient_id"].equals(cases["image_id"].rename("patient_id"))  # the release has no patients
    assert cases["manufacturer"].tolist() == ["Acme"] * 3
    assert not {"rad_id", "class_name", "x_min"} & set(cases)


def test_vindr_pcxr(tmp_path):
    (tmp_path / "train").mkdir()
    for name in ("p1", "p2"):
        dicom(tmp_path / f"train/{name}.dicom", 60)
    cases = listed(
        tmp_path,
        VINDR_PCXR,
        "p1,R1,0.0,0.0,0.0,0.0,0.0,0.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0",
        "p2,R2,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0",
        image="train/{image_id}.dicom",
        label_column="Pneumonia",
        rows="any",
        reader_column="rad_ID",
    ).cases
    assert cases[["image_id", "y_true"]].to_numpy().tolist() == [["train/p1.dicom", 1], ["train/p2.dicom", 0]]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("path,label\na.png,1\n", {"image": "x.png"}, "the image path 'x.png' names no column"),
        ("path,label\na.png,1\n", {"image": "{path"}, r"the image path '\{path' cannot be read"),
        ("path,label\na.png,1\n", {"image": "{path:d}"}, r"the image path '\{path:d\}' cannot be read"),
        ("path,label\na,1\nb,0\n", {"image": "*{path}.png"}, None),
        ("path,label\na,1\n,0\n", {"image": "{path}.png"}, "row 3: path '' is empty"),
        ("path,label\npng,1\n", {"image": "*.{path}"}, r"row 2: image '\*\.png' is several files"),
        ("path,label\na.png,1\nb.png,0\n", {"patient": "("}, "the patient pattern '\\(' cannot be read"),
        ("path,label\na.png,1\nb.png,0\n", {"patient": "(a)"}, "has no group"),
        ("path,label\na.png,1\nb.png,0\n", {"patient": "(?P<patient>a)"}, "row 3: image 'b.png' does not hold"),
        ("path,label\na.png,1\nb.png,0\n", {"patient": "(?P<patient>.)(?P<width>.)"}, "group width of the patient"),
        ("path,label\na.png,x|y\nb.png,y\n", {"label_separator": "|", "positive": "z"}, "must hold 'z', found x, y"),
        ("path,label\na.png,1\nb.png,-1\n", {"uncertain": {"-1": "ignore"}}, "one class only"),
        ("path,label,patient_id\na.png,1,p\na.png,1,q\nb.png,0,r\n", {"rows": "any"}, "do not agree on patient_id"),
        ("path,label\na.png,1\n", {"reader_column": "reader"}, "column reader is missing"),
    ],
)
def test_what_is_wrong_with_a_layout_is_named(tmp_path, text, options, message):
    if message is None:
        assert len(load(tmp_path, text, **options).cases) == 2
        return
    with pytest.raises(ValueError, match=message):
        load(tmp_path, text, **options)


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("path,label,Split\na.png,1,test\nb.png,0,test\n", {}, "column 'Split' is nearly 'split'; rename it"),
        ("path,label,patient_id \na.png,1,7\nb.png,0,7\n", {}, "column 'patient_id ' is nearly 'patient_id'"),
        ("path,label,label\na.png,1,0\nb.png,0,1\n", {}, "column 'label' is there 2 times"),
        ("path,label\n../a.png,1\nb.png,0\n", {}, r"row 2: image '\.\./a\.png' lies outside"),
        ("path,label\n/etc/hostname,1\nb.png,0\n", {}, "row 2: image '/etc/hostname' lies outside"),
        (
            "path,label\na.png,Pneumonia\nb.png,pneumonia\n",
            {"positive": "Pneumonia"},
            "labels 'Pneumonia' and 'pneumonia' differ in their case alone",
        ),
        ("path,label,x\na.png,01,0\nb.png,1,0\n", {}, "the labels must be 0 and 1, found 01, 1"),
    ],
)
def test_what_is_nearly_right_is_refused_and_never_ignored(tmp_path, text, options, words):
    with pytest.raises(ValueError, match=words):
        load(tmp_path, text, **options)


def test_labels_are_text(tmp_path):
    text = "path,label\na.png,1119302008\nb.png,1119303003\n"
    assert load(tmp_path, text, positive="1119303003").cases["y_true"].tolist() == [0, 1]
    assert load(tmp_path, "path,label\na.png,1E10\nb.png,10000000000\n", positive="1E10").cases["y_true"].tolist() == [
        1,
        0,
    ]
    assert load(tmp_path, "path,label\na.png,1.0\nb.png,0.0\n").cases["y_true"].tolist() == [1, 0]


def test_ten_thousand_columns_are_enough(tmp_path):
    header = ",".join(f"c{k}" for k in range(10_001))
    with pytest.raises(ValueError, match="10003 columns, at most 10,000 are read"):
        load(tmp_path, f"path,label,{header}\na.png,1\n")


def test_doubtful_files_are_read_and_told(tmp_path):
    picture(tmp_path / "a.png", 0)
    loaded = load(tmp_path, "path,label\na.png,1\nb.png,0\n")
    assert loaded.remarks.empty
    deep = np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8)
    (tmp_path / "deep").mkdir()
    Image.fromarray(deep).save(tmp_path / "deep/c.png")
    loaded = load(tmp_path, "path,label\ndeep/c.png,1\nb.png,0\n")
    assert loaded.remarks.to_dict("records") == [
        {"path": "deep/c.png", "problem": "its levels reach 4095: read as 12 bits"}
    ]
    assert loaded.images[0].max() == 255


CLASSES = {"task": "multiclass"}
FINDINGS = {"task": "multilabel", "rows": "one"}


def test_a_list_may_name_any_number_of_classes(tmp_path):
    picture(tmp_path / "c.png", 30)
    text = "path,label\na.png,0\nb.png,1.0\nc.png,IV\n"
    cases = load(tmp_path, text, **CLASSES).cases
    assert cases["class"].tolist() == ["0", "1", "IV"]
    assert "y_true" not in cases
    ignored = load(tmp_path, text, uncertain={"IV": "ignore"}, **CLASSES)
    assert (ignored.cases["class"].tolist(), ignored.ignored) == (["0", "1"], 1)


def test_findings_in_one_cell(tmp_path):
    """As NIH ChestX-ray14 and PadChest have them."""
    picture(tmp_path / "c.png", 30)
    text = "path,label\na.png,Mass|Edema\nb.png,No Finding\nc.png,Edema\n"
    cases = load(tmp_path, text, label_separator="|", findings=["Mass", "Edema"], **FINDINGS).cases
    assert cases[["y_true_Mass", "y_true_Edema"]].to_numpy().tolist() == [[1, 1], [0, 0], [0, 1]]


def test_findings_in_columns_with_uncertain_and_missing_labels_apart(tmp_path):
    """As CheXpert and MIMIC-CXR have them."""
    picture(tmp_path / "c.png", 30)
    text = "path,Mass,Edema,age\na.png,1.0,-1.0,50\nb.png,0.0,,60\nc.png,,1.0,70\n"
    options = {"label_column": None, "findings": ["Mass", "Edema"], "uncertain": {"-1": "ignore", "": "negative"}}
    cases = load(tmp_path, text, **options, **FINDINGS).cases
    assert cases["y_true_Mass"].tolist() == [1, 0, 0]
    np.testing.assert_array_equal(cases["y_true_Edema"], [np.nan, 0, 1])
    assert cases["age"].tolist() == [50, 60, 70]


def test_findings_of_several_readers(tmp_path):
    """As VinDr-CXR has them: a row per reader and finding."""
    rows = ["a.png,Mass,R1", "a.png,Edema,R1", "a.png,Mass,R2", "a.png,No finding,R3"]
    rows += ["b.png,No finding,R1", "b.png,Edema,R2", "b.png,Edema,R3"]
    text = "path,label,rad\n" + "\n".join(rows) + "\n"
    options = {"findings": ["Mass", "Edema"], "rows": "most", "reader_column": "rad", "task": "multilabel"}
    cases = load(tmp_path, text, **options).cases
    assert cases[["y_true_Mass", "y_true_Edema"]].to_numpy().tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("path,label\na.png,x\nb.png,y\n", {**CLASSES, "positive": "x"}, "positive must be null"),
        ("path,label\na.png,x\nb.png,X\n", CLASSES, "differ in their case alone: X, x"),
        ("path,label\na.png,x\nb.png,x\n", CLASSES, "one class only"),
        ("path,label\na.png,x\nb.png,\n", CLASSES, "row 3: label '' is empty"),
        ("path,label\na.png,x\nb.png,y\n", {**CLASSES, "rows": "most"}, "an image has one row and one class"),
        ("path,label,class\na.png,x,1\nb.png,y,2\n", CLASSES, "column class bears a name"),
        ("path,label\na.png,x\nb.png,y\n", FINDINGS, "findings must name each finding once, found \\[\\]"),
        ("path,label\na.png,x\nb.png,y\n", {**FINDINGS, "findings": ["x", "x"]}, "each finding once"),
        ("path,label\na.png,x\nb.png,y\n", {**FINDINGS, "findings": ["z"]}, "finding z: .*must hold 'z'"),
        (
            "path,m,e\na.png,1,\nb.png,0,\n",
            {**FINDINGS, "label_column": None, "findings": ["m", "e"], "uncertain": {"": "ignore"}},
            "finding e: .*nobody labelled it: no cell says yes or no",
        ),
        (
            "path,m,patient_id\na.png,1,1\nb.png,0,0\n",
            {**FINDINGS, "label_column": None, "findings": ["m", "patient_id"]},
            "column patient_id is to be a label and something else as well",
        ),
        ("path,label\na.png,1\nb.png,0\n", {"findings": ["x"]}, "with task: binary findings must be null"),
    ],
)
def test_a_list_that_does_not_go_with_its_task(tmp_path, text, options, said):
    with pytest.raises(ValueError, match=said) as told:
        load(tmp_path, text, **options)
    assert "\n" not in str(told.value)
