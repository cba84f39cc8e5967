"""Roles, codes and tokens by themselves: every verb by everybody, judged by a table of its own."""

import itertools
import json

import pytest

from controller.people import CODE_NS, CODE_TRIES, MAX_PEOPLE, MAY, PERSON_NS, REFUSALS, SECOND, NotAllowedError, People, Role

NOW = 10**15
# the words, not the code's: patient: trigger, stop; viewer: read; clinician: prescribe, arm, clear; admin: users, no therapy
ALLOWED = {
    None: {"stop", "status", "pair"},
    "patient": {"stop", "status", "pair", "leave", "trigger"},
    "viewer": {"stop", "status", "pair", "leave", "read"},
    "clinician": {"stop", "status", "pair", "leave", "trigger", "offer", "arm", "disarm", "clear", "prescribe", "read", "take"},
    "admin": {"stop", "status", "pair", "leave", "invite"},
}
STRANGE = ("", "STOP", "button", "end", "loop", "__class__", None, 7, ["stop"], {"stop": 1})
VERBS = (*sorted(MAY), *STRANGE)


def paired(people, role, name="Ada", now=NOW):
    code = people.invite(role, name, now)
    token, person = people.pair(code, now)
    assert (person.role, person.name) == (role, name)
    return token


def may(people, verb, token, now=NOW):
    try:
        people.check(verb, token, now)
    except NotAllowedError:
        return False
    return True


@pytest.mark.safety("G2")
def test_every_verb_by_every_role_with_every_kind_of_token():
    tried = 0
    for role in ALLOWED:
        for verb in VERBS:
            people = People()
            token = paired(people, role) if role else ""
            known = isinstance(verb, str) and verb in ALLOWED[role]
            assert may(people, verb, token) is known, (role, verb)
            for nobody in ("", None, token[:-1] + "x" if token else "x", token.upper() + " ", "0" * 64, 12, b"token", ["x"]):
                assert may(people, verb, nobody) is (isinstance(verb, str) and verb in ALLOWED[None]), (role, verb, nobody)
                tried += 1
            if role:
                assert may(people, verb, token, NOW + PERSON_NS + 1) is (isinstance(verb, str) and verb in ALLOWED[None])  # old
                people.leave(token, NOW)
                assert may(people, verb, token) is (isinstance(verb, str) and verb in ALLOWED[None])
    assert tried > 800


@pytest.mark.safety("G2")
def test_a_token_of_one_bed_is_nothing_at_another():
    here, there = People(), People()
    token = paired(here, Role.CLINICIAN)
    assert may(here, "arm", token)
    assert not may(there, "arm", token)


@pytest.mark.safety("G4")
def test_a_code_pairs_once():
    people = People()
    code = people.invite("patient", "Ada", NOW)
    assert len(code) == 8 and code.isdecimal()
    people.pair(code, NOW)
    with pytest.raises(NotAllowedError, match="no code is open"):
        people.pair(code, NOW)


@pytest.mark.safety("G4")
def test_a_code_lives_two_minutes():
    people = People()
    code = people.invite("patient", "Ada", NOW)
    with pytest.raises(NotAllowedError):
        people.pair(code, NOW + CODE_NS + 1)
    code = people.invite("patient", "Ada", NOW)
    people.pair(code, NOW + CODE_NS)


@pytest.mark.safety("G4")
def test_five_guesses_end_a_code():
    people = People()
    code = people.invite("patient", "Ada", NOW)
    for guess in itertools.islice((f"{n:08}" for n in itertools.count() if f"{n:08}" != code), CODE_TRIES):
        with pytest.raises(NotAllowedError):
            people.pair(guess, NOW)
    with pytest.raises(NotAllowedError, match="no code is open"):
        people.pair(code, NOW)
    for wrong in (None, 5, ["12345678"], {"a": 1}):
        people.invite("patient", "Ada", NOW)
        with pytest.raises(NotAllowedError):
            people.pair(wrong, NOW)


