"""The page's process before a real guard and the virtual stimulator: what it lets in, what it bears, and that its STOP stops."""

import asyncio
import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import time
from types import SimpleNamespace

import httpx
import pytest
import websockets
from websockets.sync.client import connect

from controller import daemon, messages, recording
from controller.web import connections, server
from controller.web.feed import Feed
from tests.rig import ROOT, GuardRig


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def web(tmp_path):
    rig = GuardRig(tmp_path, changes={"page": True})
    feed, port = Feed(rig.config), free_port()
    (tmp_path / "settings.toml").write_text(rig.config.to_toml())
    (tmp_path / "sessions").mkdir()
    files = [word for name in ("settings", "sessions", "versions") for word in (f"--{name}", str(tmp_path / name))]
    files[1] = str(tmp_path / "settings.toml")
    process = daemon.PageProcess(rig.bed, port, feed, *files)
    web = SimpleNamespace(rig=rig, feed=feed, port=port, process=process.process, url=f"http://127.0.0.1:{port}", page=process)
    end = time.monotonic() + 15.0
    while True:
        with contextlib.suppress(httpx.TransportError):
            httpx.get(f"{web.url}/health")
            break
        assert time.monotonic() < end and process.process.poll() is None
        time.sleep(0.05)
    yield web
    process.close()
    feed.ring.close()
    os.close(feed.fd)
    rig.close()


def report(web, **more):
    web.feed.status({"written_ns": time.monotonic_ns(), "state": "IDLE", "reason": "test", "automatic": False, **more})


def live(web, token="", **more):
    headers = {"Cookie": f"{server.COOKIE}={token}"} if token else {}
    return connect(f"ws://127.0.0.1:{web.port}/live", origin=web.url, additional_headers=headers, **more)


def say(socket, **command):
    socket.send(json.dumps(command | {"nr": 7}))
    while True:
        text = socket.recv(5.0)
        if isinstance(text, str) and (message := json.loads(text)).get("nr") == 7:
            return message["answer"]


def pair(web, role, name="Ada"):
    code = web.rig.ask("invite", role=role, name=name)["code"]
    answer = httpx.post(f"{web.url}/pair", json={"code": code}, headers={"Origin": web.url})
    assert answer.json() | {"ok": True, "role": role, "name": name} == answer.json()
    assert "token" not in answer.json()
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "samesite=strict" in cookie.lower()
    return answer.cookies[server.COOKIE]


@pytest.mark.safety("C1", "G1")
def test_stop_by_websocket_and_by_form_without_a_token_ends_a_train(web):
    for how in ("websocket", "form"):
        web.rig.arm()
        before = len(web.rig.twin.pulses())
        assert web.rig.trigger()["ok"]
        time.sleep(0.1)
        asked_ns = time.monotonic_ns()
        if how == "websocket":
            with live(web) as socket:
                assert say(socket, do="stop")["ok"]
        else:
            assert httpx.post(f"{web.url}/stop", headers={"Origin": web.url}).json()["ok"]
        time.sleep(0.3)
        pulses = web.rig.twin.pulses()[before:]
        assert pulses
        assert pulses[-1]["pulse_ns"] < asked_ns + 250_000_000  # the promise, 100 ms, is measured by bench.page_stop
        assert web.rig.ask("status")["state"] == "IDLE"
        time.sleep(3.2)  # the demo's rest between two events


