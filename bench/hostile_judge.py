"""Whether what left was lawful: a judge of its own for `bench.hostile`, who sees what people and loop said, and what the box decoded.

Its limits are copied by hand from the design's table "Hard limits"; where the prescription in force is tighter, that counts. It imports
nothing of the product. All times are those of one clock that no restart sets back, in ns. Rules are about pulses that the virtual
stimulator decoded and took; what guard says of itself counts nowhere but for the moment in which it calls a train over.
"""

from __future__ import annotations

import json
import struct
from collections import deque
from dataclasses import dataclass
from math import sqrt
from typing import Any

MS, S = 1_000_000, 1_000_000_000
MINUTE, HOUR = 60 * S, 3600 * S
STEP_UA = 500
CURRENT_UA = 60_000
WIDTH_US = (20, 1_000)
RATE_MHZ = (1_000, 100_000)
CHARGE_NC = 30_000
RMS_MA_PER_CM2, POWER_W_PER_CM2, ENERGY_MJ, LOAD_OHM = 2.0, 0.25, 300.0, 500.0
SPACING_NS = 10 * MS
TRAIN_NS = 2 * S
SOFT_PERCENT_PER_S = 20
MORE_UA, MORE_PERCENT = 2_000, 10  # than in the last train
LEASE_NS = 200 * MS
AGE_NS = 250 * MS
CONTINUES_NS = 500 * MS  # after a look; later it is another event
OFFER_NS, PRESENCE_NS, AUDIT_NS = 60 * S, 5 * MINUTE, 2 * S
ANSWER_NS = 100 * MS
HIDDEN_TRAINS = 1  # not on the disk when another begins: with it, the two that the journal assumes after an unclean end
MOST = {
    "max_current_ua": CURRENT_UA,
    "max_charge_nc": CHARGE_NC,
    "max_event_ns": 10 * S,
    "max_on_time_60s_ns": 20 * S,
    "max_duty_5min_ns": 75 * S,
    "max_on_time_session_ns": 30 * MINUTE,
    "max_on_time_24h_ns": 60 * MINUTE,
    "max_pulses_session": 180_000,
    "max_pulses_24h": 360_000,
    "max_charge_session_nc": 3_600_000_000,
    "max_charge_24h_nc": 7_200_000_000,
    "max_events_10min": 30,
    "max_auto_events_1h": 60,
    "arming_expires_ns": 30 * MINUTE,
    "max_sample_age_ns": AGE_NS,
    "max_lateness_ns": AGE_NS,
}
LEAST = {"look_dead_ns": 20 * MS, "look_ns": 100 * MS, "refractory_ns": 1 * S}
TO_GUARD = struct.Struct("<12q")


# --- a pulse, a prescription ------------------------------------------------------------------------------------------------------
def electrode_faults(current_ua: int, width_us: int, rate_mhz: int, area_mm2: int) -> list[str]:
    """What pulses of that kind do at the electrode beyond what is allowed."""
    ma, s = current_ua / 1e3, width_us / 1e6
    rms_ma = ma * sqrt(2 * s * rate_mhz / 1e3)
    cm2 = area_mm2 / 100
    wrong = {
        "rms density": rms_ma / cm2 > RMS_MA_PER_CM2 * (1 + 1e-9),
        "power density": (rms_ma / 1e3) ** 2 * LOAD_OHM / cm2 >= POWER_W_PER_CM2 * (1 + 1e-9),
        "energy": (ma / 1e3) ** 2 * LOAD_OHM * 2 * s * 1e3 > ENERGY_MJ * (1 + 1e-9),
    }
    return [name for name, is_wrong in wrong.items() if is_wrong]


