import errno
import hashlib
import io

import numpy as np
import pytest

from vidbrain.errors import StorageError
from vidbrain.storage.clients import PART_BYTES
from vidbrain.storage.files import ObjectChangedError, ObjectMissingError
from vidbrain.storage.transfers import download, holds, sums_of, upload
from vidbrain.testing.servers import Fault

BIG = np.random.default_rng(1).bytes(2 * PART_BYTES + 12_345)


@pytest.fixture
def big(tmp_path):
    (tmp_path / "big").write_bytes(BIG)
    return tmp_path / "big"


@pytest.mark.parametrize("data", [b"", b"small", BIG[: 3 * 2**20], BIG], ids=["empty", "tiny", "one part", "parts"])
def test_files_come_back_as_they_went(remote, tmp_path, data):
    (tmp_path / "out").write_bytes(data)
    sums = upload(remote.root, "a/x", tmp_path / "out")
    assert (sums.n_bytes, sums.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    download(remote.root, "a/x", tmp_path / "back", n_bytes=len(data), sha256=sums.sha256)
    assert (tmp_path / "back").read_bytes() == data


def test_a_large_file_travels_in_parts_and_comes_in_ranges(honest, big, tmp_path):
    upload(honest.root, "x", big)
    puts = [seen for seen in honest.proxy.seen if seen.method == "PUT"]
    assert len(puts) == 3
    assert all("partNumber" in seen.path for seen in puts)
    # The server's own name for these parts is the one expected: nothing was read back.
    assert not honest.data_requests()
    download(honest.root, "x", tmp_path / "back")
    assert sorted(seen.n_bytes for seen in honest.data_requests()) == [12_345, PART_BYTES, PART_BYTES]


@pytest.mark.parametrize(
    "fault",
    [
        Fault("reset", method="GET", after_bytes=5 << 20, times=2),
        Fault("truncate", method="GET", after_bytes=1 << 20, times=2),
        Fault("status", method="GET", times=3),
        Fault("stale-etag", method="HEAD"),
    ],
    ids=lambda fault: fault.kind,
)
def test_a_spoilt_download_is_whole_in_the_end(remote, big, tmp_path, fault):
    upload(remote.root, "x", big)
    remote.proxy.inject(Fault(**vars(fault)))
    download(remote.root, "x", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == BIG


@pytest.mark.parametrize("kind", ["status", "drop"])
def test_a_spoilt_part_is_sent_again(remote, big, kind):
    remote.proxy.inject(Fault(kind, method="PUT", path="partNumber", times=2))
    upload(remote.root, "x", big)
    assert remote.root.head("x").n_bytes == len(BIG)


def test_an_object_that_is_replaced_all_the_time_is_an_error(remote, big, tmp_path):
    upload(remote.root, "x", big)
    remote.proxy.inject(Fault("stale-etag", method="HEAD", times=None))
    with pytest.raises(ObjectChangedError, match="replaced while it was read"):
        download(remote.root, "x", tmp_path / "back")
    assert [p.name for p in tmp_path.iterdir()] == ["big"]


def test_damage_is_found_and_leaves_no_file(honest, big, tmp_path):
    sums = upload(honest.root, "x", big)
    honest.proxy.inject(Fault("flip", method="GET"))
    with pytest.raises(StorageError, match="checksum differs"):
        download(honest.root, "x", tmp_path / "back", sha256=sums.sha256)
    with pytest.raises(StorageError, match="bytes, 5 were expected"):
        download(honest.root, "x", tmp_path / "back", n_bytes=5)
    with pytest.raises(ObjectMissingError):
        download(honest.root, "y", tmp_path / "back")
    honest.proxy.inject(Fault("status", method="GET", times=None))
    with pytest.raises(StorageError, match="too busy"):
        download(honest.patient_for(0.5), "x", tmp_path / "back")
    assert [p.name for p in tmp_path.iterdir()] == ["big"]


@pytest.mark.parametrize("size", [1000, len(BIG)])
def test_what_the_store_took_is_compared_with_what_was_sent(honest, tmp_path, size):
    (tmp_path / "x").write_bytes(BIG[:size])
    # This server stores what arrives, whatever its checksum says.
    honest.proxy.inject(Fault("flip", method="PUT"))
    with pytest.raises(StorageError, match="does not hold what was sent"):
        upload(honest.root, "x", tmp_path / "x")


def test_where_the_etag_tells_nothing_the_object_is_read_back(hostile, tmp_path):
    (tmp_path / "x").write_bytes(BIG[:1000])
    hostile.proxy.inject(Fault("stale-etag", times=None))  # the same for every object: no checksum
    sums = upload(hostile.root, "x", tmp_path / "x")
    assert [seen.n_bytes for seen in hostile.data_requests()][-1] == 1000
    found = hostile.root.head("x")
    assert holds(hostile.root, found, sums)
    (tmp_path / "y").write_bytes(BIG[1:1001])
    assert not holds(hostile.root, found, sums_of(tmp_path / "y"))


def test_sums_are_those_of_the_standard_tools(big):
    sums = sums_of(big)
    assert sums.sha256 == hashlib.sha256(BIG).hexdigest()
    assert sums.etags[0] == hashlib.md5(BIG).hexdigest()
    assert sums.etags[1].endswith("-3")


def test_a_full_disk_is_said_as_such(hostile):
    class Full(io.BytesIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    hostile.root.put("x", BIG[:1000])
    with pytest.raises(StorageError, match="the disk is full"):
        hostile.root.copy_to("x", Full())
