"""Whether a signal is fit to derive settings from: what is wrong with it is named, with channel, figure and what to do about it.

Pure: arrays in, findings out; no file, no stream, no clock. What the detector takes for flat, for no number, for a gap and for motion is
taken from `detector` and `kernels`, so that a signal that passes here is one that the detector hears. Limits of our own say where from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.signal import butter, find_peaks, lfilter, lfilter_zi, sosfilt, sosfilt_zi, welch

from controller.detector import BAD_S, BLOCK_S, FLAT_S, HIGH_PASS_ORDER, LF_TIME_S, SLOW_TIME_S
from controller.kernels import LF_RATIO, MAX_UV
from controller.streams import GAP_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LEAST_S = {"quiet": 5.0, "contraction": 1.0, "spasm": 0.3}  # 2 s are learnt from, the rest is judged; a spasm can be short
LEAST_UV, MOST_UV = 0.1, 1000.0  # rest: no amplifier for surface EMG has less noise, no resting muscle more
CLIPPED = 5  # samples at one outermost value, and so many times as many as at the value next to it: a converter's or amplifier's end
MAINS_MOST = 3.0  # of all else, root mean square: as far as bench.detection has tried the mains
MAINS_MOST_HEARD = 1.0  # the same above the high-pass, where the detector listens
MAINS_SEEN = 4.0  # a line this much above its neighbours in the spectrum, in power, is the mains
MOTION_MOST = 25.0  # in rest's: as a pulled cable in bench.detection; what is smaller stays below the high-pass, and is only remarked
MOTION_SHARE = 0.01  # of the quiet part
HALVES_MOST = 1.5  # ratio of the two halves of the quiet part, root mean square
BURST = 9.0  # a block of so many times the usual power: after an injury rest has single motor units, which reach 6 (Verma's recording,
BURSTS_MOST_S = 0.1  # detection notes 2; McKay 2010) and are what floor_uv is for; and so much of it
BEATS_MOST = 20.0  # height of a heartbeat, in root mean squares of what lies between; bench.detection has tried 8
BEATS_MOST_HEARD = 1.5  # root mean square around the beats, of that between them, above the high-pass
COPIES = 0.99  # correlation; neighbouring pads over one muscle share half of their noise and less of its activity
STRONGER = 1.5  # root mean square of an activity, in rest's: 1 dB of its own
STRONG_S = 0.5
EARLY_S = 0.05  # an activity that is there so soon began before its part


class Finding(NamedTuple):
    """One thing that speaks against a signal."""

    what: str
    channel: str
    part: str
    figure: float
    text: str
    remedy: str
    refuses: bool = True  # else it is worth a word, no more

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return self.channel if self.part == "whole" else f"{self.channel}, {self.part} part"


# --- what others need too ---------------------------------------------------------------------------------------------------------
def rms(x: Floats) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(x)))) if x.size else 0.0


def high_passed(x: Floats, high_pass_hz: float, rate_hz: float) -> Floats:
    """What the detector's own filter leaves of (n, c) samples; what is no number is left out of account."""
    sos = butter(HIGH_PASS_ORDER, high_pass_hz, "highpass", fs=rate_hz, output="sos")
    good = np.where(np.abs(x) < MAX_UV, x, np.nan)
    clean = np.where(np.isnan(good), np.median(x, axis=0) if np.isfinite(x).all() else 0.0, good)
    out, _ = sosfilt(sos, clean, axis=0, zi=sosfilt_zi(sos)[:, :, None] * clean[0])
    return np.asarray(out)


def mains(x: Floats, rate_hz: float) -> tuple[float, float]:
    """Frequency of the power line in one channel, 50 or 60 Hz (0: neither is seen), and its root mean square in that of all else.

    The line and its harmonics in a spectrum of 1 Hz (Welch 1967), above 10 Hz, against what lies 3 to 8 Hz beside them.
    """
    f_hz, power = welch(x, rate_hz, nperseg=min(len(x), round(rate_hz)))
    best_hz, most = 0.0, 0.0
    for line_hz in (50.0, 60.0):
        seen, excess = False, 0.0
        for at_hz in np.arange(line_hz, 0.45 * rate_hz, line_hz):
            away_hz = np.abs(f_hz - at_hz)
            near, usual = power[away_hz <= 2.0], float(np.median(power[(away_hz >= 3.0) & (away_hz <= 8.0)]))
            if at_hz % 300.0 or not best_hz:  # 300 Hz and its multiples are of both
                seen = seen or bool(near.max() > MAINS_SEEN * usual)
                excess += max(0.0, float(near.sum()) - near.size * usual)
        if seen and excess > most:
            best_hz, most = line_hz, excess
    rest = float(power[f_hz >= 10.0].sum()) - most
    return best_hz, float(np.sqrt(most / rest)) if rest > 0.0 else np.inf if most else 0.0


