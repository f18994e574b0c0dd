from __future__ import annotations

import platform

import pytest

from edgeserve.contracts.errors import DeviceError
from edgeserve_agent.config import DeviceSection
from edgeserve_agent.hardware import device_facts

FOREIGN = "raspberry-pi-5" if platform.machine() == "x86_64" else "x86-64"


def test_a_profile_of_another_kind_of_machine_is_refused_unless_it_is_simulated() -> None:
    with pytest.raises(DeviceError) as refused:
        device_facts(DeviceSection(id="default.one", profile=FOREIGN))
    assert "simulate = true" in refused.value.hint


def test_simulated_hardware_is_reported_as_simulated() -> None:
    facts, targets = device_facts(DeviceSection(id="default.one", profile=FOREIGN, simulate=True))
    assert facts.simulated
    assert facts.profile == FOREIGN
    assert targets


def test_without_a_profile_the_machine_is_probed() -> None:
    facts, _ = device_facts(DeviceSection(id="default.one"))
    assert not facts.simulated
    assert facts.architecture
