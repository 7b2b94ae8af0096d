"""An export into a place that others may write to: nothing of theirs is written through, and nobody reads too much."""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from daemon.cli.export import _to_file
from daemon.export_work import ExportWork
from daemon.exporting import Checksums, Entry, Export
from dsfs.errors import ConfigError, MountError

STRANGER = 54_321

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


class Daemon:
    """Of a dataset that never changes, and of which nothing is cached."""

    def revision(self) -> str:
        return "1"

    def checksums(self, paths: Sequence[str]) -> list[Checksums]:
        return [Checksums(1 << 20, [None]) for _path in paths]

    def is_unreadable(self, path: str) -> bool:
        return path == "odd"

    def verify(self, path: str) -> None:
        raise AssertionError(path)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Entry, "version", lambda _entry: "1")  # an attribute of files in a mount
    made = tmp_path / "tree"
    (made / "sub").mkdir(parents=True)
    for path in (made / "a", made / "sub/b"):
        path.write_text(f"bytes of {path.name}")
    return made


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    made = tmp_path / "victim"
    made.write_text("precious")
    made.chmod(0o600)
    return made


def untouched(victim: Path) -> bool:
    return victim.read_text() == "precious" and stat.S_IMODE(victim.stat().st_mode) == 0o600


def export_of(tree: Path) -> Export:
    return Export(str(tree), "team/one", Daemon(), lambda _count: None)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# -- a tar --------------------------------------------------------------------------------------------------------


def test_a_tar_is_for_us_alone_until_it_is_whole(tree: Path, tmp_path: Path) -> None:
    """Also in the place of a part that a killed export has left."""
    target, part = tmp_path / "x.tar", tmp_path / "x.tar.part"
    part.write_text("of a run before")
    part.chmod(0o644)
    with open(part) as before:

        class Looking(Export):
            def to_tar(self, output: Any) -> None:
                assert mode_of(part) == 0o600
                super().to_tar(output)

        _to_file(Looking(str(tree), "team/one", Daemon(), lambda _count: None), str(target))
        assert before.read() == "of a run before", "who has that open reads no more"
    assert not part.exists()
    with tarfile.open(target) as tar:
        assert tar.getnames() == ["a", "sub", "sub/b"]


@pytest.mark.parametrize(
    ("umask", "of_root", "of_file", "expected"),
    [
        (0o022, 0o755, 0o644, 0o644),
        (0o002, 0o755, 0o644, 0o664),
        (0o077, 0o755, 0o644, 0o600),
        (0o022, 0o750, 0o644, 0o640),
        (0o022, 0o700, 0o644, 0o600),
        (0o022, 0o755, 0o640, 0o640),
        (0o022, 0o755, 0o604, 0o604),
    ],
)
def test_then_it_is_open_to_those_who_may_read_all_that_is_in_it(
    tree: Path, tmp_path: Path, umask: int, of_root: int, of_file: int, expected: int
) -> None:
    tree.chmod(of_root)
    (tree / "sub").chmod(0o755)
    (tree / "a").chmod(0o644)
    (tree / "sub/b").chmod(of_file)
    (tree / "link").symlink_to("a")
    before = os.umask(umask)
    try:
        _to_file(export_of(tree), f"{tmp_path}/x.tar")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "x.tar") == expected


def test_a_tar_is_not_written_through_a_link(tree: Path, tmp_path: Path, victim: Path) -> None:
    part = tmp_path / "x.tar.part"
    for place in (victim, tmp_path / "not there"):
        part.symlink_to(place)
        with pytest.raises(ConfigError, match=r"x\.tar\.part: is a link.*remove it"):
            _to_file(export_of(tree), f"{tmp_path}/x.tar")
        assert part.is_symlink(), "it is left alone"
        part.unlink()
    assert untouched(victim)
    assert not (tmp_path / "not there").exists()
    os.mkfifo(part)
    with pytest.raises(ConfigError):
        _to_file(export_of(tree), f"{tmp_path}/x.tar")


@needs_root
def test_nor_into_a_file_of_somebody_else(tree: Path, tmp_path: Path) -> None:
    part = tmp_path / "x.tar.part"
    part.touch()
    os.chown(part, STRANGER, STRANGER)
    with pytest.raises(ConfigError, match="no file of yours"):
        _to_file(export_of(tree), f"{tmp_path}/x.tar")
    assert part.stat().st_size == 0


def test_an_export_that_fails_leaves_no_part(tree: Path, tmp_path: Path) -> None:
    class Failing:
        mode = 0o777

        def to_tar(self, output: Any) -> None:
            output.write(b"half")
            raise MountError("listed anew")

    with pytest.raises(MountError, match="listed anew"):
        _to_file(cast(Export, Failing()), f"{tmp_path}/x.tar")
    assert sorted(os.listdir(tmp_path)) == ["tree"]


