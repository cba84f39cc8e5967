"""Recordings of others as arrays: XDF, EDF(+) and BDF(+), WFDB, Spike2, OpenSignals HDF5, MATLAB (v4 to v7.3), NPZ, CSV/TSV.

One function, `load`. The first four have modules of their own beside this one; all put what a file holds into `held.Held`. What a file
does not say of itself comes from flags or from a side-car TOML next to it (`rec.mat` -> `rec.mat.toml`, whose keys are the flags' names;
flags win). Whatever was assumed is listed in `Recording.notes`; what would have to be guessed is refused
with a list of what the file holds. Code in files (pickles) is never run.

May be imported by anything. No detection, resampling or filtering may ever be here: samples come out as they stand in the file, but for
the scale to µV.
"""

from __future__ import annotations

import csv
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from drivers.base import FileFormatError
from drivers.sources.held import MAX_NAME_CHARS, UV_PER, Held, plain

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

MAX_ITEMS, MAX_DEPTH = 100_000, 30  # of a MATLAB file's cells
_S_PER = {"": 1.0, "s": 1.0, "sec": 1.0, "ms": 1e-3, "us": 1e-6}
_FORCE_UNITS = {"n": "N", "nm": "N m", "n m": "N m", "n.m": "N m", "kg": "kg"}
_TIME_NAME = re.compile(r"(?:t|time|times|timestamp|timestamps)(?:[ _]?(s|sec|ms|us))?", re.IGNORECASE)
_RATE_NAMES = ("fs", "rate", "fsamp", "srate", "sfreq", "samplerate", "samplingrate", "samplefrequency", "samplingfrequency")
FORMATS = "XDF, EDF, BDF, WFDB .hea, Spike2 .smr and .smrx, OpenSignals .h5, MATLAB .mat, NPZ, CSV/TSV/TXT"
_FLAGS = tuple(p + flag for p in ("", "force_") for flag in ("variable", "channels", "names", "unit", "rate_hz", "rate_variable"))


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """A recording, ready to be replayed.

    Attributes
    ----------
    emg : (n_samples, n_channels) float64, in `unit`
    unit : str
        "uV", or "raw" for amplifier counts and anything else that is not a voltage.
    sample_rate_hz : float
    channels : tuple of str
    force : (n_force_samples, n_force_channels) float64 in `force_unit`, or None
        Begins with the EMG.
    force_sample_rate_hz : float or None
    force_channels : tuple of str
    force_unit : str
        As the file or the flag says it, "raw" where neither does; "" without force.
    path : Path
    notes : list of str
        What was assumed, for people.
    """

    emg: NDArray[np.float64]
    unit: str
    sample_rate_hz: float
    channels: tuple[str, ...]
    force: NDArray[np.float64] | None
    force_sample_rate_hz: float | None
    force_channels: tuple[str, ...]
    force_unit: str
    path: Path
    notes: list[str]

    @property
    def duration_s(self) -> float:
        """Length of the EMG."""
        return len(self.emg) / self.sample_rate_hz


