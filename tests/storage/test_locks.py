import fcntl
import os
import threading

import pytest

from vidbrain.errors import StorageError
from vidbrain.storage.locks import LOCK, locked


def test_one_at_a_time_and_nothing_is_left(tmp_path):
    with locked(tmp_path / "made") as alone:
        assert alone
        with pytest.raises(StorageError, match="another process writes here"), locked(tmp_path / "made"):
            pass
        assert (tmp_path / "made" / LOCK).exists()
    assert list((tmp_path / "made").iterdir()) == []
    with locked(tmp_path / "made"):
        pass


def test_an_error_inside_lets_go(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        1 / 0  # noqa: B018 -- raises
    with locked(tmp_path):
        pass


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    """Between opening the file and locking it, its last holder removes it."""
    flock, calls = fcntl.flock, []

    def late(handle, how):
        calls.append(handle)
        if len(calls) == 1:
            (tmp_path / LOCK).unlink()
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(tmp_path):
        assert len(calls) == 2
        with pytest.raises(StorageError, match="another process writes here"), locked(tmp_path):
            pass


def test_writers_take_turns(tmp_path):
    """Four threads, each with its own handle; never two inside."""
    inside, most, entered = [0], [0], [0]
    guard = threading.Lock()

    def work():
        for _ in range(300):
            try:
                with locked(tmp_path):
                    with guard:
                        inside[0] += 1
                        entered[0] += 1
                        most[0] = max(most[0], inside[0])
                    os.sched_yield()
                    with guard:
                        inside[0] -= 1
            except StorageError:
                os.sched_yield()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert entered[0] > 0
    assert most[0] == 1
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_is_an_error(tmp_path):
    (tmp_path / "dead").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "dead", tmp_path / "dead" / "below", tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StorageError), locked(folder):
            pass
