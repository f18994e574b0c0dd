"""The gRPC messages of the Open Inference Protocol v2 and of Triton's extensions, as field tables.

One line a message: `Name: field type number, ...`. A name with a dot is nested in the message before the dot. `[T]` is
repeated, `{K: V}` a map, `field@group` a member of the oneof `group`. A line of an enum is `Name: VALUE number, ...`.

Numbers and names are the wire contract of the Open Inference Protocol (section "GRPC") and of `grpc_service.proto` and
`health.proto` of the Triton Inference Server; `edgeserve.client.oip_model_config` has `model_config.proto`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from edgeserve.contracts.tensors import Datatype

INFERENCE_PACKAGE: Final = "inference"
HEALTH_PACKAGE: Final = "grpc.health.v1"

INFERENCE: Final = """
ServerLiveRequest:
ServerLiveResponse: live bool 1
ServerReadyRequest:
ServerReadyResponse: ready bool 1
ModelReadyRequest: name string 1, version string 2
ModelReadyResponse: ready bool 1
ServerMetadataRequest:
ServerMetadataResponse: name string 1, version string 2, extensions [string] 3
ModelMetadataRequest: name string 1, version string 2
ModelMetadataResponse: name string 1, versions [string] 2, platform string 3, inputs [TensorMetadata] 4, outputs [TensorMetadata] 5
ModelMetadataResponse.TensorMetadata: name string 1, datatype string 2, shape [int64] 3

InferParameter: bool_param@parameter_choice bool 1, int64_param@parameter_choice int64 2, string_param@parameter_choice string 3, double_param@parameter_choice double 4, uint64_param@parameter_choice uint64 5
InferTensorContents: bool_contents [bool] 1, int_contents [int32] 2, int64_contents [int64] 3, uint_contents [uint32] 4, uint64_contents [uint64] 5, fp32_contents [float] 6, fp64_contents [double] 7, bytes_contents [bytes] 8
ModelInferRequest: model_name string 1, model_version string 2, id string 3, parameters {string: InferParameter} 4, inputs [InferInputTensor] 5, outputs [InferRequestedOutputTensor] 6, raw_input_contents [bytes] 7
ModelInferRequest.InferInputTensor: name string 1, datatype string 2, shape [int64] 3, parameters {string: InferParameter} 4, contents InferTensorContents 5
ModelInferRequest.InferRequestedOutputTensor: name string 1, parameters {string: InferParameter} 2
ModelInferResponse: model_name string 1, model_version string 2, id string 3, parameters {string: InferParameter} 4, outputs [InferOutputTensor] 5, raw_output_contents [bytes] 6
ModelInferResponse.InferOutputTensor: name string 1, datatype string 2, shape [int64] 3, parameters {string: InferParameter} 4, contents InferTensorContents 5
ModelStreamInferResponse: error_message string 1, infer_response ModelInferResponse 2

ModelConfigRequest: name string 1, version string 2
ModelConfigResponse: config ModelConfig 1

ModelStatisticsRequest: name string 1, version string 2
ModelStatisticsResponse: model_stats [ModelStatistics] 1
StatisticDuration: count uint64 1, ns uint64 2
InferStatistics: success StatisticDuration 1, fail StatisticDuration 2, queue StatisticDuration 3, compute_input StatisticDuration 4, compute_infer StatisticDuration 5, compute_output StatisticDuration 6, cache_hit StatisticDuration 7, cache_miss StatisticDuration 8
InferResponseStatistics: compute_infer StatisticDuration 1, compute_output StatisticDuration 2, success StatisticDuration 3, fail StatisticDuration 4, empty_response StatisticDuration 5, cancel StatisticDuration 6
InferBatchStatistics: batch_size uint64 1, compute_input StatisticDuration 2, compute_infer StatisticDuration 3, compute_output StatisticDuration 4
MemoryUsage: type string 1, id int64 2, byte_size uint64 3
ModelStatistics: name string 1, version string 2, last_inference uint64 3, inference_count uint64 4, execution_count uint64 5, inference_stats InferStatistics 6, batch_stats [InferBatchStatistics] 7, memory_usage [MemoryUsage] 8, response_stats {string: InferResponseStatistics} 9

