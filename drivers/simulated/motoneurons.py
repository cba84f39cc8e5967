"""A soleus motoneuron pool with persistent inward currents, and the muscle it drives: numba kernels and their parameters.

Equations and ranges are published; the code is ours. `patient.py` is the only caller. No clock, no file, no random draw may live here.

Sources, named in the docstrings by these words:

- *Elias & Kohn 2012*: two-compartment motoneuron, pulse-based (Destexhe) conductances (Neurocomputing 99:521; J Comput Neurosci 33:515).
- *pool ranges*: imendezguerra/soma_den_mn_model (MIT), after Cisi & Kohn 2008 (J Comput Neurosci, 10.1007/s10827-008-0092-8).
- *muscle*: Cisi & Kohn 2008 as configured in ReMoto/NMSPython.
- *ours*: chosen for this simulation, no source.

Units inside: mV relative to rest, ms, nF, µS, nA.

All kernels step sample by sample, and unit by unit within a sample, so that every sum is taken in one order whatever the block: the
signals are the same, bit for bit, under any block size. Nothing here allocates; arrays are filled in place.
"""

from __future__ import annotations

from math import exp, pi, tanh
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

TICK_MS = 0.1  # 0.025, 0.05 and 0.1 ms agree within 2 % on firing rate
TICKS = 5  # ticks in an EMG sample
SAMPLE_MS = 0.5  # 2 kHz
REFRACTORY_TICKS = 50  # 5 ms (Elias & Kohn 2012)
PULSE_TICKS = 6  # conductance pulse of a spike, 0.6 ms (Elias & Kohn 2012)
GATE_FLOOR = 1e-12  # gates below are 0: denormal numbers cost ten times a normal one

E_NA_MV, E_K_MV, E_CA_MV, E_EXC_MV, E_INH_MV = 120.0, -10.0, 140.0, 70.0, -16.0  # relative to rest (Elias & Kohn 2012)

# Gates per tick, Elias & Kohn 2012: alpha during the spike's pulse, beta after it (h the other way round), 1/ms.
M_ON, M_OFF = exp(-22.0 * TICK_MS), exp(-13.0 * TICK_MS)
H_ON, H_OFF = exp(-4.0 * TICK_MS), exp(-0.5 * TICK_MS)
N_ON, N_OFF = exp(-1.5 * TICK_MS), exp(-0.1 * TICK_MS)
Q_ON = exp(-1.5 * TICK_MS)
P_ON = 0.008 * TICK_MS  # the PIC switches on with tau 125 ms (Elias & Kohn 2012)
# ... and not at once: a PIC needs more than 100 ms (J Neurophysiol 2004, in the physiology notes 2). The switch between on and off is
# therefore smoothed, which leaves the established PIC as published and delays its rise and its fall (ours).
Z_KEEP = exp(-TICK_MS / 100.0)

PIC_HALF_INACTIVATION = 0.1  # slow inactivation, so that a spasm ends by itself (ours: the published model's never do)
PIC_RECOVERY_MS = 1500.0  # back to normal before the next spasm, 3 to 7 s later (ours)

NOISE_TAU_MS = 4.0  # synaptic noise, independent part < 50 Hz (pool ranges)
NOISE_KEEP = exp(-SAMPLE_MS / NOISE_TAU_MS)

INHIBITION_TAU_MS = 12.0  # aggregate of the Ia interneurons; dendritic, since somatic IPSPs do not end a PIC (ours)
INHIBITION_KEEP = exp(-TICK_MS / INHIBITION_TAU_MS)


