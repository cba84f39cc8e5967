"""The latency picture as SVG, by hand: the share of answers that is later than t, every contender, a panel for each chunk size.

Both axes are logarithmic, so that a tail of one in a thousand is as easy to see as the median. Colours are readable on light and dark.
"""

from __future__ import annotations

from html import escape
from math import log10
from typing import Any

import numpy as np

WIDTH, PANEL, LEFT, RIGHT, TOP, GAP = 900, 300, 70, 30, 64, 66
COLOURS = {
    "calmloop": "#d1495b",
    "loop": "#e08a1e",
    "all C": "#2a9d8f",
    "ezmsg": "#7b6fd0",
    "mne-lsl": "#3a86c8",
    "Timeflux": "#b05fb0",
    "timer": "#8a8f98",
    "pipe": "#8a8f98",
}
WORDS = {"calmloop": "calmloop, everything on", "loop": "calmloop's loop", "timer": "wake-up floor", "pipe": "pipe floor"}
STYLE = """
text{font:13px system-ui,sans-serif;fill:#24292f}.small{font-size:11px;fill:#57606a}.title{font-size:16px;font-weight:600}
.grid{stroke:#8c959f;stroke-opacity:.28}.back{fill:#ffffff}.label{paint-order:stroke;stroke:#ffffff;stroke-width:4px;font-weight:600}
path{fill:none;stroke-width:2.2;stroke-linejoin:round}.floor{stroke-width:1.3;stroke-dasharray:4 3}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.small{fill:#9da7b3}.back{fill:#0d1117}.label{stroke:#0d1117}}
"""
SHARES = (1.0, 0.5, 0.1, 0.05, 0.01, 0.001)
SHARE_WORDS = ("all", "p50", "p90", "p95", "p99", "p99.9")


def draw(result: dict[str, Any]) -> str:
    """The picture of one result of `bench.latency`."""
    samples = pooled(result["cells"])
    chunks = sorted({chunk for name, chunk in samples if chunk})
    floors = {name: us for (name, chunk), us in samples.items() if not chunk}
    everything = [us for us in samples.values() if len(us)]
    low = 10 ** np.floor(log10(max(1.0, min((float(us[0]) for us in everything), default=10.0)))) if everything else 10.0
    low, high = max(10.0, low), max((float(us[-1]) for us in everything), default=1e4)
    high = 10 ** np.ceil(log10(high * 1.001))
    height = TOP + len(chunks) * (PANEL + GAP)
    place = result["environment"]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">',
        f"<title>Latency from sample to pulse</title><style>{STYLE}</style>",
        f'<rect class="back" width="{WIDTH}" height="{height}"/>',
        f'<text class="title" x="{LEFT}" y="26">From a sample at the source to the pulse at the port</text>',
        f'<text class="small" x="{LEFT}" y="45">{escape(str(place["utc"])[:10])}, {escape(str(place["cpu"]))}, {place["cpus"]} CPUs, '
        f"8 channels at 2 kHz over LSL, rounds: {result['rounds']}; further left and steeper is better</text>",
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
    """One panel: grid, curves, names beside them."""
    right, bottom = WIDTH - RIGHT, top + PANEL

    def x(us: float) -> float:
        return LEFT + (right - LEFT) * (log10(max(us, low)) - log10(low)) / (log10(high) - log10(low))

    def y(share: float) -> float:
        return top + 24 + (PANEL - 24) * -log10(share) / -log10(SHARES[-1])

    parts = [f'<text x="{LEFT}" y="{top + 12}" style="font-weight:600">{escape(title)}</text>']
    for share, word in zip(SHARES, SHARE_WORDS, strict=True):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y(share):.1f}" y2="{y(share):.1f}"/>')
        parts.append(f'<text class="small" x="{LEFT - 8}" y="{y(share) + 4:.1f}" text-anchor="end">{word}</text>')
    for decade in range(round(log10(low)), round(log10(high)) + 1):
        at = x(10**decade)
        word = f"{10**decade:g} µs" if decade < 3 else f"{10 ** (decade - 3):g} ms"
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{top + 24}" y2="{bottom}"/>')
        parts.append(f'<text class="small" x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{word}</text>')
    order = sorted(curves, key=lambda name: float(np.median(curves[name])))
    labels = []
    for i, name in enumerate(order):
        us, colour = curves[name], COLOURS.get(name, "#8a8f98")
        share = 1.0 - np.arange(len(us)) / len(us)
        keep = share >= SHARES[-1]
        shape = "L".join(f"{x(u):.1f},{y(s):.1f}" for u, s in thin(us[keep], share[keep]))
        parts.append(f'<path class="{"floor" if name in ("timer", "pipe") else ""}" d="M{shape}" stroke="{colour}"/>')
        # names go down the curves like a stair, so that close neighbours do not write over each other
        at = 10 ** (-0.12 - 2.55 * i / max(1, len(order) - 1)) if len(order) > 1 else 0.5
        there = float(us[min(len(us) - 1, int((1 - at) * len(us)))])
        words = f"{WORDS.get(name, name)}: {nice(float(np.median(us)))}"
        fits = x(there) + 8 * len(words) < WIDTH
        where = f'x="{x(there) + (7 if fits else -7):.1f}" y="{y(at) + 4:.1f}" text-anchor="{"start" if fits else "end"}"'
        labels.append(f'<text class="label" {where} style="fill:{colour}">{escape(words)}</text>')
    return parts + labels


def thin(us: np.ndarray, share: np.ndarray, most: int = 250) -> list[tuple[float, float]]:
    """Few points of a curve, evenly along its logarithmic height, and the last."""
    if len(us) <= most:
        return list(zip(us.tolist(), share.tolist(), strict=True))
    wanted = np.searchsorted(-share, -np.logspace(0, log10(share[-1]), most))
    index = np.unique(np.append(np.minimum(wanted, len(us) - 1), len(us) - 1))
    return list(zip(us[index].tolist(), share[index].tolist(), strict=True))


def nice(us: float) -> str:
    """A latency in words."""
    return f"{us / 1000:.2g} ms" if us >= 1000 else f"{us:.0f} µs"
