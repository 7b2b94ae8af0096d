"""The process that fetches small files for one server (dsfs/fetch/courier.py).

    python -m daemon.courier FD

FD is the server's socket. It ends when that is closed, so with the server.
"""

from __future__ import annotations

import os
import signal
import socket
import sys

from daemon.process import name_process
from dsfs.fetch.courier import Courier
from dsfs.fetch.errand import LARGEST_MESSAGE, unpacked


def main() -> int:
    """The exit status."""
    name_process("dsfs-courier")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the server decides
    control = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(control.fileno(), False)
    raw = control.recv(LARGEST_MESSAGE)
    if raw:
        Courier(control, *unpacked(raw)).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