class Pool(NamedTuple):
    """What does not change: one value a unit, from the smallest to the largest.

    Attributes
    ----------
    c_dendrite_nf, c_soma_nf : (n_units,) float64
    g_leak_dendrite, g_leak_soma, g_coupling, g_na, g_kf, g_ks, g_ca, g_input : (n_units,) float64, µS
        `g_input` is the resting input conductance seen from the soma; excitation and inhibition are given as fractions of it.
    v_threshold_mv, v_pic_mv : (n_units,) float64
        Spike threshold; soma potential above which the PIC switches on.
    q_off, p_off : (n_units,) float64
        What one tick leaves of the slow potassium gate; what it takes from the PIC.
    drive_weight : (n_units,) float64
        A unit's share of the common excitation, 1 on average.
    noise_na : (n_units,) float64
        Standard deviation of the synaptic noise current.
    axon_delay_ms : (n_units,) float64
        Soma to end plate.
    muap_uv, muap_lambda_ms : (n_units, 4) float64
        Hermite-Rodriguez amplitude (negative: mirrored) and time scale of a unit at each electrode pair.
    muap_order : (n_units,) int64
        1 or 2.
    twitch_nm, tetanus_ratio, saturation : (n_units,) float64
        Twitch torque; tetanus over twitch; slope of the saturation.
    twitch_keep, twitch_gain : (n_units,) float64
        exp(-T/Tc) and the impulse gain of the critically damped twitch at T = 1 ms.
    """

    c_dendrite_nf: NDArray[np.float64]
    c_soma_nf: NDArray[np.float64]
    g_leak_dendrite: NDArray[np.float64]
    g_leak_soma: NDArray[np.float64]
    g_coupling: NDArray[np.float64]
    g_na: NDArray[np.float64]
    g_kf: NDArray[np.float64]
    g_ks: NDArray[np.float64]
    g_ca: NDArray[np.float64]
    g_input: NDArray[np.float64]
    v_threshold_mv: NDArray[np.float64]
    v_pic_mv: NDArray[np.float64]
    q_off: NDArray[np.float64]
    p_off: NDArray[np.float64]
    drive_weight: NDArray[np.float64]
    noise_na: NDArray[np.float64]
    axon_delay_ms: NDArray[np.float64]
    muap_uv: NDArray[np.float64]
    muap_lambda_ms: NDArray[np.float64]
    muap_order: NDArray[np.int64]
    twitch_nm: NDArray[np.float64]
    tetanus_ratio: NDArray[np.float64]
    saturation: NDArray[np.float64]
    twitch_keep: NDArray[np.float64]
    twitch_gain: NDArray[np.float64]


class Cells(NamedTuple):
    """What changes, one value a unit; and what the pool shares.

    Attributes
    ----------
    v_dendrite_mv, v_soma_mv : (n_units,) float64
    m, h, n, q, z, p, s : (n_units,) float64
        Gates: sodium, fast and slow potassium; share of the recent past in which the PIC was switched on, PIC activation, and the PIC's
        slow availability.
    noise : (n_units,) float64
        Ornstein-Uhlenbeck noise, standard deviation 1.
    since_spike : (n_units,) int64, ticks
    twitch, twitch_before : (n_units,) float64
        Twitch activation at the last and the last but one torque sample.
    inhibition : (1,) float64
        Dendritic inhibition now, fraction of `g_input`.
    """

    v_dendrite_mv: NDArray[np.float64]
    v_soma_mv: NDArray[np.float64]
    m: NDArray[np.float64]
    h: NDArray[np.float64]
    n: NDArray[np.float64]
    q: NDArray[np.float64]
    z: NDArray[np.float64]
    p: NDArray[np.float64]
    s: NDArray[np.float64]
    noise: NDArray[np.float64]
    since_spike: NDArray[np.int64]
    twitch: NDArray[np.float64]
    twitch_before: NDArray[np.float64]
    inhibition: NDArray[np.float64]


