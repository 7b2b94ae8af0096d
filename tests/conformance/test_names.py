"""Names, attributes and directories, as programs see them."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.conformance.conftest import GID, MANY, MTIME_S, UID, Case


def walked(top: bytes, skip: bytes | None = None) -> tuple[set[bytes], set[bytes]]:
    """(directories, others) below a directory, as paths relative to it."""
    directories, others = set(), set()
    for directory, names, files in os.walk(top):
        at = os.path.relpath(directory, top)
        if skip is not None and skip in names:
            names.remove(skip)
        links = [name for name in names if os.path.islink(os.path.join(directory, name))]
        for name in names:
            (others if name in links else directories).add(os.path.normpath(os.path.join(at, name)))
        others |= {os.path.normpath(os.path.join(at, name)) for name in files}
    return directories, others


def run(*argv: str | bytes, cwd: bytes | None = None) -> bytes:
    done = subprocess.run(argv, capture_output=True, timeout=50, check=False, cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return done.stdout


def test_the_whole_tree_is_there(case: Case) -> None:
    directories, others = walked(case.at(b""), case.many)
    assert directories == case.directories
    assert others == set(case.files) | set(case.links)


def test_the_read_path_is_the_one_that_was_asked_for(case: Case) -> None:
    with open(case.at(b"small.txt"), "rb") as file:  # opens decide
        file.read()
    status = case.mount.status()
    assert status["session"] == ("pyfuse3" if case.path == "pyfuse3" else "direct")
    assert status["datasets"][0]["read_path"] == ("daemon" if case.path == "pyfuse3" else case.path)


def test_stat_of_files(case: Case) -> None:
    now = time.time()
    inodes = set()
    for path, data in case.files.items():
        found = os.lstat(case.at(path))
        assert found.st_size == len(data), path
        assert found.st_mode == stat.S_IFREG | 0o555, path
        assert found.st_nlink == 1
        assert (found.st_uid, found.st_gid) == (UID, GID)
        assert found.st_blksize == 4096
        assert found.st_blocks == -(-len(data) // 512)
        if case.source == "s3":  # as its server keeps it
            assert now - 86400 < found.st_mtime <= now + 1
        else:
            assert found.st_mtime_ns == MTIME_S * 10**9
        inodes.add(found.st_ino)
    assert len(inodes) == len(case.files)


def test_stat_of_directories(case: Case) -> None:
    os.listdir(case.at(b""))
    for path in (b"", *case.directories):
        found = os.lstat(case.at(path))
        assert stat.S_ISDIR(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == 0o555
        assert (found.st_uid, found.st_gid) == (UID, GID)
        inside = [each for each in case.directories if each.rpartition(b"/")[0] == path]
        if path == b"" and case.many is not None:
            inside.append(case.many)
        assert found.st_nlink == 2 + len(inside), path
        if case.source == "directory" and path:  # the root shows when its revision was made
            assert found.st_mtime_ns == MTIME_S * 10**9, path


def test_find_and_ls_and_du(case: Case) -> None:
    top = case.at(b"")
    skip = (b"-path", b"./many", b"-prune", b"-o")
    found = run(b"find", b".", *skip, b"-type", b"f", b"-printf", b"%s %p\\0", cwd=top)
    sizes = {}
    for entry in found.rstrip(b"\0").split(b"\0"):
        size, _, path = entry.partition(b" ")
        sizes[path.removeprefix(b"./")] = int(size)
    assert sizes == {path: len(data) for path, data in case.files.items()}
    assert b"small.txt" in run("ls", "-lR", "--ignore=many", cwd=top)
    # du counts 512-byte blocks of files, and what directories say they take
    counted = int(run("du", "-s", "--exclude=many", "--block-size=1", cwd=top).split()[0])
    blocks = sum(-(-len(data) // 512) * 512 for data in case.files.values())
    assert blocks <= counted <= blocks + 512 * len(case.links) + 4096 * (len(case.directories) + 1)
    apparent = int(run("du", "-s", "--apparent-size", "--exclude=many", "--block-size=1", cwd=top).split()[0])
    names = 4096 * (len(case.directories) + 1) + sum(len(target) for target in case.links.values())
    assert apparent == sum(len(data) for data in case.files.values()) + names


def test_df_and_statvfs(case: Case) -> None:
    found = os.statvfs(case.at(b""))
    total = sum(len(data) for data in case.files.values())
    assert found.f_frsize == found.f_bsize == 4096
    assert found.f_bfree == found.f_bavail == found.f_ffree == 0
    assert found.f_namemax == 255
    assert found.f_flag & os.ST_RDONLY
    if case.path != "pyfuse3":  # one connection for the whole tree there
        assert found.f_blocks == -(-total // 4096)
        assert found.f_files == len(case.files) + (MANY if case.many else 0)
    assert run("df", case.at(b""))


def test_symbolic_links(case: Case) -> None:
    if not case.links:
        pytest.skip("this source has no links")
    for path, target in case.links.items():
        assert os.readlink(case.at(path)) == target
        found = os.lstat(case.at(path))
        assert stat.S_IFMT(found.st_mode) == stat.S_IFLNK
        assert found.st_size == len(target)
    with open(case.at(b"link"), "rb") as file:
        assert file.read() == case.files[b"small.txt"]
    with open(case.at(b"sub/up"), "rb") as file:
        assert file.read() == case.files[b"large.bin"]
    assert not os.path.exists(case.at(b"dangling"))
    with pytest.raises(OSError, match="Invalid argument"):
        os.readlink(case.at(b"small.txt"))


@pytest.mark.parametrize("path", [b"none", b"sub/none", b"n" * 255, b"none/deeper", b"\xff", b"small.txt\n"])
def test_what_is_not_there(case: Case, path: bytes) -> None:
    for _ in range(3):  # the second answer comes from the kernel's cache
        with pytest.raises(FileNotFoundError):
            os.stat(case.at(path))
        with pytest.raises(FileNotFoundError):
            os.open(case.at(path), os.O_RDONLY)
        assert not os.access(case.at(path), os.F_OK)


def test_names_that_are_too_long(case: Case) -> None:
    with pytest.raises(OSError, match="File name too long"):
        os.stat(case.at(b"x" * 256))


def test_a_file_is_no_directory_and_the_other_way_round(case: Case) -> None:
    with pytest.raises(NotADirectoryError):
        os.stat(case.at(b"small.txt/x"))
    with pytest.raises(NotADirectoryError):
        os.listdir(case.at(b"small.txt"))
    with pytest.raises(IsADirectoryError):
        Path(os.fsdecode(case.at(b"sub"))).read_bytes()
    fd = os.open(case.at(b"sub"), os.O_RDONLY)
    try:
        with pytest.raises(IsADirectoryError):
            os.read(fd, 10)
    finally:
        os.close(fd)


def test_a_directory_of_many_entries(case: Case) -> None:
    if case.many is None:
        pytest.skip("made for the directory source only")
    wanted = {b"entry-%06d" % number for number in range(MANY)}
    names = os.listdir(case.at(case.many))
    assert len(names) == MANY
    assert set(names) == wanted


# libc's own functions: Python has no telldir
_TELL = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
class Dirent(ctypes.Structure):
    _fields_ = [("ino", ctypes.c_uint64), ("off", ctypes.c_int64), ("reclen", ctypes.c_uint16),
                ("type", ctypes.c_uint8), ("name", ctypes.c_char * 256)]
libc.opendir.restype = ctypes.c_void_p
libc.readdir.restype = ctypes.POINTER(Dirent)
for name in ("readdir", "telldir", "closedir", "rewinddir"):
    getattr(libc, name).argtypes = [ctypes.c_void_p]
libc.telldir.restype = ctypes.c_long
libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
libc.seekdir.restype = None
directory = libc.opendir(os.fsencode(sys.argv[1]))
assert directory
def next_name():
    entry = libc.readdir(directory)
    return entry.contents.name if entry else None
places = []
while True:
    place = libc.telldir(directory)
    name = next_name()
    places.append((place, name))
    if name is None:
        break
step = max(1, len(places) // 97)
for place, name in [*places[::-step], *places[::step], places[-1], places[0]]:
    libc.seekdir(directory, place)
    found = next_name()
    assert found == name, (place, name, found)
libc.rewinddir(directory)
again = []
while (name := next_name()) is not None:
    again.append(name)
assert again == [name for _place, name in places[:-1]]
assert len(set(again)) == len(again)
assert {b".", b".."} <= set(again), again[:5]
print(len(again))
"""


