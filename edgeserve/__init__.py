"""edgeserve: compile a model for every device of a fleet, roll it out in waves, serve it, take it back.

The package holds what every part shares: contracts, the release format, trust, the MQTT link, runtimes,
the task, the V2 client, the command line and the demo. The parts are `edgeserve_compilers`,
`edgeserve_agent`, `edgeserve_fleet` and `edgeserve_devices`.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__: str


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib.metadata import version  # 60 ms of CPU that most starts do not need

        return version("edgeserve")
    raise AttributeError(f"module 'edgeserve' has no attribute {name!r}")