def beats(x: Floats, rate_hz: float) -> NDArray[np.int64]:
    """Where the heart beats in one channel, in samples; empty where nothing comes at the pace of one (40 to 180 a minute, regularly)."""
    band_hz = np.minimum((5.0, 40.0), 0.45 * rate_hz)
    y = np.abs(sosfilt(butter(2, band_hz, "bandpass", fs=rate_hz, output="sos"), x - np.median(x)))
    usual = float(np.median(y)) / 0.6745  # of a Gaussian, its standard deviation
    at, _ = find_peaks(y, height=5.0 * usual, distance=max(1, round(0.33 * rate_hz)))
    gaps_s = np.diff(at) / rate_hz
    regular = len(at) >= 5 and gaps_s.max() < 1.5 and gaps_s.std() < 0.15 * gaps_s.mean()
    return np.asarray(at if regular else at[:0], np.int64)


def usual_power(power: Floats, rate_hz: float, span_s: float) -> Floats:
    """Moving mean, centred."""
    n = max(1, min(len(power), round(span_s * rate_hz)))
    return np.convolve(power, np.full(n, 1.0 / n), "same")


def strength(power: Floats, rate_hz: float) -> float:
    """Root mean square of an activity, of its power: the usual one (median) while it is within 6 dB of its most."""
    smooth = usual_power(power, rate_hz, 0.1)
    return float(np.sqrt(np.median(smooth[smooth > 0.25 * smooth.max()])))


def spans_s(mask: NDArray[np.bool_], step_s: float) -> list[float]:
    """Where runs of True begin, in s."""
    return [float(i) * step_s for i in np.flatnonzero(np.diff(np.concatenate([[False], mask]).astype(int)) == 1)]


def _blocks(y: Floats, rate_hz: float) -> Floats:
    """Mean squares of blocks, (n_blocks, ...), as long as those that the detector learns from."""
    n = max(1, round(BLOCK_S * rate_hz))
    whole = len(y) // n * n
    return np.asarray(np.mean(np.square(y[:whole]).reshape(-1, n, *y.shape[1:]), axis=1))


# --- any part ---------------------------------------------------------------------------------------------------------------------
def short(part: str, length_s: float) -> Iterator[Finding]:
    """Whether a part is long enough."""
    if length_s < LEAST_S[part] - 1e-9:
        text = f"too short, {length_s:.3g} s where {LEAST_S[part]:g} s are needed"
        yield Finding("too short", "all channels", part, length_s, text, "Choose or record a longer one.")


def stamps(channels: str, part: str, t_s: Floats, rate_hz: float, length_s: float) -> Iterator[Finding]:
    """Whether samples are missing."""
    step_s = np.diff(t_s)
    gap_s = max(GAP_S, 10.0 / rate_hz)
    holes = step_s[np.abs(step_s) > gap_s]
    remedy = "Look for the amplifier's radio link, its battery and a busy computer, then record again."
    if len(holes):
        text = f"{len(holes)} gap{'s' if len(holes) > 1 else ''} in the signal, the longest {np.abs(holes).max():.3g} s"
        yield Finding("gap", channels, part, float(np.abs(holes).max()), text, remedy)
    elif abs(len(t_s) - length_s * rate_hz) > max(0.02 * length_s * rate_hz, BAD_S * rate_hz):
        text = f"{len(t_s)} samples in {length_s:.4g} s, where {rate_hz:g} Hz make {length_s * rate_hz:.0f}"
        yield Finding("samples missing", channels, part, float(len(t_s)), text, f"Is {rate_hz:g} Hz the amplifier's rate? {remedy}")


def samples(channel: str, part: str, x: Floats, rate_hz: float) -> Iterator[Finding]:
    """Whether the samples of one channel are those of a working amplifier."""
    bad = int(np.count_nonzero(~(np.abs(x) < MAX_UV)))
    if bad:
        text = f"{bad} of {len(x)} samples are no numbers, or beyond 1 V"
        yield Finding("no number", channel, part, float(bad), text, "Look at the amplifier and its program.")
        return
    run = max(4, round(FLAT_S * rate_hz))
    edges = np.concatenate([[0], np.flatnonzero(np.diff(x)) + 1, [len(x)]])
    lengths = np.diff(edges)
    flat_s = float(lengths[lengths > run].sum()) / rate_hz
    if flat_s:
        text = f"flat, it does not change at all for {flat_s:.3g} of {len(x) / rate_hz:.3g} s"
        remedy = "An electrode is off, a cable is unplugged, or the amplifier is at its end: look at them, then record again."
        yield Finding("flat", channel, part, flat_s, text, remedy)
        return
    for end, name in ((x, "top"), (-x, "bottom")):
        values, counts = np.unique(end, return_counts=True)
        if len(values) > 1 and counts[-1] >= max(CLIPPED, CLIPPED * counts[-2]):
            text = f"clipped, {counts[-1]} samples stand at the {name} of its range, {values[-1] if name == 'top' else -values[-1]:.4g} uV"
            remedy = "Choose a larger range (a smaller gain) in the amplifier's program, then record again."
            yield Finding("clipped", channel, part, float(counts[-1]), text, remedy)
            return


