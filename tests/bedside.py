"""A bed with its page, and a browser before it: real guard, virtual stimulator, the page's own process; the daemon's part is played here.

What is fed is what the daemon feeds: eight EMG traces at 2 kHz, one of force at 1 kHz, two rules, guard's verdicts, a report four times a
second. `silent` stops all of it, as a daemon that hangs would; `still` the traces alone.
"""

import contextlib
import shutil
import socket
import threading
import time
from itertools import pairwise
from types import SimpleNamespace

import numpy as np

from controller import daemon, settings
from controller.detector import VETOES
from controller.web.feed import Feed
from tests.rig import ROOT, GuardRig

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EMG = ("SOL1", "SOL2", "TA1", "TA2", "GM1", "GM2", "VL1", "VL2")
EMG_HZ, FORCE_HZ, TURN_S, CYCLE_S = 2000, 1000, 0.01, 0.005
REFRACTORY_S = 1.0  # the least there is
REST_S = REFRACTORY_S + 0.05
SPASM_S = (6.0, 1.5)  # one each 6 s, so long


def demo_settings(train_ms):
    """The demo's, with eight EMG channels and the least rest between two trains."""
    demo = settings.load(ROOT / "config" / "demo.toml")
    changes = {
        "trains": {name: train.model_copy(update={"duration_ms": train_ms}) for name, train in demo.trains.items()},
        "emg": demo.emg.model_copy(update={"channels": EMG}),
        "prescription": demo.prescription.model_copy(update={"refractory_s": REFRACTORY_S}),
    }
    return settings.parse(demo.model_copy(update=changes).to_toml(), "tests.bedside")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(playwright):
    """The system's Chromium, headless."""
    return playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


