"""Montages: for each muscle that may spasm, which nerve to stimulate, where pads and EMG go, a drawing of it, and what is known.

`config/montages.toml` holds every fact with its source. A montage is advice to a clinician and no prescription: nothing of it reaches the
stimulator, a person copies figures into settings. The starting train is nevertheless checked by the same code as a prescription.

The drawing is made here from the pads' coordinates: a body of 180 cm, in cm, from the front and from the back.
"""

from __future__ import annotations

import json
import sys
import tomllib
from difflib import get_close_matches
from pathlib import Path
from textwrap import fill, wrap
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_args
from xml.sax.saxutils import escape

from pydantic import Field, ValidationError, model_validator

from controller import limits
from controller.settings import Table, Text, Train, default_config

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Mapping
else:
    from collections.abc import Mapping  # pydantic reads the annotation when it builds the class

View = Literal["front", "back"]
Side = Literal["right", "left"]
Evidence = Literal["studied", "by analogy", "unknown"]
Sentence = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\p{C}\p{Zl}\p{Zp}]+$")]
Sentences = Annotated[tuple[Sentence, ...], Field(strict=False, min_length=1)]
NOTICE = "Research software; a clinician places and titrates. Figures are values to start from, not a prescription."
BODY_CM = 180.0
REACH_CM = 45.0  # from the midline to beyond the fingers


class MontageError(ValueError):
    """The file of montages cannot be used; each line names a table, a key and what is wrong."""


class Pad(Table):
    """A pad of the stimulator, or a pair of EMG electrodes."""

    kind: Literal["cathode", "anode", "emg"]
    name: Text
    where: Sentence
    view: View
    x_cm: float = Field(ge=0.0, le=REACH_CM)  # from the midline toward the treated side
    y_cm: float = Field(ge=0.0, le=BODY_CM)  # above the floor
    width_cm: float = Field(ge=1.0, le=15.0)
    height_cm: float = Field(ge=1.0, le=15.0)
    turn_deg: float = Field(default=0.0, ge=-90.0, le=90.0)  # lower end away from the body

    @property
    def label(self) -> str:
        """What stands beside it."""
        return {"cathode": "cathode (−)", "anode": "anode (+)", "emg": "EMG"}[self.kind] + f": {self.name}"

    @property
    def area_cm2(self) -> float:
        """Its conducting area."""
        return self.width_cm * self.height_cm


class Source(Table):
    """A claim and where it comes from."""

    claim: Sentence
    source: Sentence


Sources = Annotated[tuple[Source, ...], Field(strict=False, min_length=1)]


class Common(Table):
    """`[common]`: what holds for every montage."""

    tuning: Sentences
    cautions: Sentences
    sources: Sources


class Montage(Table):
    """`[montages.NAME]`."""

    muscle: Text
    antagonist: Text
    nerve: Text
    evidence: Evidence
    evidence_words: Sentence
    sign: Sentence  # by which the nerve is found
    train: Train
    cautions: Sentences
    sources: Sources
    pads: tuple[Pad, ...] = Field(strict=False)

    @property
    def electrode_area_cm2(self) -> float:
        """Area of the smaller pad: density is highest there."""
        return min(pad.area_cm2 for pad in self.pads if pad.kind != "emg")

    @model_validator(mode="after")
    def _makes_sense(self) -> Montage:
        if self.muscle == self.antagonist:
            raise ValueError("muscle and antagonist are the same")
        kinds = [pad.kind for pad in self.pads]
        if kinds.count("cathode") != 1 or kinds.count("anode") != 1 or "emg" not in kinds:
            raise ValueError("pads must be one cathode, one anode and at least one emg")
        if wrong := limits.check_prescription(widest(self.train, self.electrode_area_cm2)):
            raise ValueError("; ".join(wrong))
        return self


