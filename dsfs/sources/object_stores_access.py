"""How buckets of Google and containers of Azure are reached: URI, options, Secret and each ecosystem's environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore

from dsfs.errors import ConfigError
from dsfs.manifest.schema import SourceSpec
from dsfs.sources.object_stores import ObjectStoreSource, client_options, refused_option
from dsfs.sources.timeouts import DEFAULT_TIMEOUTS, Timeouts

_NO_RETRY: Final[Mapping[str, Any]] = {"max_retries": 0, "retry_timeout": timedelta(0)}  # ``fetch`` retries
_GCS_OPTIONS: Final = frozenset({"endpoint", "anonymous", "syncMode"})
_AZURE_OPTIONS: Final = frozenset({"endpoint", "anonymous", "account", "syncMode"})
_GOOGLES: Final = (".googleapis.com",)
_MICROSOFTS: Final = (
    ".core.windows.net",
    ".core.chinacloudapi.cn",
    ".core.usgovcloudapi.net",
    ".storage.azure.net",
    ".fabric.microsoft.com",
)
_GCS_REMEDY: Final = (
    "give a service account's JSON as service-account, or token, in a Secret; or set GOOGLE_APPLICATION_CREDENTIALS; "
    "or option anonymous=true"
)
_AZURE_REMEDY: Final = (
    "give secret-key (the account key) or token (SAS or bearer) in a Secret; or set AZURE_STORAGE_ACCOUNT_KEY; "
    "or option anonymous=true"
)


def gcs_source(
    spec: SourceSpec, credentials: Mapping[str, str], *, timeouts: Timeouts = DEFAULT_TIMEOUTS, **_: object
) -> ObjectStoreSource:
    """``gs://bucket/prefix``. Credentials: Secret, GOOGLE_…, the default ones, the instance's. Raises ConfigError."""
    bucket, prefix = _split(spec.uri, "gs://bucket/prefix")
    refused_option(spec.options, _GCS_OPTIONS, "GCS")
    endpoint = spec.options.get("endpoint", "").rstrip("/")
    access: dict[str, Any] = {}
    if _anonymous(spec.options):
        access["skip_signature"] = True
    elif key := credentials.get("service-account") or credentials.get("service-account-key"):
        access["service_account_key"] = key
    elif token := credentials.get("token"):
        if token.startswith("{"):
            access["service_account_key"] = token
        else:
            access["credential_provider"] = lambda: {"token": token, "expires_at": None}
    elif endpoint and not _is_of(endpoint, _GOOGLES):
        access["skip_signature"] = True
    if endpoint:
        access["base_url"] = endpoint
    try:
        store = GCSStore(
            bucket,
            client_options=client_options(timeouts, allow_http=endpoint.startswith("http://")),  # type: ignore[arg-type]  # a TypedDict that exists in stubs only
            retry_config=_NO_RETRY,  # type: ignore[arg-type]  # likewise
            **access,
        )
    except (BaseError, OSError, ValueError) as error:
        # Its text may hold what it could not read.
        raise ConfigError(f"GCS: the credentials of gs://{bucket} cannot be used ({_GCS_REMEDY})") from error
    return ObjectStoreSource(store, f"gs://{bucket}", prefix, f"gs:{endpoint}:{bucket}", _GCS_REMEDY, timeouts)


def azure_source(
    spec: SourceSpec, credentials: Mapping[str, str], *, timeouts: Timeouts = DEFAULT_TIMEOUTS, **_: object
) -> ObjectStoreSource:
    """``az://container/prefix``, ``abfs://container@account.dfs.core.windows.net/prefix``. Raises ConfigError."""
    authority, prefix = _split(spec.uri, "az://container/prefix")
    refused_option(spec.options, _AZURE_OPTIONS, "AZURE")
    container, _at, host = authority.partition("@")
    said = _environment()
    account = (
        host.partition(".")[0]
        or spec.options.get("account", "")
        or credentials.get("access-key", "")
        or credentials.get("username", "")
        or said.get("AccountName", "")
    )
    if not account:
        raise ConfigError("AZURE: no storage account is named (set option account, or AZURE_STORAGE_ACCOUNT_NAME)")
    endpoint = (spec.options.get("endpoint") or said.get("BlobEndpoint") or "").rstrip("/")
    access: dict[str, Any] = {"account_name": account}
    if _anonymous(spec.options):
        access["skip_signature"] = True
    elif key := credentials.get("secret-key") or credentials.get("password"):
        access["account_key"] = key
    elif token := credentials.get("token"):
        access["sas_key" if "sig=" in token else "token"] = token.removeprefix("?")
    elif key := said.get("AccountKey"):
        access["account_key"] = key  # signs, and is not sent
    elif endpoint != (said.get("BlobEndpoint") or "").rstrip("/") and not _is_of(endpoint, _MICROSOFTS):
        access["skip_signature"] = True
    elif sas := said.get("SharedAccessSignature"):
        access["sas_key"] = sas.removeprefix("?")
    if endpoint:
        access["endpoint"] = endpoint
    try:
        store = AzureStore(
            container,
            client_options=client_options(timeouts, allow_http=endpoint.startswith("http://")),  # type: ignore[arg-type]  # a TypedDict that exists in stubs only
            retry_config=_NO_RETRY,  # type: ignore[arg-type]  # likewise
            **access,
        )
    except (BaseError, OSError, ValueError) as error:
        raise ConfigError(f"AZURE: the credentials of az://{container} cannot be used ({_AZURE_REMEDY})") from error
    identity = f"az:{endpoint}:{account}:{container}"
    return ObjectStoreSource(store, f"az://{container}", prefix, identity, _AZURE_REMEDY, timeouts)


def _is_of(endpoint: str, domains: tuple[str, ...]) -> bool:
    """Whether an endpoint is the provider's own: whoever writes a manifest chooses it, and the tokens that the node has
    of its environment, or is given as an instance, go nowhere else."""
    url = urlsplit(endpoint)
    return url.scheme == "https" and (url.hostname or "").endswith(domains)


def _environment() -> dict[str, str]:
    """What ``az`` and Azure's libraries read, by the names of a connection string."""
    env = os.environ
    said = dict(part.split("=", 1) for part in env.get("AZURE_STORAGE_CONNECTION_STRING", "").split(";") if "=" in part)
    for name, variables in (
        ("AccountName", ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT")),
        ("AccountKey", ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY")),
        ("SharedAccessSignature", ("AZURE_STORAGE_SAS_TOKEN",)),
    ):
        for variable in variables:
            if env.get(variable):
                said[name] = env[variable]
                break
    return said


def _split(uri: str, form: str) -> tuple[str, str]:
    bucket, _, prefix = uri.partition("://")[2].partition("/")
    if not bucket:
        raise ConfigError(f"{uri} names no bucket or container (write {form})")
    return unquote(bucket), prefix


def _anonymous(options: Mapping[str, str]) -> bool:
    return options.get("anonymous", "").lower() == "true"
