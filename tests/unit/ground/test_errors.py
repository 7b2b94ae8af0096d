"""One failure out of a group of them."""

from __future__ import annotations

from dsfs.errors import SourceError, SourceMissing, SourceTimeout, first_of


def test_the_first_of_a_kind_is_found_however_deep() -> None:
    missing, timeout, bug = SourceMissing("m"), SourceTimeout("t"), ZeroDivisionError()
    group = BaseExceptionGroup("", [bug, BaseExceptionGroup("", [KeyboardInterrupt(), timeout]), missing])
    assert first_of(group, SourceError) is timeout
    assert first_of(group, SourceMissing) is missing
    assert first_of(group, Exception) is bug
    assert first_of(group, OSError) is None
