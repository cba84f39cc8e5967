"""`calmloop play`: any recording as LSL streams, for a bed that is being set up and for other tools."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controller import reading
from controller.recording import SIGNALS
from controller.settings import toml
from drivers.base import FileFormatError

if TYPE_CHECKING:
    import argparse

    from drivers.simulated.player import Stream

_UNITS = {"EMG": ("uV", "mV", "V"), "Force": ("N", "N m")}  # that settings can name


def command(args: argparse.Namespace) -> int:
    """0 = played to its end, or to ^C; 2 = the file cannot be read."""
    from drivers.sources import files

    path = Path(args.file)
    try:
        rec = files.load(path / SIGNALS if path.is_dir() else path, **reading.options_of(args))
    except FileFormatError as error:
        print(json.dumps({"ok": False, "error": str(error)}) if args.json else error, file=sys.stdout if args.json else sys.stderr)
        return 2
    from drivers.simulated.player import Player, streams_of

    name = args.name or f"calmloop {path.name}"
    streams = streams_of(rec, name, args.source_id or name, args.speed)
    player = Player(streams)
    if args.json:
        facts = {"file": str(path), "seconds": rec.duration_s / args.speed, "notes": rec.notes, "streams": [_facts(s) for s in streams]}
        print(json.dumps({"ok": True, **facts, "settings": "\n".join(map(settings_text, streams))}), flush=True)
    else:
        lines = [f"{path}: {rec.duration_s:.1f} s", *(f"  note: {note}" for note in rec.notes)]
        if args.speed != 1.0:
            lines.append(f"  at {args.speed:g} times its pace: rates and every frequency in it are {args.speed:g} times as high")
        lines += [f"publishing, {'again and again, until ^C' if args.loop else 'once'}; listened to by these settings:"]
        print("\n".join(lines), *map(settings_text, streams), sep="\n", flush=True)
    try:
        player.run(args.loop)
    except KeyboardInterrupt:
        pass  # how a person ends it
    return 0


def settings_text(stream: Stream) -> str:
    """Write the table of a bed's settings that listens to a stream.

    Parameters
    ----------
    stream : Stream

    Returns
    -------
    text : str
        TOML; with a comment where the settings have no word for what the stream is.
    """
    units = _UNITS[stream.kind]
    known = stream.unit in units
    lines = [
        f"[{stream.kind.lower()}]",
        f"stream_name = {toml(stream.name)}",
        f"source_id = {toml(stream.source_id)}",
        f"sample_rate_hz = {toml(stream.sample_rate_hz)}",
        f"channels = {toml(stream.channels)}",
        f'unit = "{stream.unit if known else units[0]}"',
    ]
    if not stream.unit:
        lines[-1] += "  # the recording does not say: its own counts are taken for that"
    elif not known:
        lines[-1] += f"  # the stream says {toml(stream.unit)}, which settings cannot name: it will be refused"
    return "\n".join(lines) + "\n"


def _facts(stream: Stream) -> dict[str, Any]:
    names = ("name", "kind", "source_id", "channels", "unit", "sample_rate_hz")
    return {key: getattr(stream, key) for key in names}