def test_a_new_code_ends_the_one_before():
    people = People()
    old = people.invite("admin", "Ada", NOW)
    new = people.invite("viewer", "Ben", NOW)
    with pytest.raises(NotAllowedError):
        people.pair(old, NOW)
    assert people.pair(new, NOW)[1].role == "viewer"


@pytest.mark.safety("G6")
def test_one_clinician_holds_control_and_hands_it_over_in_the_open():
    people = People()
    ada, ben = paired(people, "clinician", "Ada"), paired(people, "clinician", "Ben")
    people.check("offer", ada, NOW)
    with pytest.raises(NotAllowedError, match=r"Ada \(clinician, page\) holds control"):
        people.check("arm", ben, NOW)
    assert may(people, "disarm", ben)  # what ends output needs to hold nothing
    assert people.take(ben, NOW) == "Ada (clinician, page)"
    assert people.facts()["holder"] == "Ben (clinician, page)"
    assert not may(people, "arm", ada)
    people.leave(ben, NOW)
    assert may(people, "arm", ada)


@pytest.mark.safety("G6")
def test_whose_time_is_over_holds_nothing():
    people = People()
    ada = paired(people, "clinician", "Ada")
    people.check("offer", ada, NOW)
    ben = paired(people, "clinician", "Ben", NOW + PERSON_NS)
    assert may(people, "arm", ben, NOW + PERSON_NS + 1)


@pytest.mark.safety("G5")
def test_no_more_than_so_many_pair():
    people = People()
    for n in range(MAX_PEOPLE):
        paired(people, "viewer", f"V{n}")
    code = people.invite("viewer", "one more", NOW)
    with pytest.raises(NotAllowedError, match="somebody must leave"):
        people.pair(code, NOW)


@pytest.mark.safety("G7", "G11")
def test_whoever_pairs_has_a_name_and_a_role_and_no_token_is_kept():
    people = People()
    for role, name in (("king", "Ada"), ("", "Ada"), ("patient", ""), ("patient", "  "), ("patient", "a\nb"), ("patient", "\x1b[2J")):
        with pytest.raises(NotAllowedError):
            people.invite(role, name, NOW)
    token = paired(people, "patient", "x" * 40)
    assert token not in repr(people) and token not in str(people.facts())


@pytest.mark.safety("G5")
def test_a_flood_of_refusals_is_not_written_down_one_by_one():
    people = People()
    written = [people.writes_down(NOW + n) for n in range(1000)]
    assert sum(written) == REFUSALS
    assert people.writes_down(NOW + 11 * SECOND)


@pytest.mark.safety("G2", "G4")
def test_who_is_handed_on_to_the_next_guard_is_known_there_and_no_token_can_be_made_of_it():
    before, after = People(), People()
    ada, ben = paired(before, "clinician", "Ada"), paired(before, "patient", "Ben")
    before.invite("admin", "Eve", NOW)
    before.take(ada, NOW)
    given = json.loads(json.dumps(before.handed_on()))
    assert ada not in json.dumps(given) and ben not in json.dumps(given)
    after.take_over(given)
    assert after.facts() == before.facts()
    assert may(after, "arm", ada) and may(after, "trigger", ben) and not may(after, "arm", ben)
    assert not may(after, "arm", ada, NOW + PERSON_NS + 1)
    for known in after.people:
        assert not may(after, "trigger", known)
    with pytest.raises(NotAllowedError, match="no code is open"):
        after.pair("12345678", NOW)


@pytest.mark.safety("B3", "G6")
def test_who_proves_again_keeps_control_and_the_old_token_ends():
    people = People()
    old = paired(people, "clinician", "Ada")
    people.take(old, NOW)
    code = people.invite("clinician", "Ada", NOW + SECOND)
    new, person = people.pair(code, NOW + SECOND, old)
    assert person.proved_ns == NOW + SECOND and len(people.people) == 1
    assert people.facts()["holder"] == "Ada (clinician, page)"
    assert may(people, "arm", new, NOW + SECOND) and not may(people, "arm", old, NOW + SECOND)
    code = people.invite("clinician", "Ben", NOW)  # at the same browser, but somebody else
    ben, _ = people.pair(code, NOW, new)
    assert len(people.people) == 2 and not may(people, "arm", ben)
