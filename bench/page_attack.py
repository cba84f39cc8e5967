"""`python -m bench.page_attack`: strangers, other roles, other sites and a crowd at the page of a bed that is at work.

A real bed (daemon, guard, loop, recording, page) listens to noise. Three things are tried: every verb by every role with every kind of
token, over the websocket as a page would; words from other origins and names; and a crowd: 900 half-open connections, 16 MiB messages,
pages that do not read, floods of refused words. Then come, one after the other, connections that never read and websockets that never stop
talking (`bench.page_crowd`), and STOP is said over HTTP while they last and right after. What is allowed beyond the table below is
counted, and how old samples were when the loop decided is compared with the quiet before, out of the recording. `--gate` exits 1 where a
promise of `budget.toml` is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from pathlib import Path
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from bench.environment import environment
from bench.judge import BUDGET
from bench.ward import Ward
from controller import messages, recording
from controller.web.server import COOKIE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

VERBS = ("status", "stop", "trigger", "offer", "arm", "disarm", "clear", "take", "leave", "invite", "pair", "button", "end", "prescribe")
#: written for this bench from the issue's words: who may say what
MAY = {
    "": {"status", "stop"},
    "viewer": {"status", "stop", "leave"},
    "patient": {"status", "stop", "leave", "trigger"},
    "clinician": {"status", "stop", "leave", "trigger", "offer", "arm", "disarm", "clear", "prescribe", "take"},
    "admin": {"status", "stop", "leave", "invite"},
}
READERS = ("viewer", "clinician")
HALF_OPEN, BIG_BYTES, SLOW, FLOOD = 900, 16 << 20, 12, 4
CROWDS = ("unread", "x", '{"do":"status"}')  # the last two are words
QUIET_S, ATTACK_S = 20.0, 20.0


class PageWard(Ward):
    """A bed with a page at a port that is free."""

    def start_daemon(self) -> None:
        """With its page."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.config = self.config.model_copy(update={"page": self.config.page.model_copy(update={"port": self.port})})
        super().start_daemon()

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.port}"

    def token(self, role: str) -> str:
        """Pair as this role, over the page."""
        code = messages.ask(self.bed, {"do": "invite", "role": role, "name": f"the {role}", "who": "bench"})["code"]
        answer = httpx.post(f"{self.url}/pair", json={"code": code}, headers={"Origin": self.url})
        if COOKIE not in answer.cookies:
            raise RuntimeError(f"not paired as {role}: {answer.text}")
        return answer.cookies[COOKIE]

    @contextlib.contextmanager
    def page(self, token: str = "", **more: Any) -> Iterator[Any]:
        """One open page."""
        headers = {"Cookie": f"{COOKIE}={token}"} if token else {}
        with connect(f"ws://127.0.0.1:{self.port}/live", origin=self.url, additional_headers=headers, **more) as page:  # type: ignore[arg-type]
            yield page


def say(page: Any, number: int, **command: Any) -> dict[str, Any]:
    """One word and its answer."""
    page.send(json.dumps(command | {"nr": number}))
    while True:
        text = page.recv(10.0)
        if isinstance(text, str) and '"answer"' in text and (message := json.loads(text)).get("nr") in (number, 0):
            answer: dict[str, Any] = message["answer"]
            return answer


# --- what is tried ----------------------------------------------------------------------------------------------------------------
def verbs(ward: PageWard) -> list[dict[str, Any]]:
    """Every verb by every role with its own token, one that has left, a forged one, and none."""
    rows, number = [], 0
    for role, may in MAY.items():
        for kind in ("own", "left", "forged", "none"):
            if not role and kind != "none":
                continue
            for verb in VERBS:
                own = ward.token(role) if role and kind != "none" else ""
                token = own[::-1] if kind == "forged" else own
                if kind == "left":
                    with ward.page(own) as page:
                        say(page, 1, do="leave")
                with ward.page(token) as page:
                    number += 1
                    fields = {"id": number + monotonic_ns(), "role": "admin", "name": "Eve", "reason": "why", "closed": True, "code": "1"}
                    answer = say(page, number, do=verb, **fields)

                barred = any("[G2]" in reason or "a word is one of" in reason for reason in answer["reasons"])
                allowed = verb in (may if kind == "own" else MAY[""])
                rows.append({"role": role, "token": kind, "verb": verb, "wrong": barred is allowed, "reasons": answer["reasons"]})
                if own:  # no more than 16 may be paired
                    with ward.page(own) as page:
                        say(page, 1, do="leave")
    return rows


