"""Ranges over sockets: connections that are kept, that were closed meanwhile, that are stopped; odd but legal answers.

What servers may do wrong is in tests/sources/test_hostile.py, with both clients that stand on this.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from dsfs.errors import SourceUnavailable
from dsfs.ranges import ByteRange
from dsfs.sources.timeouts import Timeouts
from dsfs.sources.wire import Stop, Stopped, Wire
from dsfs.sources.wire_head import Head
from dsfs.sources.wire_request import NotForWire, WireRequest

DATA = bytes(range(256)) * 1000
HEAD = b"HTTP/1.1 206 X\r\nContent-Range: bytes 10-999/256000\r\nContent-Length: 990\r\n\r\n"
WANTED = ByteRange(10, 1000)

Talk = Callable[[socket.socket], None]


@contextlib.contextmanager
def server(*talks: Talk) -> Iterator[int]:
    """Each connection is had by the next of these, and closed when that returns."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            for talk in talks:
                connection, _address = listening.accept()
                with connection:
                    talk(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        thread.join(10)
        assert not thread.is_alive(), "a connection that was expected did not come"


def asked(connection: socket.socket) -> bytes:
    """One request; nothing when the other side has closed."""
    found = b""
    while not found.endswith(b"\r\n\r\n"):
        piece = connection.recv(4096)
        if not piece:
            break
        found += piece
    return found


def answers(*parts: bytes) -> Talk:
    def talk(connection: socket.socket) -> None:
        for part in parts:
            assert asked(connection)
            connection.sendall(part)

    return talk


def request(port: int, judge: Callable[[Head], None] = lambda head: None) -> WireRequest:
    head = f"GET /f HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nX-Secret: s3cret\r\n".encode()
    return WireRequest("127.0.0.1", port, head, "a file", len(DATA), judge, Timeouts(5.0, 5.0))


def read(wire: Wire, port: int, stop: Stop | None = None) -> bytes:
    buffer, found = memoryview(bytearray(300)), b""
    with wire.get(request(port), WANTED, stop or Stop()) as body:
        while len(found) < WANTED.length:
            found += buffer[: body.fill(buffer)]
    return found


RIGHT = DATA[WANTED.start : WANTED.stop]


def test_one_connection_for_one_range_after_the_other() -> None:
    wire = Wire()
    with server(answers(HEAD + RIGHT, HEAD + RIGHT, HEAD + RIGHT)) as port:
        assert [read(wire, port) for _ in range(3)] == [RIGHT] * 3
    wire.close()


def test_a_connection_that_the_server_has_closed_meanwhile_is_opened_again() -> None:
    wire = Wire()
    with server(answers(HEAD + RIGHT), answers(HEAD + RIGHT)) as port:
        assert read(wire, port) == RIGHT
        assert read(wire, port) == RIGHT
    wire.close()


def test_a_server_that_closes_without_an_answer_is_not_asked_for_ever() -> None:
    with server(lambda connection: None) as port, pytest.raises(SourceUnavailable, match="without an answer"):
        read(Wire(), port)


def test_connections_to_a_server_that_nobody_asks_any_more_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer_and_see_the_end(connection: socket.socket) -> None:
        answers(HEAD + RIGHT)(connection)
        assert asked(connection) == b""

    wire = Wire()
    with server(answer_and_see_the_end) as first:
        assert read(wire, first) == RIGHT
        monkeypatch.setattr("dsfs.sources.wire.IDLE_MAX_S", 0.0)
        with server(answers(HEAD + RIGHT)) as second:
            assert read(wire, second) == RIGHT
    wire.close()


@pytest.mark.parametrize(
    "left_over", [HEAD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + RIGHT, HEAD + RIGHT + b"more"]
)
def test_a_connection_that_is_not_clean_is_not_used_again(left_over: bytes) -> None:
    wire = Wire()
    with server(answers(left_over), answers(HEAD + RIGHT)) as port:
        assert read(wire, port) == RIGHT
        assert read(wire, port) == RIGHT
    wire.close()


def test_interim_answers_are_passed_over() -> None:
    wire = Wire()
    with server(answers(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + HEAD + RIGHT)) as port:
        assert read(wire, port) == RIGHT
    wire.close()


def test_a_head_in_small_pieces() -> None:
    def talk(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        asked(connection)
        for at in range(len(HEAD)):
            connection.sendall(HEAD[at : at + 1])
        connection.sendall(RIGHT)

    with server(talk) as port:
        wire = Wire()
        assert read(wire, port) == RIGHT
    wire.close()


def test_of_a_whole_answer_the_wanted_part_is_given() -> None:
    head = b"HTTP/1.1 200 X\r\nContent-Length: 256000\r\n\r\n"

    def talk(connection: socket.socket) -> None:
        asked(connection)
        with contextlib.suppress(OSError):  # the reader goes when it has what it wanted
            connection.sendall(head + DATA)

    with server(talk) as port:
        assert read(Wire(), port) == RIGHT


def test_chunked_bodies_are_left_to_a_library() -> None:
    head = b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n"
    with server(answers(head)) as port, pytest.raises(NotForWire):
        read(Wire(), port)


def test_a_reader_that_is_stopped_ends_and_nothing_of_it_is_used_again() -> None:
    wire, stop, halfway, ended = Wire(), Stop(), threading.Event(), []

    def talk(connection: socket.socket) -> None:
        asked(connection)
        connection.sendall(HEAD + RIGHT[:500])
        halfway.set()
        assert connection.recv(1) == b"", "the reader has closed"

    def reads() -> None:
        try:
            read(wire, port, stop)
        except Stopped:
            ended.append(True)

    with server(talk, answers(HEAD + RIGHT)) as port:
        reading = threading.Thread(target=reads)
        reading.start()
        halfway.wait(10)
        stop.now()
        reading.join(10)
        assert ended == [True]
        with pytest.raises(Stopped):
            read(wire, port, stop)
        assert read(wire, port) == RIGHT
    wire.close()


def test_errors_and_requests_show_no_header() -> None:
    assert "s3cret" not in repr(request(1))
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(SourceUnavailable) as caught:
        read(Wire(), port)
    assert "s3cret" not in str(caught.value)


def test_names_are_known_when_no_descriptor_is_left() -> None:
    """In a fresh interpreter, as what it takes to look up a name is loaded once."""
    program = """
import os, resource, socket
import dsfs.sources.wire
in_use = len(os.listdir("/proc/self/fd")) - 1
resource.setrlimit(resource.RLIMIT_NOFILE, (in_use, in_use))
try:
    open("/dev/null")
except OSError:
    print(socket.getaddrinfo("127.0.0.1", 80)[0][4], "a".encode("idna"), str(b"a", "ascii"))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "('127.0.0.1', 80) b'a' a\n", done.stderr
