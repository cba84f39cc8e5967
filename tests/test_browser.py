"""The page in a real browser, judged from outside: by the virtual stimulator's log, by guard's rows, and by what a person can read."""

import itertools
import json
import os
import signal
import statistics
import time
from contextlib import closing
from importlib import resources
from pathlib import Path

import pytest
from websockets.sync.client import connect

from tests import bedside
from tests.rig import NO_HISTORY
from tests.test_review import record

pytest.importorskip("playwright")
from playwright.sync_api import expect, sync_playwright

pytestmark = pytest.mark.skipif(not bedside.CHROMIUM, reason="there is no Chromium on this machine")
SIZES = {"phone": (360, 740), "phone on its side": (740, 360), "laptop": (1280, 800), "across the room": (2560, 1440)}
# What a shared machine with a browser that draws in software keeps in any case: these tests find what is broken. The promises (0.5 s, 30 a
# second, 100 ms, 1.5 s) are compared with the figures that they print, and with `bench.page_stop`.
PAINT_MS, FRAMES_HZ, STOP_NS, UNKNOWN_S = 2000.0, 10, 250_000_000, 2.5


@pytest.fixture(scope="module")
def chromium():
    with sync_playwright() as playwright:
        browser = bedside.launch(playwright)
        yield browser
        browser.close()


@pytest.fixture
def bed(tmp_path):
    bed = bedside.Bedside(tmp_path)
    yield bed
    bed.close()


@pytest.fixture
def contexts(chromium, bed):
    """Make contexts; whatever any of them asked for must have been this bed's page."""
    made, asked = [], []

    def new(**options):
        context = chromium.new_context(**options)
        context.set_default_timeout(5000)
        context.on("request", lambda request: asked.append(request.url))
        context.on("page", lambda page: page.on("websocket", lambda socket: asked.append(socket.url)))
        made.append(context)
        return context

    yield new
    for context in made:
        context.close()
    ours = (f"{bed.url}/", f"ws://127.0.0.1:{bed.port}/")
    assert all(url.startswith(ours) for url in asked), asked


@pytest.fixture
def page(contexts, bed):
    page = contexts().new_page()
    page.goto(bed.url)
    expect(page.locator("#state")).to_have_text("IDLE")
    return page


def test_a_cold_page_paints_within_half_a_second_and_its_traces_move(contexts, bed, record_property):
    paints_ms = []
    for _ in range(5):
        page = contexts().new_page()
        page.goto(bed.url)
        expect(page.locator("#state")).to_have_text("IDLE")
        paints_ms.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
        page.close()
    record_property("first_contentful_paint_ms", paints_ms)
    assert 0 < statistics.median(paints_ms) <= PAINT_MS, paints_ms
    page = contexts().new_page()
    page.goto(bed.url)
    time.sleep(3.0)
    said_hz = int(page.locator("#rate").inner_text().split()[0])
    frames = pictures(page, 1.5)
    record_property("frames_hz", [said_hz, frames])
    assert said_hz >= FRAMES_HZ
    bed.silent = True  # a page that hears nothing draws nothing: the figure is of traces, not of a clock
    time.sleep(0.3)
    still = page.evaluate("document.getElementById('canvas').toDataURL()")
    time.sleep(0.3)
    assert page.evaluate("document.getElementById('canvas').toDataURL()") == still
    print("first contentful paint, ms:", paints_ms, "frames a second: page says", said_hz, "screencast", frames)


def pictures(page, seconds):
    """Pictures a second that the browser itself puts on its screen; it sends one only where something changed."""
    session = page.context.new_cdp_session(page)
    n = 0

    def took(frame):
        nonlocal n
        n += 1
        session.send("Page.screencastFrameAck", {"sessionId": frame["sessionId"]})

    session.on("Page.screencastFrame", took)
    session.send("Page.startScreencast", {"format": "jpeg", "quality": 1, "maxWidth": 64, "maxHeight": 64})
    began_s = time.monotonic()
    page.wait_for_timeout(1000 * seconds)
    rate_hz = n / (time.monotonic() - began_s)
    session.send("Page.stopScreencast")
    session.detach()
    return rate_hz


