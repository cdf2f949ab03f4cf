import gzip
import io
import zlib

import numpy as np
import pytest

from vidbrain.bold.forms.packed import Unpacked


def unpacked(packed: bytes, step: int) -> bytes:
    stream, buffer, parts = Unpacked(io.BytesIO(packed)), memoryview(bytearray(step)), []
    while n := stream.readinto(buffer):
        parts.append(bytes(buffer[:n]))
    assert all(len(part) == step for part in parts[:-1])
    return b"".join(parts)


@pytest.mark.parametrize("step", [1, 7, 1000, 10**5])
@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("zeros", [0, 600])
def test_packed_files_unpack_as_python_does(monkeypatch, step, members, zeros):
    monkeypatch.setattr("vidbrain.bold.forms.packed._PACKED_BYTES", 300)
    rng = np.random.default_rng(0)
    contents = [rng.integers(0, 9, 900, np.uint8).tobytes() + bytes(600) for _ in range(members)]
    packed = b"".join(gzip.compress(content, 1) for content in contents) + bytes(zeros)
    assert unpacked(packed, step) == gzip.decompress(packed) == b"".join(contents)


def test_packed_files_that_are_damaged_do_not_unpack():
    packed = gzip.compress(bytes(range(256)) * 40)
    for end in (5, 30, len(packed) - 8, len(packed) - 1):
        with pytest.raises(EOFError):
            unpacked(packed[:end], 10**5)
    flipped = bytearray(packed)
    flipped[-6] ^= 1
    with pytest.raises(zlib.error, match="ncorrect checksum"):
        unpacked(bytes(flipped), 10**5)
