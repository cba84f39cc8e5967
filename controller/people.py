"""Who may do what, for everybody who comes over the page: roles, one-use codes, tokens, and the one who holds control.

Guard keeps this, since guard is what must refuse: the page only carries words. Whoever sits at the machine itself (the control socket of
the same user) needs none of it. Tokens are known here by their SHA-256 alone. A guard that died takes everybody with it, and they pair
again; where a new prescription asks for a new guard, the old one hands them on. Standard library alone. Requirements by
number: our safety notes (G1-G6).
"""

from __future__ import annotations

import hashlib
import secrets
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

SECOND = 1_000_000_000
CODE_NS, CODE_TRIES = 120 * SECOND, 5  # G4: a code lives two minutes and bears five guesses
CODE_DIGITS = 8  # 26 bits (G4 asks for 20)
PERSON_NS = 12 * 3600 * SECOND  # then even a clinician pairs again
MAX_PEOPLE = 16  # G5
REFUSALS, REFUSALS_NS = 20, 10 * SECOND  # more of them are answered, and not written down one by one
TOKEN_BYTES = 32
MAX_NAME = 40


class Role(StrEnum):
    """Of the page's users."""

    PATIENT = "patient"
    VIEWER = "viewer"
    CLINICIAN = "clinician"
    ADMIN = "admin"


EVERYBODY = frozenset((None, *Role))
#: verb -> who may; what is not here nobody may. A stop is everybody's (C1), and so is reading how things are (G1).
MAY: dict[str, frozenset[Role | None]] = {
    "stop": EVERYBODY,
    "status": EVERYBODY,
    "pair": EVERYBODY,
    "leave": frozenset(Role),
    "read": frozenset((Role.VIEWER, Role.CLINICIAN)),  # what is prescribed, and sessions of before
    "trigger": frozenset((Role.PATIENT, Role.CLINICIAN)),
    "offer": frozenset((Role.CLINICIAN,)),
    "arm": frozenset((Role.CLINICIAN,)),
    "disarm": frozenset((Role.CLINICIAN,)),
    "clear": frozenset((Role.CLINICIAN,)),
    "prescribe": frozenset((Role.CLINICIAN,)),
    "take": frozenset((Role.CLINICIAN,)),
    "invite": frozenset((Role.ADMIN,)),
}
HOLDER_ALONE = frozenset(("offer", "arm", "clear", "prescribe"))  # G6; whoever ends output needs to hold nothing


class NotAllowedError(Exception):
    """The message says what would be needed."""


@dataclass(slots=True)
class Person:
    """Who paired, as what, and when: that is when they proved who they are."""

    name: str
    role: Role
    proved_ns: int

    def __str__(self) -> str:
        return f"{self.name} ({self.role}, page)"


