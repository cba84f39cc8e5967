"""Our scorer against sktime's, which is too large for everybody's environment (some 200 MB with pandas and scikit-learn).

`python -m bench.peers install sktime` once, then `python -m bench.scorers`: random events and alarms are scored by both, and every case in
which they differ is a failure. `--write` keeps the first cases with sktime's answers as a fixture, so that `tests/test_score.py` can hold
our scorer to them where sktime is not installed.

sktime knows points alone: an event is its onset, and covers the window in which an alarm is a hit. So the events here are shorter than
that window, there is no margin, and the rate is per hour of all that was recorded.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import environment, peers
from controller.score import score

if TYPE_CHECKING:
    from collections.abc import Sequence

FIXTURE = Path(__file__).resolve().parents[1] / "tests" / "sktime_counts.json"
KEPT = 40  # cases in the fixture
EVENT_MS = 1  # shorter than any window


def cases(n: int, seed: int) -> list[dict[str, Any]]:
    """Draw cases; many alarms lie on or beside a limit, windows of neighbours do not overlap (sktime lets one alarm hit both)."""
    rng = random.Random(seed)
    drawn = []
    for _ in range(n):
        recorded_ms, within_ms = rng.randint(3_000, 60_000), rng.choice((50, 100, 250, 400))
        onsets_ms = [at + rng.randint(0, 400) for at in range(0, recorded_ms - 1_000, 1_000) if rng.random() < 0.4]
        near = [onset + rng.choice((-1, 0, 1, within_ms - 1, within_ms, within_ms + 1)) for onset in onsets_ms if rng.random() < 0.5]
        hits = [onset + rng.randint(0, within_ms) for onset in onsets_ms for _ in range(rng.randint(0, 2))]
        stray = [rng.randint(0, recorded_ms) for _ in range(rng.randint(0, 6))]
        decided_ms = sorted({at for at in near + hits + stray if 0 <= at <= recorded_ms})
        drawn.append({"recorded_ms": recorded_ms, "within_ms": within_ms, "onsets_ms": onsets_ms, "decided_ms": decided_ms})
    return drawn


def ours(case: dict[str, Any]) -> dict[str, float | None]:
    """Our figures in sktime's terms."""
    recorded_s = case["recorded_ms"] / 1000
    events_s = [(at / 1000, (at + EVENT_MS) / 1000) for at in case["onsets_ms"]]
    detections_s = [(at / 1000, float("nan")) for at in case["decided_ms"]]
    s = score(events_s, detections_s, recorded_s, within_s=case["within_ms"] / 1000, margin_s=0.0)
    hit_s = s.latencies_s[np.isfinite(s.latencies_s)]
    return {
        "sensitivity": s.sensitivity if s.events else None,
        "false_alarms_per_hour": s.false_alarms * 3600 / recorded_s,
        "latency_mean_s": float(hit_s.mean()) if len(hit_s) else None,
    }


def same(one: dict[str, float | None], other: dict[str, float | None]) -> bool:
    """Whether two answers are the same but for rounding: of floats, and of sktime's mean to whole ns."""
    return all(
        a == b or (a is not None and b is not None and abs(a - b) <= 2e-9 * max(1.0, abs(b)))
        for a, b in ((one[name], other[name]) for name in one)
    )


def theirs(drawn: list[dict[str, Any]]) -> dict[str, Any]:
    """Answers of sktime, with its version; `peers.interpreter("sktime")` must be there."""
    command = [str(peers.interpreter("sktime")), str(peers.script("sktime"))]
    answer: dict[str, Any] = json.loads(
        subprocess.run(command, input=json.dumps(drawn), capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    )
    return answer


def main(argv: Sequence[str] | None = None) -> int:
    """0 = the same in every case, 1 = not, 2 = sktime is not installed."""
    parser = argparse.ArgumentParser(prog="bench.scorers", description="our scorer against sktime's")
    parser.add_argument("--quick", action="store_true", help=f"{KEPT} cases")
    parser.add_argument("--cases", type=int, default=1_000, metavar="N", help="how many (default 1000)")
    parser.add_argument("--seed", type=int, default=1, help="which (default 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="figures and environment")
    parser.add_argument("--gate", action="store_true", help="for likeness with the other benches: a difference is always 1")
    parser.add_argument("--write", action="store_true", help=f"keep the first {KEPT} cases as {FIXTURE.name}")
    args = parser.parse_args(argv)
    if peers.interpreter("sktime") is None:
        print("sktime is not installed as its pinned file says: python -m bench.peers install sktime", file=sys.stderr)
        return 2
    drawn = cases(KEPT if args.quick else max(KEPT, args.cases), args.seed)
    answer = theirs(drawn)
    differ = [
        case | {"ours": ours(case), "theirs": found}
        for case, found in zip(drawn, answer["found"], strict=True)
        if not same(ours(case), found)
    ]
    print(f"sktime {answer['sktime']}: {len(drawn)} cases, {len(differ)} differ")
    for case in differ[:5]:
        print(json.dumps(case))
    if args.write:
        FIXTURE.write_text(
            json.dumps({"sktime": answer["sktime"], "seed": args.seed, "cases": drawn[:KEPT], "found": answer["found"][:KEPT]}) + "\n"
        )
    if args.json:
        result = {"seed": args.seed, "cases": len(drawn), "sktime": answer["sktime"], "differ": differ}
        args.json.write_text(json.dumps(result | {"environment": environment.environment()}, indent=1))
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