# Ranges within a type, (first unit, last unit). Pool ranges, except: beta_q of FR and FF and the PIC's dV from Elias & Kohn 2012 (dV of FR
# between S and FF); MUAP and twitch from *muscle*.
TYPES: dict[str, dict[str, tuple[float, float]]] = {
    "S": {
        "r_soma_um": (38.75, 41.25), "l_soma_um": (77.5, 82.5), "r_dendrite_um": (20.75, 31.25), "l_dendrite_um": (5500, 6800),
        "rm_soma": (1150, 1050), "rm_dendrite": (14400, 10700), "rheobase_na": (3.5, 6.5), "g_kf": (4, 4), "g_ks": (16, 25),
        "beta_q": (0.025, 0.038), "g_ca": (0.038, 0.029), "beta_p": (0.014, 0.016), "pic_below_mv": (5.25, 5.25),
        "velocity_m_per_s": (44, 47), "muap_mv": (0.003, 0.19), "lambda_ms": (0.8, 0.7),
        "contraction_ms": (170, 132), "twitch_n": (0.03, 1.9), "saturation": (0.7, 0.5), "tetanus_ratio": (2.97, 4.08),
    },
    "FR": {
        "r_soma_um": (41.25, 43.75), "l_soma_um": (82.5, 87.5), "r_dendrite_um": (31.25, 41.75), "l_dendrite_um": (6800, 8100),
        "rm_soma": (1050, 950), "rm_dendrite": (10700, 6950), "rheobase_na": (6.5, 17.5), "g_kf": (4, 2.25), "g_ks": (25, 19),
        "beta_q": (0.055, 0.055), "g_ca": (0.029, 0.016), "beta_p": (0.016, 0.019), "pic_below_mv": (4.5, 4.5),
        "velocity_m_per_s": (47, 50), "muap_mv": (0.19, 0.25), "lambda_ms": (0.7, 0.6),
        "contraction_ms": (135, 100), "twitch_n": (1.9, 2.5), "saturation": (0.5, 0.3), "tetanus_ratio": (4.08, 6.71),
    },
    "FF": {
        "r_soma_um": (43.75, 56.5), "l_soma_um": (87.5, 113), "r_dendrite_um": (41.75, 46.25), "l_dendrite_um": (8100, 10600),
        "rm_soma": (950, 650), "rm_dendrite": (6950, 6050), "rheobase_na": (17.5, 22.1), "g_kf": (2.25, 0.5), "g_ks": (19, 4),
        "beta_q": (0.056, 0.056), "g_ca": (0.016, 0.012), "beta_p": (0.019, 0.020), "pic_below_mv": (3.75, 3.75),
        "velocity_m_per_s": (50, 53), "muap_mv": (0.25, 0.3), "lambda_ms": (0.6, 0.5),
        "contraction_ms": (100, 86), "twitch_n": (2.5, 3.0), "saturation": (0.3, 0.23), "tetanus_ratio": (6.71, 8.73),
    },
}  # fmt: skip
N_OF_TYPE = {"S": 98, "FR": 6, "FF": 6}  # 800 : 50 : 50 in the soleus of *muscle*, thinned to 110 units
RI_OHM_CM, CM_UF_CM2, G_NA_MS_CM2 = 70.0, 1.0, 30.0  # Elias & Kohn 2012
NERVE_M = 0.8  # soma to soleus end plate (*muscle*)
MOMENT_ARM_M = 0.05  # Achilles tendon about the ankle, round value (ours)
NOISE_OF_RHEOBASE = 0.06  # (ours): spreads intervals by some 10 %, far from firing a resting unit
N_CHANNELS = 4  # SOL1 SOL2 TA1 TA2


