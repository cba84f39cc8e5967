"""What every stimulator must do, whoever made it: one suite over every driver, against its virtual twin or against a real box.

`pytest tests/test_stimulator_contract.py --stimulator rehamove3 --port /dev/serial/by-id/...` asks a real one who it is and whether it
listens; with `--pulses` it also gets weak pulses of one step of its current (connect a 1 kOhm load, nobody). What needs the twin's log, or
a twin's fault, is left to the twins.
"""

import json
import os
import pty
import random
import signal
import time
import tty
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from controller import demo, settings, wire
from drivers.base import DeviceEventKind as Say
from drivers.base import DriverError, LimitError, NotArmedError, PortLostError, PulseTrain, ShortWriteError, WireError
from drivers.simulated.twin import TWINS
from drivers.stimulators import STIMULATORS, limits_of, load
from tests.test_virtual_sciencemode import running_twin

NAMES = sorted(STIMULATORS)
SPACING_S = 0.06  # slow enough for each of them
UNKNOWABLE = ("ttl-byte", "ttl-line")  # boxes that never say a word: nobody can know what is at the port


def config_of(name):
    return demo.with_stimulator(settings.load(settings.default_config("demo.toml")), name)


def options_of(name):
    return config_of(name).stimulator.options


def train_of(name, **changes):
    """The demo's train, as this stimulator gives it."""
    t = config_of(name).trains["peroneal"]
    values = {field: getattr(t, field) for field in PulseTrain.__dataclass_fields__}
    return PulseTrain(**values | changes)


@pytest.fixture(params=NAMES)
def name(request):
    wanted = request.config.getoption("--stimulator")
    if wanted and wanted != request.param:
        pytest.skip(f"--stimulator {wanted}")
    return request.param


@pytest.fixture
def connect(name, tmp_path, request):
    """`connect(*twin_arguments) -> bench`: driver (opened, prepared), its wire check, and its twin or None; closed at the end."""
    port = request.config.getoption("--port")
    benches = []

    def make(*arguments, arm=True, trains=None):
        if port and arguments:
            pytest.skip("faults are the twins'")
        context = None if port else running_twin(tmp_path, name, *arguments)
        twin = context.__enter__() if context else None
        sent = []
        check = wire.for_driver(name, options_of(name))

        def write(fd, data):
            sent.append(data)
            return check.write(fd, data)

        driver = load(name, port or twin.port, write, options_of(name))
        bench = SimpleNamespace(driver=driver, check=check, sent=sent, twin=twin, context=context, trains=trains or [train_of(name)])
        benches.append(bench)
        driver.open()
        check.learn(driver.prepare(bench.trains))
        if arm:
            driver.arm()
        return bench

    yield make
    for bench in benches:
        bench.driver.close()
        if bench.context:
            bench.context.__exit__(None, None, None)


def due(bench, train, current_ua):
    t = bench.trains[train]
    bench.check.due = (t.channel, current_ua, t.phase_width_us, t.interphase_gap_us)


def pulse(bench, current_ua=None, train=0):
    """One approved pulse; returns its number and the events that followed within SPACING_S."""
    current_ua = round(bench.trains[train].current_ma * 1000) if current_ua is None else current_ua
    due(bench, train, current_ua)
    number = bench.driver.trigger(train, current_ua)
    events, until = [], time.monotonic() + SPACING_S
    while (now := time.monotonic()) < until:
        events += bench.driver.read_events()
        time.sleep(min(0.005, until - now))
    return number, events


def log(bench):
    """The twin's pulses so far, while it runs."""
    time.sleep(0.1)
    path = bench.twin.log
    return [row for row in map(json.loads, path.read_text().splitlines()) if "pulse_ns" in row]


def levels(name, bench):
    """Every current of the train's ramp."""
    limits, t = bench.driver.limits, bench.trains[0]
    return range(limits.current_step_ua, round(t.current_ma * 1000) + 1, limits.current_step_ua)


def twins_only(bench):
    if bench.twin is None:
        pytest.skip("judged by the twin's log")


