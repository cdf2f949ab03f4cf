"""URLs of roots: what is one, its parts, and what may be said of it aloud."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from vidbrain.errors import StorageError

SCHEMES = ("s3", "gs", "az", "http", "https")
READ_ONLY = ("http", "https")
# pathlib makes one slash of two: a command line's path that was a URL.
_URL = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):/{1,2}(?=[^/])")
_SECRET = re.compile(r"(?<=://)[^/@\s]*@|[?#]\S*")


@dataclass(frozen=True)
class Address:
    """A URL in its parts: scheme, bucket (container, or host and port) and prefix without slashes at its ends."""

    scheme: str
    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")


def is_url(text: object) -> bool:
    """Whether this names a place by URL rather than by path; true also for ``s3:/bucket``, a URL that was a `Path`."""
    return bool(_URL.match(str(text)))


def parse_url(text: object) -> Address:
    """Take a URL apart.

    Raises
    ------
    StorageError
        If the scheme is unknown, there is no bucket or host, or the URL holds a password, a token or a parent
        reference. The message does not repeat the secret.
    """
    given = str(text)
    match = _URL.match(given)
    if match is None:
        raise StorageError(f"not a URL: {redacted(given)!r}", hint=f"use {', '.join(SCHEMES)}, or a path")
    scheme = match[1].lower()
    url = f"{scheme}://{given[match.end() :]}"
    if scheme not in SCHEMES:
        raise StorageError(
            f"unknown kind of storage {scheme!r}", where=redacted(url), hint=f"use {', '.join(SCHEMES)}, or a path"
        )
    if _SECRET.search(url):
        raise StorageError(
            "a URL must hold no user, password, token, query or fragment",
            where=redacted(url),
            hint="give credentials by the environment, for instance AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    bucket, _, prefix = url.partition("://")[2].partition("/")
    prefix = prefix.strip("/")
    if prefix:
        check_key(prefix)
    return Address(scheme, bucket, prefix)


def check_key(key: str) -> str:
    """Check that a key stays below its root and means the same everywhere.

    Raises
    ------
    StorageError
        If a part of it is empty, a parent reference, or has a backslash or a control character.
    """
    parts = key.split("/")
    if any(part in ("", ".", "..") or "\\" in part or any(ord(c) < 32 for c in part) for part in parts):
        raise StorageError(f"{key!r} cannot be the name of an object")
    return key


def redacted(text: str) -> str:
    """Hide what may be a secret in a URL: user and password, query, fragment."""
    return _SECRET.sub(lambda found: "***@" if found[0].endswith("@") else "", text)


def is_loopback(url: str) -> bool:
    """Whether a URL leads to this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
