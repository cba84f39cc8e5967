"""A supervisor with a clock of its own, for tests: what happens between its events is played here."""

from dataclasses import fields

from controller.limits import MINUTE, MS, Device, Prescription, S, Train
from controller.supervisor import Cause, Event, Kind, Output, SafetyState, Supervisor

DEVICE = Device("box", 4, 130_000, 500, 10, 65_520, 500_000)
TRAIN = Train("peroneal", 1, 20_000, 500, 100, 50_000, 500_000, 50_000, 100_000)
RX = Prescription(
    trains=(TRAIN,),
    manual_train=0,
    device=DEVICE,
    electrode_area_mm2=2500,
    max_current_ua=20_000,
    max_charge_nc=10_000,
    look_dead_ns=20 * MS,
    look_ns=100 * MS,
    max_event_ns=10 * S,
    refractory_ns=3 * S,
    max_on_time_60s_ns=20 * S,
    max_duty_5min_ns=75 * S,
    max_on_time_session_ns=30 * MINUTE,
    max_on_time_24h_ns=60 * MINUTE,
    max_pulses_session=180_000,
    max_pulses_24h=360_000,
    max_charge_session_nc=3_600_000_000,
    max_charge_24h_nc=7_200_000_000,
    max_events_10min=30,
    max_auto_events_1h=60,
    arming_expires_ns=30 * MINUTE,
    max_sample_age_ns=100 * MS,
    max_lateness_ns=50 * MS,
)


NO_HISTORY = {"trains": [], "minutes": [], "session": [0, 0, 0], "events": [], "auto_events": [], "lockout": ""}
TYPES = {f.name: type(getattr(Supervisor(RX), f.name)) for f in fields(Supervisor)}


def check(s, now, verdict):
    """What holds after every event."""
    assert all(isinstance(getattr(s, name), kind) for name, kind in TYPES.items())
    assert [type(value) for value in verdict] == [bool, SafetyState, bool, tuple, Output, int, int, int, int, int]
    assert verdict.delivered is (verdict.output is Output.PULSE) is (verdict.current_ua != 0)
    assert verdict.current_ua >= 0
    assert not verdict.delivered or verdict.state is SafetyState.STIMULATING
    assert verdict.wake_ns == 0 or verdict.wake_ns > now  # else guard would turn in a circle


class Bed:
    """A supervisor with a clock, a prompt stimulator and a loop that is alive unless told otherwise."""

    def __init__(self, rx=RX):
        self.s = Supervisor(rx)
        self.now = 1000 * S
        self.pulses = []  # (ns, current)
        self.number = 0
        self.beating = True
        self.acking = True

    def do(self, kind, **fields):
        if kind is Kind.HEARTBEAT:
            fields = {"issued_ns": self.now, "sample_ns": self.now - MS} | fields
        verdict = self.s.step(Event(kind, self.now, **fields))
        self.last = verdict
        check(self.s, self.now, verdict)
        if verdict.delivered:
            self.pulses.append((self.now, verdict.current_ua))
            if self.acking:
                self.s.step(Event(Kind.ACK, self.now + 2 * MS))
        if verdict.output is Output.ARM:
            self.do(Kind.ARMED)
        return verdict

    def arm(self, automatic=True, **changes):
        """Both steps of a person; the disk and the stimulator are prompt. The verdict on the second step."""
        self.do(Kind.OFFER, number=7)
        fields = {"issued_ns": self.now, "number": 7, "event_id": self.s.prescription.number, "ok": automatic, "text": "a person"}
        verdict = self.do(Kind.ARM, **(fields | changes))
        if not verdict.refused:
            self.do(Kind.AUDITED)
        return verdict

    def armed(self, soft=False):
        """Armed in full, and past the soft start unless that is wanted."""
        self.do(Kind.READY, ok=True, text="box 1")
        self.do(Kind.LOOP_JOINED)
        self.do(Kind.HEARTBEAT, ok=True)
        self.arm()
        assert self.s.state is SafetyState.ARMED
        assert self.s.automatic
        if not soft:
            self.s.first_ns = tuple(self.now - 5 * S for _ in self.s.prescription.trains)
        return self

    def skip(self, ns):
        """Time in which nothing happens but that the loop lives on."""
        self.now += ns
        self.s.heartbeat_ns = self.now
        self.do(Kind.HEARTBEAT, ok=True)

    def run(self, ns):
        """Let time pass: a heartbeat each 10 ms, a tick whenever the supervisor asks for one."""
        end = self.now + ns
        beat = self.now + 10 * MS
        while True:
            wake = self.last.wake_ns or end
            self.now = max(self.now, min(wake, beat, end))
            if self.now >= end:
                return
            if self.now >= beat:
                beat += 10 * MS
                if self.beating:
                    self.do(Kind.HEARTBEAT, ok=True)
            if self.last.wake_ns and self.now >= self.last.wake_ns:
                self.do(Kind.TICK)

    def request(self, **changes):
        self.number += 1
        fields = {
            "issued_ns": self.now - MS,
            "sample_ns": self.now - 3 * MS,
            "number": self.number,
            "event_id": self.number,
            "train": 0,
            "current_ua": 20_000,
            "duration_us": 500_000,
            "cause": Cause.EMG,
            "level": 1000,
        }
        return self.do(Kind.REQUEST, **(fields | changes))

    def press(self, **changes):
        self.number += 1
        fields = {"issued_ns": self.now, "number": self.number, "current_ua": 20_000, "duration_us": 500_000, "cause": Cause.MANUAL}
        return self.do(Kind.TRIGGER, **(fields | changes))
