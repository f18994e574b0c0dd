"""`edgeserve serve`: a model, or a folder of models, over the Open Inference Protocol, without a fleet."""

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
    from edgeserve_agent.serving.listen import Listening
    from edgeserve_agent.serving.served import ServedRelease
    from edgeserve_agent.serving.startup import ServePlan


def command(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="Model file (.onnx, .xml, .tflite), release (a directory or .tar), or a folder of models: "
            "NAME/VERSION/model.onnx.",
        ),
    ],
    name: Annotated[str, typer.Option("--name", help="Serve it under this name.", show_default=False)] = "",
    http: Annotated[str, typer.Option("--http", metavar="HOST:PORT", help="Port 0 takes any.")] = "127.0.0.1:8000",
    grpc: Annotated[
        str, typer.Option("--grpc", metavar="HOST:PORT", help="A port for gRPC alone; --http speaks it, too.")
    ] = "",
    uds: Annotated[
        Path | None, typer.Option("--uds", metavar="PATH", help="Unix socket that speaks HTTP and gRPC.")
    ] = None,
    local: Annotated[
        Path | None, typer.Option("--local", metavar="PATH", help="Unix socket for edgeserve.client.local (zero-copy).")
    ] = None,
    allow_shm: Annotated[
        bool, typer.Option("--allow-shm", help="Let clients on this machine register shared memory by name.")
    ] = False,
    threads: Annotated[int, typer.Option("--threads", min=0, help="Inside one call; 0 = all cores.")] = 1,
    insecure_dev: Annotated[
        bool, typer.Option("--insecure-dev", help="Allow other addresses than loopback, with neither TLS nor tokens.")
    ] = False,
    resource: Annotated[
        list[str] | None,
        typer.Option(
            "--rate-limit-resource",
            metavar="NAME:COUNT",
            help="How much there is of a resource that models share; may be given several times.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="How the one model is served: .toml, .json or .pbtxt."),
    ] = None,
    model_control: Annotated[
        str, typer.Option("--model-control", metavar="all|explicit", help="Load all models at start, or those named.")
    ] = "all",
    load_model: Annotated[
        list[str] | None,
        typer.Option("--load-model", metavar="NAME", help="Model to load at start; may be given several times."),
    ] = None,
    poll_seconds: Annotated[
        float, typer.Option("--poll-seconds", min=0, help="Look for changed models this often; 0 = never.")
    ] = 0.0,
    state_dir: Annotated[
        Path | None,
        typer.Option("--state-dir", metavar="DIR", help="Keep version labels and engines here over restarts."),
    ] = None,
    trust_handlers: Annotated[
        bool, typer.Option("--trust-handlers", help="Let the Python of handlers run, confined (docs/handler.md).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the address as JSON, not a text.")] = False,
) -> None:
    """Serve a model, a release or a folder of models over HTTP until Ctrl-C."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    from edgeserve_agent.finalize import cache_folder
    from edgeserve_agent.serving.listen import Listening
    from edgeserve_agent.serving.model_source import OpenOptions
    from edgeserve_agent.serving.server import run
    from edgeserve_agent.serving.startup import model_control_of, serve_plan

    resources = dict(map(_resource, resource or ()))
    listening = Listening.of(http=http, grpc=grpc, uds=uds, local=local, insecure_dev=insecure_dev)
    with tempfile.TemporaryDirectory(prefix="edgeserve-") as scratch:
        if trust_handlers:
            _trust(model, Path(scratch))
        plan = serve_plan(
            model,
            name=name,
            options=OpenOptions(
                threads=threads, scratch=Path(scratch), cache=cache_folder(state_dir) if state_dir else None
            ),
            config=config,
            control=model_control_of(model_control),
            load=tuple(load_model or ()),
            poll_s=poll_seconds,
            state_dir=state_dir,
        )
        run(
            lambda loop, stop: _serve(
                loop,
                stop,
                plan,
                listening,
                insecure_dev=insecure_dev,
                allow_shm=allow_shm,
                resources=resources,
                as_json=as_json,
            )
        )


def _trust(model: Path, scratch: Path) -> None:
    """Handlers that lie with the model, and those of the release, but none that a client uploads."""
    from edgeserve.contracts.errors import InputError
    from edgeserve.runtimes import handler_trust
    from edgeserve_agent.serving.model_folder import is_repository
    from edgeserve_agent.serving.standalone import HANDLER, VARIANTS

    folders = [model.parent] if model.name == HANDLER else [model] if is_repository(model) else []
    for folder in folders:
        if scratch.resolve().is_relative_to(folder.resolve()):
            raise InputError(
                f"{folder} holds the folder for temporary files: what clients upload would be trusted, too",
                hint="move the model, or set TMPDIR to another folder",
            )
    handler_trust.trust_handlers(*folders, scratch / VARIANTS)


def _resource(text: str) -> tuple[str, int]:
    from edgeserve.contracts.errors import InputError

    name, colon, count = text.partition(":")
    if not name or not colon or not count.isascii() or not count.isdecimal() or not 0 < int(count[:8]) <= 1 << 20:
        raise InputError(f"--rate-limit-resource {text[:80]!r} is not NAME:COUNT", hint="such as accelerator:1")
    return name, int(count)


async def _serve(
    loop: asyncio.AbstractEventLoop,
    stop: asyncio.Event,
    plan: ServePlan,
    listening: Listening,
    *,
    insecure_dev: bool,
    allow_shm: bool,
    resources: dict[str, int],
    as_json: bool,
) -> None:
    from edgeserve_agent.serving.server import ModelServer

    server = ModelServer(
        loop, threads=plan.options.threads, insecure=insecure_dev, allow_shm=allow_shm, resources=resources
    )
    repository = server.repository = plan.repository(server.plane)
    try:
        addresses = await server.listen_on(listening)
        url = addresses["http"]
        await plan.start(repository, stop)
        active = [served for served, is_active in server.plane.releases() if is_active]
        if as_json:
            print_json(_described(addresses, active, single=plan.is_single))
        elif plan.is_single and active:
            identity = active[0].identity
            typer.echo(f"serving {identity.model} {identity.version} at {url}; Ctrl-C ends it. Try:\n")
            typer.echo(_example(url, active[0]))
        else:
            names = ", ".join(f"{served.identity.model} {served.identity.version}" for served in active)
            typer.echo(f"serving {names or 'no model yet'} at {url}; Ctrl-C ends it")
        sys.stdout.flush()
        await stop.wait()
    finally:
        await repository.close()
        await server.close()


def _described(addresses: dict[str, str], active: list[ServedRelease], *, single: bool) -> dict[str, object]:
    models = [
        {"model": one.identity.model, "version": one.identity.version, "release": one.identity.release}
        for one in active
    ]
    return {**addresses, **models[0]} if single and models else {**addresses, "models": models}


def _example(url: str, served: ServedRelease) -> str:
    """A curl command that the server answers with 200; inputs that are too long to print are described instead."""
    import msgspec

    from edgeserve.cli.infer_files import CONTENT_TYPES
    from edgeserve.contracts.task import ImageInput
    from edgeserve.contracts.tensors import Datatype
    from edgeserve_agent.serving.opened import zeros

    model_url = f"{url}/v2/models/{served.identity.model}"
    task = served.opened.task
    if task is not None and task.inputs:
        name = "FILE.jpg" if any(isinstance(entry, ImageInput) for entry in task.inputs) else "FILE.wav"
        return (
            f"  curl {model_url}/infer -H 'Content-Type: {CONTENT_TYPES[name[4:]]}' --data-binary @{name}\n"
            f"  edgeserve infer {url} {served.identity.model} --input {name}"
        )
    signature = served.opened.model.signature
    inputs = zeros(signature)
    if sum(array.size for array in inputs.values()) > 4096 or any(
        spec.datatype is Datatype.FP16 for spec in (*signature.inputs, *signature.outputs)
    ):
        return f"  curl {model_url}\n  edgeserve infer {url} {served.identity.model} --input INPUTS.npz"
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
