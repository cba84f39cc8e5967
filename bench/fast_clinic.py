"""A clinic whose clock runs `SPEED` times faster, so that thousands of events pass guard's checks in minutes.

Under the real dose limits 2,000 automatic events would take more than a day. They stay ON here: the same checks of the same code, over
windows that are shorter by `SPEED` and so hold as many trains and events as in a full hour of real use (at 30 a second: 40 of the 60
events that an hour allows). Refractory time, dead time and look are as short as the detector allows. None of this is an option of the
product: it exists in these launchers alone (`bed`, `bed_guard`, `bed_loop`), and the recorded view shows the figures in force.

Standard library alone: guard's launcher imports this.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

SPEED = 2700
MINUTE_NS = 60_000_000_000 // SPEED
REST_MS = 1  # dead time, look and refractory time, each
RULE_OFF_S = 0.002  # how long the envelope must be low before a spasm is over
ENVELOPE_S = 0.001  # the envelope's memory: a burst's first sample is far above rest, and so is not the last burst's end
LEARN_S = 0.5
SURE_S = 0.0  # a burst counts from its first sample on: what is measured is the machine, and not how long the detector wants to be sure
RETRY_S = 0.01  # after a refusal: a machine that stalled must not cost twenty events
# Of the rules, and what rest is said to be, since each block that could be learnt has a burst in it: a tenth of the burst, so that the
# high-pass filter's ringing behind it is no second spasm
FLOOR_UV = 800.0
PLANT_MS = "CALMLOOP_BENCH_PLANT_MS"  # how `bench.latency --plant-ms` reaches `bench.bed_loop`; no product code reads it
MORE_TRAINS = 20  # half a second's trains; here as there a disk that needs longer ends stimulation
TRAIN_MS, PULSE_RATE_HZ = 1, 80.0  # one pulse a train; guard's train lasts one period, so that the burst is over before the look is

RULE = {"floor_uv": FLOOR_UV, "mains_hz": 0.0}  # bursts have a period too
PRESCRIPTION = {"look_dead_ms": REST_MS, "look_ms": REST_MS, "refractory_s": REST_MS / 1000}
TRAIN = {"duration_ms": TRAIN_MS, "ramp_up_ms": 0, "taper_ms": 0, "pulse_rate_hz": PULSE_RATE_HZ}
WORDS = (
    f"dose windows are {SPEED} times shorter (a minute is {MINUTE_NS / 1e6:.3g} ms) with the same counts; refractory time, dead time and "
    f"look are {REST_MS} ms each; trains are one pulse; a spasm begins with its first sample and is over after "
    f"{RULE_OFF_S * 1000:g} ms of quiet; the rules' floor is {FLOOR_UV:g} uV and so is rest, which is not learnt, and mains are not looked "
    f"for; {MORE_TRAINS} trains may wait for the disk; every check of guard is on"
)


def hurry(config: Any) -> Any:
    """Settings with this clinic's rests, trains and rules; not to be validated again, since no prescription may say so."""
    trains = {name: train.model_copy(update=TRAIN) for name, train in config.trains.items()}
    rules = tuple(rule.model_copy(update=RULE | {"noise_uv": (FLOOR_UV,) * len(rule.channels)}) for rule in config.emg_rules)
    prescription = config.prescription.model_copy(update=PRESCRIPTION)
    return config.model_copy(update={"prescription": prescription, "trains": trains, "emg_rules": rules})


def hurry_guard() -> None:
    """Guard's clock and its own hard limits; before `controller.guard.main`."""
    from controller import guard, limits, supervisor

    _set(guard, MORE_TRAINS=MORE_TRAINS)
    for module in (limits, supervisor):
        _set(module, MINUTE=MINUTE_NS)
    rest_ns = REST_MS * 1_000_000
    _set(limits, HARD=replace(limits.HARD, min_look_dead_ns=rest_ns, min_look_ns=rest_ns, min_refractory_ns=rest_ns))


def hurry_loop() -> None:
    """The loop's settings and its detector's patience; before `controller.loop.main`."""
    from controller import detector, policy, settings

    load = settings.load
    _set(settings, load=lambda path: hurry(load(path)))
    _set(detector, ENVELOPE_S=ENVELOPE_S, OFF_S=RULE_OFF_S, LEARN_S=LEARN_S, SURE_S=SURE_S, SURE_RUN_S=SURE_S)
    _set(policy, RETRY_S=RETRY_S)


def _set(module: Any, **values: Any) -> None:
    """Replace what is there; a name that is gone must not pass in silence."""
    for name, value in values.items():
        getattr(module, name)
        setattr(module, name, value)
