"""The latency picture as SVG, by hand: distributions of all contenders, a panel for each chunk size.

A cumulative distribution lying on its side: the share of answers to the right, in nines, so that a tail of one in a thousand has as much
room as the middle; the latency upwards, logarithmic. So curves end at the right edge, where their names stand. Colours are readable on
light and dark.
"""

from __future__ import annotations

from html import escape
from math import ceil, floor, log10
from typing import Any

import numpy as np

WIDTH, PANEL, LEFT, RIGHT, TOP, GAP, LINE = 900, 330, 70, 250, 66, 64, 17
COLOURS = {
    "calmloop": "#d1495b",
    "loop": "#d9822b",
    "all C": "#2a9d8f",
    "ezmsg": "#7b6fd0",
    "mne-lsl": "#3a86c8",
    "Timeflux": "#b05fb0",
}
FLOORS = ("timer", "pipe")
GREY = "#8a8f98"
WORDS = {"calmloop": "calmloop, all of it", "loop": "calmloop's loop", "timer": "wake-up floor", "pipe": "pipe floor"}
STYLE = """
text{font:13px system-ui,sans-serif;fill:#24292f}.small{font-size:11px;fill:#57606a}.title{font-size:16px;font-weight:600}
.grid{stroke:#8c959f;stroke-opacity:.28}.lead{stroke-width:1;stroke-opacity:.7}.back{fill:#ffffff}
path{fill:none;stroke-width:2.2;stroke-linejoin:round}.floor{stroke-width:1.3;stroke-dasharray:4 3}.calmloop{stroke-width:3.4}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.small{fill:#9da7b3}.back{fill:#0d1117}}
"""
LATER = {1.0: "fastest", 0.5: "p50", 0.1: "p90", 0.05: "p95", 0.01: "p99", 0.001: "p99.9"}  # share of answers that is later
LAST = min(LATER)


def draw(result: dict[str, Any]) -> str:
    """The picture of one result of `bench.latency`."""
    samples = pooled(result["cells"])
    chunks = sorted({chunk for _, chunk in samples if chunk})
    floors = {name: us for (name, chunk), us in samples.items() if not chunk}
    shown = [us[: ceil((1 - LAST) * len(us))] for us in samples.values()]
    low = 10.0 ** floor(log10(max(10.0, min((float(us[0]) for us in shown), default=10.0))))
    high = 10.0 ** ceil(log10(max((float(us[-1]) for us in shown), default=1000.0) * 1.001))
    height = TOP + len(chunks) * (PANEL + GAP)
    place = result["environment"]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">',
        f"<title>Latency from sample to pulse</title><style>{STYLE}</style>",
        f'<rect class="back" width="{WIDTH}" height="{height}"/>',
        f'<text class="title" x="{LEFT}" y="26">From a sample at the source to the pulse at the port</text>',
        f'<text class="small" x="{LEFT}" y="45">{escape(str(place["utc"])[:10])}, {escape(str(place["cpu"]))}, {place["cpus"]} CPUs; '
        f"8 channels at 2 kHz over LSL; rounds: {result['rounds']}; lower and flatter is better</text>",
    ]
    for i, chunk in enumerate(chunks):
        curves = {name: us for (name, at), us in samples.items() if at == chunk} | floors
        parts += panel(curves, f"chunks of {chunk} sample{'s' if chunk > 1 else ''}", TOP + i * (PANEL + GAP), low, high)
    return "\n".join([*parts, "</svg>\n"])


def pooled(cells: list[dict[str, Any]]) -> dict[tuple[str, int], np.ndarray]:
    """All answered events without load, sorted."""
    out: dict[tuple[str, int], list[float]] = {}
    for cell in cells:
        if not cell["load"] and cell.get("latency_us"):
            out.setdefault((cell["contender"], cell["chunk"]), []).extend(us for us in cell["latency_us"] if us is not None)
    return {key: np.sort(np.array(us)) for key, us in out.items() if us}


def panel(curves: dict[str, np.ndarray], title: str, top: float, low: float, high: float) -> list[str]:
    """One panel: grid, curves, names at their ends."""
    right, upper, bottom = WIDTH - RIGHT, top + 24, top + PANEL

    def x(later: float) -> float:
        return LEFT + (right - LEFT) * log10(later) / log10(LAST)

    def y(us: float) -> float:
        return bottom - (bottom - upper) * (log10(max(us, low)) - log10(low)) / (log10(high) - log10(low))

    parts = [f'<text x="{LEFT}" y="{top + 12}" style="font-weight:600">{escape(title)}</text>']
    for later, word in LATER.items():
        parts.append(f'<line class="grid" x1="{x(later):.1f}" x2="{x(later):.1f}" y1="{upper}" y2="{bottom}"/>')
        parts.append(f'<text class="small" x="{x(later):.1f}" y="{bottom + 16}" text-anchor="middle">{word}</text>')
    for decade in range(round(log10(low)), round(log10(high)) + 1):
        at = y(10.0**decade)
        word = f"{10**decade} µs" if decade < 3 else f"{10 ** (decade - 3)} ms"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="small" x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{word}</text>')
    ends: list[tuple[float, float, str]] = []
    for name in sorted(curves, key=lambda name: name == "calmloop"):  # ours on top
        us, colour = curves[name], COLOURS.get(name, GREY)
        later = 1.0 - np.arange(len(us)) / len(us)
        points = [(x(share), y(at)) for at, share in thin(us[later >= LAST], later[later >= LAST])]
        kind = "floor" if name in FLOORS else name if name == "calmloop" else ""
        parts.append(f'<path class="{kind}" d="M{"L".join(f"{a:.1f},{b:.1f}" for a, b in points)}" stroke="{colour}"/>')
        ends.append((points[-1][1], points[-1][0], name))
    ends.sort()
    for at, (end_y, end_x, name) in zip(spread([y for y, _, _ in ends], upper, bottom), ends, strict=True):
        us, colour = curves[name], COLOURS.get(name, GREY)
        words = f"{WORDS.get(name, name)}: {nice(float(np.median(us)))}, p99 {nice(float(np.percentile(us, 99)))}"
        parts.append(f'<line class="lead" x1="{end_x:.1f}" y1="{end_y:.1f}" x2="{right + 8}" y2="{at:.1f}" stroke="{colour}"/>')
        parts.append(f'<text class="small" x="{right + 11}" y="{at + 4:.1f}" style="fill:{colour};font-weight:600">{escape(words)}</text>')
    return parts


def spread(wanted: list[float], upper: float, bottom: float) -> list[float]:
    """Heights at least a line apart and within the panel, near the wanted ones (sorted)."""
    at: list[float] = []
    for y in wanted:
        at.append(max(y, at[-1] + LINE if at else upper))
    limit = bottom
    for i in reversed(range(len(at))):
        at[i] = min(at[i], limit)
        limit = at[i] - LINE
    return at


def thin(us: np.ndarray, later: np.ndarray, most: int = 250) -> list[tuple[float, float]]:
    """Few points of a curve, evenly along its logarithmic length, and the last."""
    wanted = np.searchsorted(-later, -np.logspace(0, log10(later[-1]), most))
    index = np.unique(np.append(np.minimum(wanted, len(us) - 1), len(us) - 1))
    return list(zip(us[index].tolist(), later[index].tolist(), strict=True))


def nice(us: float) -> str:
    """A latency in words."""
    return f"{us / 1000:.2g} ms" if us >= 1000 else f"{us:.0f} µs"
