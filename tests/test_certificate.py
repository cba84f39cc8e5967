"""`calmloop certificate` and the page beyond loopback: judged by a TLS client that trusts the made authority and nothing else."""

import contextlib
import json
import shutil
import ssl
import time
from types import SimpleNamespace

import httpx
import pytest
from websockets.sync.client import connect

from controller import certificate, daemon, doctor, install, network, settings
from controller.__main__ import main
from controller.web import server
from controller.web.feed import Feed
from tests.bedside import free_port
from tests.rig import ROOT, GuardRig

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="there is no openssl on this machine")
HOST = "bed-3.ward.example"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificates")
    digest = certificate.make(folder, network.LOOPBACK, HOST)
    return SimpleNamespace(
        folder=folder, digest=digest, authority=folder / "authority.pem", page=folder / "page.pem", key=folder / "page.key"
    )


def test_a_second_one_is_not_made_over_the_first(made):
    assert made.key.stat().st_mode & 0o077 == 0
    with pytest.raises(certificate.CertificateError, match="there already"):
        certificate.make(made.folder, network.LOOPBACK, HOST)


def test_nothing_that_could_sign_another_is_left(made):
    keys = [path.name for path in made.folder.iterdir() if "PRIVATE KEY" in path.read_text()]
    assert keys == ["page.key"]


def test_an_authority_vouches_for_its_bed_alone(made, tmp_path):
    """A certificate for another name that this authority had signed would not be believed: OpenSSL checks the name constraints."""
    text = (made.authority).read_text()
    said = certificate.subprocess.run(
        ["openssl", "x509", "-noout", "-ext", "nameConstraints,basicConstraints"], input=text, capture_output=True, text=True, check=True
    ).stdout
    assert "critical" in said and "pathlen:0" in said
    for name in (f"DNS:{HOST}", "DNS:localhost", "IP:127.0.0.1/255.255.255.255"):
        assert name in said


@pytest.mark.parametrize(("interface", "words"), [("nosuch0", "No such device"), ("x" * 300, "No such device")])
def test_an_interface_that_is_not_there_is_named(interface, words, tmp_path, capsys):
    assert main(["certificate", interface, "--folder", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err


def test_what_it_prints_goes_into_the_settings(tmp_path, capsys):
    folder = tmp_path / "certificates"
    assert main(["certificate", "lo", "--folder", str(folder), "--json"]) == 0
    page = json.loads(capsys.readouterr().out)["page"]
    lines = "".join(f'{key} = "{value}"\n' for key, value in page.items())
    text = (ROOT / "config" / "bedside.toml").read_text() + lines
    assert settings.parse(text).page.interface == "lo"
    assert main(["certificate", "lo", "--folder", str(folder)]) == 1


@pytest.mark.safety("G1")
@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('interface = "eth0"', "certificate is missing"),
        ('interface = "eth0"\ncertificate = "a.pem"', "key is missing"),
        ('certificate = "a.pem"', "means nothing without interface"),
        ('host_name = "bed"', "means nothing without interface"),
        ('interface = "eth 0"', "an interface's name"),
        ('interface = "eth0"\ncertificate = "a"\nkey = "b"\nhost_name = "Bed 3"', "a host's name in small letters"),
    ],
)
def test_there_is_no_page_beyond_loopback_by_accident(lines, words):
    with pytest.raises(settings.SettingsError, match=words):
        settings.parse((ROOT / "config" / "bedside.toml").read_text() + lines + "\n")


@pytest.mark.safety("G1")
def test_no_interface_without_a_port():
    text = (ROOT / "config" / "bedside.toml").read_text().replace("port = 8137 ", "port = 0 ")
    with pytest.raises(settings.SettingsError, match="give a port"):
        settings.parse(text + 'interface = "eth0"\ncertificate = "a"\nkey = "b"\n')


# --- the page over TLS ------------------------------------------------------------------------------------------------------------------
@pytest.fixture
def web(made, tmp_path):
    """On the interface "lo"."""
    rig = GuardRig(tmp_path, changes={"page": True})
    feed, port = Feed(rig.config), free_port()
    more = ("--interface", "lo", "--host-name", HOST, "--certificate", str(made.page), "--key", str(made.key))
    process = daemon.PageProcess(rig.bed, port, feed, *more)
    trust = ssl.create_default_context(cafile=str(made.authority))
    web = SimpleNamespace(rig=rig, feed=feed, port=port, url=f"https://localhost:{port}", trust=trust)
    end = time.monotonic() + 15.0
    while True:
        with contextlib.suppress(httpx.TransportError):
            httpx.get(f"{web.url}/health", verify=trust)
            break
        assert time.monotonic() < end and process.process.poll() is None
        time.sleep(0.05)
    yield web
    process.close()
    feed.close()
    rig.close()


def report(web):
    web.feed.status(
        {"written_ns": time.monotonic_ns(), "state": "IDLE", "reason": "test", "automatic": False, "dose": {"session": {"pulses": 7}}}
    )


def statuses(socket, web):
    """Reports until one is fresh, as this page is told them."""
    while True:
        report(web)
        message = socket.recv(5.0)
        if isinstance(message, str) and (told := json.loads(message)).get("age_ms") is not None:
            return told


@pytest.mark.safety("G1")
def test_a_browser_that_trusts_the_authority_gets_in_and_none_else_and_nothing_goes_in_the_clear(web):
    assert httpx.get(web.url, verify=web.trust).status_code == 200
    with pytest.raises(httpx.ConnectError, match=r"(?i)certificate"):
        httpx.get(web.url)
    with pytest.raises(httpx.TransportError):
        httpx.get(web.url.replace("https", "http"), timeout=2.0)


