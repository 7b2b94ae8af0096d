"""Sizes, percentages and durations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsfs.errors import ConfigError
from dsfs.manifest.durations import parse_duration
from dsfs.manifest.sizes import Percent, parse_size, parse_size_or_percent
from dsfs.ranges import GiB, KiB, MiB


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("500GiB", 500 * GiB),
        ("500Gi", 500 * GiB),
        ("10GB", 10 * 10**9),
        ("10G", 10 * 10**9),
        ("1.5 MiB", 3 * MiB // 2),
        ("0.1kb", 100),
        ("1b", 1),
        (" 7 ", 7),
        ("8192", 8192),
        (8192, 8192),
        ("1TiB", 1024 * GiB),
        ("2PB", 2 * 10**15),
        ("7EiB", 7 * KiB**6),
    ],
)
def test_size(text, size_bytes):
    assert parse_size(text) == size_bytes
    if isinstance(text, str):
        assert parse_size_or_percent(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1", "0", 0, -5, "0.2B", "1e9", "10 Q", "1 0", "8EiB", "٣", "10GiBB", "1,5G", "5iB", True]
)
def test_no_size(text):
    with pytest.raises(ConfigError) as caught:
        parse_size(text)
    assert "\n" not in str(caught.value)


@given(st.integers(1, 2**63 - 1))
def test_plain_bytes_are_exact(size_bytes):
    assert parse_size(str(size_bytes)) == parse_size(size_bytes) == size_bytes


def test_percent():
    assert parse_size_or_percent("80%") == Percent(80.0)
    assert parse_size_or_percent("80%").of(1000) == 800
    assert parse_size_or_percent(" 0.5 % ").of(1000) == 5
    assert parse_size_or_percent("100%").of(2**62) == 2**62


@pytest.mark.parametrize("text", ["0%", "101%", "-1%", "%", "x%", "1e1%", "80%%"])
def test_no_percent(text):
    with pytest.raises(ConfigError, match="80%"):
        parse_size_or_percent(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("2m", 120), ("500ms", 0.5), ("30", 30), ("1.5h", 5400), ("1d", 86400), (" 3 s ", 3)],
)
def test_duration(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "0", "0s", "-1s", "s", "1w", "1e3", "inf", "nan", "1m30s", "99999999999d", "٣s"])
def test_no_duration(text):
    with pytest.raises(ConfigError):
        parse_duration(text)
