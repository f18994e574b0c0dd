import subprocess
import sys

import pytest

from edgeserve.client.oip_proto import (
    INFERENCE_SERVICE,
    descriptor_pool,
    file_descriptors,
    messages,
    parse,
    service_methods,
)

pytest.importorskip("google.protobuf")


def test_messages_survive_the_wire_with_maps_oneofs_and_nested_messages():
    known = messages()
    request = known.ModelInferRequest(model_name="m", id="7", raw_input_contents=[b"\x00\x00\x80\x3f"])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 1]).parameters["binary"].bool_param = True
    request.parameters["sequence_id"].uint64_param = 2**63
    again = known.ModelInferRequest.FromString(request.SerializeToString())
    assert again == request
    assert again.parameters["sequence_id"].WhichOneof("parameter_choice") == "uint64_param"
    assert list(again.inputs[0].shape) == [1, 1]


def test_every_field_number_is_that_of_the_reference_client():
    service = pytest.importorskip("tritonclient.grpc.service_pb2")
    config = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    ours = {proto.name: proto for proto in file_descriptors()}
    for name, reference in (("grpc_service.proto", service), ("model_config.proto", config)):
        theirs = type(ours[name])()
        reference.DESCRIPTOR.CopyToProto(theirs)
        known = _fields(ours[name])
        for message, fields in _fields(theirs).items():
            # An older reference client may lack the newest fields; what it has must be ours to the number.
            assert fields.items() <= known[message].items(), message


def _fields(file):
    found = {enum.name: {value.name: value.number for value in enum.value} for enum in file.enum_type}
    todo = [(message.name, message) for message in file.message_type]
    while todo:
        path, message = todo.pop()
        oneofs = [oneof.name for oneof in message.oneof_decl]
        found[path] = {
            field.name: (
                field.number,
                field.type,
                field.label,
                field.type_name,
                oneofs[field.oneof_index] if field.HasField("oneof_index") else "",
            )
            for field in message.field
        }
        found |= {f"{path}.{enum.name}": {v.name: v.number for v in enum.value} for enum in message.enum_type}
        todo += [(f"{path}.{nested.name}", nested) for nested in message.nested_type]
    return found


def test_bytes_are_those_of_the_reference_client():
    service = pytest.importorskip("tritonclient.grpc.service_pb2")
    built = []
    for known in (messages(), service):
        request = known.ModelInferRequest(model_name="m", model_version="1", id="7")
        request.inputs.add(name="x", datatype="INT32", shape=[2]).contents.int_contents.extend([1, -2])
        request.parameters["timeout"].int64_param = 5
        built.append(request.SerializeToString(deterministic=True))
    assert built[0] == built[1]


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_the_reference_client_can_be_imported_in_the_same_process(first):
    pytest.importorskip("tritonclient.grpc.service_pb2")
    ours = "from edgeserve.client.oip_proto import messages; messages()"
    theirs = "import tritonclient.grpc.service_pb2"
    script = "\n".join([ours, theirs] if first == "ours" else [theirs, ours])
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_methods_name_their_messages_and_which_way_they_stream():
    methods = service_methods()
    stream = methods[f"/{INFERENCE_SERVICE}/ModelStreamInfer"]
    assert (stream.request_stream, stream.response_stream) == (True, True)
    assert stream.request is messages().ModelInferRequest
    assert methods["/grpc.health.v1.Health/Watch"].response_stream
    unary = methods[f"/{INFERENCE_SERVICE}/ModelInfer"]
    assert (unary.request_stream, unary.response_stream) == (False, False)
    described = descriptor_pool().FindServiceByName(INFERENCE_SERVICE).methods
    assert {f"/{INFERENCE_SERVICE}/{method.name}" for method in described} == {
        path for path in methods if path.startswith(f"/{INFERENCE_SERVICE}/")
    }


def test_enums_have_names():
    assert messages().DataType.Name(8) == "TYPE_INT32"
    assert messages().HealthCheckResponse.ServingStatus.Value("NOT_SERVING") == 2


@pytest.mark.parametrize("line", ["M: a", "M: a string", "M: a string x", "M: a string 1; b string 2", "M: a [b 1"])
def test_a_line_that_is_not_in_the_notation_is_refused(line):
    with pytest.raises(ValueError, match="M: cannot read"):
        parse(line)