class Bedside:
    """The bed. `rows` = guard's, as recorded; `facts` = what the next report says beside guard's verdict."""

    def __init__(self, folder, *twin_options, train_ms=500, **rig_options):
        config = demo_settings(train_ms)
        self.rig = GuardRig(folder, *twin_options, config=config, changes={"page": True}, **rig_options)
        self.feed, self.port, self.rows = Feed(config, VETOES), free_port(), []
        self.url = f"http://127.0.0.1:{self.port}"
        self.rng, self.ending = np.random.default_rng(1), threading.Event()
        self.silent = self.still = False
        self.facts = self._first_facts()
        (folder / "settings.toml").write_text(self.rig.config.to_toml())
        self.sessions = folder / "sessions"
        self.sessions.mkdir()
        files = ("--settings", str(folder / "settings.toml"), "--sessions", str(self.sessions), "--versions", str(folder / "versions"))
        self.page = daemon.PageProcess(self.rig.bed, self.port, self.feed, *files)
        self.feeder = threading.Thread(target=self._play, daemon=True)
        self.feeder.start()
        end = time.monotonic() + 15.0
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0):
                return
            time.sleep(0.02)
        self.close()
        raise AssertionError("the page's process never listened")

    @staticmethod
    def _first_facts():
        given = {"on_time_s": 0.0, "pulses": 0, "charge_mc": 0.0}
        rule = {"active": False, "statistic": 0.0, "threshold": 1.0, "quality": "ok", "veto": ""}
        return {
            "state": "IDLE",
            "reason": "starting",
            "automatic": False,
            "train_by": "",
            "trains": 0,
            "pulses": 0,
            "refusals": 0,
            "sample_age_ms": 6.3,
            "last_trigger": None,
            "late": "",
            "recording_bytes": 12_400_000,
            "loop": "alive",
            "data_ok": True,
            "disk_free_bytes": 81_000_000_000,
            "session": "sessions/2025-01-01T10-00-00Z_demo",
            "rules": {"soleus EMG": dict(rule), "plantarflexion torque": dict(rule)},
            "dose": {"session": dict(given), "day": {"on_time_s": 61.5, "pulses": 3020, "charge_mc": 28.4}},
        }

    # --- the daemon's part -------------------------------------------------------------------------------------------------------
    def _play(self):
        from_s = reported_s = time.monotonic()
        while not self.ending.is_set():
            now_s = time.monotonic()
            said = self._hear_guard()
            if not self.silent:
                if not self.still:
                    edges_s = np.linspace(from_s, now_s, 2 + int((now_s - from_s) / CYCLE_S))
                    self.feed.see([self._cycle(*edges) for edges in pairwise(edges_s)])
                if said or now_s - reported_s >= 0.25:
                    reported_s = now_s
                    self.feed.status(self.facts | {"written_ns": time.monotonic_ns()})
            from_s = now_s
            self.ending.wait(TURN_S)

    def _hear_guard(self):
        state = self.facts["state"]
        while self.rig.recorded:
            row = self.rig.recorded.popleft()
            self.rows.append(row)
            if "event" not in row:
                continue
            event, verdict = row["event"], row["verdict"]
            self.facts |= {"state": verdict["state"], "automatic": verdict["automatic"]}
            if verdict["reasons"]:
                self.facts["reason"] = verdict["reasons"][-1]
            self.facts["refusals"] += bool(verdict["refused"])
            if row.get("written_ns"):
                self.facts["pulses"] += 1
                self.facts["trains"] += event["kind"] in ("request", "trigger")
                self.facts["train_by"] = event["kind"] if event["kind"] in ("request", "trigger") else self.facts["train_by"]
                given = self.facts["dose"]["session"]
                given |= {"pulses": given["pulses"] + 1, "on_time_s": given["on_time_s"] + 0.02, "charge_mc": given["charge_mc"] + 0.01}
                self.feed.mark(row["written_ns"] * 1e-9, "pulse")
            if verdict["reasons"] and event["kind"] not in ("heartbeat", "ack"):
                kind = "refused" if verdict["refused"] else event["kind"]
                self.feed.mark(event["now_ns"] * 1e-9, kind, "; ".join(verdict["reasons"]))
        return self.facts["state"] != state

    def _cycle(self, from_s, to_s):
        """Signals between two times: noise, and a spasm now and then that both rules see."""
        each_s, long_s = SPASM_S

        def times(rate_hz):
            return np.arange(np.ceil(from_s * rate_hz), np.ceil(to_s * rate_hz)) / rate_hz

        def strength(t_s):
            return np.clip(np.minimum(t_s % each_s, long_s - t_s % each_s) / 0.15, 0.0, 1.0)

        emg_t_s, force_t_s = times(EMG_HZ), times(FORCE_HZ)
        loud_uv = 4.0 + strength(emg_t_s)[:, None] * np.linspace(140.0, 20.0, len(EMG))
        force = 2.0 + 6.0 * strength(force_t_s)[:, None] + 0.05 * self.rng.normal(size=(len(force_t_s), 1))
        spasm = float(strength(np.array([to_s]))[0])
        detections = np.zeros((2, 9))
        detections[:, 0], detections[:, 2], detections[:, 4] = spasm > 0.5, to_s, 1.0
        detections[:, 3] = 0.2 + 1.6 * spasm + 0.1 * self.rng.random(2)
        for rule in self.facts["rules"].values():
            rule["active"] = spasm > 0.5
        chunk = SimpleNamespace(
            emg_t_s=emg_t_s, emg_uv=loud_uv * self.rng.normal(size=(len(emg_t_s), len(EMG))), force_t_s=force_t_s, force=force
        )
        return SimpleNamespace(chunk=chunk, detections=detections, sample_s=to_s)

    # --- what tests and benches do -----------------------------------------------------------------------------------------------
    def pulses_ns(self):
        """As the virtual stimulator logged them."""
        return [row["pulse_ns"] for row in self.rig.twin.pulses()]

    def events(self, kind):
        """Guard's rows of one kind."""
        return [row for row in list(self.rows) if row.get("event", {}).get("kind") == kind]

    def start_train(self):
        """Arm anew, press; returns once the first pulses are out. The last train is over for a second by then."""
        before = self.pulses_ns()
        time.sleep(max(0.0, REST_S - (time.monotonic_ns() - before[-1]) * 1e-9) if before else 0.0)
        assert self.rig.arm()["ok"]
        answer = self.rig.trigger()
        assert answer["ok"], answer
        end = time.monotonic() + 2.0
        while len(self.pulses_ns()) < len(before) + 2:
            assert time.monotonic() < end, "no train began"
            time.sleep(0.005)

    def pair(self, context, role, name="Ada"):
        """Pair through the page's own form; returns the page, whose connection carries the token."""
        page = context.new_page()
        page.goto(self.url)
        code = self.rig.ask("invite", role=role, name=name)["code"]
        page.locator("#code").fill(code)
        page.locator("#pair-form button").click()
        page.locator(f"body[data-role={role}]").wait_for(timeout=5000)
        return page

    def close(self):
        self.ending.set()
        self.feeder.join()
        self.page.close()
        self.feed.close()
        self.rig.close()
