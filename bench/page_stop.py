"""`python -m bench.page_stop`: a hundred STOPs at the bedside page, from a person's act to the last pulse.

A real browser before the page's own process, a real guard, a virtual stimulator whose log is the judge. The finger comes down on STOP, the
Escape key goes down, or the word goes over a websocket without a browser; a train of half a second is on each time. The clock starts here,
before the act is handed to the browser, so the browser's own way is in the figure. Beds are fresh after 24 trains (30 events in 10 min are
allowed). Traces move all the while.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

import numpy as np
from playwright.sync_api import sync_playwright
from websockets.sync.client import connect

from bench.environment import environment
from tests import bedside

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from playwright.sync_api import Browser

WAYS = ("mouse", "Escape", "websocket")
STOPS, QUICK_STOPS, PER_BED = 100, 6, 24
BUDGET_MS, MS = 100.0, 1_000_000
ON_NS = 60 * MS  # a train whose last pulse is older than this at the act was not on
SHOWN = {"p50": 50.0, "p99": 99.0, "max": 100.0}


def on_one_bed(browser: Browser, folder: Path, numbers: range, rng: random.Random) -> list[dict[str, Any]]:
    """As many stops as there are numbers, the ways in turn."""
    folder.mkdir()
    rows = []
    with closing(bedside.Bedside(folder)) as bed, closing(browser.new_page(viewport={"width": 1280, "height": 900})) as page:
        page.goto(bed.url)
        page.locator("body[data-state=IDLE]").wait_for()
        box = page.locator("#stop").bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        for number in numbers:
            how = WAYS[number % len(WAYS)]
            bed.start_train()
            page.wait_for_timeout(rng.uniform(0.0, 250.0))
            # a new one each time: who does not read is closed in the end, and its own close would wait for what it did not read
            with connect(f"ws://127.0.0.1:{bed.port}/live", origin=bed.url, close_timeout=0.1) as socket:
                acts: dict[str, Callable[[], Any]] = {
                    "mouse": page.mouse.down,
                    "Escape": lambda: page.keyboard.down("Escape"),
                    "websocket": lambda s=socket: s.send('{"do": "stop", "nr": 1}'),
                }
                act_ns = monotonic_ns()
                acts[how]()
                page.wait_for_timeout(300)
                page.mouse.up()
                page.keyboard.up("Escape")
            times_ns = bed.pulses_ns()
            before = [at_ns for at_ns in times_ns if at_ns <= act_ns]
            rows.append(
                {
                    "how": how,
                    "act_ns": act_ns,
                    "last_pulse_ns": times_ns[-1],
                    "counts": act_ns - before[-1] <= ON_NS,
                    "state": bed.rig.ask("status")["state"],
                    "act_to_last_ms": max(0.0, (times_ns[-1] - act_ns) / MS),  # 0: no pulse came after the act
                }
            )
    return rows


def figures(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Percentiles of each way and of all, in ms."""
    got = {}
    for how in ("all", *WAYS):
        ms = [row["act_to_last_ms"] for row in rows if row["counts"] and how in ("all", row["how"])]
        if ms:
            got[how] = {"n": len(ms), **{name: round(float(np.percentile(ms, q)), 2) for name, q in SHOWN.items()}}
    return got


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="bench.page_stop", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STOPS} stops")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="every stop with its stamps")
    args = parser.parse_args(argv)
    if not bedside.CHROMIUM:
        print("bench.page_stop: there is no Chromium on this machine (Debian: apt install chromium)", file=sys.stderr)
        return 2
    wanted, rng = QUICK_STOPS if args.quick else STOPS, random.Random(args.seed)
    result: dict[str, Any] = {"bench": "page_stop", "quick": args.quick, "seed": args.seed, "environment": environment()}
    rows: list[dict[str, Any]] = []
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="calmloop-page-stop-") as temporary, sync_playwright() as playwright:
        for variable in ("CALMLOOP_RUNTIME_DIR", "CALMLOOP_STATE_DIR"):  # no real bed is ever touched
            os.environ[variable] = temporary
        browser = bedside.launch(playwright)
        result["browser"] = browser.version
        for first in range(0, wanted, PER_BED):
            rows += on_one_bed(browser, Path(temporary) / f"bed{first}", range(first, min(first + PER_BED, wanted)), rng)
            print(f"{len(rows)} of {wanted} stops", file=sys.stderr, flush=True)
        browser.close()
    missed = [row for row in rows if not row["counts"] or row["act_to_last_ms"] > BUDGET_MS or row["state"] != "IDLE"]
    result |= {"stops": rows, "figures_ms": figures(rows), "missed": len(missed), "seconds": round(time.monotonic() - began_s, 1)}
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))
    print(f"{'act to last pulse, ms':<24}{'n':>6}" + "".join(f"{name:>9}" for name in SHOWN))
    for how, got in result["figures_ms"].items():
        print(f"{how:<24}{got['n']:>6}" + "".join(f"{got[name]:>9.2f}" for name in SHOWN))
    print(f"{'MISSED' if missed else 'met'}: each within {BUDGET_MS:g} ms and a train on: {len(rows) - len(missed)} of {len(rows)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
