"""Where the LFS server of a repository is, and as whom it is asked: git-lfs docs/api/server-discovery.md."""

from __future__ import annotations

import contextlib
import json
import netrc
import shlex
import time
from base64 import b64encode
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from dsfs.errors import SourceError, SourceMissing, SourceTimeout, SourceUnavailable, SourceUnsupported
from dsfs.sources.aiohttp_edge import origin_of
from dsfs.sources.git_program import GitProgram
from dsfs.sources.timeouts import Timeouts

EARLY_S: Final = 30.0
"""What is lent for a time is not used any more when it has so little left."""


class Endpoint(NamedTuple):
    """``expires_s`` in Unix time; 0: never."""

    url: str
    header: Mapping[str, str]
    expires_s: float


class Endpoints:
    """Of one repository."""

    def __init__(self, program: GitProgram, timeouts: Timeouts) -> None:
        self._program = program
        self._timeouts = timeouts
        self._from_ssh: Endpoint | None = None
        self._from_helper: str | None = None

    async def of(self, configured: str | None) -> Endpoint:
        """The one in force. ``configured`` is the ``lfs.url`` of a commit. Raises SourceError."""
        access = self._program.access
        if configured is None and access.address.scheme == "ssh":
            return await self._ssh_endpoint()
        url = (configured or access.address.lfs_url).rstrip("/")
        if urlsplit(url).scheme not in ("http", "https"):
            raise SourceUnsupported(f"{access.address.shown}: LFS objects are looked for over HTTP only")
        header = {}
        if origin_of(url) == origin_of(access.address.origin) and (basic := access.basic() or self._from_helper):
            header["Authorization"] = basic
        return Endpoint(url, header, 0)

    async def _ssh_endpoint(self) -> Endpoint:
        """``git-lfs-authenticate`` over ssh says where, and lends a token for it."""
        if self._from_ssh is not None and self._from_ssh.expires_s - EARLY_S > time.time():
            return self._from_ssh
        access, directory = self._program.access, self._program.directory
        address = access.address
        environment = access.environment(directory, self._timeouts, network=True)
        command = shlex.split(access.ssh_command(directory, self._timeouts))
        command += ["-p", str(address.port)] if address.port else []
        target = f"{address.user}@{address.host}" if address.user else address.host
        path = address.path if address.url.startswith("ssh://") else address.path.lstrip("~")
        command += ["--", target, f"git-lfs-authenticate {shlex.quote(path)} download"]
        try:
            answer = json.loads((await self._program.other(command, environment)).stdout)
            header = {str(k): str(v) for k, v in (answer.get("header") or {}).items()}
            lent_s = float(answer.get("expires_in") or 600)
            self._from_ssh = Endpoint(str(answer["href"]).rstrip("/"), header, time.time() + lent_s)
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise SourceUnavailable(f"{address.shown}: git-lfs-authenticate answered nonsense") from error
        except (SourceMissing, SourceUnavailable) as error:
            if isinstance(error, SourceTimeout) or "not found" not in str(error):
                raise
            return Endpoint(address.lfs_url, {}, 0)  # a server without the command: over https, as git-lfs does
        return self._from_ssh

    async def ask_helper(self, url: str) -> str | None:
        """netrc (as git's curl does), then the user's credential helpers: without a Secret, for our own host only."""
        access = self._program.access
        if access.has_secret or origin_of(url) != origin_of(access.address.origin):
            return None
        parts = urlsplit(url)
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            if found := netrc.netrc().authenticators(parts.hostname or ""):
                self._from_helper = f"Basic {b64encode(f'{found[0]}:{found[2]}'.encode()).decode()}"
                return self._from_helper
        question = f"protocol={parts.scheme}\nhost={parts.netloc}\npath={access.address.path.lstrip('/')}\n\n"
        try:
            output = await self._program.network(None, ["credential", "fill"], question.encode())
        except SourceError:
            return None
        lines = output.stdout.decode("utf-8", "replace").splitlines()
        values = dict(line.split("=", 1) for line in lines if "=" in line)
        if "password" not in values:
            return None
        pair = f"{values.get('username', '')}:{values['password']}".encode()
        self._from_helper = f"Basic {b64encode(pair).decode()}"
        return self._from_helper