def prescription_faults(view: dict[str, Any], n_channels: int) -> list[str]:
    """What of a prescription is outside the hard limits; empty = it may be in force."""
    wrong = [name for name, most in MOST.items() if type(view.get(name)) is not int or not 0 <= view[name] <= most]
    wrong += [name for name, least in LEAST.items() if type(view.get(name)) is not int or view[name] < least]
    if type(view.get("electrode_area_mm2")) is not int or view["electrode_area_mm2"] <= 0:
        wrong.append("electrode_area_mm2")
    trains = view.get("trains")
    if not isinstance(trains, dict) or view.get("manual_train") not in list(trains):
        return [*wrong, "trains"]
    for name, t in trains.items():
        if not isinstance(t, dict) or any(type(value) is not int for value in t.values()) or len(t) != 8:
            wrong.append(f"{name}: not whole numbers")
            continue
        lawful = {
            "channel": 1 <= t["channel"] <= n_channels,
            "current_ua": 0 < t["current_ua"] <= CURRENT_UA and t["current_ua"] % STEP_UA == 0,
            "phase_width_us": WIDTH_US[0] <= t["phase_width_us"] <= WIDTH_US[1],
            "interphase_gap_us": 0 <= t["interphase_gap_us"] <= 1_000,
            "pulse_rate_mhz": RATE_MHZ[0] <= t["pulse_rate_mhz"] <= RATE_MHZ[1],
            "duration_us": 0 < t["duration_us"] * 1000 <= TRAIN_NS,
            "ramps": t["ramp_up_us"] >= 0 and t["taper_us"] >= 0 and t["ramp_up_us"] + t["taper_us"] <= t["duration_us"],
        }
        wrong += [f"{name}: {what}" for what, is_lawful in lawful.items() if not is_lawful]
        if not wrong:
            if t["current_ua"] > view["max_current_ua"]:
                wrong.append(f"{name}: current above the prescribed most")
            if t["current_ua"] * t["phase_width_us"] > view["max_charge_nc"] * 1000:
                wrong.append(f"{name}: charge above the prescribed most")
            figures = (t["current_ua"], t["phase_width_us"], t["pulse_rate_mhz"], view["electrode_area_mm2"])
            wrong += [f"{name}: {what}" for what in electrode_faults(*figures)]
    return wrong


# --- what was asked, what was given -----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Ask:
    """Somebody wants a train."""

    automatic: bool
    ident: tuple[Any, ...]
    issued_ns: int
    sample_ns: int
    event_id: int
    train: int
    current_ua: int
    duration_us: int
    cause: int


@dataclass
class Given:
    """A train as it was decoded."""

    ask: Ask
    start_ns: int
    planned_end_ns: int
    period_ns: int
    new_event: bool
    epoch: int
    last_ns: int = 0
    pulses: int = 0
    charge_nc: float = 0.0
    over_ns: int = 0  # when it was called over; 0 = not yet
    told: bool = False  # guard has said so
    row: int = 0  # in which row

    @property
    def end_ns(self) -> int:
        """When it ended for whoever feels it: with its last period, unless that was cut."""
        return min(self.planned_end_ns, self.last_ns + self.period_ns, self.over_ns or self.planned_end_ns)


@dataclass
class Arming:
    """The second step, as it was heard."""

    at_ns: int
    automatic: bool
    row: int = 0  # guard's row that must be on the disk


