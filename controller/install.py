"""`calmloop install`: what makes a bed a service of systemd, as files: its unit, the udev rules of its devices, the limits of its user.

The unit gives the bed what it needs and nothing else: `systemd-analyze security` rates it 2.0 or better (0 is best, 10 worst). Files are
written and commands are named; none is run. What the options mean: systemd.exec(5), systemd.service(5), systemd.resource-control(5).
"""

from __future__ import annotations

import getpass
import grp
import json
import os
import pwd
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from controller import network

if TYPE_CHECKING:
    import argparse

    from controller.settings import Settings

GROUP = "calmloop"  # whose members may use the devices
WATCHDOG_S = 10  # beyond the longest turn of a daemon that is well: END_S of a child that hangs, and the disk
RT_TIME_MS = 1000  # a real-time process that never sleeps for so long is running wild
UDEV, LIMITS, SYSTEMD = Path("/etc/udev/rules.d"), Path("/etc/security/limits.d"), Path("/run/systemd/system")
UNITS = Path("/etc/systemd/system")
_BY_ID = re.compile(r"/dev/serial/by-id/usb-(?P<serial>[\w.:+=@#-]+?)-if(?P<interface>[0-9a-f]{2})(-port\d+)?", re.ASCII)
_USB_TTY = re.compile(r"tty(USB|ACM)\d+")

UNIT = """\
# Made by `calmloop install`; another run of it with --overwrite replaces this file, `systemctl edit {name}` adds to it.
[Unit]
Description=calmloop, bed {bed}
StartLimitIntervalSec=60
StartLimitBurst=5

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
WorkingDirectory={folder}
{who}
# ready when guard serves; alive by the daemon's own turns. When it dies, guard stops all output by itself, long before this.
WatchdogSec={watchdog_s}
Restart=on-failure
RestartSec=2
# wrong settings or a missing device stay wrong; whatever is started again has nothing armed
RestartPreventExitStatus=2
# the daemon ends guard and loop itself, in order
KillMode=mixed
TimeoutStopSec=20

# loop and guard ask for SCHED_FIFO themselves, the daemon and the page do not
LimitRTPRIO=95
LimitRTTIME={rt_time_ms}ms
LimitMEMLOCK=infinity
LimitNOFILE=4096
LimitCORE=0
UMask=0077

{sandbox}
[Install]
WantedBy={target}
"""

#: what the kernel does for a unit of any user
SANDBOX = """\
# Not here, and why: MemoryDenyWriteExecute (numba compiles), RestrictRealtime, PrivateDevices (stimulator, buttons), PrivateNetwork (LSL,
# the page), PrivateUsers (root's `calmloop stop` must be seen to be root's), ProcSubset=pid (the boot's identity dates the dose journal).
NoNewPrivileges=yes
LockPersonality=yes
RestrictNamespaces=yes
RestrictSUIDSGID=yes
# netlink: liblsl looks at the network's interfaces
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
SystemCallErrorNumber=EPERM
"""

#: what only the system's own manager can do
SYSTEM_SANDBOX = """\
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome={protect_home}
{read_write}PrivateTmp=yes
PrivateMounts=yes
ProtectProc=invisible
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RemoveIPC=yes
KeyringMode=private

DevicePolicy=closed
{devices}
# Streams of this machine alone. An amplifier on another machine: add the network of the interface that leads to it, and the groups by
# which LSL finds it, with `systemctl edit {name}`:
#   [Service]
#   IPAddressAllow=192.168.7.0/24 224.0.0.183 239.255.172.215 255.255.255.255
IPAddressDeny=any
IPAddressAllow=localhost{networks}
"""


class InstallError(ValueError):
    """It cannot be installed like this; the message says what would be right."""


class File(NamedTuple):
    """What is to stand where."""

    path: Path
    text: str


# --- texts ------------------------------------------------------------------------------------------------------------------------
def unit_name(bed: str) -> str:
    """The unit of a bed."""
    return f"calmloop-{bed}.service"


def files(config: Settings, path: Path, bed: str, scope: str, user: str) -> list[File]:
    """Return all files of a bed's service.

    Parameters
    ----------
    config : Settings
    path : Path
        Where the settings are.
    bed : str
    scope : {"system", "user"}
        Whose manager runs it: the machine's from its start, or one user's.
    user : str
        Who it runs as.
    """
    rules, limits = UDEV / f"70-calmloop-{bed}.rules", LIMITS / "70-calmloop.conf"
    if scope == "system":
        return [File(UNITS / unit_name(bed), system_unit(config, path, bed, user)), File(rules, udev_rules(config))]
    return [
        File(_config_home() / "systemd" / "user" / unit_name(bed), user_unit(path, bed)),
        File(rules, udev_rules(config)),
        File(limits, f"# Made by `calmloop install --user`: loop and guard come first, and their memory stays.\n{limit_lines(GROUP)}"),
    ]