@pytest.mark.safety("G3")
def test_only_our_own_page_at_our_own_address_gets_in(web):
    strange_hosts = (
        "evil.example",
        f"evil.example:{web.port}",
        "127.0.0.1",
        f"127.0.0.1:{web.port + 1}",
        f"127.0.0.1.evil.example:{web.port}",
        "",
    )
    for host in strange_hosts:
        for path in ("/", "/health", "/page.js"):
            assert httpx.get(web.url + path, headers={"Host": host}).status_code in (400, 403), host
    assert httpx.get(web.url).status_code == 200
    assert httpx.get(f"http://localhost:{web.port}/").status_code == 200
    strange = (
        "http://evil.example",
        f"https://127.0.0.1:{web.port}",
        "http://127.0.0.1",
        "null",
        f"http://localhost:{web.port}.evil.example",
        "",
    )
    for origin in (None, *strange):
        headers = {} if origin is None else {"Origin": origin}
        for path in ("/stop", "/pair"):
            assert httpx.post(web.url + path, headers=headers, json={"code": "1"}).status_code == 403, origin
        with pytest.raises(websockets.exceptions.InvalidStatus):
            connect(f"ws://127.0.0.1:{web.port}/live", origin=origin)
    with pytest.raises(websockets.exceptions.InvalidStatus):
        connect(f"ws://127.0.0.1:{web.port}/live", origin=web.url, additional_headers={"Host": "evil.example"})


@pytest.mark.safety("G3")
def test_nothing_changes_by_reading(web):
    web.rig.arm()
    for path in ("/stop", "/pair", "/stop?do=stop", "/live", "/..%2f..%2fetc%2fpasswd", "/server.py", "/index.html", "//etc/passwd"):
        assert httpx.get(web.url + path).status_code in (404, 405), path
    assert web.rig.ask("status")["state"] == "ARMED"
    answer = httpx.get(web.url)
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.safety("G2")
def test_the_cookie_says_who_it_is_and_guard_says_what_they_may(web):
    with live(web) as socket:
        for do in ("trigger", "offer", "arm", "disarm", "clear", "take", "invite", "leave"):
            answer = say(socket, do=do, id=1, token=pair(web, "clinician"))  # a token in the word itself counts for nothing
            assert not answer["ok"] and "[G2]" in answer["reasons"][0], do
    with live(web, pair(web, "clinician")) as socket:
        assert say(socket, do="status")["you"] == {"name": "Ada", "role": "clinician"}
        offer = say(socket, do="offer")
        named = {"offer": offer["offer"], "prescription_id": offer["prescription_id"]}
        assert not say(socket, do="arm", **named)["ok"]  # electrodes not looked at
        assert say(socket, do="arm", **named, electrodes_checked=True, automatic=False)["state"] == "ARMED"
    with live(web, pair(web, "patient", "Ben")) as socket:
        assert not say(socket, do="disarm")["ok"]
        assert say(socket, do="trigger", id=5)["ok"]
        assert not say(socket, do="trigger", id=5)["ok"]


@pytest.mark.safety("G5")
def test_what_is_no_word_is_answered_or_closed_and_the_page_goes_on(web):
    with live(web) as socket:
        deep = ("{" * 1000, "[" * 3900, '{"do": "stop", "nr": ' + "[" * 900 + "]" * 900 + "}")
        for text in ("", "{", "[]", "null", "7", '{"do": 5}', '{"do": "eval"}', '{"do": "stop", "nr": "x"}', '{"do": "\\ud800"}', *deep):
            socket.send(text)
        assert say(socket, do="status")["state"] == "IDLE"
    with live(web, max_size=None) as socket, contextlib.suppress(websockets.exceptions.ConnectionClosed):
        socket.send("x" * (16 << 20))
        while True:
            socket.recv(5.0)
    assert httpx.post(f"{web.url}/pair", content=b"x" * (1 << 20), headers={"Origin": web.url}).status_code == 400
    for said in (b"", b"[]", b"{}", b'{"code": 5}', b'{"code": null}', b"\xff\xfe", b"[" * 4000, b'{"code": "\\ud800"}', b'"code"', b"1"):
        assert httpx.post(f"{web.url}/pair", content=said, headers={"Origin": web.url}).status_code in (400, 403)
    assert httpx.get(f"{web.url}/").status_code == 200


