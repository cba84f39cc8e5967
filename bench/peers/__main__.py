"""`python -m bench.peers install [NAME...]` and `python -m bench.peers list`."""

from __future__ import annotations

import argparse
import sys

from bench import peers


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="bench.peers", description="Environments of the contenders.")
    commands = parser.add_subparsers(dest="do", required=True)
    one = commands.add_parser("install", help="make environments anew from the pinned files (about 2 GB for all)")
    one.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(peers.NAMES + peers.TOOLS)}; none = all")
    commands.add_parser("list", help="which there are")
    args = parser.parse_args()
    if args.do == "list":
        for name in peers.NAMES + peers.TOOLS:
            print(f"{name:<10} {peers.interpreter(name) or 'not installed'}")
        return 0
    try:
        for name in args.names or peers.NAMES + peers.TOOLS:
            print(f"{name:<10} {peers.install(name)}", flush=True)
    except peers.InstallError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
