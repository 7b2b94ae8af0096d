"""URI, options and XML of a HADOOP dataset, and the client that reads without WebHDFS."""

from __future__ import annotations

import asyncio
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from dsfs.errors import ConfigError, SourceChanged, SourceMissing, SourceRefused, SourceUnavailable
from dsfs.manifest.schema import SourceSpec, SourceType
from dsfs.sources.hadoop_address import hdfs_address
from dsfs.sources.hadoop_native import NativeHdfsSource
from dsfs.sources.registry import build_source
from tests.servers.process import HOST, free_ports
from tests.sources.sinks import read_range, tree_of

_HA = """<configuration>
  <property><name>dfs.nameservices</name><value>ns</value></property>
  <property><name>dfs.ha.namenodes.ns</name><value>nn1, nn2</value></property>
  <property><name>dfs.namenode.http-address.ns.nn1</name><value>a:9870</value></property>
  <property><name>dfs.namenode.http-address.ns.nn2</name><value>b:9870</value></property>
</configuration>"""
_CORE = "<configuration><property><name>fs.defaultFS</name><value>hdfs://ns</value></property></configuration>"


def _site(value: str) -> str:
    return f"<c><property><name>dfs.namenode.http-address</name><value>{value}</value></property></c>"


@pytest.mark.parametrize(
    ("uri", "options", "webhdfs", "root"),
    [
        ("webhdfs://h:1/a%20b/", {}, ("http://h:1",), "/a b"),
        ("webhdfs://h/", {}, ("http://h:9870",), ""),
        ("swebhdfs://h,g:2/x", {}, ("https://h:9871", "https://g:2"), "/x"),
        ("hdfs://h:8020/x", {"webhdfsPort": "50070"}, ("http://h:50070",), "/x"),
        ("hdfs://h/x", {"webhdfs": "https://k:8443/gateway/d/webhdfs/v1"}, ("https://k:8443/gateway/d",), "/x"),
        ("hdfs://h/x", {"webhdfs": "http://a:1,http://b:1"}, ("http://a:1", "http://b:1"), "/x"),
        ("hdfs://h:8020", {"sourcePath": "/data"}, (), "/data"),
        ("hdfs://h:8020", {"sourcePath": "data", "username": "u"}, (), "/user/u/data"),
        ("hdfs://ns/x", {"hdfsSiteXml": _HA}, ("http://a:9870", "http://b:9870"), "/x"),
        ("hdfs:///x", {"hdfsSiteXml": _HA, "coreSiteXml": _CORE}, ("http://a:9870", "http://b:9870"), "/x"),
        ("webhdfs://ns/x", {"hdfsSiteXml": _HA}, ("http://a:9870", "http://b:9870"), "/x"),
        ("hdfs://h:8020/x", {"hdfsSiteXml": _site("0.0.0.0:9870")}, ("http://h:9870",), "/x"),
        ("hdfs://h:8020/x", {"hdfsSiteXml": "hdfs-site.xml"}, (), "/x"),  # the key of a ConfigMap
    ],
)
def test_what_is_understood(uri: str, options: dict[str, str], webhdfs: tuple[str, ...], root: str) -> None:
    address = hdfs_address(uri, options, {}, {})
    assert (address.webhdfs, address.root) == (webhdfs, root)