def readings(ward: PageWard) -> list[dict[str, Any]]:
    """Prescription and sessions by every role with its own token, a forged one, and none; and nothing outside of the sessions' folder."""
    rows = []
    name = ward.sessions[-1].name
    for role in MAY:
        own = ward.token(role) if role else ""
        for kind, token in (("own", own), ("forged", own[::-1])):
            for path in (
                "/prescription",
                "/sessions",
                f"/sessions/{name}",
                f"/sessions/{name}?from=0&to=1&n=9",
                "/sessions/..%2Fsettings.toml",
            ):
                code = httpx.get(ward.url + path, cookies={COOKIE: token} if token else {}, timeout=60.0).status_code
                wanted = (404 if ".." in path else 200) if role in READERS and kind == "own" else 403
                # a path that names nothing is 404 for everybody, whoever they are
                rows.append(
                    {"role": role, "token": kind, "verb": f"GET {path}", "wrong": code != wanted and not (".." in path and code == 404)}
                )
        if own:
            with ward.page(own) as page:
                say(page, 1, do="leave")
    return rows


def origins(ward: PageWard) -> list[dict[str, Any]]:
    """Words from elsewhere: what gets in is wrong."""
    rows = []
    for name in ("http://evil.example", "null", f"https://127.0.0.1:{ward.port}", f"http://127.0.0.1:{ward.port}.evil.example", None):
        headers = {} if name is None else {"Origin": name}
        for path in ("/stop", "/pair", "/prescription"):
            code = httpx.post(ward.url + path, headers=headers, json={"code": "00000000"}).status_code
            rows.append({"what": f"POST {path} from {name}", "wrong": code != 403})
        try:
            with connect(f"ws://127.0.0.1:{ward.port}/live", origin=name):  # type: ignore[arg-type]
                rows.append({"what": f"websocket from {name}", "wrong": True})
        except WebSocketException:
            rows.append({"what": f"websocket from {name}", "wrong": False})
    for host in ("evil.example", f"evil.example:{ward.port}", f"127.0.0.1.evil.example:{ward.port}", "[::1]", ""):
        for path in ("/", "/health", "/page.js"):
            code = httpx.get(ward.url + path, headers={"Host": host}).status_code
            rows.append({"what": f"GET {path} at {host!r}", "wrong": code == 200})
    return rows


