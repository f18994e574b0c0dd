"""Ask a server for classes: `ask.py URL ROWS.npz MODEL...` sends a model's rows one by one, and prints JSON."""

from __future__ import annotations

import json
import sys
import time

import numpy as np

from edgeserve.client.inference import InferenceClient
from edgeserve.contracts.errors import TransientError

LOAD_S = 60.0


def wait_loaded(client: InferenceClient, model: str) -> str:
    """Wait until the server has loaded the model; returns the name of its one input."""
    deadline = time.monotonic() + LOAD_S
    while time.monotonic() < deadline:
        try:
            return client.metadata(model).inputs[0].name
        except TransientError as error:  # noqa: PERF203 - it sleeps
            late = error
            time.sleep(0.2)
    raise late


def main() -> None:
    url, rows, *models = sys.argv[1:]
    client = InferenceClient(url, timeout_s=120)
    classes = {}
    with np.load(rows) as arrays:
        for model in models:
            name = wait_loaded(client, model)
            answers = [client.infer(model, {name: row[None]}).outputs.values() for row in arrays[model]]
            classes[model] = [int(next(iter(outputs)).argmax()) for outputs in answers]
    print(json.dumps(classes))


if __name__ == "__main__":
    main()