# -- a directory --------------------------------------------------------------------------------------------------


def test_a_directory_goes_on_with_what_is_ours(tree: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    work = ExportWork(str(target), "team/one")
    (target / ".dsfs-export" / work.part("a", "1")).write_text("bytes of something longer")
    export_of(tree).to_directory(str(target), 0)
    assert sorted(os.listdir(target)) == ["a", "sub"]
    assert (target / "a").read_text() == "bytes of a"
    assert (target / "sub/b").read_text() == "bytes of b"


@needs_root
@pytest.mark.parametrize("how", ["link", "theirs", "file"])
def test_what_somebody_else_puts_beside_the_copy_is_not_used(tree: Path, tmp_path: Path, how: str) -> None:
    """They would have written down that files of theirs are whole, and had links in the place of parts."""
    target, theirs = tmp_path / "copy", tmp_path / "theirs"
    ExportWork(str(theirs), "team/one")
    target.mkdir()
    notes = target / ".dsfs-export"
    if how == "link":
        notes.symlink_to(theirs / ".dsfs-export")
    elif how == "theirs":
        (theirs / ".dsfs-export").rename(notes)
        os.chown(notes, STRANGER, STRANGER)
    else:
        notes.touch()
    before = sorted(theirs.rglob("*"))
    with pytest.raises(MountError, match=r"\.dsfs-export: (is a link|belongs to user).*remove it") as raised:
        export_of(tree).to_directory(str(target), 0)
    assert "\n" not in str(raised.value)
    assert os.listdir(target) == [".dsfs-export"]
    assert sorted(theirs.rglob("*")) == before


@pytest.mark.parametrize("name", ["part", "done", "dataset"])
def test_no_link_beside_the_copy_is_followed(tree: Path, tmp_path: Path, victim: Path, name: str) -> None:
    target = tmp_path / "copy"
    work = ExportWork(str(target), "team/one")
    place = target / ".dsfs-export" / (work.part("a", "1") if name == "part" else name)
    place.unlink(missing_ok=True)
    place.symlink_to(victim)
    with pytest.raises(MountError, match="is a link"):
        export_of(tree).to_directory(str(target), 0)
    assert untouched(victim)


def test_nor_one_that_is_put_there_meanwhile(tree: Path, tmp_path: Path) -> None:
    target, theirs = tmp_path / "copy", tmp_path / "theirs"
    theirs.mkdir()

    class Swapping(Daemon):
        def checksums(self, paths: Sequence[str]) -> list[Checksums]:
            (target / ".dsfs-export").rename(tmp_path / "aside")
            (target / ".dsfs-export").symlink_to(theirs)
            return super().checksums(paths)

    with pytest.raises(MountError, match="is a link"):
        Export(str(tree), "team/one", Swapping(), lambda _count: None).to_directory(str(target), 0)
    assert os.listdir(theirs) == []


@pytest.fixture
def failing(tree: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names, a look at which says EIO."""
    names: set[str] = set()
    lstat = os.lstat

    def look(path: str) -> os.stat_result:
        if path in {f"{tree}/{name}" for name in names}:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return lstat(path)

    monkeypatch.setattr("daemon.exporting.os.lstat", look)
    return names


def test_what_cannot_be_looked_at_is_left_out_and_told(tree: Path, tmp_path: Path, failing: set[str]) -> None:
    """Its source does not say how long it is, and the catalog tells so."""
    (tree / "odd").touch()
    failing.add("odd")
    made, copy = export_of(tree), tmp_path / "copy"
    copy.mkdir()
    made.to_directory(str(copy), 0)
    assert made.left_out == ["odd"]
    assert (copy / "a").read_text() == "bytes of a"
    assert (copy / "sub/b").read_bytes() == b"bytes of b"


def test_a_disk_that_fails_leaves_nothing_out(tree: Path, tmp_path: Path, failing: set[str]) -> None:
    """It says EIO as well, and a copy without what it did not give would be taken for whole."""
    failing.add("sub/b")
    made, copy = export_of(tree), tmp_path / "copy"
    copy.mkdir()
    for target in (lambda: made.to_directory(str(copy), 0), lambda: _to_file(made, f"{tmp_path}/x.tar")):
        with pytest.raises(OSError, match="Input/output error") as caught:
            target()
        assert caught.value.errno == errno.EIO
    assert made.left_out == []
    assert sorted(os.listdir(tmp_path)) == ["copy", "tree"], "no tar, nor a part of one"
