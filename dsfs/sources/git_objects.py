"""Git's objects: asked of one long-running ``git cat-file``, and taken apart (trees, commits, LFS pointers)."""

from __future__ import annotations

import asyncio
import re
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

from dsfs.errors import SourceTimeout, SourceUnavailable
from dsfs.ranges import KiB
from dsfs.sources.git_program import GitProgram

TREE: Final = 0o040000
SYMLINK: Final = 0o120000
GITLINK: Final = 0o160000  # a submodule's commit

POINTER_MAX_BYTES: Final = 1024  # git-lfs docs/spec.md: "Pointer files must be less than 1024 bytes"
_CHUNK: Final = 256 * KiB
_ASKED_AT_ONCE: Final = 512
_PATIENCE_S: Final = 60.0  # a local process that says nothing for so long sits on a disk that hangs


class ObjectInfo(NamedTuple):
    type: str
    size_bytes: int


class TreeEntry(NamedTuple):
    name: str
    mode: int
    oid: str


class Commit(NamedTuple):
    tree: str
    time_s: int
    """When it was committed, Unix seconds."""


class Pointer(NamedTuple):
    """What a Git LFS pointer file says of the file it stands for."""

    sha256: str
    size_bytes: int


class CatFile:
    """``git cat-file --batch-command`` over one repository: started when first asked, one question at a time.

    It never fetches: what is not here is None. A caller that is cancelled half way costs the process; the next one
    starts another.
    """

    def __init__(self, program: GitProgram, git_dir: str) -> None:
        self._program = program
        self._git_dir = git_dir
        self._process: Process | None = None
        self._lock = asyncio.Lock()

    async def info(self, oids: Sequence[str]) -> list[ObjectInfo | None]:
        """Type and size of each."""
        found: list[ObjectInfo | None] = []
        for start in range(0, len(oids), _ASKED_AT_ONCE):
            asked = oids[start : start + _ASKED_AT_ONCE]
            async with self._asking("info", asked) as answers:
                found += [await self._header(answers) for _ in asked]
        return found

    async def contents(self, oids: Sequence[str]) -> list[bytes | None]:
        """All bytes of each: for what is small."""
        found: list[bytes | None] = []
        for start in range(0, len(oids), _ASKED_AT_ONCE):
            asked = oids[start : start + _ASKED_AT_ONCE]
            async with self._asking("contents", asked) as answers:
                for _ in asked:
                    header = await self._header(answers)
                    found.append(None if header is None else (await answers.readexactly(header.size_bytes + 1))[:-1])
        return found

    async def stream(self, oid: str) -> AsyncGenerator[bytes, None]:
        """The bytes of one in pieces. Raises SourceUnavailable when it is not here."""
        async with self._asking("contents", [oid]) as answers:
            header = await self._header(answers)
            if header is None:
                raise SourceUnavailable(f"{self._program.access.address.shown}: {oid} went while it was read")
            left = header.size_bytes
            while left:
                async with asyncio.timeout(_PATIENCE_S):
                    chunk = await answers.read(min(left, _CHUNK))
                if not chunk:
                    raise EOFError
                left -= len(chunk)
                yield chunk
            await answers.readexactly(1)

    async def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            await self._program.end(process)

    @asynccontextmanager
    async def _asking(self, verb: str, oids: Sequence[str]) -> AsyncIterator[asyncio.StreamReader]:
        """Ask, and hand out the stream from which all answers must be read."""
        async with self._lock:
            if self._process is None or self._process.returncode is not None:
                self._process = await self._program.start(["cat-file", "--batch-command"], self._git_dir)
            process = self._process
            assert process.stdin is not None
            assert process.stdout is not None
            whole = False
            try:
                # Not drained: git answers while it is asked, and would wait for us to read while we wait for it.
                process.stdin.write("".join(f"{verb} {oid}\n" for oid in oids).encode())
                if verb == "info" or len(oids) > 1:
                    async with asyncio.timeout(_PATIENCE_S):
                        yield process.stdout
                else:
                    yield process.stdout
                whole = True
            except TimeoutError as error:
                raise SourceTimeout(f"{self._program.directory}: git read nothing for {_PATIENCE_S:g} s") from error
            except (EOFError, OSError) as error:
                raise SourceUnavailable(f"{self._program.directory}: git cat-file ended by itself") from error
            finally:
                if not whole and self._process is process:
                    await self.close()

    async def _header(self, answers: asyncio.StreamReader) -> ObjectInfo | None:
        line = await answers.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        words = line.split()
        if words[-1] == b"missing":
            return None
        return ObjectInfo(words[1].decode(), int(words[2]))


def parse_tree(raw: bytes, oid_hex: int) -> list[TreeEntry]:
    """The names in a tree object; ``oid_hex`` is how many hex digits an object id has (40 or 64)."""
    entries = []
    position, oid_bytes = 0, oid_hex // 2
    while position < len(raw):
        space = raw.index(b" ", position)
        end = raw.index(b"\0", space)
        name = raw[space + 1 : end].decode("utf-8", "surrogateescape")
        oid = raw[end + 1 : end + 1 + oid_bytes].hex()
        entries.append(TreeEntry(name, int(raw[position:space], 8), oid))
        position = end + 1 + oid_bytes
    return entries


def parse_commit(raw: bytes) -> Commit:
    tree, time_s = "", 0
    for line in raw.partition(b"\n\n")[0].split(b"\n"):
        key, _, value = line.partition(b" ")
        if key == b"tree":
            tree = value.decode()
        elif key == b"committer" and (match := re.search(rb"> (-?\d{1,18}) ", value)):
            time_s = int(match[1])
    return Commit(tree, time_s)


_POINTER = re.compile(
    rb"version https?://(?:git-lfs\.github\.com|hawser\.github\.com)/spec/v\d\n"
    rb"oid sha256:([0-9a-f]{64})\nsize (\d{1,18})\n?"
)


def parse_pointer(content: bytes) -> Pointer | None:
    """None for what is not a pointer, or one with extensions: then its bytes are not the file's."""
    match = _POINTER.fullmatch(content)
    return None if match is None else Pointer(match[1].decode(), int(match[2]))
