"""What ends a mount that stays in the foreground."""

from __future__ import annotations

import signal

import pytest

from daemon.cli.foreground import hang_up


@pytest.mark.usefixtures("hang_up_ends")
def test_a_terminal_that_is_closed_ends_it_unless_that_is_ignored() -> None:
    """As by nohup(1)."""
    assert hang_up() == (signal.SIGHUP,)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert hang_up() == ()
    finally:
        signal.signal(signal.SIGHUP, before)
