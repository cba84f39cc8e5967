"""Guard's door for the page, as a process: nothing without a token but a stop; judged by the virtual stimulator's log and guard's rows."""

import json
import socket
import threading
import time

import pytest

from controller import messages
from tests.rig import GuardRig
from tests.test_people import ALLOWED


@pytest.fixture
def rig(tmp_path):
    rig = GuardRig(tmp_path, changes={"page": True})
    yield rig
    rig.close()


def ask(rig, do, token="", **more):
    return messages.ask(str(messages.page_path(messages.control_path(rig.bed))), {"do": do, "token": token, **more})


def pair(rig, role, name="Ada"):
    code = rig.ask("invite", role=role, name=name)["code"]
    answer = ask(rig, "pair", code=code)
    assert (answer["ok"], answer["role"], answer["name"]) == (True, role, name)
    return answer["token"]


def arm(rig, token):
    offer = ask(rig, "offer", token)
    assert offer["ok"], offer["reasons"]
    named = {"offer": offer["offer"], "prescription_id": offer["prescription_id"], "electrodes_checked": True, "automatic": False}
    return ask(rig, "arm", token, **named)


@pytest.mark.safety("G1", "C1")
def test_a_stranger_reads_and_stops_and_nothing_else(rig):
    for verb in ("trigger", "button", "offer", "arm", "disarm", "clear", "take", "invite", "leave", "nonsense"):
        for token in ("", "0" * 64, None, 5):
            answer = ask(rig, verb, token, id=1, issued_ns=time.monotonic_ns(), closed=True, role="admin", name="Eve", reason="x")
            assert not answer["ok"], verb
            assert answer["state"] == "IDLE"
    assert ask(rig, "status")["you"] is None
    rig.arm()
    assert rig.trigger()["ok"]
    time.sleep(0.1)
    assert ask(rig, "stop")["ok"]
    stopped_ns = time.monotonic_ns()
    time.sleep(0.3)
    assert rig.twin.pulses()
    assert all(p["pulse_ns"] < stopped_ns + 5_000_000 for p in rig.twin.pulses())
    assert ask(rig, "status")["state"] == "IDLE"


@pytest.mark.safety("G2")
def test_what_each_role_may_do_at_a_real_guard(rig):
    for role, allowed in ALLOWED.items():
        token = pair(rig, role) if role else ""
        for verb in ("trigger", "offer", "disarm", "take", "invite", "clear"):
            answer = ask(rig, verb, token, id=time.monotonic_ns(), issued_ns=time.monotonic_ns(), role="viewer", name="V", reason="why")
            refused_for_who = any("[G2]" in reason for reason in answer["reasons"])
            assert refused_for_who is (verb not in allowed), (role, verb, answer["reasons"])
        if token:
            ask(rig, "leave", token)
    assert rig.twin.pulses() == []


@pytest.mark.safety("G2", "G7")
def test_a_clinician_arms_and_a_patient_triggers_in_their_own_names(rig):
    clinician, patient = pair(rig, "clinician", "Ada"), pair(rig, "patient", "Ben")
    assert arm(rig, clinician)["state"] == "ARMED"
    press = messages.press("somebody else")
    assert ask(rig, **press, token=patient)["ok"]
    assert not ask(rig, **press, token=patient)["ok"]  # the same press
    time.sleep(0.6)
    assert len(rig.twin.pulses()) > 15
    rows = rig.rows()
    said = {row["event"]["text"] for row in rows if row.get("event", {}).get("text")}
    assert {"Ada (clinician, page)", "Ben (patient, page)"} <= said
    assert not any("somebody else" in text for text in said)
    for token in (clinician, patient):
        assert token not in json.dumps(rows)


@pytest.mark.safety("B3")
def test_the_pages_word_for_when_somebody_proved_who_they_are_counts_for_nothing(rig):
    assert not ask(rig, "arm", "", authenticated_ns=time.monotonic_ns(), electrodes_checked=True, prescription_id="0", offer=1)["ok"]
    rows = [row["event"] for row in rig.rows() if row.get("event", {}).get("kind") == "arm"]
    assert rows == []