@pytest.mark.safety("C1", "G1")
def test_stop_by_mouse_by_key_and_by_websocket_ends_a_train(page, bed):
    box = page.locator("#stop").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    for nth in range(3):
        for how in ("mouse", "Escape", "websocket"):
            if how == "Escape" and nth == 1:
                page.locator("#code").focus()  # wherever the keyboard is
            bed.start_train()
            with connect(f"ws://127.0.0.1:{bed.port}/live", origin=bed.url, close_timeout=0.1) as socket:
                asked_ns = time.monotonic_ns()
                if how == "mouse":
                    page.mouse.down()  # a finger that comes down is an act, however long it stays
                elif how == "Escape":
                    page.keyboard.press("Escape")
                else:
                    socket.send('{"do": "stop", "nr": 1}')
                time.sleep(0.3)
                page.mouse.up()
            last_ns = bed.pulses_ns()[-1]
            assert last_ns <= asked_ns + STOP_NS, how
            assert last_ns >= asked_ns - 100_000_000, f"{how}: no train was on"
            assert bed.rig.ask("status")["state"] == "IDLE"
    expect(page.locator("#state")).to_have_text("IDLE")
    assert len(bed.events("stop")) == 9


@pytest.mark.safety("G4")
def test_an_admin_lets_somebody_in_and_the_code_stands_nowhere_else(contexts, bed):
    admin = bed.pair(contexts(), "admin")
    admin.locator("#invite-name").fill("Grace")
    admin.locator("#invite-role").select_option("viewer")
    admin.locator("#invite-form button").click()
    expect(admin.locator("#invite-code")).to_contain_text("lets Grace in")
    code = admin.locator("#invite-code").inner_text().split()[0]
    assert len(code) == 8 and code not in admin.locator("#log").inner_text()
    other = contexts().new_page()
    other.goto(bed.url)
    expect(other.locator("#invite-form")).to_be_hidden()
    other.locator("#code").fill(code)
    other.locator("#pair-form button").click()
    other.locator("body[data-role=viewer]").wait_for(timeout=5000)
    assert code not in json.dumps(bed.rows)


@pytest.mark.safety("G2", "G6")
def test_arming_takes_both_steps_of_a_clinician(contexts, bed):
    page = bed.pair(contexts(), "clinician")
    expect(page.locator("#trigger")).to_be_visible()
    page.locator("#take").click()
    expect(page.locator("#holder")).to_contain_text("Ada")
    expect(page.locator("#arm")).to_be_hidden()
    page.locator("#offer").click()
    expect(page.locator("#prescription")).to_contain_text("20")
    expect(page.locator("#arm")).to_be_disabled()
    page.locator("#arm").click(force=True)  # a disabled button hears nothing
    page.locator("#automatic").uncheck()
    page.locator("#checked").check()
    page.locator("#checked").uncheck()
    expect(page.locator("#arm")).to_be_disabled()
    assert bed.events("arm") == []
    page.locator("#checked").check()
    page.locator("#arm").click()
    expect(page.locator("#state")).to_have_text("ARMED")
    assert [row["verdict"]["refused"] for row in bed.events("arm")] == [False]
    page.locator("#disarm").click()
    expect(page.locator("#state")).to_have_text("IDLE")
    assert bed.pulses_ns() == []


@pytest.mark.safety("G2", "C3")
def test_a_viewer_sees_nothing_to_press_and_a_patients_press_is_one_train(contexts, bed):
    for role in ("", "viewer", "admin"):
        if role:
            page = bed.pair(contexts(), role)
        else:
            page = contexts().new_page()
            page.goto(bed.url)
        for hidden in ("#trigger", "#offer", "#arm", "#take", "#disarm", "#why"):
            expect(page.locator(hidden)).to_be_hidden()
        expect(page.locator("#stop")).to_be_visible()
    page = bed.pair(contexts(), "patient", "Ben")
    expect(page.locator("#offer")).to_be_hidden()
    trigger = page.locator("#trigger")
    assert bed.rig.arm()["ok"]
    expect(page.locator("#state")).to_have_text("ARMED")
    for nth, press in enumerate((trigger.dblclick, lambda: hold(page, trigger, "Enter")), 1):
        press()
        time.sleep(bedside.REST_S + 0.6)
        assert len(bed.events("trigger")) == nth
        assert trains(bed.pulses_ns()) == nth


def hold(page, button, key):
    """Keep a key down for longer than a train and the rest after it; its repeats come as a keyboard sends them."""
    button.focus()
    end = time.monotonic() + bedside.REST_S + 0.8
    while time.monotonic() < end:
        page.keyboard.down(key)
        time.sleep(0.05)
    page.keyboard.up(key)


