from __future__ import annotations

import pickle
import textwrap
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeserve.contracts.errors import InputError
from edgeserve_compilers.load import load
from edgeserve_compilers.sources.base import SourceOptions
from tests.suites.source import SourceCase, SourceContract, run

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'edgeserve[torch]'")

TRUSTED = SourceOptions(trust_pickle=True)
NETS = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.norm, self.drop = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(0.5)
            self.head = nn.Linear(8, 10)
        def forward(self, image):
            return self.head(self.drop(torch.relu(self.norm(self.conv(image)))).mean((2, 3)))

    class Two(nn.Module):
        def forward(self, left, right):
            return {"sum": left + right, "parts": (left * 2, right)}

    class Branch(nn.Module):
        def forward(self, x):
            return x * 2 if x.sum() > 0 else x - 1

    class OneRow(nn.Module):
        def forward(self, x):
            return x.reshape(1, 4) * 2

    def plain():
        return Net(), torch.randn(2, 1, 8, 8)

    def named():
        return Net(), (torch.randn(2, 1, 8, 8),), {"inputs": ["pixels"], "outputs": ["logits"]}

    def two():
        return Two(), (torch.randn(3, 4), torch.randn(3, 4))

    def branch():
        return Branch(), torch.ones(2, 3)

    def one_row():
        return OneRow(), torch.randn(1, 4)

    def broken():
        return Net(), torch.randn(2, 3, 8, 8)

    def nothing():
        return 3

    def unknown_names():
        return Net(), torch.randn(2, 1, 8, 8), {"axes": {}}

    def raises():
        raise RuntimeError("out of cheese")
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of the user's module."""
    name = f"user_nets_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(NETS))
    monkeypatch.syspath_prepend(tmp_path)
    return name


def net():
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Flatten(), torch.nn.Linear(144, 5)
    return torch.nn.Sequential(*layers)


class TestPyTorchSource(SourceContract):
    @pytest.fixture
    def case(self, tmp_path: Path) -> SourceCase:
        module, example = net(), torch.randn(2, 1, 8, 8)
        torch.save((module, example), tmp_path / "m.pt")
        rows = torch.randn(3, 1, 8, 8)
        with torch.no_grad():
            answers = [module.eval()(rows).numpy()]
        return SourceCase(
            source="pytorch",
            path=tmp_path / "m.pt",
            rows={"input": rows.numpy()},
            answers=answers,
            library="torch",
            extra="torch",
            executes=True,
        )


def test_a_function_gives_the_module_in_evaluation_mode_with_a_batch_that_varies(nets: str, tmp_path: Path) -> None:
    model = load(f"{nets}:plain")
    (given,), (answer,) = model.spec.signature.inputs, model.spec.signature.outputs
    assert (given.name, given.shape, answer.name, answer.shape) == ("image", (-1, 1, 8, 8), "output", (-1, 10))
    assert model.spec.opset == 17
    module = __import__(nets).Net().eval()
    rows = torch.randn(5, 1, 8, 8)
    (found,) = run(model, {"image": rows.numpy()}, tmp_path)
    np.testing.assert_allclose(found, module(rows).detach().numpy(), rtol=1e-4, atol=1e-5)
    assert "Dropout" not in {node.op_type for node in onnx.load_model_from_string(model.content).graph.node}


def test_names_are_those_that_the_function_gives(nets: str) -> None:
    signature = load(f"{nets}:named").spec.signature
    assert (signature.inputs[0].name, signature.outputs[0].name) == ("pixels", "logits")


def test_several_inputs_and_nested_outputs_have_names(nets: str, tmp_path: Path) -> None:
    model = load(f"{nets}:two")
    assert [spec.name for spec in model.spec.signature.inputs] == ["left", "right"]
    assert [spec.name for spec in model.spec.signature.outputs] == ["sum", "parts_0", "parts_1"]
    left, right = np.ones((1, 4), np.float32), np.full((1, 4), 3, np.float32)
    found = run(model, {"left": left, "right": right}, tmp_path)
    assert [array[0, 0] for array in found] == [4, 2, 3]


def test_a_batch_that_cannot_vary_stays_as_in_the_example(nets: str) -> None:
    assert load(f"{nets}:one_row").spec.signature.inputs[0].shape == (1, 4)


