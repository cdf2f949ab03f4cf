"""Packed files unpacked from their beginning to their end."""

from __future__ import annotations

import zlib
from typing import IO

from isal import isal_zlib

_DAMAGED: type[Exception] = isal_zlib.error  # type: ignore[assignment]  # its stubs call the class an instance
_GZIP = 31
"""zlib's word for a gzip member, whose header and checksum it then reads itself."""
_PACKED_BYTES, _UNPACKED_BYTES = 1 << 18, 1 << 20


class Unpacked:
    """Reads a gzip file from its beginning to its end, straight into the reader's memory; checks its checksums.

    Python's own takes 8 KiB of packed bytes at a time, by zlib; larger steps and Intel's ISA-L take half the time.

    Parameters
    ----------
    raw
        Opened for reading bytes.
    """

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._member = isal_zlib.decompressobj(_GZIP)
        self._packed = b""
        self._ended = False

    def readinto(self, out: memoryview) -> int:
        """Fill a buffer; return how many bytes were left to fill it with.

        Raises
        ------
        EOFError
            If the file ends inside a member.
        zlib.error
            If it is damaged, or a checksum is wrong.
        """
        filled = 0
        while filled < len(out) and not self._ended:
            if self._member.eof:
                self._next_member()
                continue
            packed = self._packed or self._raw.read(_PACKED_BYTES)
            try:
                data = self._member.decompress(packed, min(len(out) - filled, _UNPACKED_BYTES))
            except _DAMAGED as error:
                raise zlib.error(str(error)) from error
            self._packed = self._member.unconsumed_tail
            if not (packed or data or self._member.eof):
                raise EOFError("the end of the packed data is missing")
            out[filled : filled + len(data)] = data
            filled += len(data)
        return filled

    def _next_member(self) -> None:
        """Go on with what follows a member: another one, or zeros up to the end."""
        rest = self._member.unused_data or self._raw.read(_PACKED_BYTES)
        while rest and not (rest := rest.lstrip(b"\0")):
            rest = self._raw.read(_PACKED_BYTES)
        self._member, self._packed, self._ended = isal_zlib.decompressobj(_GZIP), rest, not rest