# --- the quiet part ---------------------------------------------------------------------------------------------------------------
def quiet(channel: str, x: Floats, y: Floats, rate_hz: float, from_s: float) -> Iterator[Finding]:
    """Whether a channel is at rest and hears the muscle before all else.

    Parameters
    ----------
    x, y : (n,) float64, µV
        Raw, and above the high-pass.
    from_s : float
        Where the part begins, for people.
    """
    rest_uv = rms(y)
    if not LEAST_UV <= rest_uv <= MOST_UV:
        words = "too little" if rest_uv < LEAST_UV else "too much"
        text = f"rest has {rest_uv:.3g} uV above the high-pass, {words} for any surface EMG"
        yield Finding("unit", channel, "quiet", rest_uv, text, "Is the unit right (unit in the settings, or --unit)?")
        return
    line_hz, ratio = mains(x, rate_hz)
    _, heard = mains(y, rate_hz)
    if line_hz and (ratio > MAINS_MOST or heard > MAINS_MOST_HEARD):
        where = "" if ratio > MAINS_MOST else " in the band that is listened to"
        ratio = ratio if ratio > MAINS_MOST else heard
        text = f"the mains ({line_hz:g} Hz) is {ratio:.3g} times as strong as all else{where}"
        remedy = "Look at the ground electrode, clean the skin, move power supplies and the bed's motor cable away."
        yield Finding("mains", channel, "quiet", ratio, text, remedy)
        return
    at = beats(x, rate_hz)
    near = np.zeros(len(x), bool)
    for k in at:
        near[max(0, k - round(0.1 * rate_hz)) : k + round(0.3 * rate_hz)] = True
    if at.size:
        peak, between, pace = _heart(x, y, at, near, rate_hz)
        serious = peak > BEATS_MOST or between > BEATS_MOST_HEARD
        text = f"the heartbeat ({pace:.0f} a minute) stands out, {peak:.3g} times what lies between"
        text += (
            f"; above the high-pass {between:.3g} times" if serious else f", and above the high-pass {between:.3g} times: it is kept out"
        )
        remedy = "Move both pads of the channel closer together, along the muscle and off the line to the heart."
        yield Finding("heartbeat", channel, "quiet", peak, text, remedy, serious)
        if serious:
            return
    swing = np.where(near, 0.0, _swing(x, rate_hz)) / rest_uv
    share, most = float(np.mean(swing > LF_RATIO)), float(swing.max())
    if share > MOTION_SHARE:
        first_s = from_s + spans_s(swing > LF_RATIO, 1.0 / rate_hz)[0]
        text = f"motion, slow swings of up to {most:.3g} times rest for {100 * share:.2g} % of the time, first at {first_s:.2f} s"
        if most <= MOTION_MOST:
            text += "; while it lasts a spasm must be loud for 50 ms before it is answered"
        remedy = "Fasten the cables, let the leg lie still, wait until the pads have settled, then record again."
        yield Finding("motion", channel, "quiet", most, text, remedy, most > MOTION_MOST)
    yield from _unrest(channel, y, rate_hz, from_s)


def _heart(x: Floats, y: Floats, at: NDArray[np.int64], near: NDArray[np.bool_], rate_hz: float) -> tuple[float, float, float]:
    """Height of the beats in what lies between, the same for root mean squares above the high-pass, and beats a minute."""
    centred = x - np.median(x)
    height = float(np.median([np.abs(centred[max(0, k - round(0.05 * rate_hz)) : k + round(0.05 * rate_hz)]).max() for k in at]))
    close = np.zeros(len(x), bool)
    for k in at:
        close[max(0, k - round(0.04 * rate_hz)) : k + round(0.04 * rate_hz)] = True
    between = centred[~near]
    if not between.size:
        return 0.0, 0.0, 0.0
    return height / rms(between), rms(y[close]) / max(rms(y[~near]), 1e-12), 60.0 * rate_hz / float(np.mean(np.diff(at)))


