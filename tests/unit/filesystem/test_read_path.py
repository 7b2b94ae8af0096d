"""Which read path, which mode: small decisions, every case of them."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from dsfs.filesystem.read_path import (
    OPEN_COSTS_BYTES,
    SMALL_FILE_BYTES,
    Abilities,
    InodeMode,
    Listing,
    choose_read_path,
    mode_for_open,
)
from dsfs.model import ReadPath
from dsfs.ranges import GiB, MiB

SMALL = Listing(files=1000, total_bytes=1000 * 100_000, large_bytes=0, sealed=True)
MEMORY = 64 * GiB
ALL = Abilities(passthrough=True, openless=True)

abilities_ = st.builds(Abilities, st.booleans(), st.booleans())
listings = st.builds(Listing, st.integers(0, 10**7), st.integers(0, 2**45), st.integers(0, 2**41), st.booleans())


@given(st.sampled_from(ReadPath), abilities_, listings, st.integers(0, 2**42))
def test_only_what_can_be_done_is_chosen(
    wanted: ReadPath, abilities: Abilities, listing: Listing, memory_bytes: int
) -> None:
    chosen = choose_read_path(wanted, abilities, listing, memory_bytes)
    assert chosen is not ReadPath.AUTO
    assert chosen is not ReadPath.PASSTHROUGH or abilities.passthrough
    assert chosen is not ReadPath.OPENLESS or abilities.openless
    if wanted is ReadPath.DAEMON:
        assert chosen is ReadPath.DAEMON
    if wanted is ReadPath.OPENLESS and abilities.openless:
        assert chosen is wanted
    if wanted is ReadPath.PASSTHROUGH and abilities.passthrough:
        assert chosen is wanted
    if wanted is ReadPath.AUTO and chosen is ReadPath.OPENLESS:
        assert listing.sealed, "a connection can never turn back, so nothing is decided on half a listing"
        assert listing.total_bytes <= memory_bytes
    if not (abilities.openless or abilities.passthrough):
        assert chosen is ReadPath.DAEMON


def test_auto_takes_openless_for_small_files_that_fit_in_memory_and_passthrough_for_the_rest() -> None:
    assert choose_read_path(ReadPath.AUTO, ALL, SMALL, MEMORY) is ReadPath.OPENLESS
    others = (
        Listing(SMALL.files, SMALL.total_bytes, SMALL.large_bytes, sealed=False),
        Listing(0, 0, 0, sealed=True),
        Listing(1000, 1000 * SMALL_FILE_BYTES + 1, 0, sealed=True),
        Listing(10**7, MEMORY, 0, sealed=True),
    )
    for listing in others:
        assert choose_read_path(ReadPath.AUTO, ALL, listing, MEMORY) is ReadPath.PASSTHROUGH
        assert choose_read_path(ReadPath.AUTO, Abilities(False, True), listing, MEMORY) is ReadPath.DAEMON


def test_large_files_among_small_ones_are_read_in_passthrough_unless_opens_cost_more() -> None:
    for large_bytes, path in ((1000 * OPEN_COSTS_BYTES, ReadPath.OPENLESS), (256 * MiB, ReadPath.PASSTHROUGH)):
        mixed = Listing(SMALL.files + 1, SMALL.total_bytes + large_bytes, large_bytes, sealed=True)
        assert choose_read_path(ReadPath.AUTO, ALL, mixed, MEMORY) is path
        no_passthrough = choose_read_path(ReadPath.AUTO, Abilities(False, True), mixed, MEMORY)
        assert no_passthrough is ReadPath.OPENLESS, "large files come through the daemon anyway"


def test_all_open_handles_of_an_inode_use_one_mode() -> None:
    for path, current, complete in itertools.product(ReadPath, (None, *InodeMode), (False, True)):
        mode = mode_for_open(path, current, complete)
        if current is not None:
            assert mode is current
        else:
            assert (mode is InodeMode.PASSTHROUGH) == (path is ReadPath.PASSTHROUGH and complete)
