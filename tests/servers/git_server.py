"""Real Git servers over a directory of bare repositories: nginx with ``git http-backend``, ``git daemon``, sshd."""

from __future__ import annotations

import base64
import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.servers.process import HOST, Server, free_ports, program, running

_NGINX_CONF = """
daemon off; master_process off; pid {directory}/nginx.pid; error_log stderr warn; user root;
events {{ worker_connections 512; }}
http {{
  log_format short '$status $request_method $request_uri $http_content_type'; access_log {directory}/access.log short;
  client_max_body_size 0;
  client_body_temp_path {directory}/t1; proxy_temp_path {directory}/t2; fastcgi_temp_path {directory}/t3;
  uwsgi_temp_path {directory}/t4; scgi_temp_path {directory}/t5;
  server {{
    listen {host}:{port};
    auth_basic {realm}; auth_basic_user_file {directory}/users;
    location ~ /info/lfs/ {{ proxy_pass http://{host}:{lfs_port}; proxy_set_header Host $http_host; }}
    location /plain/ {{ alias {root}/; }}
    location /moved/ {{ rewrite ^/moved/(.*)$ {elsewhere}/$1 redirect; }}
    location / {{
      fastcgi_pass unix:{directory}/cgi.sock; fastcgi_buffering off;
      fastcgi_param SCRIPT_FILENAME /usr/lib/git-core/git-http-backend;
      fastcgi_param GIT_HTTP_EXPORT_ALL 1; fastcgi_param GIT_PROJECT_ROOT {root};
      fastcgi_param PATH_INFO $uri; fastcgi_param QUERY_STRING $query_string;
      fastcgi_param REQUEST_METHOD $request_method; fastcgi_param CONTENT_TYPE $content_type;
      fastcgi_param CONTENT_LENGTH $content_length; fastcgi_param REMOTE_ADDR $remote_addr;
      fastcgi_param SERVER_PROTOCOL $server_protocol; fastcgi_param REMOTE_USER $remote_user;
      fastcgi_param GIT_PROTOCOL $http_git_protocol; fastcgi_param HTTP_CONTENT_ENCODING $http_content_encoding;
    }}
  }}
}}
"""

_SSHD_CONF = """
ListenAddress {host}
Port {port}
HostKey {directory}/host_key
PidFile none
AuthorizedKeysFile {directory}/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
SetEnv PATH={directory}/bin:/usr/bin:/bin
LogLevel ERROR
"""


def git(*arguments: str, stdin: bytes | None = None, at: Path | None = None) -> str:
    """Git as a tool of the tests, free of this machine's configuration."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    env |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_ALLOW_PROTOCOL": "file:http"}
    done = subprocess.run(["git", *arguments], input=stdin, cwd=at, env=env, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode("utf-8", "surrogateescape").strip()


@dataclass(frozen=True)
class Link:
    """A symbolic link, in ``Repository.commit``."""

    target: str


@dataclass(frozen=True)
class Module:
    """A submodule's commit."""

    commit: str


@dataclass(frozen=True)
class Program:
    """A file with its executable bit."""

    content: bytes


Content = bytes | Link | Module | Program | None


class Repository:
    """A bare repository that is written with ``git fast-import``, without a working copy."""

    def __init__(self, path: Path, *, object_format: str = "sha1", filters: bool = True) -> None:
        self.path = path
        git("init", "--quiet", "--bare", "--initial-branch=main", f"--object-format={object_format}", str(path))
        self.configure("uploadpack.allowFilter", "true" if filters else "false")
        self._clock_s = 1_700_000_000

    def configure(self, key: str, value: str) -> None:
        git("config", key, value, at=self.path)

    def commit(self, changes: Mapping[str, Content], branch: str = "main", *, orphan: bool = False) -> str:
        """One commit with these files changed (None: removed); ``orphan`` forgets what was there. Its number."""
        self._clock_s += 1
        ref = f"refs/heads/{branch}"
        said = bytearray(f"commit {ref}\ncommitter T <t@t.t> {self._clock_s} +0000\ndata 1\nx\n".encode())
        if not orphan and (before := self._oid(ref)):
            said += f"from {before}\n".encode()
        for path, content in changes.items():
            said += _change(path, content)
        git("fast-import", "--quiet", "--force", stdin=bytes(said), at=self.path)
        return self._oid(ref)

    def tag(self, name: str, commit: str, *, annotated: bool = False) -> None:
        settings = ("-c", "user.name=T", "-c", "user.email=t@t.t")
        git(*settings, "tag", *(("-a", "-m", "x") if annotated else ()), name, commit, at=self.path)

    def delete(self, ref: str) -> None:
        git("update-ref", "-d", ref, at=self.path)

    def forget_unreachable(self) -> None:
        """As a server does, weeks after a forced push."""
        git("reflog", "expire", "--expire=now", "--all", at=self.path)
        git("repack", "-a", "-d", "-q", at=self.path)
        git("prune", "--expire=now", at=self.path)

    def _oid(self, ref: str) -> str:
        return git("for-each-ref", "--format=%(objectname)", ref, at=self.path)