@pytest.mark.safety("G6")
def test_two_clinicians_have_one_holder(rig):
    ada, ben = pair(rig, "clinician", "Ada"), pair(rig, "clinician", "Ben")
    assert arm(rig, ada)["state"] == "ARMED"
    refused = ask(rig, "offer", ben)
    assert not refused["ok"] and "Ada (clinician, page) holds control" in refused["reasons"][0]
    assert ask(rig, "take", ben)["ok"]
    assert ask(rig, "status", ada)["holder"] == "Ben (clinician, page)"
    assert any("before Ada" in r for row in rig.rows() if "verdict" in row for r in row["verdict"]["reasons"])
    assert ask(rig, "disarm", ada)["state"] == "IDLE"


@pytest.mark.safety("G5", "G7")
def test_a_flood_of_refusals_leaves_guard_and_its_books_alone(rig):
    rig.rows()
    for _ in range(300):
        assert not ask(rig, "arm")["ok"]
    kinds = [row["event"]["kind"] for row in rig.rows() if "event" in row]
    assert 20 <= kinds.count("bad input") <= 41
    assert rig.ask("status")["ok"]


def test_a_bed_without_a_page_has_no_door(guard):
    assert not messages.page_path(messages.control_path(guard.bed)).exists()
    with pytest.raises(messages.NoBedError):
        ask(guard, "stop")


# --- the prescription: guard lets it pass to the daemon, which is played here -----------------------------------------------------------
def prescribe(rig, token, **more):
    """Asked in a thread: the answer is the daemon's."""
    answers = []
    fields = {"based_on": 1, "changes": {"prescription": {"max_current_ma": 18}}, "reason": "less is enough"} | more
    thread = threading.Thread(target=lambda: answers.append(ask(rig, "prescribe", token, **fields)))
    thread.start()
    return thread, answers


def passed_on(rig):
    rig.link.settimeout(1.0)
    try:
        return json.loads(rig.link.recv(65536))
    except TimeoutError:
        return None


@pytest.mark.safety("G2", "G6", "G7")
def test_a_new_prescription_goes_to_the_daemon_with_who_and_why_and_its_word_is_the_answer(rig):
    token = pair(rig, "clinician", "Ada")
    thread, answers = prescribe(rig, token)
    said = passed_on(rig)
    assert said["prescribe"] == {
        "based_on": 1,
        "changes": {"prescription": {"max_current_ma": 18}},
        "reason": "less is enough",
        "who": "Ada (clinician, page)",
    }
    assert [row[1:3] for row in said["people"]["people"]] == [["Ada", "clinician"]]
    assert token not in json.dumps(said)
    second, refused = prescribe(rig, token)
    second.join()
    assert "another change" in refused[0]["reasons"][0]
    rig.link.send(json.dumps({"ok": False, "reasons": ["version 2 is in force"]}).encode())
    thread.join()
    assert (answers[0]["ok"], answers[0]["reasons"]) == (False, ["version 2 is in force"])
    assert any("Ada (clinician, page) prescribes: less is enough" in row.get("event", {}).get("text", "") for row in rig.rows())
    thread, answers = prescribe(rig, token)  # and the next is asked again
    assert passed_on(rig)
    rig.link.send(b'{"ok": true, "reasons": []}')
    thread.join()
    assert answers[0]["ok"]


@pytest.mark.safety("B1", "B5", "G2", "G6")
def test_nothing_is_prescribed_by_who_may_not_or_while_armed_or_without_a_reason(rig):
    ada, ben = pair(rig, "clinician", "Ada"), pair(rig, "clinician", "Ben")
    ask(rig, "take", ada)
    for token, more, words in (
        ("", {}, "[G2]"),
        (pair(rig, "patient", "Pat"), {}, "[G2]"),
        (pair(rig, "viewer", "Vic"), {}, "[G2]"),
        (pair(rig, "admin", "Adm"), {}, "[G2]"),
        (ben, {}, "Ada (clinician, page) holds control"),
        (ada, {"reason": " "}, "reason"),
        (ada, {"based_on": "1"}, "based_on"),
        (ada, {"based_on": None}, "based_on"),
    ):
        thread, answers = prescribe(rig, token, **more)
        thread.join()
        assert not answers[0]["ok"] and words in answers[0]["reasons"][0], answers
    arm(rig, ada)
    thread, answers = prescribe(rig, ada)
    thread.join()
    assert "not at ARMED [B1]" in answers[0]["reasons"][0]
    assert passed_on(rig) is None


