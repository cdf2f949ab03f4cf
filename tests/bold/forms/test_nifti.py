import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest

from vidbrain.bold.forms.nifti import read_blocks, read_volume, series_facts
from vidbrain.bold.forms.nifti_writer import SeriesWriter, write_volume
from vidbrain.bold.forms.series import scaled
from vidbrain.errors import BoldError, StorageError

DATA = Path(nibabel.__file__).parent / "tests" / "data"


def as_volumes(path: Path, block: int = 3) -> np.ndarray:
    facts = series_facts(path)
    flat = np.concatenate([scaled(facts, stored) for _, stored in read_blocks(facts, block)])
    return np.stack([row.reshape(facts.shape, order="F") for row in flat], axis=-1)


@pytest.mark.parametrize("name", ["functional.nii", "example4d.nii.gz", "example_nifti2.nii.gz"])
def test_real_series_have_the_values_that_nibabel_reads(name):
    image = nibabel.load(DATA / name)
    facts = series_facts(DATA / name)
    assert (*facts.shape, facts.n_trs) == image.shape
    assert np.array_equal(facts.affine, image.affine)
    assert np.allclose(as_volumes(DATA / name), image.get_fdata(), rtol=1e-12)


@pytest.mark.parametrize("dtype", [">i2", "<i2", "<u2", ">f4", "<f8", "|u1", "<i4"])
@pytest.mark.parametrize("end", [".nii", ".nii.gz"])
def test_types_byte_orders_and_scales(tmp_path, dtype, end):
    rng = np.random.default_rng(2)
    order = ">" if dtype[0] == ">" else "<"
    image = nibabel.Nifti1Image(
        rng.integers(0, 200, size=(4, 5, 6, 7)).astype(dtype), np.eye(4), nibabel.Nifti1Header(endianness=order)
    )
    image.set_data_dtype(np.dtype(dtype))
    if "f" not in dtype:
        image.header.set_slope_inter(0.25, -3.0)
    path = tmp_path / f"series{end}"
    image.to_filename(path)
    found = nibabel.load(path)
    assert series_facts(path).dtype == found.header.get_data_dtype().str
    assert np.allclose(as_volumes(path), found.get_fdata(), rtol=1e-12)


def test_repetition_time_is_read_in_seconds(tmp_path):
    assert series_facts(DATA / "functional.nii").tr_s == 2.0
    assert series_facts(DATA / "example4d.nii.gz").tr_s == 2.0  # the file calls its 2000 milliseconds seconds
    image = nibabel.Nifti1Image(np.zeros((2, 2, 2, 3), np.int16), np.eye(4))
    cases = [(1490.0, "msec", 1.49), (1.49, "sec", 1.49), (1.49, "unknown", 1.49), (0.0, "sec", None)]
    for zoom, unit, expected in cases:
        image.header.set_xyzt_units("mm", unit)
        image.header["pixdim"][4] = zoom
        image.to_filename(tmp_path / "t.nii")
        assert series_facts(tmp_path / "t.nii").tr_s == expected


@pytest.mark.parametrize(
    ("place", "kind", "value"),
    [
        (70, "<i2", 999),
        (108, "<f4", 100.0),
        (108, "<f4", -1e9),
        (108, "<f4", np.nan),
        (116, "<f4", np.nan),
        (116, "<f4", np.inf),
        (40, "<i2", 99),
        (123, "u1", 255),
    ],
)
def test_headers_that_nibabel_cannot_read_name_their_file(tmp_path, place, kind, value):
    path = tmp_path / "spoilt.nii"
    nibabel.Nifti1Image(np.ones((2, 2, 2, 3), np.int16), np.eye(4)).to_filename(path)
    content = bytearray(path.read_bytes())
    content[112:116] = np.array(1, "<f4").tobytes()
    field = np.array(value, kind).tobytes()
    content[place : place + len(field)] = field
    path.write_bytes(content)
    with pytest.raises(BoldError) as caught:
        series_facts(path)
    assert caught.value.where == str(path)