class Judge:
    """Hears all, sees what the box takes, and writes down in `broken` what no rule allows."""

    def __init__(self) -> None:
        self.broken: list[str] = []
        self.view: dict[str, Any] = {}
        self.trains_by_index: list[dict[str, int]] = []
        self.now_ns = 0
        self.shift_ns = 0  # from the clock of this boot to ours
        self.given: list[Given] = []
        self.session_from = 0
        self.events: list[tuple[int, bool]] = []
        self.spent: set[tuple[Any, ...]] = set()
        self.recent_ids: deque[tuple[int, Any]] = deque()
        self.played_ns: int | None = None
        self.pulses = 0
        self.stop_ns = -HOUR
        self.durable = 0
        self.epoch = 0
        self.power_on()

    def power_on(self) -> None:
        """Guard is a new process: nothing is armed, nobody is known. What was given stays given."""
        self.offers: dict[int, tuple[int, str]] = {}  # when, and of which prescription
        self.arming: Arming | None = None
        self.armed = self.automatic = False
        self.armed_ns = self.person_ns = -HOUR
        self.ask: Ask | None = None
        self.stop_waits = False
        self.beat_ns = -HOUR
        self.beat_ok = self.joined = False
        self.data_age_ns = 0
        self.last_number = 0
        self.unanswered, self.pulse_ns, self.failed = -1, -HOUR, False
        self.box_heard_ns = -HOUR  # a rest may begin with the answer to the last pulse
        self.epoch += 1
        self.first_ns: dict[int, int] = {}
        self.last_ua: dict[int, int] = {}
        self.rows = self.durable = 0
        if self.given and not self.given[-1].told:  # whoever ran it is gone
            self.given[-1].over_ns, self.given[-1].told = self.given[-1].over_ns or self.now_ns, True
            self.close(self.given[-1])
        for train in self.given[-4:]:
            train.row = 0

    def in_force(self, view: dict[str, Any], n_channels: int) -> None:
        """Guard took this prescription."""
        self.view, self.trains_by_index = view, list(view["trains"].values())
        for what in prescription_faults(view, n_channels):
            self.say(f"a prescription outside the hard limits is in force: {what}")

    def say(self, what: str) -> None:
        """One rule more is broken."""
        self.broken.append(f"{what} (at {(self.now_ns - self.shift_ns) / 1e9:.9f} s)")

    # --- what it hears -----------------------------------------------------------------------------------------------------------
    def hears_person(self, data: bytes) -> None:
        """A command, at the moment in which guard takes it up."""
        said = json.loads(data)
        do, now = said.get("do"), self.now_ns
        if do == "stop":
            self.stop_ns = now
            self.off()
        elif do == "disarm":
            self.off()
        elif do == "arm":
            self._hears_arm(said)
        elif do == "trigger" or (do == "button" and said.get("closed") is True):
            number, issued_ns = said.get("id"), said.get("issued_ns")
            if type(number) is int and type(issued_ns) is int:
                index = list(self.view["trains"]).index(self.view["manual_train"])
                t = self.trains_by_index[index]
                issued_ns += self.shift_ns
                self.ask = Ask(False, ("person", number, issued_ns), issued_ns, 0, 0, index, t["current_ua"], t["duration_us"], 3)

    def _hears_arm(self, said: dict[str, Any]) -> None:
        now = self.now_ns
        if self.arming and now - self.arming.at_ns <= AUDIT_NS:
            return
        proved_ns = said.get("authenticated_ns", now - self.shift_ns)
        offer = said.get("offer")
        offered_ns, prescription_id = self.offers.get(offer, (-HOUR, "")) if type(offer) is int else (-HOUR, "")
        lawful = (
            now - offered_ns <= OFFER_NS
            and said.get("electrodes_checked") is True
            and _same_number(said.get("prescription_id"), prescription_id)
            and type(said.get("automatic", True)) is bool
            and type(proved_ns) is int
            and 0 <= now - self.shift_ns - proved_ns <= PRESENCE_NS
        )
        if lawful:
            self.arming = Arming(now, said.get("automatic", True), self.rows + 1)
            self.offers.clear()

    def offered(self, number: int, prescription_id: str) -> None:
        """A person was shown what would be armed."""
        self.offers[number] = (self.now_ns, prescription_id)

    def hears_loop(self, data: bytes) -> None:
        """A message, at the moment in which guard takes it up; none = the loop is gone."""
        if not data:
            self.joined = self.beat_ok = self.automatic = False
            self.beat_ns = -HOUR
            return
        if len(data) != TO_GUARD.size:
            return
        kind, issued_ns, sample_ns, number, event_id, train, current_ua, duration_us, cause, ok, _, _ = TO_GUARD.unpack(data)
        if kind == 1:
            self.beat_ns = min(issued_ns + self.shift_ns, self.now_ns)
            if sample_ns:
                self.data_age_ns = issued_ns - sample_ns
            self.beat_ok = ok == 1 and sample_ns != 0 and -AGE_NS <= self.data_age_ns <= self.view["max_sample_age_ns"]
        elif kind == 2:
            ident = ("loop", self.epoch, number)
            issued_ns, sample_ns = issued_ns + self.shift_ns, sample_ns + self.shift_ns
            self.ask = Ask(True, ident, issued_ns, sample_ns, event_id, train, current_ua, duration_us, cause)

    def loop_joined(self) -> None:
        """A new loop: its numbers begin anew, and automatic mode needs a person."""
        self.epoch += 1
        self.joined, self.beat_ok, self.automatic = True, False, False
        self.beat_ns, self.last_number, self.data_age_ns = -HOUR, 0, 0

    def on_disk(self, durable: int) -> None:
        """Rows up to this one survive a power cut."""
        self.durable = durable

    def off(self) -> None:
        """Nothing is armed any more, nor about to be."""
        self.armed = self.automatic = False
        self.arming = None
        self.offers.clear()
        self.unanswered = -1

    # --- what the box sees --------------------------------------------------------------------------------------------------------
    def box_starts(self) -> None:
        """The box was told to switch its high voltage on."""
        arming, self.arming = self.arming, None
        if not arming:
            self.say("armed without two steps of a person")
        elif self.now_ns - arming.at_ns > AUDIT_NS:
            self.say("armed long after a person asked for it")
        elif self.durable < arming.row:
            self.say("armed before that was on the disk")
        self.failed = False
        self.armed, self.automatic = True, bool(arming and arming.automatic and self.joined)
        self.armed_ns = self.person_ns = self.now_ns
        self.first_ns, self.last_ua = {}, {}

    def box_stops(self) -> None:
        """The box was told to stop."""
        self.off()
        self.cut()

    def cut(self) -> None:
        """No pulse of the running train comes any more: a stop, or whoever gave it is gone."""
        if self.given and not self.given[-1].over_ns:
            self.given[-1].over_ns = self.now_ns

    def box_answers(self, number: int) -> None:
        """It reached the driver that a pulse is done; late is as good as never."""
        if number == self.unanswered and self.now_ns - self.pulse_ns <= ANSWER_NS:
            self.unanswered = -1

    def box_fails(self) -> None:
        """It reached the driver that a pulse went wrong."""
        self.failed = True

    def pulse(self, number: int, channel: int, current_ua: int, width_us: int) -> None:
        """The box took a pulse."""
        now = self.now_ns
        self.pulses += 1
        if self.stop_waits:
            self.say("a pulse left though a stop had been said at the same time")
        if not self.armed:
            self.say("a pulse without arming, or after a stop")
        if self.unanswered >= 0:
            self.say("a pulse before the last one was answered")
        if self.failed:
            self.say("a pulse after the box had reported an error")
        self.unanswered, self.pulse_ns = number, now
        train = self.given[-1] if self.given else None
        if not train or train.over_ns or now >= train.planned_end_ns:
            if not self.ask:
                self.say("a pulse that nobody asked for")
                return
            train = self._begins(self.ask)
            if not train:
                return
        self._judge_pulse(train, channel, current_ua, width_us)

    def _begins(self, ask: Ask) -> Given | None:
        now = self.now_ns
        for what in self.why_not(ask):
            self.say(f"a train that is not lawful: {what}")
        self.spent.add(ask.ident)
        if ask.automatic:
            self.last_number = max(self.last_number, ask.ident[2])
        else:
            self.recent_ids.append((now, ask.ident[1]))
            self.person_ns = now
        if not 0 <= ask.train < len(self.trains_by_index):
            return None
        new_event = not self.continues(ask)
        if new_event:
            self.events.append((now, ask.automatic))
        period_ns = 10**12 // self.trains_by_index[ask.train]["pulse_rate_mhz"]
        train = Given(ask, now, now + ask.duration_us * 1000, period_ns, new_event, self.epoch)
        self.given.append(train)
        self.last_ua[ask.train] = ask.current_ua
        self.first_ns.setdefault(ask.train, now)
        return train

    def _judge_pulse(self, train: Given, channel: int, current_ua: int, width_us: int) -> None:
        now, ask = self.now_ns, train.ask
        t = self.trains_by_index[ask.train]
        train.pulses += 1
        train.last_ns = now
        train.charge_nc += current_ua * width_us / 1000  # a multiple of 1/2: exact
        since = now - train.start_ns
        slot_ns = since // train.period_ns * train.period_ns
        if train.pulses > since // train.period_ns + 1:
            self.say(f"{train.pulses} pulses in {since} ns: faster than prescribed")
        if (channel, width_us) != (t["channel"], t["phase_width_us"]):
            self.say(f"channel {channel}, {width_us} us: not the train's")
        most_ua = min(ask.current_ua, t["current_ua"], self.view["max_current_ua"], CURRENT_UA)
        soft = t["current_ua"] * SOFT_PERCENT_PER_S * (now - self.first_ns.get(ask.train, now)) // (100 * S)
        ramps = [most_ua, soft]  # ramp and taper are comfort, no limits: a step more is none of our business
        if t["ramp_up_us"]:
            ramps.append(STEP_UA + ask.current_ua * (slot_ns + train.period_ns) // (t["ramp_up_us"] * 1000))
        if t["taper_us"]:
            ramps.append(STEP_UA + ask.current_ua * (ask.duration_us * 1000 - slot_ns) // (t["taper_us"] * 1000))
        if current_ua > max(min(ramps), STEP_UA) or current_ua > most_ua:
            self.say(f"{current_ua} uA, at most {min(ramps)} are allowed (asked, soft start, ramp, taper: {ramps})")
        if not WIDTH_US[0] <= width_us <= WIDTH_US[1]:
            self.say(f"{width_us} us wide")
        if current_ua * width_us > min(self.view["max_charge_nc"], CHARGE_NC) * 1000:
            self.say(f"{current_ua * width_us / 1000} nC")
        for what in electrode_faults(current_ua, width_us, t["pulse_rate_mhz"], self.view["electrode_area_mm2"]):
            self.say(f"{what} of a pulse of {current_ua} uA, {width_us} us")
        if ask.automatic:
            if not self.automatic:
                self.say("a pulse of the loop without automatic mode")
            if now - self.beat_ns > LEASE_NS:
                self.say(f"a pulse of the loop {(now - self.beat_ns) / MS} ms after its last proof of life")
            if not self.beat_ok:
                self.say("a pulse of a loop without data")

    def played(self, row: dict[str, Any]) -> None:
        """A pulse was played: its whole shape."""
        if not row["balanced"]:
            self.say("an unbalanced pulse")
        if row["interphase_gap_us"] not in {t["interphase_gap_us"] for t in self.trains_by_index}:
            self.say(f"an interphase gap of {row['interphase_gap_us']} us")
        if self.played_ns is not None and row["pulse_ns"] - self.played_ns < SPACING_NS:
            self.say(f"two pulses {row['pulse_ns'] - self.played_ns} ns apart")
        self.played_ns = row["pulse_ns"]

    # --- may a train begin? -------------------------------------------------------------------------------------------------------
    def continues(self, ask: Ask) -> bool:
        """Whether it goes on with the last event, after a look."""
        last = self.given[-1] if self.given else None
        if not last or not (ask.automatic and last.ask.automatic) or last.epoch != self.epoch or last.ask.event_id != ask.event_id:
            return False
        look_ns = self.view["look_dead_ns"] + self.view["look_ns"]
        return self.now_ns - max(last.over_ns or last.planned_end_ns, self.box_heard_ns) < look_ns + CONTINUES_NS

    def why_not(self, ask: Ask) -> list[str]:
        """Why this train may not begin now, as far as that can be known before it is over."""
        now, view, wrong = self.now_ns, self.view, []
        age, most_age = now - ask.issued_ns, view["max_lateness_ns"] if ask.automatic else AGE_NS
        if not 0 <= age <= most_age:
            wrong.append(f"asked for {age / MS} ms ago")
        if ask.issued_ns <= self.stop_ns:
            wrong.append("asked for before the last stop")
        if ask.ident in self.spent or (not ask.automatic and any(ask.ident[1] == i for at, i in self.recent_ids if now - at <= AGE_NS)):
            wrong.append("asked for once, given twice")
        if now - self.person_ns > view["arming_expires_ns"]:
            wrong.append("arming had expired")
        if ask.automatic:
            if not self.automatic:
                wrong.append("automatic mode is off")
            if not -AGE_NS <= now - ask.sample_ns <= view["max_sample_age_ns"]:
                wrong.append(f"its sample is {(now - ask.sample_ns) / MS} ms old")
            if ask.ident[2] <= self.last_number:
                wrong.append(f"number {ask.ident[2]} after {self.last_number}")
            if ask.cause not in (1, 2) or ask.event_id <= 0:
                wrong.append(f"cause {ask.cause}, event {ask.event_id}")
        elif ask.ident[1] <= 0:
            wrong.append(f"id {ask.ident[1]}")
        if not 0 <= ask.train < len(self.trains_by_index):
            return [*wrong, f"train {ask.train} is not prescribed"]
        t = self.trains_by_index[ask.train]
        if not 0 < ask.duration_us <= t["duration_us"] or ask.duration_us * 1000 > TRAIN_NS:
            wrong.append(f"{ask.duration_us} us long")
        if not 0 < ask.current_ua <= t["current_ua"] or ask.current_ua % STEP_UA:
            wrong.append(f"{ask.current_ua} uA")
        last_ua = self.last_ua.get(ask.train, 0)
        if last_ua and ask.current_ua - last_ua > max(STEP_UA, min(MORE_UA, last_ua * MORE_PERCENT // 100)):
            wrong.append(f"{ask.current_ua} uA after {last_ua} uA")
        if sum(train.row > self.durable for train in self.given[-4:]) > HIDDEN_TRAINS:
            wrong.append("two trains are not on the disk")
        return wrong + self._too_soon(ask)

    def _too_soon(self, ask: Ask) -> list[str]:
        now, view, wrong = self.now_ns, self.view, []
        continues = self.continues(ask)
        if self.given:
            rest = now - self.given[-1].end_ns
            least = view["look_dead_ns"] + view["look_ns"] if continues else view["refractory_ns"]
            if rest < least:
                wrong.append(f"{rest} ns after the last train, at least {least} are needed")
        if not continues:
            if sum(at > now - 10 * MINUTE for at, _ in self.events[-40:]) >= view["max_events_10min"]:
                wrong.append("too many events in 10 min")
            since = max(now - HOUR, self.armed_ns - 1)
            if ask.automatic and sum(at > since and automatic for at, automatic in self.events[-200:]) >= view["max_auto_events_1h"]:
                wrong.append("too many automatic events in an hour")
        return wrong

    # --- a train is over ----------------------------------------------------------------------------------------------------------
    def over(self, said: dict[str, Any]) -> None:
        """Guard calls its train over, and tells the journal of it: as much as was given, at least."""
        train = self.given[-1] if self.given else None
        if not train or train.told:
            return  # its first pulse never left
        train.over_ns, train.row, train.told = train.over_ns or self.now_ns, self.rows, True
        if said["pulses"] < train.pulses or said["end_ns"] - said["start_ns"] < train.end_ns - train.start_ns:
            self.say(f"the journal is told of {said}, but given were {train.pulses} pulses in {train.end_ns - train.start_ns} ns")
        if said["charge_nc"] < train.charge_nc:
            self.say(f"the journal is told of {said['charge_nc']} nC, but given were {train.charge_nc}")
        self.close(train)

    def close(self, train: Given) -> None:
        """The dose that ends with this train: the fullest windows do."""
        view, end = self.view, train.end_ns
        for window_ns, name in ((MINUTE, "max_on_time_60s_ns"), (5 * MINUTE, "max_duty_5min_ns")):
            on_ns = sum(max(0, min(t.end_ns, end) - max(t.start_ns, end - window_ns)) for t in self.given[-200:])
            if on_ns > view[name]:
                self.say(f"{on_ns} ns of stimulation in {window_ns // S} s, at most {view[name]}")
        event_ns = 0
        for t in reversed(self.given):
            event_ns += t.end_ns - t.start_ns
            if t.new_event:
                break
        if event_ns > view["max_event_ns"]:
            self.say(f"{event_ns} ns of stimulation in one event")
        day = [t for t in self.given if t.start_ns >= end - 24 * HOUR]
        for window, trains in (("session", self.given[self.session_from :]), ("24h", day)):
            given = (
                sum(t.end_ns - t.start_ns for t in trains),
                sum(t.pulses for t in trains),
                sum(t.charge_nc for t in trains),
            )
            names = (f"max_on_time_{window}_ns", f"max_pulses_{window}", f"max_charge_{window}_nc")
            self.broken += [
                f"{value} in {window}, at most {view[name]}: {name}" for value, name in zip(given, names, strict=True) if value > view[name]
            ]


def _same_number(said: object, right: str) -> bool:
    try:
        return int(str(said), 16) == int(right, 16)
    except ValueError:
        return False
