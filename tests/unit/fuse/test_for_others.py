"""Who may enter a mount through libfuse, and what is said when fusermount3 does not let it be others."""

from __future__ import annotations

from pathlib import Path

import pyfuse3
import pytest
import trio

from dsfs.errors import MountError
from dsfs.fuse import capabilities
from dsfs.fuse.pyfuse3 import PortableSession


@pytest.mark.parametrize(
    ("uid", "for_others", "allowed"), [(0, False, True), (1000, False, False), (1000, True, True), (0, True, True)]
)
def test_who_may_enter(monkeypatch: pytest.MonkeyPatch, uid: int, for_others: bool, allowed: bool) -> None:
    seen: list[set[str]] = []

    def init(_operations: object, _mountpoint: str, options: set[str]) -> None:
        seen.append(options)
        raise RuntimeError("fuse_session_mount failed")

    monkeypatch.setattr("os.getuid", lambda: uid)
    monkeypatch.setattr(pyfuse3, "init", init)
    monkeypatch.setattr(capabilities, "may_allow_others", lambda: False)
    with pytest.raises(MountError) as refused:
        trio.run(PortableSession("/data", None, for_others=for_others).run)
    assert ("allow_other" in seen[0]) is allowed
    assert ("user_allow_other in /etc/fuse.conf" in str(refused.value)) is (uid != 0 and for_others)


@pytest.mark.parametrize(
    ("text", "allowed"), [("mount_max = 9\nuser_allow_other \n", True), ("#user_allow_other\n", False), (None, False)]
)
def test_what_the_administrator_says(tmp_path: Path, text: str | None, allowed: bool) -> None:
    if text is not None:
        (tmp_path / "fuse.conf").write_text(text)
    assert capabilities.may_allow_others(str(tmp_path / "fuse.conf")) is allowed
