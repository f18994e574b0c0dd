"""What every source owes (`edgeserve_compilers.sources.base`). Subclass `SourceContract` with a fixture `case`."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeserve import plugins
from edgeserve.contracts.errors import InputError, NotFoundError
from edgeserve.runtimes.base import RuntimeOptions, Tensors
from edgeserve.runtimes.onnx import OnnxRuntime
from edgeserve.runtimes.variant import find_runtime
from edgeserve_compilers.load import find_source, load
from edgeserve_compilers.sources.base import Model, SourceOptions

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class SourceCase:
    """A model as its author saved it, with what its own library answers."""

    source: str
    path: Path
    rows: Tensors
    answers: list[np.ndarray]
    """For the rows, in the order of the outputs."""
    library: str
    """Module that has to be there to read it."""
    extra: str
    """Extra that brings it."""
    executes: bool = False
    """Its files can execute code, and are read when they are trusted only."""
    companion: str | None = None
    """Suffix of a second file that belongs to it."""
    batch: int = -1
    """First dimension of the input."""
    prefixes: int = 16
    """Truncated files that are tried; 0 = it is a folder."""
    options: SourceOptions = field(default_factory=SourceOptions)

    @property
    def allowed(self) -> SourceOptions:
        return SourceOptions(trust_pickle=self.executes, row_shapes=self.options.row_shapes)


def run(model: Model, rows: Tensors, folder: Path) -> list[np.ndarray]:
    """What the loaded model answers."""
    if model.content:
        path = folder / "loaded.onnx"
        path.write_bytes(model.content)
        loaded = OnnxRuntime().load(path, RuntimeOptions())
    else:
        ((name, path),) = model.originals.items()
        loaded = find_runtime(name).load(path, RuntimeOptions())
    try:
        return list(loaded.run(rows).values())
    finally:
        loaded.close()


def python(script: str, *arguments: str, home: Path | None = None) -> str:
    """Run a script in a Python of its own; what it printed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    if home is not None:
        environment |= {"HOME": str(home), "XDG_CACHE_HOME": "", "XDG_CONFIG_HOME": "", "XDG_DATA_HOME": ""}
        environment = {name: value for name, value in environment.items() if value}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


_BLOCKED = """
import sys
sys.modules[sys.argv[1]] = None
from edgeserve.contracts.errors import DeviceError
from edgeserve_compilers.load import load
from edgeserve_compilers.sources.base import SourceOptions
try:
    load(sys.argv[2], SourceOptions(trust_pickle=True))
except DeviceError as error:
    print(error.hint)
"""

_HOME = """
import sys
from edgeserve_compilers.load import load
from edgeserve_compilers.sources.base import SourceOptions
load(sys.argv[1], SourceOptions(trust_pickle=True, row_shapes=eval(sys.argv[2])))
"""

_LAZY = """
import sys
from edgeserve import plugins
source = plugins.find(plugins.SOURCES, sys.argv[1])()
from pathlib import Path
assert source.recognises(Path(sys.argv[3]))
print(sys.argv[2] in sys.modules)
"""


