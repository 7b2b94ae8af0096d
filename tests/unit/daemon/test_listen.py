"""On which addresses a mount listens for everybody."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

import pytest

from daemon.control.listen import _everywhere
from daemon.settings import parse_address
from dsfs.errors import ConfigError


def test_no_host_is_all_of_them_and_a_host_is_what_it_says() -> None:
    assert parse_address(":9100") == ("", 9100)
    assert parse_address("0.0.0.0:9100") == ("0.0.0.0", 9100)
    assert parse_address("[::1]:9100") == ("::1", 9100)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nowhere", "is not HOST:PORT"),
        ("::1:9100", "is not HOST:PORT"),
        ("localhost:²", "is not HOST:PORT"),
        ("localhost:99999", "there is no port above 65535"),
        (f"localhost:{'9' * 5000}", "there is no port above 65535"),
    ],
)
def test_what_is_no_address_is_refused_for_what_it_is(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_address(text)


def test_both_families_have_one_port() -> None:
    with _everywhere(0) as listening:
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, listening.getsockname()[1])).close()


def test_where_ipv6_is_switched_off_the_other_is_listened_on(monkeypatch: pytest.MonkeyPatch) -> None:
    create_server = socket.create_server

    def switched_off(address: tuple[str, int], **how: Any) -> socket.socket:
        if how.get("family") == socket.AF_INET6:
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        return create_server(address, **how)

    monkeypatch.setattr(socket, "create_server", switched_off)
    with _everywhere(0) as listening:
        assert listening.family == socket.AF_INET