@pytest.mark.safety("G5", "C1")
def test_hundreds_of_half_open_connections_do_not_keep_a_stop_out(web):
    crowd = []
    try:
        for _ in range(400):
            s = socket.socket()
            s.settimeout(1.0)
            with contextlib.suppress(OSError):
                s.connect(("127.0.0.1", web.port))
                s.send(b"GET / HTTP/1.1\r\nHost: x")
            crowd.append(s)
        web.rig.arm()
        assert web.rig.trigger()["ok"]
        assert web.rig.ask("stop")["ok"]  # the machine's own way is not the page's
        end = time.monotonic() + 12.0
        while True:
            with contextlib.suppress(httpx.TransportError):
                answer = httpx.post(f"{web.url}/stop", headers={"Origin": web.url})
                if answer.status_code == 200 and answer.json()["ok"]:
                    break
            assert time.monotonic() < end, "the crowd keeps everybody out"
            time.sleep(0.1)
    finally:
        for s in crowd:
            s.close()
    assert web.process.poll() is None


@pytest.mark.safety("G5", "C1")
def test_a_crowd_that_never_reads_keeps_no_stop_out_and_is_closed(web):
    crowd = []
    try:
        for _ in range(60):
            s = socket.socket()
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            s.settimeout(2.0)
            with contextlib.suppress(OSError):
                s.connect(("127.0.0.1", web.port))
                s.setblocking(False)
                s.send(f"GET /page.js HTTP/1.1\r\nHost: 127.0.0.1:{web.port}\r\n\r\n".encode() * 400)
            crowd.append(s)
        time.sleep(1.0)
        web.rig.arm()
        assert httpx.post(f"{web.url}/stop", headers={"Origin": web.url}).json()["ok"]
        assert web.rig.ask("status")["state"] == "IDLE"
        with live(web) as one:
            assert say(one, do="stop")["ok"]
        end = time.monotonic() + 4 * connections.UNREAD_S
        while crowd:  # and then nobody of it is left
            assert time.monotonic() < end
            time.sleep(0.2)
            for s in list(crowd):
                if s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    s.close()
                    crowd.remove(s)
    finally:
        for s in crowd:
            s.close()


@pytest.mark.safety("G5", "C1")
@pytest.mark.parametrize("word", ["x", '{"do":"status"}'])
def test_a_flood_of_words_keeps_no_stop_out_while_it_lasts_or_after(web, word, capfd):
    report(web)
    crowd = subprocess.Popen([sys.executable, "-m", "bench.page_crowd", str(web.port), word, "2.0"], cwd=ROOT)
    try:
        time.sleep(0.7)
        for _ in range(3):  # two while it lasts, one after it
            web.rig.arm()
            assert httpx.post(f"{web.url}/stop", headers={"Origin": web.url}, timeout=3.0).json()["ok"]
            assert web.rig.ask("status")["state"] == "IDLE"
            report(web)
            time.sleep(0.7)
    finally:
        crowd.kill()
        crowd.wait()
    assert "socket.send() raised" not in capfd.readouterr().err


@pytest.mark.safety("G5")
@pytest.mark.parametrize("word", ["x", '{"do": "status"}', ""])
def test_a_websocket_that_says_more_than_a_person_is_closed_with_1008(web, word):
    with live(web, max_queue=None) as talker, pytest.raises(websockets.exceptions.ConnectionClosed) as closed:
        for _ in range(2 * connections.MAX_FRAMES):
            talker.send(word)
        while True:
            talker.recv(5.0)
    assert closed.value.rcvd.code == 1008
    with live(web) as other:
        assert say(other, do="status")["state"] == "IDLE"


def test_nothing_is_sent_to_websockets_that_are_gone(web, capfd):
    """A line on standard error for each message would fill a disk."""
    linger = struct.pack("ii", 1, 0)
    for _ in range(3):
        with contextlib.ExitStack() as pages:
            gone = [pages.enter_context(live(web, max_queue=1, close_timeout=0.1)) for _ in range(6)]
            for _ in range(10):
                for _ in range(20):
                    report(web, junk="x" * 5000)
                time.sleep(0.02)
            for one in gone:
                one.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                one.socket.shutdown(socket.SHUT_RD)
                one.socket.close()
            for _ in range(5):
                report(web, junk="x" * 5000)
                time.sleep(0.05)
    assert "socket.send() raised" not in capfd.readouterr().err


