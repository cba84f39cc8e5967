"""`python -m bench.page_crowd PORT unread|WORD SECONDS`: a crowd at the page of this machine, as a process of its own.

``unread``: connections that ask for the page's script hundreds of times and never read. Any other word: websockets that have not paired and
say it as fast as they can. Whoever is thrown out comes again. Standard library alone, so that it is there at once.
"""

from __future__ import annotations

import contextlib
import select
import socket
import sys
from time import monotonic, sleep

UNREAD, ASKED, TALKERS = 60, 400, 6


def never_read(port: int, seconds: float) -> None:
    """More connections than the page takes, each with a whole queue of requests and no ear."""
    asked = f"GET /page.js HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode() * ASKED
    crowd: list[socket.socket] = []
    end_s = monotonic() + seconds
    while monotonic() < end_s:
        for s in [s for s in crowd if s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)]:
            crowd.remove(s)
            s.close()
        while len(crowd) < UNREAD and monotonic() < end_s:
            s = socket.socket()
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            s.settimeout(0.2)
            crowd.append(s)
            with contextlib.suppress(OSError):
                s.connect(("127.0.0.1", port))
                s.setblocking(False)
                s.send(asked)
        sleep(0.05)


def talker(port: int) -> socket.socket:
    """One open websocket. Raises OSError."""
    s = socket.create_connection(("127.0.0.1", port), 2.0)
    own = f"Host: 127.0.0.1:{port}\r\nOrigin: http://127.0.0.1:{port}\r\n"
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    s.sendall(f"GET /live HTTP/1.1\r\n{own}Upgrade: websocket\r\nConnection: Upgrade\r\n{key}".encode())
    s.recv(4096)
    s.setblocking(False)
    return s


def talk(port: int, word: str, seconds: float) -> int:
    """Say the word; returns how many bytes were taken."""
    many = (bytes((0x81, 0x80 | len(word))) + bytes(4) + word.encode()) * (20_000 // (6 + len(word)))
    crowd: dict[socket.socket, int] = {}  # and how far into `many` each has got
    end_s, taken = monotonic() + seconds, 0
    while monotonic() < end_s:
        while len(crowd) < TALKERS and monotonic() < end_s:
            with contextlib.suppress(OSError):
                crowd[talker(port)] = 0
        for s in select.select([], crowd, [], 0.1)[1]:
            try:
                n = s.send(many[crowd[s] :])
            except OSError:
                del crowd[s]
                s.close()
            else:
                crowd[s] = (crowd[s] + n) % len(many)
                taken += n
    return taken


if __name__ == "__main__":
    port, what, seconds = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    if what == "unread":
        never_read(port, seconds)
    else:
        print(talk(port, what, seconds))
