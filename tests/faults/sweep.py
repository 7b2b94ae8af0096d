"""The n-th system call dies, or fails, for every n until the operation gets through (sqlite.org/testing.html).

Calls are wrapped where the code looks them up: in ``os``, ``fcntl`` and ``mmap``, in ``libc.fallocate``, and at each
store into the mapping of a block map or a journal, which is where a killed process leaves off too. A write counts
twice: before its first byte, and half way through.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dsfs.cache import blockmap
from dsfs.cache.blockmap import BlockMap

Fault = Callable[[str], None]

_CALLS = ("open", "pwrite", "write", "rename", "unlink", "ftruncate", "posix_fallocate", "fsync", "makedirs", "stat")
_WRITES = ("pwrite", "write")


class Counter:
    """Lets calls through until the ``fatal``-th (from 0), which meets the fault. ``calls`` are those that were seen."""

    def __init__(self, fatal: int, fault: Fault) -> None:
        self.calls: list[str] = []
        self._fatal = fatal
        self._fault = fault

    @property
    def struck(self) -> bool:
        return len(self.calls) > self._fatal

    def __call__(self, name: str, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._meet(name)
        if name in _WRITES and len(args[1]) > 1:
            half = len(args[1]) // 2
            done = real(args[0], bytes(args[1][:half]), *args[2:])
            self._meet(f"rest of {name}")
            if name == "write":
                return done + real(args[0], args[1][half:])
            return done + real(args[0], args[1][half:], args[2] + half)
        return real(*args, **kwargs)

    def _meet(self, name: str) -> None:
        self.calls.append(name)
        if len(self.calls) - 1 == self._fatal:
            self._fault(name)


class _Stores:
    """A view of a mapping whose stores count as calls."""

    def __init__(self, view: Any, name: str, counter: Counter) -> None:
        self._view = view
        self._name = name
        self._counter = counter

    def __getitem__(self, at: Any) -> Any:
        return self._view[at]

    def __setitem__(self, at: Any, value: Any) -> None:
        self._counter(f"store {self._name}", self._view.__setitem__, at, value)

    def __bytes__(self) -> bytes:
        return bytes(self._view)

    def release(self) -> None:
        self._view.release()


class _Libc:
    def __init__(self, counter: Counter, real: Any) -> None:
        self._counter = counter
        self._real = real

    def fallocate(self, *args: Any) -> Any:
        return self._counter("fallocate", self._real, *args)


@contextmanager
def counted(counter: Counter, *stores: tuple[Any, str]) -> Iterator[None]:
    """Wrap all calls, for as long as the context lasts. ``stores`` are (class, name) of what stores into mappings."""
    real: list[tuple[Any, str, Any]] = [(os, name, getattr(os, name)) for name in _CALLS]
    real += [(blockmap, "_libc", blockmap._libc), (BlockMap, "__init__", BlockMap.__init__)]
    real += [(owner, name, getattr(owner, name)) for owner, name in stores]

    def wrapped(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: counter(name, function, *args, **kwargs)

    def watched_init(self: BlockMap, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        watch(self, counter)

    init = BlockMap.__init__
    for name in _CALLS:
        setattr(os, name, wrapped(name, getattr(os, name)))
    blockmap._libc = _Libc(counter, blockmap._libc.fallocate)  # type: ignore[assignment]  # the one function used
    BlockMap.__init__ = watched_init  # type: ignore[method-assign]  # to reach the views it makes
    for owner, name in stores:
        setattr(owner, name, wrapped("store record", getattr(owner, name)))
    try:
        yield
    finally:
        for owner, name, value in real:
            setattr(owner, name, value)


def watch(obj: BlockMap, counter: Counter) -> None:
    """Count the stores into an object that was opened before."""
    obj._states = _Stores(obj._states, "state", counter)  # type: ignore[assignment]  # quacks like the memoryview
    obj._checksums = _Stores(obj._checksums, "checksum", counter)  # type: ignore[assignment]
    obj._generation = _Stores(obj._generation, "generation", counter)  # type: ignore[assignment]
    obj._boot = _Stores(obj._boot, "boot id", counter)  # type: ignore[assignment]


def die(_name: str) -> None:
    """As kill -9: no clean-up, no flush, no finally."""
    os._exit(42)


def refuse(code: int) -> Fault:
    """The call fails, as on a full or a broken disk. A store into memory cannot."""

    def fault(name: str) -> None:
        if not name.startswith("store"):
            raise OSError(code, os.strerror(code), name)

    return fault


NO_SPACE = refuse(errno.ENOSPC)
BROKEN = refuse(errno.EIO)


def crash_at_every_call(
    prepare: Callable[[str], None],
    operation: Callable[[str], Callable[[Counter], None]],
    check: Callable[[str, bool], None],
    directory: Callable[[], str],
    *stores: tuple[Any, str],
) -> list[str]:
    """Run an operation in a child that dies at its n-th call, for n from 0 until it gets through; the calls it makes.

    ``prepare`` makes what is there before, ``operation`` opens it in the child and returns what is swept, ``check``
    opens it again in this process: it is told whether the operation got through.
    """
    for fatal in range(1000):
        where = directory()
        prepare(where)
        survived, calls = in_child(lambda where=where: operation(where), fatal, *stores)  # type: ignore[misc]  # a lambda with a default
        check(where, survived)
        if survived:
            assert fatal > 0, "the operation makes no call that is watched"
            return calls
    raise AssertionError("the operation never got through")


def in_child(
    start: Callable[[], Callable[[Counter], None]], fatal: int, *stores: tuple[Any, str]
) -> tuple[bool, list[str]]:
    """Whether a forked child got through, and which calls it made."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            operation = start()
            counter = Counter(fatal, die)
            with counted(counter, *stores):
                operation(counter)
            os.write(writer, "\n".join(counter.calls).encode())
            os._exit(0)
        except BaseException as error:
            os.write(2, f"in the child: {error!r}\n".encode())
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode()
    _pid, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 42), f"the child ended with {code}"
    return code == 0, said.splitlines()


def fail_at_every_call(
    prepare: Callable[[str], None],
    operation: Callable[[str], Callable[[Counter], None]],
    check: Callable[[str, bool], None],
    directory: Callable[[], str],
    fault: Fault,
    *stores: tuple[Any, str],
) -> None:
    """The same in this process, with a call that fails: the operation raises OSError or does without.

    ``check`` is told whether it returned.
    """
    for fatal in range(1000):
        where = directory()
        prepare(where)
        run = operation(where)
        counter = Counter(fatal, fault)
        returned = True
        with counted(counter, *stores):
            try:
                run(counter)
            except OSError:
                returned = False
        del run
        check(where, returned)
        if not counter.struck:
            assert returned
            return
    raise AssertionError("the operation never got through")
