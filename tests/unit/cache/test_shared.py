"""The files of the shared tier: whatever nodes, crashes and disks do to them, a read gives the right bytes or none."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import random
import shutil
import stat
import struct
import tempfile
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dsfs.cache import shared_lease, shared_space
from dsfs.cache.shared_file import DamagedGroup, Group, read_group, temporary_name, write_group
from dsfs.cache.shared_layout import (
    PUBLIC,
    SharedLayout,
    make_directory,
    open_area,
    open_shared,
    opened_directory,
    private_area,
)
from dsfs.cache.shared_space import Entry, Usage, choose, entries, remove
from dsfs.errors import CacheDirectoryError
from dsfs.ranges import block_range

BLOCK = 512
SIZES = (1, BLOCK, 3 * BLOCK + 5, 20 * BLOCK + 1)
KEYS = tuple(hashlib.sha256(bytes([number])).hexdigest() for number in range(len(SIZES)))
GROUPS = tuple(
    Group(key, number, size, BLOCK)
    for key, size in zip(KEYS, SIZES, strict=True)
    for number in range(-(-size // (8 * BLOCK)))
)
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None

a_group = st.sampled_from(GROUPS)
a_node = st.integers(0, 2)
a_number = st.integers(0, 2**16)


def content(group: Group) -> list[bytes]:
    """What these blocks are, for ever; different in each."""
    found = []
    for block in group.blocks:
        length = block_range(block, group.size_bytes, BLOCK).length
        found.append(random.Random(f"{group.key}{block}").randbytes(length))
    return found


CONTENT = {group: content(group) for group in GROUPS}


def directory_of(path: str) -> AbstractContextManager[int]:
    """Where a file lies, opened to look up names in."""
    return opened_directory(os.path.dirname(path), "")


def write(path: str, group: Group, blocks: Sequence[bytes], token: str) -> None:
    with directory_of(path) as fd:
        write_group(path, group, blocks, token, 0o600, fd)


def read(
    path: str, group: Group, stale_before_ns: int | None = None, owners: Collection[int] | None = None
) -> list[memoryview]:
    with directory_of(path) as fd:
        return read_group(path, group, fd, stale_before_ns, owners)


class SharedDirectoryMachine(RuleBasedStateMachine):
    """Three nodes over one directory. What a crash or another node leaves behind must not be seen as content."""

    def __init__(self) -> None:
        super().__init__()
        self.area = tempfile.mkdtemp(prefix="dsfs-shared-", dir=MEMORY)
        self.numbers = itertools.count()
        self.there: set[Group] = set()
        """What must be readable."""
        self.maybe: set[Group] = set()
        """What was damaged: it is right, or it is not there."""
        self.leases: dict[tuple[int, Group], shared_lease.Lease] = {}
        self.looks: dict[Group, shared_lease.Look] = {}
        for group in GROUPS:
            os.makedirs(group.directory(self.area), exist_ok=True)

    def teardown(self) -> None:
        shutil.rmtree(self.area)

    def now_s(self) -> float:
        return float(next(self.numbers))

    @rule(node=a_node, group=a_group)
    def take(self, node: int, group: Group) -> None:
        path = f"{group.path(self.area)}.lease"
        with directory_of(path) as fd:
            lease = shared_lease.take(path, self.now_s(), fd)
        if lease is not None:
            self.leases[node, group] = lease

    @rule(node=a_node, group=a_group)
    def publish(self, node: int, group: Group) -> None:
        """With a lease, with one that was overtaken, or with none at all."""
        write(group.path(self.area), group, CONTENT[group], f"{node}-{next(self.numbers)}")
        self.there.add(group)
        self.maybe.discard(group)

    @rule(node=a_node, group=a_group, cut=a_number)
    def crash_while_publishing(self, node: int, group: Group, cut: int) -> None:
        path = group.path(self.area)
        write(f"{path}.aside", group, CONTENT[group], "x")
        data = Path(f"{path}.aside").read_bytes()
        os.unlink(f"{path}.aside")
        Path(temporary_name(path, f"{node}-{next(self.numbers)}")).write_bytes(data[: cut % len(data)])
        self.leases.pop((node, group), None)

    @rule(node=a_node, group=a_group, landed=st.integers(0, 8), late=st.booleans())
    def touch_or_give_back(self, node: int, group: Group, landed: int, late: bool) -> None:
        lease = self.leases.get((node, group))
        if lease is None:
            return
        with directory_of(lease.path) as fd:
            if landed < 8:
                shared_lease.touch(lease, landed, self.now_s(), fd)
            else:
                del self.leases[node, group]
                shared_lease.give_back(lease, self.now_s(), 0.0 if late else 1e9, fd)

    @rule(group=a_group)
    def look_and_overtake(self, group: Group) -> None:
        path = f"{group.path(self.area)}.lease"
        with directory_of(path) as fd:
            look = shared_lease.look(path, fd)
            if look is not None and look == self.looks.get(group):
                shared_lease.overtake(path, look, fd)
                assert shared_lease.look(path, fd) is None
            elif look is not None:
                self.looks[group] = look

    @rule(group=a_group, how=st.sampled_from(["flip", "cut", "longer", "other", "empty"]), at=a_number)
    def damage(self, group: Group, how: str, at: int) -> None:
        path = Path(group.path(self.area))
        if group not in self.there | self.maybe or not path.exists():
            return
        data = bytearray(path.read_bytes())
        if how == "flip" and data:
            data[at % len(data)] ^= 1 + at % 255
        elif how == "cut":
            del data[at % (len(data) + 1) :]
        elif how == "longer":
            data += b"x"
        elif how == "empty":
            data = bytearray(len(data))
        else:
            write(f"{path}.aside", GROUPS[at % len(GROUPS)], CONTENT[GROUPS[at % len(GROUPS)]], "x")
            data = bytearray(Path(f"{path}.aside").read_bytes())
            os.unlink(f"{path}.aside")
        path.write_bytes(data)
        self.there.discard(group)
        self.maybe.add(group)

    @rule(group=a_group)
    def read(self, group: Group) -> None:
        path = group.path(self.area)
        try:
            found = [bytes(block) for block in read(path, group, stale_before_ns=2**62)]
        except FileNotFoundError:
            assert group not in self.there
            return
        except DamagedGroup:
            assert group in self.maybe
            os.unlink(path)
            self.maybe.discard(group)
            return
        assert found == CONTENT[group]
        assert group in self.there | self.maybe

    @rule(need=st.integers(0, 40 * BLOCK), forgotten=st.booleans())
    def evict(self, need: int, forgotten: bool) -> None:
        found = [entry for name in os.listdir(self.area) for entry in entries(self.area, name)]
        now_ns = (
            max((entry.used_ns for entry in found), default=0) + int(shared_space.FORGOTTEN_S * 1e9 * forgotten) + 1
        )
        victims = choose(found, need, now_ns, fresh_s=0.0)
        remove(self.area, [*victims, *victims])  # another node does the same
        gone = {f"{self.area}/{entry.path}" for entry in victims}
        if forgotten:
            assert not [
                each for name in os.listdir(self.area) for each in entries(self.area, name) if not each.published
            ]
            self.leases = {}
        else:
            assert all(entry.published for entry in victims)
        for group in GROUPS:
            if group.path(self.area) in gone:
                self.there.discard(group)
                self.maybe.discard(group)

    @invariant()
    def all_that_is_there_can_be_read(self) -> None:
        for group in self.there:
            assert os.path.exists(group.path(self.area))


TestSharedDirectory = SharedDirectoryMachine.TestCase
TestSharedDirectory.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture
def layout(tmp_path: Path) -> SharedLayout:
    return open_shared(f"{tmp_path}/shared", "t")


def test_the_file_is_the_same_on_every_machine(tmp_path: Path) -> None:
    """Little-endian by hand: what an x86 node writes an Arm or s390x node reads."""
    group = Group("ab" * 32, 2, 17 * BLOCK + 3, BLOCK)
    write(f"{tmp_path}/x", group, [b"b" * BLOCK, b"abc"], "t")
    data = Path(f"{tmp_path}/x").read_bytes()
    assert data[:64] == b"dsfsgrp1" + bytes.fromhex("ab" * 32) + struct.pack("<QQII", 2, 17 * BLOCK + 3, BLOCK, 2)
    assert data[76:] == b"b" * BLOCK + b"abc"
    assert len(data) == 64 + 4 + 8 + BLOCK + 3
    assert struct.unpack_from("<I", data, 72)[0] == 0x364B3FB7  # CRC-32C of "abc"


@given(st.lists(st.tuples(st.integers(1, 100), st.integers(0, 200), st.booleans())), st.integers(0, 3000))
def test_eviction_takes_the_oldest_nothing_fresh_and_not_one_too_many(
    files: list[tuple[int, int, bool]], need: int
) -> None:
    now_s, fresh_s = 200, 60
    found = [
        Entry(f"{number}{'' if published else '.lease'}", size, used_s * 10**9)
        for number, (size, used_s, published) in enumerate(files)
    ]
    victims = choose(found, need, now_s * 10**9, fresh_s)
    assert all(victim.published for victim in victims), "nothing here was forgotten"
    assert all(victim.used_ns <= (now_s - fresh_s) * 10**9 for victim in victims)
    left = [entry for entry in found if entry.published and entry not in victims]
    assert not victims or not left or max(v.used_ns for v in victims) <= min(entry.used_ns for entry in left)
    assert sum(victim.space_bytes for victim in victims[:-1]) < max(need, 1)
    evictable = [entry for entry in found if entry.published and entry.used_ns <= (now_s - fresh_s) * 10**9]
    assert sum(v.space_bytes for v in victims) >= min(need, sum(entry.space_bytes for entry in evictable))


def test_usage_is_guessed_from_a_part_and_then_counted() -> None:
    usage = Usage(random.Random(1))
    assert usage.bytes == 0
    usage.begin([f"d{number}" for number in range(10)])
    for _number in range(3):
        directory = usage.next()
        assert directory is not None
        usage.count(directory, [Entry("x", 100, 0), Entry("y", 50, 0)])
    assert usage.bytes == 1500
    while (directory := usage.next()) is not None:
        usage.count(directory, [Entry("x", 100, 0)])
    assert usage.bytes == 3 * 150 + 7 * 100
    usage.add("d0", 11)
    usage.add("new", 22)
    assert usage.bytes == 3 * 150 + 7 * 100 + 33
    assert "new" not in usage.sample(but=[f"d{number}" for number in range(10)] + ["new"])


def test_another_layout_or_a_stranger_s_directory_is_refused(tmp_path: Path) -> None:
    open_shared(f"{tmp_path}/a", "t")
    open_shared(f"{tmp_path}/a", "u")
    Path(f"{tmp_path}/a/version").write_text("dsfs shared cache, layout 2\n")
    with pytest.raises(CacheDirectoryError, match="layout 2"):
        open_shared(f"{tmp_path}/a", "t")
    os.mkdir(f"{tmp_path}/b")
    Path(f"{tmp_path}/b/.snapshot").write_text("what file servers put there")
    Path(f"{tmp_path}/b/thesis.txt").write_text("mine")
    with pytest.raises(CacheDirectoryError, match=r"thesis\.txt"):
        open_shared(f"{tmp_path}/b", "t")
    assert sorted(os.listdir(f"{tmp_path}/b")) == [".snapshot", "thesis.txt"]


def test_nothing_is_made_where_it_is_not_mounted_any_more(tmp_path: Path) -> None:
    """Another device, no version file, and no mount point: the bare directory below."""
    os.mkdir(f"{tmp_path}/shared")
    with pytest.raises(FileNotFoundError):
        open_shared(f"{tmp_path}/shared", "t", known_device=2**40)
    assert os.listdir(f"{tmp_path}/shared") == []
    with pytest.raises(FileNotFoundError):
        open_shared(f"{tmp_path}/gone", "t", known_device=os.stat(tmp_path).st_dev)
    assert not os.path.exists(f"{tmp_path}/gone")


def test_areas_have_modes_and_one_owner(layout: SharedLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    private = private_area("red")
    for area, mode in ((PUBLIC, 0o755), (private, 0o700)):
        open_area(layout, area)
        open_area(layout, area)
        path = Path(layout.area_path(area))
        assert stat.S_IMODE(path.stat().st_mode) == mode
        for wrong in (0o777, 0o722):
            path.chmod(wrong)
            with pytest.raises(CacheDirectoryError, match="chmod"):
                open_area(layout, area)
        path.chmod(mode)
    path = Path(layout.area_path(private_area("blue")))
    path.symlink_to(layout.area_path(private))
    with pytest.raises(CacheDirectoryError):
        open_area(layout, private_area("blue"))
    other = SharedLayout(layout.root, layout.device, layout.uid + 1, 0)
    if layout.uid != 0:
        with pytest.raises(CacheDirectoryError, match="belongs to"):
            open_area(other, PUBLIC)


def test_what_cannot_be_removed_keeps_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{key}.0" for key in sorted(KEYS)]
    (tmp_path / "aa").mkdir()
    for name in names:
        (tmp_path / "aa" / name).write_bytes(b"1234")
    found = sorted(entries(f"{tmp_path}", "aa"), key=lambda entry: entry.path)
    assert [entry.path for entry in found] == [f"aa/{name}" for name in names]
    unlink = os.unlink

    def refuse_one(path: str, *, dir_fd: int) -> None:
        if path == names[0]:
            raise PermissionError(errno.EPERM, "immutable")
        unlink(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", refuse_one)
    assert remove(f"{tmp_path}", found) == sum(entry.space_bytes for entry in found[1:])
    assert os.listdir(tmp_path / "aa") == names[:1]
    with pytest.raises(PermissionError):
        remove(f"{tmp_path}", found[:1])


def test_only_what_is_called_as_ours_is_looked_at(layout: SharedLayout) -> None:
    """Others may put there what they like, and some file servers do, everywhere."""
    open_area(layout, PUBLIC)
    open_area(layout, private_area("red"))
    path = Path(layout.root, GROUPS[0].path("private/red"))
    ours = [path.name, f"{path.name}.lease", temporary_name(path.name, f"{'ab' * 8}-7")]
    for directory in (path.parent, path.parent.with_name("etc"), path.parent.with_name("abc")):
        directory.mkdir()
        for name in (*ours, "passwd", f"{path.name}.conf", f"{path.name[1:]}", f"{path.name}.x.new~", ".nfs0001"):
            (directory / name).touch()
        (directory / f"{KEYS[1]}.0").mkdir()
        (directory / f"{KEYS[2]}.0").symlink_to(path)
    found = [entry for below in shared_space.directories(layout.root) for entry in entries(layout.root, below)]
    assert {entry.path for entry in found} == {f"private/red/{path.parent.name}/{name}" for name in ours}


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Directories of the node, in which files are called as ours are."""
    for area in (PUBLIC, "private/red"):
        (tmp_path / "outside" / area / "aa").mkdir(parents=True)
        for group in GROUPS[:3]:
            (tmp_path / "outside" / area / "aa" / os.path.basename(group.path(""))).write_text("precious")
    return tmp_path / "outside"


