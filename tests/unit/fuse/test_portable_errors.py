"""What a request that fails is answered through libfuse, and that it is counted as in the direct session."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import cast

import pyfuse3
import pytest
import structlog
import trio

from dsfs import metrics
from dsfs.errors import SourceChanged
from dsfs.filesystem.files import DatasetFiles
from dsfs.fuse.pyfuse3 import Operations


class Failing:
    """A file whose attributes cannot be told."""

    dataset = SimpleNamespace(manifest=SimpleNamespace(namespace="portable", name="errors"))

    def __init__(self, error: Exception) -> None:
        self._error = error

    def try_getattr(self, _nodeid: int) -> None:
        raise self._error


@pytest.mark.parametrize(
    ("error", "code", "counted"),
    [
        (ValueError("a bug"), errno.EIO, 1),
        (SourceChanged("another one"), errno.ESTALE, 1),
        (OSError(errno.ENOENT, "no such name"), errno.ENOENT, 0),
        (OSError(errno.EINTR, "given up"), errno.EINTR, 0),
        (OSError(errno.ENOTTY, "no terminal"), errno.ENOTTY, 0),
    ],
)
def test_it_is_counted_unless_programs_expect_it(error: Exception, code: int, counted: int) -> None:
    operations = Operations()
    operations.show(cast(DatasetFiles, Failing(error)))
    count = metrics.ERRORS.labels("portable", "errors", errno.errorcode[code])
    before = count._value.get()
    with structlog.testing.capture_logs() as log, pytest.raises(pyfuse3.FUSEError) as answer:
        trio.run(operations.getattr, 1)
    assert answer.value.errno == code
    assert count._value.get() == before + counted
    assert [line["event"] for line in log] == (
        [] if not counted else ["request failed unexpectedly" if isinstance(error, ValueError) else "request failed"]
    )
