"""The listener's decisions: which pod, which part of the time, which files are named."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.open_listener import MOST_OPENS_A_SECOND, SAMPLE_SHARE, Attributes, Used, next_share, pod_of

UID = "0a1b2c3d-0a1b-0a1b-0a1b-0123456789ab"
UNDERSCORES = UID.replace("-", "_")


@pytest.mark.parametrize(
    ("cgroups", "pod"),
    [
        (f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UNDERSCORES}.slice/crio-1.scope", UID),
        (f"0::/kubepods.slice/kubepods-pod{UNDERSCORES}.slice\n", UID),
        (f"12:memory:/kubepods/besteffort/pod{UID}/{'c' * 64}\n0::/\n", UID),
        (f"0::/../../kubepods-pod{UNDERSCORES}.slice/crio-12.scope", UID),
        (f"0::/kubelet/kubepods/pod{'0a1b' * 8}/x", "0a1b" * 8),  # a static pod's
        ("0::/system.slice/ssh.service\n", ""),
        ("0::/user.slice/podman-12.scope\n", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_pod_of(cgroups: str, pod: str) -> None:
    assert pod_of(cgroups) == pod


def test_a_busy_second_is_sampled_and_a_calm_one_is_not() -> None:
    assert next_share(1.0, MOST_OPENS_A_SECOND) == 1.0
    assert next_share(1.0, MOST_OPENS_A_SECOND + 1) == SAMPLE_SHARE
    assert next_share(SAMPLE_SHARE, MOST_OPENS_A_SECOND - 1) == SAMPLE_SHARE, "no toggling around the bound"
    assert next_share(SAMPLE_SHARE, MOST_OPENS_A_SECOND / 2 - 1) == 1.0


@given(st.lists(st.integers(0, 300_000)))
def test_a_file_is_named_once_until_it_begins_anew(inos: list[int]) -> None:
    used, slot = Used(), 7 << 40
    for ino in inos:
        used.note(slot | ino)
    assert used.new == [slot | ino for ino in dict.fromkeys(inos)]
    used.new = []
    used.begin_anew()
    for ino in inos:
        used.note(slot | ino)
    assert len(used.new) == len(set(inos))


@pytest.mark.parametrize("size_bytes", [0, 5 << 32])
def test_attributes_are_those_of_fstat(tmp_path: Path, size_bytes: int) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        os.ftruncate(fd, size_bytes)
        stat = os.fstat(fd)
        assert Attributes(ctypes.CDLL(None, use_errno=True)).of(fd) == (stat.st_dev, stat.st_ino, stat.st_size)
    finally:
        os.close(fd)
