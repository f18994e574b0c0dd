"""The net that int8 is hard for: ours and NNCF's accuracy control, judged on rows that neither of them saw."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import compile_peers as peers
import hard_net
from compile_measure import HERE, Row, judged, section, theirs

from edgeserve.contracts.oci import ReleaseIdentity
from edgeserve.contracts.task import Task
from edgeserve.runtimes.variant import load_variant
from edgeserve_compilers.run import Request, compile_model
from edgeserve_compilers.spec import PrecisionChoice
from edgeserve_compilers.subject import Wish, open_float, read_subject
from edgeserve_compilers.verify import Reference, refer

NAME = "A MobileNetV3-like net that int8 is hard for"
CACHE = HERE.parent / ".cache" / "benchmarks"


def hard() -> str:
    """Make the net if it is not there, and measure.

    Returns:
        A section in Markdown.
    """
    files = hard_net.make(CACHE / "hard-net")
    task = Task(output="logits", metric="top1")
    wish = Wish(
        model=str(files["model"]), calibration=str(files["calibration"]), validation=str(files["validation"]), task=task
    )
    test = read_subject(Wish(model=str(files["model"]), validation=str(files["test"]), task=task))
    validation = read_subject(wish)
    assert validation.calibration is not None
    floats = open_float(test.model, files["model"])
    reference = refer(floats, test.judged_on, test.task)
    truth = validation.judged_on.truth
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for max_drop in (0.01, 0.003):
            own = folder / f"nncf-{max_drop}"
            own.mkdir()
            began = time.perf_counter()
            runtime, product = peers.nncf_accuracy_control(
                files["model"], validation.calibration.inputs, own, validation=validation.judged_on.inputs,
                accuracy=lambda outputs: float((outputs["logits"].argmax(1) == truth).mean()), max_drop=max_drop,
            )  # fmt: skip
            seconds = time.perf_counter() - began
            peer = judged(
                f"nncf accuracy control, {max_drop}", "defaults", runtime, product, files["model"], reference, seconds
            )
            rows.append(peer)
            rows += [
                _hard_row(wish, target, max_drop, folder, files["model"], reference, peer)
                for target in ("x86-cpu", "arm-cpu", "intel-cpu")
            ]
        for who in ("onnxruntime", "nncf", "ai-edge-quantizer"):
            rows += theirs(who, validation, reference, validation.calibration.inputs, files["model"], folder)
    return section(NAME, rows)


def _hard_row(
    wish: Wish, target: str, max_drop: float, folder: Path, model: Path, reference: Reference, peer: Row
) -> Row:
    request = Request(
        wish=wish, targets=(target,), precision=PrecisionChoice.INT8, max_accuracy_drop=max_drop,
        identity=ReleaseIdentity(name="hard", version="1", counter=1), destination=folder / f"{target}-{max_drop}",
    )  # fmt: skip
    began = time.perf_counter()
    ends: dict[str, float] = {}
    """When each form was last heard of: a target may have more than the one product that is compared here."""

    def heard(_done: int, _total: int, what: str) -> None:
        now = time.perf_counter() - began
        if ends:
            ends[list(ends)[-1]] = now
        ends.setdefault(what.partition(":")[0], now)

    release = compile_model(request, heard).release
    seconds = ends[target]
    assert release is not None
    variant = release.variants[0]
    unpacked = folder / f"{target}-{max_drop}-unpacked"
    release.unpack(variant, unpacked)
    contract, loaded = load_variant(unpacked, simulate=target == "arm-cpu")
    loaded.close()
    row = judged(
        f"edgeserve {target}, {max_drop}", contract.precision.value, contract.runtime, unpacked / contract.entry, model,
        reference, seconds,
    )  # fmt: skip
    row.bound = max_drop
    row.ok = row.value >= peer.value and seconds < peer.seconds / 2
    row.note = f"{row.value - peer.value:+.4f} and {seconds / peer.seconds:.2f} of the time of accuracy control"
    return row
