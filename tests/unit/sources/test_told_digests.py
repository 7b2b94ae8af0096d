"""What servers tell of a file's hash in headers, and what an ETag may be."""

from __future__ import annotations

import base64
import hashlib

import pytest

from dsfs.model import SourceObject
from dsfs.ranges import MiB
from dsfs.sources.digest import Digest
from dsfs.sources.told_digests import EtagDigests, ToldDigests
from dsfs.sources.told_headers import of_amz_headers, of_http_headers

DATA = b"what is in the file"
CRC32C = base64.b64encode(bytes(4)).decode()
MD5, SHA256, SHA512 = (hashlib.new(name, DATA) for name in ("md5", "sha256", "sha512"))


def b64(hash_: hashlib._Hash) -> str:
    return base64.b64encode(hash_.digest()).decode()


@pytest.mark.parametrize(
    ("headers", "whole", "expected"),
    [
        ({"Repr-Digest": f"sha-256=:{b64(SHA256)}:"}, False, "sha256"),
        ({"Repr-Digest": f"sha-512=:{b64(SHA512)}:, sha-256=:{b64(SHA256)}:"}, False, "sha256"),
        ({"Digest": f"SHA-256={b64(SHA256)},MD5={b64(MD5)}"}, False, "sha256"),
        ({"Digest": f"md5={b64(MD5)}"}, False, "md5"),
        ({"Digest": "unixsum=30637, UNIXcksum=1"}, True, None),
        ({"Repr-Digest": "sha-256=:AAAA:"}, True, None),  # too short to be one
        ({"Repr-Digest": "banana"}, True, None),
        ({"Content-MD5": b64(MD5)}, True, "md5"),
        ({"Content-MD5": b64(MD5)}, False, None),
        ({"Content-MD5": MD5.hexdigest()}, True, None),  # in hex, as the RFC does not have it
        ({}, True, None),
    ],
)
def test_http(headers: dict[str, str], whole: bool, expected: str | None) -> None:
    found = of_http_headers(headers, whole=whole)
    assert (None if found is None else found.algorithm) == expected
    assert found is None or found.is_of(memoryview(DATA))


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"x-amz-checksum-sha256": b64(SHA256)}, "sha256"),
        ({"x-amz-checksum-sha256": b64(SHA256), "x-amz-checksum-type": "FULL_OBJECT"}, "sha256"),
        ({"x-amz-checksum-sha256": b64(SHA256), "x-amz-checksum-type": "COMPOSITE"}, None),
        ({"x-amz-checksum-sha256": f"{b64(SHA256)}-3"}, None),
        ({"x-amz-checksum-crc64nvme": base64.b64encode(bytes(8)).decode()}, "crc64nvme"),
        (
            {"x-amz-checksum-crc32c": CRC32C, "x-amz-checksum-sha256": b64(SHA256)},
            "crc32c",
        ),
        ({"x-amz-checksum-crc32": ""}, None),
        ({}, None),
    ],
)
def test_amz(headers: dict[str, str], expected: str | None) -> None:
    found = of_amz_headers(headers)
    assert (None if found is None else found.algorithm) == expected


def test_etags() -> None:
    etags = EtagDigests("s3://bucket/")
    assert etags.of(MD5.hexdigest(), len(DATA)) == Digest("md5", MD5.hexdigest())
    for other in ("", "d41d8cd98f00b204e9800998ecf8427e-2", MD5.hexdigest().upper(), "0x8DD", "a" * 31):
        assert etags.of(other, 1) is None
    found = etags.of(MD5.hexdigest(), 1)
    assert found is not None
    assert found.disown is not None
    found.disown()
    assert etags.of(MD5.hexdigest(), 1) is None
    assert EtagDigests("s3://bucket/", usable=False).of(MD5.hexdigest(), 1) is None


def test_guesses_are_not_hashed_without_end() -> None:
    etags = EtagDigests("s3://bucket/")
    taken = sum(etags.of(MD5.hexdigest(), 8 * MiB) is not None for _ in range(1000))
    assert 32 <= taken < 100


def test_a_server_that_tells_nothing_is_not_asked_for_ever() -> None:
    told = ToldDigests()
    for _ in range(8):
        assert told.worth_asking
        told.asked(None)
    assert not told.worth_asking
    told.asked(Digest("md5", MD5.hexdigest()))
    told.asked(None)
    assert told.worth_asking


def test_what_was_told_is_of_that_version() -> None:
    told, digest = ToldDigests(), Digest("md5", MD5.hexdigest())
    obj = SourceObject("f", version_tag="one")
    told.note(obj, None)
    assert told.of(obj) is None
    told.note(obj, digest)
    assert told.of(obj) == digest
    assert told.of(SourceObject("f", version_tag="two")) is None
