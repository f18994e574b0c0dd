"""TFLite / LiteRT files (`.tflite`) with a float model."""

from __future__ import annotations

from pathlib import Path

from edgeserve_compilers.sources.base import Model, SourceOptions
from edgeserve_compilers.sources.files import needs, read
from edgeserve_compilers.sources.sniff import Content, sniff


class LiteRtSource:
    """Converts to ONNX operator by operator; the file itself goes along for LiteRT targets."""

    name = "litert"

    def recognises(self, path: Path) -> bool:
        """Whether `path` has the file identifier TFL3, or is named `.tflite`."""
        return sniff(path) is Content.LITERT

    def load(self, path: Path, options: SourceOptions) -> Model:
        """Read, convert and check; see `edgeserve_compilers.sources.base.Source.load`."""
        data = read(path)
        with needs("a TFLite model"):
            from edgeserve_compilers.sources.checked import Origin, checked, digest_of
            from edgeserve_compilers.sources.litert_convert import convert
        model, metadata = convert(data, path)
        origin = Origin(
            path=path, format=self.name, digest=digest_of(data), originals={"litert": path}, metadata=metadata
        )
        return checked(model, origin, options)