class Montages(Table):
    """The whole file."""

    common: Common
    montages: Mapping[Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")], Montage]


def widest(train: Train, electrode_area_cm2: float) -> limits.Prescription:
    """Return the prescription that allows this train and all else that the hard limits allow: what is outside it, no setting can allow."""
    most = {name: high for name, (_, high) in limits.bounds().items()} | {"electrode_area_mm2": int(electrode_area_cm2 * 100)}
    hard = limits.HARD
    box = limits.Device("any", 8, hard.max_current_ua, 500, hard.min_phase_width_us, hard.max_phase_width_us, hard.max_pulse_rate_mhz)
    in_integers = limits.Train(
        "start",
        train.channel,
        round(train.current_ma * 1e3),
        train.phase_width_us,
        train.interphase_gap_us,
        round(train.pulse_rate_hz * 1e3),
        train.duration_ms * 1000,
        train.ramp_up_ms * 1000,
        train.taper_ms * 1000,
    )
    return limits.Prescription((in_integers,), 0, box, **most)


# --- reading ----------------------------------------------------------------------------------------------------------------------
def load(path: str | Path) -> Montages:
    """Read a file of montages. Raises `MontageError`, which names everything that is wrong."""
    try:
        raw = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise MontageError(f"{path}: cannot be read: {error}") from None
    try:
        return Montages.model_validate(raw)
    except ValidationError as error:
        raise MontageError("\n".join(f"{path}: {_problem(one)}" for one in error.errors(include_url=False))) from None


def _problem(one: Mapping[str, Any]) -> str:
    place = list(one["loc"])
    tables = place[:2] if place[0] == "montages" else place[:1]
    keys = "".join(f" {part + 1}" if isinstance(part, int) else f" {part}" for part in place[len(tables) :])
    given = "" if isinstance(one["input"], dict | list) else f" = {one['input']!r}"
    return f"[{'.'.join(map(str, tables))}]{keys}{given}: {one['msg'].removeprefix('Value error, ')}"


# --- in words ---------------------------------------------------------------------------------------------------------------------
def table(book: Montages) -> str:
    """One line for each montage."""
    rows = [("NAME", "SPASM OF", "STIMULATES", "EVIDENCE")]
    rows += [(name, m.muscle, m.nerve, m.evidence) for name, m in book.montages.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", "One of them in full: calmloop montage NAME; its drawing: --svg FILE", NOTICE])


def words(name: str, m: Montage, common: Common) -> str:
    """One montage, to read."""
    t = m.train
    start = (
        f"{t.current_ma:g} mA, {t.phase_width_us} us a phase, {t.pulse_rate_hz:g} Hz for {t.duration_ms} ms"
        f" ({t.ramp_up_ms} ms up, {t.taper_ms} ms down); smaller pad {m.electrode_area_cm2:g} cm2"
    )
    pads = [f"{pad.label}, {_size(pad)}: {pad.where}" for pad in m.pads]
    parts = (
        ("Evidence", [f"{m.evidence.upper()}. {m.evidence_words}"]),
        ("Pads", pads),
        ("The nerve is found when", [m.sign]),
        ("To start from (a clinician titrates)", [start, *common.tuning]),
        ("Cautions here", m.cautions),
        ("Cautions always", common.cautions),
        ("Sources", [f"{one.claim}: {one.source}" for one in (*m.sources, *common.sources)]),
    )
    lines = [f"{name}: spasm of {m.muscle}", fill(f"stimulates {m.nerve} ({m.antagonist})", 100), NOTICE]
    for title, items in parts:
        lines += ["", title, *(_bullet(item) for item in items)]
    return "\n".join(lines)


def _bullet(text: str) -> str:
    return fill(text, 100, initial_indent="  - ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def _size(pad: Pad) -> str:
    return "2 electrodes 2 cm apart" if pad.kind == "emg" else f"{pad.width_cm:g} x {pad.height_cm:g} cm"


# --- drawing: the body, in cm from the midline and above the floor ----------------------------------------------------------------
Point = tuple[float, float]
# One half of the outline, from the neck over arm, trunk and leg to the crotch; the other half is its mirror image.
HALF: tuple[Point, ...] = (
    *((0.0, 160.5), (5.0, 160.0), (5.6, 153.5), (9.0, 150.2), (15.5, 148.4), (20.5, 147.0), (24.5, 143.4)),
    *((26.8, 137.8), (27.9, 131.8), (28.8, 125.9), (30.1, 119.0), (31.7, 113.2), (33.5, 108.5), (34.6, 102.6), (35.4, 95.6), (36.3, 88.6)),
    *((38.2, 84.8), (41.2, 81.0), (43.2, 76.4), (42.4, 75.4), (40.4, 78.0), (39.4, 79.0), (40.6, 74.4), (40.8, 70.0), (39.4, 67.6)),
    *((36.4, 69.2), (33.2, 75.3), (31.4, 82.2), (30.6, 87.1), (28.0, 94.7), (25.5, 101.3), (24.0, 106.0), (23.2, 111.0), (21.5, 116.8)),
    *((19.4, 123.4), (17.9, 129.3), (17.0, 132.6), (16.4, 128.0), (15.5, 120.0), (14.2, 112.0), (14.2, 106.0), (15.6, 100.0), (17.2, 93.0)),
    *((17.8, 86.0), (17.4, 78.0), (16.3, 68.0), (14.6, 58.0), (13.8, 51.5), (13.9, 46.0), (14.4, 38.0), (13.9, 30.0), (12.4, 20.0)),
    *((11.5, 12.0), (11.6, 8.5), (12.2, 4.5), (13.2, 1.2), (9.0, 0.3), (5.2, 0.8), (5.0, 4.5), (5.0, 8.5), (4.9, 12.0), (4.2, 20.0)),
    *((2.8, 30.0), (2.4, 37.0), (3.4, 45.0), (3.3, 51.0), (2.4, 58.0), (1.2, 68.0), (0.7, 77.0), (0.6, 81.0), (0.0, 82.5)),
)
# Lines on the skin that help to find the place, drawn on both sides
CREASES: Mapping[View, tuple[tuple[Point, ...], ...]] = {
    "front": (
        *(((1.5, 147.0), (8.0, 148.0), (17.5, 147.6)), ((16.6, 131.5), (12.0, 127.5), (6.0, 126.5), (1.5, 128.0))),
        *(
            ((13.0, 97.5), (8.0, 91.5), (2.0, 86.0)),
            ((6.2, 53.5), (8.6, 54.6), (11.0, 53.5), (11.3, 50.5), (8.6, 47.8), (5.9, 50.5), (6.2, 53.5)),
        ),
        *(
            ((23.9, 111.2), (27.5, 112.4), (31.2, 113.2)),
            ((31.2, 87.6), (33.6, 87.4), (36.0, 88.6)),
            ((8.3, 43.5), (7.6, 30.0), (7.4, 14.0)),
        ),
    ),
    "back": (
        *(((0.0, 150.0), (0.0, 125.0), (0.0, 100.0)), ((6.5, 144.0), (6.0, 136.0), (8.0, 129.0), (12.5, 136.0), (16.5, 144.5))),
        *(((0.0, 97.0), (0.0, 90.0), (0.0, 82.5)), ((1.2, 82.0), (6.5, 80.2), (12.5, 81.5)), ((4.3, 49.8), (8.6, 49.2), (12.9, 49.8))),
        *(
            ((26.2, 112.4), (27.4, 113.6), (28.6, 113.0)),
            ((3.4, 32.5), (6.3, 29.0), (8.2, 31.5), (10.5, 28.5), (13.4, 31.5)),
            ((7.0, 16.0), (7.4, 7.0)),
        ),
    ),
}
# name, x, y; the name stands toward the midline (-1) or on the outside (1)
LANDMARKS: Mapping[View, tuple[tuple[str, float, float, int], ...]] = {
    "front": (
        *(("acromion", 20.3, 146.0, -1), ("front spine of pelvis", 12.6, 98.0, -1), ("femoral pulse", 7.0, 89.6, -1)),
        *(("pubic bone", 2.0, 87.0, -1), ("trochanter", 17.0, 89.8, -1), ("kneecap", 8.6, 51.0, -1), ("head of fibula", 13.2, 46.6, 1)),
        *(("ridge of shin", 7.9, 36.0, -1), ("lateral epicondyle", 31.0, 113.8, 1), ("medial epicondyle", 23.6, 112.7, -1)),
        *(("tendon of biceps", 27.2, 111.3, -1),),
    ),
    "back": (
        *(("acromion", 20.3, 146.0, -1), ("fold of armpit", 17.4, 133.6, 1), ("point of elbow", 27.4, 112.2, -1)),
        *(("lateral epicondyle", 31.0, 113.8, 1), ("sitting bone", 6.3, 83.0, -1), ("trochanter", 17.0, 90.6, 1)),
        *(("crease of knee", 8.6, 49.5, -1), ("head of fibula", 13.2, 46.6, 1), ("heel", 8.4, 2.5, -1)),
    ),
}
COLOURS = {"cathode": "#1554a8", "anode": "#c4262e", "emg": "#1e7d46"}
SYMBOLS = {"cathode": "−", "anode": "+", "emg": ""}
SKIN, LINE, GREY = "#f6e9df", "#8a7566", "#5f6368"
HALO = 'paint-order="stroke" stroke="white" stroke-width="3" stroke-linejoin="round"'
TOP_PX, PANEL_PX = 100, 500
BOTH = (1, -1)


class Frame(NamedTuple):
    """Where a part of a view of the body lies on the page, and at what scale."""

    view: View
    side: Side
    left_px: float
    top_px: float
    scale: float  # px per cm
    x_cm: float = -REACH_CM  # at its left edge, as the reader sees it
    y_cm: float = BODY_CM + 2  # at its top

    @property
    def outward(self) -> int:
        """1 where the treated side is on the reader's right: the person's left seen from the front, the right seen from the back."""
        return 1 if (self.side == "left") == (self.view == "front") else -1

    def at(self, x_cm: float, y_cm: float) -> Point:
        """A point of the page; `x_cm` toward the reader's right."""
        return self.left_px + (x_cm - self.x_cm) * self.scale, self.top_px + (self.y_cm - y_cm) * self.scale


def outline() -> list[Point]:
    """The corners of the whole outline without the head, around once."""
    return [*HALF, *((-x, y) for x, y in reversed(HALF[1:-1]))]


def curve(frame: Frame, points: Iterable[Point], closed: bool = False) -> str:
    """A smooth path through all points (Catmull-Rom as Bézier)."""
    p = [frame.at(*point) for point in points]
    before, after = (p[-1:], p[:2]) if closed else (p[:1], p[-1:])
    q = [*before, *p, *after]
    path = f"M{p[0][0]:.1f},{p[0][1]:.1f}"
    for (ax, ay), (bx, by), (cx, cy), (dx, dy) in zip(q, q[1:], q[2:], q[3:], strict=False):
        path += f"C{bx + (cx - ax) / 6:.1f},{by + (cy - ay) / 6:.1f} {cx - (dx - bx) / 6:.1f},{cy - (dy - by) / 6:.1f} {cx:.1f},{cy:.1f}"
    return path + ("Z" if closed else "")


def body(frame: Frame, width: float) -> list[str]:
    """Outline, head and creases of one view."""
    lines = [f'<path d="{curve(frame, outline(), closed=True)}" fill="{SKIN}" stroke="{LINE}" stroke-width="{width}"/>']
    head = [
        (0.0, 179.5),
        (6.6, 176.0),
        (7.9, 169.0),
        (6.6, 161.0),
        (3.0, 156.2),
        (-3.0, 156.2),
        (-6.6, 161.0),
        (-7.9, 169.0),
        (-6.6, 176.0),
    ]
    lines.append(f'<path d="{curve(frame, head, closed=True)}" fill="{SKIN}" stroke="{LINE}" stroke-width="{width}"/>')
    for crease in CREASES[frame.view]:
        for sign in BOTH:
            ring = crease[0] == crease[-1]
            path = curve(frame, [(sign * x, y) for x, y in (crease[:-1] if ring else crease)], closed=ring)
            lines.append(f'<path d="{path}" fill="none" stroke="{LINE}" stroke-width="{width * 0.6:.1f}" opacity="0.6"/>')
    return lines


def pad_shape(frame: Frame, pad: Pad) -> str:
    """The pad to scale: a rounded rectangle with its sign; a pair of dots for EMG."""
    x, y = frame.at(frame.outward * pad.x_cm, pad.y_cm)
    w, h, colour = pad.width_cm * frame.scale, pad.height_cm * frame.scale, COLOURS[pad.kind]
    box = f'<rect x="{-w / 2:.1f}" y="{-h / 2:.1f}" width="{w:.1f}" height="{h:.1f}" rx="{min(w, h) / 5:.1f}" '
    turn = -frame.outward * pad.turn_deg
    if pad.kind == "emg":
        dx, dy = (w / 4, 0.0) if w > h else (0.0, h / 4)
        dots = "".join(f'<circle cx="{s * dx:.1f}" cy="{s * dy:.1f}" r="{min(w, h) / 4:.1f}" fill="{colour}"/>' for s in BOTH)
        inside = f'{box}fill="white" stroke="{colour}"/>{dots}'
    else:
        size = min(w, h) * 0.9
        sign = f'<text y="{size * 0.34:.1f}" font-size="{size:.0f}" fill="white" text-anchor="middle">{SYMBOLS[pad.kind]}</text>'
        inside = f'{box}fill="{colour}" stroke="white"/>' + (sign if size > 8 else "")
    return f'<g transform="translate({x:.1f} {y:.1f}) rotate({turn:g})">{inside}</g>'


def text(x: float, y: float, words: str, size: float = 13, colour: str = "#202124", more: str = "") -> str:
    """A line of text."""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{colour}" {more}>{escape(words)}</text>'


def close_up(m: Montage, view: View, side: Side, left_px: float, width: float) -> list[str]:
    """The part of a view that has pads, large: landmarks, pads, and a label for each pad at the outer edge."""
    pads = sorted((pad for pad in m.pads if pad.view == view), key=lambda one: (-one.y_cm, -one.x_cm))
    low, high = min(pad.y_cm - pad.height_cm / 2 for pad in pads), max(pad.y_cm + pad.height_cm / 2 for pad in pads)
    scale = min(PANEL_PX / max(high - low + 16, 34), 14.0)
    top_cm = (low + high) / 2 + PANEL_PX / scale / 2
    label_px = max(len(pad.label) for pad in pads) * 7.2 + 20
    outer_cm = max(pad.x_cm + pad.width_cm / 2 for pad in pads)
    middle_cm = max(sum(pad.x_cm for pad in pads) / len(pads) + 3, outer_cm + (label_px - width / 2) / scale)
    outward = Frame(view, side, 0, 0, 1).outward
    frame = Frame(view, side, left_px, TOP_PX, scale, outward * middle_cm - width / scale / 2, top_cm)
    panel = f'<rect x="{left_px:.1f}" y="{TOP_PX}" width="{width:.1f}" height="{PANEL_PX}"'
    lines = [
        text(left_px, TOP_PX - 8, f"seen from the {view}", 14, more='font-weight="bold"'),
        f'<clipPath id="clip-{view}">{panel}/></clipPath><g clip-path="url(#clip-{view})">',
        *body(frame, 1.6),
    ]
    for name, x_cm, y_cm, sign in LANDMARKS[view]:
        x, y = frame.at(outward * x_cm, y_cm)
        end = x + outward * sign * (6 + 6 * len(name))
        hidden = any(abs(x_cm - pad.x_cm) < pad.width_cm / 2 and abs(y_cm - pad.y_cm) < pad.height_cm / 2 for pad in pads)
        if not hidden and left_px < min(x, end) and max(x, end) < left_px + width and TOP_PX + 8 < y < TOP_PX + PANEL_PX - 8:
            lines.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{GREY}"/>')
            lines.append(text(x + outward * sign * 6, y + 4, name, 11, GREY, f'{_anchor(-outward * sign)} font-style="italic" {HALO}'))
    last = float(TOP_PX)
    edge, anchor = (left_px + width - 6 if outward > 0 else left_px + 6), _anchor(outward)
    for pad in pads:
        x, y = frame.at(outward * (pad.x_cm + pad.width_cm / 2), pad.y_cm)
        y, last = (y, y) if y >= last + 40 else (y + pad.height_cm / 2 * scale, last + 40)  # pads at one height: below the outer one
        lines.append(f'<path d="M{x:.1f},{y:.1f}L{edge:.1f},{last:.1f}" stroke="{COLOURS[pad.kind]}" stroke-width="1.2"/>')
        lines.append(text(edge, last - 5, pad.label, 13, COLOURS[pad.kind], f'{anchor} font-weight="bold" {HALO}'))
        lines.append(text(edge, last + 14, _size(pad), 11, COLOURS[pad.kind], f"{anchor} {HALO}"))
    return [*lines, *(pad_shape(frame, pad) for pad in pads), "</g>", f'{panel} fill="none" stroke="#bdc1c6"/>']


def _anchor(outward: int) -> str:
    return f'text-anchor="{"end" if outward > 0 else "start"}"'


def svg(name: str, m: Montage, side: Side = "right") -> str:
    """Draw a montage: the whole body small, close-ups of where the pads are, and each place in words."""
    views: list[View] = [view for view in get_args(View) if any(pad.view == view for pad in m.pads)]
    lines = [text(20, 34, f"Spasm of {m.muscle}", 22, more='font-weight="bold"')]
    lines.append(text(20, 58, f"montage {name}: stimulates {m.nerve}; {side} side of the person; evidence: {m.evidence}", 14, GREY))
    for n, view in enumerate(get_args(View)):
        small = Frame(view, side, 14, 96 + n * 262, 1.34)
        lines += [text(20, 96 + n * 262, view, 12, GREY), *body(small, 0.8), *(pad_shape(small, pad) for pad in m.pads if pad.view == view)]
    width = (820 - 14 * (len(views) - 1)) / len(views)
    for n, view in enumerate(views):
        lines += close_up(m, view, side, 150 + n * (width + 14), width)
    y = TOP_PX + PANEL_PX + 32.0
    for pad in m.pads:
        lines.append(f'<rect x="20" y="{y - 11}" width="13" height="13" rx="3" fill="{COLOURS[pad.kind]}"/>')
        for line in wrap(f"{pad.label}, {_size(pad)}: {pad.where}", 145):
            lines.append(text(42, y, line))
            y += 17
        y += 5
    lines.append(text(42, y, f"The nerve is found when: {m.sign}", 13))
    lines.append(text(20, y + 28, NOTICE, 13, "#c4262e", 'font-weight="bold"'))
    height = y + 46
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 990 {height:.0f}" width="990" height="{height:.0f}"'
    return "\n".join(
        [
            f'{head} font-family="Helvetica, Arial, sans-serif">',
            f'<rect width="990" height="{height:.0f}" fill="white"/>',
            *lines,
            "</svg>",
            "",
        ]
    )


# --- command ----------------------------------------------------------------------------------------------------------------------
def command(args: argparse.Namespace) -> int:
    """`calmloop montage [NAME] [--svg FILE] [--side SIDE] [--json]`; 0 = shown, 2 = an unknown name, or a file that cannot be used."""
    try:
        book = load(default_config("montages.toml"))
        if args.name is None and args.svg:
            raise MontageError("--svg needs the name of a montage")
        if args.name is not None and args.name not in book.montages:
            near = get_close_matches(args.name, book.montages, len(book.montages), 0.0)
            raise MontageError(f"there is no montage {args.name!r}; there are: {', '.join(near)}")
        if args.svg:
            try:
                Path(args.svg).write_text(svg(args.name, book.montages[args.name], args.side), encoding="utf-8")
            except OSError as error:
                raise MontageError(f"{args.svg}: cannot be written: {error.strerror}") from None
    except MontageError as error:
        if args.json:
            print(json.dumps({"ok": False, "error": str(error)}))
        else:
            print(error, file=sys.stderr)
        return 2
    shown = book.montages if args.name is None else {args.name: book.montages[args.name]}
    if args.json:
        facts = {name: m.model_dump(mode="json") | {"electrode_area_cm2": m.electrode_area_cm2} for name, m in shown.items()}
        print(json.dumps({"ok": True, "notice": NOTICE, "common": book.common.model_dump(mode="json"), "montages": facts}))
    elif args.svg:
        print(f"{args.svg}: {args.name}, {args.side} side")
    else:
        print(table(book) if args.name is None else words(args.name, book.montages[args.name], book.common))
    return 0
