"""Bytes: the same ones, whichever way they are read."""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import random
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conformance.conftest import MIB, Case

LARGE = b"large.bin"


def test_every_byte_of_every_file(case: Case) -> None:
    for path, data in case.files.items():
        with open(case.at(path), "rb") as file:
            assert file.read() == data, path
        with open(case.at(path), "rb") as file:
            assert file.read() == data, path


def test_read_by_many_processes(case: Case, tmp_path: Path) -> None:
    """cp -r, and cmp of what came out."""
    copied = tmp_path / "copy"
    copied.mkdir()
    names = [name for name in os.listdir(case.at(b"")) if name != case.many]
    subprocess.run([b"cp", b"-r", b"--", *names, os.fsencode(copied)], cwd=case.at(b""), check=True, timeout=50)
    for path, data in case.files.items():
        with open(os.fsencode(copied) + b"/" + path, "rb") as file:
            assert file.read() == data, path
    for path in (LARGE, b"three-blocks.bin"):
        subprocess.run([b"cmp", os.fsencode(copied) + b"/" + path, case.at(path)], check=True, timeout=50)


def test_tar(case: Case) -> None:
    done = subprocess.run(
        ["tar", "c", "--exclude=./many", "."], cwd=case.at(b""), capture_output=True, check=True, timeout=50
    )
    assert not done.stderr
    seen = {}
    with tarfile.open(fileobj=io.BytesIO(done.stdout), encoding="utf-8", errors="surrogateescape") as tar:
        for member in tar:
            if member.isfile():
                opened = tar.extractfile(member)
                assert opened is not None
                seen[os.fsencode(member.name).removeprefix(b"./")] = hashlib.sha256(opened.read()).digest()
            elif member.issym():
                path = os.fsencode(member.name).removeprefix(b"./")
                assert os.fsencode(member.linkname) == case.links[path]
    assert seen == {path: hashlib.sha256(data).digest() for path, data in case.files.items()}


@pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")
def test_rsync(case: Case, tmp_path: Path) -> None:
    argv = ["rsync", "-a", "--exclude=/many", f"{case.root}/", f"{tmp_path}/copy/"]
    subprocess.run(argv, check=True, timeout=50)
    done = subprocess.run([*argv, "--checksum", "--itemize-changes"], check=True, timeout=50, capture_output=True)
    assert done.stdout == b""


_MAP = """
import mmap, random, sys
with open(sys.argv[1], "rb") as file:
    data = file.read()
with open(sys.argv[2], "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
    pages = list(range(0, len(data), 4096))
    random.Random(7).shuffle(pages)
    for page in pages[:500]:
        assert mapped[page:page + 4096] == data[page:page + 4096], page
    assert mapped[:] == data
    assert len(mapped) == len(data)
with open(sys.argv[2], "rb") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE) as mapped:
    mapped[10:20] = b"0123456789"
    assert mapped[:30] == data[:10] + b"0123456789" + data[20:30]
"""


@pytest.mark.parametrize("name", [LARGE, b"page+1", b"one-byte"])
def test_mapped(case: Case, tmp_path: Path, name: bytes) -> None:
    if name == b"one-byte":
        with open(case.at(name), "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[:] == b"x"
        return
    reference = tmp_path / "reference"
    reference.write_bytes(case.files[name])
    argv = [sys.executable, "-c", _MAP, str(reference), os.fsdecode(case.at(name))]
    subprocess.run(argv, check=True, timeout=50)


def test_sendfile(case: Case) -> None:
    data = case.files[LARGE]
    left, right = socket.socketpair()
    received = bytearray()

    def receive() -> None:
        while piece := right.recv(MIB):
            received.extend(piece)

    thread = threading.Thread(target=receive)
    thread.start()
    fd = os.open(case.at(LARGE), os.O_RDONLY)
    try:
        offset = 0
        while count := os.sendfile(left.fileno(), fd, offset, 8 * MIB):
            offset += count
    finally:
        os.close(fd)
        left.close()
        thread.join(30)
        right.close()
    assert received == data


def test_splice(case: Case) -> None:
    data = case.files[b"three-blocks.bin"]
    read_end, write_end = os.pipe()
    fd = os.open(case.at(b"three-blocks.bin"), os.O_RDONLY)
    out = bytearray()
    try:
        offset = 1000
        while count := os.splice(fd, write_end, 65536, offset_src=offset):
            offset += count
            out += os.read(read_end, count)
    finally:
        for each in (fd, read_end, write_end):
            os.close(each)
    assert out == data[1000:]


def test_copy_file_range_and_copyfile(case: Case, tmp_path: Path) -> None:
    shutil.copyfile(case.at(LARGE), tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == case.files[LARGE]


def test_direct_reads(case: Case) -> None:
    data = case.files[LARGE]
    fd = os.open(case.at(LARGE), os.O_RDONLY | os.O_DIRECT)
    try:
        buffer = mmap.mmap(-1, MIB)  # page-aligned
        for offset in (0, 4096, 5 * MIB, len(data) // 4096 * 4096):
            count = os.preadv(fd, [buffer], offset)
            assert buffer[:count] == data[offset : offset + MIB], offset
            assert count == min(MIB, len(data) - offset)
    finally:
        os.close(fd)


def test_many_threads_anywhere(case: Case) -> None:
    data = case.files[LARGE]
    fd = os.open(case.at(LARGE), os.O_RDONLY)

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(60):
            offset, size = rng.randrange(len(data)), rng.choice((1, 511, 4096, 70_000, 300_000))
            assert os.pread(fd, size, offset) == data[offset : offset + size]

    try:
        with ThreadPoolExecutor(12) as pool:
            list(pool.map(work, range(12)))
    finally:
        os.close(fd)


@pytest.mark.parametrize("name", [b"empty", b"one-byte", b"page", b"page+1", LARGE])
def test_around_the_end(case: Case, name: bytes) -> None:
    data = case.files[name]
    fd = os.open(case.at(name), os.O_RDONLY)
    try:
        size = len(data)
        assert os.lseek(fd, 0, os.SEEK_END) == size
        assert os.read(fd, 10) == b""
        assert os.lseek(fd, 10_000_000, os.SEEK_END) == size + 10_000_000
        assert os.read(fd, 10) == b""
        for offset in (size, size + 1, size + 4096, 1 << 40):
            assert os.pread(fd, 4096, offset) == b""
        start = max(0, size - 5)
        assert os.pread(fd, 4096, start) == data[start:]
        with pytest.raises(OSError, match="Invalid argument"):
            os.lseek(fd, -1, os.SEEK_SET)
    finally:
        os.close(fd)


def test_data_and_holes(case: Case) -> None:
    fd = os.open(case.at(b"page+1"), os.O_RDONLY)
    try:
        assert os.lseek(fd, 0, os.SEEK_DATA) == 0
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 4097
        with pytest.raises(OSError, match="No such device or address"):
            os.lseek(fd, 4097, os.SEEK_DATA)
    finally:
        os.close(fd)


def test_read_ahead_advice_changes_nothing(case: Case) -> None:
    fd = os.open(case.at(LARGE), os.O_RDONLY)
    try:
        for advice in (os.POSIX_FADV_WILLNEED, os.POSIX_FADV_RANDOM, os.POSIX_FADV_DONTNEED, os.POSIX_FADV_SEQUENTIAL):
            os.posix_fadvise(fd, 0, 0, advice)
            assert os.pread(fd, 100, 7 * MIB) == case.files[LARGE][7 * MIB : 7 * MIB + 100]
    finally:
        os.close(fd)
