"""The server under test: what it lists, which of its models suit which check, and inputs for any of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgeserve.client.blobs import Tensor
from edgeserve.conformance.check import Skip, Violation
from edgeserve.conformance.http import Answer, Http, model_path
from edgeserve.conformance.infer import Given, Got, build, outputs_of, same
from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_CONFORMANCE_ELEMENTS
from edgeserve.contracts.tensors import Datatype

if TYPE_CHECKING:
    from edgeserve.conformance.grpc_client import Grpc

NO_JSON: Final = frozenset({Datatype.FP16, Datatype.BF16})
"""Datatypes that the protocol gives no JSON form."""
LOCAL_HOSTS: Final = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One input or output in a model's metadata; -1 is a dimension that varies."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]

    @property
    def dynamic(self) -> int:
        """How many dimensions vary."""
        return self.shape.count(-1)

    def concrete(self, size: int = 1) -> tuple[int, ...]:
        """A shape that fits: every varying dimension is `size`."""
        return tuple(size if extent == -1 else extent for extent in self.shape)


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model as its metadata says."""

    name: str
    versions: tuple[str, ...]
    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]

    @property
    def json_able(self) -> bool:
        """Tell whether every tensor has a JSON form."""
        return not any(spec.datatype in NO_JSON for spec in (*self.inputs, *self.outputs))

    @property
    def elements(self) -> int:
        """Elements of its smallest inputs together."""
        return sum(prod(spec.concrete()) for spec in self.inputs)

    def givens(self, *, binary: bool = False) -> list[Given]:
        """Zeros for every input; FP16 and BF16 are always binary."""
        return [
            Given(
                name=spec.name,
                datatype=spec.datatype,
                array=zeros(spec.datatype, spec.concrete()),
                binary=binary or spec.datatype in NO_JSON,
            )
            for spec in self.inputs
        ]


