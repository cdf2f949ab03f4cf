import errno
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from vidbrain.errors import ResumeError, StorageError
from vidbrain.storage import atomic, info, roots


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "x.bin"
    with atomic.replacing(target) as part:
        part.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"

    def fail():
        with atomic.replacing(target) as part:
            part.write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert target.read_bytes() == b"new"
    assert [p.name for p in target.parent.iterdir()] == ["x.bin"]


def test_a_folder_replaces_a_folder(tmp_path):
    for content in ("old", "new"):
        with atomic.replacing(tmp_path / "store") as part:
            part.mkdir()
            (part / content).write_text(content)
    assert [p.name for p in (tmp_path / "store").iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_kill_leaves_only_a_part_that_sweep_removes(tmp_path):
    script = textwrap.dedent(f"""
        import os, signal
        from vidbrain.storage.atomic import replacing
        with replacing({str(tmp_path / "x")!r}) as part:
            part.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "x").exists()
    assert atomic.sweep(tmp_path) == 1
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path):
    target = tmp_path / "x"

    def fill():
        with atomic.replacing(target) as part:
            part.write_bytes(b"some")
            Path("/dev/full").write_bytes(b"the kernel's own refusal")

    with pytest.raises(StorageError, match="the disk is full") as caught:
        fill()
    assert caught.value.hint
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_refused_before_work(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match=r"a file, not a folder|File exists"):
        atomic.check_writable(tmp_path / "file" / "below")
    with pytest.raises(StorageError, match="needs about"):
        atomic.check_writable(tmp_path, n_bytes=10**18)


def test_root_record_names_what_differs(tmp_path):
    info.write_info(tmp_path, "bold", config={"tr_s": 1.49, "mask": None}, made_from={"nifti": "aa"})
    assert info.is_done(tmp_path, "bold", config={"mask": None, "tr_s": 1.49}, made_from={"nifti": "aa"})
    with pytest.raises(ResumeError, match=r"tr_s was 1\.49, is 2\.0"):
        info.is_done(tmp_path, "bold", config={"tr_s": 2.0, "mask": None}, made_from={"nifti": "aa"})
    with pytest.raises(StorageError, match="expected a features artefact, found 'bold'"):
        info.read_info(tmp_path, "features")
    record = atomic.read_json(tmp_path / "info.json")
    atomic.write_json(tmp_path / "info.json", {**record, "format_version": 99})
    with pytest.raises(StorageError, match="newer version"):
        info.read_info(tmp_path, "bold")


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "a\\b", "a\nb"])
def test_names_that_escape_are_refused(name):
    with pytest.raises(StorageError):
        roots.safe_name(name)


def test_data_root_prefers_what_was_given(monkeypatch):
    monkeypatch.setenv(roots.ENVIRONMENT, "/elsewhere")
    assert str(roots.data_root("here")) == "here"
    assert str(roots.data_root()) == "/elsewhere"
    monkeypatch.delenv(roots.ENVIRONMENT)
    assert str(roots.data_root()) == "shards"


@pytest.mark.parametrize(
    "damage", [{"config": None}, {"made_from": []}, {"format_version": "two"}, {"fingerprint": None}]
)
def test_a_damaged_root_record_is_one_clear_error(tmp_path, damage):
    record = info.write_info(tmp_path, "bold", config={}, made_from={})
    atomic.write_json(tmp_path / "info.json", {**record, **damage})
    with pytest.raises(StorageError, match="root record is damaged"):
        info.read_info(tmp_path, "bold")


def test_an_unfinished_file_that_another_command_sweeps_is_named(tmp_path):
    def write():
        with atomic.replacing(tmp_path / "a") as part:
            part.write_bytes(b"some")
            assert atomic.sweep(tmp_path) == 1

    with pytest.raises(StorageError, match="removed while it was written") as caught:
        write()
    assert "second time" in caught.value.likely
    assert not list(tmp_path.iterdir())


def test_json_nested_without_end_is_refused(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 200_000)
    with pytest.raises(StorageError, match="not valid JSON") as caught:
        atomic.read_json(tmp_path / "deep.json")
    assert caught.value.where == str(tmp_path / "deep.json")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_hints_name_no_option_that_a_command_may_lack(code):
    assert "--" not in (atomic.as_storage_error(OSError(code, "no"), "x").hint or "")
