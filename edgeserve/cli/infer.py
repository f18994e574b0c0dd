"""`edgeserve infer`: send inputs from files to a model server; tensors here, pictures and sound by `infer_files`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeserve.cli.output import print_json, print_table
from edgeserve.contracts.errors import InputError, NotFoundError

if TYPE_CHECKING:
    from edgeserve.client.blobs import Tensor
    from edgeserve.client.inference import ModelMetadata
    from edgeserve.contracts.tensors import TensorSpec

_MOST_SHOWN = 8


def command(
    url: Annotated[str, typer.Argument(metavar="URL", help="Of the server, such as http://127.0.0.1:8000.")],
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.")],
    source: Annotated[
        Path,
        typer.Option(
            "--input",
            help="An .npz or .json with one array for each input, by name; a picture or WAV; or a folder of these.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", help="Write the outputs to this .npz; the answers to files to this .json."),
    ] = None,
    version: Annotated[str, typer.Option("--version", help="Of the model; the active one if not given.")] = "",
    request_id: Annotated[str, typer.Option("--id", help="Request id, for feedback.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Send inputs to a model server and show what it answers.

    Pictures and sound are sent as they are: the server makes tensors of them as the model's task says, and answers with
    classes or boxes. Of a folder every such file is sent; exit code 1 when one of them got no answer.
    """
    from edgeserve.cli import infer_files
    from edgeserve.client.inference import InferenceClient

    if infer_files.takes(source):
        infer_files.infer_files(
            InferenceClient(url), model, source, version=version, request_id=request_id, output=output, as_json=as_json
        )
        return
    if output is not None and output.suffix != ".npz":
        raise InputError(f"--output {output} is not an .npz")
    client = InferenceClient(url)
    inputs = _read(source, client.metadata(model, version=version))
    result = client.infer(model, inputs, version=version, request_id=request_id)
    if output is not None:
        _write(output, result.outputs)
    if as_json:
        print_json(
            {
                "model": result.model_name,
                "version": result.model_version,
                "id": result.request_id,
                "release": result.release,
                "outputs": {name: _listed(array) for name, array in result.outputs.items()},
            }
        )
        return
    rows = [(name, array.dtype, list(array.shape), _shown(array)) for name, array in result.outputs.items()]
    print_table(("output", "type", "shape", "values"), rows, title=f"{result.model_name} {result.model_version}")


def _read(path: Path, metadata: ModelMetadata) -> dict[str, Tensor]:
    """Arrays by input name, in the datatypes that the model declares."""
    import msgspec

    from edgeserve.npz import load

    if path.suffix not in (".npz", ".json"):
        raise InputError(
            f"--input {path} is neither .npz nor .json, nor a picture, a WAV or a folder of these",
            hint="numpy.savez('rows.npz', INPUT=array) writes an .npz",
        )
    specs = {spec.name: spec for spec in metadata.inputs}
    if path.suffix == ".npz":
        from edgeserve.contracts.limits import MAX_REQUEST_BYTES

        arrays: dict[str, Tensor] = dict(load(path, what=f"--input {path}", limit=MAX_REQUEST_BYTES))
    else:
        try:
            document = msgspec.json.decode(path.read_bytes(), type=dict[str, list[object]])
            arrays = {name: _array(values, specs.get(name)) for name, values in document.items()}
        except FileNotFoundError as error:
            raise NotFoundError(f"there is no file {path}") from error
        except (OSError, msgspec.DecodeError, ValueError, TypeError, OverflowError) as error:
            hint = 'write {"INPUT": [[...], ...]}'
            raise InputError(f"{path} does not hold arrays by input name: {error}", hint=hint) from error
    if len(arrays) == 1 == len(specs) and not set(arrays) <= set(specs) and "x" in arrays:
        return {metadata.inputs[0].name: arrays["x"]}
    return {name: array for name, array in arrays.items() if name in specs or name not in ("labels", "y")}


def _array(values: list[object], spec: TensorSpec | None) -> Tensor:
    import numpy as np

    array = np.array(values)
    if spec is None or (array.dtype.kind == "f" and "int" in spec.datatype.numpy_name):
        return array  # the server says what is wrong with it; casting here would cut the fractions off
    return np.array(values, spec.datatype.numpy_name)


def _write(path: Path, outputs: dict[str, Tensor]) -> None:
    from edgeserve import atomic
    from edgeserve.npz import dump

    texts = [name for name, array in outputs.items() if array.dtype == object]
    if texts:
        raise InputError(f"output {texts[0]!r} holds text, which an .npz cannot", hint="print it with --json")
    atomic.write_bytes(path, dump(outputs))


def _listed(array: Tensor) -> object:
    values: object = array.tolist()
    return values if array.dtype != object else [item.decode(errors="replace") for item in array.ravel().tolist()]


def _shown(array: Tensor) -> str:
    values = array.ravel()[:_MOST_SHOWN].tolist()
    text = ", ".join(f"{value:.6g}" if isinstance(value, float) else str(value) for value in values)
    return f"{text}, ..." if array.size > _MOST_SHOWN else text