def limit_lines(group: str) -> str:
    """Lines of limits.conf(5)."""
    return f"@{group} - rtprio 95\n@{group} - memlock unlimited\n"


def system_unit(config: Settings, path: Path, bed: str, user: str) -> str:
    """Return the unit for the machine's manager."""
    runtime = f"calmloop-{bed}"
    who = [
        f"User={user}",
        f"SupplementaryGroups={GROUP}" + ("" if all(map(_rule_of, ports_of(config))) else " dialout"),
        "# recordings, dose journals and the audit's key, in /var/lib; sockets in /run; compiled code in /var/cache",
        "StateDirectory=calmloop",
        "StateDirectoryMode=0700",
        f"RuntimeDirectory={runtime}",
        "RuntimeDirectoryMode=0700",
        "CacheDirectory=calmloop",
        "CacheDirectoryMode=0700",
        f"Environment=CALMLOOP_STATE_DIR=%S/calmloop CALMLOOP_RUNTIME_DIR=%t/{runtime} CALMLOOP_CACHE_DIR=%C/calmloop",
    ]
    sessions = Path(config.session.folder)
    # a home is closed to the service unless the program, the settings or the recordings are in one
    at_home = any(
        _at_home(each)
        for each in (Path(sys.prefix), Path(sys.base_prefix), Path(__file__), path, UNITS / sessions, Path(config.page.certificate))
    )
    sandbox = SYSTEM_SANDBOX.format(
        protect_home="read-only" if at_home else "yes",
        read_write=f"ReadWritePaths={_quoted(sessions)}\n" if sessions.is_absolute() else "",
        devices="\n".join(f"DeviceAllow={device} rw" for device in devices_of(config)),
        name=unit_name(bed),
        networks=_networks(config),
    )
    return _unit(path, bed, "%S/calmloop", "\n".join(who), SANDBOX + "\n" + sandbox, "multi-user.target")


def _networks(config: Settings) -> str:
    """The network of the page's interface, if it has one. Raises `InstallError`."""
    if not (interface := config.page.interface):
        return ""
    try:
        return f" {network.of(interface).network}"
    except OSError as error:
        raise InstallError(f"[page] interface = {interface!r}: {error.strerror}; `ip -4 -brief address` lists what is there") from None


def user_unit(path: Path, bed: str) -> str:
    """Return the unit for a user's manager, which has no power over devices, addresses and mounts: the user's own rights are the limit."""
    who = (
        "# its sockets are where this user's `calmloop stop` looks; they outlive no boot\n"
        "RuntimeDirectory=calmloop\nRuntimeDirectoryMode=0700\nRuntimeDirectoryPreserve=yes"
    )
    return _unit(path, bed, _percent(path.parent), who, SANDBOX, "default.target")


def _unit(path: Path, bed: str, folder: str, who: str, sandbox: str, target: str) -> str:
    program = Path(sys.executable)
    # -P: the folder it is started in is no place for modules
    command = " ".join([_quoted(program), "-P", "-m", "controller", "run", _quoted(path).replace("$", "$$"), "--bed", bed])
    facts = {"watchdog_s": WATCHDOG_S, "rt_time_ms": RT_TIME_MS, "name": unit_name(bed)}
    return UNIT.format(bed=bed, command=command, folder=folder, who=who, sandbox=sandbox, target=target, **facts)


def devices_of(config: Settings) -> list[str]:
    """What the unit's processes may open, besides null, random and their like.

    A USB stimulator that is plugged in again may get another number, and a rule for a node counts as it was at the start: hence its class.
    """
    allowed = []
    for port in ports_of(config):
        usb = _USB_TTY.fullmatch(Path(os.path.realpath(port)).name)
        classes = [f"char-tty{usb[1]}"] if usb else ["char-ttyUSB", "char-ttyACM"] if port.startswith("/dev/serial/by-") else []
        allowed += [_percent(Path(port)), *classes]
    return [*dict.fromkeys(allowed), "/dev/cpu_dma_latency", "char-input"]