def test_telldir_and_seekdir_are_stable(case: Case) -> None:
    for path, count in ((case.many, MANY), (b"flat", 40)):
        if path is not None:
            done = run(sys.executable, "-c", _TELL, os.fsdecode(case.at(path)))
            assert int(done) == count + 2


def test_directories_listed_by_many_at_once(case: Case) -> None:
    wanted = sorted(b"f%03d" % n for n in range(40))
    results: list[list[bytes]] = []

    def work() -> None:
        results.extend(sorted(os.listdir(case.at(b"flat"))) for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
    assert results == [wanted] * 160


def test_extended_attributes(case: Case) -> None:
    path = case.at(b"sub/deep/er/c")
    with open(path, "rb") as file:
        file.read()
    source = os.getxattr(path, "user.dsfs.source").decode()
    assert source == f"{case.uri.rstrip('/')}/sub/deep/er/c"
    assert os.getxattr(path, "user.dsfs.version")
    cached = int(os.getxattr(path, "user.dsfs.cached"))
    assert cached == len(case.files[b"sub/deep/er/c"])
    assert {"user.dsfs.source", "user.dsfs.version", "user.dsfs.cached"} <= set(os.listxattr(path))
    if "user.dsfs.error" not in os.listxattr(path):
        with pytest.raises(OSError, match="No data available"):
            os.getxattr(path, "user.dsfs.error")
    for name in ("user.unknown", "user.dsfs.unknown", "security.selinux", "system.posix_acl_access", "trusted.x"):
        with pytest.raises(OSError) as raised:  # noqa: PT011  # the errno is looked at
            os.getxattr(path, name)
        assert raised.value.errno in (errno.ENODATA, errno.EOPNOTSUPP), name
        if name.startswith("user."):
            assert raised.value.errno == errno.ENODATA
    assert os.getxattr(case.at(b"empty"), "user.dsfs.cached") == b"0"
    assert os.getxattr(case.at(b"sub"), "user.dsfs.source").decode() == f"{case.uri.rstrip('/')}/sub"