def soleus_pool(rng: np.random.Generator) -> Pool:
    """Build the pool: cells and twitches by rank, electrode distances drawn.

    Parameters
    ----------
    rng : numpy.random.Generator
        The patient's anatomy: how units of one rank differ, their depth under each electrode pair, their MUAP's polarity and order.

    Returns
    -------
    pool : Pool
        Read-only by convention.
    """
    u = {name: np.concatenate([np.linspace(*TYPES[kind][name], N_OF_TYPE[kind]) for kind in TYPES]) for name in TYPES["S"]}
    rank = len(u["g_ca"])

    # Units of one rank differ: without a spread of thresholds, PICs and drive the pool beats as one (ours).
    def spread(share: float) -> NDArray[np.float64]:
        return rng.uniform(1.0 - share, 1.0 + share, rank)

    u["rheobase_na"] *= spread(0.2)
    u["g_ca"] *= spread(0.1)
    area_s = 2e-5 * pi * u["r_soma_um"] * u["l_soma_um"]  # µS per mS/cm², nF per µF/cm²
    area_d = 2e-5 * pi * u["r_dendrite_um"] * u["l_dendrite_um"]
    axial = RI_OHM_CM * (u["l_dendrite_um"] / (pi * u["r_dendrite_um"] ** 2) + u["l_soma_um"] / (pi * u["r_soma_um"] ** 2))
    g_coupling = 2e2 / axial
    leak_s, leak_d = 1e3 * area_s / u["rm_soma"], 1e3 * area_d / u["rm_dendrite"]
    g_input = leak_s + leak_d * g_coupling / (leak_d + g_coupling)
    threshold = u["rheobase_na"] / g_input

    # Depth 1.5 mm of skin + up to 10 mm of muscle; amplitude exp(-d/5 mm), duration x (1 + d/10 mm) (*muscle*). The tibialis pairs see the
    # soleus at 4 % (ours: weak crosstalk). x 2: one unit here stands for eight of the real muscle, whose powers nearly add up to that.
    depth_mm = 1.5 + np.clip(rng.uniform(0.0, 9.0, (rank, 1)) + rng.uniform(-2.0, 2.0, (rank, N_CHANNELS)), 0.0, 10.0)
    mirrored = rng.choice([-1.0, 1.0], (rank, 1))
    gain = 2.0 * np.array([1.0, 0.85, 0.04, 0.03])
    contraction_ms = u["contraction_ms"]
    return Pool(
        c_dendrite_nf=area_d * CM_UF_CM2,
        c_soma_nf=area_s * CM_UF_CM2,
        g_leak_dendrite=leak_d,
        g_leak_soma=leak_s,
        g_coupling=g_coupling,
        g_na=area_s * G_NA_MS_CM2,
        g_kf=area_s * u["g_kf"],
        g_ks=area_s * u["g_ks"],
        g_ca=area_d * u["g_ca"],
        g_input=g_input,
        v_threshold_mv=threshold,
        v_pic_mv=threshold - u["pic_below_mv"],
        q_off=np.exp(-u["beta_q"] * TICK_MS),
        p_off=u["beta_p"] * TICK_MS,
        drive_weight=spread(0.45),
        noise_na=NOISE_OF_RHEOBASE * u["rheobase_na"],
        axon_delay_ms=1e3 * NERVE_M / u["velocity_m_per_s"],
        muap_uv=1e3 * u["muap_mv"][:, None] * mirrored * np.exp(-depth_mm / 5.0) * gain,
        muap_lambda_ms=u["lambda_ms"][:, None] * (1.0 + 0.1 * depth_mm),
        muap_order=rng.integers(1, 3, rank),
        twitch_nm=u["twitch_n"] * MOMENT_ARM_M,
        tetanus_ratio=u["tetanus_ratio"],
        saturation=u["saturation"],
        twitch_keep=np.exp(-1.0 / contraction_ms),
        twitch_gain=np.exp(1.0 - 1.0 / contraction_ms) / contraction_ms,
    )


def resting_cells(n_units: int) -> Cells:
    """Every unit at rest, its PIC off and fully available, its last spike long ago."""
    zeros = {name: np.zeros(n_units) for name in Cells._fields}
    zeros |= {"h": np.ones(n_units), "s": np.ones(n_units), "inhibition": np.zeros(1)}
    return Cells(**{**zeros, "since_spike": np.full(n_units, 10 * REFRACTORY_TICKS)})


