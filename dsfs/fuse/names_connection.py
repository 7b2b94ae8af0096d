"""Names and attributes: the requests to a connection that its tree answers."""

from __future__ import annotations

import errno
from collections.abc import Callable

from dsfs.filesystem.attributes import BLOCK_SIZE, Listed
from dsfs.filesystem.tree import Directories
from dsfs.fuse.connection import PAGE, Answer, Channel, Connection
from dsfs.fuse.packing import pack_attributes, pack_entry, pack_names, pack_names_plus, pack_sized
from dsfs.fuse.wire import ATTR, ATTR_OUT, DIRENT, ENTRY_OUT, GETXATTR_IN, KSTATFS, READ_IN, Opcode

_SHORTEST = DIRENT.size + 8
"""Bytes of a name in a listing, at least; more of them than fit are not looked up."""
_SHORTEST_PLUS = ENTRY_OUT.size + ATTR.size + _SHORTEST


class NamesConnection(Connection):
    """``ReadingConnection`` adds bytes."""

    def __init__(self, name: str, channel: Channel, labels: tuple[str, str], tree: Directories) -> None:
        super().__init__(name, channel, labels)
        self._tree = tree

    def on_lookup(self, unique: int, nodeid: int, body: memoryview) -> Answer:
        name = bytes(body[:-1])  # NUL-terminated
        entry = self._tree.try_lookup(nodeid, name)
        return self._wait_lookup(nodeid, name) if entry is None else pack_entry(entry)

    async def _wait_lookup(self, nodeid: int, name: bytes) -> bytes:
        return pack_entry(await self._tree.lookup(nodeid, name))

    def on_getattr(self, unique: int, nodeid: int, body: memoryview) -> bytes:
        attributes = self._tree.try_getattr(nodeid)
        return ATTR_OUT.pack(attributes.ttl_s, 0, 0) + pack_attributes(attributes)

    def on_readlink(self, unique: int, nodeid: int, body: memoryview) -> bytes:
        target = self._tree.readlink(nodeid)
        if len(target) >= PAGE:
            raise OSError(errno.ENAMETOOLONG, "the link's target is longer than a path can be")
        return target

    def on_opendir(self, unique: int, nodeid: int, body: memoryview) -> None:
        # Turns OPENDIR and RELEASEDIR off for the connection, and the kernel's cache of listings on: what a directory
        # shows is computed from nodeid and offset, so a handle would have nothing to hold.
        self.device.reply_error(unique, errno.ENOSYS)

    def on_readdir(self, unique: int, nodeid: int, body: memoryview) -> Answer:
        _fh, offset, size, *_rest = READ_IN.unpack_from(body)
        return self._readdir(nodeid, offset, size, _SHORTEST, pack_names)

    def on_readdirplus(self, unique: int, nodeid: int, body: memoryview) -> Answer:
        _fh, offset, size, *_rest = READ_IN.unpack_from(body)
        return self._readdir(nodeid, offset, size, _SHORTEST_PLUS, pack_names_plus)

    def _readdir(
        self, nodeid: int, offset: int, size: int, shortest: int, pack: Callable[[list[Listed], int], bytes]
    ) -> Answer:
        limit = size // shortest + 1
        names = self._tree.try_readdir(nodeid, offset, limit)
        return self._wait_readdir(nodeid, offset, size, limit, pack) if names is None else pack(names, size)

    async def _wait_readdir(
        self, nodeid: int, offset: int, size: int, limit: int, pack: Callable[[list[Listed], int], bytes]
    ) -> bytes:
        await self._tree.ensure_listed(nodeid)
        return pack(self._tree.try_readdir(nodeid, offset, limit) or [], size)

    def on_statfs(self, unique: int, nodeid: int, body: memoryview) -> Answer:
        return self._wait_statfs()

    async def _wait_statfs(self) -> bytes:
        found = await self._tree.statfs()
        blocks = -(-found.total_bytes // BLOCK_SIZE)
        return KSTATFS.pack(blocks, 0, 0, found.files, 0, BLOCK_SIZE, 255, BLOCK_SIZE, 0)

    def on_getxattr(self, unique: int, nodeid: int, body: memoryview) -> bytes:
        (size, _pad) = GETXATTR_IN.unpack_from(body)
        name = bytes(body[GETXATTR_IN.size : -1])
        if not name.startswith(b"user.dsfs."):
            raise OSError(errno.ENODATA, "no such attribute")
        value = self._tree.xattrs(nodeid).get(name)
        if value is None:
            raise OSError(errno.ENODATA, "no such attribute")
        return pack_sized(value, size)

    def on_listxattr(self, unique: int, nodeid: int, body: memoryview) -> bytes:
        (size, _pad) = GETXATTR_IN.unpack_from(body)
        return pack_sized(b"".join(name + b"\0" for name in self._tree.xattrs(nodeid)), size)


NamesConnection.handlers = {
    **Connection.handlers,
    Opcode.LOOKUP: NamesConnection.on_lookup,
    Opcode.GETATTR: NamesConnection.on_getattr,
    Opcode.READLINK: NamesConnection.on_readlink,
    Opcode.OPENDIR: NamesConnection.on_opendir,
    Opcode.READDIR: NamesConnection.on_readdir,
    Opcode.READDIRPLUS: NamesConnection.on_readdirplus,
    Opcode.STATFS: NamesConnection.on_statfs,
    Opcode.GETXATTR: NamesConnection.on_getxattr,
    Opcode.LISTXATTR: NamesConnection.on_listxattr,
}