ModelRepositoryParameter: bool_param@parameter_choice bool 1, int64_param@parameter_choice int64 2, string_param@parameter_choice string 3, bytes_param@parameter_choice bytes 4
RepositoryIndexRequest: repository_name string 1, ready bool 2
RepositoryIndexResponse: models [ModelIndex] 1
RepositoryIndexResponse.ModelIndex: name string 1, version string 2, state string 3, reason string 4
RepositoryModelLoadRequest: repository_name string 1, model_name string 2, parameters {string: ModelRepositoryParameter} 3
RepositoryModelLoadResponse:
RepositoryModelUnloadRequest: repository_name string 1, model_name string 2, parameters {string: ModelRepositoryParameter} 3
RepositoryModelUnloadResponse:

SystemSharedMemoryStatusRequest: name string 1
SystemSharedMemoryStatusResponse: regions {string: RegionStatus} 1
SystemSharedMemoryStatusResponse.RegionStatus: name string 1, key string 2, offset uint64 3, byte_size uint64 4
SystemSharedMemoryRegisterRequest: name string 1, key string 2, offset uint64 3, byte_size uint64 4
SystemSharedMemoryRegisterResponse:
SystemSharedMemoryUnregisterRequest: name string 1
SystemSharedMemoryUnregisterResponse:
CudaSharedMemoryStatusRequest: name string 1
CudaSharedMemoryStatusResponse: regions {string: RegionStatus} 1
CudaSharedMemoryStatusResponse.RegionStatus: name string 1, device_id uint64 2, byte_size uint64 3
CudaSharedMemoryRegisterRequest: name string 1, raw_handle bytes 2, device_id int64 3, byte_size uint64 4
CudaSharedMemoryRegisterResponse:
CudaSharedMemoryUnregisterRequest: name string 1
CudaSharedMemoryUnregisterResponse:

TraceSettingRequest: settings {string: SettingValue} 1, model_name string 2
TraceSettingRequest.SettingValue: value [string] 1
TraceSettingResponse: settings {string: SettingValue} 1
TraceSettingResponse.SettingValue: value [string] 1
LogSettingsRequest: settings {string: SettingValue} 1
LogSettingsRequest.SettingValue: bool_param@parameter_choice bool 1, uint32_param@parameter_choice uint32 2, string_param@parameter_choice string 3
LogSettingsResponse: settings {string: SettingValue} 1
LogSettingsResponse.SettingValue: bool_param@parameter_choice bool 1, uint32_param@parameter_choice uint32 2, string_param@parameter_choice string 3
"""  # noqa: E501 - a message is a line

HEALTH: Final = """
HealthCheckRequest: service string 1
HealthCheckResponse: status ServingStatus 1
"""

HEALTH_ENUMS: Final = """
HealthCheckResponse.ServingStatus: UNKNOWN 0, SERVING 1, NOT_SERVING 2, SERVICE_UNKNOWN 3
"""

INFERENCE_METHODS: Final = (
    "ServerLive",
    "ServerReady",
    "ModelReady",
    "ServerMetadata",
    "ModelMetadata",
    "ModelInfer",
    "ModelConfig",
    "ModelStatistics",
    "RepositoryIndex",
    "RepositoryModelLoad",
    "RepositoryModelUnload",
    "SystemSharedMemoryStatus",
    "SystemSharedMemoryRegister",
    "SystemSharedMemoryUnregister",
    "CudaSharedMemoryStatus",
    "CudaSharedMemoryRegister",
    "CudaSharedMemoryUnregister",
    "TraceSetting",
    "LogSettings",
)
"""Unary methods of `GRPCInferenceService`; each takes `<Name>Request` and answers `<Name>Response`."""

CONTENTS_FIELDS: Final[Mapping[Datatype, str]] = {
    Datatype.BOOL: "bool_contents",
    Datatype.INT8: "int_contents",
    Datatype.INT16: "int_contents",
    Datatype.INT32: "int_contents",
    Datatype.INT64: "int64_contents",
    Datatype.UINT8: "uint_contents",
    Datatype.UINT16: "uint_contents",
    Datatype.UINT32: "uint_contents",
    Datatype.UINT64: "uint64_contents",
    Datatype.FP32: "fp32_contents",
    Datatype.FP64: "fp64_contents",
    Datatype.BYTES: "bytes_contents",
}
"""Field of `InferTensorContents` for each datatype that has one; FP16 and BF16 have none."""