@pytest.mark.parametrize(
    ("uri", "options", "says"),
    [
        ("webhdfs:///x", {}, "names no host"),
        ("webhdfs://h/../x", {}, "path cannot be used"),
        ("webhdfs://h|g/x", {}, "cannot be read"),
        ("hdfs://h/x", {"webhdfsPort": "http"}, "must be a port"),
        ("hdfs://h/x", {"webhdfs": "h:9870"}, "must be http"),
        ("hdfs://h/x", {"nope": "1"}, "is not known"),
        ("hdfs://h", {"sourcePath": "data"}, "is relative"),
        ("hdfs://h/x", {"hdfsSiteXml": "<a>"}, "is not XML"),
        ("hdfs://h/x", {"hdfsSiteXml": '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'}, "DOCTYPE"),
        ("hdfs://h/x", {"username": "a b"}, "user name"),
    ],
)
def test_what_is_refused(uri: str, options: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        hdfs_address(uri, options, {}, {})
    assert "\n" not in str(caught.value)


def test_who_asks() -> None:
    environment = {"HADOOP_USER_NAME": "env"}
    assert hdfs_address("webhdfs://h/x", {}, {}, environment).user == "env"
    assert hdfs_address("webhdfs://uri@h/x", {}, {}, environment).user == "uri"
    assert hdfs_address("webhdfs://uri@h/x", {"username": "option"}, {}, environment).user == "option"
    assert hdfs_address("webhdfs://h/x", {}, {"username": "secret"}, environment).user == "secret"
    assert hdfs_address("webhdfs://h/x", {}, {"username": "secret", "password": "p"}, {}).user is None
    assert hdfs_address("webhdfs://uri@h:1/x", {}, {}, {}).shown == "webhdfs://h:1/x"


def test_without_hdfs_native_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hdfs_native", None)
    with pytest.raises(ConfigError, match="pip install hdfs-native"):
        build_source(SourceSpec(type=SourceType.HADOOP, uri="hdfs://h:8020/x"), {})


def test_a_namenode_that_is_not_there_is_named_with_the_reason() -> None:
    (port,) = free_ports(1)

    async def run() -> None:
        source = build_source(SourceSpec(type=SourceType.HADOOP, uri=f"hdfs://{HOST}:{port}/x"), {})
        with pytest.raises(SourceUnavailable, match=rf"hdfs://{HOST}:{port}/x: Connection refused"):
            await tree_of(source)
        await source.close()

    asyncio.run(run())


class _Client:
    """As hdfs-native's, over a dictionary."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.mtime_ms = 1
        self.error: Exception | None = None

    def get_file_info(self, path: str) -> Any:
        if self.error is not None:
            raise self.error
        if path in self.files:
            return SimpleNamespace(
                path=path, isdir=False, length=len(self.files[path]), modification_time=self.mtime_ms
            )
        if any(name.startswith(path.rstrip("/") + "/") for name in self.files):
            return SimpleNamespace(path=path, isdir=True, length=0, modification_time=1)
        raise FileNotFoundError(path)

    def list_status(self, path: str, recursive: bool) -> Any:
        inside = path.rstrip("/") + "/"
        names = {name.removeprefix(inside).split("/")[0] for name in self.files if name.startswith(inside)}
        return iter([self.get_file_info(inside + name) for name in sorted(names)])

    def read(self, path: str) -> Any:
        return SimpleNamespace(read_range=lambda offset, length: self.files[path][offset : offset + length])


def test_a_name_service_of_other_settings_is_another_cluster() -> None:
    def identity(settings: dict[str, str]) -> str:
        return NativeHdfsSource(_Client({}), "hdfs://prod", "/d", "hdfs://prod/d", settings).identity

    address = "dfs.namenode.rpc-address.prod.nn"
    assert identity({}) == "hdfs://prod/d"
    assert len({identity({}), identity({address: "a:8020"}), identity({address: "b:8020"})}) == 3
    assert identity({"dfs.client.socket-timeout": "60000"}) == identity({}), "the same cluster"


def test_the_native_client() -> None:
    client = _Client({"/d/a": b"first", "/d/s/b": b"second"})

    async def run() -> None:
        source = NativeHdfsSource(client, "hdfs://h:8020", "/d", "hdfs://h:8020/d", {})
        tree = await tree_of(source)
        assert set(tree) == {"a", "s", "s/b"}
        assert await read_range(source, tree["s/b"], 1, 6) == b"econd"
        assert await source.stat("none") is None
        client.mtime_ms = 2
        with pytest.raises(SourceChanged):
            await read_range(source, tree["a"], 0, 5)
        for error, expected in (
            (OSError("Connection refused (os error 111)"), SourceUnavailable),
            (RuntimeError("org.apache.hadoop.security.AccessControlException: no"), SourceRefused),
            (FileNotFoundError("/d"), SourceMissing),
        ):
            client.error = error
            with pytest.raises(expected):
                await tree_of(source)
        await source.close()
        single = NativeHdfsSource(_Client({"/d/a": b"first"}), "hdfs://h", "/d/a", "hdfs://h/d/a", {})
        tree = await tree_of(single)
        assert set(tree) == {"a"}
        assert await read_range(single, tree["a"], 0, 5) == b"first"
        await single.close()

    asyncio.run(run())
