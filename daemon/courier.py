"""The process that fetches small files for one server (dsfs/fetch/courier.py).

    python -m daemon.courier FD

FD is the server's socket. It ends when that is closed, so with the server.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys

from dsfs.fetch.courier import Courier
from dsfs.fetch.errand import LARGEST_MESSAGE, unpacked

_PR_SET_NAME = 15  # <linux/prctl.h>


def main() -> int:
    """The exit status."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, b"dsfs-courier", 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the server decides
    control = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(control.fileno(), False)
    raw = control.recv(LARGEST_MESSAGE)
    if raw:
        Courier(control, *unpacked(raw)).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
