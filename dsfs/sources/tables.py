"""Catalogs of public data: ``dataworld://owner/dataset`` and ``nasdaq://VENDOR/TABLE``, type FSSPEC."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final

from dsfs.errors import ConfigError
from dsfs.manifest.schema import SourceSpec
from dsfs.sources.object_stores import refused_option
from dsfs.sources.tables_dataworld import DataWorldSource
from dsfs.sources.tables_nasdaq import NasdaqSource
from dsfs.sources.timeouts import DEFAULT_TIMEOUTS, Timeouts

_DATAWORLD: Final = "https://api.data.world/v0"
_NASDAQ: Final = "https://data.nasdaq.com/api/v3"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def dataworld_source(
    spec: SourceSpec, credentials: Mapping[str, str], *, timeouts: Timeouts = DEFAULT_TIMEOUTS, **_more: object
) -> DataWorldSource:
    """Files of a dataset as they were uploaded; with ``tables=a,b`` also those tables as CSV. Raises ConfigError."""
    refused_option(spec.options, frozenset({"endpoint", "tables", "syncMode"}), "data.world")
    owner, _, dataset = _rest(spec.uri).partition("/")
    if not _NAME.fullmatch(owner) or not _NAME.fullmatch(dataset):
        raise ConfigError("data.world: the URI must be dataworld://owner/dataset")
    tables = _names(spec.options.get("tables", ""))
    for table in tables:
        if not _TABLE.fullmatch(table):
            raise ConfigError(
                "data.world: option tables must be names of tables with commas between (letters, digits, _)"
            )
    endpoint = spec.options.get("endpoint", "").rstrip("/") or _DATAWORLD
    token = _token(credentials, *_of_this_node(endpoint == _DATAWORLD, "DW_AUTH_TOKEN"))
    return DataWorldSource(endpoint, owner, dataset, tables, token, timeouts)


def nasdaq_source(
    spec: SourceSpec, credentials: Mapping[str, str], *, timeouts: Timeouts = DEFAULT_TIMEOUTS, **_more: object
) -> NasdaqSource:
    """``nasdaq://VENDOR/TABLE``, or ``nasdaq://VENDOR`` with option ``tables=A,B``. Raises ConfigError.

    ``series=true``: the names are time series (``/datasets/DB/DS.csv``), not tables.
    """
    refused_option(spec.options, frozenset({"endpoint", "tables", "series", "syncMode"}), "Nasdaq Data Link")
    path, _, query = _rest(spec.uri).partition("?")
    vendor, _, table = path.partition("/")
    tables = _names(table) + _names(query.removeprefix("tables=")) + _names(spec.options.get("tables", ""))
    if not tables or not all(_NAME.fullmatch(name) for name in (vendor, *tables)):
        raise ConfigError("Nasdaq Data Link: the URI must be nasdaq://VENDOR/TABLE (or nasdaq://VENDOR?tables=A,B)")
    series = spec.options.get("series", "").lower()
    if series not in ("", "true", "false"):
        raise ConfigError("Nasdaq Data Link: option series must be true or false")
    endpoint = spec.options.get("endpoint", "").rstrip("/") or _NASDAQ
    token = _token(credentials, *_of_this_node(endpoint == _NASDAQ, "NASDAQ_DATA_LINK_API_KEY", "QUANDL_API_KEY"))
    return NasdaqSource(endpoint, vendor, tuple(dict.fromkeys(tables)), token, timeouts, series=series == "true")


def _rest(uri: str) -> str:
    return uri.partition("://")[2].strip("/")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _of_this_node(is_usual: bool, *variables: str) -> tuple[str, ...]:
    """Whoever writes a manifest chooses the endpoint: the node's own token goes to the usual one alone."""
    return variables if is_usual else ()


def _token(credentials: Mapping[str, str], *variables: str) -> str:
    token = credentials.get("token") or next((os.environ[name] for name in variables if os.environ.get(name)), "")
    if not (token.isascii() and token.isprintable()):
        raise ConfigError("the token of a data catalog is not plain ASCII text (check it for stray characters)")
    return token
