"""Containers of an unpacked image, as an engine would run them, by what every Debian has: unshare, chroot, nsenter."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SHELL = Path(__file__).with_name("container.sh")


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image's root file system and what its configuration says."""

    rootfs: Path
    config: Mapping[str, object]
    emulation: Mapping[str, str]
    """Variables for the emulator; in the container's environment, where it looks for them."""

    @classmethod
    def read(cls, rootfs: Path, document: Path, emulation: Mapping[str, str]) -> Image:
        config = json.loads(document.read_text())["Docker"]["config"]
        return cls(rootfs=rootfs, config=config, emulation=emulation)

    @property
    def environment(self) -> dict[str, str]:
        # A home that can be written, in the container's /tmp: nothing may appear there.
        return {**dict(entry.split("=", 1) for entry in self.config["Env"]), **self.emulation, "HOME": "/tmp/home"}

    @property
    def health_check(self) -> list[str]:
        kind, *command = self.config["Healthcheck"]["Test"]
        assert kind == "CMD", kind
        return command

    def command(self, arguments: Sequence[str]) -> list[str]:
        return [*self.config["Entrypoint"], *(arguments or self.config["Cmd"])]


class Container:
    """A running container; its root file system cannot be written and it sees no network but its own loopback."""

    def __init__(
        self, image: Image, *arguments: str, mounts: Mapping[str, Path], writable: Mapping[str, Path], log: Path
    ) -> None:
        self.image = image
        self.log = log
        binds = [f"{source}:{target}:ro" for target, source in mounts.items()]
        binds += [f"{source}:{target}:rw" for target, source in writable.items()]
        user = str(image.config["User"])
        with log.open("wb") as output:
            self._unshare = subprocess.Popen(
                ["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child=KILL", "--propagation", "private",
                 SHELL, image.rootfs, user, *binds, "--", "/usr/bin/env", "-i",
                 *(f"{name}={value}" for name, value in image.environment.items()), *image.command(arguments)],
                stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_: object) -> None:
        self._unshare.kill()  # which kills process 1, which ends the namespace
        self._unshare.wait()

    @property
    def pid(self) -> int:
        """Process 1, as the host numbers it."""
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
        while self._unshare.poll() is None:
            if numbers := children.read_text().split():
                return int(numbers[0])
            time.sleep(0.01)
        raise RuntimeError(f"the container has ended with {self._unshare.returncode}:\n{self.output()}")

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def run(self, *command: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """As `docker exec`: the image's user and environment, every namespace of the container."""
        user, _, group = str(self.image.config["User"]).partition(":")
        return subprocess.run(
            ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--net", "--root", "--wd",
             "--setuid", user, "--setgid", group, "--", *command],
            env=self.image.environment, capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip

    def beside(self, *command: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        """Run one of the host's programs in the container's network."""
        return subprocess.run(
            ["nsenter", "--target", str(self.pid), "--net", "--", *command],
            capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip

    def wait_healthy(self, timeout_s: float = 180) -> float:
        """Run the image's own HEALTHCHECK until it says 0; returns the seconds that took."""
        began = time.monotonic()
        while True:
            asked = self.run(*self.image.health_check)
            if asked.returncode == 0:
                return time.monotonic() - began
            if time.monotonic() - began > timeout_s:
                raise RuntimeError(f"not healthy in {timeout_s:.0f} s: {asked.stderr}\n{self.output()}")
            time.sleep(0.25)

    def wait(self, timeout_s: float) -> int:
        """Wait for process 1 to end by itself; returns its exit code."""
        return self._unshare.wait(timeout_s)

    def stop(self, timeout_s: float = 10) -> tuple[int, float]:
        """As `docker stop`: SIGTERM to process 1; its exit code and the seconds that took, within docker's patience."""
        began = time.monotonic()
        os.kill(self.pid, signal.SIGTERM)
        return self._unshare.wait(timeout_s), time.monotonic() - began
