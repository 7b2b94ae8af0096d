"""Where servers are: looked up by a thread, and used on when that fails once."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from dsfs.fetch import addresses
from dsfs.fetch.addresses import Addresses, Server
from tests.mounts import eventually

SERVER: Server = ("store.test", 80)
FOUND = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 80))]


def test_a_name_that_is_not_known_for_a_moment_is_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    def look_up(*_server: object, **_kind: object) -> list[Any]:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise socket.gaierror("for a moment")
        return FOUND

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(addresses, "_LOOKED_UP_S", 0.0)  # each time anew
    known = Addresses()
    assert known.find(SERVER) is None
    eventually(lambda: asked == 1 and not known._asking, 5, "it is looked up")
    assert known.find(SERVER) == (socket.AF_INET, ("192.0.2.1", 80))
    eventually(lambda: asked == 2 and not known._asking, 5, "and again, in vain")
    assert known.find(SERVER) == (socket.AF_INET, ("192.0.2.1", 80))
    eventually(lambda: asked == 3 and not known._asking, 5, "and again")
    known.forget(SERVER)
    assert known.find(SERVER) is None, "nothing was there"


def test_an_address_needs_no_look_up() -> None:
    assert Addresses().find(("127.0.0.1", 80)) == (socket.AF_INET, ("127.0.0.1", 80))
    assert Addresses().find(("::1", 80)) == (socket.AF_INET6, ("::1", 80, 0, 0))