@njit(cache=True)
def discharge(
    pool: Pool,
    cells: Cells,
    gamma: float,
    first_sample: int,
    excitation: NDArray[np.float64],
    pic_tau_ms: NDArray[np.float64],
    inhibition_steps: NDArray[np.float64],
    white: NDArray[np.float64],
    spike_tick: NDArray[np.int64],
    spike_unit: NDArray[np.int64],
    pic_mean: NDArray[np.float64],
) -> int:
    """Step the motoneurons through a block and list their spikes.

    Elias & Kohn 2012, PIC triggered at the soma. The potentials follow backward Euler, one compartment after the other, with the
    conductances of the moment: stable at any conductance.

    Parameters
    ----------
    pool : Pool
    cells : Cells
        Changed in place.
    gamma : float
        PIC strength: 0 healthy, 0.3 mild, 0.5 to 0.7 spastic.
    first_sample : int
        Number of the block's first EMG sample.
    excitation : (n_samples,) float64
        Dendritic excitation, fraction of `g_input`.
    pic_tau_ms : (n_samples,) float64
        Time constant of the PIC's slow inactivation: ds/dt = (s_inf(p) - s) / tau, s_inf = 1 / (1 + (p / 0.1)^2).
    inhibition_steps : (>= n_samples * TICKS,) float64
        What is added to the dendritic inhibition at each tick, fraction of `g_input`.
    white : (n_samples, n_units) float64
        Standard normal draws.
    spike_tick, spike_unit : (capacity,) int64
        Filled in place.
    pic_mean : (>= n_samples / 2 + 1,) float64
        Share of the PIC that is open (p s), mean over the pool, at the even samples (1 kHz); filled in place.

    Returns
    -------
    n_spikes : int
    """
    n_units = pool.g_ca.size
    kick = (1.0 - NOISE_KEEP * NOISE_KEEP) ** 0.5
    inhibition = np.empty(TICKS)
    n_spikes = 0
    n_pic = 0
    for i in range(excitation.size):
        for k in range(TICKS):
            cells.inhibition[0] = cells.inhibition[0] * INHIBITION_KEEP + inhibition_steps[i * TICKS + k]
            inhibition[k] = cells.inhibition[0]
        if cells.inhibition[0] < GATE_FLOOR:
            cells.inhibition[0] = 0.0
        open_sum = 0.0
        for u in range(n_units):
            vd, vs = cells.v_dendrite_mv[u], cells.v_soma_mv[u]
            m, h, n, q = cells.m[u], cells.h[u], cells.n[u], cells.q[u]
            z, p, s = cells.z[u], cells.p[u], cells.s[u]
            since = cells.since_spike[u]
            cells.noise[u] = cells.noise[u] * NOISE_KEEP + kick * white[i, u]
            noise_na = cells.noise[u] * pool.noise_na[u]
            gc = pool.g_coupling[u]
            g_exc = excitation[i] * pool.drive_weight[u] * pool.g_input[u]
            cd, cs = pool.c_dendrite_nf[u] / TICK_MS, pool.c_soma_nf[u] / TICK_MS
            for k in range(TICKS):
                g_ca = gamma * s * p * pool.g_ca[u]
                g_inh = inhibition[k] * pool.g_input[u]
                vd = (cd * vd + gc * vs + g_ca * E_CA_MV + g_inh * E_INH_MV + g_exc * E_EXC_MV) / (
                    cd + pool.g_leak_dendrite[u] + gc + g_ca + g_inh + g_exc
                )
                g_na = pool.g_na[u] * m * m * m * h
                g_k = pool.g_kf[u] * n * n * n * n + pool.g_ks[u] * q * q
                vs = (cs * vs + gc * vd + g_na * E_NA_MV + g_k * E_K_MV + noise_na) / (cs + pool.g_leak_soma[u] + gc + g_na + g_k)
                since += 1
                if vs > pool.v_threshold_mv[u] and since > REFRACTORY_TICKS:
                    since = 0
                    spike_tick[n_spikes] = (first_sample + i) * TICKS + k
                    spike_unit[n_spikes] = u
                    n_spikes += 1
                if since < PULSE_TICKS:
                    m, n, q, h = 1.0 + (m - 1.0) * M_ON, 1.0 + (n - 1.0) * N_ON, 1.0 + (q - 1.0) * Q_ON, h * H_ON
                else:
                    m, n, q, h = m * M_OFF, n * N_OFF, q * pool.q_off[u], 1.0 + (h - 1.0) * H_OFF
                    if m < GATE_FLOOR:
                        m = 0.0
                    if n < GATE_FLOOR:
                        n = 0.0
                    if q < GATE_FLOOR:
                        q = 0.0
                z = z * Z_KEEP if vs <= pool.v_pic_mv[u] else 1.0 + (z - 1.0) * Z_KEEP
                p += z * P_ON * (1.0 - p) - (1.0 - z) * pool.p_off[u] * p
                if p < GATE_FLOOR:
                    p = 0.0
                if z < GATE_FLOOR:
                    z = 0.0
            cells.v_dendrite_mv[u], cells.v_soma_mv[u] = vd, vs
            cells.m[u], cells.h[u], cells.n[u], cells.q[u] = m, h, n, q
            cells.z[u], cells.p[u] = z, p
            available = 1.0 / (1.0 + (p / PIC_HALF_INACTIVATION) ** 2)
            cells.s[u] = s + (available - s) * SAMPLE_MS / (pic_tau_ms[i] if available < s else PIC_RECOVERY_MS)
            cells.since_spike[u] = since
            open_sum += s * p
        if (first_sample + i) % 2 == 0:
            pic_mean[n_pic] = open_sum / n_units
            n_pic += 1
    return n_spikes


@njit(cache=True)
def hermite_rodriguez(t_ms: float, lambda_ms: float, order: int) -> float:
    """Value of a unit MUAP of that order, `t_ms` after its centre (muscle)."""
    x = t_ms / lambda_ms
    if order == 1:
        return 1.19 * x * exp(-x * x)
    return 0.69 * (1.0 - 2.0 * x * x) * exp(-x * x)