@pytest.mark.safety("G5")
def test_a_page_that_does_not_read_costs_the_others_nothing(web):
    async def both():
        url = f"ws://127.0.0.1:{web.port}/live"
        async with websockets.connect(url, origin=web.url, max_queue=1), websockets.connect(url, origin=web.url) as reader:
            end, heard = time.monotonic() + 3.0, 0
            while time.monotonic() < end:
                for _ in range(20):
                    report(web, junk="x" * 20_000)
                await asyncio.sleep(0.02)
                with contextlib.suppress(TimeoutError):
                    heard += len(await asyncio.wait_for(reader.recv(), 0.5))
            return heard

    assert asyncio.run(both()) > 100_000
    assert httpx.get(f"{web.url}/").status_code == 200


def test_health_is_unknown_when_the_daemon_says_nothing(web):
    assert httpx.get(f"{web.url}/health").json() == {"ok": False, "state": "unknown"}
    report(web)
    end = time.monotonic() + 0.9
    while not (answer := httpx.get(f"{web.url}/health")).json()["ok"]:
        assert time.monotonic() < end
    assert (answer.status_code, answer.json()["state"]) == (200, "IDLE")
    time.sleep(1.1)
    assert httpx.get(f"{web.url}/health").status_code == 503


def test_traces_are_least_and_greatest_of_each_hundredth(web):
    import numpy as np

    from controller.web import feed

    columns = feed.Columns(feed.EMG, 2)
    rng = np.random.default_rng(0)
    t_s = 1000.0 + np.arange(4000) / 2000.0
    x = rng.normal(size=(4000, 2))
    got = {}
    for part in np.split(np.arange(4000), np.sort(rng.choice(np.arange(1, 4000), 300, replace=False))):
        record = columns.take(t_s[part], x[part])
        if record:
            what, first, n, width = feed.HEAD.unpack_from(record)
            assert (what, width) == (feed.EMG, 2)
            values = np.frombuffer(record, np.float32, offset=feed.HEAD.size).reshape(n, 2, 2)
            got |= {first + i: values[i] for i in range(n)}
    index = np.floor(t_s * 100).astype(int)
    assert set(got) == set(index) - {index[-1]}
    for at, values in got.items():
        assert np.array_equal(values[:, 0], x[index == at].min(0).astype(np.float32))
        assert np.array_equal(values[:, 1], x[index == at].max(0).astype(np.float32))


def test_a_port_that_is_taken_is_said_and_not_fatal(web, capfd):
    second = daemon.PageProcess(web.rig.bed, web.port, web.feed)
    assert second.process.wait(10) == 2
    assert f"127.0.0.1:{web.port}" in capfd.readouterr().err
    assert messages.ask(web.rig.bed, {"do": "status"})["ok"]


NAME, TORN = "2026-01-01T00-00-00Z_test", "2026-01-01T00-00-01Z_test"


# --- what is prescribed, and sessions of before -----------------------------------------------------------------------------------------
def get(web, path, token="", **more):
    headers = {"Cookie": f"{server.COOKIE}={token}"} if token else {}
    return httpx.get(web.url + path, headers=headers, timeout=30.0, **more)


def check(web, changes, token):
    headers = {"Cookie": f"{server.COOKIE}={token}", "Origin": web.url}
    return httpx.post(f"{web.url}/prescription", headers=headers, content=changes if isinstance(changes, bytes) else json.dumps(changes))


@pytest.mark.safety("G1", "G2")
def test_prescription_and_sessions_are_for_viewers_and_clinicians(web):
    for role in ("", "patient", "admin", "viewer", "clinician"):
        token = pair(web, role) if role else ""
        wanted = 200 if role in ("viewer", "clinician") else 403
        for path in ("/prescription", "/sessions"):
            answer = get(web, path, token)
            assert answer.status_code == wanted, (role, path)
            assert (wanted == 200) is answer.json()["ok"]
        assert get(web, "/sessions/x", token).status_code == (404 if wanted == 200 else 403)
        assert get(web, "/sessions/x", token[::-1]).status_code == 403
        assert check(web, {}, token).status_code == wanted


