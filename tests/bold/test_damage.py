"""A store that was damaged after it was made: every damage is found, names its file, and has a cure that works."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import xarray as xr

from vidbrain.bold.ingest import ingest
from vidbrain.bold.parcels.placement import add_parcels
from vidbrain.bold.store import open_bold, open_record
from vidbrain.cli.app import run
from vidbrain.errors import BoldError, StorageError

RUN = "sub-01_ses-001_task-toy_run-1"
OTHER = "sub-01_ses-001_task-toy_run-2"


def files_of(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture
def root(copied_store) -> Path:
    add_parcels(copied_store, "own", n=4)
    return copied_store.root


def damaged(root):
    return {part: error for part, error in open_record(root).damages() if error is not None}


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def cut(path):
    path.write_bytes(path.read_bytes()[:-8])


def empty(path):
    path.write_bytes(b"")


ARRAYS = [
    f"{RUN}.zarr/kept/c/0", f"{RUN}.zarr/dead/c/0", f"{RUN}.zarr/time_s/c/0", f"{RUN}.zarr/i/c/0",
    f"{RUN}.zarr/bold/c/0/0", f"{RUN}.zarr/confounds/c/0/0", "grid.zarr/column/c/0", "grid.zarr/j/c/0",
    "parcels/bisection-4.zarr/parcel/c/0", "parcels/bisection-4.zarr/network/c/0",
]  # fmt: skip
RECORDS = [f"{RUN}.zarr/bold/zarr.json", f"{RUN}.zarr/kept/zarr.json", "grid.zarr/i/zarr.json"]


@pytest.mark.parametrize("spoil", [flip, cut, empty, Path.unlink])
def test_every_damaged_file_is_named_and_other_parts_are_right(root, spoil):
    assert damaged(root) == {}
    for name in [*ARRAYS, *RECORDS]:
        before = (root / name).read_bytes()
        spoil(root / name)
        found = damaged(root)
        (root / name).write_bytes(before)
        part = name.split(".zarr")[0].removeprefix("grid") or "grid.zarr"
        assert list(found) == [part if part in (RUN, "grid.zarr") else f"{part}.zarr"], name
        assert str(root / name) in str(found.popitem()[1]), name
    assert damaged(root) == {}


@pytest.mark.parametrize("spoil", [cut, empty, Path.unlink])
def test_the_record_of_a_group_is_read_too(root, spoil):
    for name in (f"{OTHER}.zarr", "grid.zarr", "parcels/bisection-4.zarr"):
        before = (root / name / "zarr.json").read_bytes()
        spoil(root / name / "zarr.json")
        ((_, error),) = damaged(root).items()
        (root / name / "zarr.json").write_bytes(before)
        assert name in str(error)


def test_an_index_that_zarr_cannot_read_is_damage_though_vidbrain_reads_without_it(root):
    shard = root / f"{RUN}.zarr" / "bold" / "c" / "0" / "0"
    cut(shard)
    open_bold(root).read(RUN)
    with pytest.raises(ValueError, match=r"."):
        xr.open_zarr(root / f"{RUN}.zarr", chunks=None)["bold"].values  # noqa: B018 -- read it
    with pytest.raises(StorageError, match="index of a Zarr shard") as caught:
        open_bold(root).verify(RUN)
    assert str(shard) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("affine", lambda info: info["affine"][0].__setitem__(3, 99.0)),
        ("tr_s", lambda info: info.update(tr_s=2.5)),
        ("shape", lambda info: info.update(shape=[9, 9, 9])),
        ("n_dead", lambda info: info["runs"][0].update(n_dead=info["runs"][0]["n_dead"] + 1)),
    ],
)
def test_an_edited_root_record_disagrees_with_its_runs(root, name, change):
    info = json.loads((root / "info.json").read_text())
    change(info)
    (root / "info.json").write_text(json.dumps(info))
    assert RUN in damaged(root)
    with pytest.raises(StorageError, match=name) as caught:
        open_bold(root)
    assert "info.json" in str(caught.value)


def test_an_edited_count_of_a_later_run_is_found(root):
    info = json.loads((root / "info.json").read_text())
    info["runs"][1]["n_trs"] -= 1
    (root / "info.json").write_text(json.dumps(info))
    ((part, error),) = damaged(root).items()
    assert part == OTHER
    assert "volumes" in error.message


@pytest.mark.parametrize("name", ["runs", "tr_s", "affine", "n_voxels"])
def test_a_root_record_that_lacks_something_is_a_clear_error(root, name):
    info = json.loads((root / "info.json").read_text())
    del info[name]
    (root / "info.json").write_text(json.dumps(info))
    with pytest.raises(StorageError, match=f"no right {name}"):
        open_bold(root)


def test_a_root_record_without_the_flag_of_simulated_data_is_never_taken_for_real_data(root):
    info = json.loads((root / "info.json").read_text())
    del info["simulated"]
    (root / "info.json").write_text(json.dumps(info))
    with pytest.raises(StorageError, match="whether the data are simulated"):
        open_bold(root).simulated  # noqa: B018 -- ask


@pytest.mark.parametrize("record", ["{}", "[]", '{"in_use": "x", "sets": {}}', '{"in_use": null, "sets": {"a": {}}}'])
def test_a_damaged_record_of_the_sets_is_a_clear_error(root, record):
    (root / "parcels" / "sets.json").write_text(record)
    for call in (lambda: open_bold(root, "bisection-4"), lambda: open_bold(root).open(RUN)):
        with pytest.raises(StorageError, match="record of the sets of parcels is damaged"):
            call()
    assert list(damaged(root)) == ["parcels/sets.json"]


def test_a_lost_run_is_named_beside_the_others_and_made_again_by_the_same_command(
    store_root, derivatives, tmp_path, capsys
):
    root = Path(shutil.copytree(store_root, tmp_path / "b"))
    shutil.rmtree(root / f"{OTHER}.zarr")
    flip(root / f"{RUN}.zarr" / "kept" / "c" / "0")
    assert run(["bold", "verify", str(root), "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert [(row["part"], row["whole"]) for row in rows] == [(RUN, False), (OTHER, False), ("grid.zarr", True)]
    shutil.rmtree(root / f"{RUN}.zarr")
    with pytest.raises(StorageError, match="lacks"):
        open_bold(root)
    assert run(["bold", "ingest", str(derivatives), "--out", str(root), "--workers", "0"]) == 0
    assert files_of(root) == files_of(store_root)


@pytest.mark.parametrize("name", ["bold/c/0/0", "zarr.json"])
def test_after_a_kill_a_damaged_run_is_made_again(store_root, derivatives, tmp_path, name):
    root = Path(shutil.copytree(store_root, tmp_path / "b"))
    (root / "info.json").unlink()
    path = root / f"{OTHER}.zarr" / name
    path.unlink() if name.startswith("bold") else cut(path)
    ingest(derivatives, root)
    assert files_of(root) == files_of(store_root)


def test_runs_that_the_record_does_not_name_are_removed_and_nothing_else(store_root, derivatives, tmp_path):
    root = Path(shutil.copytree(store_root, tmp_path / "b"))
    (root / "info.json").unlink()
    fewer = shutil.copytree(derivatives, tmp_path / "fmriprep", ignore=shutil.ignore_patterns("truth", "*run-2*"))
    mine = xr.Dataset({"x": ("t", np.arange(3.0))}, attrs={"run": "notes"})
    mine.to_zarr(root / "notes.zarr", zarr_format=3, consolidated=False)
    shutil.copytree(root / f"{OTHER}.zarr", root / "kept-by-me.zarr")
    ingest(fewer, root)
    assert sorted(path.name for path in root.iterdir()) == [
        "grid.zarr", "info.json", "kept-by-me.zarr", "notes.zarr", f"{RUN}.zarr",
    ]  # fmt: skip
    assert open_bold(root).runs == (RUN,)


def test_maps_without_a_positive_weight_leave_nothing_behind(copied_store, tmp_path):
    before = files_of(copied_store.root)
    weights = np.full((*copied_store.shape, 2), -1.0, np.float32)
    nibabel.Nifti1Image(weights, copied_store.affine).to_filename(tmp_path / "neg.nii")
    with pytest.raises(BoldError, match="lies in a parcel"):
        add_parcels(copied_store, tmp_path / "neg.nii")
    assert files_of(copied_store.root) == before


@pytest.mark.parametrize("words", [["export", "--out", "ex"], ["ls", "--parcels", "bisection-4"]])
def test_commands_meet_damage_with_a_clear_error(root, tmp_path, capsys, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    empty(root / f"{RUN}.zarr" / "i" / "c" / "0")
    empty(root / "parcels" / "bisection-4.zarr" / "parcel" / "c" / "0")
    assert run(["bold", words[0], str(root), *words[1:]]) == 1
    said = "".join(capsys.readouterr().err.split())
    assert "cannotberead" in said
    assert ".zarr" in said
