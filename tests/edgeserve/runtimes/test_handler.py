"""What a handler can do to the server that runs it, each tried by a real handler in a real process."""

from __future__ import annotations

import logging
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeserve.contracts.documents import encode
from edgeserve.contracts.errors import (
    DeviceError,
    EdgeServeError,
    InputError,
    MissingLibraryError,
    TrustError,
)
from edgeserve.contracts.limits import HANDLER_CRASHES, HANDLER_LOG_BYTES, HANDLER_LOG_LINE_CHARS
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.runtimes.base import RuntimeOptions
from edgeserve.runtimes.handler import HandlerModel, PythonHandlerRuntime
from edgeserve.runtimes.handler_trust import TRUST_VARIABLE, trust_handlers, trust_only
from edgeserve.runtimes.variant import find_runtime

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="handlers need Linux")

FILE = """
{top}
[[inputs]]
name = "x"
datatype = "FP32"
shape = [-1, 2]

[[outputs]]
name = "y"
datatype = "FP32"
shape = [-1, 2]

[limits]
{limits}
"""
ONES = {"x": np.ones((1, 2), np.float32)}
Load = Callable[..., HandlerModel]


def write(folder: Path, code: str, *, top: str = "", limits: str = "call_s = 20.0") -> Path:
    (folder / "handler.py").write_text(textwrap.dedent(code))
    path = folder / "handler.toml"
    path.write_text(FILE.format(top=top, limits=limits))
    return path


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    """Write and load a handler; its process ends with the test."""
    loaded: list[HandlerModel] = []

    def of(code: str, **settings: str) -> HandlerModel:
        model = PythonHandlerRuntime([tmp_path]).load(write(tmp_path, code, **settings), RuntimeOptions())
        assert isinstance(model, HandlerModel)
        loaded.append(model)
        return model

    yield of
    for model in loaded:
        model.close()


def body(*lines: str) -> str:
    """A handler whose `run` is these lines when x[0, 0] is negative, else `y = x`."""
    inside = "\n".join(f"            {line}" for line in lines)
    return (
        "import os, sys, time, threading\nimport numpy as np\n"
        "from edgeserve.runtimes.handler_api import InvalidInputError\n"
        "def is_socket(n):\n"
        "    return os.path.exists(f'/proc/self/fd/{n}') and os.readlink(f'/proc/self/fd/{n}')[0] == 's'\n"
        "class Handler:\n    def run(self, inputs):\n        x = inputs['x']\n"
        f"        if x[0, 0] < 0:\n{inside}\n        return {{'y': x}}\n"
    )


BAD = {"x": np.full((1, 2), -1, np.float32)}


