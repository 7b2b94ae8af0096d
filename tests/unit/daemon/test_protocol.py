"""The protocol between keeper and server is one, though neither room may import the other."""

from __future__ import annotations

from daemon.keeping import peers
from dsfs.fuse import keeper_client


def test_both_sides_mean_the_same_version_and_messages() -> None:
    assert keeper_client.VERSION == peers.VERSION
    assert keeper_client._LARGEST_MESSAGE == peers.LARGEST_MESSAGE
