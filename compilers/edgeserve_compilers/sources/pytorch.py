"""PyTorch: `module:function`, exported programs (`.pt2`), pickled modules and TorchScript (`.pt`, `.pth`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.task import FUNCTION
from edgeserve.task.functions import call_function
from edgeserve_compilers.sources.base import Model, SourceOptions
from edgeserve_compilers.sources.files import needs, read
from edgeserve_compilers.sources.sniff import TORCH_SUFFIXES, Content, sniff

if TYPE_CHECKING:
    from edgeserve_compilers.sources.torch_program import Program

_ARCHIVES: Final = (Content.TORCH_EXPORT, Content.TORCH_PICKLE, Content.TORCH_SCRIPT)
EXPORT_HINT: Final = (
    "run where it was trained: torch.onnx.export(model.eval(), (example,), 'model.onnx', dynamo=False, "
    "opset_version=17, input_names=['input'], output_names=['output'], "
    "dynamic_axes={'input': {0: 'batch'}, 'output': {0: 'batch'}})"
)


class PyTorchSource:
    """Exports to ONNX, opset 17 where that is possible, with a batch that may vary where the model allows it.

    `module:function` names a function without arguments that returns `(module, args)` or
    `(module, args, {"inputs": [...], "outputs": [...]})`: an `nn.Module`, a tensor or tuple of tensors as an example
    of its positional arguments, and the names that inputs and outputs shall have. Without them, inputs are named like
    the parameters of `forward`, outputs `output` or `output_0`, `output_1`, ... The function runs with the user's
    rights, like every `module:function`.

    All of PyTorch's own files can execute code when they are read, `.pt2` included: its loader falls back to pickle and
    evaluates expressions that it finds in the file (`torch.export.load` says so). They are read with --trust-pickle
    only.
    """

    name = "pytorch"

    def recognises(self, path: Path) -> bool:
        """Whether `path` is a PyTorch file, or nothing that exists but `module:function`."""
        content = sniff(path)
        if content is Content.NOTHING:
            return bool(FUNCTION.fullmatch(str(path)))
        return content in _ARCHIVES or (content is Content.PICKLE and path.suffix.lower() in TORCH_SUFFIXES)

    def load(self, path: Path, options: SourceOptions) -> Model:
        """Import or read, export and check; see `edgeserve_compilers.sources.base.Source.load`."""
        from_function = sniff(path) is Content.NOTHING and FUNCTION.fullmatch(str(path)) is not None
        if not from_function:
            data = read(path)
            _check_trust(path, options)
        with needs("a PyTorch model"):
            import torch  # noqa: F401 - a failing import inside the user's module is another error

            from edgeserve_compilers.sources import torch_export, torch_program
            from edgeserve_compilers.sources.checked import Origin, checked, digest_of
        program: Program
        if from_function:
            program = torch_program.from_answer(call_function(str(path)), str(path))
        else:
            program = torch_program.from_file(path, options)
        model = torch_export.export(program, str(path))
        # A function has no bytes of its own: what it returned is identified by what was exported.
        digest = digest_of(model.SerializeToString(deterministic=True) if from_function else data)
        return checked(model, Origin(path=path, format=self.name, digest=digest), options)


def _check_trust(path: Path, options: SourceOptions) -> None:
    if options.trust_pickle:
        return
    what = sniff(path)
    kind = what.value if what in _ARCHIVES else "a PyTorch file (pickle)"
    raise InputError(
        f"{path} is {kind}, which can execute code when it is read",
        hint=f"add --trust-pickle if you made it yourself; or {EXPORT_HINT}",
    )
