"""Whom files belong to that we make."""

from __future__ import annotations

import errno
import os
import tempfile


def uid_in(directory: str) -> int:
    """The owner of what we make in a directory: a file server may make another user of ours (root_squash, CIFS), and
    then the files that belong to that one are ours. Raises OSError when nothing can be made there."""
    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            return os.fstat(file.fileno()).st_uid
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        return os.geteuid()
