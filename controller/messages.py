"""What crosses between processes: fixed binary messages of loop and guard, JSON lines for people's commands, where the sockets are.

Standard library alone; imported by guard and by `calmloop stop`, which must start at once.
"""

from __future__ import annotations

import getpass
import json
import os
import secrets
import socket
import struct
import tempfile
from pathlib import Path
from time import monotonic, monotonic_ns, sleep
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

# --- loop -> guard ----------------------------------------------------------------------------------------------------------------
HEARTBEAT, REQUEST = 1, 2
_TO_GUARD = struct.Struct("<12q")


class ToGuard(NamedTuple):
    """A heartbeat or a request for one train; fields as in `supervisor.Event` and, at the end, as in `policy.StimRequest`."""

    kind: int
    issued_ns: int
    sample_ns: int
    number: int = 0
    event_id: int = 0
    train: int = 0
    current_ua: int = 0
    duration_us: int = 0
    cause: int = 0
    ok: int = 0
    rule: int = 0
    level: int = 0

    def pack(self) -> bytes:
        """As bytes."""
        return _TO_GUARD.pack(*self)


def unpack_to_guard(data: bytes) -> ToGuard:
    """From bytes. Raises `struct.error` where the length is wrong."""
    return ToGuard(*_TO_GUARD.unpack(data))


# --- guard -> loop ----------------------------------------------------------------------------------------------------------------
FEEDBACK = struct.Struct("<dqq")  # FEEDBACK_* code of drivers.base, host monotonic ns, request number

# --- kinds of ring records --------------------------------------------------------------------------------------------------------
RING_CYCLE, RING_GUARD, RING_LOOP_NOTE = 1, 2, 3

# --- people's commands ------------------------------------------------------------------------------------------------------------
MAX_COMMAND_BYTES = 4096
STATUS_STALE_NS = 1_000_000_000
_SECOND = "\0calmloop "
ARM_S = 4.0  # until it is on the disk and the stimulator has confirmed


class NoBedError(Exception):
    """No daemon answers."""


def user() -> str:
    """Who asks, by name or, where there is none (a container), by number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def runtime_folder() -> Path:
    """Where the sockets of this user's beds are: private to the user."""
    given = os.environ.get("CALMLOOP_RUNTIME_DIR")
    if given:
        folder = Path(given)
    elif os.environ.get("XDG_RUNTIME_DIR"):
        folder = Path(os.environ["XDG_RUNTIME_DIR"]) / "calmloop"
    else:
        folder = Path(tempfile.gettempdir()) / f"calmloop-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise NoBedError(f"{folder} must belong to this user and be writable by nobody else")
    return folder


def control_path(bed: str) -> Path:
    """Socket of a bed's guard; a bed of another folder is named by its socket's whole path."""
    return Path(bed) if "/" in bed else runtime_folder() / f"{bed}.sock"


def second_address(path: Path) -> str:
    """Where the guard of that socket listens too: in Linux' abstract namespace, which no folder and no deletion has a hand in."""
    return f"{_SECOND}{path}"


def page_path(control: Path) -> Path:
    """Socket by which the page of that bed comes to guard: a door of its own, where nobody has rights without a token."""
    return control.with_suffix(".page")


def status_path(bed: str) -> Path:
    """Status file of a bed's daemon."""
    return control_path(bed).with_suffix(".status.json")


def beds() -> list[str]:
    """Names of the beds that have an address here, whether or not anybody still listens.

    Where `CALMLOOP_RUNTIME_DIR` does not name the folder, beds of this user in any folder are among them, by their whole path: whoever
    wants to stop a bed must not need to know how it was started.
    """
    try:
        here: Path | None = runtime_folder()
    except NoBedError:
        here = None
    names = {path.stem for path in here.glob("*.sock")} if here else set()
    for path in _second_addresses():
        if path.parent == here:
            names.add(path.stem)
        elif "CALMLOOP_RUNTIME_DIR" not in os.environ and _is_ours(path):
            names.add(os.fspath(path))
    return sorted(names)


def _second_addresses() -> list[Path]:
    """Sockets of all guards of this machine, by what the kernel says of who listens where."""
    try:
        lines = Path("/proc/net/unix").read_text(errors="replace").splitlines()
    except OSError:
        return []
    shown = "@" + _SECOND[1:]
    rows = (line.split(maxsplit=7) for line in lines)
    # flags 10000: it listens
    return [Path(row[7].removeprefix(shown)) for row in rows if len(row) == 8 and row[3] == "00010000" and row[7].startswith(shown)]