@dataclass(slots=True)
class People:
    """Everybody who has paired with this guard, and the codes that are open.

    Attributes
    ----------
    people : dict of token's SHA-256 to Person
    codes : dict of code's SHA-256 to (Person who would be, when it was made)
    holder : str
        SHA-256 of the token of the clinician who holds control; empty = nobody does.
    """

    people: dict[str, Person] = field(default_factory=dict)
    codes: dict[str, tuple[Person, int]] = field(default_factory=dict)
    holder: str = ""
    tries: int = 0
    refused_ns: deque[int] = field(default_factory=lambda: deque(maxlen=REFUSALS))

    def invite(self, role: str, name: str, now: int) -> str:
        """Make a one-use code, to be shown at the bedside alone; it ends the codes before it. Raises NotAllowedError."""
        try:
            wanted = Role(role)
        except ValueError:
            raise NotAllowedError(f"role {role!r:.40} is none of {', '.join(Role)} [G2]") from None
        name = name.strip()[:MAX_NAME]
        if not name or not name.isprintable():
            raise NotAllowedError("whoever pairs needs a name, in words that can be read [G7]")
        code = f"{secrets.randbelow(10**CODE_DIGITS):0{CODE_DIGITS}}"
        self.codes, self.tries = {digest(code): (Person(name, wanted, 0), now)}, 0
        return code

    def pair(self, code: object, now: int, before: object = "") -> tuple[str, Person]:
        """Give a token for a code. Raises NotAllowedError; the fifth wrong code ends the right one.

        Whoever proves again who they are gives the token from `before`: it ends, and control stays with them.
        """
        self.forget_old(now)
        if not self.codes:
            raise NotAllowedError("no code is open: ask at the bedside for a new one [G4]")
        known = digest(code) if isinstance(code, str) else ""
        person, made_ns = self.codes.pop(known, (None, 0))
        if person is None or now - made_ns > CODE_NS:
            self.tries += 1
            if self.tries >= CODE_TRIES:
                self.codes.clear()
            raise NotAllowedError("not the code that the bedside shows, or it is too old [G4]")
        old, known_before = self.who(before, now)
        again = known_before is not None and (known_before.name, known_before.role) == (person.name, person.role)
        if len(self.people) >= MAX_PEOPLE and not again:
            raise NotAllowedError(f"{MAX_PEOPLE} are paired already: somebody must leave first [G5]")
        token = secrets.token_hex(TOKEN_BYTES)
        person.proved_ns = now
        self.people[digest(token)] = person
        if again:
            del self.people[old]
            if self.holder == old:
                self.holder = digest(token)
        return token, person

    def who(self, token: object, now: int) -> tuple[str, Person | None]:
        """Whose token this is, and its SHA-256; an unknown one, an old one and none are all nobody's."""
        self.forget_old(now)
        known = digest(token) if isinstance(token, str) and token else ""
        return known, self.people.get(known)

    def check(self, verb: object, token: object, now: int) -> Person | None:
        """Let a verb pass, or raise NotAllowedError with what it needs.

        Returns
        -------
        Person or None
            Who it is; None = somebody who has not paired.
        """
        known, person = self.who(token, now)
        roles = MAY.get(verb) if isinstance(verb, str) else None
        if roles is None:
            raise NotAllowedError(f"{verb!r:.40} is nothing that a page may ask for [G2]")
        role = person.role if person else None
        if role not in roles:
            needed = " or ".join(sorted(r for r in roles if r))
            raise NotAllowedError(f"{verb} is for {needed}; {person or 'whoever has not paired'} may not [G2]")
        if verb in HOLDER_ALONE:
            holder = self.people.get(self.holder)
            if holder is None:
                self.holder = known
            elif self.holder != known:
                raise NotAllowedError(f"{holder} holds control; take it over first, and tell them [G6]")
        return person

    def take(self, token: object, now: int) -> str:
        """Hand control over to a clinician; returns whose it was, empty = nobody's."""
        known, _ = self.who(token, now)
        before, self.holder = self.people.get(self.holder), known
        return str(before) if before else ""

    def holds(self, token: object) -> bool:
        """Whether whoever has this token holds control."""
        return isinstance(token, str) and digest(token) == self.holder

    def leave(self, token: object, now: int) -> None:
        """Forget a person."""
        known, _ = self.who(token, now)
        self.people.pop(known, None)
        if self.holder == known:
            self.holder = ""

    def forget_old(self, now: int) -> None:
        """What has lived long enough is gone."""
        self.codes = {known: row for known, row in self.codes.items() if now - row[1] <= CODE_NS}
        for known in [known for known, person in self.people.items() if now - person.proved_ns > PERSON_NS]:
            del self.people[known]

    def writes_down(self, now: int) -> bool:
        """Whether one more refusal is written down by itself: a flood of them is not."""
        crowd = len(self.refused_ns) == REFUSALS and now - self.refused_ns[0] <= REFUSALS_NS
        if not crowd:
            self.refused_ns.append(now)
        return not crowd

    def handed_on(self) -> dict[str, Any]:
        """For the guard of the session that a new prescription begins; no token can be made of it."""
        return {"people": [[known, p.name, p.role, p.proved_ns] for known, p in self.people.items()], "holder": self.holder}

    def take_over(self, handed_on: dict[str, Any]) -> None:
        """Know everybody whom the guard before knew."""
        self.people = {known: Person(name, Role(role), proved_ns) for known, name, role, proved_ns in handed_on["people"]}
        self.holder = handed_on["holder"]

    def facts(self) -> dict[str, Any]:
        """For the status: who is there, and who holds control; no token."""
        holder = self.people.get(self.holder)
        return {"people": [{"name": p.name, "role": p.role} for p in self.people.values()], "holder": str(holder) if holder else ""}


def digest(secret: str) -> str:
    """Return SHA-256 in hex: all that is kept of a secret. Looking that up tells a guesser's stopwatch nothing about the secret."""
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()
