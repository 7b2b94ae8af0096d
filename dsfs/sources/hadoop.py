"""Type HADOOP: a directory or file of HDFS, over WebHDFS, or over its own protocol through the package hdfs-native.

Which of the two is decided by what the manifest says, in this order, so that every node reads in the same way:

* ``webhdfs://`` and ``swebhdfs://``, the option ``webhdfs`` or ``webhdfsPort``, or an ``hdfsSiteXml`` that names
  ``dfs.namenode.http-address``: WebHDFS (``hadoop_webhdfs``), which needs nothing but HTTP;
* any other ``hdfs://``: hdfs-native (``hadoop_native``; no Java).
"""

from __future__ import annotations

from collections.abc import Mapping

from dsfs.errors import ConfigError
from dsfs.manifest.schema import SourceSpec
from dsfs.sources.base import Source
from dsfs.sources.hadoop_address import HdfsAddress, hdfs_address
from dsfs.sources.hadoop_native import NativeHdfsSource, native_client
from dsfs.sources.hadoop_webhdfs import WebHdfsSource


def hadoop_source(spec: SourceSpec, credentials: Mapping[str, str], **_: object) -> Source:
    """See the module. Raises ConfigError."""
    address = hdfs_address(spec.uri, spec.options, credentials)
    if address.webhdfs:
        return WebHdfsSource(
            address.webhdfs,
            address.root,
            uri=address.shown,
            user=address.user,
            token=credentials.get("token") or None,
            basic=_basic(credentials),
        )
    return _native(address)


def _basic(credentials: Mapping[str, str]) -> tuple[str, str] | None:
    """User and password for a gateway (Knox, HttpFS) that asks for them; a name alone is a user of HDFS."""
    password = credentials.get("password")
    return (credentials.get("username", ""), password) if password else None


def _native(address: HdfsAddress) -> NativeHdfsSource:
    if not address.namenode:
        raise ConfigError(
            "HADOOP: no namenode is named (write hdfs://HOST:PORT/path, or give fs.defaultFS in coreSiteXml: inline, "
            "or in the ConfigMap that hdfsConfigName names, beside the manifest)"
        )
    client = native_client(address.namenode, address.settings, address.user)
    return NativeHdfsSource(client, address.namenode, address.root, address.shown, address.settings)
