"""What this device is, by its configuration: probed, or the facts of a profile that it stands in for."""

from __future__ import annotations

import platform

import msgspec

from edgeserve.contracts.device import DeviceFacts
from edgeserve.contracts.errors import DeviceError
from edgeserve_agent.config import DeviceSection
from edgeserve_devices.probe import installed_runtimes, probe
from edgeserve_devices.profiles import load_profile


def device_facts(device: DeviceSection) -> tuple[DeviceFacts, tuple[str, ...]]:
    """Facts to match variants against, and the targets to prefer, best first.

    A named profile on real hardware only adds its name and preference: what is there is still probed. A simulated
    one brings its own facts, but for the runtimes and the Python that are really here.

    Raises:
        NotFoundError: No profile has the configured name.
        InputError: The profile's file is not valid.
        DeviceError: The profile is of another kind of machine, and nothing says that this one stands in for it.
    """
    if device.simulate:
        profile = load_profile(device.profile)
        facts = msgspec.structs.replace(
            profile.facts(simulated=True), runtimes=installed_runtimes(), python=platform.python_version()
        )
        return facts, profile.targets
    facts = probe()
    name = device.profile or facts.profile
    if not name:
        return facts, ()
    profile = load_profile(name)
    if profile.architecture != facts.architecture:
        raise DeviceError(
            f"the profile {name} is of {profile.architecture} devices, this machine is {facts.architecture}",
            hint="name the right profile, or say simulate = true in [device]: it is then reported as simulated",
        )
    return msgspec.structs.replace(facts, profile=name), profile.targets
