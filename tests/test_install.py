"""The files of a bed's service, judged by systemd's own analysis and by a reader of units written here."""

import json
import os
import shutil
import stat
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from controller import install, settings
from controller.__main__ import main

ROOT = Path(__file__).resolve().parents[1]
BEDSIDE = ROOT / "config" / "bedside.toml"
needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not here")
MAX_EXPOSURE = 2.0


def options(text):
    """(section, key) to all its values, in order."""
    found, section = defaultdict(list), ""
    for line in text.splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and line[0] not in "#;":
            key, value = line.split("=", 1)
            found[section, key].append(value)
    return found


def analyse(*words, folder):
    env = os.environ | {"XDG_RUNTIME_DIR": str(folder), "SYSTEMD_COLORS": "0"}
    return subprocess.run(["systemd-analyze", *map(str, words)], capture_output=True, text=True, env=env, check=False)


def installed(folder, *more, scope="--system", config=BEDSIDE):
    return main(["install", scope, str(config), "--root", str(folder), "--bed", "ward-3", *more])


def unit_of(folder):
    (unit,) = folder.rglob("*.service")
    return unit


@pytest.fixture(autouse=True)
def at_home(tmp_path, monkeypatch):
    """A home of the test's own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))


@needs_systemd
def test_systemd_finds_nothing_wrong_and_little_exposed(tmp_path):
    assert installed(tmp_path) == 0
    unit = unit_of(tmp_path)
    verified = analyse("verify", unit, folder=tmp_path)
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
    rated = ("security", "--offline=true", f"--threshold={MAX_EXPOSURE * 10:.0f}")
    assert analyse(*rated, unit, folder=tmp_path).returncode == 0
    bare = tmp_path / "bare.service"
    bare.write_text("\n".join(line for line in unit.read_text().splitlines() if not line.startswith(("Protect", "Capab", "SystemCall"))))
    assert analyse(*rated, bare, folder=tmp_path).returncode == 1  # the judge can say no
    bare.write_text(unit.read_text().replace("[Unit]\n", "[Unit]\n[Service]\nStartLimitIntervalSec=60\n"))
    assert "StartLimitIntervalSec" in analyse("verify", bare, folder=tmp_path).stderr


@needs_systemd
def test_systemd_finds_nothing_wrong_with_a_users_unit(tmp_path):
    assert installed(tmp_path, scope="--user") == 0
    verified = analyse("--user", "verify", unit_of(tmp_path), folder=tmp_path)
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")


def test_the_unit_gives_a_bed_what_it_needs_and_no_more(tmp_path):
    assert installed(tmp_path) == 0
    unit = options(unit_of(tmp_path).read_text())
    one = {key: values[0] for (_, key), values in unit.items() if len(values) == 1}
    assert one["ExecStart"] == f"{sys.executable} -P -m controller run {BEDSIDE} --bed ward-3"
    assert (one["Type"], one["NotifyAccess"]) == ("notify", "main")
    assert ("Unit", "StartLimitBurst") in unit
    assert ("Service", "StartLimitBurst") not in unit
    assert (one["Restart"], one["RestartPreventExitStatus"]) == ("on-failure", "2")
    assert (one["LimitRTPRIO"], one["LimitMEMLOCK"]) == ("95", "infinity")
    assert int(one["LimitRTTIME"].removesuffix("ms")) > 0
    assert (one["StateDirectoryMode"], one["RuntimeDirectoryMode"], one["UMask"]) == ("0700", "0700", "0077")
    assert one["CapabilityBoundingSet"] == one["AmbientCapabilities"] == ""
    assert (one["NoNewPrivileges"], one["ProtectSystem"], one["DevicePolicy"]) == ("yes", "strict", "closed")
    assert (one["IPAddressDeny"], one["IPAddressAllow"]) == ("any", "localhost")
    port = settings.load(BEDSIDE).stimulator.port
    allowed = unit["Service", "DeviceAllow"]
    assert {f"{port} rw", "/dev/cpu_dma_latency rw", "char-input rw"} <= set(allowed)
    assert len(allowed) == 5  # and the two classes of USB serial ports, of which this is one
    # a compiler, real-time scheduling, devices and a network are needed; the processes choose their scheduling themselves
    for never in ("MemoryDenyWriteExecute", "RestrictRealtime", "PrivateDevices", "PrivateNetwork", "CPUSchedulingPolicy", "PrivateUsers"):
        assert ("Service", never) not in unit


def test_the_watchdog_is_longer_than_the_daemons_longest_turn():
    from controller import daemon

    # a child that hangs at its end, then the loop that belonged to it, and the pause before the next start
    assert install.WATCHDOG_S / 2 >= daemon.END_S + daemon.RESTART_S


@pytest.mark.parametrize(
    ("port", "rule", "classes"),
    [
        ("/dev/serial/by-id/usb-FTDI_RehaMove3-if00-port0", 'ENV{ID_SERIAL}=="FTDI_RehaMove3", ENV{ID_USB_INTERFACE_NUM}=="00"', 2),
        ("/dev/serial/by-id/usb-STM_P24_A-if7-12-if02", 'ENV{ID_SERIAL}=="STM_P24_A-if7-12", ENV{ID_USB_INTERFACE_NUM}=="02"', 2),
        ("/dev/ttyUSB7", 'ATTRS{idVendor}=="0403", ATTRS{idProduct}=="6001"', 1),
        ("/dev/ttyS0", "", 0),
    ],
)
def test_the_port_is_known_by_its_name_or_identity_or_stays_with_dialout(port, rule, classes, monkeypatch):
    from controller import devices

    monkeypatch.setattr(devices, "ports", lambda: [{"device": "/dev/ttyUSB7", "usb": "0403:6001"}, {"device": "/dev/ttyS0", "usb": ""}])
    config = settings.load(BEDSIDE).with_port(port)
    live = [line for line in install.udev_rules(config).splitlines() if line and not line.startswith("#")]
    assert all('GROUP="calmloop", MODE="0660"' in line for line in live)
    assert sum('SUBSYSTEM=="tty"' in line for line in live) == bool(rule)
    assert any(rule in line for line in live)
    assert any('KERNEL=="cpu_dma_latency"' in line for line in live)
    unit = options(install.system_unit(config, BEDSIDE, "x", "calmloop"))
    assert ("dialout" in unit["Service", "SupplementaryGroups"][0]) == (not rule)
    assert sum("char-tty" in device for device in unit["Service", "DeviceAllow"]) == classes


def test_a_dry_run_shows_every_file_and_writes_none(tmp_path, capsys):
    for scope, n in (("--system", 2), ("--user", 3)):
        assert installed(tmp_path / "root", "--dry-run", "--json", scope=scope) == 0
        said = json.loads(capsys.readouterr().out)
        assert len(said["files"]) == n
        assert installed(tmp_path / "root", "--dry-run", scope=scope) == 0
        text = capsys.readouterr().out
        assert all(file["path"] in text and file["text"] in text for file in said["files"])
        assert any("daemon-reload" in line for line in said["next"])
        assert said["next"][-1].endswith("enable --now calmloop-ward-3.service")
    assert not list(tmp_path.iterdir())
    assert "@calmloop - rtprio 95\n@calmloop - memlock unlimited\n" in said["files"][2]["text"]


def test_another_file_is_not_overwritten_unasked(tmp_path, capsys):
    assert installed(tmp_path) == 0
    unit = unit_of(tmp_path)
    assert stat.S_IMODE(unit.stat().st_mode) == 0o644
    text, rules = unit.read_text(), next(tmp_path.rglob("*.rules"))
    assert installed(tmp_path) == 0  # the same once more
    unit.write_text(text + "# by hand\n")
    rules.unlink()
    capsys.readouterr()
    assert installed(tmp_path) == 2
    assert str(unit) in capsys.readouterr().err
    assert unit.read_text() == text + "# by hand\n"
    assert not rules.exists()  # all or nothing
    assert installed(tmp_path, "--overwrite") == 0
    assert unit.read_text() == text
    assert rules.exists()


def test_what_only_root_may_write_is_put_aside_with_the_command(tmp_path, monkeypatch, capsys):
    replace = install._replace

    def as_a_user(path, text):
        if "etc" in path.parts:
            raise PermissionError(13, "Permission denied", str(path))
        replace(path, text)

    monkeypatch.setattr(install, "_replace", as_a_user)
    assert installed(tmp_path / "root", "--json", scope="--user") == 0
    said = json.loads(capsys.readouterr().out)
    assert [file["is"] for file in said["files"]] == ["written", "for root", "for root"]
    for file, line in zip(said["files"][1:], said["next"], strict=False):
        words = line.split()
        assert words[-1] == file["path"]
        assert Path(words[-2]).read_text() == file["text"]


@pytest.mark.parametrize("name", ["a b.toml", "50%.toml", "$HOME.toml", 'q"uote.toml', "back\\slash.toml", "semi;colon.toml"])
def test_odd_names_reach_the_program_as_they_are(tmp_path, name):
    path = tmp_path / name
    shutil.copy(BEDSIDE, path)
    assert installed(tmp_path / "root", config=path) == 0
    unit = unit_of(tmp_path)
    if shutil.which("systemd-analyze"):
        verified = analyse("verify", unit, folder=tmp_path)
        assert (verified.returncode, verified.stderr) == (0, "")
    (command,) = options(unit.read_text())["Service", "ExecStart"]
    word = command.split(" run ", 1)[1].rsplit(" --bed", 1)[0]
    if word.startswith('"'):  # systemd.service(5): quotes, C escapes, $$ and %%
        word = word[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    assert word.replace("%%", "%").replace("$$", "$") == str(path)


def test_wrong_settings_and_names_are_refused(tmp_path, capsys):
    (tmp_path / "bad.toml").write_text("[session]\nfolder = 5\n")
    assert installed(tmp_path, config=tmp_path / "bad.toml") == 2
    shutil.copy(BEDSIDE, tmp_path / "two\nlines.toml")
    assert installed(tmp_path, config=tmp_path / "two\nlines.toml") == 2
    assert "line break" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.service"))


def test_doctor_names_what_the_service_lacks_and_fails_nowhere(tmp_path, monkeypatch):
    for name in ("UNITS", "UDEV", "SYSTEMD"):
        monkeypatch.setattr(install, name, tmp_path / "nothing" / name)
    monkeypatch.setattr(install, "GROUP", "calmloop-no-such-group")
    rows = {row["what"].removeprefix("service: "): row for row in install.missing("nobody-here")}
    assert not any(row["ok"] or row["needed"] for row in rows.values())
    assert "groupadd --system calmloop-no-such-group" in rows["group calmloop-no-such-group"]["mend"]
    assert "usermod -aG" in rows["nobody-here in calmloop-no-such-group"]["mend"]
    assert "calmloop install" in rows["udev rules"]["mend"]
    for folder, name in (("UDEV", "70-calmloop-bed.rules"), ("UNITS", "calmloop-bed.service")):
        (tmp_path / "nothing" / folder).mkdir(parents=True)
        (tmp_path / "nothing" / folder / name).touch()
    (tmp_path / "nothing" / "SYSTEMD").mkdir()
    monkeypatch.setattr(install, "GROUP", "root")
    assert all(row["ok"] and not row["mend"] for row in install.missing("root"))


def test_a_button_on_a_serial_line_is_the_services_too():
    device = "/dev/serial/by-id/usb-FTDI_Pedal_A1-if00-port0"
    text = BEDSIDE.read_text() + f'\n[button]\ndevice = "serial:{device}"\nline = "cts"\n'
    config = settings.parse(text, "bed")
    unit = options(install.system_unit(config, BEDSIDE, "bed", "calmloop"))
    assert f"{device} rw" in unit["Service", "DeviceAllow"]
    assert 'ENV{ID_SERIAL}=="FTDI_Pedal_A1"' in install.udev_rules(config)
    assert install.ports_of(settings.load(BEDSIDE)) == [config.stimulator.port]
