"""The clock of the recordings on a stand-in for a GPU, whose time is counted and not waited for."""

import importlib
import sys
import types

import pytest


@pytest.fixture
def machine(monkeypatch):
    """A host and a GPU that works off launches in order; both clocks in milliseconds."""
    now = types.SimpleNamespace(host=0.0, gpu=0.0)

    class Event:
        def __init__(self, enable_timing):
            pass

        def record(self):
            self.at = now.gpu = max(now.gpu, now.host)

        def synchronize(self):
            now.host = max(now.host, self.at)

        def elapsed_time(self, other):
            return other.at - self.at

    torch = types.ModuleType("torch")
    torch.Tensor, torch.cuda = object, types.SimpleNamespace(Event=Event)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.delitem(sys.modules, "scripts.measure", raising=False)
    measure = importlib.import_module("scripts.measure")
    monkeypatch.setattr(measure, "time", types.SimpleNamespace(perf_counter=lambda: now.host / 1e3))

    def launches(host_ms, gpu_ms):
        def fn():
            now.host += host_ms
            now.gpu = max(now.gpu, now.host) + gpu_ms

        return fn

    yield measure, launches
    del sys.modules["scripts.measure"]


@pytest.mark.parametrize(("host_ms", "gpu_ms"), [(0.01, 0.03), (0.09, 0.1), (0.1, 20), (1, 300)])
def test_back_to_back_launches_are_timed(machine, host_ms, gpu_ms):
    measure, launches = machine
    assert measure._hot_ms(launches(host_ms, gpu_ms), gpu_ms) == pytest.approx(gpu_ms)


@pytest.mark.parametrize(("host_ms", "gpu_ms"), [(0.1, 0.1), (0.12, 0.1), (0.5, 0.01), (30, 20)])
def test_a_time_that_is_the_hosts_is_left_out(machine, host_ms, gpu_ms):
    measure, launches = machine
    assert measure._hot_ms(launches(host_ms, gpu_ms), gpu_ms) is None