def trains(pulses_ns):
    """How many, told by a rest of half a second."""
    return sum(b - a > 500_000_000 for a, b in zip([-(10**12), *pulses_ns], pulses_ns, strict=False))


@pytest.mark.safety("B8")
@pytest.mark.parametrize("cut", ["the daemon says nothing", "the page's process is gone"])
def test_a_bed_that_is_not_heard_is_unknown_within_a_second_and_a_half(page, bed, cut):
    cut_s = time.monotonic()
    if cut == "the daemon says nothing":
        bed.silent = True
    else:
        bed.page.process.kill()
    expect(page.locator("#state")).to_have_text("unknown", timeout=4000)
    took_s = time.monotonic() - cut_s
    assert took_s <= UNKNOWN_S
    expect(page.locator(".alarm.high")).to_be_visible()
    assert page.title().startswith("unknown")
    bed.silent = False
    if cut == "the daemon says nothing":
        expect(page.locator("#state")).to_have_text("IDLE")
        expect(page.locator(".alarm.high")).to_have_count(0)
    print(f"unknown after {took_s:.2f} s")


def test_stop_is_always_in_view_nothing_scrolls_sideways_and_all_can_be_hit(contexts, bed):
    page = bed.pair(contexts(), "clinician")
    page.locator("#take").click()
    page.locator("#offer").click()
    expect(page.locator("#arm")).to_be_visible()
    page.wait_for_timeout(500)  # what guard still has to say of the offer would bring its own state back
    bed.facts |= {
        "state": "FAULT",
        "reason": "a reason of many words that goes on, averylongwordthatcannotbebroken" + 60 * "x",
        "late": "late " * 20,
    }
    expect(page.locator("#reason")).to_contain_text("many words")
    page.locator("#views button[data-view=prescription]").click()
    expect(page.locator("#rx-trains\\.peroneal-current_ma")).to_be_visible()
    for (name, (width, height)), view in itertools.product(SIZES.items(), ("live", "prescription", "sessions")):
        page.set_viewport_size({"width": width, "height": height})
        page.evaluate("scrollTo(0, 0)")
        page.locator(f"#views button[data-view={view}]").click()
        for to in ("0", "document.documentElement.scrollHeight"):
            page.evaluate(f"scrollTo(0, {to})")
            box = page.locator("#stop").bounding_box()
            assert box["x"] >= 0 and box["y"] >= 0, name
            assert box["x"] + box["width"] <= width and box["y"] + box["height"] <= height, name
            at = f"document.elementFromPoint({box['x'] + box['width'] / 2}, {box['y'] + box['height'] / 2}).closest('button')?.id"
            assert page.evaluate(at) == "stop", name
            expect(page.locator(".alarm.high")).to_be_in_viewport()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        for one in page.locator("button:visible, input:visible, select:visible, a:visible").all():
            box = one.bounding_box()
            assert min(box["height"], box["width"]) >= (24 if one.get_attribute("type") == "checkbox" else 44), (
                name,
                one.evaluate("e => e.id"),
            )


@pytest.mark.safety("C1")
def test_a_stop_that_nobody_answers_is_a_high_alarm_until_one_is_answered(contexts, bed):
    page = contexts().new_page()
    page.goto(bed.url)
    expect(page.locator("#state")).to_have_text("IDLE")
    os.kill(bed.rig.process.pid, signal.SIGSTOP)
    try:
        page.locator("#stop").click()
        expect(page.locator(".alarm.high")).to_contain_text("OFF BY HAND")
    finally:
        os.kill(bed.rig.process.pid, signal.SIGCONT)
    page.locator("#stop").click()
    expect(page.locator("#told")).to_have_text("Stopped.")
    expect(page.locator(".alarm.high")).to_have_count(0)


def test_a_silence_ends_when_something_new_is_wrong(contexts, bed):
    page = contexts().new_page()
    page.goto(bed.url)
    expect(page.locator("#state")).to_have_text("IDLE")
    expect(page.locator("#silence")).to_be_hidden()
    bed.facts |= {"state": "LOCKOUT", "reason": "31 events"}
    page.locator("#silence").click()
    expect(page.locator("#silence")).to_contain_text("Sound is off")
    bed.facts |= {"reason": "32 events"}
    expect(page.locator(".alarm.medium")).to_contain_text("32 events")
    expect(page.locator("#silence")).to_contain_text("Sound is off")
    bed.facts |= {"state": "FAULT", "reason": "electrode error"}
    expect(page.locator("#silence")).to_have_text("Silence for 2 minutes")
    bed.facts |= {"state": "IDLE", "reason": "cleared"}
    expect(page.locator("#silence")).to_be_hidden()