@njit(cache=True)
def conduct(
    pool: Pool,
    n_spikes: int,
    spike_tick: NDArray[np.int64],
    spike_unit: NDArray[np.int64],
    first_sample: int,
    electromechanical_delay_ms: float,
    emg_ahead: NDArray[np.float64],
    twitch_ahead: NDArray[np.float64],
) -> None:
    """Write what the spikes will do at the muscle: MUAPs on the electrodes, impulses to the twitches.

    MUAPs are evaluated at exact arrival times: t_a = t - t_arrival - 3 lambda, over 6 lambda (muscle).

    Parameters
    ----------
    pool : Pool
    n_spikes : int
    spike_tick, spike_unit : (>= n_spikes,) int64
    first_sample : int
        Number of the EMG sample in row 0 of `emg_ahead`.
    electromechanical_delay_ms : float
    emg_ahead : (n_ahead, 4) float64, µV
        Added to in place.
    twitch_ahead : (n_ahead_ms, n_units) float64
        Impulses per torque sample, row 0 at the first torque sample not before `first_sample`; added to in place.
    """
    first_ms = (first_sample + 1) // 2
    for j in range(n_spikes):
        u = spike_unit[j]
        arrival_ms = spike_tick[j] * TICK_MS + pool.axon_delay_ms[u]
        twitch_ahead[int(np.ceil(arrival_ms + electromechanical_delay_ms)) - first_ms, u] += 1.0
        for c in range(N_CHANNELS):
            width_ms = pool.muap_lambda_ms[u, c]
            centre_ms = arrival_ms + 3.0 * width_ms
            for i in range(int(np.ceil(arrival_ms / SAMPLE_MS)), int((arrival_ms + 6.0 * width_ms) / SAMPLE_MS) + 1):
                emg_ahead[i - first_sample, c] += pool.muap_uv[u, c] * hermite_rodriguez(
                    i * SAMPLE_MS - centre_ms, width_ms, pool.muap_order[u]
                )


@njit(cache=True)
def contract(pool: Pool, cells: Cells, twitch_ahead: NDArray[np.float64], torque_nm: NDArray[np.float64]) -> None:
    """Sum the saturating, critically damped twitches of all units (muscle), 1 kHz.

    Parameters
    ----------
    pool : Pool
    cells : Cells
        Twitch states, changed in place.
    twitch_ahead : (>= n_ms, n_units) float64
    torque_nm : (n_ms,) float64
        Filled in place.
    """
    for i in range(torque_nm.size):
        total = 0.0
        for u in range(pool.twitch_nm.size):
            keep = pool.twitch_keep[u]
            a = 2.0 * keep * cells.twitch[u] - keep * keep * cells.twitch_before[u] + pool.twitch_gain[u] * twitch_ahead[i, u]
            if a < GATE_FLOOR:
                a = 0.0
            cells.twitch_before[u], cells.twitch[u] = cells.twitch[u], a
            # (1 - e^-ba) / (1 + e^-ba)
            total += tanh(0.5 * pool.saturation[u] * a) * pool.tetanus_ratio[u] * pool.twitch_nm[u]
        torque_nm[i] = total


@njit(cache=True)
def electrode_noise(white: NDArray[np.float64], low: NDArray[np.float64], slow: NDArray[np.float64], mix_uv: NDArray[np.float64],
                    noise_uv: NDArray[np.float64]) -> None:  # fmt: skip
    """Band-limit white noise (about 15 to 600 Hz, one pole each) and mix it onto the channels.

    Parameters
    ----------
    white : (n_samples, n_sources) float64
        Standard normal draws.
    low, slow : (n_sources,) float64
        Filter states, changed in place.
    mix_uv : (n_sources, 4) float64, µV
        Weight of each source on each channel.
    noise_uv : (n_samples, 4) float64, µV
        Added to in place.
    """
    for i in range(white.shape[0]):
        for j in range(white.shape[1]):
            low[j] += 0.85 * (white[i, j] - low[j])
            slow[j] += 0.046 * (low[j] - slow[j])
            for c in range(N_CHANNELS):
                noise_uv[i, c] += mix_uv[j, c] * (low[j] - slow[j])
