import pytest

from tests.rig import GuardRig


def pytest_addoption(parser):
    """A real stimulator for `test_stimulator_contract.py`."""
    parser.addoption("--stimulator", help="name of the driver of a real stimulator")
    parser.addoption("--port", help="its port")
    parser.addoption("--pulses", action="store_true", help="it may give weak pulses: a load is connected, nobody is")


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