class TestTrust:
    def test_a_handler_is_refused_unless_someone_here_allows_it(self, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.delenv(TRUST_VARIABLE, raising=False)
        path = write(tmp_path, f"open({str(tmp_path / 'ran')!r}, 'w')")
        with pytest.raises(TrustError, match=r"handler\.toml") as raised:
            find_runtime("python").load(path, RuntimeOptions())
        assert "allow_handlers" in raised.value.hint
        assert "--trust-handlers" in raised.value.hint
        assert not (tmp_path / "ran").exists()

    def test_trust_is_of_a_folder_and_what_is_below_it(self, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.setenv(TRUST_VARIABLE, "")
        folders = [tmp_path / "ours" / "below", tmp_path / "others"]
        for folder in folders:
            folder.mkdir(parents=True)
            write(folder, body("pass"))
        trust_handlers(tmp_path / "ours")
        trust_handlers(tmp_path / "ours")
        assert os.environ[TRUST_VARIABLE] == str(tmp_path / "ours")
        model = find_runtime("python").load(folders[0] / "handler.toml", RuntimeOptions())
        model.close()
        with pytest.raises(TrustError):
            find_runtime("python").load(folders[1] / "handler.toml", RuntimeOptions())

    def test_trust_can_be_withdrawn(self, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.setenv(TRUST_VARIABLE, str(tmp_path))
        trust_only()
        with pytest.raises(TrustError):
            find_runtime("python").load(write(tmp_path, body("pass")), RuntimeOptions())

    def test_a_link_out_of_a_trusted_folder_is_not_followed(self, tmp_path: Path) -> None:
        for name in ("ours", "others"):
            (tmp_path / name).mkdir()
        write(tmp_path / "others", body("pass"))
        (tmp_path / "ours" / "handler.toml").symlink_to(tmp_path / "others" / "handler.toml")
        (tmp_path / "linked").symlink_to(tmp_path / "others")
        runtime = PythonHandlerRuntime([tmp_path / "ours"])
        for path in (tmp_path / "ours" / "handler.toml", tmp_path / "linked" / "handler.toml"):
            with pytest.raises(EdgeServeError):
                runtime.load(path, RuntimeOptions())


class TestAnswers:
    def test_a_function_is_a_handler_too(self, load: Load) -> None:
        model = load("def double(inputs):\n    return {'y': inputs['x'] * 2}\n", top='handler = "double"')
        assert model.run(ONES)["y"].tolist() == [[2, 2]]

    def test_load_finds_the_files_beside_the_handler(self, load: Load, tmp_path: Path) -> None:
        (tmp_path / "scale.txt").write_text("3")
        (tmp_path / "beside.py").write_text("OFFSET = 1\n")
        model = load(
            """
            import beside
            class Handler:
                def load(self, folder):
                    self.scale = float((folder / "scale.txt").read_text())
                def run(self, inputs):
                    return {"y": inputs["x"] * self.scale + beside.OFFSET}
            """
        )
        assert model.run(ONES)["y"].tolist() == [[4, 4]]

    def test_every_datatype_gets_there_and_back(self, tmp_path: Path) -> None:
        kinds = [kind for kind in Datatype if kind is not Datatype.BF16]
        sides = "".join(
            f'[[{side}]]\nname = "{kind.value}"\ndatatype = "{kind.value}"\nshape = [-1]\n'
            for side in ("inputs", "outputs")
            for kind in kinds
        )
        (tmp_path / "handler.py").write_text("def same(inputs):\n    return inputs\n")
        (tmp_path / "handler.toml").write_text('handler = "same"\n' + sides)
        model = PythonHandlerRuntime([tmp_path]).load(tmp_path / "handler.toml", RuntimeOptions())
        inputs = {kind.value: np.array([0, 1, 1]).astype(kind.numpy_name) for kind in kinds}
        inputs["BYTES"] = np.array([b"", b"\x00\xff", "é".encode()], object)
        outputs = model.run(inputs)
        model.close()
        for name, array in inputs.items():
            assert outputs[name].dtype == array.dtype
            assert outputs[name].tolist() == array.tolist()

    def test_texts_and_foreign_byte_order_are_put_right(self, tmp_path: Path) -> None:
        (tmp_path / "handler.py").write_text(
            "import numpy as np\ndef f(inputs):\n"
            "    return {'t': np.array(['a', 'bc']), 'n': np.array([1, 2], '>i4')[::-1]}\n"
        )
        (tmp_path / "handler.toml").write_text(
            'handler = "f"\ninputs = [{name = "x", datatype = "INT8", shape = [1]}]\n'
            'outputs = [{name = "t", datatype = "BYTES", shape = [2]}, {name = "n", datatype = "INT32", shape = [2]}]\n'
        )
        model = PythonHandlerRuntime([tmp_path]).load(tmp_path / "handler.toml", RuntimeOptions())
        outputs = model.run({"x": np.zeros(1, np.int8)})
        model.close()
        assert outputs["t"].tolist() == [b"a", b"bc"]
        assert outputs["n"].tolist() == [2, 1]
        assert outputs["n"].dtype.isnative

    def test_a_model_runs_between_the_two_steps(self, load: Load, tmp_path: Path) -> None:
        inner = Signature(
            inputs=(TensorSpec(name="a", datatype=Datatype.FP32, shape=(-1, 3)),),
            outputs=(TensorSpec(name="b", datatype=Datatype.FP32, shape=(-1, 2)),),
        )
        (tmp_path / "sum.null.json").write_bytes(encode(inner))
        model = load(
            """
            import numpy as np
            class Handler:
                def preprocess(self, inputs):
                    self.rows = len(inputs["x"])
                    return {"a": np.ones((self.rows, 3), np.float32)}
                def postprocess(self, outputs):
                    return {"y": outputs["b"] * 10 + self.rows}
            """,
            top='then = "sum.null.json"',
        )
        assert model.executing_device == "null"
        assert model.run(ONES)["y"].tolist() == [[31, 31]]

    def test_what_the_model_cannot_take_is_the_handlers_fault(self, load: Load, tmp_path: Path) -> None:
        spec = TensorSpec(name="a", datatype=Datatype.FP32, shape=(-1, 3))
        (tmp_path / "sum.null.json").write_bytes(encode(Signature(inputs=(spec,), outputs=(spec,))))
        code = "class Handler:\n    def preprocess(self, inputs):\n        return inputs\n"
        model = load(code, top='then = "sum.null.json"')
        with pytest.raises(DeviceError, match=r"preprocess of handler\.toml returned 'x', not 'a'"):
            model.run(ONES)


MISTAKES = {
    "raises": (["raise ValueError('no such class')"], "run failed: ValueError: no such class"),
    "exits": (["sys.exit(3)"], "run failed: SystemExit: 3"),
    "no dict": (["return [x]"], "run returned a list, not a dict of arrays"),
    "another name": (["return {'z': x}"], "returned 'z', not 'y'"),
    "one too many": (["return {'y': x, 'z': x}"], "returned 'y', 'z', not 'y'"),
    "nothing": (["return {}"], "returned nothing, not 'y'"),
    "datatype": (["return {'y': x.astype(int)}"], "returned 'y' as 'int64', not as 'float32'"),
    "no tensor": (["return {'y': object()}"], "a BYTES tensor holds bytes or str"),
    "rank": (["return {'y': x[0]}"], r"returned 'y' of shape \[2\], not \[-1, 2\]"),
    "size": (["return {'y': np.ones((1, 3), 'float32')}"], r"of shape \[1, 3\], not \[-1, 2\]"),
    "memory": (["return {'y': np.ones(1 << 34, 'float32')}"], "MemoryError"),
    "too large": (["return {'y': np.ones((1 << 26, 2), 'float32')}"], "512 MiB"),
    "forks": (["os.fork()"], "PermissionError|BlockingIOError"),
    "starts a program": (["os.execv('/bin/true', ['true'])"], "PermissionError"),
    "writes a file": (["open('left', 'w').write('x' * 100)"], "PermissionError|OSError"),
    "writes to /tmp": (["open('/tmp/left-by-a-handler', 'w').write('x' * 100)"], "PermissionError|OSError"),
    "reads what is not its own": (["open('/etc/shadow').read()"], "PermissionError"),
    "opens a socket": (["import socket; socket.socket()"], "PermissionError"),
    "makes a socket that could send to paths": (["import socket", "socket.socketpair()"], "PermissionError"),
    "changes modes": (["os.chmod(__file__, 0o777)"], "PermissionError"),
    "takes its server's processors": (["os.sched_setaffinity(os.getppid(), {0})"], "PermissionError"),
    "signals its server": (["os.kill(os.getppid(), 15)"], "PermissionError"),
    "becomes root": (["os.setuid(0)"], "PermissionError|run failed"),
}
"""What a handler does -> what the error says. After each it goes on."""


class TestMistakes:
    @pytest.fixture(scope="class")
    @classmethod
    def handler(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HandlerModel]:
        folder = tmp_path_factory.mktemp("mistakes")
        steps = "".join(
            f"    if n == {number}:\n" + "".join(f"        {line}\n" for line in lines)
            for number, (lines, _) in enumerate(MISTAKES.values())
        )
        code = f"import os, sys\nimport numpy as np\ndef f(inputs):\n    x = inputs['x']\n    n = -x[0, 0]\n{steps}"
        path = write(folder, code + "    return {'y': x}\n", top='handler = "f"')
        model = PythonHandlerRuntime([folder]).load(path, RuntimeOptions())
        assert isinstance(model, HandlerModel)
        yield model
        model.close()

    @pytest.mark.parametrize("mistake", MISTAKES)
    def test_a_mistake_is_a_clear_error_of_the_device_and_the_handler_goes_on(
        self, handler: HandlerModel, mistake: str
    ) -> None:
        if mistake == "becomes root" and os.geteuid() != 0:
            pytest.skip("only root can tell")
        number = list(MISTAKES).index(mistake)
        before = handler._process.pid
        with pytest.raises(DeviceError, match=MISTAKES[mistake][1]):
            handler.run({"x": np.full((1, 2), -number if number else -0.0, np.float32)})
        assert handler.run({"x": np.ones((1, 2), np.float32)})["y"].tolist() == [[1, 1]]
        assert handler._process.pid == before

    def test_only_what_the_handler_says_is_the_clients_fault(self, load: Load) -> None:
        model = load(body("raise InvalidInputError('the picture is empty')"))
        with pytest.raises(InputError, match=r"^the picture is empty$"):
            model.run(BAD)
        assert model.run(ONES)


CRASHES = {
    "segfault": (["import ctypes; ctypes.string_at(0)"], "SIGSEGV"),
    "abort": (["os.abort()"], "SIGABRT"),
    "quiet end": (["os._exit(0)"], "exit code 0"),
    "nonsense": (["[os.write(n, b'x' * 999) for n in range(3, 256) if is_socket(n)]"], "sent a head of 2021161080"),
}


class TestCrashes:
    @pytest.mark.parametrize("crash", CRASHES)
    def test_a_crash_says_how_it_ended_and_the_next_call_has_a_new_process(self, load: Load, crash: str) -> None:
        lines, message = CRASHES[crash]
        model = load(body(*lines))
        before = model._process.pid
        with pytest.raises(DeviceError, match=message):
            model.run(BAD)
        assert model.run(ONES)["y"].tolist() == [[1, 1]]
        assert model._process.pid != before

    @pytest.mark.parametrize("hang", ["time.sleep(60)", "while True: pass", "threading.Event().wait()"])
    def test_a_hang_ends_with_its_time(self, load: Load, hang: str) -> None:
        model = load(body(hang), limits="call_s = 0.5")
        with pytest.raises(DeviceError, match=r"run of handler\.toml took too long") as raised:
            model.run(BAD)
        assert "call_s = 0.5" in raised.value.hint
        assert model.run(ONES)

    def test_one_that_crashes_all_the_time_stays_down(self, load: Load) -> None:
        model = load("import os\ndef f(inputs):\n    os._exit(7)\n", top='handler = "f"')
        for _ in range(HANDLER_CRASHES + 1):
            with pytest.raises(DeviceError, match="exit code 7"):
                model.run(ONES)
        with pytest.raises(DeviceError, match="stays down"):
            model.run(ONES)

    def test_a_closed_model_leaves_no_process_and_no_file(self, load: Load) -> None:
        model = load(body("pass"))
        process = model._process
        copy = process._copy
        model.close()
        assert not Path(f"/proc/{process.pid}").exists()
        assert copy is None or not copy.exists()
        with pytest.raises(DeviceError, match="closed"):
            model.run(ONES)


REFUSED = {
    "syntax": ("class Handler:\n    def run(self inputs):\n", InputError, "is not Python"),
    "no such class": ("x = 1\n", InputError, "has no class or function 'Handler'"),
    "no run": ("class Handler:\n    pass\n", InputError, "no method run"),
    "missing library": ("import no_such_library\n", MissingLibraryError, "no_such_library"),
    "raises": ("1 / 0\n", DeviceError, "ZeroDivisionError"),
    "exits": ("import os\nos._exit(4)\n", DeviceError, "exit code 4"),
    "load raises": (
        "class Handler:\n    def load(self, folder):\n        open(folder / 'vocabulary.txt')\n",
        DeviceError,
        "FileNotFoundError: .*vocabulary.txt",
    ),
}


class TestLoading:
    @pytest.mark.parametrize("reason", REFUSED)
    def test_what_does_not_load_says_why_and_which(self, load: Load, reason: str) -> None:
        code, kind, message = REFUSED[reason]
        with pytest.raises(kind, match=message) as raised:
            load(code)
        assert "handler.toml" in raised.value.message


class TestPrinting:
    def test_what_it_prints_is_in_the_log(self, load: Load, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "edgeserve.runtimes.handler")
        model = load(body("print('seen'); print('\\x1b[2Jred', file=sys.stderr)"))
        model.run(BAD)
        model.close()
        text = caplog.text
        assert "handler.toml says: seen" in text
        assert r"\x1b[2Jred" in text

    def test_a_flood_neither_stops_it_nor_fills_the_log(self, load: Load, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "edgeserve.runtimes.handler")
        model = load(body("[print('x' * 99) for _ in range(50000)]", "print('y' * 5_000_000)"))
        model.run(BAD)
        model.close()
        said = [record.getMessage() for record in caplog.records if " says: " in record.getMessage()]
        assert sum(map(len, said)) <= 2 * HANDLER_LOG_BYTES
        assert max(map(len, said)) <= HANDLER_LOG_LINE_CHARS + 100
        assert "bytes more than are logged" in caplog.text


class TestConfinement:
    def test_what_confines_it_is_told(self, load: Load) -> None:
        model = load(body("pass"))
        assert {"resource limits", "no new privileges"} <= set(model.confined_by)
        assert all("(" in text for text in model.not_confined_by)
        if os.geteuid() == 0:
            assert any(text.startswith("user ") and text != "user 0" for text in model.confined_by)

    def test_it_sees_nothing_of_the_servers_environment_and_descriptors(self, load: Load, monkeypatch) -> None:
        monkeypatch.setenv("EDGESERVE_MANAGER_TOKEN", "secret")
        leaking = os.open("/dev/null", os.O_RDONLY)
        os.set_inheritable(leaking, True)
        model = load(
            body(
                "if 'secret' in str(os.environ): return {}",
                "return {'y': np.array([[len(os.listdir('/proc/self/fd')), os.getuid()]], 'float32')}",
            )
        )
        descriptors, user = model.run(BAD)["y"][0].tolist()
        os.close(leaking)
        assert descriptors <= 5  # the three of the standard, its connection, the folder that is listed
        assert (user == 0) is False or os.geteuid() != 0

    def test_it_cannot_read_the_servers_working_directory(self, load: Load, tmp_path_factory, monkeypatch) -> None:
        folder = tmp_path_factory.mktemp("server")
        (folder / "agent.toml").write_text("token")
        monkeypatch.chdir(folder)
        monkeypatch.syspath_prepend(str(folder))
        model = load(body(f"return {{'y': open({str(folder / 'agent.toml')!r})}}"))
        with pytest.raises(DeviceError, match="PermissionError"):
            model.run(BAD)

    def test_threads_are_not_taken_from_it(self, load: Load) -> None:
        lines = [
            "got = []",
            "threads = [threading.Thread(target=got.append, args=(n,)) for n in range(8)]",
            "[t.start() for t in threads]; [t.join() for t in threads]",
            "return {'y': np.array([[len(got), 0]], 'float32')}",
        ]
        assert load(body(*lines)).run(BAD)["y"].tolist() == [[8, 0]]

    def test_what_it_computes_between_calls_is_bounded(self, load: Load, monkeypatch) -> None:
        model = load(
            body(
                "import resource",
                "soft = resource.getrlimit(resource.RLIMIT_CPU)[0]",
                "return {'y': np.array([[soft, time.process_time()]], 'float32')}",
            ),
            limits="call_s = 1.0",
        )
        soft, used = model.run(BAD)["y"][0].tolist()
        assert used < soft <= used + 2 + (os.cpu_count() or 1)

    def test_it_ends_with_its_server(self, tmp_path: Path) -> None:
        import select
        import signal
        import subprocess

        path = write(tmp_path, body("while True: pass"))
        program = (
            "import sys, threading, time, numpy as np\nfrom pathlib import Path\n"
            "from edgeserve.runtimes.base import RuntimeOptions\n"
            "from edgeserve.runtimes.handler import PythonHandlerRuntime\n"
            "m = PythonHandlerRuntime([Path(sys.argv[1]).parent]).load(Path(sys.argv[1]), RuntimeOptions())\n"
            "x = {'x': np.full((1, 2), -1, np.float32)}\n"
            "threading.Thread(target=m.run, args=(x,), daemon=True).start()\n"
            "print(m._process.pid, m._process._copy or '', flush=True)\ntime.sleep(60)\n"
        )
        with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            pid, _, copy = server.stdout.readline().strip().partition(" ")
            handler = os.pidfd_open(int(pid))
            server.send_signal(signal.SIGKILL)
            ended, _, _ = select.select([handler], [], [], 30)
            os.close(handler)
        if copy:
            import shutil

            shutil.rmtree(copy, ignore_errors=True)
        assert ended