def ports_of(config: Settings) -> list[str]:
    """The serial ports of a bed: its stimulator's, and that of a button on a line."""
    device = config.button.device if config.button else ""
    kind, _, where = device.partition(":")
    return [config.stimulator.port, *([where] if kind in ("serial", "byte") else [])]


def udev_rules(config: Settings) -> str:
    """Return the rules that give the bed's devices to the group."""
    ports = [
        f'SUBSYSTEM=="tty", {rule}, GROUP="{GROUP}", MODE="0660"'
        if (rule := _rule_of(port))
        else f"# {port} is told from others by no identity: it stays with the group dialout, of which the service's user must be a member"
        for port in ports_of(config)
    ]
    return "\n".join(
        [
            "# Made by `calmloop install`: what a bed needs, for the group " + GROUP,
            "# processors kept from deep sleep while guard and loop live",
            f'KERNEL=="cpu_dma_latency", SUBSYSTEM=="misc", GROUP="{GROUP}", MODE="0660"',
            "# the stimulator, and a button on a serial line",
            *ports,
            "# buttons: USB and Bluetooth devices with keys that are no whole keyboard, which would tell what is typed",
            f'SUBSYSTEM=="input", KERNEL=="event*", ENV{{ID_INPUT_KEY}}=="1", ENV{{ID_INPUT_KEYBOARD}}!="1", '
            f'ENV{{ID_BUS}}=="usb|bluetooth", GROUP="{GROUP}", MODE="0660"',
            "",
        ]
    )


def _rule_of(port: str) -> str:
    """How udev tells the stimulator from others: by its lasting name, else, if it is there now, by its USB identity; empty = not at all."""
    if name := _BY_ID.fullmatch(port):
        return f'ENV{{ID_BUS}}=="usb", ENV{{ID_SERIAL}}=="{name["serial"]}", ENV{{ID_USB_INTERFACE_NUM}}=="{name["interface"]}"'
    from controller import devices

    seen = next((one for one in devices.ports() if os.path.realpath(one["device"]) == os.path.realpath(port)), None)
    if not seen or not seen["usb"]:
        return ""
    vendor, product = seen["usb"].split(":")
    return f'ATTRS{{idVendor}}=="{vendor}", ATTRS{{idProduct}}=="{product}"'


def _at_home(path: Path) -> bool:
    return path.resolve().parts[:2] in (("/", "home"), ("/", "root"))


def _config_home() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")


def _percent(path: Path) -> str:
    """A path as the whole value of an option of a unit."""
    text = os.fspath(path)
    if not text.isprintable():
        raise InstallError(f"{text!r}: a path with a line break or other sign that cannot be printed cannot stand in a unit; rename it")
    return text.replace("%", "%%")