def _swing(x: Floats, rate_hz: float) -> Floats:
    """What swings slowly, as the detector's own averages see it, in µV."""

    def average(values: Floats, time_s: float) -> Floats:
        step = 1.0 - np.exp(-1.0 / (time_s * rate_hz))
        b, a = [step], [1.0, step - 1.0]
        return np.asarray(lfilter(b, a, values, zi=lfilter_zi(b, a) * float(np.median(x[: round(rate_hz)])))[0])

    return np.abs(average(average(x, LF_TIME_S), LF_TIME_S) - average(x, SLOW_TIME_S))


def _unrest(channel: str, y: Floats, rate_hz: float, from_s: float) -> Iterator[Finding]:
    power = _blocks(y, rate_hz)
    half = len(power) // 2
    first, second = (float(np.sqrt(np.median(part))) for part in (power[:half], power[half:]))
    remedy = "Wait until the muscle is at rest, or choose another quiet part; if rest is like this, it cannot be calibrated as quiet."
    if max(first, second) > HALVES_MOST * min(first, second):
        text = f"not quiet, {first:.3g} uV in its first half and {second:.3g} uV in its second"
        yield Finding("not quiet", channel, "quiet", second / first, text, remedy)
    loud = power > BURST * np.median(power)
    if loud.sum() * BLOCK_S > BURSTS_MOST_S + 1e-9:
        at = ", ".join(f"{from_s + t_s:.1f}" for t_s in spans_s(loud, BLOCK_S)[:4])
        most = float(np.sqrt(power.max() / np.median(power)))
        text = f"not quiet, {loud.sum() * BLOCK_S:.2g} s of bursts of up to {most:.3g} times rest, at {at} s"
        yield Finding("bursts", channel, "quiet", most, text, remedy)


# --- a rule -----------------------------------------------------------------------------------------------------------------------
def copies(channels: tuple[str, ...], y: Floats) -> Iterator[Finding]:
    """Whether channels of a rule are one signal twice; `y` is (n, c), high-passed."""
    if y.shape[1] < 2:
        return
    r = np.asarray(np.corrcoef(y.T))
    for a in range(len(channels)):
        for b in range(a + 1, len(channels)):
            if abs(r[a, b]) > COPIES:
                text = f"copies of each other (correlation {r[a, b]:.4f}), so that they count as one muscle heard twice"
                remedy = "Is one electrode plugged into two inputs, or one input listed twice? Leave one of them out of the rule."
                yield Finding("copies", f"{channels[a]} and {channels[b]}", "whole", float(r[a, b]), text, remedy)


def activity(name: str, part: str, power: Floats, rest: Floats, rate_hz: float) -> Iterator[Finding]:
    """Whether a part has an activity that begins within it and is stronger than rest; both are the rule's power in rest's."""
    strong = float(np.sqrt(usual_power(power, rate_hz, STRONG_S if part == "contraction" else 0.1).max()))
    if strong < STRONGER:
        text = f"not stronger than rest, {strong:.3g} times it at most ({STRONGER:g} are needed)"
        remedy = "Was it this muscle? Look at the pads' place and the channel; name the one rule of this muscle with --rule."
        yield Finding("not stronger than rest", name, part, strong, text, remedy)
    elif begins(power, rest, rate_hz) < EARLY_S * rate_hz:
        text = f"the {part} is there already when the part begins"
        yield Finding("began before", name, part, 0.0, text, "Choose a part that begins at rest, half a second before it.")


def begins(power: Floats, rest: Floats, rate_hz: float) -> int:
    """Sample at which an activity begins, seen from behind, which the detector cannot; -1 where there is none.

    Where power first stays above all that rest has shown, and from there back to where a change of a Gaussian's variance is most likely, to
    a power half-way (in dB) to what follows. `power` and `rest` are of the rule, in rest's. On bursts that were put in by hand it is off by
    some 10 ms, at most 20, where they rise abruptly (60 of them tried); a slow rise is seen 10 to 90 ms late.
    """
    smooth = usual_power(power, rate_hz, 0.02)
    level = max(2.5, 1.2 * float(usual_power(rest, rate_hz, 0.02)[round(0.02 * rate_hz) :].max()))
    above = smooth > level
    lasts = usual_power(above.astype(float), rate_hz, 0.1) >= 0.6
    both = np.flatnonzero(above & np.roll(lasts, -round(0.05 * rate_hz)))
    if not both.size:
        return -1
    at = int(both[0])
    after = max(2.0, float(np.sqrt(smooth[at : at + round(0.02 * rate_hz)].max())))
    evidence = np.cumsum(power[: at + 1] * (1.0 - 1.0 / after) / 2.0 - np.log(after) / 2.0)
    return min(at, int(np.argmin(evidence)) + 1) if evidence[-1] > evidence.min() else at
