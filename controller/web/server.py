"""The page's process: serves one page, shows what the daemon feeds it, carries people's words to guard.

It decides nothing. Each word goes to guard's door for the page together with the token of whoever says it, and guard answers; a stop needs
no token and has threads of its own. What comes from outside is taken from this machine's own page alone: Host and Origin are looked at
for pages and websockets alike (G3), messages, connections and waiting are bounded (G5).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import ssl
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, NamedTuple, cast, get_args
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocketDisconnect

from controller import alarms, messages, montages, network, prescribing, realtime, review, settings
from controller.ring import RingReader
from controller.web import feed, metrics
from controller.web.connections import HEADER_S, MAX_ACCEPTED, MAX_CONNECTIONS, SEND_BYTES, Impatient, Sparing, is_here, watch

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send
    from starlette.websockets import WebSocket

STATIC = Path(__file__).with_name("static")
COOKIE = "calmloop"
GUARD_S = 0.5  # how often guard is asked how things are
TURN_S = 0.02  # how often the feed is read: twice what a screen can show
MAX_WAITING = 200  # records that a slow reader may be behind; then it starts anew
MAX_VIEWERS, MAX_STRANGERS = 16, 8  # G5: open pages, and those of them that over a network have not paired
AGAIN_S = 5.0  # how often guard is asked whether a token still is somebody's
PAIR_S = 5.0  # between two codes from one address of the network
MAX_BYTES = 4096  # of a word from a person
MAX_BRACKETS = 200  # in it: what is nested deeper than our own words is none of them, and Python has no room for it
STOP_S, WORD_S = 1.0, 5.0
FOREVER_S = 12 * 3600
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
#: what may be said over the websocket; guard's own table says who may
VERBS = ("status", "stop", "trigger", "offer", "arm", "disarm", "clear", "prescribe", "take", "leave", "invite")

#: what of the daemon's report anybody gets to see who comes over a network and has not paired
HEALTH = ("state", "automatic", "renewing", "written_ns")
#: and of guard's answers
BRIEF = ("ok", "reasons", "state", "stop_confirmed", "token", "name", "role")

#: what of guard's answer a page gets to see
SHOWN = (
    *(
        "ok",
        "reasons",
        "you",
        "holds",
        "state",
        "automatic",
        "reason",
        "stop_confirmed",
        "confirms_stops",
        "recorder_ok",
        "button",
        "stimulator",
    ),
    *("dose", "holder", "people", "offer", "prescription_id", "prescription", "button_train", "stimulator_identity"),
    *("code", "token", "name", "role"),
)


class Viewer:
    """One open page: what it has yet to be sent."""

    def __init__(self, sees: bool) -> None:
        self.sees = sees  # signals and all figures; else the bed's state and alarms alone (G1)
        self.waiting: deque[bytes | str] = deque()
        self.bell = asyncio.Event()

    def tell(self, message: bytes | str) -> None:
        """Put a message in line; a page that does not keep up misses traces, and never the newest state."""
        if len(self.waiting) >= MAX_WAITING:
            self.waiting.clear()
        self.waiting.append(message)
        self.bell.set()


class Files(NamedTuple):
    """What the page may read; None = there is no such thing."""

    settings: Path | None = None
    versions: Path | None = None
    sessions: Path | None = None


class Reader:
    """A process that reads sessions for us, one question at a time; ended when nobody has asked for a while."""

    IDLE_S, LONGEST_S = 120.0, 300.0

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.process: asyncio.subprocess.Process | None = None
        self.ending: asyncio.TimerHandle | None = None

    async def ask(self, **question: Any) -> tuple[bool, bytes]:
        """Whether it went well, and the answer or what was wrong."""
        async with self.lock:
            if self.process is None or self.process.returncode is not None:
                command = (sys.executable, "-m", "controller.review")
                pipe = asyncio.subprocess.PIPE
                self.process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
            assert self.process.stdin and self.process.stdout
            if self.ending:
                self.ending.cancel()
            try:
                async with asyncio.timeout(self.LONGEST_S):
                    self.process.stdin.write(json.dumps(question).encode() + b"\n")
                    good, n_bytes = review.ANSWER.unpack(await self.process.stdout.readexactly(review.ANSWER.size))
                    answer = await self.process.stdout.readexactly(n_bytes)
            except BaseException as error:  # somebody who does not wait leaves an answer behind that is nobody else's
                self.end()
                if isinstance(error, (OSError, asyncio.IncompleteReadError, TimeoutError)):
                    return False, f"the session could not be read: {error}".encode()
                raise
            self.ending = asyncio.get_running_loop().call_later(self.IDLE_S, self.end)
            return good, answer

    def end(self) -> None:
        """Let it go."""
        if self.process and self.process.returncode is None:
            self.process.kill()
        self.process = None


class Page:
    """What all pages share.

    Parameters
    ----------
    ring : RingReader
        The daemon's feed.
    door : str
        Path of guard's socket for the page.
    origins : frozenset of str
        Where our own page may come from, such as "http://127.0.0.1:8137".
    files : Files
    is_open : bool
        Whoever gets here is at the machine itself, and sees all without pairing.
    """

    def __init__(self, ring: RingReader, door: str, origins: frozenset[str], files: Files, is_open: bool = True) -> None:
        self.ring, self.door, self.origins, self.files, self.is_open = ring, door, origins, files, is_open
        self.reader = Reader()
        self.paired_s: dict[str, float] = {}  # when each address last tried a code
        self.bed = Path(door).stem
        self.viewers: set[Viewer] = set()
        self.status: dict[str, Any] = {}
        self.guard: dict[str, Any] | None = None  # what it last said of itself; None = it was not asked
        self.connections: set[Any] = set()
        self.stops = ThreadPoolExecutor(4, "stop")
        self.words = ThreadPoolExecutor(8, "word")

    # --- the feed ------------------------------------------------------------------------------------------------------------
    async def pump(self) -> None:
        """Hand on what the daemon says, for ever."""
        while True:
            for kind, payload in self.ring.records():
                if kind == feed.STATUS:
                    self.status = json.loads(payload)
                    for viewer in self.viewers:
                        viewer.tell(self.status_text(viewer.sees))
                elif kind == feed.COLUMNS:
                    self.tell(payload)
                elif kind == feed.MARK:
                    self.tell('{"mark":' + payload.decode() + "}")
            await asyncio.sleep(TURN_S)

    async def ask_guard(self) -> None:
        """Ask guard how things are, for ever: who holds control, whether a stop was confirmed, and whether guard is there at all."""
        while True:
            answer = await self.say({"do": "status"}, "") if self.viewers else None
            self.guard = answer if answer is None or "state" in answer else {}
            if answer:
                self.tell(json.dumps({"guard": answer}))
            await asyncio.sleep(GUARD_S)

    def tell(self, message: bytes | str) -> None:
        """To every open page that may see it."""
        for viewer in self.viewers:
            if viewer.sees:
                viewer.tell(message)

    def status_text(self, sees: bool) -> str:
        """The daemon's last report with its age, so that nobody takes an old one for new; and the alarms that follow."""
        age_ms = (monotonic_ns() - self.status["written_ns"]) / 1e6 if self.status else None
        guard, status = self.guard, self.status
        if guard and guard["state"] == status.get("state"):  # guard's reason is the state's, the report's that of the latest event
            status = status | {"reason": guard["reason"]}
        on, mode = alarms.alarms(status, guard, guard is not None), alarms.mode(status)
        if not sees:  # nobody's words: a reason may name people
            shown = {key: self.status[key] for key in HEALTH if key in self.status}
            told = [(alarm.level, alarm.name.replace("_", " ")) for alarm in on]
        else:
            shown, told = self.status, [(alarm.level, alarm.words) for alarm in on]
        return json.dumps({"status": shown, "mode": mode, "age_ms": age_ms, "alarms": told})

    # --- people --------------------------------------------------------------------------------------------------------------
    async def say(self, command: dict[str, Any], token: str) -> dict[str, Any]:
        """One word to guard, and its answer."""
        do = command.get("do")
        is_stop = do == "stop"
        if do == "trigger":
            command["issued_ns"] = monotonic_ns()  # a browser has no clock of ours; what waited before it got here was refused by the page
        command["token"] = token
        if len(json.dumps(command)) > messages.MAX_COMMAND_BYTES:
            return {"ok": False, "reasons": ["too long for one word"]}
        threads, timeout_s = (self.stops, STOP_S) if is_stop else (self.words, WORD_S)
        try:
            answer = await asyncio.get_running_loop().run_in_executor(threads, messages.ask, self.door, command, timeout_s)
        except messages.NoBedError as error:
            by_hand = "; SWITCH THE STIMULATOR OFF BY HAND" if is_stop else ""
            return {"ok": False, "reasons": [f"{error}{by_hand}"]}
        return {key: answer[key] for key in SHOWN if key in answer}

    def brief(self, answer: dict[str, Any], sees: bool = False) -> dict[str, Any]:
        """What of guard's answer may go to somebody who has not paired."""
        return answer if sees or self.is_open else {key: answer[key] for key in BRIEF if key in answer}

    async def index(self, request: Request) -> Response:
        """The page."""
        return FileResponse(STATIC / "index.html")

    def too_soon(self, request: Request) -> bool:
        """Whether somebody of the network guesses at codes: five wrong ones would end that of another."""
        host, now_s = request.client.host if request.client else "", monotonic_ns() / 1e9
        if is_here(host):
            return False
        self.paired_s = {one: at_s for one, at_s in self.paired_s.items() if now_s - at_s < PAIR_S}
        if host in self.paired_s or len(self.paired_s) >= MAX_CONNECTIONS:
            return True
        self.paired_s[host] = now_s
        return False

    async def static(self, request: Request) -> Response:
        """What the page is made of, by name: no path is ever put together from what a stranger says."""
        name = request.path_params["name"]
        script = "text/javascript"
        kinds = dict.fromkeys(("page.js", "draw.js", "prescription.js", "sessions.js"), script)
        kinds |= {"page.css": "text/css", "icon.svg": "image/svg+xml"}
        if name not in kinds:
            return PlainTextResponse("not here", 404)
        return FileResponse(STATIC / name, media_type=kinds[name])

    async def health(self, request: Request) -> Response:
        """For machines: whether the bed's report is fresh."""
        fresh = bool(self.status) and monotonic_ns() - self.status["written_ns"] < messages.STATUS_STALE_NS
        state = self.status.get("state", "unknown") if fresh else "unknown"
        return JSONResponse({"ok": fresh, "state": state}, 200 if fresh else 503)

    async def metrics(self, request: Request) -> Response:
        """For Prometheus on this machine."""
        if not self.is_open and not is_here(request.client and request.client.host):
            return PlainTextResponse("for this machine alone", 403)
        age_s = (monotonic_ns() - self.status["written_ns"]) / 1e9 if self.status else None
        told = metrics.text(self.status, age_s, messages.STATUS_STALE_NS / 1e9)
        return Response(told, headers={"Content-Type": metrics.CONTENT_TYPE})

    async def stop(self, request: Request) -> Response:
        """STOP without a websocket: a plain form, a plain button."""
        return JSONResponse(self.brief(await self.say({"do": "stop"}, request.cookies.get(COOKIE, ""))))

    async def pair(self, request: Request) -> Response:
        """Give a token for the code that the bedside shows; it lives in a cookie that no script can read."""
        try:
            code = spoken(await body(request))["code"]
        except (ValueError, KeyError):
            return JSONResponse({"ok": False, "reasons": ['pairing needs {"code": "..."}']}, 400)
        if self.too_soon(request):
            return JSONResponse({"ok": False, "reasons": [f"one code each {PAIR_S:g} s from one address"]}, 429)
        answer = self.brief(await self.say({"do": "pair", "code": code}, request.cookies.get(COOKIE, "")))
        token = answer.pop("token", "")
        response = JSONResponse(answer, 200 if answer["ok"] else 403)
        if token:
            secure = request.url.scheme == "https"
            response.set_cookie(COOKIE, token, max_age=FOREVER_S, httponly=True, samesite="strict", secure=secure)
        return response

    # --- what is prescribed, and what was ------------------------------------------------------------------------------------
    async def may_read(self, request: Request) -> Response | None:
        """None = guard says that whoever asks may; else what it says instead."""
        answer = await self.say({"do": "read"}, request.cookies.get(COOKIE, ""))
        return None if answer["ok"] else JSONResponse(self.brief(answer), 403)

    async def prescription(self, request: Request) -> Response:
        """The form, and the versions before; where changes are sent along, what would come of them: nothing is changed here."""
        if refused := await self.may_read(request):
            return refused
        if self.files.settings is None:
            return JSONResponse({"ok": False, "reasons": ["this bed has no settings to show"]}, 404)
        changes = None
        if request.method == "POST":
            try:
                changes = spoken(await body(request))
            except ValueError:
                return JSONResponse({"ok": False, "reasons": ['changes are {"prescription": {...}, "trains.NAME": {...}}']}, 400)
        try:
            return JSONResponse(await run_in_threadpool(self._form, self.files.settings, changes))
        except (OSError, ValueError, OverflowError) as error:
            return JSONResponse({"ok": False, "reasons": [str(error)]}, 400)

    def _form(self, path: Path, changes: Any) -> dict[str, Any]:
        """The form of what is in force and the versions before, or of what changes would make of it."""
        try:
            text, problems = path.read_text(encoding="utf-8-sig"), []
        except UnicodeDecodeError as error:
            raise ValueError(f"{path.name} is no UTF-8: {error}") from None
        config = settings.parse(text)
        if changes is not None:
            try:
                _, config = prescribing.changed(text, changes, {}, "this")
            except settings.SettingsError as error:
                problems = list(error.problems)
        told = prescribing.form(config) | {"ok": not problems, "reasons": problems}
        if problems:
            told["trains"] = prescribing.as_written(config, changes)
        if changes is None and self.files.versions:
            told["versions"] = prescribing.versions(self.files.versions)
        return told

    async def montage(self, request: Request) -> Response:
        """Where the pads go, drawn."""
        name, side = request.path_params["name"], request.query_params.get("side", "right")
        if refused := await self.may_read(request):
            return refused
        known = await run_in_threadpool(prescribing.known_montages)
        if name not in known or side not in get_args(montages.Side):
            return PlainTextResponse("not here", 404)
        return Response(await run_in_threadpool(montages.svg, name, known[name], cast("montages.Side", side)), media_type="image/svg+xml")

    async def sessions(self, request: Request) -> Response:
        """All sessions of this bed's folder."""
        if refused := await self.may_read(request):
            return refused
        return JSONResponse(
            {"ok": True, "sessions": await run_in_threadpool(review.sessions, self.files.sessions, self.bed) if self.files.sessions else []}
        )

    async def session(self, request: Request) -> Response:
        """What happened in a session, or a part of its signals as records of columns."""
        if refused := await self.may_read(request):
            return refused
        name, query = request.path_params["name"], request.query_params
        folder = self.files.sessions
        if folder is None or name not in (row["name"] for row in await run_in_threadpool(review.sessions, folder, self.bed)):
            return JSONResponse({"ok": False, "reasons": ["there is no such session"]}, 404)
        question: dict[str, Any] = {"folder": str(folder / name)}
        if "n" in query:
            try:
                question |= {"from_s": float(query["from"]), "to_s": float(query["to"]), "n": int(query["n"])}
            except (ValueError, KeyError):
                return JSONResponse({"ok": False, "reasons": ["a part of a session is from, to (s) and n"]}, 400)
        good, answer = await self.reader.ask(**question)
        if not good:
            return JSONResponse({"ok": False, "reasons": [answer.decode()]}, 422)
        return Response(answer, media_type="application/octet-stream" if "n" in query else "application/json")

    async def live(self, web: WebSocket) -> None:
        """Traces and state out, words in."""
        if len(self.viewers) >= MAX_VIEWERS:
            await web.close(1013, f"{MAX_VIEWERS} pages are open already")
            return
        await web.accept()
        token = web.cookies.get(COOKIE, "")
        viewer = Viewer(await self.sees(token))
        if len(self.viewers) >= MAX_VIEWERS or (not viewer.sees and sum(not one.sees for one in self.viewers) >= MAX_STRANGERS):
            await web.close(1013, "too many pages are open already")
            return
        self.viewers.add(viewer)
        viewer.tell(self.status_text(viewer.sees))
        sender = asyncio.create_task(self._send(web, viewer))
        listener = asyncio.create_task(self._hear(web, viewer, token))
        asker = asyncio.create_task(self._ask_again(viewer, token))
        try:
            await asyncio.wait((sender, listener), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.viewers.discard(viewer)
            for task in (sender, listener, asker):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, WebSocketDisconnect, RuntimeError):
                    await task

    async def sees(self, token: str) -> bool:
        """Whether whoever has this token sees more than state and alarms."""
        return self.is_open or bool((await self.say({"do": "status"}, token)).get("you"))

    async def _ask_again(self, viewer: Viewer, token: str) -> None:
        """A token ends: by its age, by a leaving elsewhere, with its guard."""
        while True:
            await asyncio.sleep(AGAIN_S)
            viewer.sees = await self.sees(token)

    async def _send(self, web: WebSocket, viewer: Viewer) -> None:
        while True:
            await viewer.bell.wait()
            viewer.bell.clear()
            while viewer.waiting:
                message = viewer.waiting.popleft()
                await (web.send_bytes(message) if isinstance(message, bytes) else web.send_text(message))

    async def _hear(self, web: WebSocket, viewer: Viewer, token: str) -> None:
        under_way: set[asyncio.Task[None]] = set()

        async def answer(command: dict[str, Any], number: Any) -> None:
            told = self.brief(await self.say(command, token), viewer.sees)
            if command["do"] == "leave" and told["ok"]:
                viewer.sees = self.is_open
            viewer.tell(json.dumps({"answer": told, "nr": number}))

        while True:
            text = await web.receive_text()
            try:
                command = spoken(text)
                number = command.pop("nr", 0)
                if command.get("do") not in VERBS or not isinstance(number, int):
                    raise ValueError("no such word")
            except ValueError:
                viewer.tell(json.dumps({"answer": {"ok": False, "reasons": [f"a word is one of {', '.join(VERBS)}"]}, "nr": 0}))
                continue
            if len(under_way) >= 8 and command["do"] != "stop":
                viewer.tell(json.dumps({"answer": {"ok": False, "reasons": ["too much at once"]}, "nr": number}))
                continue
            # a stop overtakes whatever still waits for its answer
            task = asyncio.create_task(answer(command, number))
            under_way.add(task)
            task.add_done_callback(under_way.discard)


