from __future__ import annotations

import subprocess
import sys

import pytest

from edgeserve.cli.main import COMMANDS, main
from edgeserve.contracts import errors


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgeserve", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_help_names_every_command() -> None:
    done = run("--help")
    assert done.returncode == 0
    for name, entry in COMMANDS.items():
        assert name in done.stdout
        assert entry.help[:20] in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert name in capsys.readouterr().out


def test_help_imports_no_heavy_library() -> None:
    program = (
        "import sys\n"
        "from edgeserve.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'onnx', 'openvino', 'nncf', 'sqlalchemy', 'starlette', 'paho'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_version_is_printed() -> None:
    done = run("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("edgeserve ")


@pytest.mark.parametrize("arguments", [("nonsense",), ("compile",), ("compile", "--nonsense")], ids=" ".join)
def test_a_wrong_command_line_exits_with_2_and_no_traceback(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InputError, 2),
        (errors.NotFoundError, 2),
        (errors.ConflictError, 2),
        (errors.TrustError, 3),
        (errors.AccuracyError, 4),
        (errors.TransientError, 1),
        (errors.DeviceError, 1),
    ],
)
def test_each_group_of_errors_has_its_exit_code(
    error: type[errors.EdgeServeError], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_wanted: str | None) -> None:
        raise error("what is wrong", hint="what to do")

    monkeypatch.setattr("edgeserve.cli.main.build", fail)
    with pytest.raises(SystemExit) as ended:
        main(["anything"])
    assert ended.value.code == code
    assert capsys.readouterr().err == "error: what is wrong\nhint: what to do\n"
