from __future__ import annotations

import pytest

pytest.importorskip("google.protobuf")

from edgeserve import __version__
from edgeserve.client.oip_proto import service_methods
from edgeserve.contracts.model_config import DynamicBatching, ModelConfig, QueuePolicy
from edgeserve_agent.serving.grpc.service import UNARY, GrpcService
from edgeserve_agent.serving.rpc import StatusCode

HEALTH = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"


def test_every_method_of_the_protocol_is_there(host, api):
    for path in service_methods():
        call = host.answer(path, b"") if path != WATCH else None
        assert call is None or call.status[0] is not StatusCode.UNIMPLEMENTED or "Cuda" in path, path
    assert {path for path, known in service_methods().items() if not known.response_stream} == UNARY


def test_an_unknown_method_is_unimplemented(host, api):
    call = host.answer("/inference.GRPCInferenceService/ModelDream", b"")
    assert call.status[0] is StatusCode.UNIMPLEMENTED
    assert "ModelDream" in call.status[1]


def test_what_is_no_message_of_the_method_is_refused(host):
    call = host.answer("/inference.GRPCInferenceService/ModelReady", b"\x0a\x05m")
    assert call.status[0] is StatusCode.INVALID_ARGUMENT
    assert "not a ModelReadyRequest" in call.status[1]


def test_health_and_metadata(host):
    assert host.ask("ServerLive").live
    assert host.ask("ServerReady").ready
    assert host.ask("ModelReady", name="m").ready
    assert host.ask("ModelReady", name="m", version="1").ready
    for name, version in (("m", "9"), ("nobody", "")):
        assert not host.ask("ModelReady", name=name, version=version).ready
    server = host.ask("ServerMetadata")
    assert (server.name, server.version, list(server.extensions)) == ("edgeserve", __version__, ["classification"])
    model = host.ask("ModelMetadata", name="m")
    assert (model.name, list(model.versions), model.platform) == ("m", ["1"], "simulator")
    assert (model.inputs[0].name, model.inputs[0].datatype, list(model.inputs[0].shape)) == ("x", "FP32", [-1, 4])
    assert host.ask("ModelMetadata", name="nobody")[0] is StatusCode.NOT_FOUND


def test_a_server_with_a_model_that_is_not_there_yet_is_not_ready(host):
    host.call(host.plane.expect, "late")
    try:
        assert not host.ask("ServerReady").ready
        assert host.ask(HEALTH).status == 2
        assert host.ask(HEALTH, service="late").status == 2
        assert host.ask("ServerLive").live
    finally:
        host.call(host.plane.forget, "late")


def test_the_health_service_knows_the_server_and_its_models(host):
    for service in ("", "inference.GRPCInferenceService", "m"):
        assert host.ask(HEALTH, service=service).status == 1
    assert host.ask(HEALTH, service="nobody")[0] is StatusCode.NOT_FOUND


def test_who_watches_health_is_told_at_once_and_of_changes(host, api, tools, monkeypatch):
    monkeypatch.setattr("edgeserve_agent.serving.grpc.health.HEALTH_WATCH_S", 0.005)
    watched = api.Call(WATCH)

    def begin():
        receiver = host.service.begin(watched)
        receiver(service_methods()[WATCH].request(service="soon").SerializeToString())
        receiver(None)

    host.call(begin)
    statuses = lambda: [service_methods()[WATCH].response.FromString(sent).status for sent in watched.sent]  # noqa: E731
    assert statuses() == [3]
    host.serve("soon")
    # Between being loaded and answering, it may be seen as not serving.
    tools.until(lambda: statuses() in ([3, 1], [3, 2, 1]), "the watcher was told")
    host.call(watched.cancel)
    host.call(host.plane.unload, "soon", "sha256:soon-1")
    assert statuses()[-1] == 1


def test_draining_ends_what_would_not_end_by_itself(host, api):
    async def drained():
        service = GrpcService(host.plane)
        stream, watch, late = api.Call(api.STREAM), api.Call(WATCH), api.Call(api.STREAM)
        service.begin(stream)
        receiver = service.begin(watch)
        receiver(b"")
        receiver(None)
        service.drain()
        service.begin(late)
        ready = api.Call("/inference.GRPCInferenceService/ServerReady")
        receiver = service.begin(ready)
        receiver(b"")
        receiver(None)
        return stream, watch, late, ready

    stream, watch, late, ready = host.run(drained())
    for call in (stream, watch, late):
        assert call.status == (StatusCode.UNAVAILABLE, "the server is stopping")
    assert [sent[-1] for sent in watch.sent] == [1, 2]
    assert ready.sent == [b""]  # not ready, and still answered


def test_the_configuration_of_a_model(host):
    config = ModelConfig(
        max_batch_size=8,
        dynamic_batching=DynamicBatching(
            preferred_batch_size=(4, 8),
            priority_levels=2,
            priority_queue_policy={1: QueuePolicy(max_queue_size=3)},
        ),
    )
    host.serve("configured", config=config)
    found = host.ask("ModelConfig", name="configured").config
    assert (found.name, found.max_batch_size, found.backend) == ("configured", 8, "simulator")
    assert (found.input[0].name, list(found.input[0].dims)) == ("x", [4])
    assert found.input[0].data_type == 11
    assert list(found.dynamic_batching.preferred_batch_size) == [4, 8]
    assert found.dynamic_batching.priority_queue_policy[1].max_queue_size == 3
    assert found.version_policy.latest.num_versions == 1
    assert host.ask("ModelConfig", name="nobody")[0] is StatusCode.NOT_FOUND


