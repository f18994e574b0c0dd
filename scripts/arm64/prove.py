"""Hold a built image to what docs/images.md says of it; scripts/arm64.sh unpacks it and says where it is.

`edgeserve serve` runs in one container on a folder of two models, the agent in another with a release installed. Both
have to give the classes that the same files give on this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
from container import Container, Image
from material import ASK, ROOT, Material
from weigh import weigh_layers, weigh_packages

URL = "http://127.0.0.1:8000"
STATE = "/var/lib/edgeserve"
COMPILERS = {"gcc", "g++", "cc", "c++", "cc1", "clang", "ld", "as", "make", "rustc", "go"}
MAX_MB_ABOVE_BASE = {"arm64": 180, "amd64": 195}
"""The x86-64 build of ONNX Runtime is 16 MB larger."""
FEATURES = {"arm64": {"asimd", "asimdhp", "asimddp"}, "amd64": {"sse4_2"}}
"""What the probe has to name: on Arm half precision and the int8 dot product of an emulated Cortex-A76."""


class Proof:
    """Prints what was seen, and remembers whether all of it was right."""

    failed = False

    def holds(self, right: bool, what: str, detail: object = "") -> None:
        """Note one thing."""
        self.failed |= not right
        print(f"  {'ok    ' if right else 'FAILED'}  {what}{f': {detail}' if detail else ''}", flush=True)


def main() -> int:
    options = _options()
    emulation = {"QEMU_CPU": options.cpu} if options.arch == "arm64" else {}
    image = Image.read(options.rootfs, options.image, emulation)
    owner = int(str(image.config["User"]).partition(":")[0])
    material = Material.make(options.data, options.arch, options.scratch)
    models = {"/models": material.models}
    device = {"/models": material.release, "/etc/edgeserve": _configuration(options.scratch / "etc")}
    state = {name: {STATE: _owned(options.scratch / name, owner)} for name in ("server", "agent")}
    logs = {name: options.scratch / f"{name}.log" for name in ("server", "install", "agent")}
    install = ("agent", "install", "/models", "--config", "/etc/edgeserve/agent.toml")
    proof = Proof()
    with (
        Container(image, "serve", "/models", mounts=models, writable=state["server"], log=logs["server"]) as server,
        Container(image, *install, mounts=device, writable=state["agent"], log=logs["install"]) as installing,
    ):
        material.answer_here()
        print(f"Image for {options.arch}{f', on an emulated {options.cpu}' if emulation else ''}")
        total = weigh_layers(options.layers, options.dockerfile)
        weigh_packages(options.rootfs / "opt/edgeserve")
        most = MAX_MB_ABOVE_BASE[options.arch]
        proof.holds(total <= most * 1e6, f"the layers above the base weigh at most {most} MB")
        look_inside(proof, image)
        print("edgeserve serve")
        becomes_healthy(proof, server)
        is_confined(proof, server)
        is_probed(proof, server, FEATURES[options.arch])
        answers(proof, server, material, "digits", "kws")
        notices(proof, server)
        leaves_nothing(proof, server)
        ends(proof, server)
        print("edgeserve agent install, then what the image runs by itself: edgeserve agent run")
        code = installing.wait(timeout_s=300)
        said = " ".join(installing.output().splitlines()[-1:])
        proof.holds(code == 0, "a release is tried, reproduces its golden set and is installed", said)
    with Container(image, mounts=device, writable=state["agent"], log=logs["agent"]) as agent:
        becomes_healthy(proof, agent)
        answers(proof, agent, material, "kws")
        leaves_nothing(proof, agent)
        ends(proof, agent)
    return 1 if proof.failed else 0


def look_inside(proof: Proof, image: Image) -> None:
    """Neither compilers nor caches, and a program that its own user cannot change."""
    files = list(image.rootfs.rglob("*"))
    compilers = [path for path in files if path.name in COMPILERS and path.parent.name == "bin"]
    proof.holds(not compilers, "no compiler", _some(compilers))
    caches = [path for path in files if path.name == "__pycache__" or path.parts[-2:] == (".cache", "pip")]
    proof.holds(not caches, "no __pycache__, no cache of pip", _some(caches))
    others = [path for path in (image.rootfs / "opt/edgeserve").rglob("*") if path.lstat().st_uid != 0]
    proof.holds(not others, "its user owns no file of the program", _some(others))


def becomes_healthy(proof: Proof, container: Container) -> None:
    """The image's own HEALTHCHECK says so in the end."""
    proof.holds(True, "HEALTHCHECK says 0", f"after {container.wait_healthy():.1f} s")


