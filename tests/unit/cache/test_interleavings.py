"""All interleavings of readers, evictors and fetchers over one object, and the proof that the code does those steps.

DESIGN section 4: "it says present, it is punched, pread returns zeros" must be impossible. The first half is a model
in plain Python, searched exhaustively; wrong orders are tried too and must fail, or the model would prove nothing. The
second half records what ``BlockMap`` really does, and in which order, and compares it with the programs of the model.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from dsfs.cache import blockmap
from dsfs.cache.blockmap import BlockMap
from dsfs.cache.mapfile import GENERATION_AT, State
from dsfs.ranges import ByteRange

# -- the model --------------------------------------------------------------------------------------------------------
#
# An object of two blocks. A step is (what, block); programs are tuples of steps. One step is one thing that another
# thread or process can see: a load, a store, a system call.

Step = tuple[str, int]
Program = tuple[Step, ...]

READ: Program = (("note generation", 0), ("need state", 0), ("load bytes", 0), ("compare generation", 0))
"""Of a partial object."""
READ_COMPLETE: Program = (
    ("note generation", 0),
    ("need state", 0),
    ("need state", 1),
    ("compare generation", 0),
    ("load bytes", 0),
)
"""An object whose blocks are all present is never punched again, so nothing is compared once that was seen."""
RETRACT: Program = (
    ("lock exclusive", 0),
    ("stop if complete", 0),
    ("clear state", 0),
    ("raise generation", 0),
    ("punch", 0),
    ("unlock", 0),
)


def publish(block: int) -> Program:
    return (
        ("lock shared", 0),
        ("stop if present", block),
        ("write bytes", block),
        ("write checksum", block),
        ("set state", block),
        ("unlock", 0),
    )


PUBLISH = publish(0)


class World(NamedTuple):
    """What all actors share. ``bytes`` and ``state``: is the data of a block there, does the map say so."""

    bytes: tuple[bool, bool]
    state: tuple[bool, bool]
    generation: int = 0
    exclusive: int = -1
    shared: frozenset[int] = frozenset()


class Actor(NamedTuple):
    """One program on its way. ``loaded``: did it read data (True) or zeros (False)."""

    at: int = 0
    noted: int = -1
    loaded: bool | None = None
    trusted: bool = False


ABSENT = World((False, False), (False, False))
FIRST_PRESENT = World((True, False), (True, False))
OTHER_PRESENT = World((False, True), (False, True))
STARTS = (ABSENT, FIRST_PRESENT, OTHER_PRESENT)


def put(pair: tuple[bool, bool], block: int, value: bool) -> tuple[bool, bool]:
    return (value, pair[1]) if block == 0 else (pair[0], value)


def step(world: World, me: int, actor: Actor, program: Program) -> tuple[World, Actor] | None:
    """Do one step; None when it has to wait for a lock."""
    what, block = program[actor.at]
    done = actor._replace(at=actor.at + 1)
    stopped = actor._replace(at=len(program))
    unlocked = world._replace(exclusive=-1 if world.exclusive == me else world.exclusive, shared=world.shared - {me})
    match what:
        case "note generation":
            return world, done._replace(noted=world.generation)
        case "need state":
            return world, done if world.state[block] else stopped
        case "load bytes":
            return world, done._replace(loaded=world.bytes[block], trusted=True)
        case "compare generation":
            if world.generation == actor.noted:
                return world, done
            return world, stopped._replace(trusted=False)
        case "lock shared":
            return None if world.exclusive >= 0 else (world._replace(shared=world.shared | {me}), done)
        case "lock exclusive":  # LOCK_NB: gives up
            if world.exclusive >= 0 or world.shared:
                return world, stopped
            return world._replace(exclusive=me), done
        case "unlock":
            return unlocked, done
        case "stop if complete":
            return (unlocked, stopped) if all(world.state) else (world, done)
        case "stop if present":
            return (unlocked, stopped) if world.state[block] else (world, done)
        case "clear state":
            return world._replace(state=put(world.state, block, False)), done
        case "set state":
            return world._replace(state=put(world.state, block, True)), done
        case "raise generation":
            return world._replace(generation=world.generation + 1), done
        case "punch":
            return world._replace(bytes=put(world.bytes, block, False)), done
        case "write bytes":
            return world._replace(bytes=put(world.bytes, block, True)), done
        case "write checksum":
            return world, done
    raise AssertionError(what)


def first_wrong(start: World, programs: tuple[Program, ...], *, crashes: bool = True) -> str | None:
    """Search every interleaving, and every crash of every actor; how the first zeros are served, or None.

    Depth first over all that is reachable; a situation that was seen before leads where it led before.
    """
    seen: set[tuple[World, tuple[Actor, ...]]] = set()
    stack: list[tuple[World, tuple[Actor, ...], tuple[str, ...]]] = [(start, tuple(Actor() for _ in programs), ())]
    while stack:
        world, actors, history = stack.pop()
        if (world, actors) in seen:
            continue
        seen.add((world, actors))
        running = False
        for me, (actor, program) in enumerate(zip(actors, programs, strict=True)):
            if actor.at == len(program):
                if actor.trusted and actor.loaded is False:
                    return " / ".join(history)
                continue
            running = True
            result = step(world, me, actor, program)
            if result is not None:
                after, moved = result
                line = f"{me}: {' '.join(map(str, program[actor.at]))}"
                stack.append((after, (*actors[:me], moved, *actors[me + 1 :]), (*history, line)))
            if crashes:  # the kernel takes the locks of the dead away; what they stored stays
                after = world._replace(
                    exclusive=-1 if world.exclusive == me else world.exclusive, shared=world.shared - {me}
                )
                dead = Actor(at=len(program))
                stack.append((after, (*actors[:me], dead, *actors[me + 1 :]), (*history, f"{me}: dies")))
        if not running and any(said and not there for said, there in zip(world.state, world.bytes, strict=True)):
            return " / ".join((*history, "a hole stays present for ever"))
    return None


@pytest.mark.parametrize("start", STARTS)
def test_no_interleaving_lets_a_reader_take_zeros_for_data(start: World) -> None:
    assert first_wrong(start, (READ, RETRACT, PUBLISH)) is None


@pytest.mark.parametrize("start", STARTS)
def test_nor_with_two_of_each(start: World) -> None:
    assert first_wrong(start, (READ, READ, RETRACT, RETRACT, PUBLISH, PUBLISH), crashes=False) is None


@pytest.mark.parametrize("start", STARTS)
def test_an_object_that_was_seen_complete_can_be_read_without_comparing(start: World) -> None:
    assert first_wrong(start, (READ_COMPLETE, RETRACT, PUBLISH, publish(1))) is None


def without(program: Program, *whats: str) -> Program:
    return tuple(item for item in program if item[0] not in whats)


def reordered(program: Program, *whats: str) -> Program:
    """The same program with the named steps in this order, in the places where they stood."""
    by_name = {item[0]: item for item in program}
    order = iter(whats)
    return tuple(by_name[next(order)] if item[0] in whats else item for item in program)


WRONG = {
    "state after the punch": (READ, reordered(RETRACT, "raise generation", "punch", "clear state"), PUBLISH),
    "generation after the punch": (READ, reordered(RETRACT, "clear state", "punch", "raise generation"), PUBLISH),
    "generation before the state": (READ, reordered(RETRACT, "raise generation", "clear state", "punch"), PUBLISH),
    "generation never raised": (READ, without(RETRACT, "raise generation"), PUBLISH),
    "publish not excluded by punch": (READ, RETRACT, without(PUBLISH, "lock shared", "unlock")),
    "punch not excluded by publish": (READ, without(RETRACT, "lock exclusive", "unlock"), PUBLISH),
    "flag before the bytes": (READ, RETRACT, reordered(PUBLISH, "set state", "write bytes")),
    "reader does not compare": (without(READ, "compare generation"), RETRACT, PUBLISH),
    "reader notes the generation after the state": (
        reordered(READ, "need state", "note generation"),
        RETRACT,
        PUBLISH,
    ),
    "reader compares before it loads": (reordered(READ, "compare generation", "load bytes"), RETRACT, PUBLISH),
    "complete objects are punched": (READ_COMPLETE, without(RETRACT, "stop if complete"), PUBLISH, publish(1)),
    "completeness is counted over a retract": (
        without(READ_COMPLETE, "compare generation"),
        RETRACT,
        PUBLISH,
        publish(1),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_every_wrong_order_is_caught(name: str) -> None:
    assert any(first_wrong(start, WRONG[name], crashes=False) for start in STARTS)


# -- the code ---------------------------------------------------------------------------------------------------------

BLOCK = 4096
KEY = "ab" * 32
BOOT = b"b" * 16


class Watched:
    """A view of the mapping that notes each load and store; everything else is the real one's."""

    def __init__(self, view: Any, load: str, store: dict[int, str] | str, log: list[Step]) -> None:
        self._view = view
        self._load = load
        self._store = store
        self._log = log

    def __getitem__(self, at: int) -> Any:
        self._log.append((self._load, at))
        return self._view[at]

    def __setitem__(self, at: int, value: Any) -> None:
        name = self._store if isinstance(self._store, str) else self._store[int(value)]
        self._log.append((name, at))
        self._view[at] = value

    def __bytes__(self) -> bytes:
        self._log.append(("count states", 0))
        return bytes(self._view)

    def __len__(self) -> int:
        return len(self._view)

    def release(self) -> None:
        self._view.release()


