"""Objects taken apart, and git's words understood."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from dsfs.errors import (
    RetryLater,
    SourceError,
    SourceMissing,
    SourceRefused,
    SourceTimeout,
    SourceUnavailable,
)
from dsfs.sources.git_objects import Pointer, TreeEntry, parse_commit, parse_pointer, parse_tree
from dsfs.sources.git_program import NoShallow, RefGone, failure_of
from dsfs.sources.git_work import WorkDirectory, remove_orphans

OID = "0123456789abcdef0123456789abcdef01234567"


def test_trees() -> None:
    raw = b"100644 a b\0" + bytes.fromhex(OID) + b"40000 \xff\0" + b"\0" * 20
    assert parse_tree(raw, 40) == [TreeEntry("a b", 0o100644, OID), TreeEntry("\udcff", 0o40000, "0" * 40)]
    assert parse_tree(b"120000 l\0" + b"\x11" * 32, 64) == [TreeEntry("l", 0o120000, "11" * 32)]
    assert parse_tree(b"", 40) == []


def test_commits() -> None:
    head = f"tree {OID}\nparent x\nauthor A <a> 1 +0000\ncommitter C > <c@c> 1700000000 -0500\ngpgsig x"
    raw = f"{head}\n\ntree no".encode()
    assert parse_commit(raw) == (OID, 1_700_000_000)


SHA = "ab" * 32
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{SHA}\nsize 12345\n".encode()


def test_pointers() -> None:
    assert parse_pointer(POINTER) == Pointer(SHA, 12345)
    assert parse_pointer(POINTER[:-1]) == Pointer(SHA, 12345)
    for other in (b"", POINTER + b"x", b" " + POINTER, POINTER.replace(b"sha256", b"sha1"), POINTER[:60]):
        assert parse_pointer(other) is None
    assert parse_pointer(POINTER.replace(b"oid", b"ext-0-foo sha256:" + SHA.encode() + b"\noid")) is None


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("fatal: unable to access 'http://h/': Could not resolve host: h", SourceUnavailable),
        ("fatal: unable to access 'http://h/': Failed to connect to h port 1: Connection refused", SourceUnavailable),
        ("fatal: unable to access 'http://h/': The requested URL returned error: 500", SourceUnavailable),
        ("fatal: unable to access 'http://h/': The requested URL returned error: 403", SourceRefused),
        ("fatal: unable to access 'http://h/': The requested URL returned error: 429", RetryLater),
        ("fatal: Authentication failed for 'http://h/'", SourceRefused),
        ("fatal: could not read Username for 'http://h': terminal prompts disabled", SourceRefused),
        ("git@h: Permission denied (publickey).\nfatal: Could not read from remote repository.", SourceRefused),
        ("remote: Not Found\nfatal: repository 'https://h/x.git/' not found", SourceMissing),
        ("fatal: remote error: access denied or repository not exported: /x.git", SourceMissing),
        ("fatal: '/x.git' does not appear to be a git repository\nfatal: Could not read", SourceMissing),
        ("error: RPC failed; curl 28 Operation too slow. Less than 1 bytes/sec transferred", SourceTimeout),
        ("ssh: connect to host h port 22: Connection timed out\nfatal: Could not read", SourceTimeout),
        (f"fatal: remote error: upload-pack: not our ref {OID}", RefGone),
        (f"error: Server does not allow request for unadvertised object {OID}", RefGone),
        ("fatal: dumb http transport does not support shallow capabilities", NoShallow),
        ("", SourceUnavailable),
    ],
)
def test_words(words: str, kind: type[SourceError]) -> None:
    error = failure_of(words, "https://h/x.git", 128, has_secret=False)
    assert type(error) is kind
    assert str(error).startswith("https://h/x.git: ")
    assert "\n" not in str(error)
    if isinstance(error, RefGone):
        assert error.oids == {OID}
        assert error.unadvertised == ("unadvertised" in words)


_BELOW = """fatal: Could not read from remote repository.

Please make sure you have the correct access rights
and the repository exists.
"""


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (
            "Connection timed out during banner exchange\r\nConnection to 10.0.0.1 port 22 timed out\r\n",
            "nothing answered in time (Connection timed out during banner exchange)",
        ),
        (
            "ssh: connect to host h port 22: Connection refused\r\nlost\r\n",
            "ssh: connect to host h port 22: Connection refused",
        ),
        ("kex_exchange_identification: read: Connection reset by peer\r\n", "kex_exchange_identification: read: "),
        ("git@h: Permission denied (publickey).\r\n", "refused (git@h: Permission denied (publickey).; give "),
        ("", "Could not read from remote repository."),
    ],
)
def test_why_ssh_failed_is_not_what_git_says_below_it(words: str, why: str) -> None:
    error = failure_of(words + _BELOW, "ssh://h/x.git", 128, has_secret=False)
    assert str(error).startswith(f"ssh://h/x.git: {why}")
    assert "repository exists" not in str(error)


def test_work_directories_of_the_dead_are_removed_and_those_of_the_living_stay(tmp_path: Path) -> None:
    alive = WorkDirectory(str(tmp_path))
    dead = tmp_path / "dsfs-git-dead"
    dead.mkdir()
    (dead / ".lock").touch()
    long_ago_s = time.time() - 3600
    for path in (str(dead), alive.path):
        os.utime(path, (long_ago_s, long_ago_s))
    young = WorkDirectory(str(tmp_path))
    remove_orphans(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == sorted(os.path.basename(work.path) for work in (alive, young))
    for work in (alive, young):
        work.remove()
    assert os.listdir(tmp_path) == []