def _quoted(path: Path) -> str:
    """A path as one word of several."""
    text = _percent(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"' if re.search(r"[\s\"'\\;]", text) else text


# --- what is missing ----------------------------------------------------------------------------------------------------------------
def missing(user: str, scope: str = "system", config: str = "CONFIG") -> list[dict[str, Any]]:
    """Look for what a service needs; a row each, as `doctor` shows them: what, ok, fact, what mends it. None is needed to run by hand."""
    booted = SYSTEMD.is_dir()
    here = _exists(GROUP, grp.getgrnam)
    member = here and _is_member(user)
    rules = sorted(UDEV.glob("70-calmloop-*.rules")) if UDEV.is_dir() else []
    units = [unit for folder in (UNITS, _config_home() / "systemd" / "user") for unit in sorted(folder.glob("calmloop-*.service"))]
    facts = [
        ("systemd", booted, "runs this machine" if booted else "does not run this machine", "start beds with `calmloop run CONFIG`"),
        (f"group {GROUP}", here, "there" if here else "no such group", f"sudo groupadd --system {GROUP}"),
        (f"{user} in {GROUP}", member, "a member" if member else "not a member", f"sudo usermod -aG {GROUP} {user}, and log in anew"),
        ("udev rules", bool(rules), ", ".join(map(str, rules)) or "none", f"sudo calmloop install --{scope} {config}"),
        ("unit", bool(units), ", ".join(unit.name for unit in units) or "none", f"calmloop install --user {config}, or sudo with --system"),
    ]
    return [
        {"what": f"service: {what}", "ok": ok, "fact": fact, "mend": "" if ok else mend, "needed": False} for what, ok, fact, mend in facts
    ]


def _exists(name: str, look: Any) -> bool:
    try:
        look(name)
    except KeyError:
        return False
    return True


def _is_member(user: str) -> bool:
    try:
        return grp.getgrnam(GROUP).gr_gid in os.getgrouplist(user, pwd.getpwnam(user).pw_gid)
    except KeyError:
        return False


def next_commands(config: Settings, bed: str, scope: str, user: str, staged: list[tuple[Path, Path]]) -> list[str]:
    """What a person runs next, in order."""
    sessions = Path(config.session.folder)
    sudo = "" if os.getuid() == 0 else "sudo "
    commands = [f"{sudo}install -D -m 0644 {here} {there}" for here, there in staged]
    if not _exists(GROUP, grp.getgrnam):
        commands.append(f"{sudo}groupadd --system {GROUP}")
    if not _exists(user, pwd.getpwnam):
        commands.append(
            f"{sudo}useradd --system --gid {GROUP} --groups dialout --home-dir /var/lib/calmloop --no-create-home "
            f"--shell /usr/sbin/nologin {user}"
        )
    elif not _is_member(user):
        commands.append(f"{sudo}usermod -aG {GROUP} {user}" + ("" if scope == "system" else "   # then log in anew"))
    if scope == "system" and sessions.is_absolute() and not sessions.is_dir():
        commands.append(f"{sudo}install -d -m 0700 -o {user} {sessions}")
    commands += [f"{sudo}udevadm control --reload", f"{sudo}udevadm trigger --subsystem-match=misc --subsystem-match=tty"]
    if scope == "system":
        return [*commands, f"{sudo}systemctl daemon-reload", f"{sudo}systemctl enable --now {unit_name(bed)}"]
    linger = f"{sudo}loginctl enable-linger {user}   # so that it outlives the log-in"
    return [*commands, linger, "systemctl --user daemon-reload", f"systemctl --user enable --now {unit_name(bed)}"]


# --- the command --------------------------------------------------------------------------------------------------------------------
def command(args: argparse.Namespace) -> int:
    """`calmloop install`; 0 = written (or shown), 2 = wrong settings, or another file stands where one would be written."""
    from controller import fits, settings

    path = Path(args.config).resolve()
    try:
        config = fits.together(settings.load(path), args.config)
        user = args.run_as or ("calmloop" if args.scope == "system" else getpass.getuser())
        wanted = [
            File(args.root / f.path.relative_to("/") if args.root else f.path, f.text)
            for f in files(config, path, args.bed, args.scope, user)
        ]
        rows = [{"path": str(f.path), "text": f.text, "is": _is(f)} for f in wanted]
        differs = [row["path"] for row in rows if row["is"] == "different"]
        if differs and not (args.overwrite or args.dry_run):
            raise InstallError(f"{', '.join(differs)}: there already, and different; nothing was written (--overwrite replaces it)")
        staged = [] if args.dry_run else write(wanted, rows)
    except (settings.SettingsError, InstallError, OSError) as error:
        print(json.dumps({"ok": False, "error": str(error)}) if args.json else error, file=sys.stdout if args.json else sys.stderr)
        return 2
    following = next_commands(config, args.bed, args.scope, user, staged)
    if args.json:
        print(
            json.dumps({"ok": True, "dry_run": args.dry_run, "unit": unit_name(args.bed), "user": user, "files": rows, "next": following})
        )
        return 0
    for row in rows:
        print(f"### {row['path']} ({row['is']})\n{row['text']}" if args.dry_run else f"{row['is']:<9}  {row['path']}")
    print("next:\n" + "\n".join(f"  {each}" for each in following))
    return 0


def _is(file: File) -> str:
    try:
        return "there" if file.path.read_text() == file.text else "different"
    except FileNotFoundError:
        return "absent"
    except (OSError, UnicodeDecodeError):
        return "different"


def write(wanted: list[File], rows: list[dict[str, Any]]) -> list[tuple[Path, Path]]:
    """Write what is not there as it should be; returns (where it is, where it belongs) of what only root may write."""
    staged = []
    for file, row in zip(wanted, rows, strict=True):
        if row["is"] == "there":
            continue
        try:
            _replace(file.path, file.text)
            row["is"] = "written"
        except PermissionError:
            aside = _config_home() / "calmloop" / "install" / file.path.name
            _replace(aside, file.text)
            row["is"] = "for root"
            staged.append((aside, file.path))
    return staged


def _replace(path: Path, text: str) -> None:
    """At once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text)
        partial.chmod(0o644)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
