"""Protobuf messages and methods of the Open Inference Protocol's gRPC service, built at run time.

The descriptors live in a **private** pool: `tritonclient`, KServe and MLServer register files of the same names in
protobuf's default pool, and a second registration ends the process. protobuf is imported here, and only when messages
are asked for.

Messages that this side does not know (a newer server's fields) are kept as unknown fields, as protobuf does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from types import SimpleNamespace
from typing import Any, Final, TypeAlias

from edgeserve.client.oip_model_config import MODEL_CONFIG, MODEL_CONFIG_ENUMS
from edgeserve.client.oip_schema import (
    HEALTH,
    HEALTH_ENUMS,
    HEALTH_PACKAGE,
    INFERENCE,
    INFERENCE_METHODS,
    INFERENCE_PACKAGE,
)
from edgeserve.contracts.errors import InputError, MissingLibraryError

INFERENCE_SERVICE: Final = f"{INFERENCE_PACKAGE}.GRPCInferenceService"
HEALTH_SERVICE: Final = f"{HEALTH_PACKAGE}.Health"

Declarations: TypeAlias = dict[str, list[tuple[str, str, int]]]
"""Message name, dotted when nested -> (field, type, number) in the order of the schema."""

_FIELD: Final = re.compile(r"\s*(?P<name>[\w@]+)\s+(?P<type>\[\w+\]|\{\w+: \w+\}|\w+)\s+(?P<number>\d+)\s*(?:,|$)")


@dataclass(frozen=True, kw_only=True)
class Method:
    """One method of a service: message classes of both ways, and which way is a stream."""

    request: type[Any]
    response: type[Any]
    request_stream: bool = False
    response_stream: bool = False


@lru_cache(maxsize=1)
def messages() -> SimpleNamespace:
    """Message classes by name: `messages().ModelInferRequest`, nested ones as attributes of their message.

    Top-level enums are there too, as wrappers: `messages().DataType.Name(8) == "TYPE_INT32"`.

    Raises:
        MissingLibraryError: protobuf is not installed.
    """
    factory, wrapper = _protobuf("message_factory"), _protobuf("internal.enum_type_wrapper")
    pool = descriptor_pool()
    found: dict[str, Any] = {}
    for proto in file_descriptors():
        file = pool.FindFileByName(proto.name)
        found |= {name: factory.GetMessageClass(kind) for name, kind in file.message_types_by_name.items()}
        found |= {name: wrapper.EnumTypeWrapper(kind) for name, kind in file.enum_types_by_name.items()}
    return SimpleNamespace(**found)


@lru_cache(maxsize=1)
def service_methods() -> Mapping[str, Method]:
    """Every method by its path on the wire, such as `/inference.GRPCInferenceService/ModelInfer`.

    Raises:
        MissingLibraryError: protobuf is not installed.
    """
    known = messages()
    unary = {
        f"/{INFERENCE_SERVICE}/{name}": Method(
            request=getattr(known, f"{name}Request"), response=getattr(known, f"{name}Response")
        )
        for name in INFERENCE_METHODS
    }
    check = {"request": known.HealthCheckRequest, "response": known.HealthCheckResponse}
    return unary | {
        f"/{INFERENCE_SERVICE}/ModelStreamInfer": Method(
            request=known.ModelInferRequest,
            response=known.ModelStreamInferResponse,
            request_stream=True,
            response_stream=True,
        ),
        f"/{HEALTH_SERVICE}/Check": Method(**check),
        f"/{HEALTH_SERVICE}/Watch": Method(**check, response_stream=True),
    }


def read_message(kind: type[Any], data: bytes | memoryview) -> Any:  # noqa: ANN401 - protobuf has no types
    """Parse the bytes of a message.

    Raises:
        InputError: They are not such a message.
    """
    try:
        return kind.FromString(data)
    except _protobuf("message").DecodeError as error:
        raise InputError(f"the request is not a {kind.DESCRIPTOR.name}: {error}") from error


@lru_cache(maxsize=1)
def descriptor_pool() -> Any:  # noqa: ANN401 - protobuf has no types
    """The private pool that holds all three files.

    Raises:
        MissingLibraryError: protobuf is not installed.
    """
    pool = _protobuf("descriptor_pool").DescriptorPool()
    for proto in file_descriptors():
        pool.AddSerializedFile(proto.SerializeToString())
    return pool


@lru_cache(maxsize=1)
def file_descriptors() -> tuple[Any, ...]:
    """The three `FileDescriptorProto`s, in an order in which each depends only on those before it.

    Raises:
        MissingLibraryError: protobuf is not installed.
    """
    config = _file("model_config.proto", INFERENCE_PACKAGE, MODEL_CONFIG, MODEL_CONFIG_ENUMS)
    inference = _file("grpc_service.proto", INFERENCE_PACKAGE, INFERENCE, "", imported=parse(MODEL_CONFIG))
    inference.dependency.append("model_config.proto")
    service = inference.service.add(name="GRPCInferenceService")
    for name in INFERENCE_METHODS:
        service.method.add(
            name=name,
            input_type=f".{INFERENCE_PACKAGE}.{name}Request",
            output_type=f".{INFERENCE_PACKAGE}.{name}Response",
        )
    service.method.add(
        name="ModelStreamInfer",
        input_type=f".{INFERENCE_PACKAGE}.ModelInferRequest",
        output_type=f".{INFERENCE_PACKAGE}.ModelStreamInferResponse",
        client_streaming=True,
        server_streaming=True,
    )
    health = _file("health.proto", HEALTH_PACKAGE, HEALTH, HEALTH_ENUMS)
    checks = health.service.add(name="Health")
    for name, stream in (("Check", False), ("Watch", True)):
        checks.method.add(
            name=name,
            input_type=f".{HEALTH_PACKAGE}.HealthCheckRequest",
            output_type=f".{HEALTH_PACKAGE}.HealthCheckResponse",
            server_streaming=stream,
        )
    return config, inference, health


def parse(schema: str) -> Declarations:
    """Read the notation of `edgeserve.client.oip_schema`: name -> its fields.

    Raises:
        ValueError: A line is not in the notation.
    """
    found: Declarations = {}
    for line in filter(None, map(str.strip, schema.splitlines())):
        name, _, rest = line.partition(":")
        fields, position = [], 0
        while rest[position:].strip():
            match = _FIELD.match(rest, position)
            if match is None:
                raise ValueError(f"{name}: cannot read {rest[position : position + 40]!r}")
            fields.append((match["name"], match["type"], int(match["number"])))
            position = match.end()
        found[name] = fields
    return found


def _protobuf(module: str) -> Any:  # noqa: ANN401 - protobuf has no types
    try:
        return import_module(f"google.protobuf.{module}")
    except ImportError as error:
        raise MissingLibraryError(
            "the gRPC protocol needs the package protobuf, which is not installed",
            hint="pip install 'edgeserve[grpc]'",
        ) from error


@dataclass(frozen=True, kw_only=True)
class _Scope:
    """Where the types of one file are looked up."""

    proto: Any  # FieldDescriptorProto: its TYPE_* and LABEL_* numbers
    package: str
    messages: frozenset[str]
    enums: frozenset[str]

    def set_type(self, field: Any, kind: str, path: str) -> None:  # noqa: ANN401 - protobuf has no types
        """Scalar, or the message or enum of that name in the innermost scope that has one (protobuf's rule)."""
        scopes = [".".join(path.split(".")[:depth]) for depth in range(path.count(".") + 1, 0, -1)]
        for candidate in (*(f"{scope}.{kind}" for scope in scopes), kind):
            if candidate in self.messages or candidate in self.enums:
                field.type = self.proto.TYPE_ENUM if candidate in self.enums else self.proto.TYPE_MESSAGE
                field.type_name = f".{self.package}.{candidate}"
                return
        field.type = getattr(self.proto, f"TYPE_{kind.upper()}")

    def add_field(self, message: Any, path: str, declared: str, kind: str, number: int) -> None:  # noqa: ANN401
        """Add one declared field to `message`, whose dotted name is `path`."""
        name, _, group = declared.partition("@")
        label = self.proto.LABEL_REPEATED if kind[0] in "[{" else self.proto.LABEL_OPTIONAL
        field = message.field.add(name=name, number=number, label=label)
        if group:
            groups = [oneof.name for oneof in message.oneof_decl]
            if group not in groups:
                message.oneof_decl.add(name=group)
            field.oneof_index = groups.index(group) if group in groups else len(groups)
        if not kind.startswith("{"):
            self.set_type(field, kind.strip("[]"), path)
            return
        entry = message.nested_type.add(name="".join(word.capitalize() for word in name.split("_")) + "Entry")
        entry.options.map_entry = True
        key, value = kind[1:-1].split(": ")
        for position, (part, of) in enumerate((("key", key), ("value", value)), start=1):
            self.set_type(entry.field.add(name=part, number=position, label=self.proto.LABEL_OPTIONAL), of, path)
        field.type, field.type_name = self.proto.TYPE_MESSAGE, f".{self.package}.{path}.{entry.name}"


def _file(name: str, package: str, schema: str, enum_schema: str, imported: Iterable[str] = ()) -> Any:  # noqa: ANN401
    proto2 = _protobuf("descriptor_pb2")
    file = proto2.FileDescriptorProto(name=name, package=package, syntax="proto3")
    declared, enums = parse(schema), _parse_enums(enum_schema)
    by_path: dict[str, Any] = {}
    for path in declared:
        outer, _, own = path.rpartition(".")
        by_path[path] = (by_path[outer].nested_type if outer else file.message_type).add(name=own)
    for path, values in enums.items():
        outer, _, own = path.rpartition(".")
        enum = (by_path[outer] if outer else file).enum_type.add(name=own)
        for value, number in values:
            enum.value.add(name=value, number=number)
    scope = _Scope(
        proto=proto2.FieldDescriptorProto,
        package=package,
        messages=frozenset({*declared, *imported}),
        enums=frozenset(enums),
    )
    for path, fields in declared.items():
        for field, kind, number in fields:
            scope.add_field(by_path[path], path, field, kind, number)
    return file


def _parse_enums(schema: str) -> dict[str, list[tuple[str, int]]]:
    found = {}
    for line in filter(None, map(str.strip, schema.splitlines())):
        name, _, rest = line.partition(":")
        words = [entry.split() for entry in rest.split(",")]
        found[name] = [(value, int(number)) for value, number in words]
    return found
