"""The job that every contender does: what the source sends, and what a program without detector and policy makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "config" / "bench.toml"
STREAM = "calmloop bench EMG"  # as config/bench.toml has it
CHANNELS = tuple(f"EMG{i}" for i in range(1, 9))
UNIT = "uV"
RATE_HZ = 2000.0
NOISE_UV = 5.0
BURST_UV = 8000.0  # so that the first sample of a burst passes everybody's threshold
BURST_MS = 5
PERIOD_SAMPLES = 8  # of the burst: 250 Hz, in the middle of what everybody's band-pass lets through
EVENTS_HZ, EVENTS_HZ_FLOOD = 30.0, 12.0  # a flood's stamps reach back: 100 samples that are declared 0.5 ms apart, each 5 ms
JITTER = 0.15  # of the interval, either way
DROPPED = 20  # first events after each start

# band-pass (2 second-order sections) -> absolute value -> mean of the channels -> exponential mean -> threshold
BAND_HZ = (20.0, 450.0)
SMOOTH_S = 0.002
THRESHOLD_UV = 200.0

SOURCE_PRIORITY, PIPELINE_PRIORITY, GUARD_PRIORITY = 60, 70, 80


def band_pass() -> np.ndarray:
    """Coefficients of the band-pass, (2, 6)."""
    from scipy.signal import butter

    return np.asarray(butter(2, BAND_HZ, "bandpass", fs=RATE_HZ, output="sos"))


def smooth_step() -> float:
    """Weight of the newest sample in the exponential mean."""
    return float(1.0 - np.exp(-1.0 / (SMOOTH_S * RATE_HZ)))


def onsets(events: int, rate_hz: float, chunk: int, rng: np.random.Generator) -> np.ndarray:
    """First chunk of each event, jittered so that no timer of a contender can keep step."""
    interval_chunks = RATE_HZ / chunk / rate_hz
    gaps = interval_chunks * rng.uniform(1.0 - JITTER, 1.0 + JITTER, events)
    return np.maximum(1, np.round(gaps)).astype(np.int64).cumsum()


def signal(first_chunks: np.ndarray, chunk: int, flood: int, noise_uv: np.ndarray) -> np.ndarray:
    """Noise with a burst at each onset, (n_chunks, chunk x flood, n_channels) float64; ends one interval after the last onset.

    `flood` times the samples that the stream declares leave in each chunk, bursts as many times longer.
    """
    size = chunk * flood
    gap = int(np.diff(first_chunks).max(initial=10))
    n_chunks = int(first_chunks[-1]) + gap + 1
    x = np.resize(noise_uv, (n_chunks * size, len(CHANNELS))).copy()
    n = round(BURST_MS * RATE_HZ / 1000) * flood
    wave = BURST_UV * np.cos(2 * np.pi * np.arange(n) / PERIOD_SAMPLES)[:, None]  # its very first sample is at full size
    for start in first_chunks * size:
        x[start : start + n] += wave[: len(x) - start]
    return x.reshape(n_chunks, size, len(CHANNELS))
