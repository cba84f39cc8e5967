"""What a person must look at, from the daemon's report and guard's answer: the same words for the terminal and for machines.

Standard library alone. The levels are those of IEC 60601-1-8: high, medium, low.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

HIGH, MEDIUM, LOW = "high", "medium", "low"
DISK_LOW_BYTES = 2_000_000_000  # F5 of the safety notes
#: name of every alarm, and its level
LEVELS = {
    "unknown": HIGH,
    "stop_unconfirmed": HIGH,
    "guard_silent": HIGH,
    "fault": HIGH,
    "lockout": MEDIUM,
    "no_stimulator": MEDIUM,
    "no_data": MEDIUM,
    "signal_bad": MEDIUM,
    "not_recorded": MEDIUM,
    "records_lost": MEDIUM,
    "disk_low": MEDIUM,
    "late": LOW,
}


STARTING = "the loop is still starting (compiled code is made anew after an update: some minutes)"
#: guard's short words for why a train is on, and what people read
_CAUSES = {"emg": "a spasm in the EMG", "force": "a spasm in the force", "manual": "a person asked"}


class Alarm(NamedTuple):
    """One of `LEVELS`, in words."""

    name: str
    words: str

    @property
    def level(self) -> str:
        """How urgent it is."""
        return LEVELS[self.name]


def alarms(status: Mapping[str, Any] | None, guard: Mapping[str, Any] | None = None, asked: bool = False) -> list[Alarm]:
    """Return what is on now, the most urgent first.

    Parameters
    ----------
    status : mapping or None
        The daemon's report; None = there is none, or it is old.
    guard : mapping or None
        Guard's answer to `status`.
    asked : bool
        Whether guard was asked: no answer is then an alarm.
    """
    said, s = guard or {}, status or {}
    state, reason = s.get("state"), s.get("reason", "")
    starting = s.get("loop") == "starting"  # what its rules said before counts for nothing
    rules = {} if starting else s.get("rules", {})
    bad = [f"{name} ({rule.get('veto') or 'bad'})" for name, rule in rules.items() if rule.get("quality") == "bad"]
    streams = ", ".join(f"{name} {what}" for name, what in s.get("streams", {}).items() if what != "fine") or "no fresh signal"
    deaf = STARTING if starting else streams
    listens = s.get("rules") or s.get("requests_by")  # the settings have rules, whether or not there was a cycle
    off = ", output is off" if said.get("stop_confirmed") else ""
    clears = "a clinician clears it, with a reason"
    cleared = f"; when that is done, {clears}" if state == "FAULT" else ""
    on = {
        "unknown": not s and "nothing is known of the bed: look at the patient",
        "stop_unconfirmed": said.get("stop_confirmed") is False
        and f"the stimulator did not confirm the stop: SWITCH IT OFF BY HAND{cleared}",
        "guard_silent": asked and not said and "guard does not answer: if the stimulator is on, SWITCH IT OFF BY HAND",
        "fault": state == "FAULT" and f"fault{off}: {reason}{'' if said.get('stop_confirmed') is False else f'; {clears}'}",
        "lockout": state == "LOCKOUT" and f"locked out{off}: {reason}",
        "no_stimulator": state == "OFF" and f"no stimulator: {reason}",
        "no_data": listens and not s.get("data_ok") and not bad and f"{deaf}: no automatic stimulation",
        "signal_bad": bad and f"poor signal, look at the electrodes; no automatic stimulation: {', '.join(bad)}",
        "not_recorded": said.get("recorder_ok") is False and "recording does not keep up: nothing more is stimulated",
        "records_lost": s.get("records_lost") and f"{s.get('records_lost')} records were lost",
        "disk_low": s.get("disk_free_bytes", DISK_LOW_BYTES) < DISK_LOW_BYTES
        and f"{s.get('disk_free_bytes', 0) / 1e9:.1f} GB are free: what cannot be recorded ends the session",
        "late": s.get("late"),
    }
    return [Alarm(name, str(words)) for name, words in on.items() if words]


def mode(status: Mapping[str, Any]) -> str:
    """What stands beside the state, for as long as it holds: who may stimulate, or who asked for the train that is on; empty = nothing."""
    state, automatic = status.get("state"), status.get("automatic")
    if state == "STIMULATING":
        return {"trigger": "by a person", "request": "automatic"}.get(status.get("train_by", ""), "" if automatic else "by a person")
    return "automatic" if automatic else "button only" if state == "ARMED" else ""


def plain(reason: str) -> str:
    """Say why a train is on in plain words; every other reason stays as it is."""
    cause, _, train = reason.partition(": train ")
    return f"{_CAUSES[cause]}: train {train}" if train and cause in _CAUSES else reason
