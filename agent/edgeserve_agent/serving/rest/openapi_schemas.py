"""JSON Schemas (draft 2020-12, as OpenAPI 3.1 takes them) of what the REST dialects read and write. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from edgeserve.contracts.tensors import Datatype

Schema = dict[str, Any]

TEXT: Final[Schema] = {"type": "string"}
FLAG: Final[Schema] = {"type": "boolean"}
WHOLE: Final[Schema] = {"type": "integer"}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
ANYTHING: Final[Schema] = {}


def ref(name: str) -> Schema:
    """Refer to one of `SCHEMAS`."""
    return {"$ref": f"#/components/schemas/{name}"}


def array(items: Schema) -> Schema:
    """A list of `items`."""
    return {"type": "array", "items": items}


def one_of_values(*values: str) -> Schema:
    """One of a few texts."""
    return {"type": "string", "enum": list(values)}


def fields(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """An object; more fields than those named may be there."""
    schema: Schema = {"type": "object", "properties": {**required, **(optional or {})}}
    if required:
        schema["required"] = list(required)
    return schema


def table(values: Schema) -> Schema:
    """An object whose names are free."""
    return {"type": "object", "additionalProperties": values}


def both(name: str, schema: Schema) -> dict[str, Schema]:
    """A field under its snake_case and its camelCase name."""
    first, *rest = name.split("_")
    return {name: schema, first + "".join(word.capitalize() for word in rest): schema}


_DURATION: Final = fields({"count": COUNT, "ns": COUNT})
_SHAPE: Final = array({"type": "integer", "minimum": -1})
_GIVEN_SHAPE: Final = array(COUNT)
_TENSOR: Final = {"name": TEXT, "datatype": ref("Datatype"), "shape": _SHAPE}
_REGION: Final = {"shared_memory_region": TEXT, "shared_memory_offset": COUNT, "shared_memory_byte_size": COUNT}
_STATES: Final = one_of_values("READY", "LOADING", "UNLOADING", "UNAVAILABLE")
_LABEL: Final[Schema] = {"anyOf": [WHOLE, TEXT, array({"anyOf": [WHOLE, TEXT]})]}
_FEEDBACK: Final = {**fields({"id": TEXT, "label": _LABEL}), "additionalProperties": False}
_OPTIONAL_TEXT: Final[Schema] = {"type": ["string", "null"]}
_TENSOR_INFO: Final = fields({"dtype": TEXT, "name": TEXT, **both("tensor_shape", {"type": "object"})})

SCHEMAS: Final[dict[str, Schema]] = {
    "Error": fields({"error": TEXT}),
    "Datatype": one_of_values(*(datatype.value for datatype in Datatype)),
    # Open Inference Protocol v2
    "ServerMetadata": fields({"name": TEXT, "version": TEXT, "extensions": array(TEXT), "insecure": FLAG}),
    "ServerLive": fields({"live": FLAG}),
    "ServerReady": fields({"ready": FLAG, "live": FLAG}),
    "ModelNames": fields({"models": array(TEXT)}),
    "ModelReady": fields({"name": TEXT, "ready": FLAG}, {"version": TEXT}),
    "TensorMetadata": fields(_TENSOR),
    "ModelMetadata": fields(
        {
            "name": TEXT,
            "versions": array(TEXT),
            "platform": TEXT,
            "inputs": array(ref("TensorMetadata")),
            "outputs": array(ref("TensorMetadata")),
        },
        {"properties": table(ANYTHING)},
    ),
    "InferParameters": fields(
        {},
        {
            "binary_data_output": FLAG,
            "sequence_id": {"anyOf": [COUNT, TEXT]},
            "sequence_start": FLAG,
            "sequence_end": FLAG,
            "priority": COUNT,
            "timeout": {**COUNT, "description": "Microseconds."},
        },
    ),
    "RequestInput": fields(
        {"name": TEXT, "shape": _GIVEN_SHAPE, "datatype": ref("Datatype")},
        {"parameters": fields({}, {"binary_data_size": COUNT, **_REGION}), "data": ref("TensorData")},
    ),
    "RequestOutput": fields(
        {"name": TEXT},
        {"parameters": fields({}, {"binary_data": FLAG, "classification": COUNT, **_REGION})},
    ),
    "TensorData": {**array(ANYTHING), "description": "Elements in row-major order, nested as the shape or flat."},
    "InferRequest": fields(
        {"inputs": array(ref("RequestInput"))},
        {"id": TEXT, "parameters": ref("InferParameters"), "outputs": array(ref("RequestOutput"))},
    ),
    "ResponseOutput": fields(
        {"name": TEXT, "datatype": ref("Datatype"), "shape": _GIVEN_SHAPE},
        {"parameters": table(ANYTHING), "data": ref("TensorData")},
    ),
    "InferResponse": fields(
        {"model_name": TEXT, "model_version": TEXT},
        {
            "id": TEXT,
            "outputs": array(ref("ResponseOutput")),
            "predictions": {**array(ANYTHING), "description": "What the model says of a picture or sound, in words."},
        },
    ),
    "Feedback": _FEEDBACK,
    "FeedbackBatch": {**fields({"feedback": array(_FEEDBACK)}), "additionalProperties": False},
    "FeedbackCounts": table(COUNT),
    # Triton's extensions
    "ModelStatistics": fields(
        {
            "name": TEXT,
            "version": TEXT,
            "last_inference": COUNT,
            "inference_count": COUNT,
            "execution_count": COUNT,
            "inference_stats": table(_DURATION),
            "batch_stats": array({"type": "object"}),
        }
    ),
    "Statistics": fields({"model_stats": array(ref("ModelStatistics"))}),
    "ModelConfig": fields(
        {
            "name": TEXT,
            "platform": TEXT,
            "backend": TEXT,
            "max_batch_size": COUNT,
            "input": array({"type": "object"}),
            "output": array({"type": "object"}),
            "version_policy": {"type": "object"},
            "instance_group": array({"type": "object"}),
        }
    ),
    "RepositoryIndexRequest": fields({}, {"ready": FLAG}),
    "RepositoryIndex": array(fields({"name": TEXT}, {"version": TEXT, "state": _STATES, "reason": TEXT})),
    "RepositoryLoadRequest": fields(
        {},
        {
            "parameters": {
                "type": "object",
                "properties": {"config": {**TEXT, "description": "ModelConfig as JSON."}},
                "patternProperties": {"^file:.+": {**TEXT, "contentEncoding": "base64"}},
            }
        },
    ),
    "RepositoryUnloadRequest": fields({}, {"parameters": fields({}, {"unload_dependents": FLAG})}),
    "TraceSettings": fields(
        {
            "trace_level": array(TEXT),
            "trace_rate": TEXT,
            "trace_count": TEXT,
            "log_frequency": TEXT,
            "trace_file": TEXT,
            "trace_mode": TEXT,
        }
    ),
    "TraceChanges": fields(
        {},
        {
            "trace_level": {"anyOf": [array(one_of_values("OFF", "TIMESTAMPS", "TENSORS")), {"type": "null"}]},
            "trace_rate": _OPTIONAL_TEXT,
            "trace_count": _OPTIONAL_TEXT,
            "log_frequency": _OPTIONAL_TEXT,
        },
    ),
    "LogSettings": fields(
        {"log_file": TEXT, "log_info": FLAG, "log_warning": FLAG, "log_error": FLAG, "log_verbose_level": COUNT,
         "log_format": one_of_values("default", "ISO8601")}
    ),
    "LogChanges": fields(
        {}, {"log_info": FLAG, "log_warning": FLAG, "log_error": FLAG, "log_verbose_level": COUNT,
             "log_format": one_of_values("default", "ISO8601")}
    ),
    "SharedMemoryStatus": array(fields({"name": TEXT, "key": TEXT, "offset": COUNT, "byte_size": COUNT})),
    "SharedMemoryRegistration": fields({"key": TEXT, "byte_size": COUNT}, {"offset": COUNT}),
    "Nothing": {"type": "object"},
    # TensorFlow Serving, KServe V1
    "Alive": fields({"status": one_of_values("alive")}),
    "V1Models": fields({"object": one_of_values("list"), "data": array(ref("V1Model")), "models": array(TEXT)}),
    "V1Model": fields(
        {"id": TEXT, "object": one_of_values("model"), "created": COUNT, "owned_by": TEXT, "name": TEXT}
    ),
    "V1ModelStatus": {
        "allOf": [
            ref("V1Model"),
            fields({"ready": FLAG, **both("model_version_status", array(ref("V1VersionStatus")))}),
        ]
    },
    "V1VersionStatus": fields(
        {
            "version": TEXT,
            "state": one_of_values("START", "LOADING", "AVAILABLE", "UNLOADING", "END"),
            "status": fields({**both("error_code", TEXT), **both("error_message", TEXT)}),
        }
    ),
    "V1Signature": fields({"inputs": table(_TENSOR_INFO), "outputs": table(_TENSOR_INFO), **both("method_name", TEXT)}),
    "V1Metadata": fields(
        {
            **both("model_spec", fields({"name": TEXT, "version": TEXT, **both("signature_name", TEXT)})),
            "metadata": fields(
                both("signature_def", fields(both("signature_def", fields({"serving_default": ref("V1Signature")}))))
            ),
        }
    ),
    "PredictRequest": {
        **fields({}, {"signature_name": one_of_values("", "serving_default"), "instances": array(ANYTHING),
                      "inputs": ANYTHING}),
        "oneOf": [{"required": ["instances"]}, {"required": ["inputs"]}],
    },
    "PredictResponse": fields({}, {"predictions": array(ANYTHING), "outputs": ANYTHING}),
    "ExamplesRequest": fields(
        {"examples": array({"type": "object"})},
        {"signature_name": one_of_values("", "serving_default"), "context": {"type": "object"}},
    ),
    "ClassifyResponse": fields(
        {"result": array(array({"type": "array", "prefixItems": [TEXT, {"type": "number"}], "minItems": 2}))}
    ),
    "RegressResponse": fields({"result": array({"type": "number"})}),
    # SageMaker
    "Ping": fields({"ready": FLAG}),
    "CloudModel": fields({"modelName": TEXT, "modelUrl": TEXT}),
    "CloudModels": fields({"models": array(ref("CloudModel"))}),
    "CloudLoadRequest": fields({"model_name": TEXT}, {"url": TEXT}),
}  # fmt: skip
"""By name."""

EXAMPLES: Final[dict[str, Any]] = {
    "Feedback": {"id": "42", "label": "cat"},
    "FeedbackBatch": {"feedback": [{"id": "42", "label": 3}, {"id": "43", "label": ["cat", "dog"]}]},
    "RepositoryIndexRequest": {"ready": True},
    "RepositoryLoadRequest": {"parameters": {"config": "{}"}},
    "RepositoryUnloadRequest": {"parameters": {"unload_dependents": False}},
    "TraceChanges": {"trace_level": ["TIMESTAMPS"], "trace_rate": "100", "log_frequency": None},
    "LogChanges": {"log_info": True, "log_verbose_level": 0},
    "SharedMemoryRegistration": {"key": "/frames", "offset": 0, "byte_size": 4096},
    "ExamplesRequest": {"examples": [{"x": [1.0, 2.0]}], "context": {}},
    "CloudLoadRequest": {"model_name": "m", "url": "/opt/ml/models/m/model"},
}
"""Of what is sent, by name of the schema; inference has examples of what is served."""
