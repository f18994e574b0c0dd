"""What a request wants back: outputs, each as JSON, binary, in words, or in shared memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_CLASSIFICATION
from edgeserve.contracts.tensors import Signature, TensorSpec
from edgeserve_agent.serving.codec.head import Parameters, RequestOutput, flag, number
from edgeserve_agent.serving.codec.json_tensors import NO_JSON
from edgeserve_agent.serving.regions import RegionRef, Regions


class Form(Enum):
    """How an output is sent."""

    JSON = "json"
    BINARY = "binary"
    REGION = "region"
    """Into shared memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """One output of the answer."""

    spec: TensorSpec
    form: Form
    classes: int = 0
    """So many classes of each row in words (Triton's "Classification" extension); 0 = the tensor itself."""
    region: RegionRef | None = None


def view(regions: Regions | None, ref: RegionRef) -> memoryview:
    """Memory of a region.

    Raises:
        InputError: Shared memory is switched off, or there is no such region.
    """
    if regions is None:
        raise InputError("shared memory is switched off", hint="start the server with --allow-shm")
    return regions.view(ref)


def region_ref(parameters: Parameters, what: str) -> RegionRef | None:
    """Where in shared memory a tensor lies, if it does.

    Raises:
        InputError: The parameters are not of their types.
    """
    region = parameters.get("shared_memory_region")
    if region is None:
        return None
    if not isinstance(region, str):
        raise InputError(f"{what}: shared_memory_region is {str(region)[:40]!r}, it must be a name")
    if "shared_memory_byte_size" not in parameters:
        raise InputError(f"{what} is in shared memory and has no shared_memory_byte_size")
    return RegionRef(region, number(parameters, "shared_memory_offset"), number(parameters, "shared_memory_byte_size"))


def wishes_of(outputs: Sequence[RequestOutput], signature: Signature, *, binary: bool) -> tuple[Wish, ...]:
    """What a request asks for: the outputs that it names, or all of the model.

    Args:
        outputs: As the request names them.
        signature: Of the model.
        binary: Outputs that do not say otherwise are binary.

    Raises:
        InputError: An output is none of the model's, or cannot be had in that form.
    """
    if not outputs:
        return tuple(_checked(Wish(spec=spec, form=_form(binary=binary))) for spec in signature.outputs)
    specs = {spec.name: spec for spec in signature.outputs}
    wishes = {output.name: _wish(output, specs, default=binary) for output in outputs}
    if len(wishes) != len(outputs):
        raise InputError("two outputs have the same name")
    return tuple(wishes.values())


def _wish(output: RequestOutput, specs: Mapping[str, TensorSpec], *, default: bool) -> Wish:
    spec, parameters = specs.get(output.name), output.parameters
    if spec is None:
        raise InputError(f"output {output.name[:80]!r} is not one of the model's: {', '.join(specs)}")
    ref = region_ref(parameters, f"output {output.name[:80]!r}")
    form = _form(binary=flag(parameters, "binary_data", default=default)) if ref is None else Form.REGION
    classes = number(parameters, "classification", most=MAX_CLASSIFICATION)
    if classes and ref is not None:
        raise InputError(
            f"output {spec.name!r}: classes cannot be written to shared memory", hint="leave one of the two out"
        )
    return _checked(Wish(spec=spec, form=form, classes=classes, region=ref))


def _checked(wish: Wish) -> Wish:
    if wish.form is Form.JSON and not wish.classes and wish.spec.datatype in NO_JSON:
        name, datatype = wish.spec.name, wish.spec.datatype.value
        raise InputError(f"output {name!r} is {datatype}, which has no JSON form: ask for binary_data")
    return wish


def _form(*, binary: bool) -> Form:
    return Form.BINARY if binary else Form.JSON
