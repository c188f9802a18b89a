"""DICOM files made here, read back as grey levels."""

import io
import warnings

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
    generate_uid,
)

from tmv_lib.data import dicom
from tmv_lib.data.dicom import is_dicom, read_header

RAMP = np.arange(256).reshape(16, 16)


def read_dicom(path) -> np.ndarray:
    """The grey levels alone."""
    return dicom.read_dicom(path)[0]


def write(path, pixels, *, bits=8, signed=False, syntax=None, **elements):
    """Write a minimal grey DICOM file; `elements` go into the data set under their keywords."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = ComputedRadiographyImageStorage
    data.SOPInstanceUID = generate_uid()
    data.Rows, data.Columns = pixels.shape[-2:]
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.BitsAllocated = 8 if bits <= 8 else 16
    data.BitsStored, data.HighBit = bits, bits - 1
    data.PixelRepresentation = int(signed)
    data.PixelData = pixels.astype(f"<{'i' if signed else 'u'}{data.BitsAllocated // 8}").tobytes()
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    if syntax:
        data.compress(syntax)
    data.save_as(path, enforce_file_format=True)
    return path


def table(entries, *, first, bits):
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item["LUTDescriptor"].VR = "SS" if first < 0 else "US"
    item.add_new("LUTData", "OW", np.asarray(entries, dtype="<u2").tobytes())
    return item


def by_pydicom(path):
    """pydicom's own display chain, brought from the range of its output to 0 to 255."""
    data = pydicom.dcmread(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        shown = apply_voi_lut(apply_modality_lut(data.pixel_array, data), data)
    low = -(2 ** (data.BitsStored - 1)) if data.PixelRepresentation else 0
    ends = np.array([low, low + 2**data.BitsStored - 1]) * data.get("RescaleSlope", 1) + data.get("RescaleIntercept", 0)
    return np.rint(255 * (shown - ends[0]) / (ends[1] - ends[0])).clip(0, 255).astype(np.uint8)


def test_eight_bits_stand_as_they_are(tmp_path):
    pixels = RAMP[4:12] // 2 + 40
    np.testing.assert_array_equal(read_dicom(write(tmp_path / "a.dcm", pixels)), pixels)


def test_signed_eight_bits_keep_their_range(tmp_path):
    np.testing.assert_array_equal(read_dicom(write(tmp_path / "a.dcm", RAMP - 128, signed=True)), RAMP)


@pytest.mark.parametrize(
    ("bits", "signed", "low"), [(12, False, 300), (12, True, -1700), (16, False, 0), (16, True, -9000)]
)
def test_deeper_images_go_from_smallest_to_largest(tmp_path, bits, signed, low):
    path = write(tmp_path / "a.dcm", low + 9 * RAMP, bits=bits, signed=signed)
    np.testing.assert_array_equal(read_dicom(path), RAMP)


def test_monochrome1_is_the_negative(tmp_path):
    plain = read_dicom(write(tmp_path / "a.dcm", RAMP))
    inverted = read_dicom(write(tmp_path / "b.dcm", RAMP, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(inverted, 255 - plain)


def test_linear_window_known_values(tmp_path):
    # (x - (c - 1/2)) / (w - 1) + 1/2 with c = 1000, w = 201: 0 at 899.5, 1/2 at 999.5, 1 at 1099.5.
    pixels = np.array([[0, 899, 900], [1000, 1099, 4095]])
    path = write(tmp_path / "a.dcm", pixels, bits=12, WindowCenter=1000, WindowWidth=201)
    np.testing.assert_array_equal(read_dicom(path), [[0, 0, 1], [128, 254, 255]])


def test_first_of_several_windows(tmp_path):
    several = write(tmp_path / "a.dcm", 16 * RAMP, bits=12, WindowCenter=[800, 2000], WindowWidth=[600, 4000])
    one = write(tmp_path / "b.dcm", 16 * RAMP, bits=12, WindowCenter=800, WindowWidth=600)
    np.testing.assert_array_equal(read_dicom(several), read_dicom(one))


def test_window_refers_to_rescaled_values(tmp_path):
    rescaled = write(
        tmp_path / "a.dcm", RAMP, bits=12, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=100, WindowWidth=256
    )
    plain = write(tmp_path / "b.dcm", 2 * RAMP - 100, bits=12, signed=True, WindowCenter=100, WindowWidth=256)
    np.testing.assert_array_equal(read_dicom(rescaled), read_dicom(plain))


def test_empty_window_is_no_window(tmp_path):
    path = write(tmp_path / "a.dcm", 7 * RAMP, bits=12, WindowCenter=None, WindowWidth=None)
    np.testing.assert_array_equal(read_dicom(path), RAMP)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("signed", [False, True])
def test_windows_agree_with_pydicom(tmp_path, function, signed):
    path = write(
        tmp_path / "a.dcm",
        16 * RAMP - 2048 * signed,
        bits=12,
        signed=signed,
        RescaleSlope=1.5,
        RescaleIntercept=-7,
        WindowCenter=900,
        WindowWidth=1100,
        VOILUTFunction=function,
    )
    np.testing.assert_array_equal(read_dicom(path), by_pydicom(path))


@pytest.mark.parametrize(("first", "signed"), [(0, False), (500, False), (-600, True)])
def test_lookup_table_agrees_with_pydicom(tmp_path, first, signed):
    entries = (np.linspace(0, 1, 3000) ** 2 * 4095).astype(int)
    path = write(
        tmp_path / "a.dcm",
        8 * RAMP - 1000 * signed,
        bits=12,
        signed=signed,
        VOILUTSequence=[table(entries, first=first, bits=12)],
    )
    expected = apply_voi_lut(8 * RAMP - 1000 * signed, pydicom.dcmread(path))
    np.testing.assert_array_equal(read_dicom(path), np.rint(expected * (255 / 4095)))


def test_lookup_table_goes_before_the_window(tmp_path):
    lut = [table(np.arange(4096)[::-1], first=0, bits=12)]
    both = write(tmp_path / "a.dcm", 16 * RAMP, bits=12, VOILUTSequence=lut, WindowCenter=9, WindowWidth=5)
    np.testing.assert_array_equal(read_dicom(both), np.rint((4095 - 16 * RAMP) * (255 / 4095)))


def test_lookup_table_of_bytes_reaches_beyond_256_entries(tmp_path):
    lut = [table(np.arange(4096) // 16, first=0, bits=8)]
    np.testing.assert_array_equal(read_dicom(write(tmp_path / "a.dcm", 16 * RAMP, bits=12, VOILUTSequence=lut)), RAMP)


def test_modality_lookup_table(tmp_path):
    item = table(np.arange(256)[::-1] * 16, first=0, bits=12)
    item.ModalityLUTType = "US"
    path = write(tmp_path / "a.dcm", RAMP, bits=12, ModalityLUTSequence=[item])
    np.testing.assert_array_equal(read_dicom(path), 255 - RAMP)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_outside_the_range(tmp_path, photometric):
    pixels = 1000 + 7 * RAMP
    pixels[:, :4] = -2000
    path = write(
        tmp_path / "a.dcm",
        pixels,
        bits=16,
        signed=True,
        PixelPaddingValue=-2000,
        PhotometricInterpretation=photometric,
    )
    grey = read_dicom(path)
    assert (grey[:, :4] == 0).all()
    assert (grey[:, 4:].min(), grey[:, 4:].max()) == (0, 255)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (12, False), (16, True)])
def test_lossless_compression_changes_nothing(tmp_path, syntax, bits, signed):
    # 64 x 64, because the JPEG 2000 encoder refuses smaller images.
    pixels = np.tile(RAMP, (4, 4)) * 2 ** (bits - 8) - 2**15 * signed
    plain = write(tmp_path / "a.dcm", pixels, bits=bits, signed=signed)
    packed = write(tmp_path / "b.dcm", pixels, bits=bits, signed=signed, syntax=syntax)
    np.testing.assert_array_equal(read_dicom(packed), read_dicom(plain))


def test_jpeg_compression(tmp_path):
    smooth = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(smooth).save(buffer, "JPEG", quality=95)
    path = write(tmp_path / "a.dcm", smooth)
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    data.PixelData = encapsulate([buffer.getvalue()])
    data["PixelData"].VR = "OB"
    data.save_as(path)
    assert np.abs(read_dicom(path).astype(int) - smooth).max() <= 2


def test_several_frames_are_refused(tmp_path):
    path = write(tmp_path / "clip.dcm", np.stack([RAMP, RAMP]), NumberOfFrames=2)
    with pytest.raises(ValueError, match=r"clip\.dcm.*2 frames"):
        read_dicom(path)


def test_colour_is_refused(tmp_path):
    colour = np.stack([RAMP] * 3, axis=-1)
    path = write(
        tmp_path / "photo.dcm",
        RAMP,
        SamplesPerPixel=3,
        PlanarConfiguration=0,
        PhotometricInterpretation="RGB",
        PixelData=colour.astype(np.uint8).tobytes(),
    )
    with pytest.raises(ValueError, match=r"photo\.dcm.*RGB"):
        read_dicom(path)


def test_a_report_without_image_is_refused(tmp_path):
    path = write(tmp_path / "report.dcm", RAMP, Modality="SR")
    data = pydicom.dcmread(path)
    del data.PixelData
    data.save_as(path)
    with pytest.raises(ValueError, match=r"report\.dcm.*no pixel data, modality SR"):
        read_dicom(path)


def test_broken_files_are_named(tmp_path):
    whole = write(tmp_path / "whole.dcm", RAMP).read_bytes()
    for name, content in {"cut.dcm": whole[:-100], "text.dcm": b"not an image", "empty.dcm": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            read_dicom(tmp_path / name)


def test_windows_that_cannot_be_are_named(tmp_path):
    with pytest.raises(ValueError, match="window of centre 9 and width 0 cannot be one for LINEAR"):
        read_dicom(write(tmp_path / "a.dcm", RAMP, WindowCenter=9, WindowWidth=0))
    with pytest.raises(ValueError, match="VOI LUT function 'CUBIC'"):
        read_dicom(write(tmp_path / "a.dcm", RAMP, WindowCenter=9, WindowWidth=9, VOILUTFunction="CUBIC"))
    with pytest.raises(ValueError, match="every pixel is padding"):
        read_dicom(write(tmp_path / "a.dcm", 0 * RAMP, PixelPaddingValue=0))


def test_header_has_what_the_file_says(tmp_path):
    path = write(tmp_path / "a.dcm", RAMP, PatientID="007", Manufacturer="Acme ", ViewPosition="PA", StudyDate="")
    assert read_header(path) == {"patient_id": "007", "manufacturer": "Acme", "view_position": "PA"}


def test_dicom_is_known_by_content_or_suffix(tmp_path):
    assert is_dicom(write(tmp_path / "no_suffix", RAMP))
    (tmp_path / "broken.DCM").write_bytes(b"")
    assert is_dicom(tmp_path / "broken.DCM")
    Image.fromarray(RAMP.astype(np.uint8)).save(tmp_path / "a.png")
    assert not is_dicom(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        ({"RescaleSlope": 0}, "rescale slope 0"),
        ({"RescaleSlope": float("nan")}, "rescale slope nan"),
        ({"RescaleIntercept": float("inf")}, "intercept inf"),
        ({"WindowCenter": 9, "WindowWidth": float("inf")}, "window of centre 9 and width inf"),
        ({"WindowCenter": 9, "WindowWidth": 1e20}, "leaves one grey level of an image that has more"),
        ({"PresentationLUTShape": "INVERSE"}, "one says white, the other black"),
        ({"HighBit": 11}, "only the lowest bits of a pixel are read"),
        ({"PixelAspectRatio": [1, 2]}, "pixels of 1 by 2, only square ones are read"),
        ({"PixelSpacing": [0.2, 0.1]}, "pixels of 0.2 by 0.1"),
        ({"SamplesPerPixel": 3}, "MONOCHROME2 of 3 samples per pixel"),
        ({"SharedFunctionalGroupsSequence": [Dataset()]}, "inside functional groups"),
        ({"Modality": "SEG"}, "modality SEG, whose values are no picture"),
        ({"Rows": 8}, "256 bytes of pixel data, the header asks for 128"),
        ({"Rows": 60_000, "Columns": 60_000}, "60000 x 60000 pixels, 1 to 50,000,000 are read"),
        ({"Rows": None}, "Rows is missing"),
    ],
)
def test_what_a_header_says_and_nothing_here_honours_is_refused_by_name(tmp_path, elements, words):
    with pytest.raises(ValueError, match=rf"a\.dcm: not a readable DICOM image .*{words}"):
        read_dicom(write(tmp_path / "a.dcm", RAMP, **elements))


def test_values_beyond_the_stored_bits_are_refused_but_for_padding(tmp_path):
    pixels = np.where(RAMP == 0, 65535, RAMP)
    with pytest.raises(ValueError, match="value 65535, the 12 bits stored hold 0 to 4095"):
        read_dicom(write(tmp_path / "a.dcm", pixels, bits=12))
    shown = read_dicom(write(tmp_path / "b.dcm", pixels, bits=12, PixelPaddingValue=65535))
    assert shown[0, 0] == 0
    assert shown.max() == 255


def test_a_lookup_table_is_scaled_by_the_bits_that_its_entries_use(tmp_path):
    twelve = [table(np.arange(4096), first=0, bits=12)]
    sixteen = [table(np.arange(4096), first=0, bits=16)]
    right = write(tmp_path / "a.dcm", 16 * RAMP, bits=12, VOILUTSequence=twelve)
    wrong = write(tmp_path / "b.dcm", 16 * RAMP, bits=12, VOILUTSequence=sixteen)
    np.testing.assert_array_equal(read_dicom(wrong), read_dicom(right))
    assert dicom.read_dicom(right)[1] == ""
    assert dicom.read_dicom(wrong)[1] == "its lookup table says 16 bits and reaches 4095: read as 12"


@pytest.mark.parametrize(("columns", "bits"), [(20_000, 8), (16, 12)])
def test_a_codestream_of_another_size_or_depth_than_the_header_is_refused_before_it_is_decoded(
    tmp_path, columns, bits, monkeypatch
):
    stream = io.BytesIO()
    Image.fromarray(RAMP.astype(np.uint8)).save(stream, "JPEG")
    said = stream.getvalue()
    place = said.index(b"\xff\xc0") + 5
    said = said[:place] + (16).to_bytes(2) + columns.to_bytes(2) + said[place + 4 :]
    path = write(tmp_path / "a.dcm", RAMP, bits=8)
    data = pydicom.dcmread(path)
    data.PixelData = encapsulate([said])
    data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
    data.BitsAllocated, data.BitsStored, data.HighBit = (16, bits, bits - 1) if bits > 8 else (8, 8, 7)
    data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    data.save_as(path)
    monkeypatch.setattr(Dataset, "pixel_array", property(lambda _: pytest.fail("it was decoded")))
    with pytest.raises(ValueError, match=rf"compressed are {columns} x 16 pixels of 8 bits, the header says 16 x 16"):
        read_dicom(path)


def test_a_deflated_file_is_refused_before_it_is_unpacked(tmp_path):
    path = write(tmp_path / "a.dcm", RAMP)
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data.save_as(path)
    with pytest.raises(ValueError, match=r"a\.dcm: not a readable DICOM image \(deflated"):
        read_dicom(path)


def test_a_file_without_preamble_is_read_by_its_suffix(tmp_path):
    path = write(tmp_path / "a.dcm", RAMP)
    (tmp_path / "bare.dcm").write_bytes(path.read_bytes()[132:])
    np.testing.assert_array_equal(read_dicom(tmp_path / "bare.dcm"), RAMP)