def test_statistics_grow_with_each_answer(host, api):
    host.serve("counted")
    before = host.ask("ModelStatistics", name="counted", version="1").model_stats[0]
    assert before.inference_stats.queue.count == 0
    host.infer(api.request("counted", [1, 2, 3, 4], [1, 2, 3, 4]))
    host.infer(api.request("counted"))
    (after,) = host.ask("ModelStatistics", name="counted").model_stats
    assert (after.inference_count, after.execution_count) == (3, 2)
    assert (after.inference_stats.success.count, after.inference_stats.queue.count) == (2, 2)
    assert [(batch.batch_size, batch.compute_infer.count) for batch in after.batch_stats] == [(1, 1), (2, 1)]
    assert after.last_inference > 1.6e12
    assert "m" in {one.name for one in host.ask("ModelStatistics").model_stats}
    assert host.ask("ModelStatistics", name="nobody")[0] is StatusCode.NOT_FOUND


def test_the_repository_is_listed_loaded_and_unloaded(host):
    found = host.ask("RepositoryIndex").models
    assert [(one.name, one.state, one.reason) for one in found] == [
        ("m", "READY", ""),
        ("n", "UNAVAILABLE", "it is broken"),
    ]
    assert [one.name for one in host.ask("RepositoryIndex", ready=True).models] == ["m"]
    load = {"config": {"string_param": '{"max_batch_size": "4"}'}, "file:1/model.onnx": {"bytes_param": b"\x08\x01"}}
    assert host.ask("RepositoryModelLoad", model_name="m", parameters=load).ByteSize() == 0
    name, config, files = host.repository.loads[-1]
    assert (name, config.max_batch_size, files) == ("m", 4, {"1/model.onnx": b"\x08\x01"})
    assert host.ask("RepositoryModelLoad", model_name="m").ByteSize() == 0
    assert host.repository.loads[-1] == ("m", None, {})
    unload = {"unload_dependents": {"bool_param": True}}
    assert host.ask("RepositoryModelUnload", model_name="m", parameters=unload).ByteSize() == 0
    assert host.repository.unloads[-1] == "m"


@pytest.mark.parametrize(
    ("method", "fields", "code"),
    [
        ("RepositoryModelLoad", {"model_name": "nobody"}, StatusCode.NOT_FOUND),
        ("RepositoryModelLoad", {"parameters": {"confg": {"string_param": ""}}}, StatusCode.INVALID_ARGUMENT),
        ("RepositoryModelLoad", {"parameters": {"config": {"string_param": "{"}}}, StatusCode.INVALID_ARGUMENT),
        ("RepositoryModelLoad", {"parameters": {"file:1/m": {"bytes_param": b""}}}, StatusCode.INVALID_ARGUMENT),
        ("RepositoryModelLoad", {"repository_name": "other"}, StatusCode.UNIMPLEMENTED),
        ("RepositoryModelUnload", {"parameters": {"x": {"bool_param": True}}}, StatusCode.INVALID_ARGUMENT),
        ("RepositoryIndex", {"repository_name": "other"}, StatusCode.UNIMPLEMENTED),
        ("CudaSharedMemoryRegister", {"name": "r"}, StatusCode.UNIMPLEMENTED),
        ("TraceSetting", {"settings": {"trace_rate": {"value": ["x"]}}}, StatusCode.INVALID_ARGUMENT),
        ("TraceSetting", {"settings": {"trace_file": {"value": ["x"]}}}, StatusCode.UNIMPLEMENTED),
        ("TraceSetting", {"model_name": "nobody"}, StatusCode.NOT_FOUND),
        ("LogSettings", {"settings": {"log_info": {"string_param": "x"}}}, StatusCode.INVALID_ARGUMENT),
    ],
)
def test_requests_that_cannot_be_met_say_why(host, method, fields, code):
    found, text = host.ask(method, **fields)
    assert found is code, text
    assert text


def test_without_repository_or_shared_memory_what_needs_them_says_so(host, api):
    async def asked():
        service = GrpcService(host.plane)
        statuses = {}
        for method in service_methods():
            call = api.Call(method)
            if "Repository" in method or "SharedMemory" in method:
                receiver = service.begin(call)
                receiver(b"")
                receiver(None)
                statuses[method.rpartition("/")[2]] = call.status
        return statuses

    statuses = host.run(asked())
    assert {name for name, status in statuses.items() if status == (StatusCode.OK, "")} == {
        "RepositoryIndex",
        "SystemSharedMemoryStatus",
        "SystemSharedMemoryUnregister",
        "CudaSharedMemoryStatus",
        "CudaSharedMemoryUnregister",
    }
    assert statuses["SystemSharedMemoryRegister"][0] is StatusCode.UNIMPLEMENTED
    assert "--allow-shm" in statuses["SystemSharedMemoryRegister"][1]


def test_settings_are_read_changed_and_put_back(host):
    trace = host.ask("TraceSetting", settings={"trace_rate": {"value": ["5"]}}, model_name="m")
    assert list(trace.settings["trace_rate"].value) == ["5"]
    assert list(host.ask("TraceSetting").settings["trace_rate"].value) == ["1000"]
    trace = host.ask("TraceSetting", settings={"trace_rate": {}}, model_name="m")
    assert list(trace.settings["trace_rate"].value) == ["1000"]
    assert list(trace.settings["trace_level"].value) == ["OFF"]
    log = host.ask("LogSettings", settings={"log_verbose_level": {"uint32_param": 1}})
    assert log.settings["log_verbose_level"].uint32_param == 1
    assert host.ask("LogSettings").settings["log_info"].bool_param is True
    assert host.ask("LogSettings").settings["log_format"].string_param == "default"
