"""ONNX files (`.onnx`), weights beside them included."""

from __future__ import annotations

from pathlib import Path

from edgeserve_compilers.sources.base import Model, SourceOptions
from edgeserve_compilers.sources.files import needs, read
from edgeserve_compilers.sources.sniff import Content, sniff


class OnnxSource:
    """Takes a float ONNX model as it is; what is too old is upgraded."""

    name = "onnx"

    def recognises(self, path: Path) -> bool:
        """Whether `path` is named `.onnx` and holds nothing else."""
        return sniff(path) is Content.ONNX

    def load(self, path: Path, options: SourceOptions) -> Model:
        """Read and check; see `edgeserve_compilers.sources.base.Source.load`."""
        given = read(path)
        with needs("an ONNX model"):
            from edgeserve_compilers.sources.checked import Origin, checked, digest_of, parse
        origin = Origin(path=path, format=self.name, digest=digest_of(given), given=given)
        return checked(parse(given, path), origin, options)
