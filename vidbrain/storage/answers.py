"""What an object store's refusal means: which passes by itself, and what to say of which does not.

Only the HTTP status and the error code are taken from what a server says. The rest of it may name keys, tokens and
signatures, and is not repeated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from vidbrain.errors import StorageError
from vidbrain.storage.files import NoRangesError, ObjectChangedError, ObjectExistsError, ObjectMissingError

Kind = Literal[
    "missing", "bucket", "exists", "changed", "no-ranges", "no-credentials", "credentials", "permission", "full",
    "region", "settings", "insecure", "busy", "fault", "stalled", "unreachable", "cut", "refused",
]  # fmt: skip
PASSING: tuple[Kind, ...] = ("busy", "fault", "stalled", "unreachable", "cut")

_CREDENTIAL_CODES = {
    "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired",
    "AuthenticationFailed", "InvalidAuthenticationInfo", "MissingSecurityHeader", "InvalidClientTokenId",
}  # fmt: skip
_FULL_CODES = {
    "QuotaExceeded", "InsufficientStorage", "InsufficientCapacity", "XMinioStorageFull", "EntityTooLarge",
    "ServiceQuotaExceededException", "QuotaExceededException", "AccountQuotaExceeded",
}  # fmt: skip
_REGION_CODES = {"AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException"}
_METADATA_PATHS = ("/latest/api/token", "/latest/meta-data", "computeMetadata", "/metadata/identity")
_CLOCK_CODES = {"RequestTimeTooSkewed"}
_BUCKET_CODES = {"NoSuchBucket", "ContainerNotFound", "InvalidBucketName"}


class ChangedAnswer(Exception):  # noqa: N818 -- a sign between two functions, never seen outside
    """The server gave another content than the one asked for."""


@dataclass(frozen=True)
class Answer:
    """A refusal, understood."""

    kind: Kind
    status: int | None = None
    code: str | None = None

    @property
    def passes(self) -> bool:
        """Whether the same request may succeed in a moment."""
        return self.kind in PASSING

    @property
    def said(self) -> str:
        """Status and code, in brackets, where there are any."""
        parts = [str(self.status) if self.status else "", self.code or ""]
        return f" ({' '.join(part for part in parts if part)})" if any(parts) else ""


def read_answer(error: Exception) -> Answer:
    """Understand an exception of obstore, by its class and by status and code in its text."""
    name, text = type(error).__name__, str(error)
    found = re.search(r"status code: (\d{3})", text)
    status = int(found[1]) if found else None
    found = re.search(r"<Code>\s*(\w{1,60})\s*</Code>", text)
    code = found[1] if found else None
    return Answer(_kind(name, text, status, code), status, code)


def _kind(name: str, text: str, status: int | None, code: str | None) -> Kind:
    for codes, kind in (
        (_BUCKET_CODES, "bucket"),
        (_CREDENTIAL_CODES, "credentials"),
        (_FULL_CODES, "full"),
        (_REGION_CODES, "region"),
        (_CLOCK_CODES, "settings"),
    ):
        if code in codes:
            return kind  # type: ignore[return-value]
    by_name: dict[str, Kind] = {
        "FileNotFoundError": "missing",
        "AlreadyExistsError": "exists",
        "PreconditionError": "changed",
        "ChangedAnswer": "changed",
        "PermissionDeniedError": "permission",
        "UnauthenticatedError": "credentials",
        "UnknownConfigurationKeyError": "settings",
        "ConnectionResetError": "cut",
    }
    # Where no credentials are given, a client asks the machine that it runs on, as in a cloud.
    if any(sign in text for sign in _METADATA_PATHS):
        return "no-credentials"
    if name in by_name:
        return by_name[name]
    by_status: dict[int, Kind] = {301: "region", 307: "region", 404: "missing", 412: "changed", 507: "full"}
    by_status |= {401: "credentials", 403: "permission", 408: "busy", 429: "busy", 503: "busy"}
    if status in by_status:
        return by_status[status]
    if status is not None:
        return "fault" if status >= 500 else "refused"
    for sign, kind in (
        ("non-partial response", "no-ranges"),
        ("Range request not supported", "no-ranges"),
        ("RangeNotSupported", "no-ranges"),
        ("redirect without LOCATION", "region"),
        ("URL scheme is not allowed", "insecure"),
        ("BadScheme", "insecure"),
    ):
        if sign in text:
            return kind  # type: ignore[return-value]
    found = re.search(r"HttpError \{\s*kind: (\w+)", text)
    if found:
        by_kind: dict[str, Kind] = {"Timeout": "stalled", "Connect": "unreachable"}
        return by_kind.get(found[1], "cut")
    return "settings" if name == "ValueError" or "must be specified" in text else "refused"


def error_of(answer: Answer, where: str, *, attempts: int, waited_s: float) -> StorageError:
    """Say it: what, where, likely, and what next."""
    kinds = {
        "missing": ObjectMissingError,
        "exists": ObjectExistsError,
        "changed": ObjectChangedError,
        "no-ranges": NoRangesError,
    }
    what, likely, hint = _WORDS[answer.kind]
    tried = f", {attempts} times in {waited_s:.0f} s" if answer.passes and attempts > 1 else ""
    cls = kinds.get(answer.kind, StorageError)
    return cls(f"{what}{tried}{answer.said}", where=where, likely=likely, hint=hint)


_ENVIRONMENT = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (s3), GOOGLE_APPLICATION_CREDENTIALS (gs), or "
    "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY (az); AWS_SKIP_SIGNATURE=true reads a public bucket"
)
_WORDS: dict[Kind, tuple[str, str | None, str | None]] = {
    "missing": ("there is no such object", None, "check the URL"),
    "bucket": ("there is no such bucket", None, "check its name, or make it with your provider's tool"),
    "exists": ("there is another object already", None, "give another URL, or remove it first"),
    "changed": ("the object was replaced while it was read", None, "wait until the other command has ended"),
    "no-ranges": ("the server gives whole objects only, no parts of them", None, "pull it, and read the copy"),
    "no-credentials": ("no credentials were found", None, _ENVIRONMENT),
    "credentials": (
        "the credentials are refused",
        "they are wrong, expired, or of another server",
        f"{_ENVIRONMENT}; AWS_ENDPOINT_URL for a server that is not Amazon's",
    ),
    "permission": (
        "no permission",
        "the credentials are wrong, or may not do this here; some stores answer so for what is not there",
        "ask the bucket's owner, or check which credentials the environment holds",
    ),
    "full": ("the store takes no more: it is full, or a quota is used up", None, "free some space, and go on"),
    "region": ("the bucket is in another region", None, "set AWS_REGION to the bucket's region"),
    "settings": (
        "the settings of the storage in the environment do not fit together",
        "a missing account, region or endpoint, or a clock that is wrong",
        _ENVIRONMENT,
    ),
    "insecure": (
        "the endpoint speaks unencrypted http, and is not on this machine",
        None,
        "use https, or set AWS_ALLOW_HTTP=true if the network may be trusted",
    ),
    "busy": ("the server is too busy", None, "wait a while, or use fewer --workers"),
    "fault": ("the server has a fault", None, "wait a while, and give the command again"),
    "stalled": ("the server does not answer", "it is overloaded, or the network is", "give the command again later"),
    "unreachable": (
        "the server cannot be reached",
        "the network is down, or AWS_ENDPOINT_URL or the host is wrong",
        "check the network and the endpoint",
    ),
    "cut": ("the connection breaks", "the network is unstable", "give the command again later"),
    "refused": ("the server refuses", None, None),
}
