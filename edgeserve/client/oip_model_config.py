"""Triton's model configuration (`model_config.proto`) as field tables, noted as in `edgeserve.client.oip_schema`.

The same messages are in gRPC's `ModelConfigResponse`, `GET /v2/models/M/config` (as JSON) and a `config.pbtxt`.
"""

from __future__ import annotations

from typing import Final

MODEL_CONFIG: Final = """
ModelRateLimiter: resources [Resource] 1, priority uint32 2
ModelRateLimiter.Resource: name string 1, global bool 2, count uint32 3
ModelInstanceGroup: name string 1, kind Kind 4, count int32 2, rate_limiter ModelRateLimiter 6, gpus [int32] 3, secondary_devices [SecondaryDevice] 8, profile [string] 5, passive bool 7, host_policy string 9
ModelInstanceGroup.SecondaryDevice: kind SecondaryDeviceKind 1, device_id int64 2
ModelTensorReshape: shape [int64] 1
ModelInput: name string 1, data_type DataType 2, format Format 3, dims [int64] 4, reshape ModelTensorReshape 5, is_shape_tensor bool 6, allow_ragged_batch bool 7, optional bool 8, is_non_linear_format_io bool 9
ModelOutput: name string 1, data_type DataType 2, dims [int64] 3, reshape ModelTensorReshape 5, label_filename string 4, is_shape_tensor bool 6, is_non_linear_format_io bool 7
BatchInput: kind Kind 1, target_name [string] 2, data_type DataType 3, source_input [string] 4
BatchOutput: target_name [string] 1, kind Kind 2, source_input [string] 3
ModelVersionPolicy: latest@policy_choice Latest 1, all@policy_choice All 2, specific@policy_choice Specific 3
ModelVersionPolicy.Latest: num_versions uint32 1
ModelVersionPolicy.All:
ModelVersionPolicy.Specific: versions [int64] 1

ModelOptimizationPolicy: graph Graph 1, priority ModelPriority 2, cuda Cuda 3, execution_accelerators ExecutionAccelerators 4, input_pinned_memory PinnedMemoryBuffer 5, output_pinned_memory PinnedMemoryBuffer 6, gather_kernel_buffer_threshold uint32 7, eager_batching bool 8
ModelOptimizationPolicy.Graph: level int32 1
ModelOptimizationPolicy.Cuda: graphs bool 1, busy_wait_events bool 2, graph_spec [GraphSpec] 3, output_copy_stream bool 4
ModelOptimizationPolicy.Cuda.GraphSpec: batch_size int32 1, input {string: Shape} 2, graph_lower_bound LowerBound 3
ModelOptimizationPolicy.Cuda.GraphSpec.Shape: dim [int64] 1
ModelOptimizationPolicy.Cuda.GraphSpec.LowerBound: batch_size int32 1, input {string: Shape} 2
ModelOptimizationPolicy.ExecutionAccelerators: gpu_execution_accelerator [Accelerator] 1, cpu_execution_accelerator [Accelerator] 2
ModelOptimizationPolicy.ExecutionAccelerators.Accelerator: name string 1, parameters {string: string} 2
ModelOptimizationPolicy.PinnedMemoryBuffer: enable bool 1

ModelQueuePolicy: timeout_action TimeoutAction 1, default_timeout_microseconds uint64 2, allow_timeout_override bool 3, max_queue_size uint32 4
ModelDynamicBatching: preferred_batch_size [int32] 1, max_queue_delay_microseconds uint64 2, preserve_ordering bool 3, priority_levels uint64 4, default_priority_level uint64 5, default_queue_policy ModelQueuePolicy 6, priority_queue_policy {uint64: ModelQueuePolicy} 7

ModelSequenceBatching: direct@strategy_choice StrategyDirect 3, oldest@strategy_choice StrategyOldest 4, max_sequence_idle_microseconds uint64 1, control_input [ControlInput] 2, state [State] 5, iterative_sequence bool 6
ModelSequenceBatching.Control: kind Kind 1, int32_false_true [int32] 2, fp32_false_true [float] 3, bool_false_true [bool] 5, data_type DataType 4
ModelSequenceBatching.ControlInput: name string 1, control [Control] 2
ModelSequenceBatching.InitialState: data_type DataType 1, dims [int64] 2, zero_data@state_data bool 3, data_file@state_data string 4, name string 5
ModelSequenceBatching.State: input_name string 1, output_name string 2, data_type DataType 3, dims [int64] 4, initial_state [InitialState] 5, use_same_buffer_for_input_output bool 6, use_growable_memory bool 7
ModelSequenceBatching.StrategyDirect: max_queue_delay_microseconds uint64 1, minimum_slot_utilization float 2
ModelSequenceBatching.StrategyOldest: max_candidate_sequences int32 1, preferred_batch_size [int32] 2, max_queue_delay_microseconds uint64 3, preserve_ordering bool 4

ModelEnsembling: step [Step] 1, max_inflight_requests uint32 2
ModelEnsembling.Step: model_name string 1, model_version int64 2, input_map {string: string} 3, output_map {string: string} 4, model_namespace string 5
ModelParameter: string_value string 1
ModelWarmup: name string 1, batch_size uint32 2, inputs {string: Input} 3, count uint32 4
ModelWarmup.Input: data_type DataType 1, dims [int64] 2, zero_data@input_data_type bool 3, random_data@input_data_type bool 4, input_data_file@input_data_type string 5
ModelOperations: op_library_filename [string] 1
ModelTransactionPolicy: decoupled bool 1
ModelRepositoryAgents: agents [Agent] 1
ModelRepositoryAgents.Agent: name string 1, parameters {string: string} 2
ModelResponseCache: enable bool 1
ModelMetrics: metric_control [MetricControl] 1
ModelMetrics.MetricControl: metric_identifier MetricIdentifier 1, histogram_options@metric_options HistogramOptions 2
ModelMetrics.MetricControl.MetricIdentifier: family string 1
ModelMetrics.MetricControl.HistogramOptions: buckets [double] 1

ModelConfig: name string 1, platform string 2, backend string 17, runtime string 25, version_policy ModelVersionPolicy 3, max_batch_size int32 4, input [ModelInput] 5, output [ModelOutput] 6, batch_input [BatchInput] 20, batch_output [BatchOutput] 21, optimization ModelOptimizationPolicy 12, dynamic_batching@scheduling_choice ModelDynamicBatching 11, sequence_batching@scheduling_choice ModelSequenceBatching 13, ensemble_scheduling@scheduling_choice ModelEnsembling 15, instance_group [ModelInstanceGroup] 7, default_model_filename string 8, cc_model_filenames {string: string} 9, metric_tags {string: string} 10, parameters {string: ModelParameter} 14, model_warmup [ModelWarmup] 16, model_operations ModelOperations 18, model_transaction_policy ModelTransactionPolicy 19, model_repository_agents ModelRepositoryAgents 23, response_cache ModelResponseCache 24, model_metrics ModelMetrics 26
"""  # noqa: E501 - a message is a line