@pytest.mark.parametrize(
    ("function", "message", "hint"),
    [
        ("branch", "does not compute the same", "branches that depend on the data"),
        ("broken", "fails on its own example", "shapes of the example"),
        ("nothing", "returned int", r"return \(module, args\)"),
        ("unknown_names", "names that .* returned", "inputs"),
        ("raises", "out of cheese", "mend the function"),
        ("absent", "no function 'absent'", "PYTHONPATH"),
    ],
)
def test_what_a_function_may_do_wrong_has_a_way_out(nets: str, function: str, message: str, hint: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        load(f"{nets}:{function}")
    assert __import__("re").search(hint, raised.value.hint)


def test_an_exported_program_keeps_its_batch(tmp_path: Path) -> None:
    module = net().eval()
    rows = torch.randn(2, 1, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, (rows,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.export.save(program, tmp_path / "m.pt2")
    with pytest.raises(InputError, match=r"exported PyTorch program \(\.pt2\), which can execute code") as raised:
        load(tmp_path / "m.pt2")
    assert "--trust-pickle" in raised.value.hint
    model = load(tmp_path / "m.pt2", TRUSTED)
    for private in (b"site-packages", str(Path(__file__).parent).encode(), b".py", b"def forward"):
        assert private not in model.content, "where the source code lies, and its lines, stay with the author"
    assert model.spec.signature.inputs[0].shape == (-1, 1, 8, 8)
    more = torch.randn(5, 1, 8, 8)
    (found,) = run(model, {"input": more.numpy()}, tmp_path)
    np.testing.assert_allclose(found, module(more).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["module", "script", "checkpoint", "old"])
def test_a_trusted_module_needs_shapes_that_the_data_give(tmp_path: Path, form: str) -> None:
    module, path = net(), tmp_path / "m.pth"
    if form == "script":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.trace(module.eval(), torch.randn(2, 1, 8, 8)).save(str(path))
    else:
        torch.save(
            {"model": module, "epoch": 3} if form == "checkpoint" else module,
            path,
            _use_new_zipfile_serialization=form != "old",
        )
    with pytest.raises(InputError, match="does not say what shape") as raised:
        load(path, TRUSTED)
    assert "--calibration" in raised.value.hint
    assert "module:function" in raised.value.hint
    model = load(path, SourceOptions(trust_pickle=True, row_shapes={"pixels": (1, 8, 8)}))
    assert model.spec.signature.inputs[0].shape == (-1, 1, 8, 8)
    rows = torch.randn(4, 1, 8, 8)
    (found,) = run(model, {model.spec.signature.inputs[0].name: rows.numpy()}, tmp_path)
    np.testing.assert_allclose(found, module.eval()(rows).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_weights_alone_cannot_be_compiled(tmp_path: Path) -> None:
    torch.save(net().state_dict(), tmp_path / "m.pth")
    with pytest.raises(InputError, match="state_dict of 4 tensors") as raised:
        load(tmp_path / "m.pth", TRUSTED)
    assert "load_state_dict" in raised.value.hint
    assert "module:function" in raised.value.hint


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["m.pt", "m.pth", "m.ckpt", "m.onnx", "m.bin"])
@pytest.mark.parametrize("old", [False, True])
def test_nothing_is_executed_without_trust(tmp_path: Path, name: str, old: bool) -> None:
    sprung, path = tmp_path / "sprung", tmp_path / name
    torch.save({"model": Trap(sprung)}, path, _use_new_zipfile_serialization=not old)
    with pytest.raises(InputError, match="execute code"):
        load(path)
    assert not sprung.exists()
    torch.load(path, weights_only=False)
    assert sprung.exists(), "the trap is one"


def test_a_pickle_in_an_exported_program_is_not_executed_without_trust(tmp_path: Path) -> None:
    """The loader falls back to pickle for the example inputs."""
    import zipfile

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(net().eval(), (torch.randn(2, 1, 8, 8),)), tmp_path / "good.pt2")
    sprung, path = tmp_path / "sprung", tmp_path / "m.pt2"
    with zipfile.ZipFile(tmp_path / "good.pt2") as good, zipfile.ZipFile(path, "w") as bad:
        for entry in good.infolist():
            content = pickle.dumps(Trap(sprung)) if "sample_inputs" in entry.filename else good.read(entry)
            bad.writestr(entry.filename, content)
    with pytest.raises(InputError, match="execute code"):
        load(path)
    assert not sprung.exists()