def test_axes_of_length_one_after_time_are_dropped(tmp_path):
    path = tmp_path / "five.nii"
    image = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 2, 2, 3, 1), np.eye(4))
    image.to_filename(path)
    assert np.array_equal(as_volumes(path), image.get_fdata()[..., 0])


def test_what_is_written_reads_back_with_nibabel(tmp_path):
    rng = np.random.default_rng(3)
    values = rng.normal(100, 20, size=(9, 4, 5, 6))
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = (-70, -100, -60)
    for name in ("a", "b"):
        with SeriesWriter(tmp_path / name, (4, 5, 6, 9), affine, 1.49, 0.2) as writer:
            for first in (0, 4, 8):
                writer.write(values[first : first + 4])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    (tmp_path / "a").rename(tmp_path / "a.nii.gz")
    image = nibabel.load(tmp_path / "a.nii.gz")
    assert image.get_data_dtype() == np.int16
    assert image.header.get_zooms()[3] == pytest.approx(1.49)
    assert image.header.get_xyzt_units() == ("mm", "sec")
    assert np.allclose(image.affine, affine)
    assert np.abs(np.moveaxis(image.get_fdata(), -1, 0) - values).max() <= 0.1 + 1e-9
    assert np.allclose(as_volumes(tmp_path / "a.nii.gz"), image.get_fdata())


def test_a_writer_that_stops_early_says_so(tmp_path):
    with (
        pytest.raises(ValueError, match="3 volumes were never written"),
        SeriesWriter(tmp_path / "a", (2, 2, 2, 4), np.eye(4), 1.0, 1.0) as writer,
    ):
        writer.write(np.zeros((1, 2, 2, 2)))


def test_volumes_round_trip(tmp_path):
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    write_volume(tmp_path / "v.nii.gz", values, np.diag([2.0, 2, 2, 1]))
    found, affine = read_volume(tmp_path / "v.nii.gz")
    assert np.array_equal(found, values)
    assert np.array_equal(affine, np.diag([2.0, 2, 2, 1]))
    assert np.allclose(read_volume(DATA / "anatomical.nii")[0], nibabel.load(DATA / "anatomical.nii").get_fdata())


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_a_packed_file_that_is_cut_off_is_refused(tmp_path, keep):
    data = (DATA / "example4d.nii.gz").read_bytes()
    path = tmp_path / "cut.nii.gz"
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(BoldError, match=r"cut off|ends before"):
        as_volumes(path)


def test_a_flipped_bit_at_the_end_is_found_by_the_checksum(tmp_path):
    data = bytearray((DATA / "example4d.nii.gz").read_bytes())
    data[-8] ^= 1
    path = tmp_path / "bad.nii.gz"
    path.write_bytes(bytes(data))
    with pytest.raises(BoldError, match="damaged"):
        as_volumes(path)


def test_a_plain_file_that_is_cut_off_is_refused_by_its_size(tmp_path):
    path = tmp_path / "cut.nii"
    path.write_bytes((DATA / "functional.nii").read_bytes()[:-100])
    with pytest.raises(BoldError, match="cut off"):
        series_facts(path)


def test_files_that_are_no_series_are_refused(tmp_path):
    with pytest.raises(BoldError, match="4-D"):
        series_facts(DATA / "anatomical.nii")
    (tmp_path / "text.nii.gz").write_bytes(gzip.compress(b"not an image" * 100))
    with pytest.raises(BoldError, match="not a readable NIfTI"):
        series_facts(tmp_path / "text.nii.gz")
    with pytest.raises(StorageError, match="no such file"):
        series_facts(tmp_path / "none.nii.gz")
    with pytest.raises(BoldError, match="3-D"):
        read_volume(DATA / "functional.nii")
    nibabel.Nifti1Image(np.zeros((2, 2, 2, 2), np.complex64), np.eye(4)).to_filename(tmp_path / "c.nii")
    with pytest.raises(BoldError, match="complex64"):
        series_facts(tmp_path / "c.nii")
