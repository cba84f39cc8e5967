"""Rest, contraction and spasm recorded at the bed from the LSL streams of the settings; words on the terminal guide the person.

A thread takes what comes, without a pause, from the first word to the last: waiting for a key makes no gap. Time is that of the samples'
stamps, so that a step is as long as it says in the signal.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from controller.calibrate.signals import Signals, UseError, needed
from controller.settings import EmgRule, ForceRule
from drivers.base import DeviceNotFoundError
from drivers.sources import lsl

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from controller.calibrate.signals import Span
    from controller.settings import Settings

    Say = Callable[[str], None]

SILENT_S = 2.0
PAUSE_S = 3.0  # between the steps, where nobody is asked


class Cue(NamedTuple):
    """What is said, and how long it holds."""

    seconds: float
    words: str


class Step(NamedTuple):
    """One part of the recording: what it is for, and what the person is told in it."""

    part: str
    before: str
    cues: tuple[Cue, ...]


STEPS = (
    Step("quiet", "First: rest. Lie or sit comfortably and let the muscle go.", (Cue(10.0, "Lie still for 10 s"),)),
    Step(
        "contraction",
        "Next: a gentle movement on purpose, as in daily life, not as hard as you can.",
        (Cue(2.0, "Stay relaxed"), Cue(3.0, "NOW contract gently, and hold"), Cue(2.0, "And relax")),
    ),
    Step(
        "spasm",
        "Last: a spasm, provoked the way that is usual and safe for this person (a stretch, a touch).",
        (Cue(2.0, "Hands off, stay relaxed"), Cue(8.0, "NOW provoke the spasm")),
    ),
)


class Recorder:
    """Keeps all that the streams bring, from now on."""

    def __init__(self, source: lsl.LslSource) -> None:
        self.source = source
        self.kept: dict[str, list[tuple[NDArray[np.float64], NDArray[np.float64]]]] = {"emg": [], "force": []}
        self.newest_s = 0.0
        self.heard_s = time.monotonic()
        self.lost = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        first = self.source.emg if self.source.emg.handle else self.source.force
        while not self._end.is_set():
            for name, inlet in (("emg", self.source.emg), ("force", self.source.force)):
                n = lsl.pull(inlet, 0.05 if inlet is first else 0.0)
                if n:
                    self.kept[name].append((inlet.values[:n].copy(), inlet.t_s[:n].copy()))
                    if inlet is first:
                        self.newest_s, self.heard_s = float(inlet.t_s[n - 1]), time.monotonic()
                self.lost = self.lost or inlet.error[0] < 0

    def wait_until(self, stamp_s: float, tell: Callable[[float], None]) -> None:
        """Until a sample of that stamp is here. Raises `DeviceNotFoundError` where the stream falls silent."""
        while self.newest_s < stamp_s:
            if self.lost or time.monotonic() - self.heard_s > SILENT_S:
                raise DeviceNotFoundError(f"the stream has sent nothing for {SILENT_S:g} s: look at the amplifier and its program")
            tell(stamp_s - self.newest_s)
            time.sleep(0.02)

    def close(self) -> None:
        """End. May be called twice."""
        self._end.set()
        self._thread.join()

    def signals(self, config: Settings, name: str) -> Signals:
        """All that was kept."""

        def joined(table: str, n_channels: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            kept = [(np.zeros((0, n_channels)), np.zeros(0)), *self.kept[table]]
            return np.concatenate([values for values, _ in kept]), np.concatenate([t_s for _, t_s in kept])

        emg, emg_t_s = joined("emg", len(config.emg.channels) if config.emg else 1)
        force, force_t_s = joined("force", len(config.force.channels) if config.force else 1)
        return Signals(name, emg, emg_t_s, force, force_t_s, np.zeros(0), [])


def recorded(config: Settings, rules: tuple[EmgRule | ForceRule, ...], provoke: bool, yes: bool) -> tuple[Signals, dict[str, Span]]:
    """Guide through the steps and return what was recorded, with its parts.

    Raises
    ------
    UseError
        Nobody can be asked, and `yes` was not said.
    DeviceNotFoundError, DeviceMismatchError
        A stream is missing, wrong, or fell silent.
    """
    if not yes and not sys.stdin.isatty():
        raise UseError("at the bed a person presses Enter before each step: use a terminal, or --yes; for a recording name its FILE")
    say: Say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    emg = config.emg if needed(rules) else None
    force = config.force if any(isinstance(rule, ForceRule) for rule in rules) else None
    say("Looking for the stream ...")
    source = lsl.LslSource(emg, force)
    say("Nothing is stimulated here. ^C ends at any time, and nothing is changed.")
    recorder = Recorder(source)
    try:
        parts = guided(recorder, STEPS, provoke, None if yes else _asked, say)
    finally:
        recorder.close()
    stream = emg or force
    assert stream
    signals = recorder.signals(config, f"LSL stream {stream.stream_name!r}")
    return signals, {name: (begin - signals.begin_s, end - signals.begin_s) for name, (begin, end) in parts.items()}


def _asked(words: str) -> bool:
    """Wait for Enter; False where the step is to be left out."""
    print(words, end=" ", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()
    if not answer:
        raise UseError("nobody is there to press Enter: nothing was calibrated")
    return answer.strip().lower() not in ("n", "no", "s", "skip")


def guided(
    recorder: Recorder, steps: tuple[Step, ...], provoke: bool, ask: Callable[[str], bool] | None, say: Say
) -> dict[str, tuple[float, float]]:
    """Go through the steps; returns the stamps between which each part lies. The spasm is asked for, or must be wanted by `provoke`."""
    parts: dict[str, tuple[float, float]] = {}
    recorder.wait_until(1e-9, lambda _: None)  # the first sample
    for step in steps:
        if step.part == "spasm" and ask is None and not provoke:
            continue
        say("")
        say(step.before)
        if ask:
            words = "Press Enter to begin, or n and Enter to leave it out." if step.part == "spasm" else "Press Enter to begin."
            if not ask(words) and step.part == "spasm":
                continue
        else:
            recorder.wait_until(recorder.newest_s + PAUSE_S, lambda _: None)
        begin_s = end_s = recorder.newest_s
        for cue in step.cues:
            say(f"  {cue.words}")
            end_s += cue.seconds
            recorder.wait_until(end_s, _count_down(cue.seconds, say))
        parts[step.part] = begin_s, end_s
    say("")
    say("Thank you, that is all. Looking at it ...")
    return parts


def _count_down(seconds: float, say: Say) -> Callable[[float], None]:
    """Say each whole second that is left, once."""
    left = [int(np.ceil(seconds))]

    def tell(left_s: float) -> None:
        if left_s <= left[0] - 1 and left[0] > 1:
            left[0] = max(1, int(np.ceil(left_s)))
            say(f"    {left[0]}")

    return tell