class Target:
    """What checks are given.

    Args:
        http: To the server.
        grpc: To the same server, or None.
        wanted: Names of models to test; empty = those that the server lists.
        assumed: Extensions to take as listed.
    """

    def __init__(
        self, http: Http, *, grpc: Grpc | None = None, wanted: Sequence[str] = (), assumed: Sequence[str] = ()
    ) -> None:
        self.http = http
        self._grpc = grpc
        self._wanted = tuple(wanted)
        self._assumed = frozenset(assumed)
        self._identities: dict[tuple[Datatype, int], Model | None] = {}

    @property
    def grpc(self) -> Grpc:
        """The gRPC side.

        Raises:
            Skip: No address was given.
        """
        if self._grpc is None:
            raise Skip("no --grpc HOST:PORT was given")
        return self._grpc

    @cached_property
    def metadata(self) -> Mapping[str, Any]:
        """The server's own metadata; empty when it gives none that can be read."""
        try:
            return self.http.get("/v2").ok().document()
        except Violation:
            return {}

    @cached_property
    def extensions(self) -> frozenset[str]:
        """Extensions that the server lists, and those assumed."""
        listed = self.metadata.get("extensions")
        names = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
        return self._assumed.union(names)

    @cached_property
    def models(self) -> tuple[Model, ...]:
        """The models under test, as named or as listed.

        Raises:
            InputError: A model was named that the server does not describe, or none could be found.
        """
        if self._wanted:
            found = {name: self._read(name) for name in self._wanted}
            for name, model in found.items():
                if model is None:
                    answer = self.http.get(model_path(name)).shown
                    raise InputError(
                        f"{self.http.url} does not describe a model {name!r}: GET {model_path(name)} answers {answer}",
                        hint="name one that the server has; a server must answer this with the model's metadata",
                    )
            return tuple(model for model in found.values() if model is not None)
        models = [model for name in self._listed() if (model := self._read(name)) is not None]
        if not models:
            raise InputError(
                f"{self.http.url} lists no model, neither at POST /v2/repository/index nor at GET /v2/models",
                hint="name one with --model NAME; the protocol itself has no way to list models",
            )
        return tuple(models)

    @cached_property
    def model(self) -> Model:
        """The one that serves where any will do, among those whose tensors all have a JSON form.

        Numbers come before texts, two inputs before one, few elements before many.

        Raises:
            Skip: There is none.
        """
        usable = [model for model in self.models if model.json_able and model.elements <= MAX_CONFORMANCE_ELEMENTS]
        if not usable:
            raise Skip("no model whose tensors all have a JSON form (neither FP16 nor BF16), and are small")
        usable.sort(
            key=lambda model: (
                any(spec.datatype is Datatype.BYTES for spec in model.inputs),
                model.elements == 0,
                model.name in {"lifecycle", "zero_size", "nan_inf"},
                len(model.inputs) < 2,  # more can be wrong with two
                model.elements,
            )
        )
        return usable[0]

    def named(self, name: str) -> Model:
        """The model of a name that the suite's own repository uses.

        Raises:
            Skip: The server has no such model.
        """
        for model in self.models:
            if model.name == name:
                return model
        raise Skip(f"needs the model {name!r} of `edgeserve conformance --write-models DIR`")

    def add_sub(self) -> Model:
        """The model `simple`: OUTPUT0 = INPUT0 + INPUT1, OUTPUT1 = INPUT0 - INPUT1, INT32.

        Raises:
            Skip: The server has no such model.
        """
        model = self.named("simple")
        names = ({spec.name for spec in model.inputs}, {spec.name for spec in model.outputs})
        if names != ({"INPUT0", "INPUT1"}, {"OUTPUT0", "OUTPUT1"}):
            raise Skip("the model 'simple' is not Triton's: INPUT0, INPUT1 to OUTPUT0, OUTPUT1")
        return model

    def identity(self, datatype: Datatype, *, dynamic: int = 0) -> Model:
        """A model that returns its one input, known by its name (`identity...`) or by what it answers.

        Args:
            datatype: Of input and output.
            dynamic: At least so many dimensions vary.

        Raises:
            Skip: The server has none.
        """
        key = (datatype, dynamic)
        if key not in self._identities:
            self._identities[key] = next(self._identity_candidates(datatype, dynamic), None)
        found = self._identities[key]
        if found is None:
            shape = f" with {dynamic} varying dimensions" if dynamic else ""
            raise Skip(f"needs a model that returns its {datatype.value} input{shape}")
        return found

    def infer(
        self,
        model: Model,
        inputs: Sequence[Given] | None = None,
        *,
        outputs: Sequence[Mapping[str, Any]] | None = None,
        parameters: Mapping[str, Any] | None = None,
        request_id: str | None = None,
        version: str = "",
        headers: Mapping[str, str] | None = None,
        encode: Callable[[bytes], bytes] | None = None,
    ) -> Answer:
        """POST an inference request; zeros where no inputs are given; `encode` is applied to the whole body."""
        givens = model.givens() if inputs is None else inputs
        body, own = build(givens, outputs=outputs, parameters=parameters, request_id=request_id)
        return self.http.post(
            f"{model_path(model.name, version)}/infer",
            body=body if encode is None else encode(body),
            headers={**own, **(headers or {})},
        )

    def infer_document(self, model: Model, document: object) -> Answer:
        """POST any JSON document as an inference request."""
        return self.http.post(f"{model_path(model.name)}/infer", document)

    def outputs(self, model: Model, inputs: Sequence[Given] | None = None, **options: Any) -> dict[str, Got]:  # noqa: ANN401
        """Run a model and read its outputs; takes what `infer` takes."""
        return outputs_of(self.infer(model, inputs, **options))

    def still_answers(self, after: str) -> None:
        """The server must still serve, whatever was sent before."""
        answer = self.infer(self.model)
        answer.must(answer.status == 200, f"status 200 for a right request after {after}")

    def pause(self, seconds: float) -> None:
        """Give the server time for what it does after its answer."""
        time.sleep(seconds)

    def local(self) -> None:
        """Make sure that the server runs on this machine.

        Raises:
            Skip: It does not, as far as its address says.
        """
        if self.http.host not in LOCAL_HOSTS:
            raise Skip(f"the server runs on another machine ({self.http.host})")

    def _read(self, name: str) -> Model | None:
        try:
            return read_model(self.http.get(model_path(name)).ok().document())
        except (Violation, ValueError, TypeError):
            return None

    def _listed(self) -> list[str]:
        for method, path, body in (
            ("POST", "/v2/repository/index", b'{"ready": true}'),
            ("POST", "/v2/repository/index", b"{}"),
            ("GET", "/v2/models", None),
        ):
            try:
                names = _names(self.http.send(method, path, body=body).ok().json())
            except Violation:
                continue
            if names:
                return names
        return []

    def _identity_candidates(self, datatype: Datatype, dynamic: int) -> Iterator[Model]:
        fitting = [
            model
            for model in self.models
            if len(model.inputs) == len(model.outputs) == 1
            and model.inputs[0].datatype is model.outputs[0].datatype is datatype
            and len(model.inputs[0].shape) == len(model.outputs[0].shape)
            and model.inputs[0].dynamic >= dynamic
            and model.elements <= MAX_CONFORMANCE_ELEMENTS
            and model.name != "lifecycle"
        ]
        fitting.sort(key=lambda model: model.inputs[0].dynamic)
        yield from (model for model in fitting if model.name.startswith("identity"))
        for model in fitting:
            sample = samples(datatype, model.inputs[0].concrete())
            given = replace(model.givens()[0], array=sample)
            try:
                if sample.size and same(next(iter(self.outputs(model, [given]).values())).array, sample):
                    yield model
            except Violation:
                continue


