"""Connections to the page's process: none lasts that nobody uses or reads, none says more than people can, and there is room for the next.

uvicorn has no deadline for a header or for a response that is not taken, and no bound to what a websocket says. A crowd that holds all
connections would keep a STOP out, so where there are too many it is not the newest that goes.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from time import monotonic
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.protocol import State

from controller import network

MAX_CONNECTIONS = 48  # from this machine, and as many from the network, which so cannot shut out the bedside
MAX_FROM_ONE = 12  # address of the network
#: at once, and two times may be under way: none is pushed out by newer ones before what it says was read
MAX_ACCEPTED = MAX_CONNECTIONS // 2
HEADER_S = 5.0  # until a request is complete, or its connection is closed
UNREAD_S = 4.0  # until what we sent is taken, likewise
LOOK_S = 0.5
SEND_BYTES = 64 << 10  # in the kernel's hands: more of it would be taken for read
FRAMES_HZ, MAX_FRAMES = 20.0, 60  # of one websocket, and how many at once; a page says a few in a minute
SLICE_BYTES = 512  # of a websocket's are read before they are counted: 85 frames at most


def is_here(host: str | None) -> bool:
    """Whether an address is this machine's own."""
    return host == network.LOOPBACK


def host_of(transport: Any) -> str:
    """Address at the other end."""
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if peer else ""


def n_unread(one: Any) -> int:
    """Bytes that we have sent and that nobody takes."""
    return int(one.transport.get_write_buffer_size())


def abort(one: Any) -> None:
    """End a connection at once, and in the kernel too, which would hold what nobody reads for minutes."""
    if one.transport.get_extra_info("socket").fileno() >= 0:
        one.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.transport.abort()


class Impatient(H11Protocol):
    """A connection that says nothing, half a request, or does not read, goes: after a while, and at once where others need its place."""

    made_s = since_s = 0.0  # when it was made; and when its last request began or its last response was complete

    def connection_made(self, transport: Any) -> None:
        """Count; where there are too many, the oldest of the unread goes, or of all: whoever says STOP comes, is heard, and leaves."""
        super().connection_made(transport)
        self.made_s = self.since_s = monotonic()
        mine = host_of(transport)
        there: list[Any] = [one for one in self.connections if one.transport and (n_unread(one) or not one.transport.is_closing())]
        alike = [one for one in there if is_here(host_of(one.transport)) == is_here(mine)]
        same = [] if is_here(mine) else [one for one in alike if host_of(one.transport) == mine]
        for crowd, most in ((same, MAX_FROM_ONE), (alike, MAX_CONNECTIONS)):
            if len(crowd) > most:
                others = [one for one in crowd if isinstance(one, Impatient) and one is not self]
                goes = min(others, key=lambda one: (not n_unread(one), one.made_s), default=self)
                abort(goes)
                return

    def data_received(self, data: bytes) -> None:
        """A new request has its own time."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self.since_s = monotonic()

    def on_response_complete(self) -> None:
        """And so has the next."""
        super().on_response_complete()
        self.since_s = monotonic()

    @property
    def waits(self) -> bool:
        """Whether a request is not there yet, or not as a whole."""
        cycle: Any = self.cycle
        return cycle is None or cycle.response_complete or cycle.more_body


class Sparing(WebSocketsSansIOProtocol):
    """A websocket that says more than a person can is closed (1008): each word costs a turn that a STOP may be waiting for."""

    left, counted_s = float(MAX_FRAMES), 0.0

    def data_received(self, data: bytes) -> None:
        """Read it in pieces, so that what is too much is never looked at."""
        for at in range(0, len(data), SLICE_BYTES if self.handshake_initiated else len(data)):
            if self.transport.is_closing():
                return
            super().data_received(data[at : at + SLICE_BYTES] if self.handshake_initiated else data)

    def handle_events(self) -> None:
        """Count frames of every kind, empty ones too; a STOP among the last still counts."""
        n, now_s = len(self.conn.events), monotonic()
        super().handle_events()
        self.left = min(MAX_FRAMES, self.left + (now_s - self.counted_s) * FRAMES_HZ) - n
        self.counted_s = now_s
        if self.left < 0 and not self.transport.is_closing():
            if self.conn.state is not State.OPEN:
                abort(self)
                return
            self.conn.fail(1008, "more than a person can say")
            self.handle_parser_exception()

    async def send(self, message: Any) -> None:
        """Nothing to one that is closing: asyncio would write a line for each."""
        if self.transport.is_closing():
            raise ClientDisconnected
        await super().send(message)


async def watch(connections: set[Any]) -> None:
    """Close what waits or is unread for too long, for ever; an open websocket is asked by its pings whether it reads."""
    unread_s: dict[Any, float] = {}
    while True:
        await asyncio.sleep(LOOK_S)
        now_s = monotonic()
        some = [one for one in connections if n_unread(one) and (isinstance(one, Impatient) or one.transport.is_closing())]
        unread_s = {one: unread_s.get(one, now_s) for one in some}
        late = [one for one, since_s in unread_s.items() if now_s - since_s > UNREAD_S]
        late += [one for one in connections if isinstance(one, Impatient) and one.waits and now_s - one.since_s > HEADER_S]
        for one in late:
            abort(one)