# --- without a port ---------------------------------------------------------------------------------------------------------------
def test_limits_agree_with_the_settings_own_table(name):
    limits, row = limits_of(name, options_of(name)), settings.DEVICES[name]
    assert limits.n_channels == row.n_channels
    assert limits.current_step_ua == round(row.current_step_ma * 1000 or config_of(name).stimulator.dial_current_ma * 1000)
    assert limits.ramps is bool(row.current_step_ma)
    assert 0 < limits.min_phase_width_us <= limits.max_phase_width_us and limits.phase_width_step_us > 0
    assert limits.max_current_ua > 0 and limits.max_pulse_rate_hz > 0 and limits.latency_spread_ms >= 0


@pytest.mark.safety("A12", "E6")
def test_what_it_cannot_do_is_refused_with_the_nearest_and_nothing_is_sent(name):
    sent = []
    limits = limits_of(name, options_of(name))
    driver = load(name, "/nowhere", lambda fd, data: sent.append(data) or len(data), options_of(name))
    good = train_of(name)
    wrong = [
        {"channel": 0},
        {"channel": limits.n_channels + 1},
        {"current_ma": 0.0},
        {"current_ma": -1.0},
        {"current_ma": limits.max_current_ua / 1000 + limits.current_step_ua / 1000},
        {"current_ma": good.current_ma - limits.current_step_ua / 2000},
        {"current_ma": float("nan")},
        {"phase_width_us": limits.min_phase_width_us - limits.phase_width_step_us},
        {"phase_width_us": limits.max_phase_width_us + limits.phase_width_step_us},
        {"interphase_gap_us": -1},
        {"pulse_rate_hz": 0.0},
        {"pulse_rate_hz": limits.max_pulse_rate_hz * 1.01},
        {"pulse_rate_hz": float("nan")},
    ]
    if limits.phase_width_step_us > 1:
        wrong.append({"phase_width_us": good.phase_width_us + 1})
    for changes in wrong:
        field = next(iter(changes)).replace("_ma", "_ua")
        with pytest.raises(LimitError, match=f"{field}.*nearest"):
            driver.prepare([train_of(name, **changes)])
    assert driver.prepare([good]) and sent == []


@pytest.mark.safety("A7")
def test_every_prepared_frame_is_the_pulse_that_it_stands_for(name):
    """Before a decoder that was written apart from the encoder; where the box keeps the pulse, `pulse` below says it in its stead."""
    driver, check = load(name, "/nowhere", os.write, options_of(name)), wire.for_driver(name, options_of(name))
    frames = driver.prepare([train_of(name)])
    assert frames and all(type(frame) is bytes for frame in frames)
    check.learn(frames)


@pytest.mark.safety("E6")
def test_closed_it_refuses_and_stays_quiet(name):
    driver = load(name, "/nowhere", os.write, options_of(name))
    driver.prepare([train_of(name)])
    with pytest.raises(NotArmedError):
        driver.trigger(0, round(train_of(name).current_ma * 1000))
    with pytest.raises(PortLostError):
        driver.fileno()
    for quiet in (driver.stop, driver.disarm, driver.close, driver.close, driver.read_events):
        assert not quiet()
    with pytest.raises(DriverError, match="nowhere"):
        driver.open()
    assert driver.status()["open"] is False


def test_a_file_is_not_a_port(name, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"")
    with pytest.raises(DriverError, match="file is not a serial port"):
        load(name, str(file), os.write, options_of(name)).open()
    assert file.read_bytes() == b""


# --- with one ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.safety("E6")
def test_it_says_who_it_is_without_output(connect, name):
    bench = connect(arm=False)
    who = bench.driver.identify()
    assert len(who.split()) == 3 and who == bench.driver.identify()
    status = bench.driver.status()
    assert status["open"] and not status["armed"]
    json.dumps(status)
    with pytest.raises(NotArmedError):
        bench.driver.trigger(0, round(bench.trains[0].current_ma * 1000))
    twins_only(bench)
    assert log(bench) == []


