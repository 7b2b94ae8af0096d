"""Which errors say of a cached object that it cannot be used; others are of a machine that is short of something."""

from __future__ import annotations

import errno
from typing import Final

NO_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE})
"""What an open says when this process, or the machine, may open no more files."""
_NOT_OF_THE_OBJECT: Final = NO_DESCRIPTORS | {errno.ENOMEM, errno.EROFS}


class DamagedObject(Exception):
    """Map and data do not belong together, or are torn: the object has to be dropped."""


def is_of_the_object(error: Exception) -> bool:
    """Whether what opening or reading an object raised says that it cannot be used; else another time it can."""
    return isinstance(error, DamagedObject) or (isinstance(error, OSError) and error.errno not in _NOT_OF_THE_OBJECT)
