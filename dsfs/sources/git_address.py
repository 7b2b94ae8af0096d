"""Where a Git repository is: the forms that git knows, its name without credentials, and what lies beside it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

from dsfs.errors import ConfigError

SCHEMES: Final = frozenset({"http", "https", "ssh", "git", "file"})
"""What may be spoken. Everything else that git would run (``ext::`` runs any command) is refused."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_SCP = re.compile(r"(?:([^@/\s:]+)@)?(\[[0-9A-Fa-f:.]+\]|[^:/\s@\[\]]+):(?!//)(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Address:
    """A repository. ``url`` is what git is given: it may name a user and never holds a password."""

    url: str
    scheme: str
    host: str = ""
    port: int | None = None
    user: str = ""
    path: str = ""

    @property
    def shown(self) -> str:
        """For people and for ``identity``: without the user; scp-like forms as URLs."""
        if self.scheme == "file":
            return f"file://{self.path}"
        return f"{self.scheme}://{self.authority}/{self.path.lstrip('/')}"

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme, host and port: where credentials may go. Of ssh the host alone, as one key opens all of its ports."""
        if self.scheme == "ssh":
            return f"ssh://{self.host}"
        standard = self.port == {"http": 80, "https": 443}.get(self.scheme)
        return f"{self.scheme}://{self.authority.rpartition(':')[0] if standard else self.authority}"

    @property
    def directory(self) -> str:
        """Of a ``file://`` address: the path on this machine."""
        return unquote(self.path, errors="surrogateescape")

    @property
    def lfs_url(self) -> str:
        """Where git-lfs looks for objects unless it is told otherwise (git-lfs docs/api/server-discovery.md)."""
        path = self.path.strip("/")
        path = path if path.endswith(".git") else f"{path}.git"
        if self.scheme in ("http", "https"):
            return f"{self.scheme}://{self.authority}/{path}/info/lfs"
        return f"https://{self.host}/{path}/info/lfs"

    def relative(self, url: str) -> Address:
        """The repository that a ``url`` in .gitmodules names; ``./`` and ``../`` start here. Raises ConfigError."""
        if not url.startswith(("./", "../")):
            found = parse_address(url)
            if found.scheme == "file" and self.scheme != "file":
                raise ConfigError(f"{self.shown}: a submodule names a directory of this machine, which is not followed")
            return found
        base, colon = self.url.rstrip("/"), False
        while True:
            if url.startswith("./"):
                url = url[2:]
            elif url.startswith("../"):
                url = url[3:]
                cut = max(base.rfind("/"), -1 if "://" in base else base.rfind(":"))
                if cut <= base.find("://") + 2:
                    raise ConfigError(f"{self.shown}: the URL of a submodule leads above the server")
                colon = base[cut] == ":"
                base = base[:cut]
            else:
                return parse_address(f"{base}{':' if colon else '/'}{url}")


def parse_address(uri: str) -> Address:
    """Any URL that git takes, an absolute path, or ``user@host:path``. Raises ConfigError, without showing the text."""
    if re.search(r"[\x00-\x20\x7f]", uri):
        raise ConfigError("GIT: the URI holds a space or a control character (write it as %XX)")
    uri = uri.removeprefix("git+")
    if uri.startswith("/"):
        return Address(f"file://{uri}", "file", path=uri.rstrip("/") or "/")
    if match := _URL.fullmatch(uri):
        return _with_scheme(match[1].lower(), match[2])
    match = _SCP.fullmatch(uri)
    if match is None or uri.startswith("-") or "::" in uri.partition("/")[0]:
        raise ConfigError("GIT: the URI names no repository (write https://…, ssh://…, git@host:path or /a/dir)")
    user, host, path = match.groups()
    _check_host(host)
    if path.startswith("-"):
        raise ConfigError("GIT: a path that begins with - is not taken")
    return Address(uri, "ssh", host.strip("[]").lower(), None, user or "", path.rstrip("/"))


def _with_scheme(scheme: str, rest: str) -> Address:
    if scheme in ("git+ssh", "ssh+git"):
        scheme = "ssh"
    if scheme not in SCHEMES:
        raise ConfigError(f"GIT: the scheme {scheme}:// is not read (known are {', '.join(sorted(SCHEMES))})")
    if scheme == "file":
        if not rest.startswith("/"):
            raise ConfigError("GIT: a file:// URI has three slashes and an absolute path (write file:///a/directory)")
        return Address(f"file://{rest}", "file", path=rest.rstrip("/") or "/")
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        port = parts.port
    except ValueError:
        raise ConfigError("GIT: the host or port in the URI cannot be read (write host:port)") from None
    if parts.password:
        raise ConfigError("GIT: the URI carries a password (put it into a Secret, as username and password or token)")
    if not parts.hostname:
        raise ConfigError(f"GIT: the URI names no host behind {scheme}://")
    _check_host(parts.hostname)
    path = rest.partition("/")[2] if "/" in rest else ""
    return Address(
        f"{scheme}://{rest}", scheme, parts.hostname, port, unquote(parts.username or ""), "/" + path.rstrip("/")
    )


def _check_host(host: str) -> None:
    if host.startswith("-"):  # ssh would take it for an option
        raise ConfigError("GIT: a host that begins with - is not taken")
