"""Settings of every test."""

from __future__ import annotations

from hypothesis import settings

# Deadlines of single examples measure the machine's load, not the code.
settings.register_profile("edgeserve", deadline=None)
settings.load_profile("edgeserve")
