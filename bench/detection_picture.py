"""The detection picture as SVG, by hand: false alarms per hour against the median delay at 10 dB, a curve for each method of ours.

Lower and further left is better. Hollow points had no false alarm and stand at the upper bound of their rate: no curve goes through them.
The large point is the setting that the goals are about. Colours are readable on light and dark.
"""

from __future__ import annotations

from html import escape
from math import ceil, floor, isfinite, log10
from typing import TYPE_CHECKING, Any, NamedTuple

from bench import signals
from bench.picture import GREY, LINE, spread

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 900, 520, 70, 200, 70, 70
CELL, QUIET = "1 ch 10 dB", "quiet"
LATER_MS = (20.0, 45.0)  # after a peer's back-dated or centred onset its decision would come (detection notes, section 4)
COLOURS = ("#d1495b", "#2a9d8f", "#3a86c8", "#d9822b", "#7b6fd0", "#b05fb0", "#6a994e", "#a0785a")
STYLE = """
text{font:13px system-ui,sans-serif;fill:#24292f}.small{font-size:11px;fill:#57606a}.title{font-size:16px;font-weight:600}
.grid{stroke:#8c959f;stroke-opacity:.28}.lead{stroke-width:1;stroke-opacity:.6}.back{fill:#ffffff}
.later{stroke-width:1.5;stroke-opacity:.5}
path{fill:none;stroke-width:2.4;stroke-linejoin:round}.bound{stroke-width:1.6;stroke-dasharray:5 4}.hollow{fill:#ffffff}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.small{fill:#9da7b3}.back,.hollow{fill:#0d1117}}
"""


class Point(NamedTuple):
    """One setting of a method. `none`: there was no false alarm, and the rate is its upper bound."""

    per_hour: float
    median_ms: float
    none: bool
    swept: bool


def points(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, bool], list[Point]]:
    """Every setting of each method, by the method's name and whether it is a peer."""
    quiet = {(one["method"], str(one["setting"]), one["swept"]): one for one in rows if one["cell"] == QUIET}
    out: dict[tuple[str, bool], list[Point]] = {}
    for one in rows:
        rate = quiet.get((one["method"], str(one.get("setting")), one["swept"]))
        if one["cell"] != CELL or rate is None or not isfinite(one["median_ms"]):
            continue
        none = rate["false_alarms"] == 0
        at = Point(rate["upper_per_hour" if none else "false_alarms_per_hour"], one["median_ms"], none, one["swept"])
        out.setdefault((one["method"], one["peer"]), []).append(at)
    return {key: sorted(many) for key, many in out.items()}


def draw(result: dict[str, Any]) -> str:
    """The picture of one result of `bench.detection`."""
    curves = points(result["rows"])
    every = [at for many in curves.values() for at in many]
    low = 10.0 ** floor(log10(min([0.05, *(at.per_hour for at in every)])))
    high = 10.0 ** ceil(log10(max([10.0, *(at.per_hour for at in every)])))
    top_ms = 10.0 * ceil(
        max([40.0, *(at.median_ms + (LATER_MS[1] if peer else 4.0) for (_, peer), many in curves.items() for at in many)]) / 10.0
    )
    low_ms = 10.0 * floor(min([0.0, *(at.median_ms for at in every)]) / 10.0)
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def x(per_hour: float) -> float:
        return LEFT + (right - LEFT) * log10(per_hour / low) / log10(high / low)

    def y(ms: float) -> float:
        return bottom - (bottom - TOP) * (ms - low_ms) / (top_ms - low_ms)

    place = result["environment"]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">',
        f"<title>False alarms and delay of spasm detectors</title><style>{STYLE}</style>",
        f'<rect class="back" width="{WIDTH}" height="{HEIGHT}"/>',
        f'<text class="title" x="{LEFT}" y="26">How early a spasm is seen, at what price</text>',
        f'<text class="small" x="{LEFT}" y="45">{escape(str(place["utc"])[:10])}; simulated spasms of 10 dB, 1 channel; '
        "hollow: no false alarm, upper bound of the rate; lower and further left is better</text>",
    ]
    for decade in range(round(log10(low)), round(log10(high)) + 1):
        across = x(10.0**decade)
        parts.append(f'<line class="grid" x1="{across:.1f}" x2="{across:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text class="small" x="{across:.1f}" y="{bottom + 16}" text-anchor="middle">{10.0**decade:g}</text>')
    for ms in range(round(low_ms), round(top_ms) + 1, 10):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y(ms):.1f}" y2="{y(ms):.1f}"/>')
        parts.append(f'<text class="small" x="{LEFT - 8}" y="{y(ms) + 4:.1f}" text-anchor="end">{ms} ms</text>')
    parts.append(
        f'<text class="small" x="{(LEFT + right) / 2}" y="{bottom + 34}" text-anchor="middle">false alarms per hour of quiet</text>'
    )
    parts.append(f'<text class="small" x="{LEFT}" y="{bottom + 54}">{escape(_remark(curves))}</text>')
    recipe = signals.Recipe(10.0)
    floor_at = [(x(low * (high / low) ** (i / 40)), y(signals.bound_ms(recipe, low * (high / low) ** (i / 40)))) for i in range(41)]
    parts.append(f'<path class="bound" stroke="{GREY}" d="M{"L".join(f"{a:.1f},{b:.1f}" for a, b in floor_at)}"/>')
    ends = [(floor_at[-1][1], floor_at[-1][0], "bound, were there no rise", GREY)]
    for i, ((name, peer), many) in enumerate(curves.items()):
        colour = GREY if peer else COLOURS[i % len(COLOURS)]
        if line := [f"{x(at.per_hour):.1f},{y(at.median_ms):.1f}" for at in many if not at.none]:
            parts.append(f'<path stroke="{colour}" d="M{"L".join(line)}"/>')
        for at in many:
            across, up = x(at.per_hour), y(at.median_ms)
            if peer:
                y_later = [max(y(at.median_ms + ms), TOP) for ms in LATER_MS]
                parts.append(
                    f'<line class="later" x1="{across:.1f}" x2="{across:.1f}" y1="{y_later[0]:.1f}" y2="{y_later[1]:.1f}" stroke="{GREY}"/>'
                )
            look = f'class="hollow" stroke="{colour}" stroke-width="2"' if at.none else f'fill="{colour}"'
            parts.append(f'<circle cx="{across:.1f}" cy="{up:.1f}" r="{4 if at.swept or peer else 6.5}" {look}/>')
        ends.append((y(many[-1].median_ms), x(many[-1].per_hour), name, colour))
    ends.sort()
    for label_y, (end_y, end_x, name, colour) in zip(spread([one[0] for one in ends], TOP, bottom - LINE / 2), ends, strict=True):
        parts.append(f'<line class="lead" x1="{end_x + 5:.1f}" y1="{end_y:.1f}" x2="{right + 8}" y2="{label_y:.1f}" stroke="{colour}"/>')
        parts.append(
            f'<text class="small" x="{right + 11}" y="{label_y + 4:.1f}" style="fill:{colour};font-weight:600">{escape(name)}</text>'
        )
    return "\n".join([*parts, "</svg>\n"])


def _remark(curves: dict[tuple[str, bool], Any]) -> str:
    if any(peer for _, peer in curves):
        return "grey points: onsets of offline peers, which look ahead and back-date; bars: where a decision would come, 20-45 ms later"
    return "no peers were run: python -m bench.peers install emg"