def load(
    path: str | os.PathLike[str],
    *,
    variable: str | Sequence[str] | None = None,
    channels: str | int | Sequence[str | int] | None = None,
    names: str | Sequence[str] | None = None,
    unit: str | None = None,
    rate_hz: float | None = None,
    rate_variable: str | None = None,
    force_variable: str | Sequence[str] | None = None,
    force_channels: str | int | Sequence[str | int] | None = None,
    force_names: str | Sequence[str] | None = None,
    force_unit: str | None = None,
    force_rate_hz: float | None = None,
    force_rate_variable: str | None = None,
) -> Recording:
    """Read a recording; each flag may also stand in the side-car TOML, and has a twin `force_...` for the force signal.

    Parameters
    ----------
    path : path
    variable : str or sequence of str
        Which array; fields of a structure after dots (`EMG.channelData`), elements of a cell counted from 1 (`trials.2`). Several
        of one length become columns. Not needed where the file holds one that can be meant. For CSV: names of columns.
    channels : str, int or a sequence of them
        Which of its columns: by name, by number from 1, or "1-64". Default all, but for those taken as force.
    names : str or sequence of str
        What to call these channels.
    unit : str
        EMG: "V", "mV", "uV" (converted to µV) or "raw". Default: as the file says, else "raw". Force: any text, values stay as they are.
    rate_hz : float
        Sampling rate. Default: as the file says (its own attribute, a scalar named like `fs`, or evenly spaced times).
    rate_variable : str
        The scalar that holds the sampling rate.
    force_variable, force_channels : see above
        Force is read where one of the two is given, or where the file calls one of its signals so (an XDF stream of type Force);
        `force_channels` alone picks columns of the EMG's array.

    Returns
    -------
    Recording

    Raises
    ------
    FileFormatError
        The file cannot be read, or does not say enough; the message names file and place, and what to give.
    """
    given = locals()
    path = Path(path)
    flags = _flags(path, {key: given[key] for key in _FLAGS if given[key] is not None})
    held = _open(path)

    emg_from = flags["variable"] or _pick(held, flags)
    emg = _table(held, emg_from)
    columns = _columns(held, emg, flags["channels"])
    force_from = flags["force_variable"] or (emg_from if flags["force_channels"] else _default_force(held, emg_from))
    force: _Table | None = None
    if force_from:
        force = _table(held, force_from)
        force_columns = _columns(held, force, flags["force_channels"])
        if force_from == emg_from and not flags["channels"]:
            columns = [column for column in columns if column not in force_columns]
            if not columns:
                raise held.error("every column is taken as force; name the EMG by 'variable' or 'channels'")
        force = _chosen(held, force, force_columns, flags["force_names"])
    emg = _chosen(held, emg, columns, flags["names"])
    emg_unit, uv_per_unit = _emg_unit(held, emg, flags["unit"])
    emg_hz = _rate_hz(held, emg, flags, "")
    force_hz = None
    if force is not None:
        same = len(force.values) == len(emg.values)
        force_hz = _rate_hz(held, force, flags, "force_", emg_hz if same else None)
        _cut_to_one_start(held, emg, emg_hz, force, force_hz)
    return Recording(
        emg=np.ascontiguousarray(emg.values * uv_per_unit),
        unit=emg_unit,
        sample_rate_hz=emg_hz,
        channels=emg.labels,
        force=None if force is None else np.ascontiguousarray(force.values),
        force_sample_rate_hz=force_hz,
        force_channels=() if force is None else force.labels,
        force_unit="" if force is None else _force_unit(held, force, flags["force_unit"]),
        path=path,
        notes=list(dict.fromkeys(held.notes)),
    )


