"""Addresses of this machine's network interfaces, from Linux itself."""

from __future__ import annotations

import fcntl
import socket
import struct
from ipaddress import IPv4Interface

LOOPBACK = "127.0.0.1"
_ADDRESS, _NETMASK = 0x8915, 0x891B  # SIOCGIFADDR, SIOCGIFNETMASK of linux/sockios.h


def of(interface: str) -> IPv4Interface:
    """IPv4 address and network of an interface. Raises OSError where there is no such interface, or it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:

        def ask(what: int) -> str:
            return socket.inet_ntoa(fcntl.ioctl(s, what, struct.pack("256s", interface.encode()[:15]))[20:24])

        return IPv4Interface(f"{ask(_ADDRESS)}/{ask(_NETMASK)}")