def spoken(text: str | bytes) -> dict[str, Any]:
    """A JSON object that was sent. Raises ValueError: it is none, is nested too deep, or has half characters that no file can hold."""
    data = text.encode() if isinstance(text, str) else text
    said = json.loads(data) if data.count(b"[") + data.count(b"{") <= MAX_BRACKETS else None
    if not isinstance(said, dict):
        raise ValueError("a word is a JSON object")
    json.dumps(said, ensure_ascii=False).encode()
    return said


async def body(request: Request) -> bytes:
    """What was sent, if it is short. Raises ValueError."""
    data = b""
    try:
        async with asyncio.timeout(HEADER_S):
            async for part in request.stream():
                data += part
                if len(data) > MAX_BYTES:
                    raise ValueError("too long")
    except TimeoutError:
        raise ValueError("too slow") from None
    return data


class OursAlone:
    """Refuse whatever was not asked for by our own page at our own address (G3: cross-origin requests, rebound names)."""

    def __init__(self, app: ASGIApp, origins: frozenset[str]) -> None:
        self.app, self.origins = app, origins
        self.hosts = frozenset(urlsplit(origin).netloc for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Look at Host always, at Origin where something could be changed or is kept open."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        named = [value.decode("latin-1") for key, value in scope["headers"] if key == b"host"]
        origins = [value.decode("latin-1") for key, value in scope["headers"] if key == b"origin"]
        changes = scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD")
        if len(named) == 1 and named[0] in self.hosts and (not changes or (len(origins) == 1 and origins[0] in self.origins)):
            await self.app(scope, receive, self._with_headers(send))
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        await PlainTextResponse("not from here", 403)(scope, receive, send)

    @staticmethod
    def _with_headers(send: Send) -> Send:
        async def more(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *((k.lower().encode(), v.encode()) for k, v in HEADERS.items())]
            await send(message)

        return more


def application(page: Page) -> ASGIApp:
    """All addresses of the page."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> Any:
        tasks = [asyncio.create_task(page.pump()), asyncio.create_task(page.ask_guard()), asyncio.create_task(watch(page.connections))]
        yield
        page.reader.end()
        for task in tasks:
            task.cancel()

    routes = [
        Route("/", page.index),
        Route("/health", page.health),
        Route("/metrics", page.metrics),
        Route("/stop", page.stop, methods=["POST"]),
        Route("/pair", page.pair, methods=["POST"]),
        Route("/prescription", page.prescription, methods=["GET", "POST"]),
        Route("/montages/{name}.svg", page.montage),
        Route("/sessions", page.sessions),
        Route("/sessions/{name}", page.session),
        Route("/{name}", page.static),
        WebSocketRoute("/live", page.live),
    ]
    return OursAlone(Starlette(routes=routes, lifespan=lifespan), page.origins)


def main() -> int:
    """Serve until the daemon ends."""
    parser = argparse.ArgumentParser(prog="controller.web.server")
    parser.add_argument("--feed", type=int, required=True)
    parser.add_argument("--door", required=True)
    parser.add_argument("--port", type=int, required=True)
    for name in Files._fields:
        parser.add_argument(f"--{name}", type=Path)
    for name in ("interface", "host-name", "certificate", "key"):
        parser.add_argument(f"--{name}", default="")
    args = parser.parse_args()
    realtime.die_with_parent()
    os.nice(5)  # whatever is done here can wait for the recording
    tls: dict[str, Any] = {}
    hosts = [network.LOOPBACK]
    try:
        if args.interface:
            hosts.append(str(network.of(args.interface).ip))
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(args.certificate, args.key)
            tls = {"ssl_certfile": args.certificate, "ssl_keyfile": args.key}
    except (OSError, ssl.SSLError) as error:  # loopback is served all the same: who is at the bed must see it
        hosts = [network.LOOPBACK]
        print(f"page: not on {args.interface}, on loopback alone: {error} ({args.certificate}, {args.key})", file=sys.stderr, flush=True)
    try:
        listening = [socket.create_server((host, args.port), backlog=MAX_CONNECTIONS) for host in dict.fromkeys(hosts)]
    except OSError as error:
        print(f"page: {' or '.join(f'{host}:{args.port}' for host in hosts)}: {error.strerror}", file=sys.stderr, flush=True)
        return 2
    for one in listening:  # and so whatever it accepts: the kernel would take megabytes for somebody who never reads
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
    names = [*hosts, "localhost", *([args.host_name] if args.host_name else [])]
    origins = frozenset(f"{'https' if tls else 'http'}://{name}:{args.port}" for name in names)
    files = Files(args.settings, args.versions, args.sessions)
    # a stranger who begins a handshake and says no more: asyncio would wait for a minute, and uvicorn cannot tell it
    asyncio.constants.SSL_HANDSHAKE_TIMEOUT = HEADER_S  # type: ignore[attr-defined]
    asyncio.constants.SSL_SHUTDOWN_TIMEOUT = HEADER_S  # type: ignore[attr-defined]
    page = Page(RingReader(args.feed), args.door, origins, files, is_open=not tls)
    config = uvicorn.Config(
        application(page),
        http=Impatient,
        ws=Sparing,
        backlog=MAX_ACCEPTED,
        ws_max_size=MAX_BYTES,
        ws_ping_interval=5.0,
        ws_ping_timeout=5.0,
        limit_concurrency=4 * MAX_CONNECTIONS,  # more than there are connections: a STOP is not what is refused
        timeout_keep_alive=5,
        log_level="error",
        access_log=False,
        server_header=False,
        **tls,
    )
    server = uvicorn.Server(config)
    page.connections = server.server_state.connections
    server.run(sockets=listening)
    return 0 if server.started else 2


if __name__ == "__main__":
    sys.exit(main())
