"""A folder has one writer: a second process of the same command is refused, and disturbs nothing."""

import pytest

from vidbrain.bold.parcels.placement import add_parcels
from vidbrain.bold.parcels.series import write_parcel_store
from vidbrain.bold.store import open_bold
from vidbrain.cli.app import run
from vidbrain.errors import StorageError
from vidbrain.storage.locks import LOCK, locked


def files_of(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_a_second_ingest_is_refused_and_the_first_ends_undisturbed(derivatives, store_root, tmp_path, holding, capsys):
    words = ["bold", "ingest", str(derivatives), "--out", str(tmp_path / "b"), "--workers", "0"]
    with holding("vidbrain.bold.ingest.ingest_run", *words):
        before = files_of(tmp_path / "b")
        assert LOCK in before
        assert run(words) == 1
        said = " ".join(capsys.readouterr().err.split())
        assert "another process writes here" in said
        assert "wait until the other one has ended" in said
        assert files_of(tmp_path / "b") == before
    assert files_of(tmp_path / "b") == files_of(store_root)
    (tmp_path / "b" / LOCK).touch()  # as a kill after the root record leaves it
    assert run(words) == 0
    assert files_of(tmp_path / "b") == files_of(store_root)


@pytest.mark.parametrize("where", ["simulate.measure_run", "experiment.write_scan"])
def test_a_second_simulation_is_refused(tree, derivatives, tmp_path, holding, capsys, where):
    words = ["bold", "simulate", str(tree), "--out", str(tmp_path / "s"), "--workers", "0"]
    words += ["--resolution-mm", "12", "--ceiling", "0.65", "--seed", "3"]
    with holding(f"vidbrain.bold.simulation.{where}", *words):
        before = files_of(tmp_path / "s")
        assert run(words) == 1
        assert "another process writes here" in capsys.readouterr().err
        assert files_of(tmp_path / "s") == before
    assert files_of(tmp_path / "s") == files_of(derivatives)


def test_parcels_have_one_writer_too(store_root, tmp_path, copied_store):
    add_parcels(copied_store, "own", n=4)
    with locked(copied_store.root / "parcels"), pytest.raises(StorageError, match="another process"):
        add_parcels(copied_store, "own", n=5)
    store = open_bold(copied_store.root)
    with locked(tmp_path / "p"), pytest.raises(StorageError, match="another process"):
        write_parcel_store(store, tmp_path / "p")
    write_parcel_store(store, tmp_path / "p")
    (tmp_path / "p" / LOCK).touch()
    write_parcel_store(store, tmp_path / "p")
    assert not list(tmp_path.rglob(LOCK))