MODEL_CONFIG_ENUMS: Final = """
DataType: TYPE_INVALID 0, TYPE_BOOL 1, TYPE_UINT8 2, TYPE_UINT16 3, TYPE_UINT32 4, TYPE_UINT64 5, TYPE_INT8 6, TYPE_INT16 7, TYPE_INT32 8, TYPE_INT64 9, TYPE_FP16 10, TYPE_FP32 11, TYPE_FP64 12, TYPE_STRING 13, TYPE_BF16 14
ModelInstanceGroup.Kind: KIND_AUTO 0, KIND_GPU 1, KIND_CPU 2, KIND_MODEL 3
ModelInstanceGroup.SecondaryDevice.SecondaryDeviceKind: KIND_NVDLA 0
ModelInput.Format: FORMAT_NONE 0, FORMAT_NHWC 1, FORMAT_NCHW 2
BatchInput.Kind: BATCH_ELEMENT_COUNT 0, BATCH_ACCUMULATED_ELEMENT_COUNT 1, BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO 2, BATCH_MAX_ELEMENT_COUNT_AS_SHAPE 3, BATCH_ITEM_SHAPE 4, BATCH_ITEM_SHAPE_FLATTEN 5
BatchOutput.Kind: BATCH_SCATTER_WITH_INPUT_SHAPE 0
ModelOptimizationPolicy.ModelPriority: PRIORITY_DEFAULT 0, PRIORITY_MAX 1, PRIORITY_MIN 2
ModelQueuePolicy.TimeoutAction: REJECT 0, DELAY 1
ModelSequenceBatching.Control.Kind: CONTROL_SEQUENCE_START 0, CONTROL_SEQUENCE_READY 1, CONTROL_SEQUENCE_END 2, CONTROL_SEQUENCE_CORRID 3
"""  # noqa: E501 - an enum is a line
