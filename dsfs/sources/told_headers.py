"""Headers in which a server tells what an object hashes to; what becomes of that: ``told_digests``."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Final

from dsfs.sources.digest import Digest

_LENGTHS: Final = {"md5": 16, "sha1": 20, "sha256": 32, "sha512": 64, "crc32": 4, "crc32c": 4, "crc64nvme": 8}
_AMZ: Final = ("crc64nvme", "crc32c", "sha256", "sha1", "crc32")  # the cheapest that is good enough first
_HTTP: Final = {
    "sha-256": "sha256",
    "sha-512": "sha512",
    "sha": "sha1",
    "md5": "md5",
}  # RFC 9530, RFC 3230; cheapest first
_MEMBER: Final = re.compile(r"\s*([A-Za-z0-9-]+)\s*=\s*:?([A-Za-z0-9+/=]+):?\s*")


def of_amz_headers(headers: Mapping[str, str]) -> Digest | None:
    """The checksum of a whole S3 object. One of a composite (``…-3``) is a checksum of checksums, which cannot be
    compared without knowing the parts."""
    if headers.get("x-amz-checksum-type", "FULL_OBJECT").upper() != "FULL_OBJECT":
        return None
    for algorithm in _AMZ:
        found = _digest(algorithm, headers.get(f"x-amz-checksum-{algorithm}", ""))
        if found is not None:
            return found
    return None


def of_http_headers(headers: Mapping[str, str], *, whole: bool) -> Digest | None:
    """Repr-Digest (RFC 9530) and Digest (RFC 3230) are of the whole file in whatever answer; Content-MD5 (RFC 1864) is
    of what is in this answer, so it counts if that is the ``whole`` file, or the answer to a HEAD."""
    for name in ("Repr-Digest", "Digest"):
        text = headers.get(name, "")
        if not text:
            continue
        told: dict[str, str] = {}
        for member in text.split(","):
            match = _MEMBER.fullmatch(member)
            if match is not None:
                told[match[1].lower()] = match[2]
        for their_name, algorithm in _HTTP.items():
            found = _digest(algorithm, told.get(their_name, ""))
            if found is not None:
                return found
    return _digest("md5", headers.get("Content-MD5", "")) if whole else None


def _digest(algorithm: str, text: str) -> Digest | None:
    if not text:
        return None
    try:
        raw = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        return None  # nonsense, or a composite's "-3"
    return Digest(algorithm, raw.hex()) if len(raw) == _LENGTHS[algorithm] else None
