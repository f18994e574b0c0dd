"""The real agent, but it stops for ever at one step, so that a test can kill it exactly there.

python stalling_agent.py agent.toml STEP        STEP such as fetch:before, switch:after
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from edgeserve_agent.config import load
from edgeserve_agent.daemon import Daemon

config = load(Path(sys.argv[1]), os.environ)


def stall(step: str) -> None:
    if step == sys.argv[2]:
        (config.folder / "stalled").touch()
        threading.Event().wait()


sys.exit(Daemon(config, on_effect=stall).run())
