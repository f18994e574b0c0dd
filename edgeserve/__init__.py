"""edgeserve: compile a model for every device of a fleet, roll it out in waves, serve it, take it back.

The package holds what every part shares: contracts, the release format, trust, the MQTT link, runtimes,
the task, the V2 client, the command line and the demo. The parts are `edgeserve_compilers`,
`edgeserve_agent`, `edgeserve_fleet` and `edgeserve_devices`.
"""

from importlib.metadata import version

__all__ = ["__version__"]

__version__ = version("edgeserve")
