import pytest

from tests.rig import GuardRig


@pytest.fixture(autouse=True)
def own_runtime_folder(tmp_path_factory, monkeypatch):
    """Every test has its own control sockets, key and journals: nothing of this machine's real beds is ever touched."""
    monkeypatch.setenv("CALMLOOP_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
    monkeypatch.setenv("CALMLOOP_STATE_DIR", str(tmp_path_factory.mktemp("state")))


@pytest.fixture
def guard(tmp_path):
    rig = GuardRig(tmp_path)
    yield rig
    rig.close()
