"""One deframer under atheris: `PYTHON atheris_tool.py SESSION.json DRIVER KIND CORPUS [libFuzzer options]`; exits 0 when nothing is broken.

Runs in atheris's own environment: the standard library, and of ours what that alone can import.
"""

from __future__ import annotations

import json
import sys
from binascii import crc32
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["drivers.stimulators", "drivers.simulated", "controller.wire"]):
    from bench import boxes, deframers

    for _module in deframers.modules(sys.argv[2]):
        __import__(_module)


def main() -> None:
    """Each input is cut and followed as its own checksum says, so that a crash comes again from its bytes alone."""
    path, name, kind = sys.argv[1:4]
    frames = {key: [bytes.fromhex(text) for text in texts] for key, texts in json.loads(Path(path).read_text()).items()}
    session = boxes.Session(name, **frames)
    one = deframers.planted_target(kind, session) if kind in deframers.PLANTED else deframers.target(session, kind)
    atheris.Setup([sys.argv[0], *sys.argv[4:]], lambda data: deframers.check(one, data, crc32(data)))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
