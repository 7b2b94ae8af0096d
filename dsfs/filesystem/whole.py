"""All of a mount on one connection: the tree of namespaces, and files of datasets below it.

The pyfuse3 session shows every dataset like this. On the direct session a dataset has a connection of its own, and the
root's connection shows older revisions like this, `<dataset>@<revision>`, which nobody lists but who asks by name.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable

from dsfs.filesystem.attributes import Attributes, Entry, Listed
from dsfs.filesystem.files import DatasetFiles
from dsfs.filesystem.nodes import ROOT_ID, nodeid_of, slot_of
from dsfs.filesystem.statfs import Statfs
from dsfs.filesystem.tree import Directories, NamespaceTree


class WholeTree:
    """Routes by the slot in a nodeid; see ``tree.Directories`` for what is answered.

    ``find_revision`` opens ``dataset@revision`` of a namespace and returns its slot, or None; ``reopen`` does the same
    for a slot that the kernel knows from a server before this one. Both end in ``put``.
    """

    def __init__(self, tree: NamespaceTree) -> None:
        self.tree = tree
        self.find_revision: Callable[[str, str], Awaitable[int | None]] = _none_is_known
        self.reopen: Callable[[int], None] = _nothing_to_reopen
        self._files: dict[int, DatasetFiles] = {}

    def put(self, files: DatasetFiles) -> None:
        self._files[files.dataset.slot] = files

    def drop(self, slot: int) -> None:
        self._files.pop(slot, None)

    def files(self, nodeid: int) -> DatasetFiles:
        """The files of the dataset that a nodeid is in. Raises OSError: EISDIR in the tree above, ENOENT before it is
        mounted, ESTALE if gone."""
        slot = slot_of(nodeid)
        if slot and slot not in self._files:
            self.reopen(slot)
        files = self._files.get(slot)
        if files is None:
            coming = errno.ENOENT if self.tree.is_coming(nodeid) else errno.ESTALE
            raise OSError(errno.EISDIR if nodeid in self.tree else coming, "no such inode")
        return files

    def _of(self, nodeid: int) -> Directories:
        return self.tree if nodeid in self.tree else self.files(nodeid)

    def try_lookup(self, parent: int, name: bytes) -> Entry | None:
        entry = self._of(parent).try_lookup(parent, name)
        if entry is None or parent not in self.tree:
            return entry
        if entry.nodeid == 0:
            return None if b"@" in name and self.tree.namespace_of(parent) else entry
        return self._own(entry)

    async def lookup(self, parent: int, name: bytes) -> Entry:
        if parent not in self.tree:
            return await self.files(parent).lookup(parent, name)
        namespace = self.tree.namespace_of(parent)
        slot = await self.find_revision(namespace, name.decode("utf-8", "replace")) if namespace else None
        if slot is None:
            return Entry(0, None, 0)
        root = nodeid_of(slot, ROOT_ID)
        return Entry(root, self.try_getattr(root))

    def _own(self, entry: Entry) -> Entry:
        """A dataset's directory shows the dataset's own mode and owner, not those of the tree it is found in."""
        files = self._files.get(slot_of(entry.nodeid))
        return entry if files is None else entry._replace(attributes=files.try_getattr(entry.nodeid))

    def try_getattr(self, nodeid: int) -> Attributes:
        if slot_of(nodeid) not in self._files and nodeid in self.tree.mount_points():
            return self.tree.try_getattr(nodeid)  # covered by the dataset's own connection
        return self._of(nodeid).try_getattr(nodeid)

    def readlink(self, nodeid: int) -> bytes:
        return self._of(nodeid).readlink(nodeid)

    def try_readdir(self, nodeid: int, cookie: int, limit: int) -> list[Listed] | None:
        names = self._of(nodeid).try_readdir(nodeid, cookie, limit)
        if names is None or nodeid not in self.tree:
            return names
        return [
            listed._replace(attributes=self._own(Entry(listed.nodeid, listed.attributes)).attributes)
            for listed in names
        ]

    async def ensure_listed(self, nodeid: int) -> None:
        await self._of(nodeid).ensure_listed(nodeid)

    async def statfs(self) -> Statfs:
        return await self.tree.statfs()

    def xattrs(self, nodeid: int) -> dict[bytes, bytes]:
        return self._of(nodeid).xattrs(nodeid)


async def _none_is_known(namespace: str, name: str) -> int | None:
    return None


def _nothing_to_reopen(slot: int) -> None:
    return
