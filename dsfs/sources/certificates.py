"""Which certificate authorities a TLS server is believed by, for libraries that do not agree on where to look."""

from __future__ import annotations

import os
import ssl

NOT_TRUSTED = "the certificate of the server is not trusted (name its CA in SSL_CERT_FILE)"
_OF_THE_SYSTEM = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem")
"""Of Debian, Fedora and SUSE."""


def named_authorities() -> str | None:
    """The file with a company's own, which whoever started dsfs has named for all of its connections."""
    return os.environ.get(ssl.get_default_verify_paths().openssl_cafile_env) or None


def context(own: str | None) -> ssl.SSLContext:
    """One that believes whom everybody does, and those of a file. Raises OSError, ssl.SSLError of that."""
    made = ssl.create_default_context()
    if own:
        made.load_verify_locations(own)
    return made


def authorities_of_the_system() -> str | None:
    """The file with those that this machine knows, if it has one."""
    default = ssl.get_default_verify_paths().cafile
    return default or next((path for path in _OF_THE_SYSTEM if os.path.exists(path)), None)
