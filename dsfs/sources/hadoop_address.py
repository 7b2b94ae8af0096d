"""What URI, options and XML of a HADOOP dataset say: which namenodes, which path, which user. No I/O."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

from dsfs.errors import ConfigError
from dsfs.manifest.config_maps import settings_of
from dsfs.model import path_parts
from dsfs.sources.options import UnknownOption

HTTP_PORT: Final = 9870  # dfs.namenode.http-address since Hadoop 3; Hadoop 2 had 50070
HTTPS_PORT: Final = 9871
_OPTIONS: Final = frozenset(
    {"sourcePath", "username", "webhdfs", "webhdfsPort", "hdfsConfigName", "coreSiteXml", "hdfsSiteXml", "syncMode"}
)
_AUTHORITY = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")
_USER = re.compile(r"[^\s/?#&=:@]{1,255}")


@dataclass(frozen=True, slots=True)
class HdfsAddress:
    """``webhdfs`` are base URLs in the order to try, without ``/webhdfs/v1``; empty: HDFS's own protocol.

    ``namenode`` is ``hdfs://HOST:PORT`` or a name service, ``root`` an absolute path without a "/" at its end ("" is
    the root of the file system), ``settings`` are those of the XML texts, ``shown`` is for people.
    """

    webhdfs: tuple[str, ...]
    namenode: str
    root: str
    user: str | None
    settings: Mapping[str, str]
    shown: str


def hdfs_address(
    uri: str, options: Mapping[str, str], credentials: Mapping[str, str], environment: Mapping[str, str] = os.environ
) -> HdfsAddress:
    """Raises ConfigError. The user is ``username`` of options, URI (``user@``) or Secret, else HADOOP_USER_NAME."""
    if unknown := sorted(set(options) - _OPTIONS):
        raise UnknownOption("HADOOP", unknown[0], ", ".join(sorted(_OPTIONS - {"syncMode"})))
    scheme, separator, rest = uri.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in ("hdfs", "webhdfs", "swebhdfs"):
        raise ConfigError("HADOOP: the URI must begin with hdfs://, webhdfs:// or swebhdfs://")
    authority, slash, path = rest.partition("/")
    uri_user, _, hosts = authority.rpartition("@")
    settings = {**_settings(options, "coreSiteXml"), **_settings(options, "hdfsSiteXml")}
    user = (
        options.get("username")
        or unquote(uri_user)
        or ("" if credentials.get("password") else credentials.get("username"))
        or environment.get("HADOOP_USER_NAME")
        or None
    )
    if user is not None and not _USER.fullmatch(user):
        raise ConfigError("HADOOP: the user name has characters that HDFS does not know in one")
    root, elsewhere = _root(options.get("sourcePath"), unquote(slash + path, errors="surrogateescape"), user)
    default = urlsplit(settings.get("fs.defaultFS", ""))
    hosts = elsewhere or hosts or (default.netloc if default.scheme == "hdfs" else "")
    names = tuple(filter(None, hosts.split(",")))
    for name in names:
        if not _AUTHORITY.fullmatch(name):
            raise ConfigError("HADOOP: the host in the URI cannot be read (write HOST:PORT, several with commas)")
    webhdfs = _webhdfs(scheme, names, options, settings)
    return HdfsAddress(webhdfs, f"hdfs://{hosts}" if hosts else "", root, user, settings, f"{scheme}://{hosts}{root}")


def _root(source_path: str | None, uri_path: str, user: str | None) -> tuple[str, str]:
    """The path, and the host if ``sourcePath`` names one of its own, as ``hdfs dfs -get`` reads it."""
    path, host = uri_path, ""
    if source_path:
        path = source_path
        if match := re.fullmatch(r"(?:hdfs|s?webhdfs)://([^/]*)(/.*)?", source_path):
            host, path = match[1], match[2] or "/"
        elif not path.startswith("/"):
            if user is None:
                raise ConfigError("HADOOP: sourcePath is relative and no user is named (write an absolute path)")
            path = f"/user/{user}/{path}"
    inside = path.strip("/")
    if inside and path_parts(inside) is None:
        raise ConfigError('HADOOP: the path cannot be used (no "..", no "//", no part over 255 bytes)')
    return (f"/{inside}" if inside else ""), host


def _webhdfs(
    scheme: str, names: tuple[str, ...], options: Mapping[str, str], settings: Mapping[str, str]
) -> tuple[str, ...]:
    if urls := options.get("webhdfs"):
        return tuple(_base_url(url.strip()) for url in urls.split(",") if url.strip())
    if port := options.get("webhdfsPort"):
        if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
            raise ConfigError("HADOOP: option webhdfsPort must be a port number")
        if not names:
            raise ConfigError("HADOOP: option webhdfsPort needs a host in the URI (or give the option webhdfs=URL)")
        plain = "https" if scheme == "swebhdfs" else "http"
        return tuple(f"{plain}://{_without_port(name)}:{port}" for name in names)
    if scheme != "hdfs" and not (len(names) == 1 and _is_service(names[0], settings)):
        if not names:
            raise ConfigError(f"HADOOP: {scheme}:// names no host (write {scheme}://HOST:PORT/path)")
        secure = scheme == "swebhdfs"
        port = str(HTTPS_PORT if secure else HTTP_PORT)
        return tuple(
            f"{'https' if secure else 'http'}://{name if _without_port(name) != name else f'{name}:{port}'}"
            for name in names
        )
    return _from_settings(scheme, names, settings)


def _is_service(name: str, settings: Mapping[str, str]) -> bool:
    return name in [service.strip() for service in settings.get("dfs.nameservices", "").split(",")]


def _from_settings(scheme: str, names: tuple[str, ...], settings: Mapping[str, str]) -> tuple[str, ...]:
    """The HTTP addresses of hdfs-site.xml: of the name service that is named, or of the only namenode."""
    secure = scheme == "swebhdfs" or settings.get("dfs.http.policy", "").strip().upper() == "HTTPS_ONLY"
    key = "dfs.namenode.https-address" if secure else "dfs.namenode.http-address"
    keys = [key]
    for name in names:
        if _is_service(name, settings):
            members = settings.get(f"dfs.ha.namenodes.{name}", "")
            keys = [f"{key}.{name}.{member.strip()}" for member in members.split(",")] if members else [f"{key}.{name}"]
    found = [settings[key].strip() for key in keys if settings.get(key, "").strip()]
    if any(address.startswith("0.0.0.0") for address in found):  # "listen everywhere": the host is the namenode's
        found = [f"{_without_port(name)}:{address.rpartition(':')[2]}" for name in names for address in found]
    for address in found:
        if not _AUTHORITY.fullmatch(address):
            raise ConfigError(f"HADOOP: {key} in hdfsSiteXml is not HOST:PORT")
    if not found and scheme != "hdfs":
        raise ConfigError(f"HADOOP: hdfsSiteXml has no {key} for the name service (add it, or name hosts in the URI)")
    return tuple(f"{'https' if secure else 'http'}://{address}" for address in found)


def _base_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not _AUTHORITY.fullmatch(parts.netloc) or parts.query or parts.fragment:
        raise ConfigError("HADOOP: option webhdfs must be http(s)://HOST:PORT (several with commas)")
    return url.rstrip("/").removesuffix("/webhdfs/v1").rstrip("/")


def _without_port(name: str) -> str:
    return re.sub(r":[0-9]+$", "", name)


def _settings(options: Mapping[str, str], option: str) -> dict[str, str]:
    """Names and values of a Hadoop configuration file. What is no XML is a key of a ConfigMap that is not here."""
    text = options.get(option, "").strip()
    if not text.startswith("<"):
        return {}
    try:
        return settings_of(text)
    except ValueError as error:
        raise ConfigError(f"HADOOP: {option} {error}") from None
