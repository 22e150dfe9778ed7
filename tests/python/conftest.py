# SPDX-License-Identifier: Apache-2.0
"""Set-up that every test shares, and the devices that tests run on."""

from __future__ import annotations

import os
import sys

import pytest
import torch

try:
    from hypothesis import HealthCheck, settings
except ModuleNotFoundError:  # a machine with a GPU and little else
    import without_hypothesis

    sys.modules["hypothesis"] = sys.modules["hypothesis.strategies"] = without_hypothesis
else:
    # No deadline: a busy machine is no bug. Fixed examples: a red build must be red for everyone. The device of a test
    # holds for all of its examples.
    settings.register_profile(
        "lath",
        deadline=None,
        derandomize=True,
        max_examples=60,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    settings.load_profile("lath")

# Unless the variable asks for them, tests on CUDA are left out where there is no device, and the last lines say so.
DEVICES = os.environ.get("LATH_TEST_DEVICES", "cpu cuda").split()
_left_out = 0


@pytest.fixture(autouse=True)
def _same_random_numbers():
    torch.manual_seed(0)


@pytest.fixture
def one_thread():
    """For networks so small that a second thread is no gain, and on a busy machine a loss."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_generate_tests(metafunc):
    """A test that uses the fixture ``device`` runs once on each, unless it is marked ``cpu_only``."""
    if "device" in metafunc.fixturenames:
        names = [n for n in DEVICES if n == "cpu" or metafunc.definition.get_closest_marker("cpu_only") is None]
        marks = {"cpu": (), "cuda": (pytest.mark.cuda,)}
        metafunc.parametrize("device", [pytest.param(n, marks=marks[n]) for n in names], indirect=True)


@pytest.fixture
def device(request):
    """Tensors that a test makes without naming a device are made on this one."""
    if request.param == "cpu":  # the switch that follows has a price, and shows in profiles
        yield torch.device("cpu")
        return
    need_cuda()
    torch.set_default_device(request.param)
    # Of the library's algorithms those whose results can be compared: no TF32, no atomics.
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
    try:
        yield torch.device(request.param)
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = True, False
        torch.set_default_device(None)


def need_cuda() -> None:
    """Skip the test without a GPU; with one that lath does not serve, the test is about to fail."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


def pytest_collection_modifyitems(config, items):
    global _left_out
    if torch.cuda.is_available() or "LATH_TEST_DEVICES" in os.environ:
        return
    on_cuda = [item for item in items if item.get_closest_marker("cuda")]
    items[:] = [item for item in items if not item.get_closest_marker("cuda")]
    config.hook.pytest_deselected(items=on_cuda)
    _left_out = len(on_cuda)


def pytest_terminal_summary(terminalreporter):
    if _left_out:
        terminalreporter.write_line(f"no CUDA device: {_left_out} tests on CUDA did not run")
