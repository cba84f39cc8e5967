"""The bench's bedside daemon: `controller.daemon` whole, with recording and audit, whose guard and loop live in the fast clinic."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from bench import fast_clinic
from controller import daemon, settings


class BenchDaemon(daemon.Daemon):
    """The real daemon; only its children are started through the bench's launchers."""

    GUARD_MODULE, LOOP_MODULE = "bench.bed_guard", "bench.bed_loop"


def main() -> int:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(prog="bench.bed")
    parser.add_argument("config")
    parser.add_argument("--bed", required=True)
    args = parser.parse_args()
    config = settings.load(args.config)
    view = settings.guard_view
    settings.guard_view = lambda config: view(fast_clinic.hurry(config))  # the session's settings.toml stays one that loads
    journal = Path(args.config).with_name(f"dose-{os.getpid()}.sqlite")  # each start with no dose yet
    return BenchDaemon(config, args.bed, daemon.Speaker(), lifeline=True, journal=journal).run()


if __name__ == "__main__":
    sys.exit(main())
