"""A serving process for tests to kill: loads one model in a worker and tells the process ids.

    python serving_parent.py MODEL ORDER

Prints `FORK_SERVER WORKER`, then gives the worker ORDER and waits for ever.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import numpy as np

from edgeserve.runtimes.base import RuntimeOptions
from edgeserve_agent.isolation.forkserver import shared_fork_server
from edgeserve_agent.isolation.runtime import IsolatedRuntime

if __name__ == "__main__":
    loaded = []

    def load() -> None:
        loaded.append(IsolatedRuntime("trouble").load(Path(sys.argv[1]), RuntimeOptions()))

    # The thread that starts the fork server ends at once, as a server's loader may: that must not end the fork server.
    loader = threading.Thread(target=load)
    loader.start()
    loader.join()
    time.sleep(0.1)
    (model,) = loaded
    print(shared_fork_server().pid, model.pid, flush=True)
    if sys.argv[2] == "leave":
        sys.exit()
    print(model.run({"order": np.array([sys.argv[2].encode()], object)}), flush=True)
    threading.Event().wait()
