"""`calmloop certificate`: a certificate for the page on a network interface, signed by an authority of this bed's own.

The authority is made for this one signature: it may vouch for this address and name alone (name constraints), and its key is thrown away
at once, so that nobody can ever make another certificate with it. A browser that is told to trust it trusts this page and nothing else.
Made by the system's OpenSSL.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from controller import network
from controller.settings import toml

if TYPE_CHECKING:
    import argparse

DAYS = 397  # what browsers take at most (CA/Browser Forum ballot SC31)
AUTHORITY, CERTIFICATE, KEY = "authority.pem", "page.pem", "page.key"
CONFIG = """\
[req]
distinguished_name = name
prompt = no
[name]
CN = {name}
[authority]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
nameConstraints = critical, {permitted}
[page]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = {names}
"""
EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


class CertificateError(Exception):
    """It cannot be made; the message says what would be right."""


def make(folder: Path, address: str, host_name: str) -> str:
    """Make authority, certificate and key in a folder.

    Returns
    -------
    str
        SHA-256 of the authority, as a browser or a telephone shows it.

    Raises
    ------
    CertificateError
        There is no OpenSSL, it refuses, or the files are there already.
    """
    if not shutil.which("openssl"):
        raise CertificateError("openssl is missing: apt install openssl")
    if there := [name for name in (AUTHORITY, CERTIFICATE, KEY) if (folder / name).exists()]:
        raise CertificateError(f"{folder / there[0]} is there already: name another --folder, or remove it first")
    names = ["DNS:localhost", *([f"DNS:{host_name}"] if host_name else [])]
    addresses = [f"IP:{network.LOOPBACK}", *([f"IP:{address}"] if address != network.LOOPBACK else [])]
    permitted = ", ".join(f"permitted;{name}" for name in [*names, *(f"{one}/255.255.255.255" for one in addresses)])
    with tempfile.TemporaryDirectory() as work_name:
        work = Path(work_name)
        text = CONFIG.format(name=f"calmloop {host_name or address}", permitted=permitted, names=", ".join(names + addresses))
        (work / "config").write_text(text)
        new = ("openssl", "req", "-config", "config", *EC, "-sha256")
        _openssl(work, *new, "-x509", "-days", str(DAYS), "-extensions", "authority", "-keyout", "thrown-away", "-out", AUTHORITY)
        _openssl(work, *new, "-new", "-keyout", KEY, "-out", "request")
        by = ("-CA", AUTHORITY, "-CAkey", "thrown-away", "-CAcreateserial")
        what = ("-days", str(DAYS), "-sha256", "-extfile", "config", "-extensions", "page")
        _openssl(work, "openssl", "x509", "-req", "-in", "request", *by, *what, "-out", CERTIFICATE)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in (AUTHORITY, CERTIFICATE, KEY):
                path = folder / name
                path.touch(mode=0o600 if name == KEY else 0o644)
                path.write_bytes((work / name).read_bytes())
        except OSError as error:
            raise CertificateError(f"{folder}: cannot be written: {error.strerror}") from None
    der = ssl.PEM_cert_to_DER_cert((folder / AUTHORITY).read_text())
    digits = hashlib.sha256(der).hexdigest().upper()
    return ":".join(digits[i : i + 2] for i in range(0, len(digits), 2))


def _openssl(folder: Path, *command: str) -> None:
    answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise CertificateError(f"openssl refuses: {answer.stderr.strip()[-300:]}")


def command(args: argparse.Namespace) -> int:
    """`calmloop certificate INTERFACE`; 0 = made, 1 = not, 2 = there is no such interface."""
    try:
        address = str(network.of(args.interface).ip)
    except OSError as error:
        print(f"{args.interface}: {error.strerror}; `ip -4 -brief address` lists interfaces and their addresses", file=sys.stderr)
        return 2
    try:
        digest = make(args.folder, address, args.host_name)
    except CertificateError as error:
        print(error, file=sys.stderr)
        return 1
    folder = args.folder.resolve()
    page = {"interface": args.interface, "host_name": args.host_name, "certificate": str(folder / CERTIFICATE), "key": str(folder / KEY)}
    if args.json:
        print(json.dumps({"ok": True, "address": address, "authority": str(folder / AUTHORITY), "sha256": digest, "page": page}))
        return 0
    lines = [f"{key} = {toml(value)}" for key, value in page.items() if value]
    print("\n".join(["# into the settings, below port:", "[page]", *lines, ""]))
    print(f"Browsers and telephones of that network must be told to trust {folder / AUTHORITY}, once, by hand. Its")
    print(f"  SHA-256 is {digest}")
    print(f"and vouches for {args.host_name or address} alone, for {DAYS} days. Then it is made anew.")
    return 0