def is_confined(proof: Proof, container: Container) -> None:
    """No root, no capabilities, nothing writable but what was mounted for it."""
    lines = Path(f"/proc/{container.pid}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    uid, capabilities = status["Uid"].split()[1], int(status["CapEff"], 16)
    proof.holds(uid != "0" and not capabilities, f"process 1 is uid {uid} without capabilities")
    tried = container.run("touch", "/opt/edgeserve/x", "/etc/x", "/x")
    refused = tried.stderr.count("Read-only file system")
    proof.holds(refused == 3, "the root file system is read-only", "" if refused == 3 else tried.stderr)


def is_probed(proof: Proof, container: Container, wanted: set[str]) -> None:
    """`edgeserve devices probe` names the processor that the container runs on."""
    probed = container.run("edgeserve", "devices", "probe", "--json")
    if probed.returncode:
        proof.holds(False, "edgeserve devices probe", probed.stderr)
        return
    facts = json.loads(probed.stdout)
    features = facts["cpu_features"]
    named = f"{facts['architecture']}, {facts['cpu']}: {' '.join(features)}"
    proof.holds(wanted <= set(features) and bool(facts["cpu"]), "edgeserve devices probe", named)


def answers(proof: Proof, container: Container, material: Material, *models: str) -> None:
    """The same classes as on this machine."""
    asked = container.beside(*ASK, URL, str(material.rows), *models)
    if asked.returncode:
        proof.holds(False, "it answers", asked.stderr + container.output())
        return
    for model, classes in json.loads(asked.stdout).items():
        right = np.count_nonzero(np.array(classes) == material.labels[model])
        differ = sum(one != other for one, other in zip(classes, material.expected[model], strict=True))
        what = f"{model}: the classes are those of x86-64"
        proof.holds(not differ, what, f"{len(classes)} rows, {differ} differ, {right} are right")


def notices(proof: Proof, container: Container) -> None:
    """HEALTHCHECK says 1 of a server that hangs, or that is not there."""
    check = container.image.health_check
    os.kill(container.pid, signal.SIGSTOP)
    hung = container.run(*check).returncode
    os.kill(container.pid, signal.SIGCONT)
    absent = container.run("env", "EDGESERVE_HEALTH=127.0.0.1:9", *check).returncode
    began = time.monotonic()
    sound = container.run(*check).returncode
    took = f"a check takes {(time.monotonic() - began) * 1e3:.0f} ms"
    proof.holds((hung, absent, sound) == (1, 1, 0), "HEALTHCHECK says 1 of a server that hangs or is absent", took)


def leaves_nothing(proof: Proof, container: Container) -> None:
    """HOME could be written, and nothing was."""
    listed = container.run("ls", "-A", container.image.environment["HOME"])
    proof.holds(listed.returncode == 0 and not listed.stdout, "no file in HOME", " ".join(listed.stdout.split()))


def ends(proof: Proof, container: Container) -> None:
    """SIGTERM is enough, within the ten seconds that `docker stop` waits."""
    code, seconds = container.stop(timeout_s=10)
    proof.holds(code == 0, "SIGTERM ends process 1", f"exit code {code} after {seconds:.1f} s")


def _configuration(folder: Path) -> Path:
    folder.mkdir()
    (folder / "agent.toml").write_text('[device]\nid = "proof.emulated"\n')
    return folder


def _owned(folder: Path, owner: int) -> Path:
    folder.mkdir()
    os.chown(folder, owner, owner)
    return folder


def _some(paths: list[Path]) -> str:
    return " ".join(map(str, paths[:3]))


def _options() -> argparse.Namespace:
    beside = ROOT.parent / "shared/realdata"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rootfs", type=Path, required=True, help="where it is unpacked")
    parser.add_argument("--image", type=Path, required=True, help="what `buildah inspect` says of it")
    parser.add_argument("--layers", type=Path, required=True, help="the same image as an OCI layout")
    parser.add_argument("--dockerfile", type=Path, required=True)
    parser.add_argument("--arch", choices=sorted(FEATURES), required=True)
    parser.add_argument("--scratch", type=Path, required=True, help="an empty folder")
    parser.add_argument("--cpu", default="cortex-a76", help="QEMU_CPU")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("EDGESERVE_TESTDATA") or beside))
    options = parser.parse_args()
    if not options.data.is_dir():
        parser.error(f"no test data at {options.data}: name their folder in EDGESERVE_TESTDATA (docs/testdata.md)")
    return options


if __name__ == "__main__":
    sys.exit(main())