@pytest.fixture
def watched(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[BlockMap, list[Step]]]:
    """A real object of two blocks, and everything it does to the disk and the map, in order."""
    log: list[Step] = []
    obj = BlockMap.create(f"{tmp_path}/{KEY}", KEY, 2 * BLOCK, BLOCK, BOOT)
    obj._states = Watched(  # type: ignore[assignment]  # quacks like the memoryview
        obj._states, "load state", {State.ABSENT: "clear state", State.PRESENT: "set state"}, log
    )
    obj._checksums = Watched(obj._checksums, "load checksum", "write checksum", log)  # type: ignore[assignment]
    obj._generation = Watched(obj._generation, "load generation", "raise generation", log)  # type: ignore[assignment]

    def noted(name: str, real: Any) -> Any:
        def call(*args: Any) -> Any:
            if name != "unlock" or args[0] in locked:
                at = args[2] // BLOCK if name != "unlock" else 0
                log.append((name, at))
                locked.discard(args[0])
            return real(*args)

        return call

    locked: set[int] = set()
    real_flock, real_fallocate = fcntl.flock, blockmap._libc.fallocate

    def flock(fd: int, how: int) -> None:
        log.append(("lock exclusive" if how & fcntl.LOCK_EX else "lock shared", 0))
        assert how in (fcntl.LOCK_SH, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert os.path.realpath(f"/proc/self/fd/{fd}") == f"{tmp_path}/{KEY}.map"
        locked.add(fd)
        real_flock(fd, how)

    class Libc:
        @staticmethod
        def fallocate(fd: int, mode: int, offset: int, length: int) -> int:
            log.append(("punch", offset // BLOCK))
            return int(real_fallocate(fd, mode, offset, length))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(blockmap, "_libc", Libc)
    monkeypatch.setattr(os, "pwrite", noted("write bytes", os.pwrite))
    monkeypatch.setattr(os, "preadv", noted("load bytes", os.preadv))
    monkeypatch.setattr(os, "close", noted("unlock", os.close))
    yield obj, log
    monkeypatch.undo()


def of_the_model(program: Program) -> list[Step]:
    """A program in the words of the recording, which cannot know what a load is for."""
    words = {
        "need state": "load state",
        "stop if present": "load state",
        "note generation": "load generation",
        "compare generation": "load generation",
        "stop if complete": "count states",
    }
    return [(words.get(what, what), block) for what, block in program]


LOOKED: list[Step] = [("load generation", 0), ("count states", 0)]
"""What a look for completeness does that finds a block missing; it does not compare then."""


def raised_in_one(log: list[Step]) -> list[Step]:
    """``generation += 1`` is a load and a store; the lock makes them one."""
    return [
        item
        for item, after in zip(log, [*log[1:], None], strict=True)
        if after != ("raise generation", 0) or item[0] != "load generation"
    ]


def test_publish_does_what_the_model_does(watched: tuple[BlockMap, list[Step]]) -> None:
    obj, log = watched
    with obj.writer() as writer:
        writer.publish(0, b"x" * BLOCK)
    assert log == of_the_model(PUBLISH)


def test_retract_does_what_the_model_does(watched: tuple[BlockMap, list[Step]]) -> None:
    obj, log = watched
    with obj.writer() as writer:
        writer.publish(0, b"x" * BLOCK)
    log.clear()
    assert obj.retract([0]) == BLOCK
    taken = [("load state", 0)]  # which of the blocks it was told are there at all
    assert raised_in_one(log) == [
        item for step_ in of_the_model(RETRACT) for item in (LOOKED + taken if step_[0] == "count states" else [step_])
    ]


def test_read_does_what_the_model_does(watched: tuple[BlockMap, list[Step]]) -> None:
    obj, log = watched
    with obj.writer() as writer:
        writer.publish(0, b"x" * BLOCK)
    log.clear()
    into = memoryview(bytearray(BLOCK))
    assert obj.read(ByteRange(0, BLOCK), into)
    assert log == LOOKED + of_the_model(READ)
    assert bytes(into) == b"x" * BLOCK


def test_read_of_a_complete_object_does_what_the_model_does(watched: tuple[BlockMap, list[Step]]) -> None:
    obj, log = watched
    with obj.writer() as writer:
        writer.publish(0, b"x" * BLOCK)
        writer.publish(1, b"y" * BLOCK)
    log.clear()
    assert obj.read(ByteRange(0, BLOCK), memoryview(bytearray(BLOCK)))
    counted = ("count states", 0)  # one copy of them all, where the model looks at one after the other
    assert log == [
        counted if what == "load state" else (what, block)
        for what, block in of_the_model(READ_COMPLETE)
        if (what, block) != ("load state", 1)
    ]
    log.clear()
    assert obj.retract([0]) is None  # it was seen complete once: no further look, and never a punch
    assert log == [("lock exclusive", 0), ("unlock", 0)]


def test_a_block_that_goes_away_under_a_reader_is_not_served(
    watched: tuple[BlockMap, list[Step]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interleaving that matters most, on the real code: between the look at the state and the read of the bytes."""
    obj, _log = watched
    with obj.writer() as writer:
        writer.publish(0, b"x" * BLOCK)
    evictor = BlockMap.open(_path_of(obj), KEY, 2 * BLOCK, BLOCK, BOOT)
    real = os.preadv

    def evicted_first(*args: Any) -> Any:
        assert evictor.retract([0]) == BLOCK
        return real(*args)

    monkeypatch.setattr(os, "preadv", evicted_first)
    into = memoryview(bytearray(BLOCK))
    assert obj.read(ByteRange(0, BLOCK), into) is False
    assert bytes(into) == bytes(BLOCK)  # zeros they were: it is the return value that says so


def test_nobody_punches_while_a_writer_holds_the_object(watched: tuple[BlockMap, list[Step]]) -> None:
    obj, _log = watched
    evictor = BlockMap.open(_path_of(obj), KEY, 2 * BLOCK, BLOCK, BOOT)
    with obj.writer() as writer:
        writer.publish(0, b"x" * BLOCK)
        assert evictor.retract([0]) is None
    assert evictor.retract([0]) == BLOCK
    with open(_path_of(obj) + ".map", "rb") as file:
        file.seek(GENERATION_AT)
        assert file.read(8) == (1).to_bytes(8, "little")


def _path_of(obj: BlockMap) -> str:
    return os.path.realpath(f"/proc/self/fd/{obj.fd}")