def crowd(ward: PageWard, seconds: float) -> dict[str, int]:
    """Half-open connections, huge messages, pages that do not read, floods of words; all at once, for so long."""
    end, counts, lock = time.monotonic() + seconds, {"connections": 0, "big": 0, "words": 0}, threading.Lock()

    def count(what: str) -> None:
        with lock:
            counts[what] += 1

    def half_open() -> None:
        crowd: list[socket.socket] = []
        while time.monotonic() < end:
            while len(crowd) < HALF_OPEN and time.monotonic() < end:
                s = socket.socket()
                s.settimeout(0.2)
                with contextlib.suppress(OSError):
                    s.connect(("127.0.0.1", ward.port))
                    s.send(b"POST /pair HTTP/1.1\r\nHost: ")
                    count("connections")
                crowd.append(s)
            time.sleep(0.5)
            for s in crowd:
                s.close()
            crowd.clear()

    def big() -> None:
        message = "x" * BIG_BYTES
        while time.monotonic() < end:
            with contextlib.suppress(OSError, WebSocketException, TimeoutError), ward.page(max_size=None) as page:
                page.send(message)
                count("big")
                page.recv(1.0)
            time.sleep(0.2)

    def slow() -> None:
        while time.monotonic() < end:
            with contextlib.suppress(OSError, WebSocketException, TimeoutError), ward.page(max_queue=1):
                time.sleep(max(0.0, end - time.monotonic()))
            time.sleep(0.2)

    def flood() -> None:
        number = 0
        while time.monotonic() < end:
            with contextlib.suppress(OSError, WebSocketException, TimeoutError), ward.page() as page:
                while time.monotonic() < end:
                    number += 1
                    say(page, number, do="arm")
                    count("words")
            time.sleep(0.2)

    jobs: list[Callable[[], None]] = [half_open, big, *[slow] * SLOW, *[flood] * FLOOD]
    threads = [threading.Thread(target=job, daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 30.0)
    return counts


def stops(ward: PageWard, what: str, seconds: float) -> list[float]:
    """How long STOP over HTTP takes while such a crowd lasts and as long again after it, ms; one that fails is as good as never."""
    command = [sys.executable, "-m", "bench.page_crowd", str(ward.port), what, str(seconds)]
    end, took_ms = time.monotonic() + 2 * seconds, []
    with subprocess.Popen(command, stdout=subprocess.DEVNULL):
        time.sleep(0.5)
        while time.monotonic() < end:
            begin_s = time.monotonic()
            try:
                ok = httpx.post(f"{ward.url}/stop", headers={"Origin": ward.url}, timeout=30.0).json()["ok"]
            except (httpx.HTTPError, ValueError):
                ok = False
            took_ms.append(round((time.monotonic() - begin_s) * 1e3 if ok else 30_000.0, 1))
            time.sleep(0.2)
    return took_ms


# --- figures ----------------------------------------------------------------------------------------------------------------------
def ages_ms(folder: Path, windows: dict[str, tuple[int, int]]) -> dict[str, list[float]]:
    """How old the newest sample was at each decision, ms, in each window of ns."""
    out: dict[str, list[float]] = {name: [] for name in windows}
    for _, cycle in recording.load(folder).cycles():
        if cycle.numbers["n_emg"]:
            for name, (begin, end) in windows.items():
                if begin <= cycle.numbers["received_ns"] < end:
                    out[name].append(cycle.numbers["decided_ns"] / 1e6 - cycle.sample_s * 1e3)
    return out


def run(folder: Path, quick: bool) -> dict[str, Any]:
    """The whole of it."""
    ward = PageWard(folder / "bed", automatic=True)
    quiet_s, attack_s = (4.0, 6.0) if quick else (QUIET_S, ATTACK_S)
    try:
        ward.wait_until_ready()
        tried = verbs(ward) + readings(ward)
        elsewhere = origins(ward)
        ward.arm()
        begin = monotonic_ns()
        time.sleep(quiet_s)
        middle = monotonic_ns()
        counts = crowd(ward, attack_s)
        end = monotonic_ns()
        still = ward.status()
        asked_ns = monotonic_ns()
        messages.ask(ward.bed, {"do": "stop", "who": "bench"})
        stop_ms = (monotonic_ns() - asked_ns) / 1e6
        took_ms = {what: stops(ward, what, attack_s) for what in CROWDS}
    finally:
        ward.close()
    ages = ages_ms(ward.sessions[-1], {"quiet": (begin, middle), "attack": (middle, end)})
    figures = {
        name: dict(zip(("p50", "p99", "max"), np.percentile(x, (50, 99, 100)).round(3).tolist(), strict=True)) for name, x in ages.items()
    }
    return {
        "verbs": tried,
        "elsewhere": elsewhere,
        "crowd": counts,
        "armed_after": still.get("state"),
        "late_heartbeats": still.get("late_heartbeats"),
        "stop_answered_ms": round(stop_ms, 2),
        "stop_over_http_ms": took_ms,
        "sample_age_ms": figures,
        "measured": {
            "allowed beyond the table, or barred against it": sum(row["wrong"] for row in tried),
            "let in from elsewhere": sum(row["wrong"] for row in elsewhere),
            "slowest STOP over HTTP while a crowd never reads or never stops talking, ms": max(max(some) for some in took_ms.values()),
            "sample age p99 under attack, of quiet": round(figures["attack"]["p99"] / figures["quiet"]["p99"], 2),
        },
        "raw_sample_age_ms": {name: [round(x, 3) for x in values] for name, values in ages.items()},
    }


def judged(measured: dict[str, float]) -> list[dict[str, Any]]:
    """Promises of `budget.toml` and what became of them."""
    rows = tomllib.loads(BUDGET.read_text())["page"]
    return [row | {"measured": measured[row["what"]], "met": measured[row["what"]] <= row["most"]} for row in rows]


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="bench.page_attack", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="some seconds of the crowd")
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything that was tried, and raw figures")
    parser.add_argument("--gate", action="store_true", help="exit 1 where a promise of budget.toml is missed, naming each")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="calmloop-page-") as temporary:
        os.environ["CALMLOOP_RUNTIME_DIR"] = os.environ["CALMLOOP_STATE_DIR"] = temporary
        result = {"bench": "page_attack", "quick": args.quick, "environment": environment(), **run(Path(temporary), args.quick)}
    result["goals"] = judged(result["measured"])
    if args.json:
        args.json.write_text(json.dumps(result))
    print(f"{len(result['verbs'])} words by role and token, {len(result['elsewhere'])} from elsewhere; crowd {result['crowd']}")
    print(
        f"age of the newest sample at the decision, ms: {result['sample_age_ms']}; then {result['armed_after']}, "
        f"late heartbeats {result['late_heartbeats']}, the machine's own stop answered in {result['stop_answered_ms']} ms"
    )
    for what, took_ms in result["stop_over_http_ms"].items():
        p50, top = np.percentile(took_ms, (50, 100))
        print(f"STOP over HTTP while {what!r}, and after: {len(took_ms)} times, p50 {p50:.0f} ms, max {top:.0f} ms")
    for row in [*result["verbs"], *result["elsewhere"]]:
        if row["wrong"]:
            print(f"WRONG: {row}")
    for goal in result["goals"]:
        print(f"{'met' if goal['met'] else 'MISSED'}: {goal['what']}: {goal['measured']} (at most {goal['most']})")
    return 1 if args.gate and not all(goal["met"] for goal in result["goals"]) else 0


if __name__ == "__main__":
    sys.exit(main())
