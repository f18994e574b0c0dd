"""One runtime's version and devices, as JSON: `python -m edgeserve_devices.probes.runtime_devices NAME`.

Run by `edgeserve_devices.probes.runtimes` in a process of its own; imported by nobody.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import msgspec

from edgeserve import plugins
from edgeserve.contracts.errors import EdgeServeError


def main(name: str) -> None:
    """Print the answer of one runtime."""
    answer = os.dup(1)
    os.dup2(2, 1)  # libraries print what they like
    try:
        document = {"name": name, **_answer(name)}
    except EdgeServeError as error:
        document = {"name": name, "problem": error.message}
    os.write(answer, msgspec.json.encode(document))
    os._exit(0)  # nothing is left to do, and some drivers crash when they are unloaded


def _answer(name: str) -> dict[str, Any]:
    runtime = plugins.find(plugins.RUNTIMES, name)()
    return {"version": runtime.version(), "devices": _devices(name)}


def _devices(name: str) -> list[str]:
    """Devices in the runtime's own words; empty = it has no list of them."""
    if name == "onnxruntime":
        return list(sys.modules["onnxruntime"].get_available_providers())
    if name == "openvino":
        core = sys.modules["openvino"].Core()
        return [f"{device}: {core.get_property(device, 'FULL_DEVICE_NAME')}" for device in core.available_devices]
    return []


if __name__ == "__main__":
    main(sys.argv[1])
