"""Azurite, Microsoft's emulator, from npm: deploy/setup.sh puts it into .venv, or AZURITE says where it is."""

from __future__ import annotations

import base64
import contextlib
import email.utils
import hashlib
import hmac
import os
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import obstore
from obstore.store import AzureStore

from tests.servers.process import HOST, Server, free_ports, program, running

CONTAINER = "container"
ACCOUNT = "devstoreaccount1"
# Azurite's own, public and the same everywhere.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_MAIN = "node_modules/azurite/dist/src/blob/main.js"


def command() -> list[str] | None:
    """How azurite is started here."""
    node, found = program("node"), os.environ.get("AZURITE", "")
    beside_python = Path(sys.executable).parent.parent / "azurite"
    for script in (*((Path(found) / _MAIN, Path(found)) if found else ()), beside_python / _MAIN):
        if node and script.is_file():
            return [node, str(script)]
    beside = program("azurite-blob")
    return [beside] if beside else None


class AzureServer:
    """One container that everybody may list and read (``public``), or nobody without the key."""

    def __init__(self, port: int, server: Server) -> None:
        self.endpoint = f"http://{HOST}:{port}/{ACCOUNT}"
        self._server = server
        self._store = self._store_of(CONTAINER)

    def create_container(self, name: str, *, public: bool) -> None:
        headers = {"x-ms-blob-public-access": "container"} if public else {}
        self._put(name, headers, b"", "restype", "container")

    def put(self, path: str, data: bytes, container: str = CONTAINER) -> None:
        obstore.put(self._store if container == CONTAINER else self._store_of(container), path, data)

    def put_exactly(self, key: str, data: bytes) -> None:
        """Also a key that obstore would tidy."""
        self._put(f"{CONTAINER}/{quote(key)}", {"x-ms-blob-type": "BlockBlob"}, data)

    def delete(self, path: str) -> None:
        obstore.delete(self._store, path)

    def kill(self) -> None:
        self._server.kill()

    def _put(self, path: str, headers: dict[str, str], data: bytes, *query: str) -> None:
        # obstore makes no containers, nor every key, so a request is signed here (Shared Key, version 2015 and later).
        headers = {**headers, "x-ms-date": email.utils.formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
        kind, length = "application/octet-stream", str(len(data) or "")
        canonical = "".join(f"{key}:{headers[key]}\n" for key in sorted(headers))
        resource = "\n".join([f"/{ACCOUNT}/{ACCOUNT}/{path}", *([":".join(query)] if query else [])])
        text = f"PUT\n\n\n{length}\n\n{kind}\n\n\n\n\n\n\n{canonical}{resource}"
        signature = hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()
        headers |= {
            "Content-Type": kind,
            "Authorization": f"SharedKey {ACCOUNT}:{base64.b64encode(signature).decode()}",
        }
        url = f"{self.endpoint}/{path}" + (f"?{'='.join(query)}" if query else "")
        urllib.request.urlopen(urllib.request.Request(url, data, headers, method="PUT")).close()

    def _store_of(self, container: str) -> AzureStore:
        return AzureStore(
            container,
            account_name=ACCOUNT,
            account_key=KEY,
            endpoint=self.endpoint,
            client_options={"allow_http": True},
        )


@contextlib.contextmanager
def azurite(directory: Path) -> Iterator[AzureServer]:
    argv = command()
    assert argv is not None, "azurite is not installed (npm install azurite; AZURITE=its directory)"
    (port,) = free_ports(1)
    argv = [*argv, "--silent", f"--blobHost={HOST}", f"--blobPort={port}"]
    argv += ["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry"]
    with running(argv, port, directory / "azurite.log") as process:
        server = AzureServer(port, process)
        server.create_container(CONTAINER, public=True)
        server.create_container("private", public=False)
        yield server
