"""The journal of open handles against a dictionary: servers come and go, and requests are repeated to the next one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dsfs.filesystem.read_path import InodeMode
from dsfs.fuse.resume import OpenJournal
from dsfs.fuse.wire import UNIQUE_RESEND

nodeids = st.integers(1, 6).map(lambda number: number << 40 | 77)


class JournalMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        fd, self.path = tempfile.mkstemp(prefix="dsfs-journal-")
        os.close(fd)
        os.unlink(self.path)
        self.journal = OpenJournal(self.path)
        self.handles: dict[int, tuple[int, int]] = {}
        """nodeid → (open handles, backing id), as the kernel sees it."""
        self.unique = 0

    def teardown(self) -> None:
        self.journal.close()
        os.unlink(self.path)

    def next_unique(self) -> int:
        self.unique += 2  # FUSE_REQ_ID_STEP
        return self.unique

    @rule(nodeid=nodeids, backing_id=st.integers(0, 5), answered=st.booleans())
    def open(self, nodeid: int, backing_id: int, answered: bool) -> None:
        """``answered`` False: noted, then the server died; the kernel repeats the request to the next one."""
        count, used = self.handles.get(nodeid, (0, backing_id))
        unique = self.next_unique()
        self.journal.opened(unique, nodeid, used)
        if not answered:
            self.restart()
            self.journal.opened(unique | UNIQUE_RESEND, nodeid, used)
        self.handles[nodeid] = count + 1, used

    @rule(nodeid=nodeids, backing_id=st.integers(0, 5))
    def open_that_died_before_it_was_noted(self, nodeid: int, backing_id: int) -> None:
        count, used = self.handles.get(nodeid, (0, backing_id))
        unique = self.next_unique()
        self.restart()
        self.journal.opened(unique | UNIQUE_RESEND, nodeid, used)
        self.handles[nodeid] = count + 1, used

    @precondition(lambda self: self.handles)
    @rule(pick=st.integers(0, 2**16), answered=st.booleans())
    def release(self, pick: int, answered: bool) -> None:
        nodeid = sorted(self.handles)[pick % len(self.handles)]
        count, used = self.handles.pop(nodeid)
        unique = self.next_unique()
        to_close = self.journal.released(unique, nodeid)
        assert to_close == (used if count == 1 else 0), "closed with the last handle, and not before"
        if not answered:
            self.restart()
            assert self.journal.released(unique | UNIQUE_RESEND, nodeid) == 0
        if count > 1:
            self.handles[nodeid] = count - 1, used

    @rule()
    def restart(self) -> None:
        self.journal.close()
        self.journal = OpenJournal(self.path)

    @rule(nodeid=nodeids)
    def release_of_what_is_not_open(self, nodeid: int) -> None:
        """Opened before the journal was begun, say: nothing to close."""
        if nodeid not in self.handles:
            assert self.journal.released(self.next_unique(), nodeid) == 0

    @invariant()
    def it_says_what_the_kernel_has(self) -> None:
        assert self.journal.open_inodes == len(self.handles)
        assert self.journal.passthrough_handles == any(used for _count, used in self.handles.values())
        for nodeid in (number << 40 | 77 for number in range(1, 7)):
            if nodeid not in self.handles:
                assert self.journal.mode(nodeid) is None
                continue
            _count, used = self.handles[nodeid]
            assert self.journal.mode(nodeid) is (InodeMode.PASSTHROUGH if used else InodeMode.CACHED)
            assert self.journal.backing_id(nodeid) == used


TestJournal = JournalMachine.TestCase
TestJournal.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_only_its_own_file_is_removed(tmp_path: Path) -> None:
    """The next connection of a dataset may have the device number, and so the name, of one that is still ending."""
    path = str(tmp_path / "default@files.0-42")
    before = OpenJournal(path)
    os.unlink(path)
    now = OpenJournal(path)
    now.opened(2, 77, 5)
    before.remove()
    now.close()
    again = OpenJournal(path)
    assert again.backing_id(77) == 5
    again.remove()
    assert not os.path.exists(path)


def test_a_file_that_is_gone_is_no_error(tmp_path: Path) -> None:
    path = str(tmp_path / "default@files.0-42")
    journal = OpenJournal(path)
    os.unlink(path)
    journal.remove()
