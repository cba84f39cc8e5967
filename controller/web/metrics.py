"""What Prometheus reads of a bed, in its text format 0.0.4: numbers and states; no name of a person, no path, no words of anybody.

Where the daemon's report is older than a second nothing but that is told: a figure that stands still must not look alive.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from controller.alarms import LEVELS, alarms

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Labels = dict[str, str]
    Samples = Iterable[tuple[Labels, Any]]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STATES = ("unknown", "OFF", "IDLE", "ARMED", "STIMULATING", "LOCKOUT", "FAULT")
#: alarms that guard's answer alone tells, which is not asked for here
_OF_GUARD = ("stop_unconfirmed", "guard_silent", "not_recorded")
_STATISTICS = {"p50": "p50_ms", "p99": "p99_ms", "max": "max_ms"}
_WINDOWS = ("session", "day")


def text(status: Mapping[str, Any], age_s: float | None, stale_s: float) -> str:
    """Return the exposition of one bed.

    Parameters
    ----------
    status : mapping
        The daemon's last report, as `Feed.status` hands it on.
    age_s : float or None
        How old it is; None = there was none.
    stale_s : float
        From which age on it counts for nothing.
    """
    fresh = age_s is not None and age_s < stale_s
    s = status if fresh else {}
    state = s.get("state", "unknown")
    on = {alarm.name for alarm in alarms(s or None)}
    gauge, counter = "gauge", "counter"
    families: list[tuple[str, str, str, Samples]] = [
        ("up", gauge, "Whether the bed's report is fresh.", [({}, fresh)]),
        ("report_age_seconds", gauge, "Age of the bed's last report.", [({}, age_s)]),
        ("state", gauge, "1 for the state that the bed is in.", [({"state": name}, name == state) for name in STATES]),
        (
            "alarm",
            gauge,
            "1 for each alarm that is on.",
            [({"alarm": name, "level": level}, name in on) for name, level in LEVELS.items() if name not in _OF_GUARD],
        ),
        ("bed_info", gauge, "The bed's name.", [({"bed": str(s["bed"])}, 1)] if "bed" in s else []),
        ("automatic", gauge, "Whether automatic stimulation is allowed.", [({}, s.get("automatic"))]),
        ("data_ok", gauge, "Whether signals are fresh and good.", [({}, s.get("data_ok"))]),
        ("sample_age_seconds", gauge, "Age of the newest sample at the last decision.", [({}, _times(s.get("sample_age_ms"), 1e-3))]),
        ("latency_seconds", gauge, "How long things took in this session.", _latency(s)),
        ("latency_observations_total", counter, "How many were measured.", [({"quantity": q}, v.get("n")) for q, v in _measured(s)]),
        ("cycles_total", counter, "Cycles of the loop.", [({}, s.get("cycles"))]),
        ("requests_total", counter, "Trains that the loop asked for.", [({}, s.get("requests"))]),
        ("trains_total", counter, "Trains given.", [({}, s.get("trains"))]),
        ("pulses_total", counter, "Pulses given.", [({}, s.get("pulses"))]),
        ("refusals_total", counter, "What guard refused.", [({}, s.get("refusals"))]),
        ("records_lost_total", counter, "Records that the recording did not get.", [({}, s.get("records_lost"))]),
        *_dose("dose", "Given", s.get("dose", {})),
        *_dose("dose_limit", "Allowed by the prescription", s.get("scene", {}).get("limits", {})),
        ("disk_free_bytes", gauge, "Free where the session is recorded.", [({}, s.get("disk_free_bytes"))]),
        ("recording_bytes", gauge, "Size of the session's signals.", [({}, s.get("recording_bytes"))]),
        ("session_seconds", gauge, "How long the daemon is up.", [({}, s.get("up_s"))]),
    ]
    return "".join(_family(*family) for family in families)


def _measured(s: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(quantity, values) for quantity, values in s.get("latency", {}).items()]


def _latency(s: Mapping[str, Any]) -> Samples:
    return [
        ({"quantity": quantity, "statistic": name}, _times(values.get(key), 1e-3))
        for quantity, values in _measured(s)
        for name, key in _STATISTICS.items()
    ]


def _dose(name: str, words: str, given: Mapping[str, Any]) -> list[tuple[str, str, str, Samples]]:
    facts = (("on_time_seconds", "on_time_s", 1.0), ("pulses", "pulses", 1.0), ("charge_coulombs", "charge_mc", 1e-3))
    return [
        (f"{name}_{what}", "gauge", f"{words}, in the session and in 24 h.", _windows(given, key, factor)) for what, key, factor in facts
    ]


def _windows(given: Mapping[str, Any], key: str, factor: float) -> Samples:
    return [({"window": window}, _times(given.get(window, {}).get(key), factor)) for window in _WINDOWS]


def _times(value: Any, factor: float) -> Any:
    return value * factor if isinstance(value, (int, float)) else None


def _family(name: str, kind: str, words: str, samples: Samples) -> str:
    """One metric; what is not a finite number is left out, and a metric of nothing too."""
    lines = [
        f"calmloop_{name}{_labels(labels)} {float(value):.15g}\n"
        for labels, value in samples
        if isinstance(value, (bool, int, float)) and math.isfinite(value)
    ]
    return "".join([f"# HELP calmloop_{name} {words}\n# TYPE calmloop_{name} {kind}\n", *lines]) if lines else ""


def _labels(labels: Labels) -> str:
    pairs = [f'{name}="{_escaped(value)}"' for name, value in labels.items()]
    return f"{{{','.join(pairs)}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
