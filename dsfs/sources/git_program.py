"""The ``git`` program: started with no secret on its command line, ended when nobody waits, its words understood."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from dsfs.errors import (
    RetryLater,
    SourceError,
    SourceMissing,
    SourceRefused,
    SourceTimeout,
    SourceUnavailable,
    SourceUnsupported,
)
from dsfs.ranges import KiB, MiB
from dsfs.sources.git_access import Access
from dsfs.sources.timeouts import Timeouts

OUTPUT_MAX_BYTES: Final = 256 * MiB  # ls-remote of a million refs is 60 MB; more than this is nonsense
_KEPT_WORDS: Final = 64 * KiB
_GRACE_S: Final = 1.0  # between SIGTERM, upon which git ends its children and removes temporary files, and SIGKILL


class RefGone(SourceMissing):
    """The server does not have, or does not give, what was asked for by its number or name."""

    def __init__(self, message: str, oids: frozenset[str], *, unadvertised: bool) -> None:
        super().__init__(message)
        self.oids = oids
        self.unadvertised = unadvertised
        """It may have it, yet gives only what its branches and tags point to."""


class NoShallow(SourceUnsupported):
    """A plain web server ("dumb HTTP"): neither depth nor filter."""


class FilterRefused(SourceUnsupported):
    """The server filters, but not so: it may be told which filters it lets pass (``uploadpackfilter``)."""


class Output(NamedTuple):
    stdout: bytes
    words: str
    """What git said on its standard error."""


class GitProgram:
    """Runs git for one ``Access`` in one private directory, with key files in it if needed."""

    def __init__(self, access: Access, directory: str, timeouts: Timeouts) -> None:
        self.access = access
        self.directory = directory
        self.timeouts = timeouts
        self.network_commands = 0
        self.local_processes = 0
        self._reaping: set[asyncio.Task[None]] = set()

    async def network(
        self,
        git_dir: str | None,
        arguments: Sequence[str],
        stdin: bytes = b"",
        settings: Iterable[tuple[str, str]] = (),
    ) -> Output:
        """A command that talks to the repository's server, in a repository or in none. Raises SourceError.

        It is ended when it says nothing for three times ``idle_s``: fetches report their progress every second.
        """
        self.network_commands += 1
        environment = self.access.environment(self.directory, self.timeouts, settings, network=True)
        where = [] if git_dir is None else [f"--git-dir={git_dir}"]
        return await self._run(["git", *where, *arguments], stdin, environment)

    async def local(self, arguments: Sequence[str], stdin: bytes = b"") -> Output:
        """A command that looks at nothing but its input."""
        self.local_processes += 1
        environment = self.access.environment(self.directory, self.timeouts, network=False)
        return await self._run(["git", *arguments], stdin, environment)

    async def other(self, arguments: Sequence[str], environment: Mapping[str, str]) -> Output:
        """Another program that talks to the server (ssh)."""
        self.network_commands += 1
        return await self._run(arguments, b"", environment)

    async def start(self, arguments: Sequence[str], git_dir: str) -> Process:
        """A local process that is asked over its standard input. ``end`` it."""
        self.local_processes += 1
        environment = self.access.environment(self.directory, self.timeouts, network=False)
        return await self._spawn(["git", f"--git-dir={git_dir}", *arguments], environment, quiet=True)

    async def end(self, process: Process) -> None:
        """Gone, and not a zombie, when this returns; also when the caller is cancelled meanwhile, a little later."""
        if process.returncode is not None:
            return
        self._signal(process, signal.SIGTERM)
        reaper = asyncio.create_task(self._reap(process))
        self._reaping.add(reaper)
        reaper.add_done_callback(self._reaping.discard)
        await asyncio.shield(reaper)

    async def close(self) -> None:
        """Wait for what is still ending."""
        await asyncio.gather(*self._reaping, return_exceptions=True)

    async def _run(self, argv: Sequence[str], stdin: bytes, environment: Mapping[str, str]) -> Output:
        process = await self._spawn(argv, environment, quiet=False)
        talk = _Talk(process, stdin)
        limit_s = 3 * self.timeouts.idle_s
        try:
            while not await talk.ended_within(limit_s - talk.silent_s()):
                if talk.silent_s() >= limit_s:
                    raise SourceTimeout(f"{self.access.address.shown}: git heard nothing for {limit_s:g} s")
        finally:
            talk.stop()
            await self.end(process)
        output = Output(bytes(talk.stdout), bytes(talk.stderr).decode("utf-8", "replace"))
        if process.returncode != 0:
            raise self._failure(output.words, process.returncode)
        return output

    async def _spawn(self, argv: Sequence[str], environment: Mapping[str, str], *, quiet: bool) -> Process:
        try:
            return await asyncio.create_subprocess_exec(
                *argv,
                stdin=PIPE,
                stdout=PIPE,
                stderr=DEVNULL if quiet else PIPE,
                env=environment,
                cwd=self.directory,
                start_new_session=True,  # a group of its own to signal, and no terminal to ask for a password
                limit=512 * KiB,
            )
        except FileNotFoundError as error:
            if error.filename == self.directory:
                raise SourceUnavailable(f"{self.directory}: the work directory of git is gone") from error
            raise SourceUnsupported(f"{argv[0]} is not installed (apt-get install git openssh-client)") from error
        except OSError as error:
            raise SourceUnavailable(f"{argv[0]} cannot be started: {os.strerror(error.errno or 0)}") from error

    def _signal(self, process: Process, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            if number is signal.SIGKILL:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)

    async def _reap(self, process: Process) -> None:
        try:
            async with asyncio.timeout(_GRACE_S):
                await process.wait()
        except TimeoutError:
            self._signal(process, signal.SIGKILL)
            await process.wait()

    def clean(self, text: str) -> str:
        """Without secrets, should a server or a helper have echoed one."""
        for secret in self.access.secrets:
            text = text.replace(secret, "***")
        return text

    def _failure(self, words: str, status: int | None) -> SourceError:
        return failure_of(self.clean(words), self.access.address.shown, status, has_secret=self.access.has_secret)


class _Talk:
    """Both ends of a running process: what it is told, what it says, and since when it is silent."""

    def __init__(self, process: Process, stdin: bytes) -> None:
        self.stdout, self.stderr = bytearray(), bytearray()
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._heard_s = self._loop.time()
        assert process.stdout is not None
        assert process.stderr is not None
        self._reads = [
            asyncio.create_task(self._collect(process.stdout, self.stdout, OUTPUT_MAX_BYTES)),
            asyncio.create_task(self._collect(process.stderr, self.stderr, _KEPT_WORDS)),
        ]
        self._feeding = asyncio.create_task(self._feed(stdin))
        self._waiting = asyncio.create_task(process.wait())

    def silent_s(self) -> float:
        return self._loop.time() - self._heard_s

    async def ended_within(self, limit_s: float) -> bool:
        done, _ = await asyncio.wait({self._waiting}, timeout=max(0.0, limit_s))
        if done:
            # ssh may leave a master connection behind that holds our pipe open: do not wait for that.
            await asyncio.wait(self._reads, timeout=_GRACE_S)
        return bool(done)

    def stop(self) -> None:
        for task in (*self._reads, self._feeding, self._waiting):
            task.cancel()

    async def _feed(self, data: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its exit status says why
            self._process.stdin.write(data)
            await self._process.stdin.drain()
        self._process.stdin.close()

    async def _collect(self, stream: asyncio.StreamReader, into: bytearray, limit: int) -> None:
        while chunk := await stream.read(64 * KiB):
            self._heard_s = self._loop.time()
            into += chunk
            if len(into) > limit:
                del into[:-limit]


_OID = r"[0-9a-f]{40}(?:[0-9a-f]{24})?"
_NOT_OURS = re.compile(rf"not our ref ({_OID})|unadvertised object ({_OID})", re.IGNORECASE)
# In this order: a refusal is often followed by "could not read from remote repository".
_REFUSED = re.compile(
    r"authentication failed|could not read (username|password)|permission denied|invalid credentials|"
    r"returned error: (401|403|407)|access denied(?! or repository not exported)|load key|authorization failed|"
    r"too many authentication failures|http basic: access denied",
    re.IGNORECASE,
)
_MISSING = re.compile(
    r"repository not found|repository '[^']*' not found|returned error: (404|410)|does not appear to be a git rep|"
    r"not a git repository|repository not exported|no such file or directory|project you were looking for|"
    r"does not exist",
    re.IGNORECASE,
)
_TIMEOUT = re.compile(r"operation too slow|timed out|timeout was reached|less than 1 bytes/sec", re.IGNORECASE)
_PATIENCE = re.compile(r"returned error: (429|503)|too many requests", re.IGNORECASE)


def failure_of(words: str, shown: str, status: int | None, *, has_secret: bool) -> SourceError:
    """The error behind what git said last. Pure; ``shown`` names the repository."""
    gone = frozenset(first or second for first, second in _NOT_OURS.findall(words.lower()))
    if gone or re.search(r"couldn't find remote ref|no such remote ref", words):
        unadvertised = "unadvertised object" in words or "not our ref" not in words
        return RefGone(f"{shown}: the server does not have {_some(gone)}", gone, unadvertised=unadvertised)
    if re.search(r"filter '[^']*' not supported", words):
        return FilterRefused(f"{shown}: the server does not filter so")
    if re.search(r"dumb http transport does not support", words):
        return NoShallow(f"{shown}: a plain web server")
    why = _line_of(words) or f"git ended with status {status}"
    if "host key verification failed" in words.lower():
        return SourceRefused(f"{shown}: the host's key is not the one in known_hosts (make sure, then remove it there)")
    if _REFUSED.search(words):
        keys = "token, username and password, or ssh-privatekey"
        remedy = f"look at {keys} in the Secret" if has_secret else f"give {keys} in a Secret"
        return SourceRefused(f"{shown}: refused ({why}; {remedy})")
    if _TIMEOUT.search(words):
        return SourceTimeout(f"{shown}: nothing answered in time ({why})")
    if _PATIENCE.search(words):
        return RetryLater(f"{shown}: the server asks for patience ({why})")
    if _MISSING.search(words):
        return SourceMissing(f"{shown}: there is no such repository, or it is not shown to us ({why})")
    return SourceUnavailable(f"{shown}: {why}")


def _some(oids: frozenset[str]) -> str:
    if not oids:
        return "that branch or tag"
    return min(oids) if len(oids) == 1 else f"{min(oids)} and {len(oids) - 1} others"


# What git says below any failure of ssh, whatever that was.
_SAYS_NOTHING: Final = re.compile(
    r"fatal: could not read from remote repository.*|please make sure you have the correct access rights|"
    r"and the repository exists\.?",
    re.IGNORECASE,
)


def _line_of(words: str) -> str:
    """The one line that says most: what was fatal, else what the other side or ssh said, else the last one."""
    every = [line.strip() for line in re.split(r"[\r\n]+", words) if line.strip()]
    lines = [line for line in every if not _SAYS_NOTHING.fullmatch(line)] or every[:1]
    for start in ("fatal: ", "error: ", "remote: ", "ERROR: "):
        for line in lines:
            if line.startswith(start):
                return _printable(line.removeprefix(start))
    said = next((line for line in lines if line.startswith(("ssh: ", "Connection ", "kex_exchange"))), None)
    return _printable(said or lines[-1]) if lines else ""


def _printable(line: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in line)[:300]