def test_why_a_bed_is_locked_out_is_not_hidden_by_what_comes_after(chromium, tmp_path):
    locked = NO_HISTORY | {"lockout": "thirty events"}
    with closing(bedside.Bedside(tmp_path, history=locked)) as bed, chromium.new_context() as context:
        page = bed.pair(context, "clinician")
        assert bed.facts["reason"] != "thirty events"
        expect(page.locator("#reason")).to_have_text("thirty events")
        expect(page.locator(".alarm.medium")).to_contain_text("thirty events")


def axe():
    """axe-core, from the file that CALMLOOP_AXE names or from the package that ships it."""
    if path := os.environ.get("CALMLOOP_AXE"):
        return Path(path).read_text()
    pytest.importorskip("axe_playwright_python")
    return resources.files("axe_playwright_python").joinpath("axe.min.js").read_text()


def violations(page, where):
    """What axe calls serious or worse."""
    found = page.evaluate("axe.run({resultTypes: ['violations']}).then((r) => r.violations)")
    serious = [(one, node) for one in found if one["impact"] in ("serious", "critical") for node in one["nodes"]]
    return [f"{where}: {one['id']}: {node['html']}: {node['failureSummary']}" for one, node in serious]


def test_axe_finds_nothing_serious(contexts, bed):
    script, found, n = axe(), [], 0
    bed.still = True  # what moves costs time and changes nothing here
    for role in ("", "viewer", "patient", "clinician", "admin"):
        context = contexts(bypass_csp=True)  # the page's own rules let no strange script in, this one either
        if role:
            page = bed.pair(context, role)
        else:
            page = context.new_page()
            page.goto(bed.url)
        page.add_script_tag(content=script)
        if role == "clinician":
            page.locator("#take").click()
            page.locator("#offer").click()
            expect(page.locator("#arm")).to_be_visible()
            page.locator("#checked").check()
            for view, shown in (("prescription", "#rx-put"), ("sessions", "#session-list")):
                page.locator(f"#views button[data-view={view}]").click()
                expect(page.locator(shown)).to_be_visible()
                for scheme in ("light", "dark"):
                    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
                    n += 1
                    found += violations(page, f"{view} {scheme}")
            page.locator("#views button[data-view=live]").click()
        states = ("OFF", "IDLE", "ARMED", "STIMULATING", "FAULT", "LOCKOUT", "unknown") if role == "clinician" else ("IDLE",)
        for state in states:
            bed.silent = state == "unknown"
            bed.facts |= {"state": state, "late": "late by 60 ms", "data_ok": state != "ARMED"}
            expect(page.locator("#state")).to_have_text(state)
            for size in ("phone", "laptop", "across the room") if state == "IDLE" else ("laptop",):
                page.set_viewport_size(dict(zip(("width", "height"), SIZES[size], strict=True)))
                for scheme in ("light", "dark"):
                    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
                    n += 1
                    where = f"{role or 'stranger'} {state} {size} {scheme}"
                    found += violations(page, where)
        bed.silent = False
        bed.facts |= {"state": "IDLE", "data_ok": True}
    assert not found, "\n".join(found)
    assert n == 46


# --- what somebody who had never seen the page misread ---------------------------------------------------------------------------------
def test_an_armed_bed_that_hears_nothing_says_so_for_as_long_as_it_lasts(contexts, bed):
    page = bed.pair(contexts(), "patient", "Ben")
    expect(page.locator("#why-not")).to_have_text("Not armed: ask the nurse.")
    bed.facts |= {"loop": "starting", "data_ok": False, "rules": {}, "requests_by": {"soleus EMG": 0}}
    expect(page.locator(".alarm.medium")).to_contain_text("the loop is still starting")
    assert bed.rig.arm()["ok"]
    expect(page.locator("#state")).to_have_text("ARMED")
    expect(page.locator("#mode")).to_have_text("button only")
    expect(page.locator("#why-not")).to_be_empty()
    page.locator("#trigger").click()
    expect(page.locator("#mode")).to_have_text("by a person")
    expect(page.locator("#told")).to_have_text("Yes: one stimulation.")
    expect(page.locator("#why-not")).to_contain_text("Rest after a train")
    expect(page.locator("#trigger")).to_have_attribute("aria-disabled", "false")
    expect(page.locator("#mode")).to_have_text("button only")
    bed.rig.ask("disarm")
    expect(page.locator("#why-not")).to_have_text("Not armed: ask the nurse.")
    expect(page.locator("#told")).to_be_empty()


