"""`python -m bench.screenshots [--to FOLDER]`: pictures of the page in each state, of a real bed with a virtual stimulator.

Every state is reached as a bed reaches it: armed by a person, a train by the button, a fault by the box, a lockout by its history. Only the
signals are made up (tests/bedside.py).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from playwright.sync_api import sync_playwright

from tests import bedside
from tests.rig import NO_HISTORY, ROOT
from tests.test_review import record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from playwright.sync_api import Browser, Page

PHONE, LAPTOP, ROOM = (360, 740), (1280, 900), (2560, 1440)
MAX_BYTES = 200_000
SWEEP_S = 11.0  # until the traces have been right across
HALF = 2000  # a wider screen is pictured at half its size, which git thanks us for


class Camera:
    """Takes pictures of one bed's page."""

    def __init__(self, browser: Browser, bed: Any, folder: Path) -> None:
        self.browser, self.bed, self.folder = browser, bed, folder

    def open(self, size: tuple[int, int], scheme: Any, role: str, wait_s: float = SWEEP_S) -> Page:
        """Open the page as somebody sees it, alone, and wait until its traces have been right across."""
        for context in self.browser.contexts:
            context.close()
        viewport: Any = {"width": size[0], "height": size[1]}
        scale = 0.5 if size[0] > HALF else 1
        context = self.browser.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce", device_scale_factor=scale)
        if role:
            page: Page = self.bed.pair(context, role)
        else:
            page = context.new_page()
            page.goto(self.bed.url)
        time.sleep(wait_s)
        return page

    def take(self, page: Page, state: str, name: str) -> None:
        """One picture, once the page says that state."""
        page.locator(f"body[data-state={state}]").wait_for(timeout=5000)
        path = self.folder / f"{name}.png"
        page.screenshot(path=path)
        if page.locator("body").get_attribute("data-state") != state:
            raise SystemExit(f"bench.screenshots: {name}: the bed was no longer {state}; this machine was too busy, try again")
        bytes_n = path.stat().st_size
        print(f"{path.name}: {bytes_n / 1000:.0f} kB{', too large for git' if bytes_n > MAX_BYTES else ''}")


def idle(camera: Camera) -> None:
    """A clinician looks at what would be armed."""
    page = camera.open(LAPTOP, "light", "clinician")
    page.locator("#take").click()
    page.locator("#offer").click()
    page.locator("#prescription").wait_for()
    camera.take(page, "IDLE", "idle-1280")


def armed(camera: Camera) -> None:
    """Armed for the button; then nothing is heard of the bed."""
    camera.bed.rig.arm()
    camera.take(camera.open(PHONE, "light", "patient"), "ARMED", "armed-360")
    page = camera.open(LAPTOP, "dark", "clinician")
    camera.take(page, "ARMED", "armed-1280-dark")
    camera.bed.silent = True
    camera.take(page, "unknown", "unknown-1280-dark")


def stimulating(camera: Camera) -> None:
    """A train by the button."""
    camera.bed.rig.arm()
    for size, scheme, role, name in ((LAPTOP, "light", "clinician", "stimulating-1280"), (ROOM, "dark", "", "stimulating-2560-dark")):
        page = camera.open(size, scheme, role)
        camera.bed.rig.trigger()
        time.sleep(0.15)
        camera.bed.still = True  # traces stand for the picture, or it takes longer than the train
        camera.take(page, "STIMULATING", name)
        camera.bed.still = False


def unknown(camera: Camera) -> None:
    """A bed that is not heard any more."""
    page = camera.open(PHONE, "light", "")
    camera.bed.silent = True
    camera.take(page, "unknown", "unknown-360")


def fault(camera: Camera) -> None:
    """A box whose electrode is off."""
    page = camera.open(ROOM, "light", "")
    camera.bed.rig.arm()
    camera.bed.rig.trigger()
    camera.take(page, "FAULT", "fault-2560")
    camera.take(camera.open(PHONE, "dark", "clinician"), "FAULT", "fault-360-dark")


def prescription(camera: Camera) -> None:
    """A clinician writes: less current, and where the pads go."""
    for size, scheme, name in ((LAPTOP, "light", "1280"), (PHONE, "dark", "360-dark"), (ROOM, "light", "2560")):
        page = camera.open(size, scheme, "clinician", 0.5)
        page.locator("#views button[data-view=prescription]").click()
        page.locator("#rx-prescription-montage").select_option("calf")
        page.locator("#rx-trains\\.peroneal-current_ma").fill("15")
        page.locator("#rx-put:enabled").wait_for()
        page.locator("#rx-montage").wait_for()
        camera.take(page, "IDLE", f"prescription-{name}")


def sessions(camera: Camera) -> None:
    """A session of before, from near."""
    folder, _ = record(camera.bed.sessions)
    for size, scheme, name in ((LAPTOP, "light", "1280"), (PHONE, "light", "360"), (ROOM, "dark", "2560-dark")):
        page = camera.open(size, scheme, "viewer", 0.5)
        page.locator("#views button[data-view=sessions]").click()
        page.locator("#session-list").select_option(folder.name)
        page.locator("#session-spasms tr").nth(1).wait_for()
        page.locator("#session-part", has_text="to").wait_for()
        camera.take(page, "IDLE", f"sessions-{name}")


def lockout(camera: Camera) -> None:
    """A bed that was locked out in the session before."""
    camera.take(camera.open(LAPTOP, "light", "clinician"), "LOCKOUT", "lockout-1280")


BEDS: dict[str, tuple[Any, tuple[str, ...], dict[str, Any]]] = {
    "idle": (idle, (), {}),
    "armed": (armed, (), {}),
    "stimulating": (stimulating, (), {"train_ms": 2000}),
    "unknown": (unknown, (), {}),
    "fault": (fault, ("--fault", "electrode-error@10"), {}),
    "prescription": (prescription, (), {}),
    "sessions": (sessions, (), {}),
    "lockout": (lockout, (), {"history": NO_HISTORY | {"lockout": "30 events in 10 minutes [A10, hard limit]"}}),
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="bench.screenshots", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--to", type=Path, default=ROOT / "docs" / "page", metavar="FOLDER", help="default: docs/page")
    parser.add_argument("beds", nargs="*", metavar="BED", help=f"of {', '.join(BEDS)}; default all")
    args = parser.parse_args(argv)
    if unknown := set(args.beds) - set(BEDS):
        parser.error(f"no such bed: {', '.join(sorted(unknown))}; there are {', '.join(BEDS)}")
    if not bedside.CHROMIUM:
        print("bench.screenshots: there is no Chromium on this machine (Debian: apt install chromium)", file=sys.stderr)
        return 2
    args.to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="calmloop-screenshots-") as temporary, sync_playwright() as playwright:
        for variable in ("CALMLOOP_RUNTIME_DIR", "CALMLOOP_STATE_DIR"):  # no real bed is ever touched
            os.environ[variable] = temporary
        browser = bedside.launch(playwright)
        for name in args.beds or BEDS:
            shoot, twin_options, rig_options = BEDS[name]
            folder = Path(temporary) / name
            folder.mkdir()
            with closing(bedside.Bedside(folder, *twin_options, **rig_options)) as bed:
                shoot(Camera(browser, bed, args.to))
    return 0


if __name__ == "__main__":
    sys.exit(main())