def contents(directory: Path) -> dict[str, str]:
    return {str(path): path.read_text() if path.is_file() else "" for path in directory.rglob("*")}


@pytest.mark.parametrize("swapped", ["private", "private/red", "private/red/aa", "public", "public/aa"])
@pytest.mark.parametrize("late", [False, True])
def test_no_link_leads_out_of_it(layout: SharedLayout, outside: Path, swapped: str, late: bool) -> None:
    """Whoever may write to its root can put one in any place, also between a look and what follows from it."""
    precious = contents(outside)
    shutil.copytree(outside, layout.root, dirs_exist_ok=True)
    area = PUBLIC if swapped.startswith(PUBLIC) else "private/red"

    def look() -> list[Entry]:
        found = [entry for each in shared_space.directories(layout.root) for entry in entries(layout.root, each)]
        return [entry for entry in found if entry.path.startswith(area)]

    known = look()
    assert len(known) == 3
    Path(layout.root, swapped).rename(f"{layout.root}/aside")
    Path(layout.root, swapped).symlink_to(outside / swapped)
    assert remove(layout.root, known if late else look()) == 0
    assert look() == []
    for below in (f"{area}/aa/x", f"{area}/x") if swapped != f"{area}/aa" else (f"{area}/aa/x",):
        with pytest.raises(NotADirectoryError):
            make_directory(layout.root, below)
    if swapped != f"{area}/aa":
        with pytest.raises(CacheDirectoryError, match="link"):
            open_area(layout, area)
    assert contents(outside) == precious


def test_nor_does_one_in_the_place_of_what_it_writes_itself(tmp_path: Path, outside: Path) -> None:
    root, victim, precious = tmp_path / "shared", next((outside / PUBLIC / "aa").iterdir()), contents(outside)
    root.mkdir()
    for name in (".version.t", ".probe.t"):
        (root / name).symlink_to(victim)
    open_shared(str(root), "t")
    assert contents(outside) == precious
    (root / "version").unlink()
    (root / "version").symlink_to(victim)
    with pytest.raises(OSError, match="Too many levels"):  # and nothing of what is in it
        open_shared(str(root), "t")


def test_a_file_of_somebody_else_is_not_trusted(tmp_path: Path) -> None:
    group = Group("ab" * 32, 0, BLOCK, BLOCK)
    write(f"{tmp_path}/x", group, [b"b" * BLOCK], "t")
    assert read(f"{tmp_path}/x", group, owners=(os.getuid(), 0)) == [b"b" * BLOCK]
    with pytest.raises(DamagedGroup, match="none of ours"):
        read(f"{tmp_path}/x", group, owners=(os.getuid() + 1,))