def read_model(document: Mapping[str, Any]) -> Model:
    """A model's metadata.

    Raises:
        ValueError: It is not as the protocol says.
    """
    name, versions = document.get("name"), document.get("versions") or ()
    if not isinstance(name, str):
        raise ValueError("no name")
    return Model(
        name=name,
        versions=tuple(map(str, versions)),
        inputs=tuple(map(_read_spec, document.get("inputs") or ())),
        outputs=tuple(map(_read_spec, document.get("outputs") or ())),
    )


def zeros(datatype: Datatype, shape: Sequence[int]) -> Tensor:
    """Zeros, false, or texts `0`."""
    if datatype is Datatype.BYTES:
        return np.full(tuple(shape), b"0", dtype=object)
    return np.zeros(tuple(shape), dtype=datatype.numpy_name)


def samples(datatype: Datatype, shape: Sequence[int]) -> Tensor:
    """Values that catch wrong conversions: the extremes of the datatype, both signs, fractions that are exact."""
    array = np.empty(tuple(shape), dtype=datatype.numpy_name)
    values: list[Any]
    if datatype is Datatype.BYTES:
        values = [b"427", b"", "grün ✓".encode(), b'quote " and \\ slash', b"\n\t"]
    elif datatype is Datatype.BOOL:
        values = [True, False, False, True]
    elif datatype is Datatype.BF16:
        values = [0x3F80, 0xC000, 0x0000, 0x3E80]  # 1, -2, 0, 0.25
    elif datatype in (Datatype.FP16, Datatype.FP32, Datatype.FP64):
        limits = np.finfo(datatype.numpy_name)
        values = [1.5, -2.25, 0.0, float(limits.max), float(limits.min), float(limits.tiny)]
    else:
        whole = np.iinfo(datatype.numpy_name)
        values = [int(whole.max), int(whole.min), 1, 0, 7]
    flat = np.empty(array.size, dtype=array.dtype)
    for index in range(array.size):
        flat[index] = values[index % len(values)]
    return flat.reshape(array.shape)


def _read_spec(entry: Any) -> Spec:  # noqa: ANN401 - from JSON
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise ValueError("a tensor without a name")
    shape = entry.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int and size >= -1 for size in shape):
        raise ValueError(f"tensor {entry['name']!r} has the shape {shape!r}")
    return Spec(name=entry["name"], datatype=Datatype(entry.get("datatype")), shape=tuple(shape))


def _names(listing: Any) -> list[str]:  # noqa: ANN401 - from JSON
    """Names in a repository index, or in the `models` of KServe's and edgeserve's `GET /v2/models`."""
    entries = listing.get("models") if isinstance(listing, dict) else listing
    if not isinstance(entries, list):
        return []
    names = [entry.get("name") if isinstance(entry, dict) else entry for entry in entries]
    return list(dict.fromkeys(name for name in names if isinstance(name, str)))
