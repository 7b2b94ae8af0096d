"""What a git process is told besides its arguments: settings, credentials, keys. All through its environment."""

from __future__ import annotations

import os
import shlex
from base64 import b64encode
from collections.abc import Iterable, Mapping
from typing import Final

from dsfs.errors import ConfigError
from dsfs.sources.git_address import Address
from dsfs.sources.timeouts import Timeouts

# Of the daemon's own GIT_… variables only those that say how to reach servers: others would redirect what we do.
_KEPT: Final = frozenset(
    {"GIT_CONFIG_GLOBAL", "GIT_EXEC_PATH", "GIT_PROXY_COMMAND", "GIT_SSL_CAINFO", "GIT_SSL_CAPATH", "GIT_SSL_CERT"}
    | {"GIT_SSL_KEY", "GIT_SSL_NO_VERIFY", "GIT_SSH", "GIT_SSH_COMMAND"}
)
_KEPT_WITH_SECRET: Final = frozenset({"GIT_EXEC_PATH", "GIT_PROXY_COMMAND", "GIT_SSL_CAINFO", "GIT_SSL_CAPATH"})
# The shell's own printf: what it prints is in no argument list.
_HELPER: Final = (
    '!f() { test "$1" = get && printf "username=%s\\npassword=%s\\n" "$DSFS_GIT_USERNAME" "$DSFS_GIT_PASSWORD"; }; f'
)
_ASKPASS: Final = "#!/bin/sh\nprintf '%s\\n' \"$DSFS_GIT_PASSPHRASE\"\n"

# Nothing of ours runs hooks, watchers or a collection of garbage, whatever the user's own configuration says.
_SETTINGS: Final[tuple[tuple[str, str], ...]] = (
    ("core.hooksPath", os.devnull),
    ("core.fsmonitor", "false"),
    ("core.bigFileThreshold", "32m"),  # from here on cat-file streams what is stored whole, and index-pack too
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("protocol.version", "2"),
    ("fetch.unpackLimit", "1"),  # a pack, always: five thousand loose objects are five thousand files
    ("transfer.unpackLimit", "1"),
    ("fetch.recurseSubmodules", "false"),
    ("fetch.writeCommitGraph", "false"),
    ("fetch.prune", "false"),
    ("index.threads", "1"),
)


