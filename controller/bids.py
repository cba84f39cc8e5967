"""The BIDS-EMG dataset around an exported session: names, side-cars, tables.

BIDS 1.11 (https://bids-specification.readthedocs.io/en/v1.11.0/modality-specific-files/electromyography.html). What is not known is said
as "n/a" or left out where the standard wants a number; nothing is invented, and `--emg-json` adds what a lab knows. A file of the dataset
that people complete (description, README, participants) is added to and never written anew.

Dates: BIDS asks that dates are shifted so that nobody is known by them. A shift that keeps the intervals between sessions has to be kept
secret somewhere; so dates are left out (scans.tsv says n/a, the BDF header X) unless `--keep-date` is given. A recording is known again by
a hash of its beginning, in scans.tsv, since its folder's name holds the date and the bed.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

from controller import build, recording

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable
    from pathlib import Path

    from controller.export import Exported
    from controller.recording import Session

VERSION = "1.11.0"
LABEL = re.compile(r"[0-9A-Za-z]+")
HASHED_BYTES = 1 << 16
NOT_KNOWN = "n/a"
MEASURED = ("SamplingFrequency", "EMGChannelCount", "RecordingDuration", "RecordingType", "TaskName")  # by us: nobody may say otherwise
#: what can happen, and what it means
KINDS = {
    "spasm": "a rule of the controller was active: onset and end as it dated them afterwards",
    "train": "stimulation, from its first pulse to its end",
    "pulse": "one biphasic pulse: when its command was written to the stimulator",
    "refused": "a train was asked for and not given, with the reason",
    "button": "the patient's button, or a person by a command, asked for a train",
    "BAD_gap": "no samples came: filled with 0",
    "BAD_nan": "samples that are no number: filled with 0",
}
PARTICIPANT = ("participant_id", "age", "sex", "handedness")
README = """Surface EMG (and force, where there was any) of sessions with calmloop, a closed-loop controller that hears an involuntary
muscle spasm and stimulates the antagonist's nerve.

Each *_emg.bdf (BDF+) holds EMG in uV and, as MISC channels at their own rate, force. Samples that were lost on the way are filled with
0 and annotated as BAD_gap; samples that were no number as BAD_nan. A sample keeps its place in the row, and events are placed among the
samples by their time stamps, so they stay in step however the amplifier's clock ran.

Stimulation shows in the EMG: *_events.tsv has every pulse. A spasm is what the controller's rule called one, not what a rater saw.

To be completed by whoever shares this: participants.tsv, the electrodes' places and muscles in *_channels.tsv, the amplifier in
*_emg.json.
"""


class BidsError(Exception):
    """The dataset cannot take the session: the message says why, and nothing was written."""


def free(paths: Iterable[Path], force: bool) -> None:
    """See that none of the files is there already. Raises `BidsError`."""
    there = [path for path in paths if path.exists()]
    if there and not force:
        raise BidsError(f"{there[0]} is there already{f', and {len(there) - 1} more' if there[1:] else ''}: --force writes over it")


def label(text: str, what: str) -> str:
    """A BIDS label. Raises `BidsError`."""
    if not LABEL.fullmatch(text):
        raise BidsError(f"--{what} {text[:40]!r}: a BIDS label has letters (a to z) and digits alone")
    return text


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a TSV file; none where there is no file."""
    if not path.exists():
        return []
    head, *rows = [line.split("\t") for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()] or [[""]]
    if any(len(row) != len(head) for row in rows):
        raise BidsError(f"{path}: has a row with more or fewer columns than its first line")
    return [dict(zip(head, row, strict=True)) for row in rows]


def table(rows: list[dict[str, Any]], columns: Iterable[str] = ()) -> str:
    """A TSV file of rows, with these columns and those of all of them; what is missing or empty is n/a."""
    columns = list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))
    clean = [[re.sub(r"\s", " ", str(row.get(name, ""))) or NOT_KNOWN for name in columns] for row in rows]
    return "\n".join("\t".join(row) for row in [columns, *clean]) + "\n"


def fingerprint(session: Session) -> str:
    """By which a recording is known again."""
    with (session.folder / recording.SIGNALS).open("rb") as file:
        return hashlib.sha256(file.read(HASHED_BYTES)).hexdigest()[:16]


