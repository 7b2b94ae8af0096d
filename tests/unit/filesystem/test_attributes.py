"""Modes and owners as DESIGN section 8 says: write bits cleared, directories have x wherever r is."""

from __future__ import annotations

import stat

from hypothesis import given
from hypothesis import strategies as st

from dsfs.catalog.lookup import INO_BITS, Row
from dsfs.filesystem.attributes import FOREVER_S, Ownership, attributes_of
from dsfs.filesystem.nodes import ROOT_ID, ino_of, nodeid_of, slot_of
from dsfs.manifest.schema import MountOptions
from dsfs.model import Kind

modes = st.integers(0, 0o777)


def options(mode: int, uid: int | None = None, gid: int | None = None) -> MountOptions:
    return MountOptions(mode=f"{mode:04o}", uid=uid, gid=gid)


def row(kind: Kind, **values: object) -> Row:
    return Row(5, 1, b"name", int(kind), 7, 11, "tag", None, 0, 1, 0)._replace(**values)  # type: ignore[arg-type]  # by name


@given(modes)
def test_files_and_directories_show_the_mode_without_write_bits(mode: int) -> None:
    owner = Ownership.of(options(mode), 0, 0)
    assert owner.file_mode == mode & ~0o222
    for shift in (0, 3, 6):
        r, w, x = (owner.directory_mode >> shift & bit for bit in (4, 2, 1))
        assert bool(r) == bool(mode >> shift & 4)
        assert not w
        assert bool(x) == bool(mode >> shift & 5), "x wherever r is, and where it was"
    file = attributes_of(row(Kind.FILE), 9, owner)
    directory = attributes_of(row(Kind.DIRECTORY), 9, owner)
    assert file.mode == stat.S_IFREG | owner.file_mode
    assert directory.mode == stat.S_IFDIR | owner.directory_mode


def test_the_owner_is_the_manifests_or_who_mounted() -> None:
    assert (Ownership.of(options(0o755, 0, 0), 1000, 1001).uid, Ownership.of(options(0o755), 1000, 1001).uid) == (
        0,
        1000,
    )
    assert (Ownership.of(options(0o755, 0, 0), 1000, 1001).gid, Ownership.of(options(0o755), 1000, 1001).gid) == (
        0,
        1001,
    )
    default = Ownership.of(MountOptions(), 1, 1)
    assert (default.file_mode, default.directory_mode) == (0o555, 0o555)  # 0755 without write bits


def test_a_program_has_x_wherever_it_has_r() -> None:
    owner = Ownership(1, 2, 0o440, 0o550)
    assert attributes_of(row(Kind.FILE, executable=1), 9, owner).mode == stat.S_IFREG | 0o550
    assert attributes_of(row(Kind.FILE), 9, owner).mode == stat.S_IFREG | 0o440


def test_a_symbolic_link_has_the_length_of_what_it_holds() -> None:
    link = attributes_of(row(Kind.SYMLINK, size=6, target=b"target"), 9, Ownership(1, 2, 0o444, 0o555))
    assert (link.mode, link.size) == (stat.S_IFLNK | 0o777, 6)


def test_links_of_a_directory_are_final_once_it_is_listed() -> None:
    owner = Ownership(1, 2, 0o444, 0o555)
    listed = attributes_of(row(Kind.DIRECTORY, subdirs=3), 9, owner)
    assert (listed.nlink, listed.ttl_s) == (5, FOREVER_S)
    assert attributes_of(row(Kind.DIRECTORY, listed=0), 9, owner).ttl_s == 0
    file = attributes_of(row(Kind.FILE), 9, owner)
    assert (file.ino, file.size, file.mtime_ns, file.nlink, file.uid, file.gid) == (9, 7, 11, 1, 1, 2)


@given(st.integers(0, 2**23 - 1), st.integers(1, 2**INO_BITS - 1))
def test_nodeids_are_computed_both_ways(slot: int, ino: int) -> None:
    nodeid = nodeid_of(slot, ino)
    assert (slot_of(nodeid), ino_of(nodeid)) == (slot, ino)
    assert 0 < nodeid < 2**63
    assert (nodeid == ROOT_ID) == ((slot, ino) == (0, 1))
