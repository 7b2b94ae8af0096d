"""Fixtures of all tests: mounts that are gone when their test is, a watchdog, a last look for what stayed behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.mounts import Mounts, Watchdog, leftovers

MOUNTING = ("conformance", "contract", "resilience")
"""Folders of tests that mount."""
HANGS_AFTER_S = 180.0

hypothesis.settings.register_profile("dsfs", deadline=None)  # no example is wrong for having waited for a processor
hypothesis.settings.load_profile("dsfs")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that mount need root and /dev/fuse; elsewhere they are skipped, and say so."""
    if os.getuid() == 0 and os.access("/dev/fuse", os.R_OK | os.W_OK):
        return
    for item in items:
        if _mounts_in(item.path):
            item.add_marker(pytest.mark.skip(reason="needs root and /dev/fuse"))


def _mounts_in(path: Path) -> bool:
    here = Path(__file__).parent
    return path.is_relative_to(here) and path.relative_to(here).parts[0] in MOUNTING


@pytest.fixture(scope="session")
def watchdog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watchdog]:
    """Also fails the session when a mount or one of its processes outlives the tests."""
    base = tmp_path_factory.getbasetemp()
    base.chmod(0o755)  # tests read mounts as another user
    dog = Watchdog(base)
    try:
        yield dog
        left = leftovers(base)
    finally:
        dog.close()
    assert not left, f"left behind by the tests: {left}"


@pytest.fixture(autouse=True)
def _watched(request: pytest.FixtureRequest) -> Iterator[None]:
    if not _mounts_in(request.node.path):
        yield
        return
    dog: Watchdog = request.getfixturevalue("watchdog")
    with dog.watching(HANGS_AFTER_S):
        yield


@pytest.fixture
def as_in_a_terminal() -> Iterator[None]:
    """Signals do what they do there, for what a test starts too: who runs the tests may ignore them (nohup, ``&``)."""
    does = {signal.SIGHUP: signal.SIG_DFL, signal.SIGQUIT: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, action) for number, action in does.items()}
    yield
    for number, action in before.items():
        signal.signal(number, action)


@pytest.fixture
def mounts(tmp_path: Path, watchdog: Watchdog) -> Iterator[Mounts]:
    """Mounts of one test. An unexpected warning in a server's log fails it."""
    tmp_path.chmod(0o755)
    made = Mounts(tmp_path)
    yield made
    problems = made.close()
    assert not problems, "\n".join(problems)


@pytest.fixture(scope="session")
def shared_mounts(tmp_path_factory: pytest.TempPathFactory, watchdog: Watchdog) -> Callable[[str], Mounts]:
    """Mounts of many tests; whoever asks closes them."""

    def make(name: str) -> Mounts:
        directory = tmp_path_factory.mktemp(name)
        directory.chmod(0o755)
        return Mounts(directory)

    return make
