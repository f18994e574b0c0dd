"""How a model is served, in the words of Triton's `ModelConfig`; REST and gRPC answer with the same. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from edgeserve.contracts.model_config import ModelConfig, VersionPolicy
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec

if TYPE_CHECKING:
    from edgeserve_agent.serving.served import ServedRelease


def model_document(served: ServedRelease) -> dict[str, Any]:
    """`ModelConfig` of a loaded release."""
    return config_document(
        name=served.identity.model, runtime=served.opened.runtime, signature=served.signature, config=served.config
    )


def config_document(*, name: str, runtime: str, signature: Signature, config: ModelConfig) -> dict[str, Any]:
    """`ModelConfig` of a model: what its configuration says, completed by what it was found to be.

    Args:
        name: Under which it is served.
        runtime: Name of the runtime that runs it.
        signature: Of the model.
        config: As it was given.

    Returns:
        What JSON and protobuf take alike; enums are their names.
    """
    given = _without_unset(msgspec.to_builtins(config))
    document = {
        "name": name,
        "platform": config.platform or runtime,
        "backend": config.backend or runtime,
        "version_policy": _version_policy(config.version_policy),
        "max_batch_size": config.max_batch_size,
        "input": [_tensor(spec, batched=config.max_batch_size > 0) for spec in signature.inputs],
        "output": [_tensor(spec, batched=config.max_batch_size > 0) for spec in signature.outputs],
        "instance_group": given["instance_group"] or [{"name": f"{name}_0", "kind": "KIND_CPU", "count": 1}],
        "default_model_filename": config.default_model_filename,
        "parameters": given["parameters"],
        "model_warmup": given["model_warmup"],
    }
    files = {tensor.name: tensor.label_filename for tensor in config.output if tensor.label_filename}
    for output in document["output"]:
        if output["name"] in files:
            output["label_filename"] = files[output["name"]]
    for choice in ("dynamic_batching", "sequence_batching"):
        if choice in given:
            document[choice] = given[choice]
    return document


def triton_datatype(datatype: Datatype) -> str:
    """Name of a datatype in `ModelConfig`."""
    return "TYPE_STRING" if datatype is Datatype.BYTES else f"TYPE_{datatype.value}"


def _version_policy(policy: VersionPolicy) -> dict[str, Any]:
    return _without_unset(msgspec.to_builtins(policy)) or {"latest": {"num_versions": 1}}


def _tensor(spec: TensorSpec, *, batched: bool) -> dict[str, Any]:
    dims = list(spec.shape[1:] if batched else spec.shape)
    tensor: dict[str, Any] = {"name": spec.name, "data_type": triton_datatype(spec.datatype), "dims": dims or [1]}
    if not dims:
        # Triton's `dims` are never empty: a single number is one element that is reshaped.
        tensor["reshape"] = {"shape": []}
    return tensor


def _without_unset(value: Any) -> Any:  # noqa: ANN401 - any part of a document
    """Without what is None, empty text or false, at any depth: protobuf would take it for a choice that was made."""
    if isinstance(value, dict):
        return {
            name: _without_unset(part) for name, part in value.items() if part not in (None, "") and part is not False
        }
    if isinstance(value, list | tuple):
        return [_without_unset(part) for part in value]
    return value