# --- flags ----------------------------------------------------------------------------------------------------------------------------
def _flags(path: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Flags over side-car over None, each checked."""
    beside = path.with_name(path.name + ".toml")
    try:
        stored = tomllib.loads(beside.read_text("utf-8"))
    except FileNotFoundError:
        stored = {}
    except (OSError, ValueError) as error:  # TOML and text errors are ValueErrors, and name the line
        raise FileFormatError(f"{beside}: {error}") from error
    flags: dict[str, Any] = dict.fromkeys(_FLAGS)
    for where, values in ((beside, stored), (path, given)):
        for key, value in values.items():
            if key not in _FLAGS:
                raise FileFormatError(f"{where}: unknown key {key!r}; known: {', '.join(_FLAGS)}")
            flags[key] = _checked(where, key, value)
    return flags


def _checked(where: Path, key: str, value: Any) -> Any:
    kind = key.removeprefix("force_")
    if kind in ("variable", "channels", "names"):
        items = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
        allowed = (str, int) if kind == "channels" else (str,)
        if items and all(isinstance(item, allowed) and not isinstance(item, bool) for item in items):
            return items
        raise FileFormatError(f"{where}: {key} = {value!r} is not a name{' or number' if kind == 'channels' else ''}, or a list of them")
    if kind == "rate_hz":
        if isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and isfinite(value) and value > 0:
            return float(value)
        raise FileFormatError(f"{where}: {key} = {value!r} is not a rate in Hz")
    if not isinstance(value, str) or not value:
        raise FileFormatError(f"{where}: {key} = {value!r} is not a text")
    if key == "unit" and value != "raw" and plain(value) not in UV_PER:
        raise FileFormatError(f"{where}: unit = {value!r} is none of V, mV, uV, nV, raw")
    return value


# --- readers, by what a file begins with ------------------------------------------------------------------------------------------------
def _open(path: Path) -> Held:
    """Choose the reader by what the file begins with, then by its name."""
    from drivers.sources import edf, spike2, wfdb, xdf_chunks, xdf_file

    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise FileFormatError(f"{path}: is no regular file")
    try:
        with path.open("rb") as file:
            head = file.read(520)
    except OSError as error:
        raise FileFormatError(f"{path}: {error.strerror}") from error
    held = Held(path)
    suffix = path.suffix.lower()
    read: Callable[[Held], None]
    if not head:
        raise held.error("empty")
    if b"\x89HDF\r\n\x1a\n" in (head[:8], head[512:]):
        read = _read_hdf5
    elif head.startswith((b"PK\x03\x04", b"\x93NUMPY")):
        read = _read_numpy
    elif head.startswith(b"MATLAB 5.0") or (suffix == ".mat" and not head.startswith(b"MATLAB 7.3")):
        read = _read_matlab
    elif head.startswith(xdf_chunks.MAGIC):
        read = xdf_file.read_into
    elif head.startswith(edf.MAGICS):
        read = edf.read_into
    elif suffix == ".hea" or (suffix == ".dat" and path.with_suffix(".hea").is_file()):
        read = wfdb.read_into
    elif suffix in (".smr", ".smrx"):
        read = spike2.read_into
    elif suffix in (".csv", ".tsv", ".txt") and b"\x00" not in head:
        read = _read_table
    else:
        raise held.error(f"not, or no longer, one of {FORMATS}")
    try:
        read(held)
    except FileFormatError:
        raise
    except Exception as error:  # each library has its own errors for damage, and not all are documented
        raise held.error(f"damaged: {type(error).__name__}: {error}") from error
    return held


def _read_numpy(held: Held) -> None:
    with held.path.open("rb") as file:
        content = np.load(file, allow_pickle=False)
        if isinstance(content, np.ndarray):
            held.put("array", content)
            return
        for name in content.files:
            try:
                held.make_room(name, content.zip.getinfo(f"{name}.npy" if f"{name}.npy" in content.zip.namelist() else name).file_size, 1)
                held.put(name, content[name])
            except ValueError as error:
                if "allow_pickle" not in str(error):
                    raise held.error(f"variable {name!r} is damaged: {error}") from error
                held.others[name] = "pickled objects (never loaded: they may run code)"


def _read_matlab(held: Held) -> None:
    """MATLAB v4 to v7, by SciPy."""
    import scipy.io

    def put(name: str, value: Any) -> None:
        if hasattr(value, "_fieldnames"):
            for key in value._fieldnames:
                put(f"{name}.{key}", getattr(value, key))
        elif isinstance(value, np.ndarray) and value.dtype == object and any(not isinstance(item, str) for item in value.flat):
            for k, item in enumerate(value.flat):
                put(f"{name}.{k + 1}", item)
        else:
            held.put(name, value)

    for name, value in scipy.io.loadmat(held.path, squeeze_me=True, struct_as_record=False).items():
        if not name.startswith("__"):
            put(name, value)


def _read_hdf5(held: Held) -> None:
    """MATLAB v7.3, OpenSignals (a group a device, its rate an attribute, counts in `raw/channel_N`), or plain HDF5."""
    import h5py

    def put(name: str, node: Any) -> None:
        if not isinstance(node, h5py.Dataset):
            return
        if node.external:
            held.others[name] = "kept in another file (not followed)"
            return
        held.make_room(name, node.size, node.dtype.itemsize)
        value = node[()]
        of_matlab = "MATLAB_class" in node.attrs
        if "MATLAB_empty" in node.attrs or isinstance(value, h5py.Empty):
            held.others[name] = "empty"
        elif of_matlab and node.attrs["MATLAB_class"] == b"char":
            held.texts[name] = [value.T.astype(np.uint16).tobytes().decode("utf-16", "replace")]
        elif node.dtype == h5py.ref_dtype:  # a cell, or the fields of a structure array
            items = [node.file[reference] for reference in value.T.flat]
            if all(item.attrs.get("MATLAB_class") == b"char" for item in items):
                held.texts[name] = [item[()].T.astype(np.uint16).tobytes().decode("utf-16", "replace") for item in items]
            else:
                for k, item in enumerate(items):
                    if len(held.arrays) + len(held.texts) + len(held.others) > MAX_ITEMS or name.count(".") > MAX_DEPTH:
                        raise held.error(f"{name}: cells that refer to cells without end")
                    put(f"{name}.{k + 1}", item)
        elif of_matlab:
            held.put(name, np.squeeze(value.T))  # MATLAB stores columns first
        else:
            held.put(name, value)

    with h5py.File(held.path, "r") as file:
        devices = {name: node for name, node in file.items() if "sampling rate" in node.attrs and "raw" in node}
        for name, device in devices.items():
            _put_opensignals(held, f"{name}." if len(devices) > 1 else "", device)
        if devices:
            return

        def visit(name: str, node: Any) -> None:
            if not name.startswith("#"):  # MATLAB keeps the cells' contents there
                put(name.replace("/", "."), node)

        file.visititems(visit)


def _put_opensignals(held: Held, prefix: str, device: Any) -> None:
    def text(value: Any) -> str:
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

    found: list[str] = []
    emg: list[str] = []
    for key, dataset in device["raw"].items():
        if not key.startswith("channel"):
            continue
        name = prefix + text(dataset.attrs.get("label", key))
        if dataset.external:
            raise held.error(f"{name} is kept in another file, which is not followed")
        held.make_room(name, dataset.size, dataset.dtype.itemsize)
        held.put(name, np.squeeze(dataset[()]))
        held.rates_hz[name] = float(device.attrs["sampling rate"])
        held.units[name] = "raw"
        found.append(name)
        if "EMG" in text(dataset.attrs.get("sensor", "")).upper():
            emg.append(name)
    held.default += tuple(emg or found)
    held.notes.append("OpenSignals: raw counts of the analogue-digital converter")


# --- tables of text -------------------------------------------------------------------------------------------------------------------
def _read_table(held: Held) -> None:
    content = held.path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")  # what spreadsheets write for µ
    numbered = [(k, line) for k, line in enumerate(text.splitlines(), 1) if line.strip() and not line.lstrip().startswith("#")]
    if not numbered:
        raise held.error("no line of data")
    delimiter = next((mark for mark in "\t;," if mark in numbered[0][1]), None)

    def fields(line: str) -> list[str]:
        row = line.split() if delimiter is None else next(csv.reader([line], delimiter=delimiter))
        return [item.strip() for item in row]

    head = fields(numbered[0][1])
    has_header = not all(_is_number(item) for item in head)
    labels = [label or f"{k + 1}" for k, label in enumerate(head)] if has_header else [f"{k + 1}" for k in range(len(head))]
    rows = numbered[has_header:]
    if not rows:
        raise held.error("a header and no line of data")
    if delimiter != "," and any("," in line for _, line in rows[:100]) and not any("." in line for _, line in rows[:100]):
        rows = [(k, line.replace(",", ".")) for k, line in rows]
        held.notes.append("commas were taken as decimal points")

    first = fields(rows[0][1])
    numeric = [k for k, item in enumerate(first[: len(labels)]) if _is_number(item)]
    all_numeric = len(numeric) == len(labels)  # then NumPy itself sees rows that are too long
    try:
        if not numeric or any(len(fields(line)) != len(labels) for _, line in (rows[:1] if all_numeric else rows)):
            raise ValueError("no numbers, or a line too long or too short")
        columns = None if all_numeric else numeric
        values = np.loadtxt([line for _, line in rows], delimiter=delimiter, usecols=columns, ndmin=2, comments=None, quotechar='"')
    except ValueError as error:  # find the place ourselves: NumPy counts rows, an editor shows lines
        for k, line in rows:
            row = fields(line)
            if len(row) != len(labels):
                raise held.error(f"line {k}: {len(row)} fields instead of {len(labels)}") from error
            for column in numeric or range(len(labels)):
                if not _is_number(row[column]):
                    raise held.error(f"line {k}, column {labels[column]!r}: {row[column]!r} is not a number") from error
        raise
    if not content.endswith((b"\n", b"\r")):
        held.notes.append("the last line has no line end: the file may be cut")

    bare = [_label_and_unit(label) for label in labels]
    if len({label for label, _ in bare}) < len(bare):
        raise held.error(f"two columns have one name: {', '.join(labels)}")
    for k, (label, unit) in enumerate(bare):
        if k in numeric:
            held.arrays[label] = values[:, numeric.index(k)]
            held.units[label] = unit
        else:
            held.texts[label] = []
    held.default = tuple(name for name in held.arrays if not _TIME_NAME.fullmatch(name))


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", "."))
    except ValueError:
        return False
    return True


# --- from what is held to a signal ----------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class _Table:
    """A signal to be: columns with labels and units, and the variables they came from."""

    values: NDArray[np.float64]
    labels: tuple[str, ...]
    units: tuple[str, ...]  # "" = not said
    variables: tuple[str, ...]


def _pick(held: Held, flags: dict[str, Any]) -> tuple[str, ...]:
    """Choose the array to take where no flag names one: what the format itself says, or the only one that can be meant."""
    taken = {*(flags["force_variable"] or ()), flags["rate_variable"], flags["force_rate_variable"]}
    wanted = flags["channels"] or ()
    if wanted and all(name in held.rates_hz and name not in held.columns for name in wanted):
        return tuple(wanted)  # where each channel is a variable of its own, its name says all
    default = tuple(name for name in held.default if name not in taken)
    if default:
        if len(default) < len(held.arrays):
            held.notes.append(f"taken as EMG: {', '.join(default)}")
        return default
    found = [
        name
        for name, array in held.arrays.items()
        if array.dtype.kind in "iuf"
        and 1 <= np.squeeze(array).ndim <= 2
        and array.size > 1
        and name not in taken
        and not _TIME_NAME.fullmatch(_last(name))
    ]
    if len(found) != 1:
        what = "several arrays could be the EMG" if found else "no array can be the EMG"
        raise held.error(f"{what}; name it by 'variable'; {held.listing()}")
    held.notes.append(f"taken as EMG: {found[0]}, the only array that can be meant")
    return (found[0],)


def _default_force(held: Held, emg_from: tuple[str, ...]) -> tuple[str, ...] | None:
    """Take what the file itself calls force, if it can be used: nobody asked for it, so it must not cost the EMG."""
    if held.default_force is None or held.default_force in emg_from:
        return None
    try:
        _force_unit(held, _table(held, (held.default_force,)), None)
    except FileFormatError as error:
        held.notes.append(f"force left out: {error}")
        return None
    held.notes.append(f"taken as force: {held.default_force}")
    return (held.default_force,)


def _cut_to_one_start(held: Held, emg: _Table, emg_hz: float, force: _Table, force_hz: float) -> None:
    """Where the file says when its signals begin, cut from the earlier one what the other does not have."""
    starts_s = [held.starts_s.get(table.variables[0]) for table in (emg, force)]
    if starts_s[0] is None or starts_s[1] is None:
        return
    late_s = starts_s[1] - starts_s[0]
    if abs(late_s) * min(emg_hz, force_hz) < 1:
        return  # less than a sample of the slower one
    for what, table, rate_hz, early_s in (("EMG", emg, emg_hz, late_s), ("force", force, force_hz, -late_s)):
        n = round(early_s * rate_hz)
        if n > 0:
            if n > len(table.values) - 2:
                raise held.error(f"{emg.variables[0]!r} and {force.variables[0]!r} were not recorded at one time")
            table.values = table.values[n:]
            held.notes.append(f"{what} begins {early_s:.3f} s earlier: its first {n} samples are left out")


def _table(held: Held, variables: tuple[str, ...]) -> _Table:
    """Variables of one length side by side, time first."""
    parts: list[NDArray[np.float64]] = []
    labels: list[str] = []
    units: list[str] = []
    for name in variables:
        columns = _as_columns(held, name)
        n_columns = columns.shape[1]
        if parts and len(columns) != len(parts[0]):
            raise held.error(f"variables {variables[0]!r} and {name!r} have {len(parts[0])} and {len(columns)} samples: not one signal")
        own = [_label_and_unit(text) for text in _texts_near(held, name, n_columns)] if n_columns > 1 else []
        own = held.columns.get(name) or own
        stated = _stated_unit(held, name)
        for k in range(n_columns):
            label, unit = own[k] if own else (name if n_columns == 1 else f"{k + 1}", "")
            labels.append(label if own or n_columns == 1 or len(variables) == 1 else f"{name}.{label}")
            units.append(unit or stated)
        held.notes += held.remarks.get(name, [])
        parts.append(columns)
    return _Table(np.hstack(parts), tuple(labels), tuple(units), variables)


def _as_columns(held: Held, name: str) -> NDArray[np.float64]:
    """Give the array as (n_samples, n_channels) float64, every value finite."""
    if name not in held.arrays:
        kind = "is text, not numbers" if name in held.texts else "cannot be used" if name in held.others else "is not there"
        raise held.error(f"variable {name!r} {kind}; {held.listing()}")
    array = np.squeeze(held.arrays[name])
    what = f"variable {name!r} {held.arrays[name].shape} {array.dtype}"
    if array.dtype.kind not in "iuf":
        raise held.error(f"{what}: not real numbers")
    if array.size == 0:
        raise held.error(f"{what}: empty")
    if array.size == 1:
        raise held.error(f"{what}: a single sample")
    if array.ndim > 2:
        raise held.error(f"{what}: more than two axes")
    if array.ndim == 1:
        array = array[:, None]
    elif array.shape[1] > array.shape[0] and name not in held.rates_hz:
        array = array.T
        held.notes.append(f"{name} has more columns than rows: turned to {array.shape[0]} samples of {array.shape[1]} channels")
    finite = np.isfinite(array)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise held.error(
            f"variable {name!r}: {np.count_nonzero(~finite)} of {array.size} values are not finite, the first ({array[row, column]}) in "
            f"row {row + 1}, column {column + 1}"
        )
    return array.astype(np.float64)


def _columns(held: Held, table: _Table, wanted: tuple[str | int, ...] | None) -> list[int]:
    """Places of the wanted channels: names first, then numbers from 1, then ranges."""
    if wanted is None:
        return list(range(len(table.labels)))
    chosen: list[int] = []
    for item in wanted:
        span = re.fullmatch(r"(\d+)(?:-(\d+))?", str(item))
        if isinstance(item, str) and table.labels.count(item) == 1:
            chosen.append(table.labels.index(item))
        elif span and 1 <= int(span[1]) <= int(span[2] or span[1]) <= len(table.labels):
            chosen += range(int(span[1]) - 1, int(span[2] or span[1]))
        else:
            listed = ", ".join(table.labels[:80])
            raise held.error(f"channel {item!r} is not one of the {len(table.labels)} in {', '.join(table.variables)}: {listed}")
    if len(set(chosen)) < len(chosen):
        raise held.error(f"a channel is named twice: {wanted}")
    return chosen


def _chosen(held: Held, table: _Table, columns: list[int], names: tuple[str, ...] | None) -> _Table:
    if names and len(names) != len(columns):
        raise held.error(f"{len(names)} names for {len(columns)} channels")
    labels = names or tuple(table.labels[column] for column in columns)
    return _Table(table.values[:, columns], labels, tuple(table.units[column] for column in columns), table.variables)


# --- units ----------------------------------------------------------------------------------------------------------------------------
def _label_and_unit(label: str) -> tuple[str, str]:
    """Split "soleus [mV]" or "soleus (mV)"; round brackets only around a unit that we know."""
    label = label.strip()
    if len(label) > MAX_NAME_CHARS:
        return label, ""
    if match := re.fullmatch(r"(.*?)\s*\[([^\[\]]*)\]", label):
        return match[1], match[2].strip()
    match = re.fullmatch(r"(.*?)\s*\(([^()]+)\)", label)
    if match and plain(match[2]) in {**UV_PER, **_S_PER, **_FORCE_UNITS}:
        return match[1], match[2].strip()
    return label, ""


def _stated_unit(held: Held, name: str) -> str:
    """Find the unit of a variable: metadata, a text `unit(s)` in the same structure, or the end of its name (`emg_uv`)."""
    if held.units.get(name):
        return held.units[name]
    for key in ("units", "unit"):
        for full in {_sibling(name, key), f"{name}_{key}"}:
            if len(held.texts.get(full, ())) == 1:
                return held.texts[full][0]
    end = plain(_last(name).rpartition("_")[2]) if "_" in _last(name) else ""
    return end if end in ("uv", "mv", "n", "nm") else ""


def _emg_unit(held: Held, emg: _Table, given: str | None) -> tuple[str, float]:
    """Choose the unit, and the µV in one of what the file holds (1 for raw)."""
    stated = {unit if plain(unit) not in UV_PER else plain(unit) for unit in emg.units}
    if given is None and len(stated) > 1:
        count = ", ".join(f"{unit or 'none'} ({sum(u == unit for u in emg.units)})" for unit in dict.fromkeys(emg.units))
        raise held.error(f"channels have several units: {count}; choose 'channels', or give 'unit'")
    unit = given or stated.pop()
    if plain(unit) in UV_PER:
        if given is None:
            held.notes.append(f"EMG unit {emg.units[0]}, as the file says")
        return "uV", UV_PER[plain(unit)]
    if unit != "raw":
        held.notes.append(f"unit {unit!r} is no voltage: taken as raw" if unit else "no unit said: EMG taken as raw")
    return "raw", 1.0


def _force_unit(held: Held, force: _Table, given: str | None) -> str:
    if given is None and len(set(force.units)) > 1:
        raise held.error(f"force channels have several units: {', '.join(force.units)}; choose 'force_channels', or give 'force_unit'")
    unit = given or force.units[0]
    if not unit:
        held.notes.append("no unit said: force taken as raw")
    return _FORCE_UNITS.get(unit.lower(), unit) or "raw"


# --- rates ----------------------------------------------------------------------------------------------------------------------------
def _rate_hz(held: Held, table: _Table, flags: dict[str, Any], role: str, fallback_hz: float | None = None) -> float:
    """Sampling rate of a signal: flag, the file's word for each of its variables, or `fallback_hz`."""
    if flags[role + "rate_hz"] is not None:
        given_hz = float(flags[role + "rate_hz"])
        for name in table.variables:
            try:
                own_hz = _own_rate_hz(held, name, len(table.values), role)
            except FileFormatError:
                continue  # what the file says cannot be read: the flag alone counts
            if own_hz is not None and abs(own_hz - given_hz) > 1e-3 * own_hz:
                held.notes.append(f"RATE OVERRULED: {given_hz:g} Hz was given, the file says {own_hz:g} Hz for {name}")
        return given_hz
    if flags[role + "rate_variable"] is not None:
        return _scalar_hz(held, flags[role + "rate_variable"])
    rates_hz = [_own_rate_hz(held, name, len(table.values), role) for name in table.variables]
    known_hz = [rate_hz for rate_hz in rates_hz if rate_hz is not None]
    if known_hz and max(known_hz) - min(known_hz) > 1e-6 * max(known_hz):
        raise held.error(f"variables {', '.join(table.variables)} have several rates: {known_hz}; give '{role}rate_hz'")
    if known_hz:
        return known_hz[0]
    if fallback_hz is not None:
        held.notes.append(f"force has as many samples as EMG: taken at its rate, {fallback_hz:g} Hz")
        return fallback_hz
    flag = role + "rate_hz"
    raise held.error(f"no sampling rate for {', '.join(table.variables)}; give '{flag}' or '{role}rate_variable'; {held.listing()}")


def _own_rate_hz(held: Held, name: str, n_samples: int, role: str) -> float | None:
    """Find what the file says of the rate of one variable; None where it says nothing."""
    if name in held.rates_hz:
        return _positive_hz(held, f"sampling rate of {name!r}", held.rates_hz[name])
    who = "force" if role else "emg"
    own = name.rpartition(".")[0]
    named = {
        full: re.sub(r"[^a-z]", "", _last(full).lower()).removesuffix("hz")
        for full, array in held.arrays.items()
        if array.size == 1 and array.dtype.kind in "iuf"
    }
    specific = {key for base in _RATE_NAMES for key in (who + base, base + who)}
    # A bare `fs` next to several signals is the EMG's; a force signal takes one only from its own structure.
    for keys, scopes in ((specific, (own, "", None)), (set(_RATE_NAMES), (own, "", None) if not role else (own,) if own else ())):
        for scope in scopes:
            found = [full for full, key in named.items() if key in keys and scope in (None, full.rpartition(".")[0])]
            values_hz = {float(np.squeeze(held.arrays[full])) for full in found}
            if len(values_hz) > 1:
                raise held.error(f"several sampling rates: {', '.join(found)}; name one by '{role}rate_variable' or give '{role}rate_hz'")
            if found:
                held.notes.append(f"{who} rate: {found[0]} = {max(values_hz):g} Hz")
                return _scalar_hz(held, found[0])
    interval = held.arrays.get(_sibling(name, "interval"))
    if own and interval is not None and interval.size == 1 and interval.dtype.kind in "iuf":  # as Spike2 exports it, in s
        step_s = float(np.squeeze(interval))
        rate_hz = _positive_hz(held, _sibling(name, "interval"), _tidy_hz(1 / step_s) if step_s else 0.0)
        held.notes.append(f"{who} rate: {rate_hz:g} Hz, from {_sibling(name, 'interval')} = {step_s:g} s")
        return rate_hz
    for full, array in held.arrays.items():
        match = _TIME_NAME.fullmatch(_last(full))
        if match and array.size == n_samples and full.rpartition(".")[0] in (own, ""):
            return _rate_of_times_hz(held, full, plain(match[1] or held.units.get(full, "")), who)
    return None


def _rate_of_times_hz(held: Held, name: str, unit: str, who: str) -> float:
    """Rate of evenly spaced times; a step off by half a sample (a gap, a repeat) is refused with its row."""
    if unit not in _S_PER:
        raise held.error(f"{name!r}: times in {unit!r}; known: s, ms, us; or give 'rate_hz'")
    times_s = _as_columns(held, name)[:, 0] * _S_PER[unit]
    step_s = (times_s[-1] - times_s[0]) / (len(times_s) - 1)
    if step_s <= 0:
        raise held.error(f"{name!r}: times do not rise")
    off_s = np.abs(np.diff(times_s) - step_s)
    uneven = np.flatnonzero(off_s > 0.5 * step_s)
    if uneven.size:
        row = int(uneven[0]) + 1
        raise held.error(
            f"{name!r}: times are not evenly spaced, first at row {row + 1} ({times_s[row - 1]:g} -> {times_s[row]:g} s, mean step "
            f"{step_s:g} s, {uneven.size} such rows); give 'rate_hz' if they do not matter"
        )
    rate_hz = _tidy_hz(1 / step_s, off_s.max() / (times_s[-1] - times_s[0]))
    held.notes.append(f"{who} rate: {rate_hz:g} Hz, from {name!r}{'' if unit else ' taken as seconds'}")
    return rate_hz


def _scalar_hz(held: Held, name: str) -> float:
    array = held.arrays.get(name)
    if array is None or array.size != 1 or array.dtype.kind not in "iuf":
        raise held.error(f"rate variable {name!r} is not one number; {held.listing()}")
    return _positive_hz(held, name, float(np.squeeze(array)))


def _tidy_hz(rate_hz: float, relative_error: float = 0.0) -> float:
    """Take the whole number where rounding of the times explains the difference."""
    return float(round(rate_hz) if abs(rate_hz - round(rate_hz)) <= rate_hz * (relative_error + 1e-12) and round(rate_hz) else rate_hz)


def _positive_hz(held: Held, name: str, rate_hz: float) -> float:
    if not (isfinite(rate_hz) and rate_hz > 0):
        raise held.error(f"{name} = {rate_hz}: not a sampling rate")
    return rate_hz


# --- names ----------------------------------------------------------------------------------------------------------------------------
def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _sibling(name: str, key: str) -> str:
    own = name.rpartition(".")[0]
    return f"{own}.{key}" if own else key


def _texts_near(held: Held, name: str, n: int) -> list[str]:
    """Find the one list of n texts in the variable's structure or at the top: its labels; [] where there is none, or several."""
    own = name.rpartition(".")[0]
    for scope in (own, ""):
        lists = [texts for full, texts in held.texts.items() if len(texts) == n and full.rpartition(".")[0] == scope]
        if len(lists) == 1:
            return lists[0]
    return []
