"""What the two catalogs answer, taken apart: places of exports, zips, files of a dataset."""

from __future__ import annotations

import json

import pytest

from dsfs.errors import RetryLater, SourceUnavailable, SourceUnsupported
from dsfs.sources.tables_dataworld import _file
from dsfs.sources.tables_nasdaq import _csv_of, _link_of
from tests.servers.archive_files import zip_of


def told(**file: object) -> bytes:
    return json.dumps({"datatable_bulk_download": {"file": file}}).encode()


def test_the_link_of_an_export() -> None:
    assert _link_of(told(status="fresh", link="https://s/x?sig=1"), "t") == "https://s/x?sig=1"
    assert _link_of(told(status="REGENERATING", link="https://s/x"), "t") == "https://s/x"
    for answer in (told(status="creating", link=None), told(status="fresh", link=None)):
        with pytest.raises(RetryLater):
            _link_of(answer, "t")


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b"<html>", b'{"datatable_bulk_download": null}'])
def test_nonsense_about_an_export(answer: bytes) -> None:
    with pytest.raises(SourceUnavailable):
        _link_of(answer, "t")


def test_an_export_is_a_zip_of_one_file() -> None:
    assert _csv_of(zip_of({"a/b.csv": b"1"}), "t") == b"1"
    with pytest.raises(SourceUnsupported, match="2 files"):
        _csv_of(zip_of({"a": b"1", "b": b"2"}), "t")
    damaged = bytearray(zip_of({"a": b"1" * 1000}))
    damaged[35] ^= 0xFF
    for packed in (b"", b"no zip", bytes(damaged)):
        with pytest.raises(SourceUnavailable, match="no zip"):
            _csv_of(packed, "t")


def test_a_file_of_a_dataset() -> None:
    found = _file({"name": "f", "sizeInBytes": 3, "updated": "2026-01-02T03:04:05.678Z"})
    assert (found.size, found.mtime_ns, found.version_tag) == (
        3,
        1_767_323_045_678_000_000,
        "2026-01-02T03:04:05.678Z|3",
    )
    assert _file({"name": "f", "sizeInBytes": 0, "updated": "no time"}).mtime_ns == 0
    with pytest.raises(ValueError, match="without name or size"):
        _file({"name": "f", "sizeInBytes": "3"})