def _change(path: str, content: Content) -> bytes:
    quoted = b'"' + os.fsencode(path).replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n") + b'"'
    if content is None:
        return b"D " + quoted + b"\n"
    if isinstance(content, Module):
        return f"M 160000 {content.commit} ".encode() + quoted + b"\n"
    mode, data = b"100644", content
    if isinstance(content, Link):
        mode, data = b"120000", os.fsencode(content.target)
    elif isinstance(content, Program):
        mode, data = b"100755", content.content
    assert isinstance(data, bytes)
    return b"M " + mode + b" inline " + quoted + b"\ndata %d\n" % len(data) + data + b"\n"


class GitServer:
    """``url`` ends in "/"; below it are the repositories of ``root``."""

    def __init__(self, url: str, root: Path, servers: tuple[Server, ...], directory: Path, lfs_port: int = 0) -> None:
        self.url = url
        self.root = root
        self.lfs_port = lfs_port
        self._servers = servers
        self._directory = directory

    def repository(self, name: str, *, object_format: str = "sha1", filters: bool = True) -> Repository:
        return Repository(self.root / name, object_format=object_format, filters=filters)

    def set_password(self, user: str, password: str) -> None:
        """The one that is right from now on (nginx reads the file at each request)."""
        (self._directory / "users").write_text(f"{user}:{{PLAIN}}{password}\n")

    def requests(self) -> list[str]:
        """Of HTTP: status, method, path and content type of each so far."""
        return (self._directory / "access.log").read_text().splitlines()

    def kill(self) -> None:
        for server in self._servers:
            server.kill()


@contextlib.contextmanager
def http_git(directory: Path, *, auth: bool = False, elsewhere: str = "http://127.0.0.1:1") -> Iterator[GitServer]:
    """Smart HTTP at /, the same as plain files ("dumb") at /plain/, redirects to ``elsewhere`` at /moved/."""
    nginx, wrap = program("nginx", "/usr/sbin", "/usr/local/sbin"), program("fcgiwrap", "/usr/sbin")
    assert nginx is not None, "nginx is not installed"
    assert wrap is not None, "fcgiwrap is not installed"
    directory.chmod(0o755)
    root, (port, lfs_port) = _root(directory), free_ports(2)
    (directory / "users").write_text("")
    config = directory / "nginx.conf"
    config.write_text(
        _NGINX_CONF.format(
            directory=directory,
            root=root,
            host=HOST,
            port=port,
            lfs_port=lfs_port,
            realm='"git"' if auth else "off",
            elsewhere=elsewhere,
        )
    )
    socket = directory / "cgi.sock"
    env = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
    cgi = Server([wrap, "-c", "4", "-s", f"unix:{socket}"], directory / "cgi.log", env)
    try:
        deadline = time.monotonic() + 10
        while not socket.exists():  # it has no port to wait for
            assert time.monotonic() < deadline, (directory / "cgi.log").read_text()
            time.sleep(0.01)
        with running([nginx, "-c", str(config), "-p", str(directory)], port, directory / "nginx.log") as server:
            yield GitServer(f"http://{HOST}:{port}/", root, (server, cgi), directory, lfs_port)
    finally:
        cgi.kill()


@contextlib.contextmanager
def git_daemon(directory: Path) -> Iterator[GitServer]:
    root, (port,) = _root(directory), free_ports(1)
    argv = ["git", "daemon", f"--base-path={root}", "--export-all", "--reuseaddr", f"--listen={HOST}", f"--port={port}"]
    env = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
    with running([*argv, str(root)], port, directory / "daemon.log", env) as server:
        yield GitServer(f"git://{HOST}:{port}/", root, (server,), directory)


@contextlib.contextmanager
def ssh_git(directory: Path, public_key: str, *, version_2: bool = True) -> Iterator[GitServer]:
    """The user is root; ``git-lfs-authenticate`` is a script in ``directory/bin``, if somebody writes one.

    Without ``version_2`` git speaks as it does over most sshds: they do not accept GIT_PROTOCOL.
    """
    sshd = program("sshd", "/usr/sbin")
    assert sshd is not None, "openssh-server is not installed"
    root, (port,) = _root(directory), free_ports(1)
    (directory / "bin").mkdir()
    Path("/run/sshd").mkdir(exist_ok=True)
    make_key(directory / "host_key")
    (directory / "authorized_keys").write_text(public_key)
    config = directory / "sshd.conf"
    text = _SSHD_CONF.format(directory=directory, host=HOST, port=port)
    config.write_text(text + ("AcceptEnv GIT_PROTOCOL\n" if version_2 else ""))
    with running([sshd, "-D", "-e", "-f", str(config)], port, directory / "sshd.log") as server:
        yield GitServer(f"ssh://root@{HOST}:{port}{root}/", root, (server,), directory)


def make_key(path: Path, passphrase: str = "") -> str:
    """A new key pair; the public half."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", str(path)], check=True)
    return path.with_suffix(".pub").read_text()


def shell_script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def basic(user: str, password: str) -> str:
    """The header that a server sees."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _root(directory: Path) -> Path:
    root = directory / "repositories"
    root.mkdir()
    return root
