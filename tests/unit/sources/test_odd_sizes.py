"""A size that no file can have is told as it is: the catalog knows what to do with its name, and all others stay."""

from __future__ import annotations

import pytest

from dsfs.errors import SourceUnavailable
from dsfs.sources.hadoop_answers import object_of
from dsfs.sources.tables_dataworld import _file


@pytest.mark.parametrize("size_bytes", [-1, 2**63, 2**70])
def test_it_is_a_file_all_the_same(size_bytes: int) -> None:
    hadoop = object_of({"type": "FILE", "length": size_bytes, "modificationTime": 1}, "x")
    assert hadoop is not None
    assert hadoop.size == size_bytes
    assert _file({"name": "x", "sizeInBytes": size_bytes}).size == size_bytes


def test_what_is_no_number_is_no_answer() -> None:
    with pytest.raises(SourceUnavailable):
        object_of({"type": "FILE", "length": "7"}, "x")
    with pytest.raises(ValueError, match="size"):
        _file({"name": "x", "sizeInBytes": "7"})
