"""How the command line says what a recording does not say of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """Options of `drivers.sources.files.load`, from --variable, --rate, --unit and --channels."""
    options = {name: getattr(args, name) for name in ("variable", "rate_hz", "unit") if getattr(args, name) is not None}
    if args.channels:
        options["channels"] = args.channels.split(",") if "," in args.channels else args.channels
    return options
