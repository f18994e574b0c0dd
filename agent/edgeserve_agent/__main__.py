"""`python -m edgeserve_agent --config agent.toml`: the control part of the agent, started without the command line."""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from edgeserve.contracts.errors import EdgeServeError
from edgeserve.runtimes.handler_trust import trust_only
from edgeserve_agent.config import DEFAULT_FILE, load
from edgeserve_agent.daemon import Daemon
from edgeserve_agent.notify import this_process
from edgeserve_agent.slots import VARIANTS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the agent until SIGTERM; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m edgeserve_agent", description=__doc__)
    parser.add_argument("--config", type=Path, default=DEFAULT_FILE, metavar="agent.toml")
    parser.add_argument("--state-dir", default="", help="instead of the one in the configuration")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s agent %(levelname)s %(message)s", stream=sys.stderr)
    faulthandler.enable()  # the SIGABRT of systemd's watchdog then leaves in the log where the agent hung
    try:
        announcer = this_process()
        flags = {"state_dir": options.state_dir} if options.state_dir else {}
        config = load(options.config, os.environ, flags)
        # Whatever the environment said: only what this device's own configuration allows.
        trust_only(*([config.folder.resolve() / VARIANTS] if config.limits.allow_handlers else []))
        return Daemon(config, announcer=announcer).run()
    except EdgeServeError as error:
        sys.stderr.write(f"error: {error.message}\n")
        if error.hint:
            sys.stderr.write(f"hint: {error.hint}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