def test_no_rule_is_at_rest_without_data_and_no_fault_claims_to_be_off_unheard(contexts, bed):
    page = contexts().new_page()
    page.goto(bed.url)
    expect(page.locator("#signals")).to_contain_text("soleus EMG: at rest")
    bed.facts |= {"data_ok": False}
    expect(page.locator("#signals")).to_contain_text("soleus EMG: unknown")
    expect(page.locator("#signals")).not_to_contain_text("at rest")
    refused = "refused: not armed: IDLE, x [B2]; automatic mode is off [B1]"
    for _ in range(7):
        bed.feed.mark(time.monotonic(), "refused", refused)
        bed.feed.mark(time.monotonic(), "spasm", "soleus EMG")
    expect(page.locator("#log")).to_contain_text("(7 times)")
    assert (
        page.evaluate("[...document.querySelectorAll('#log li')].filter((row) => row.textContent.includes('automatic mode')).length") == 1
    )
    assert page.evaluate("marks.filter((mark) => mark.what === 'refused').length") == 0


@pytest.mark.safety("G6")
def test_control_is_taken_from_somebody_by_a_second_press(contexts, bed):
    ada, bob = bed.pair(contexts(), "clinician"), bed.pair(contexts(), "clinician", "Bob")
    ada.locator("#take").click()
    expect(ada.locator("#holder")).to_contain_text("You hold control")
    expect(ada.locator("#take")).to_be_hidden()
    bob.locator("#views button[data-view=prescription]").click()
    bob.locator(CURRENT).fill("15")
    expect(bob.locator("#rx-why")).to_contain_text("Ada")
    expect(bob.locator("#rx-put")).to_be_disabled()
    bob.locator("#take").click()
    expect(bob.locator("#take")).to_contain_text("Press again to take control from Ada (clinician, page)")
    assert bed.rig.ask("status")["holder"].startswith("Ada")
    bob.locator("#take").click()
    expect(bob.locator("#holder")).to_contain_text("You hold control")
    expect(bob.locator("#rx-put")).to_be_enabled()
    expect(ada.locator("#holder")).to_contain_text("Bob (clinician, page) holds control")


@pytest.mark.parametrize("size", [(1280, 800), (360, 740)])
def test_what_would_be_armed_comes_into_view(contexts, bed, size):
    page = bed.pair(contexts(viewport=dict(zip(("width", "height"), size, strict=True))), "clinician")
    page.locator("#offer").click()
    expect(page.locator("#offered")).to_be_focused()
    for shown in ("#arm", "#prescription", "#checked"):
        expect(page.locator(shown)).to_be_in_viewport(ratio=1)
    at = "document.getElementById('told').closest('#arming') !== null"
    assert page.evaluate(at)


@pytest.mark.safety("B8")
def test_a_planned_new_session_is_no_emergency_but_one_that_does_not_come_is(page, bed):
    bed.facts |= {"renewing": True}
    expect(page.locator("#state")).to_have_text("new session")
    bed.silent = True
    page.wait_for_timeout(1500)
    expect(page.locator("#reason")).to_have_text("A new session begins with the new prescription; nothing is armed.")
    expect(page.locator(".alarm")).to_have_count(0)
    left_ms = page.evaluate("renewUntilMs - performance.now()")
    assert 0 < left_ms <= 20_000
    page.evaluate("renewUntilMs = performance.now()")
    expect(page.locator("#state")).to_have_text("unknown")
    expect(page.locator(".alarm.high")).to_be_visible()
    bed.facts |= {"renewing": False}
    bed.silent = False
    expect(page.locator("#state")).to_have_text("IDLE")


# --- the prescription and sessions of before --------------------------------------------------------------------------------------------
CURRENT, REASON = "#rx-trains\\.peroneal-current_ma", "#rx-reason"


