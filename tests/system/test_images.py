"""What can be said of the images without building one; `make arm64` builds and runs one (docs/images.md)."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from edgeserve_agent.serving.process import ADDRESSES, Addresses

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = ("Dockerfile", "Dockerfile.arm64", "Dockerfile.jetson")
HEALTH = ROOT / "agent/image/bin/edgeserve-health"


def stages(name: str) -> list[list[str]]:
    """Instructions of each stage, one a line; before the first FROM there are arguments."""
    text = re.sub(r"^#.*\n", "", (ROOT / name).read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    parts = re.split(r"^(?=FROM )", text, flags=re.MULTILINE)
    return [[" ".join(line.split()) for line in part.splitlines() if line.strip()] for part in parts]


@pytest.mark.parametrize(("name", "platform", "machine"), [
    ("Dockerfile", "linux/amd64", "x86_64"), ("Dockerfile.jetson", "linux/arm64", "aarch64"),
])  # fmt: skip
def test_an_image_differs_from_that_of_arm64_in_its_platform_and_base_only(
    name: str, platform: str, machine: str
) -> None:
    def told_apart(instruction: str) -> str:
        return instruction.replace("aarch64", machine).replace("linux/arm64", platform)

    _arguments, *expected = stages("Dockerfile.arm64")
    _arguments, *found = stages(name)
    assert found[0] == [told_apart(one) for one in expected[0]]
    assert found[1][0].startswith(f"FROM --platform={platform} ")
    assert found[1][1:] == expected[1][1:]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_stage_that_ships_only_copies_and_is_not_root(name: str) -> None:
    last = stages(name)[-1]
    assert {one.split()[0] for one in last}.isdisjoint({"RUN", "ADD", "SHELL"})
    copies = [one for one in last if one.startswith("COPY")]
    assert copies
    assert all("--from=packages" in one for one in copies)
    assert "USER 10001:10001" in last
    assert "STOPSIGNAL SIGTERM" in last


def test_the_builder_is_sent_every_package_and_little_else() -> None:
    packages = msgspec.toml.decode((ROOT / "pyproject.toml").read_bytes())["tool"]["hatch"]["build"]["targets"]["wheel"]
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    assert ignored[0] == "*"
    assert allowed == {path.split("/")[0] for path in packages["packages"]} | {"pyproject.toml", "README.md", "LICENSE"}


@contextmanager
def server(answer: bytes | None, host: str = "127.0.0.1") -> Iterator[tuple[str, list[bytes]]]:
    """One connection on loopback, answered with `answer` or left waiting; gives its address and what was asked."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    asked: list[bytes] = []
    with socket.create_server((host, 0), family=family) as listener:

        def serve() -> None:
            connection, _address = listener.accept()
            with connection:
                request = b""
                while not request.endswith(b"\r\n\r\n") and (more := connection.recv(4096)):
                    request += more
                asked.append(request)
                if answer is None:
                    connection.recv(1)  # until the client gives up
                else:
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"[{host}]:{listener.getsockname()[1]}" if ":" in host else f"{host}:{listener.getsockname()[1]}", asked
        thread.join(30)


def check(address: str = "", state: Path = Path("/nonexistent")) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "EDGESERVE_HEALTH": address, "EDGESERVE_STATE_DIR": str(state)}
    return subprocess.run([HEALTH], env=environment, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize(("answer", "code"), [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 0),
    (b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", 1),
    (b"HTTP/1.1 2000 OK\r\n\r\n", 1),
    (b"SSH-2.0-OpenSSH_9.2\r\n", 1),
    (b"", 1),
    (None, 1),
], ids=["200", "503", "2000", "another protocol", "closes", "hangs"])  # fmt: skip
def test_the_health_check_believes_only_a_server_that_says_so(answer: bytes | None, code: int) -> None:
    with server(answer) as (address, asked):
        assert check(address).returncode == code
    assert asked[0].startswith(b"GET /v2/health/live HTTP/1.1\r\nHost: ")
    assert asked[0].endswith(b"\r\n\r\n")


def test_the_health_check_says_no_where_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    assert check(f"127.0.0.1:{port}").returncode == 1


def test_the_health_check_asks_where_the_agents_server_wrote_that_it_listens(tmp_path: Path) -> None:
    with server(b"HTTP/1.1 200 OK\r\n\r\n") as (address, asked):
        addresses = Addresses(http=f"http://{address}", pid=1, started="0")
        (tmp_path / ADDRESSES).write_bytes(msgspec.json.encode(addresses))
        assert check(state=tmp_path).returncode == 0
    assert asked


def test_the_health_check_reads_an_ipv6_address() -> None:
    with server(b"HTTP/1.1 200 OK\r\n\r\n", host="::1") as (address, _asked):
        assert check(address).returncode == 0


def test_a_machine_that_cannot_emulate_says_why_it_is_skipped() -> None:
    environment = {**os.environ, "EDGESERVE_SKIP_ARM64": "no root here"}
    done = subprocess.run(
        [ROOT / "scripts/arm64.sh"], env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0
    assert "no root here" in done.stderr