@pytest.mark.safety("B1", "G6")
def test_while_a_change_is_with_the_daemon_nobody_arms_or_changes_and_its_answer_is_for_nobody_else(rig):
    token = pair(rig, "clinician")
    path = messages.page_path(messages.control_path(rig.bed))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
        s.connect(str(path))
        s.send(json.dumps({"do": "prescribe", "token": token, "based_on": 1, "changes": {}, "reason": "x"}).encode())
        assert passed_on(rig)
    time.sleep(0.05)
    thread, answers = prescribe(rig, token)
    thread.join()
    assert "another change" in answers[0]["reasons"][0]
    assert "being put into force" in arm(rig, token)["reasons"][0]
    assert ask(rig, "status")["state"] == "IDLE"
    rig.link.send(b"{")  # what cannot be read ends nothing
    time.sleep(0.05)
    thread, answers = prescribe(rig, token)
    assert passed_on(rig)
    rig.link.send(b'{"ok": true, "reasons": []}')
    thread.join()
    assert answers[0]["ok"]
    assert not arm(rig, token)["ok"]  # it ends any moment


@pytest.mark.safety("B5", "B6")
def test_a_fault_is_not_left_behind_by_a_new_prescription(tmp_path):
    rig = GuardRig(tmp_path, "--fault", "electrode-error@5", changes={"page": True})
    try:
        token = pair(rig, "clinician")
        rig.arm()
        rig.trigger()
        rig.wait_for(lambda s: s["state"] == "FAULT")
        for state in ("FAULT", "IDLE"):
            if state == "IDLE":
                assert rig.ask("clear", reason="put on again")["ok"]
                rig.wait_for(lambda s: s["state"] == "IDLE")
            thread, answers = prescribe(rig, token)
            thread.join()
            assert not answers[0]["ok"] and "[B" in answers[0]["reasons"][0], state
        assert passed_on(rig) is None
    finally:
        rig.close()


@pytest.mark.safety("G4")
def test_people_are_known_to_the_guard_of_the_session_that_a_new_prescription_begins(tmp_path):
    (tmp_path / "one").mkdir()
    first = GuardRig(tmp_path / "one", changes={"page": True})
    token = pair(first, "clinician", "Ada")
    thread, _ = prescribe(first, token)
    people = passed_on(first)["people"]
    first.link.send(b'{"ok": true, "reasons": []}')
    thread.join()
    first.close()
    (tmp_path / "two").mkdir()
    second = GuardRig(tmp_path / "two", changes={"page": True, "people": people})
    try:
        status = ask(second, "status", token)
        assert (status["you"], status["holder"], status["state"]) == ({"name": "Ada", "role": "clinician"}, "Ada (clinician, page)", "IDLE")
        start = next(row for row in second.rows() if "start_ns" in row)
        assert "people" not in start["view"]
    finally:
        second.close()


@pytest.mark.safety("F5")
def test_a_disk_that_is_nearly_full_forbids_arming_until_it_has_room(rig):
    rig.link.send(json.dumps({"why_not_arm": "1.0 GB are free [F5]"}).encode())
    time.sleep(0.05)
    answer = rig.arm()
    assert not answer["ok"] and answer["reasons"] == ["1.0 GB are free [F5]"]
    assert rig.ask("status")["state"] == "IDLE"
    assert rig.ask("stop")["ok"]
    rig.link.send(json.dumps({"why_not_arm": ""}).encode())
    time.sleep(0.05)
    assert rig.arm()["ok"]
