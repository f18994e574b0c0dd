"""`python -m edgeserve_agent.serving`: the serving process, as the agent's control part starts it."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

# Before numpy is imported: BLAS threads cost start-up time and memory, and no model uses them.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from edgeserve.contracts.errors import EdgeServeError


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m edgeserve_agent.serving", description=__doc__)
    parser.add_argument("--state-dir", type=Path, required=True, help="folder with slots.json and variants/")
    parser.add_argument("--http", default="127.0.0.1:8000", metavar="HOST:PORT", help="port 0 takes any free one")
    parser.add_argument("--grpc", default="", metavar="HOST:PORT", help="a port for gRPC alone; --http speaks it, too")
    parser.add_argument("--uds", default="", metavar="PATH", help="Unix socket that speaks HTTP and gRPC")
    parser.add_argument("--local", default="", metavar="PATH", help="Unix socket for edgeserve.client.local")
    parser.add_argument("--allow-shm", action="store_true", help="let clients here register shared memory by name")
    parser.add_argument("--simulate", action="store_true", help="run variants for other hardware on what is here")
    parser.add_argument("--insecure-dev", action="store_true", help="allow other addresses than loopback")
    parser.add_argument("--threads", type=int, default=1, help="inside one call of a model; 0 = the runtime decides")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s serving %(levelname)s %(message)s", stream=sys.stderr)
    try:
        from edgeserve_agent.serving.listen import Listening
        from edgeserve_agent.serving.process import ServingConfig, ServingProcess
        from edgeserve_agent.serving.server import run

        config = ServingConfig(
            state_dir=options.state_dir,
            listening=Listening.of(
                http=options.http,
                grpc=options.grpc,
                uds=options.uds,
                local=options.local,
                insecure_dev=options.insecure_dev,
            ),
            allow_shm=options.allow_shm,
            simulate=options.simulate,
            insecure_dev=options.insecure_dev,
            threads=options.threads,
        )
        run(lambda loop, stop: ServingProcess(loop, stop, config).run())
    except EdgeServeError as error:
        sys.stderr.write(f"error: {error.message}\n")
        if error.hint:
            sys.stderr.write(f"hint: {error.hint}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
