"""`edgeserve serve`: one model over the Open Inference Protocol, without a fleet."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeserve.cli.output import print_json

if TYPE_CHECKING:
    from edgeserve_agent.serving.listen import Address
    from edgeserve_agent.serving.standalone import Standalone


def command(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Model file (.onnx, .xml), or release: a directory or .tar.")
    ],
    name: Annotated[str, typer.Option("--name", help="Serve it under this name.", show_default=False)] = "",
    http: Annotated[str, typer.Option("--http", metavar="HOST:PORT", help="Port 0 takes any.")] = "127.0.0.1:8000",
    threads: Annotated[int, typer.Option("--threads", min=0, help="Inside one call; 0 = all cores.")] = 1,
    insecure_dev: Annotated[
        bool, typer.Option("--insecure-dev", help="Allow other addresses than loopback, with neither TLS nor tokens.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the address as JSON, not a text.")] = False,
) -> None:
    """Serve one model or release over HTTP until Ctrl-C."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    from edgeserve_agent.serving.listen import listen_address
    from edgeserve_agent.serving.server import run
    from edgeserve_agent.serving.standalone import open_standalone

    address = listen_address(http, insecure_dev=insecure_dev)
    with tempfile.TemporaryDirectory(prefix="edgeserve-") as scratch:
        opened = open_standalone(model, name=name, threads=threads, scratch=Path(scratch, "variant"))
        run(
            lambda loop, stop: _serve(
                loop, stop, opened, address, threads=threads, insecure_dev=insecure_dev, as_json=as_json
            )
        )


async def _serve(
    loop: asyncio.AbstractEventLoop,
    stop: asyncio.Event,
    opened: Standalone,
    address: Address,
    *,
    threads: int,
    insecure_dev: bool,
    as_json: bool,
) -> None:
    from edgeserve_agent.serving.server import ModelServer

    identity = opened.identity
    server = ModelServer(loop, threads=threads, insecure=insecure_dev)
    server.plane.expect(identity.model)
    url = await server.listen(address)
    try:
        await server.plane.load(identity, lambda: opened.opened)
        server.plane.activate(identity.model, identity.release)
        if as_json:
            print_json({"http": url, "model": identity.model, "version": identity.version, "release": identity.release})
        else:
            typer.echo(f"serving {identity.model} {identity.version} at {url}; Ctrl-C ends it. Try:\n")
            typer.echo(_example(url, opened))
        sys.stdout.flush()
        await stop.wait()
    finally:
        await server.close()


def _example(url: str, opened: Standalone) -> str:
    """A curl command that the server answers with 200; inputs that are too long to print are described instead."""
    import msgspec

    from edgeserve.cli.infer_files import CONTENT_TYPES
    from edgeserve.contracts.task import ImageInput
    from edgeserve.contracts.tensors import Datatype
    from edgeserve_agent.serving.opened import zeros

    model_url = f"{url}/v2/models/{opened.identity.model}"
    task = opened.opened.task
    if task is not None and task.inputs:
        name = "FILE.jpg" if any(isinstance(entry, ImageInput) for entry in task.inputs) else "FILE.wav"
        return (
            f"  curl {model_url}/infer -H 'Content-Type: {CONTENT_TYPES[name[4:]]}' --data-binary @{name}\n"
            f"  edgeserve infer {url} {opened.identity.model} --input {name}"
        )
    signature = opened.opened.model.signature
    inputs = zeros(signature)
    if sum(array.size for array in inputs.values()) > 4096 or any(
        spec.datatype is Datatype.FP16 for spec in (*signature.inputs, *signature.outputs)
    ):
        return f"  curl {model_url}\n  edgeserve infer {url} {opened.identity.model} --input INPUTS.npz"
    document = {
        "inputs": [
            {
                "name": spec.name,
                "shape": inputs[spec.name].shape,
                "datatype": spec.datatype.value,
                "data": [
                    "" if spec.datatype is Datatype.BYTES else value for value in inputs[spec.name].ravel().tolist()
                ],
            }
            for spec in signature.inputs
        ]
    }
    quoted = msgspec.json.encode(document).decode().replace("'", r"'\''")
    return f"  curl {model_url}/infer -d '{quoted}'"