def test_the_form_says_what_would_follow_and_changes_nothing(web, tmp_path):
    token, before = pair(web, "clinician"), (tmp_path / "settings.toml").read_text()
    form = get(web, "/prescription", token).json()
    assert form["version"] == 1 and form["versions"] == []
    assert check(web, {"prescription": {"max_current_ma": 18}}, token).json()["reasons"]  # the train has 20 mA
    both = {"prescription": {"max_current_ma": 18}, "trains.peroneal": {"current_ma": 18}}
    told = check(web, both, token).json()
    assert told["ok"] and told["trains"]["peroneal"]["figures"][0]["value"] == 18.0
    half = b'{"prescription": {"montage": "\\ud800"}}'
    wrongs = (b"", b"{", b"[" * 4000, b"[" * 5000, b"x" * 5000, b"[1]", b'"x"', half, b'{"prescription": {"max_current_ma": NaN}}', b"null")
    for wrong in wrongs:
        answer = check(web, wrong, token)
        assert answer.status_code in (200, 400) and not answer.json()["ok"], wrong
    assert (tmp_path / "settings.toml").read_text() == before
    assert web.process.poll() is None


def test_settings_and_versions_that_are_no_text_are_named(web, tmp_path):
    token, good = pair(web, "viewer"), (tmp_path / "settings.toml").read_bytes()
    (tmp_path / "versions").mkdir()
    (tmp_path / "versions" / "000001.toml").write_bytes(b"\xff\xfe")
    (row,) = get(web, "/prescription", token).json()["versions"]
    assert "UTF-8" in row["changes"][0]
    (tmp_path / "settings.toml").write_bytes(good + b"# \xff")
    answer = get(web, "/prescription", token)
    assert answer.status_code == 400 and "settings.toml is no UTF-8" in answer.json()["reasons"][0]


@pytest.mark.safety("G3", "G5")
def test_a_session_is_read_by_its_name_alone(web, tmp_path):
    token, folder = pair(web, "viewer"), tmp_path / "sessions" / NAME
    folder.mkdir()
    (folder / "settings.toml").write_text(web.rig.config.to_toml())
    recorder = recording.Recorder(folder, web.rig.config)
    recorder.note(100.0, {"what": "session"})
    recorder.note(107.0, {"what": "end", "why": "enough"})
    recorder.close()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "signals.xdf").write_bytes(b"XDF:")
    assert [row["name"] for row in get(web, "/sessions", token).json()["sessions"]] == [NAME]
    told = get(web, f"/sessions/{NAME}", token).json()
    assert (told["length_s"], told["end"]) == (7.0, "enough")
    assert get(web, f"/sessions/{NAME}?from=0&to=7&n=10", token).status_code == 200
    for wrong in ("from=0&to=7&n=x", "from=7&to=0&n=5", "from=nan&to=7&n=5", "n=5", "from=0&to=7&n=99999999"):
        assert get(web, f"/sessions/{NAME}?{wrong}", token).status_code in (400, 422), wrong
    for name in ("..%2Fsecret", "..", "../secret", "%2e%2e%2fsecret", f"{NAME}%2F..%2F..%2Fsecret", "%00", f"{NAME}/../../secret"):
        assert get(web, f"/sessions/{name}", token).status_code in (404, 200) and b"XDF" not in get(web, f"/sessions/{name}", token).content
        assert "length_s" not in get(web, f"/sessions/{name}", token).text
    (tmp_path / "sessions" / TORN).mkdir()
    (tmp_path / "sessions" / TORN / "signals.xdf").write_bytes(b"XDF:")
    answer = get(web, f"/sessions/{TORN}", token)
    assert answer.status_code == 422 and "settings.toml is missing" in answer.json()["reasons"][0]


def test_montages_are_drawn_and_nothing_else(web):
    token = pair(web, "viewer")
    assert get(web, "/montages/calf.svg").status_code == 403
    answer = get(web, "/montages/calf.svg?side=left", token)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("image/svg+xml") and "left side" in answer.text
    for path in ("/montages/knee.svg", "/montages/calf.svg?side=up", "/montages/..%2Fpage.svg", "/montages/calf"):
        assert get(web, path, token).status_code == 404
