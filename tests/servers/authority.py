"""A certificate authority of one's own, and a certificate of it for loopback."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

from tests.servers.process import HOST

_NEW_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


class Authority(NamedTuple):
    """Files in PEM: of the authority, and the certificate and key of a server."""

    authority: Path
    certificate: Path
    key: Path


def make_authority(directory: Path) -> Authority:
    made = Authority(directory / "authority.pem", directory / "certificate.pem", directory / "key.pem")
    own_key, request, extensions = directory / "authority.key", directory / "request", directory / "extensions"
    extensions.write_text(f"subjectAltName=IP:{HOST}\nbasicConstraints=CA:FALSE\n")
    _openssl("req", "-x509", *_NEW_KEY, "-keyout", own_key, "-out", made.authority, "-days", "2", "-subj", "/CN=own")
    _openssl("req", *_NEW_KEY, "-keyout", made.key, "-out", request, "-subj", f"/CN={HOST}")
    signing = ["-CA", made.authority, "-CAkey", own_key, "-CAcreateserial", "-days", "2", "-extfile", extensions]
    _openssl("x509", "-req", "-in", request, "-out", made.certificate, *signing)
    return made


def _openssl(*argv: str | Path) -> None:
    subprocess.run(["openssl", *argv], check=True, capture_output=True)