def _is_ours(path: Path) -> bool:
    """Whether a guard of this user (or, for root, of anybody) listens at the second address; anybody could have taken the name."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
        s.settimeout(0.2)
        try:
            s.connect(second_address(path))
            return _listener(s) in (0, os.getuid()) or os.getuid() == 0
        except OSError:
            return False


def _listener(s: socket.socket) -> int:
    """User of the process at the other end."""
    uid: int = struct.unpack("3i", s.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
    return uid


def ask(bed: str, command: dict[str, Any], timeout_s: float = 2.0) -> dict[str, Any]:
    """Send a person's command to a bed's guard and wait for its answer.

    Raises
    ------
    NoBedError
        Nobody listens, or no answer came in time.
    """
    answers, gone = ask_all([bed], command, timeout_s)
    if gone:
        raise NoBedError(gone[bed])
    return answers[bed]


def confirm(bed: str, offer: dict[str, Any], automatic: bool, who: str) -> dict[str, Any]:
    """Second step of arming: confirm what `ask(bed, {"do": "offer"})` has shown, after a look at patient, skin and electrodes.

    Raises
    ------
    NoBedError
        Nobody listens, or no answer came in time.
    """
    named = {"offer": offer["offer"], "prescription_id": offer["prescription_id"], "electrodes_checked": True}
    return ask(bed, {"do": "arm", **named, "automatic": automatic, "who": who}, ARM_S)


def allow(bed: str, automatic: bool, who: str) -> dict[str, Any]:
    """Both steps of arming at once, for programs that stand in for a person at a simulated bed (demo, benches, tests)."""
    offer = ask(bed, {"do": "offer", "who": who})
    return confirm(bed, offer, automatic, who) if offer["ok"] else offer


def press(who: str) -> dict[str, Any]:
    """A press of the button as a command: its own id, and when it was pressed, so that it counts once and never late."""
    return {"do": "trigger", "id": secrets.randbits(52) | 1, "issued_ns": monotonic_ns(), "who": who}


def ask_all(names: Sequence[str], command: dict[str, Any], timeout_s: float = 2.0) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Send a command to several guards before waiting for any: one that hangs must not keep a stop from the others.

    Returns
    -------
    answers : dict of bed to answer
    gone : dict of bed to why there is none
    """
    end = monotonic() + timeout_s
    sockets: dict[str, socket.socket] = {}
    answers: dict[str, dict[str, Any]] = {}
    gone: dict[str, str] = {}

    def connect(bed: str) -> socket.socket:
        """By the first address, or, where that is gone, by the second."""
        path = control_path(bed)
        for address in (os.fspath(path), second_address(path)):
            s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            while True:
                s.settimeout(max(0.001, end - monotonic()))
                try:
                    s.connect(address)
                    if address[0] != "\0" or _listener(s) in (0, os.getuid()) or os.getuid() == 0:
                        return s
                    break
                except BlockingIOError:  # a queue of others at the door: knock again
                    if monotonic() >= end:
                        s.close()
                        raise
                    sleep(0.002)
                except OSError as error:
                    if address[0] != "\0":
                        first = error
                    break
            s.close()
        raise first

    def send(bed: str) -> None:
        while True:
            sockets[bed] = s = connect(bed)
            try:
                s.send(json.dumps(command).encode())
                return
            except (BrokenPipeError, ConnectionResetError):  # pushed out by a crowd; only a stop may be said twice
                if command.get("do") != "stop" or monotonic() >= end:
                    raise
                s.close()

    def receive(bed: str) -> dict[str, Any]:
        data = sockets[bed].recv(65536)
        if not data:
            raise ConnectionResetError("it closed the connection")
        answer = json.loads(data)
        if not isinstance(answer, dict):
            raise ValueError("its answer is no JSON object")
        return answer

    for bed in names:
        try:
            send(bed)
        except FileNotFoundError:
            gone[bed] = f"no bed named {bed!r} is running"
        except ConnectionRefusedError:
            gone[bed] = f"the guard of bed {bed!r} is gone (its socket is left over)"
        except OSError as error:
            gone[bed] = f"the guard of bed {bed!r} DID NOT ANSWER: {error}"
    for bed in names:
        try:
            while bed not in gone:
                try:
                    answers[bed] = receive(bed)
                    break
                except (BrokenPipeError, ConnectionResetError):
                    # pushed out by a crowd; only a stop may be said twice
                    if command.get("do") != "stop" or monotonic() >= end:
                        raise
                    sockets[bed].close()
                    send(bed)
        except (OSError, ValueError, RecursionError) as error:
            gone[bed] = f"the guard of bed {bed!r} DID NOT ANSWER: {error}"
        finally:
            if bed in sockets:
                sockets[bed].close()
    return answers, gone


def daemon_status(bed: str) -> dict[str, Any] | None:
    """What a bed's daemon last wrote; None where that is older than `STATUS_STALE_NS` or cannot be read."""
    try:
        status: dict[str, Any] = json.loads(status_path(bed).read_text())
        return status if monotonic_ns() - status["written_ns"] < STATUS_STALE_NS else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, NoBedError):
        return None