class SourceContract:
    """Every test of it runs for every case."""

    def test_it_is_registered_under_its_name_and_recognises_its_file(self, case: SourceCase) -> None:
        found = find_source(case.path)
        assert found is not None
        assert found.name == case.source
        assert plugins.find(plugins.SOURCES, case.source) is type(found)

    def test_no_other_source_takes_its_file(self, case: SourceCase) -> None:
        takers = [name for name in plugins.names(plugins.SOURCES) if _source(name).recognises(case.path)]
        assert takers == [case.source]

    def test_it_computes_what_its_own_library_computes(self, case: SourceCase, tmp_path: Path) -> None:
        model = load(case.path, case.allowed)
        assert [spec.shape[0] for spec in model.spec.signature.inputs] == [case.batch] * len(case.rows)
        assert [spec.name for spec in model.spec.signature.inputs] == list(case.rows)
        found = run(model, case.rows, tmp_path)
        assert len(found) == len(case.answers)
        for have, want in zip(found, case.answers, strict=True):
            np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-4)

    def test_its_facts_are_true(self, case: SourceCase) -> None:
        model = load(case.path, case.allowed)
        assert model.spec.file == case.path.name
        assert model.spec.format == case.source
        assert model.spec.digest.startswith("sha256:")
        if not model.content:
            assert model.originals
            return
        parsed = onnx.load_model_from_string(model.content)
        onnx.checker.check_model(parsed)
        assert model.spec.size_bytes == len(model.content)
        assert model.spec.nodes == len(parsed.graph.node) > 0
        assert model.spec.opset >= 13
        assert [value.name for value in parsed.graph.output] == [spec.name for spec in model.spec.signature.outputs]

    def test_the_same_file_gives_the_same_bytes_and_is_left_alone(self, case: SourceCase) -> None:
        before = case.path.read_bytes() if case.path.is_file() else b""
        one, other = load(case.path, case.allowed), load(case.path, case.allowed)
        assert (one.content, one.spec) == (other.content, other.spec)
        assert before == (case.path.read_bytes() if case.path.is_file() else b"")

    def test_nothing_is_printed(self, case: SourceCase, capfd: pytest.CaptureFixture[str]) -> None:
        load(case.path, case.allowed)
        assert capfd.readouterr().out == "", "stdout belongs to the command's own output"

    def test_every_truncation_is_an_error_that_names_the_file(self, case: SourceCase, tmp_path: Path) -> None:
        if not case.prefixes:
            pytest.skip("a folder")
        whole = case.path.read_bytes()
        path = tmp_path / case.path.name
        if case.companion:
            path.with_suffix(case.companion).write_bytes(case.path.with_suffix(case.companion).read_bytes())
        for part in range(case.prefixes):
            path.write_bytes(whole[: len(whole) * part // case.prefixes])
            with pytest.raises(InputError, match=path.name):
                load(path, case.allowed)

    def test_another_files_content_under_its_name_is_an_error_that_names_the_file(
        self, case: SourceCase, tmp_path: Path
    ) -> None:
        if not case.prefixes:
            pytest.skip("a folder")
        path = tmp_path / case.path.name
        for content in (
            b"\x00" * 3000,
            b"hello, world\n" * 20,
            b"{}",
            b"PK\x03\x04" + bytes(60),
            b"<?xml version='1.0'?>",
        ):
            path.write_bytes(content)
            with pytest.raises(InputError, match=path.name):
                load(path, case.allowed)

    def test_an_input_that_is_not_there_cannot_be_fixed(self, case: SourceCase) -> None:
        options = SourceOptions(
            trust_pickle=case.executes, constants={"nothing": 1.0}, row_shapes=case.options.row_shapes
        )
        with pytest.raises(InputError, match="nothing"):
            load(case.path, options)

    def test_a_file_that_is_not_there_is_an_error(self, case: SourceCase) -> None:
        with pytest.raises(NotFoundError, match="absent"):
            load(case.path.with_name("absent" + case.path.suffix))

    def test_it_is_refused_without_trust_when_it_can_execute_code(self, case: SourceCase) -> None:
        if not case.executes:
            load(case.path, SourceOptions(row_shapes=case.options.row_shapes))
            return
        with pytest.raises(InputError, match="execute code") as raised:
            load(case.path, SourceOptions(row_shapes=case.options.row_shapes))
        assert "--trust-pickle" in raised.value.hint
        assert "onnx" in raised.value.hint, "the way without trust"

    def test_a_missing_library_is_named_with_the_command_that_installs_it(self, case: SourceCase) -> None:
        assert python(_BLOCKED, case.library, str(case.path)) == f"pip install 'edgeserve[{case.extra}]'"

    def test_its_library_is_not_imported_before_it_is_needed(self, case: SourceCase) -> None:
        assert python(_LAZY, case.source, case.library, str(case.path)) == "False"

    def test_nothing_appears_in_the_home_folder(self, case: SourceCase, tmp_path: Path) -> None:
        home = tmp_path / "home"
        home.mkdir()
        python(_HOME, str(case.path), repr(dict(case.options.row_shapes)), home=home)
        assert [path.name for path in home.rglob("*")] == []


def _source(name: str):
    return plugins.find(plugins.SOURCES, name)()
