"""OpenVINO IR (`.xml` with its `.bin`)."""

from __future__ import annotations

import hashlib
from pathlib import Path

from edgeserve.contracts.errors import InputError, NotFoundError
from edgeserve_compilers.sources.base import Model, SourceOptions
from edgeserve_compilers.sources.files import needs, read
from edgeserve_compilers.sources.sniff import Content, sniff
from edgeserve_compilers.spec import ModelSpec


class OpenVinoSource:
    """Checks an IR with OpenVINO itself and hands it on: nothing exports one to ONNX, so only Intel targets take it."""

    name = "openvino"

    def recognises(self, path: Path) -> bool:
        """Whether `path` is XML with a `<net>`."""
        return sniff(path) is Content.OPENVINO

    def load(self, path: Path, options: SourceOptions) -> Model:
        """Read and check; see `edgeserve_compilers.sources.base.Source.load`. The content of the model is empty."""
        if options.constants:
            raise InputError(
                f"{', '.join(options.constants)} cannot be fixed in {path}: an OpenVINO IR is taken as it is",
                hint="give the model as ONNX, or save the IR with these inputs as constants",
            )
        graph, weights = read(path), path.with_suffix(".bin")
        if not weights.is_file():
            raise NotFoundError(f"the weights of {path} are missing", hint=f"put {weights.name} beside it")
        digest = hashlib.sha256(graph + hashlib.sha256(read(weights)).digest()).hexdigest()
        with needs("an OpenVINO IR"):
            from edgeserve_compilers.sources.openvino_ir import facts
        found = facts(path)
        return Model(
            spec=ModelSpec(
                file=path.name,
                format=self.name,
                digest=f"sha256:{digest}",
                size_bytes=len(graph) + weights.stat().st_size,
                opset=0,
                nodes=found.operations,
                signature=found.signature,
            ),
            content=b"",
            originals={"openvino": path},
        )
