"""Every failure that has a name has an errno, and none of them says that a file is not there by mistake."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

import dsfs.errors
from dsfs.errors import DsfsError, NotVisible, SourceChanged, SourceMissing, SourceRefused, SourceTimeout
from dsfs.filesystem.errnos import ERRNO_OF, errno_of


def kinds(base: type[DsfsError]) -> Iterator[type[DsfsError]]:
    yield base
    for kind in base.__subclasses__():
        if kind.__module__ == dsfs.errors.__name__:
            yield from kinds(kind)


@pytest.mark.parametrize("kind", sorted(set(kinds(DsfsError)), key=lambda kind: kind.__name__))
def test_every_failure_is_in_the_table(kind: type[DsfsError]) -> None:
    assert kind in ERRNO_OF
    assert errno_of(kind("why")) == ERRNO_OF[kind]
    assert ERRNO_OF[kind] in errno.errorcode
    assert (ERRNO_OF[kind] == errno.ENOENT) == (kind is NotVisible), "an origin in trouble makes no file disappear"


def test_what_design_says() -> None:
    assert errno_of(SourceChanged("x")) == errno.ESTALE
    assert errno_of(SourceMissing("x")) == errno.ESTALE
    assert errno_of(SourceTimeout("x")) == errno.ETIMEDOUT
    assert errno_of(SourceRefused("x")) == errno.EACCES


def test_a_failure_that_is_new_gets_that_of_its_kind() -> None:
    class SourceChangedAgain(SourceChanged):
        pass

    assert errno_of(SourceChangedAgain("x")) == errno.ESTALE


def test_what_is_not_ours() -> None:
    assert errno_of(OSError(errno.EINVAL, "x")) == errno.EINVAL
    assert errno_of(OSError("no number")) == errno.EIO
    assert errno_of(ValueError("a bug")) == errno.EIO
