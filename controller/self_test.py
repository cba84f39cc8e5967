"""Guard's test of itself at power-on: the shipped supervisor and wire check must say what they are known to say.

Before anything is armed and without any output (B3: no arming without it). It takes about a millisecond. It finds a wrong installation, a
damaged file or a broken interpreter; that the code is right is shown by the tests.
"""

from __future__ import annotations

from dataclasses import replace

from controller.limits import MINUTE, MS, Device, Prescription, S, Train, check_prescription
from controller.supervisor import ACK_TIMEOUT_NS, Event, Kind, Output, SafetyState, Supervisor, Verdict

_DEVICE = Device("self test", 1, 100_000, 500, 10, 4_000, 200_000)
_TRAIN = Train("self test", 1, 20_000, 500, 100, 50_000, 500_000, 0, 0)
_PRESCRIPTION = Prescription(
    (_TRAIN,), 0, _DEVICE, 2_500, 20_000, 10_000, 20 * MS, 100 * MS, S, 3 * S, 2 * S, 2 * S, MINUTE, MINUTE, 1_000, 1_000,
    10**9, 10**9, 3, 3, 30 * MINUTE, 100 * MS, 50 * MS,
)  # fmt: skip


def self_test() -> list[str]:
    """What does not behave as it must; empty = all is well."""
    wrong = []
    if check_prescription(_PRESCRIPTION):
        wrong.append("a lawful prescription is refused")
    unlawful = ({"current_ua": 60_500}, {"phase_width_us": 1_001}, {"pulse_rate_mhz": 100_001}, {"duration_us": 2_000_001})
    prescriptions = [replace(_PRESCRIPTION, trains=(replace(_TRAIN, **change),)) for change in unlawful]  # type: ignore[arg-type]
    wrong += [f"a prescription with {p.trains[0]} is let through" for p in prescriptions if not check_prescription(p)]
    s, now = Supervisor(_PRESCRIPTION), 1000 * S

    def do(kind: Kind, **fields: object) -> Verdict:
        return s.step(Event(kind, now, **fields))  # type: ignore[arg-type]

    def press(number: int) -> Verdict:
        return do(Kind.TRIGGER, issued_ns=now, number=number, current_ua=20_000, duration_us=500_000)

    do(Kind.READY, ok=True, text="self test")
    if press(1).delivered:
        wrong.append("a pulse leaves unarmed")
    do(Kind.OFFER, number=1)
    do(Kind.ARM, issued_ns=now, number=1, event_id=_PRESCRIPTION.number)
    if do(Kind.ARMED).state is SafetyState.ARMED:
        wrong.append("it arms without its row on the disk")
    do(Kind.OFFER, number=1)
    do(Kind.ARM, issued_ns=now, number=1, event_id=_PRESCRIPTION.number)
    if do(Kind.AUDITED).output is not Output.ARM or do(Kind.ARMED).state is not SafetyState.ARMED:
        wrong.append("it does not arm")
    first = press(2)
    if not first.delivered or first.current_ua != 500:
        wrong.append("a lawful train does not begin, or not softly")
    if press(3).delivered or do(Kind.STOP).output is not Output.STOP or s.state is not SafetyState.IDLE:
        wrong.append("it does not stop")
    s = Supervisor(_PRESCRIPTION, SafetyState.STIMULATING, outstanding=True, last_pulse_ns=now)
    now += ACK_TIMEOUT_NS + 1
    if do(Kind.TICK).output is not Output.STOP or s.state is not SafetyState.FAULT:
        wrong.append("a lost acknowledgement is no fault")
    return wrong