class Access:
    """The credentials of one dataset, for the host of its own URL and for no other.

    Without a Secret the user's own ways are honoured: credential helpers, netrc, ssh keys and agent. With one, neither
    the user's configuration nor its helpers are looked at: what the manifest names is what is used, and no helper
    stores it.
    """

    def __init__(self, address: Address, credentials: Mapping[str, str]) -> None:
        self.address = address
        self.key = _private_key(credentials.get("ssh-privatekey", ""))
        self.passphrase = credentials.get("ssh-privatekey-passphrase", "")
        self.username, self.password = _user_and_password(address, credentials)
        for value in (self.username, self.password, self.passphrase):
            if not value.isprintable():
                raise ConfigError("GIT: a value in the Secret has a line break or a control character in it")

    @property
    def has_secret(self) -> bool:
        return bool(self.password or self.key)

    @property
    def fingerprint(self) -> tuple[str, str, str, str]:
        """Equal for equal credentials. Kept in memory only, never shown."""
        return self.username, self.password, self.key, self.passphrase

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must be in no text, longest first."""
        pair = f"{self.username}:{self.password}".encode()
        values = {self.password, self.passphrase, b64encode(pair).decode() if self.password else ""}
        return tuple(sorted((value for value in values if len(value) > 2), key=len, reverse=True))

    def for_other(self, address: Address) -> Access:
        """For a submodule: our credentials if it lies on our host, none otherwise."""
        ours = address.origin == self.address.origin
        given = {"username": self.username, "password": self.password, "ssh-privatekey": self.key}
        given["ssh-privatekey-passphrase"] = self.passphrase
        return Access(address, given if ours else {})

    def basic(self) -> str | None:
        """The value of an Authorization header for our own host, if the Secret has one."""
        if not self.password:
            return None
        return f"Basic {b64encode(f'{self.username}:{self.password}'.encode()).decode()}"

    def write_files(self, directory: str) -> None:
        """What ssh takes from files only, 0600 in a private directory that is removed with its source."""
        if self.key:
            _write(f"{directory}/key", self.key, 0o600)
        if self.passphrase:
            _write(f"{directory}/askpass", _ASKPASS, 0o700)

    def environment(
        self, directory: str, timeouts: Timeouts, settings: Iterable[tuple[str, str]] = (), *, network: bool
    ) -> dict[str, str]:
        """The whole environment of one git process; secrets only if it talks to the network."""
        kept = _KEPT_WITH_SECRET if self.has_secret else _KEPT
        env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_") or name in kept}
        env |= {
            "LC_ALL": "C",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "",  # not unset: then git would try SSH_ASKPASS
            "GIT_CEILING_DIRECTORIES": directory,  # no repository around our own directory is ever looked at
            "GIT_NO_REPLACE_OBJECTS": "1",
            "GIT_NO_LAZY_FETCH": "1",
            "GIT_ALLOW_PROTOCOL": self._protocols() if network else "none",
        }
        if self.has_secret or not network:
            env["GIT_CONFIG_GLOBAL"] = os.devnull
        pairs = [*_SETTINGS]
        if network:
            pairs += self._for_network(directory, timeouts, env)
        pairs += settings
        env["GIT_CONFIG_COUNT"] = str(len(pairs))
        for number, (key, value) in enumerate(pairs):
            env[f"GIT_CONFIG_KEY_{number}"], env[f"GIT_CONFIG_VALUE_{number}"] = key, value
        return env

    def _protocols(self) -> str:
        return "http:https" if self.address.scheme in ("http", "https") else self.address.scheme

    def _for_network(self, directory: str, timeouts: Timeouts, env: dict[str, str]) -> list[tuple[str, str]]:
        # Not in a config file: a repository that has it there would fetch what is missing one by one (FACTS.md).
        pairs = [
            ("remote.dsfs.url", self.address.url),
            ("remote.dsfs.promisor", "true"),
            ("remote.dsfs.partialclonefilter", "blob:none"),
            ("http.lowSpeedLimit", "1"),
            ("http.lowSpeedTime", str(max(1, round(timeouts.idle_s)))),
        ]
        if self.address.scheme == "file":
            # Our own upload-pack: it filters whatever that repository's configuration says, and reads it whoever owns
            # it, as the manifest names it. Hooks of upload-pack come from our configuration only.
            program = "git -c uploadpack.allowFilter=true -c safe.directory=* upload-pack"
            pairs.append(("remote.dsfs.uploadpack", program))
        if self.address.scheme in ("http", "https") and self.password:
            pairs += [("credential.helper", ""), (f"credential.{self.address.origin}.helper", _HELPER)]
            env |= {"DSFS_GIT_USERNAME": self.username, "DSFS_GIT_PASSWORD": self.password}
        if self.address.scheme == "ssh":
            env |= self.ssh_environment(directory)
            env |= {"GIT_SSH_COMMAND": self.ssh_command(directory, timeouts), "GIT_SSH_VARIANT": "ssh"}
        return pairs

    def ssh_environment(self, directory: str) -> dict[str, str]:
        if not self.passphrase:
            return {"SSH_ASKPASS_REQUIRE": "never"}
        return {
            "SSH_ASKPASS": f"{directory}/askpass",
            "SSH_ASKPASS_REQUIRE": "force",
            "DSFS_GIT_PASSPHRASE": self.passphrase,
        }

    def ssh_command(self, directory: str, timeouts: Timeouts) -> str:
        """For a shell. A host that is seen for the first time is trusted, one whose key has changed never."""
        options = [
            "StrictHostKeyChecking=accept-new",
            f"ConnectTimeout={max(1, round(timeouts.connect_s))}",
            f"ServerAliveInterval={max(1, round(timeouts.idle_s / 2))}",
            "ServerAliveCountMax=2",
            "NumberOfPasswordPrompts=1",
            "PasswordAuthentication=no",
            "KbdInteractiveAuthentication=no",
        ]
        if not self.passphrase:
            options.append("BatchMode=yes")
        if self.key:
            options += ["IdentitiesOnly=yes", "IdentityAgent=none", f"IdentityFile={directory}/key"]
        # The operator's own words come first, and of ssh's options the first wins.
        words = os.environ.get("GIT_SSH_COMMAND") or "ssh"
        return " ".join([words, *(f"-o {shlex.quote(option)}" for option in options)])


def _user_and_password(address: Address, credentials: Mapping[str, str]) -> tuple[str, str]:
    """As BaizeAI/dataset: username and password win over a token; a token alone goes with the user ``oauth2``."""
    username, password = credentials.get("username", ""), credentials.get("password", "")
    token = credentials.get("token", "")
    if password:
        return username or address.user, password
    if token:
        return username or address.user or "oauth2", token
    return username, ""


def _private_key(text: str) -> str:
    """Secrets come stripped, and OpenSSH does not read a key without its last line break."""
    return text.replace("\r\n", "\n").strip() + "\n" if text.strip() else ""


def _write(path: str, text: str, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "w") as file:
        file.write(text)