@pytest.mark.safety("A1", "A2", "A7")
def test_pulses_are_what_was_approved(connect, name, request):
    bench = connect()
    if bench.twin is None and not request.config.getoption("--pulses"):
        pytest.skip("a real box gives pulses with --pulses alone")
    t = bench.trains[0]
    currents = [*levels(name, bench)][:: 1 if bench.twin else 1000]
    currents = random.Random(1).choices(currents, k=20)
    for current_ua in currents:
        number, events = pulse(bench, current_ua)
        if bench.driver.limits.answers_pulses:
            assert [(event.kind, event.number) for event in events] == [(Say.ACK, number)]
        else:
            assert events == []
    assert bench.driver.status()["n_bad_frames"] == 0
    twins_only(bench)
    assert [
        (p["channel"], p["current_ua"], p["phase_width_us"], p["interphase_gap_us"], p["balanced"], p["outside"]) for p in log(bench)
    ] == [(t.channel, current_ua, t.phase_width_us, t.interphase_gap_us, True, []) for current_ua in currents]
    pulses, refused, summary = bench.twin.end()
    assert (len(pulses), refused, summary["outside_limits"]) == (20, [], 0)


@pytest.mark.safety("A7")
def test_of_two_trains_each_has_its_own_pulse(connect, name):
    if not limits_of(name, options_of(name)).ramps:
        pytest.skip("one dial, one pulse")
    step = limits_of(name, options_of(name)).phase_width_step_us
    bench = connect(trains=[train_of(name), train_of(name, channel=2, current_ma=10.0, phase_width_us=200 // step * step)])
    twins_only(bench)
    for train in (0, 1, 1, 0, 1, 0, 0):
        pulse(bench, train=train)
    expected = [(t.channel, round(t.current_ma * 1000), t.phase_width_us) for t in bench.trains]
    assert [(p["channel"], p["current_ua"], p["phase_width_us"]) for p in log(bench)] == [expected[k] for k in (0, 1, 1, 0, 1, 0, 0)]


def test_a_trigger_is_one_write(connect, request):
    bench = connect()
    twins_only(bench)
    for _ in range(5):
        before = len(bench.sent)
        pulse(bench)
        assert len(bench.sent) == before + 1


@pytest.mark.safety("A7", "E3")
def test_nothing_but_the_pulse_that_is_due_leaves(connect):
    bench = connect()
    current_ua = round(bench.trains[0].current_ma * 1000)
    bench.check.due = None
    with pytest.raises(WireError):
        bench.driver.trigger(0, current_ua)
    with pytest.raises(NotArmedError):
        bench.driver.trigger(0, current_ua)
    bench.driver.stop()
    bench.driver.arm()
    t = bench.trains[0]
    for wrong in ((t.channel + 1, current_ua, t.phase_width_us, t.interphase_gap_us), (t.channel, current_ua, t.phase_width_us + 1, 0)):
        bench.check.due = wrong
        with pytest.raises(WireError):
            bench.driver.trigger(0, current_ua)
        bench.driver.arm()
    twins_only(bench)
    assert log(bench) == []


@pytest.mark.safety("B7", "C1", "E1")
def test_after_a_stop_nothing_leaves_until_it_is_armed_again(connect):
    bench = connect()
    twins_only(bench)
    pulse(bench)
    for _ in range(3):
        bench.driver.stop()
    with pytest.raises(NotArmedError):
        bench.driver.trigger(0, round(bench.trains[0].current_ma * 1000))
    until = time.monotonic() + 2
    while not bench.driver.status()["stop_answered"]:
        assert not [event for event in bench.driver.read_events() if event.kind is not Say.ACK]
        assert time.monotonic() < until
    bench.driver.disarm()
    with pytest.raises(NotArmedError):
        bench.driver.trigger(0, round(bench.trains[0].current_ma * 1000))
    bench.driver.arm()
    pulse(bench)
    assert len(log(bench)) == 2


@pytest.mark.safety("E6")
def test_closed_and_opened_again_it_is_not_armed_and_nothing_is_said_again(connect):
    bench = connect()
    twins_only(bench)
    pulse(bench)
    bench.driver.close()
    bench.driver.open()
    bench.check.learn(bench.driver.prepare(bench.trains))
    with pytest.raises(NotArmedError):
        bench.driver.trigger(0, round(bench.trains[0].current_ma * 1000))
    bench.driver.arm()
    pulse(bench)
    assert len(log(bench)) == 2


def test_the_port_belongs_to_one(connect, name):
    bench = connect(arm=False)
    other = load(name, bench.driver.port, os.write, options_of(name))
    with pytest.raises(DriverError, match="held by another program"):
        other.open()
    bench.driver.identify()


# --- faults -----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("outcome", ["short", "none", "full", "gone"])
@pytest.mark.safety("E4", "E6")
def test_a_doubtful_write_disarms_and_is_not_repeated(connect, monkeypatch, outcome):
    bench = connect()
    twins_only(bench)
    calls = []

    def write(fd, data):
        calls.append(data)
        if outcome == "full":
            raise BlockingIOError
        if outcome == "gone":
            raise OSError(5, "Input/output error")
        return len(data) - 1 if outcome == "short" else 0

    monkeypatch.setattr(bench.driver, "_write", write)
    with pytest.raises(PortLostError if outcome == "gone" else ShortWriteError):
        due(bench, 0, 20_000)
        bench.driver.trigger(0, round(bench.trains[0].current_ma * 1000))
    with pytest.raises(NotArmedError):
        bench.driver.trigger(0, round(bench.trains[0].current_ma * 1000))
    assert len(calls) == 1
    monkeypatch.undo()
    assert log(bench) == []


@pytest.mark.parametrize("n_pulses", [0, 3])
@pytest.mark.safety("E4")
def test_a_port_that_is_gone_is_told_once(connect, n_pulses):
    bench = connect()
    twins_only(bench)
    for _ in range(n_pulses):
        pulse(bench)
    bench.twin.process.kill()
    bench.twin.process.wait()
    events = []
    for _ in range(20):
        events += bench.driver.read_events()
        time.sleep(0.01)
    assert [event.kind for event in events] == [Say.PORT_LOST]
    with pytest.raises(DriverError):
        bench.driver.trigger(0, round(bench.trains[0].current_ma * 1000))
    for quiet in (bench.driver.stop, bench.driver.disarm, bench.driver.close):
        quiet()


@pytest.mark.safety("C1", "E1")
def test_a_box_that_hangs_holds_up_neither_stop_nor_close(connect):
    bench = connect()
    twins_only(bench)
    pulse(bench)
    os.kill(bench.twin.process.pid, signal.SIGSTOP)
    try:
        for quiet in (bench.driver.stop, bench.driver.stop, bench.driver.disarm, bench.driver.read_events):
            quiet()
        bench.driver.close()
    finally:
        os.kill(bench.twin.process.pid, signal.SIGCONT)
    assert len(log(bench)) == 1


@pytest.mark.parametrize("n_bytes", [1, 7, 4096])
def test_garbage_on_the_line_is_a_fault_and_nothing_worse(name, n_bytes):
    """A box that babbles from the moment it is armed on."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    rng = random.Random(n_bytes)
    driver = load(name, os.ttyname(slave), os.write, options_of(name))
    driver._begin_link()
    driver._fd = os.open(os.ttyname(slave), os.O_RDWR | os.O_NONBLOCK)
    try:
        events = []
        for _ in range(50):
            os.write(master, rng.randbytes(n_bytes))
            events += driver.read_events()
        assert all(event.text for event in events)
        assert not [event for event in events if event.kind is Say.PORT_LOST]
    finally:
        driver.close()
        os.close(master)
        os.close(slave)


@pytest.mark.safety("E6")
def test_another_box_at_the_port_is_refused_and_gets_no_pulse(name, tmp_path):
    if name in UNKNOWABLE:
        pytest.skip("nobody can know")
    model = limits_of(name, options_of(name)).model

    def refuses(there):
        (tmp_path / there).mkdir()
        with running_twin(tmp_path / there, there) as twin:
            driver = load(name, twin.port, wire.for_driver(name, options_of(name)).write, options_of(name))
            with pytest.raises(DriverError):
                driver.open()
            driver.close()
            return twin.end()[2]["pulses"]

    others = [there for there in sorted(TWINS) if limits_of(there, options_of(there)).model != model]
    with ThreadPoolExecutor(len(others)) as pool:  # each waits for seconds
        pulses = dict(zip(others, pool.map(refuses, others), strict=True))
    # to these any byte is a trigger, so any question is; docs/hazards.md
    assert {there for there, n in pulses.items() if n} <= set(UNKNOWABLE)
