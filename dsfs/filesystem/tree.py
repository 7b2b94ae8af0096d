"""The tree above the datasets: namespaces, and the datasets in them."""

from __future__ import annotations

import errno
import stat
from typing import Protocol

from dsfs.filesystem.attributes import DIRECTORY_BYTES, FOREVER_S, Attributes, Entry, Listed
from dsfs.filesystem.nodes import ROOT_ID, nodeid_of
from dsfs.filesystem.statfs import Statfs
from dsfs.model import NAME_MAX_BYTES, Kind

_MODE = stat.S_IFDIR | 0o555


class Directories(Protocol):
    """What a connection without files answers; DatasetFiles has all of it and more."""

    def try_lookup(self, parent: int, name: bytes) -> Entry | None: ...
    async def lookup(self, parent: int, name: bytes) -> Entry: ...
    def try_getattr(self, nodeid: int) -> Attributes: ...
    def readlink(self, nodeid: int) -> bytes: ...
    def try_readdir(self, nodeid: int, cookie: int, limit: int) -> list[Listed] | None: ...
    async def ensure_listed(self, nodeid: int) -> None: ...
    async def statfs(self) -> Statfs: ...
    def xattrs(self, nodeid: int) -> dict[bytes, bytes]: ...


def check_name(name: bytes) -> None:
    """Raises OSError for a name that no directory can hold. The kernel's own limit for FUSE is 1024 bytes."""
    if len(name) > NAME_MAX_BYTES:
        raise OSError(errno.ENAMETOOLONG, "file name too long")


class NamespaceTree:
    """MOUNTPOINT/<namespace>/<dataset>: two levels, wholly in memory, as large as the manifests.

    A dataset's directory has the nodeid of the dataset's root. On the direct session the dataset's own connection is
    mounted over it; on the pyfuse3 session the lookup goes on below it.
    """

    def __init__(self, created_ns: int, uid: int, gid: int) -> None:
        self._created_ns = created_ns
        self._uid = uid
        self._gid = gid
        self._children: dict[int, dict[bytes, int]] = {ROOT_ID: {}}
        self._coming: set[int] = set()

    def add(self, namespace: str, number: int, dataset: str, slot: int, *, coming: bool = False) -> None:
        """Show a dataset. ``number`` is the namespace's own, ``slot`` the dataset's. One that is ``coming`` is found by
        who mounts it there, and listed once it has ``come``."""
        self._children[ROOT_ID][namespace.encode()] = number
        root = self._children.setdefault(number, {})[dataset.encode()] = nodeid_of(slot, ROOT_ID)
        if coming:
            self._coming.add(root)

    def come(self, namespace: str, dataset: str) -> list[int]:
        """List a dataset; the directories whose listing that changes."""
        number = self._children[ROOT_ID][namespace.encode()]
        for parent, name in (number, dataset), (ROOT_ID, namespace):
            child = self._children[parent][name.encode()]
            if self.is_coming(child):  # last from now on, as whoever reads the directory has passed its place
                self._children[parent][name.encode()] = self._children[parent].pop(name.encode())
        self._coming.discard(self._children[number][dataset.encode()])
        return [ROOT_ID, number]

    def is_coming(self, nodeid: int) -> bool:
        """Whether it is of a dataset that is not listed yet, or of a namespace of such ones."""
        if nodeid in self._children:
            return nodeid != ROOT_ID and self._coming.issuperset(self._children[nodeid].values())
        return nodeid in self._coming

    def remove(self, namespace: str, dataset: str) -> tuple[list[tuple[int, bytes]], list[int]]:
        """Show it no longer, nor a namespace without any; the names and directories that this changes.

        Only names that are gone: a kernel that is told to forget a directory unmounts what is mounted below it.
        """
        number = self._children[ROOT_ID][namespace.encode()]
        gone = [(number, dataset.encode())]
        self._coming.discard(self._children[number].pop(dataset.encode()))
        if not self._children[number]:
            gone.append((ROOT_ID, namespace.encode()))
            del self._children[number], self._children[ROOT_ID][namespace.encode()]
        return gone, [ROOT_ID, number]

    def namespace_of(self, nodeid: int) -> str | None:
        """The namespace that a directory is, if it is one."""
        for name, number in self._children[ROOT_ID].items():
            if number == nodeid:
                return name.decode()
        return None

    def mount_points(self) -> set[int]:
        """The nodeids of the datasets' directories."""
        return {nodeid for parent, names in self._children.items() if parent != ROOT_ID for nodeid in names.values()}

    def __contains__(self, nodeid: int) -> bool:
        return nodeid in self._children

    def try_lookup(self, parent: int, name: bytes) -> Entry | None:
        check_name(name)
        nodeid = self._children.get(parent, {}).get(name)
        if nodeid is None:
            return Entry(0, None, 0)
        return Entry(nodeid, self.try_getattr(nodeid))

    async def lookup(self, parent: int, name: bytes) -> Entry:
        return self.try_lookup(parent, name) or Entry(0, None, 0)

    def try_getattr(self, nodeid: int) -> Attributes:
        nlink = 2 + len(self._children.get(nodeid, ()))
        return Attributes(nodeid, DIRECTORY_BYTES, self._created_ns, _MODE, nlink, self._uid, self._gid, FOREVER_S)

    def readlink(self, nodeid: int) -> bytes:
        raise OSError(errno.EINVAL, "not a symbolic link")

    def try_readdir(self, nodeid: int, cookie: int, limit: int) -> list[Listed] | None:
        names = [Listed(b".", nodeid, Kind.DIRECTORY, 1, None), Listed(b"..", nodeid, Kind.DIRECTORY, 2, None)]
        here = [each for each in self._children.get(nodeid, {}).items() if not self.is_coming(each[1])]
        for position, (name, child) in enumerate(here, 3):
            names.append(Listed(name, child, Kind.DIRECTORY, position, self.try_getattr(child)))
        return names[cookie : cookie + limit]

    async def ensure_listed(self, nodeid: int) -> None:
        return

    async def statfs(self) -> Statfs:
        return Statfs(0, sum(len(children) for children in self._children.values()))

    def xattrs(self, nodeid: int) -> dict[bytes, bytes]:
        return {}
