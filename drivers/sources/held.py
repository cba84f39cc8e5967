"""What a file holds, before anything of it is chosen: the one face that every reader of recordings fills.

May be imported by the readers beside it. Choosing, scaling and cutting are for `files`; here signals are put down as they stand in
the file.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from drivers.base import FileFormatError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

UV_PER = {"v": 1e6, "volt": 1e6, "volts": 1e6, "mv": 1e3, "uv": 1.0, "nv": 1e-3}
UV_PER |= {"millivolt": 1e3, "millivolts": 1e3, "microvolt": 1.0, "microvolts": 1.0}  # as LSL's metadata spells them
MAX_NAME_CHARS = 1000  # longer is no name of a signal, and would keep a pattern busy
MEMORY = Path("/proc/meminfo")
_NO_EMG = re.compile(r"\b(EEG|ECG|EKG|EOG|MEG|ERG)\b", re.IGNORECASE)  # EDF+'s words for other voltages


def plain(unit: str) -> str:
    """Spell a unit as `UV_PER` has it."""
    return unit.strip().replace("µ", "u").replace("μ", "u").lower()


def told_apart(names: Sequence[str]) -> list[str]:
    """Give each signal a name of its own: where several have one, #1, #2 in the order of the file."""
    names = [name.strip() or "unnamed" for name in names]
    count, seen, out = Counter(names), Counter[str](), []
    for name in names:
        seen[name] += 1
        out.append(f"{name}#{seen[name]}" if count[name] > 1 else name)
    return out if len(set(out)) == len(out) else [f"{name}#{k}" for k, name in enumerate(names, 1)]


@dataclass(slots=True)
class Held:
    """All that a file holds, under flat names; structures are flattened with dots."""

    path: Path
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)  # of any dtype and shape; scalars have no axes
    texts: dict[str, list[str]] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)  # what we cannot use, in words
    rates_hz: dict[str, float] = field(default_factory=dict)  # of an array, by the file's own metadata
    units: dict[str, str] = field(default_factory=dict)
    columns: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # label and unit of each column, where the file says them
    starts_s: dict[str, float] = field(default_factory=dict)  # first sample of an array, where the file says it; on one clock
    remarks: dict[str, list[str]] = field(default_factory=dict)  # notes on an array, for whoever takes it
    default: tuple[str, ...] = ()  # the arrays to take together where none is named
    default_force: str | None = None
    notes: list[str] = field(default_factory=list)

    def error(self, text: str) -> FileFormatError:
        """Make an error that names the file."""
        return FileFormatError(f"{self.path}: {text}")

    def listing(self) -> str:
        """Say what there is, for errors."""
        items = [f"{name} {array.shape} {array.dtype}{self._metadata(name)}" for name, array in self.arrays.items()]
        items += [f"{name} text" for name in self.texts] + [f"{name} {what}" for name, what in self.others.items()]
        return "it holds " + ("; ".join(items[:60]) + ("; ..." if len(items) > 60 else "") if items else "nothing")

    def make_room(self, name: str, n_values: int, value_bytes: int) -> None:
        """Refuse what would not fit into memory as float64, before it is read: a small file may claim much."""
        found = re.search(r"MemAvailable: +(\d+) kB", MEMORY.read_text())
        needed = n_values * max(8, value_bytes) if value_bytes > 1 else n_values
        if found and needed > int(found[1]) * 1024 // 3:
            raise self.error(f"{name} is {needed / 1e9:.1f} GB, too much for the {int(found[1]) / 1e6:.1f} GB of memory that are free")

    def put(self, name: str, value: Any) -> None:
        """Sort in a value of whatever kind, looking into cells."""
        if isinstance(value, (str, bytes)):
            self.texts[name] = [value.decode("utf-8", "replace") if isinstance(value, bytes) else value]
            return
        array = np.asarray(value)
        if array.dtype.kind in "US":
            self.texts[name] = [str(item) for item in array.ravel()]
        elif array.dtype.kind in "biufc":
            self.arrays[name] = array
        elif array.dtype.kind == "O" and array.size and all(isinstance(item, str) for item in array.flat):
            self.texts[name] = [str(item) for item in array.flat]
        else:
            self.others[name] = f"{array.shape} {array.dtype}"

    def put_signal(self, name: str, values: NDArray[Any], rate_hz: float, unit: str = "", start_s: float | None = None) -> None:
        """Sort in a signal whose rate the file says.

        Parameters
        ----------
        name : str
        values : (n_samples,) or (n_samples, n_channels) array
        rate_hz : float
        unit : str
            Of all its columns; "" = not said.
        start_s : float, s
            Of its first sample, on a clock common to the file's signals.
        """
        self.arrays[name] = values
        self.rates_hz[name] = rate_hz
        self.units[name] = unit
        if start_s is not None:
            self.starts_s[name] = start_s

    def choose_emg(self, words: dict[str, str]) -> None:
        """Let the channels of one rate that call themselves EMG be the default; without such, the voltages that are nothing else.

        Parameters
        ----------
        words : dict
            What the file says of each signal beside its unit: its name, its electrode.
        """
        volts = [name for name, said in words.items() if plain(self.units[name]) in UV_PER and not _NO_EMG.search(said)]
        chosen = [name for name, said in words.items() if "EMG" in said.upper()] or volts
        if len({(self.rates_hz[name], len(self.arrays[name])) for name in chosen}) == 1:
            self.default = tuple(chosen)

    def _metadata(self, name: str) -> str:
        if name not in self.rates_hz:
            return ""
        unit = self.units.get(name) or next((unit for _, unit in self.columns.get(name, ())), "")
        return f" {self.rates_hz[name]:g} Hz{' ' if unit else ''}{unit}"