def more_fields(path: Path | None) -> dict[str, Any]:
    """What a lab knows of its amplifier and electrodes. Raises `BidsError`."""
    if path is None:
        return {}
    try:
        fields = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise BidsError(f"--emg-json {path}: {error}") from None
    if not isinstance(fields, dict):
        raise BidsError(f'--emg-json {path}: must be one JSON object, such as {{"Manufacturer": "..."}}')
    if wrong := sorted(set(fields) & set(MEASURED)):
        raise BidsError(f"--emg-json {path}: {', '.join(wrong)} follow from the recording and cannot be said")
    return fields


def session_label(root: Path, subject: str, wanted: str | None, mark: str, force: bool) -> str:
    """The session's label: as wanted, as it had, or the next number. Raises `BidsError` where it is there already."""
    folder = root / f"sub-{subject}"
    for scans in sorted(folder.glob("ses-*/*_scans.tsv")):
        had = scans.parent.name.removeprefix("ses-")
        if any(row.get("recording") == mark for row in read_table(scans)) and wanted in (None, had):
            if not force:
                raise BidsError(f"{scans.parent}: holds this recording already: --force writes it anew")
            return had
    if wanted:
        return label(wanted, "session")
    numbers = [int(path.name[4:]) for path in folder.glob("ses-*") if path.name[4:].isdecimal()]
    return f"{max(numbers, default=0) + 1:02d}"


def emg_fields(session: Session, out: Exported, task: str, power_line_hz: float | None, more: dict[str, Any]) -> dict[str, Any]:
    """The content of *_emg.json."""
    mains_hz = {rule.mains_hz for rule in session.config.emg_rules if rule.mains_hz}
    unknown = (
        *("Manufacturer", "ManufacturersModelName", "SoftwareVersions", "DeviceSerialNumber", "Instructions"),
        *("ElectrodeManufacturer", "ElectrodeManufacturersModelName", "ElectrodeType", "ElectrodeMaterial"),
    )
    line_hz = power_line_hz or (mains_hz.pop() if len(mains_hz) == 1 else NOT_KNOWN)
    return {
        "TaskName": task,
        "TaskDescription": "involuntary spasms, heard by a controller and answered by stimulation of the antagonist's nerve",
        "SamplingFrequency": out.channels[0].rate_hz,
        "PowerLineFrequency": line_hz,
        "SoftwareFilters": NOT_KNOWN,  # we apply none; what the amplifier's program did is not known
        "HardwareFilters": NOT_KNOWN,
        "EMGPlacementScheme": "Other",  # the one word of three that fits what is not known
        "EMGPlacementSchemeDescription": NOT_KNOWN,
        "EMGReference": NOT_KNOWN,
        "EMGGround": NOT_KNOWN,
        "EMGChannelCount": sum(channel.kind == "EMG" for channel in out.channels),
        "RecordingDuration": out.duration_s,
        "TriggerChannelCount": 0,
        "SubjectArtefactDescription": "pictures of the stimulation: *_events.tsv has each pulse",
        "RecordingType": "continuous",  # in the file: gaps are filled
        **dict.fromkeys(unknown, NOT_KNOWN),
    } | more


def channel_rows(out: Exported) -> list[dict[str, Any]]:
    """The content of *_channels.tsv."""
    return [
        {
            "name": channel.label,
            "type": channel.kind,
            "units": channel.unit.replace(" ", "."),  # N.m: BIDS writes a product with a point
            "description": channel.name if channel.kind == "EMG" else f"{channel.name}: force or torque",
            "sampling_frequency": f"{channel.rate_hz:g}" if channel.rate_hz == round(channel.rate_hz, 3) else repr(channel.rate_hz),
            "signal_electrode": NOT_KNOWN,
            "reference": NOT_KNOWN,
            "target_muscle": NOT_KNOWN,
        }
        for channel in out.channels
    ]


def event_rows(out: Exported) -> list[dict[str, Any]]:
    """The content of *_events.tsv."""
    return [
        {
            "onset": f"{event.at_s:.6f}",
            "duration": f"{event.duration_s:.6f}",
            "trial_type": event.kind,
            "rule": event.rule,
            "class": event.sort,
            "detail": event.detail,
        }
        for event in out.events
    ]


