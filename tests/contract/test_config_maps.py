"""A HADOOP dataset whose addresses are in a ConfigMap beside it, through a mount."""

from __future__ import annotations

from pathlib import Path

from tests.manifests import dataset, write_manifests
from tests.mounts import Mounts, dsfs
from tests.servers.hdfs_server import hdfs_server


def test_a_dataset_alone_is_applied_with_the_config_map_that_is_known(mounts: Mounts, tmp_path: Path) -> None:
    def hadoop(**spec: object) -> dict[str, object]:
        options = {"hdfsConfigName": "conf", "hdfsSiteXml": "site.xml", "username": "alice"}
        return dataset("set", "hdfs:///data/set", type="HADOOP", source={"options": options}, **spec)

    with hdfs_server() as server:
        server.hdfs.put("/data/set/a", b"first")
        properties = {"dfs.namenode.http-address": server.authority, "fs.s3a.secret.key": "hunter2"}
        site = "".join(f"<property><name>{k}</name><value>{v}</value></property>" for k, v in properties.items())
        config_map = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "conf"},
            "data": {"site.xml": f"<configuration>{site}</configuration>"},
        }
        mount = mounts.mount("-f", write_manifests(tmp_path / "m.yaml", config_map, hadoop()))
        assert (mount.mountpoint / "default/set/a").read_bytes() == b"first"
        mount.wait_phase("READY", "set")
        device = (mount.mountpoint / "default/set").stat().st_dev
        for share in (True, False):  # by the server that read it, and by the one that was told of it
            alone = write_manifests(tmp_path / "n.yaml", hadoop(share=share))
            done = dsfs("dataset", "apply", "-f", alone, f"-m{mount.mountpoint}")
            assert (done.returncode, done.stdout) == (0, "default/set changed\n"), done.stderr
            mount.wait_phase("READY", "set")
            assert (mount.mountpoint / "default/set").stat().st_dev == device, "the mount is the same one"
            shown = dsfs("dataset", "show", "default/set", "--json", f"-m{mount.mountpoint}").stdout
            assert server.authority in shown
            assert "hunter2" not in shown
            assert dsfs("restart", mount.mountpoint).returncode == 0