@pytest.mark.safety("G6", "A14")
def test_a_clinician_changes_the_prescription_seeing_limits_and_what_follows(contexts, bed):
    page = bed.pair(contexts(), "clinician")
    page.locator("#views button[data-view=prescription]").click()
    expect(page.locator(CURRENT)).to_have_value("20")
    expect(page.locator(CURRENT + "-about")).to_contain_text("at most 20 (prescription, max_current_ma)")
    expect(page.locator("#rx-figures")).to_contain_text("charge per phase 10 of 10 uC")
    expect(page.locator("#rx-put")).to_be_disabled()
    page.locator(CURRENT).fill("20.5")
    expect(page.locator("#rx-problems")).to_contain_text("must be at most 20 mA (prescription)")
    expect(page.locator("#rx-problems")).to_contain_text("train peroneal, current: 20.5")
    expect(page.locator("#rx-figures .exceeded").first).to_contain_text("current 20.5 of 20 mA")
    expect(page.locator(CURRENT)).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#rx-put")).to_be_disabled()
    page.locator(CURRENT).fill("")
    expect(page.locator("#rx-problems")).to_contain_text("must be a number")
    page.locator(CURRENT).fill("15")
    expect(page.locator("#rx-figures")).to_contain_text("charge per phase 7.5 of 10 uC")
    page.locator("#rx-prescription-montage").select_option("calf")
    expect(page.locator("#rx-montage")).to_be_visible()
    assert page.locator("#rx-montage").evaluate("e => e.complete && e.naturalWidth > 100")
    page.locator("#rx-put").click()
    expect(page.locator("#told")).to_contain_text("Write it down first")
    page.locator(REASON).fill("less is enough")
    page.locator("#rx-put").click()
    said = json.loads(bed.rig.link.recv(65536))["prescribe"]  # the daemon's part
    changes = {"prescription": {"montage": "calf"}, "trains.peroneal": {"current_ma": 15}}
    assert said == {"based_on": 1, "changes": changes, "reason": "less is enough", "who": "Ada (clinician, page)"}
    bed.rig.link.send(json.dumps({"ok": False, "reasons": ["version 2 of Ben is in force"]}).encode())
    expect(page.locator("#rx-problems")).to_contain_text("version 2 of Ben is in force")
    expect(page.locator(CURRENT)).to_have_value("15")  # what was written is not lost
    page.locator("#rx-reset").click()
    expect(page.locator(CURRENT)).to_have_value("20")


def test_a_viewer_reads_the_prescription_and_changes_nothing_and_others_see_no_way_to_it(contexts, bed):
    page = bed.pair(contexts(), "viewer")
    page.locator("#views button[data-view=prescription]").click()
    expect(page.locator(CURRENT)).to_be_disabled()
    expect(page.locator("#rx-put")).to_be_hidden()
    for role in ("patient", "admin"):
        expect(bed.pair(contexts(), role).locator("#views")).to_be_hidden()


def test_a_session_is_reviewed_spasm_by_spasm(contexts, bed):
    folder, _ = record(bed.sessions)
    page = bed.pair(contexts(), "viewer")
    page.locator("#views button[data-view=sessions]").click()
    page.locator("#session-list").select_option(folder.name)
    expect(page.locator("#session-told")).to_contain_text("2 spasms, 1 trains, 25 pulses, 0.25 mC", timeout=20_000)
    expect(page.locator("#session-part")).to_have_text("0:00.0 to 0:09.5")
    rows = page.locator("#session-spasms tr")
    expect(rows).to_have_count(2)
    expect(rows.nth(0)).to_contain_text("25")
    cells = [rows.nth(i).locator("td").nth(6).inner_text() for i in (0, 1)]
    assert 80 < float(cells[0]) < 110 and cells[1] == ""  # the second was not stimulated
    expect(page.locator("#session-during")).to_have_text("RMS until stimulated, µV")
    rows.nth(1).locator("button").click()
    expect(page.locator("#session-part")).to_have_text("0:03.5 to 0:09.5")
    before = page.locator("#session-canvas").screenshot()
    box = page.locator("#session-canvas").bounding_box()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 20)
    page.mouse.up()
    expect(page.locator("#session-part")).to_have_text("0:04.7 to 0:07.1")
    page.locator("[data-zoom=out]").click()
    expect(page.locator("#session-part")).to_have_text("0:03.5 to 0:08.3")
    assert page.locator("#session-canvas").screenshot() != before
    expect(page.locator("#session-events")).to_contain_text("granted")