@pytest.mark.safety("G1")
def test_over_a_network_who_has_not_paired_sees_the_state_and_stops_and_no_more(web):
    with connect(web.url.replace("https", "wss") + "/live", origin=web.url, ssl=web.trust) as socket:
        told = statuses(socket, web)
        assert set(told["status"]) == {"state", "automatic", "written_ns"}
        web.feed.mark(time.monotonic(), "pulse")
        web.rig.arm()
        assert web.rig.trigger()["ok"]
        socket.send(json.dumps({"do": "stop", "nr": 1}))
        seen = [socket.recv(5.0)]
        while '"answer"' not in str(seen[-1]):
            seen.append(socket.recv(5.0))
        assert all(isinstance(message, str) and '"mark"' not in message and '"guard"' not in message for message in seen)
        answer = json.loads(seen[-1])["answer"]
        assert answer["ok"] and set(answer) <= {"ok", "reasons", "state", "stop_confirmed"}
    code = web.rig.ask("invite", role="viewer", name="Vic")["code"]
    paired = httpx.post(f"{web.url}/pair", json={"code": code}, headers={"Origin": web.url}, verify=web.trust)
    assert paired.status_code == 200 and "secure" in paired.headers["set-cookie"].lower()
    cookie = {"Cookie": f"{server.COOKIE}={paired.cookies[server.COOKIE]}"}
    with connect(web.url.replace("https", "wss") + "/live", origin=web.url, ssl=web.trust, additional_headers=cookie) as socket:
        assert statuses(socket, web)["status"]["dose"] == {"session": {"pulses": 7}}
        socket.send(json.dumps({"do": "leave", "nr": 2}))
        while '"answer"' not in str(socket.recv(5.0)):
            pass
        end = time.monotonic() + 5.0
        while "dose" in statuses(socket, web)["status"]:
            assert time.monotonic() < end, "who has left still sees all"


@pytest.mark.safety("G1")
def test_no_answer_tells_a_stranger_of_the_network_who_is_there(web):
    secret = "Dr Secret"
    code = web.rig.ask("invite", role="clinician", name=secret)["code"]
    said = httpx.post(f"{web.url}/pair", json={"code": code}, headers={"Origin": web.url}, verify=web.trust)
    assert said.status_code == 200 and set(said.json()) == {"ok", "reasons", "state", "stop_confirmed", "name", "role"}
    ours = {"Origin": web.url}
    for answer in (
        *(httpx.get(web.url + path, verify=web.trust) for path in ("/sessions", "/sessions/x", "/prescription", "/montages/calf.svg")),
        httpx.post(f"{web.url}/stop", headers=ours, verify=web.trust),
        httpx.post(f"{web.url}/prescription", headers=ours, json={}, verify=web.trust),
        httpx.post(f"{web.url}/pair", headers=ours, json={"code": "12345678"}, verify=web.trust),
    ):
        assert secret not in answer.text and "dose" not in answer.text and "people" not in answer.text, answer.url


@pytest.mark.safety("G3")
def test_the_same_address_without_tls_is_another_origin(web):
    for origin in (web.url.replace("https", "http"), f"https://{HOST}.evil.example:{web.port}"):
        assert httpx.post(f"{web.url}/stop", headers={"Origin": origin}, verify=web.trust).status_code == 403
    assert httpx.post(f"{web.url}/stop", headers={"Origin": f"https://{HOST}:{web.port}"}, verify=web.trust).status_code == 200


@pytest.mark.safety("G1")
def test_a_certificate_that_cannot_be_used_leaves_the_page_on_loopback_and_says_so(tmp_path, capfd):
    rig = GuardRig(tmp_path, changes={"page": True})
    feed, port = Feed(rig.config), free_port()
    more = ("--interface", "lo", "--certificate", str(tmp_path / "none.pem"), "--key", str(tmp_path / "none.key"))
    process = daemon.PageProcess(rig.bed, port, feed, *more)
    try:
        end = time.monotonic() + 15.0
        while True:
            with contextlib.suppress(httpx.TransportError):
                assert httpx.get(f"http://127.0.0.1:{port}/health").status_code in (200, 503)
                break
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        process.close()
        feed.close()
        rig.close()
    assert "on loopback alone" in capfd.readouterr().err


def test_doctor_says_how_long_a_certificate_is_good_and_what_is_not_there(made):
    def rows(**changes):
        found = []
        page = settings.Page(port=8137, interface="lo", certificate=str(made.page), key=str(made.key)).model_copy(update=changes)
        doctor._page(lambda what, ok, fact, mend="", needed=True: found.append((ok, fact)), page)
        return found

    assert rows() == [(True, "127.0.0.1"), (True, "good for 396 days")] or rows()[1][1] == "good for 397 days"
    assert [ok for ok, _ in rows(interface="nosuch0")] == [False, True]
    assert [ok for ok, _ in rows(certificate=str(made.authority))] == [True, False]


def test_the_service_lets_the_interfaces_network_in(made):
    text = (ROOT / "config" / "bedside.toml").read_text()
    text += f'interface = "lo"\ncertificate = "{made.page}"\nkey = "{made.key}"\n'
    unit = install.system_unit(settings.parse(text), made.folder / "bed.toml", "bed", "calmloop")
    assert "IPAddressAllow=localhost 127.0.0.0/8\n" in unit
    with pytest.raises(install.InstallError, match="nosuch0"):
        install.system_unit(settings.parse(text.replace('"lo"', '"nosuch0"')), made.folder / "bed.toml", "bed", "calmloop")
