"""Functions of the C library that compiled code may call without the interpreter. Anything compiled may import this; guard does not.

Declared by name, not by address, so that numba can keep what it compiled. Pointers are whole numbers (`array.ctypes.data`).
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
from numba import njit, types
from numba.extending import intrinsic

from drivers.base import DriverError

CLOCK_MONOTONIC = 1
MSG_DONTWAIT, MSG_NOSIGNAL = 0x40, 0x4000  # Linux

_clock_gettime: Any = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.uintp))
_send: Any = types.ExternalFunction("send", types.intp(types.int32, types.uintp, types.uintp, types.int32))
_recv: Any = types.ExternalFunction("recv", types.intp(types.int32, types.uintp, types.uintp, types.int32))
_memcpy: Any = types.ExternalFunction("memcpy", types.uintp(types.uintp, types.uintp, types.uintp))


def load_library(path: str) -> None:
    """Let compiled code find the functions of a shared library by their names. Raises `DriverError`."""
    try:
        llvmlite.binding.load_library_permanently(path)
    except RuntimeError as error:
        raise DriverError(f"{path} cannot be loaded: {error}") from None


@njit(cache=True, nogil=True)
def monotonic_ns(scratch):
    """The host's monotonic clock, as `time.monotonic_ns`; `scratch` is (2,) int64."""
    _clock_gettime(CLOCK_MONOTONIC, scratch.ctypes.data)
    return scratch[0] * 1_000_000_000 + scratch[1]


@njit(cache=True, nogil=True)
def send(fd, message):
    """Send an array as one message; never waits, never raises. What was not taken is lost. Returns bytes sent, -1 = none."""
    return _send(fd, message.ctypes.data, message.size * message.itemsize, MSG_DONTWAIT | MSG_NOSIGNAL)


@njit(cache=True, nogil=True)
def receive(fd, message):
    """Receive one message into an array, without waiting; returns its bytes, 0 = the other end is gone, -1 = nothing there."""
    return _recv(fd, message.ctypes.data, message.size * message.itemsize, MSG_DONTWAIT)


@njit(cache=True, nogil=True)
def copy(to, at, source, start, n_bytes):
    """Copy bytes of one array to a place in another; offsets are in bytes."""
    _memcpy(to.ctypes.data + at, source.ctypes.data + start, n_bytes)


@intrinsic
def _release_fence(_context):
    """Machine code of `release_fence`."""

    def codegen(context, builder, _signature, _args):
        builder.fence("release")
        return context.get_dummy_value()

    return types.void(), codegen


release_fence: Any = _release_fence  # what was stored before becomes visible to others before what is stored after