EVENT_FIELDS = {
    "trial_type": {"Description": "What happened", "Levels": KINDS},
    "rule": {"Description": "The controller's rule that saw the spasm"},
    "class": {
        "Description": "What the spasm was like, by the envelope that the rule saw",
        "Levels": {
            "tonic": "0.5 s or more without a rhythm",
            "clonus": "swings at 4 to 8 Hz",
            "burst": "too short to tell",
            "not seen": "stimulation hid it",
        },
    },
    "detail": {
        "Description": "Frequency of a clonus, current of a pulse, size of a train or a gap, reasons of a refusal with the requirement"
    },
}
SCAN_FIELDS = {
    "recording": {"Description": "Hash of the beginning of the recording that this was exported from, so that it is known again"}
}
PARTICIPANT_FIELDS = {
    "age": {"Description": "Age of the participant", "Units": "year"},
    "sex": {"Description": "Sex of the participant", "Levels": {"F": "female", "M": "male", "O": "other"}},
    "handedness": {"Description": "Handedness of the participant", "Levels": {"left": "left", "right": "right", "ambidextrous": "both"}},
}


def export(session: Session, args: argparse.Namespace) -> dict[str, Any]:
    """Add a session to a dataset, which is made where there is none. Raises `BidsError`, FileFormatError, OSError."""
    from controller import export as sessions_out

    subject, task, mark, root = label(args.subject, "subject"), label(args.task, "task"), fingerprint(session), args.bids
    more = more_fields(args.emg_json)
    ses = session_label(root, subject, args.session, mark, args.force)
    folder, stem = root / f"sub-{subject}" / f"ses-{ses}", f"sub-{subject}_ses-{ses}"
    names = ("emg.bdf", "emg.json", "channels.tsv", "events.tsv", "events.json")
    bdf, emg_json, channels, events, events_json = paths = [folder / "emg" / f"{stem}_task-{task}_{name}" for name in names]
    free(paths, args.force)
    scans, people = folder / f"{stem}_scans.tsv", root / "participants.tsv"
    scan_rows, people_rows = read_table(scans), read_table(people)
    out, start = sessions_out.prepare(session), sessions_out.began(session) if args.keep_date else None

    bdf.parent.mkdir(parents=True, exist_ok=True)
    sessions_out.write_bdf(bdf, out, start)
    own = f"emg/{bdf.name}"
    acquired = start.strftime("%Y-%m-%dT%H:%M:%SZ") if start else NOT_KNOWN
    scan_rows = [row for row in scan_rows if row.get("filename") != own] + [{"filename": own, "acq_time": acquired, "recording": mark}]
    if not any(row.get("participant_id") == f"sub-{subject}" for row in people_rows):
        row = dict.fromkeys(people_rows[0] if people_rows else PARTICIPANT, NOT_KNOWN)
        people_rows.append(row | {"participant_id": f"sub-{subject}"})
    description = {
        "Name": "Sessions with calmloop",
        "BIDSVersion": VERSION,
        "DatasetType": "raw",
        "GeneratedBy": [{"Name": "calmloop", "Version": build.version()}],
    }
    texts: dict[Path, Any] = {
        emg_json: emg_fields(session, out, task, args.power_line, more),
        channels: table(channel_rows(out)),
        events: table(event_rows(out), ("onset", "duration", "trial_type", "rule", "class", "detail")),
        events_json: EVENT_FIELDS,
        scans: table(scan_rows),
        scans.with_suffix(".json"): SCAN_FIELDS,
        people: table(people_rows),
    }
    once = {"dataset_description.json": description, "README": README, "participants.json": PARTICIPANT_FIELDS}
    texts |= {root / name: content for name, content in once.items() if not (root / name).exists()}
    for path, content in texts.items():
        path.write_text(content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return {
        "subject": subject,
        "bids_session": ses,
        "files": [str(path) for path in (bdf, *texts)],
        "duration_s": out.duration_s,
        "events": len(out.events),
        "filled": out.filled,
        "fill_value": sessions_out.FILL,
        "effective_rate_hz": out.effective_rate_hz,
        "channels": [{"name": c.label, "unit": c.unit, "rate_hz": c.rate_hz, "limit": c.limit, "step": c.step} for c in out.channels],
    }
