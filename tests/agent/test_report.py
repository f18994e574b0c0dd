"""What the reported document and `edgeserve agent status` say of a model that is served."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeserve.cli.main import main
from edgeserve.contracts.device import DeviceFacts
from edgeserve.contracts.documents import decode, encode
from edgeserve.contracts.reported import Reported
from edgeserve_agent import status
from edgeserve_agent.config import AgentConfig, DeviceSection
from edgeserve_agent.control import ServedRelease, ServingStatus
from edgeserve_agent.journal import Journal
from edgeserve_agent.report import Reporter
from edgeserve_agent.slots import ModelSlots, Slot, Slots

RELEASE, VARIANT = "sha256:" + "1" * 64, "sha256:" + "2" * 64
WHY = "TENSORRT was asked for, CPU runs it: this ONNX Runtime has no TensorrtExecutionProvider"
SLOTS = Slots(models=(ModelSlots(model="digits", active=Slot(release=RELEASE, version="1", variant=VARIANT)),))


def serving(fallback: str) -> ServingStatus:
    served = ServedRelease(
        model="digits", version="1", release=RELEASE, variant=VARIANT, active=True, executing_device="CPU",
        fallback=fallback,
    )  # fmt: skip
    return ServingStatus(pid=1, started="life-1", http_url="", releases=(served,))


@pytest.mark.parametrize(("said", "reported"), [("", ""), (WHY, WHY), ("x" * 5000, "x" * 1000)])
def test_a_fallback_is_reported_and_bounded(tmp_path: Path, said: str, reported: str) -> None:
    config = AgentConfig(device=DeviceSection(id="default.one"), state_dir=str(tmp_path))
    reporter = Reporter(config, DeviceFacts(architecture="amd64"))
    built = reporter.build(Journal(install_id="a", epoch=1), SLOTS, serving(said), free_bytes=1, error="")
    (report,) = decode(encode(built), Reported, what="report", limit=1 << 20).models
    assert report.fallback == reported
    assert report.executing_device == "CPU"


@pytest.mark.parametrize("said", ["", WHY])
def test_agent_status_says_it_in_words_and_in_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], said: str
) -> None:
    monkeypatch.setattr(status.slots, "read", lambda _folder: SLOTS)
    monkeypatch.setattr(status, "call", lambda *_arguments, **_options: serving(said))
    for arguments, shown in (([], f"FALLBACK: digits: {WHY}"), (["--json"], f'"fallback": "{WHY}"')):
        with pytest.raises(SystemExit) as ended:
            main(["agent", "status", "--state-dir", str(tmp_path), *arguments])
        assert not ended.value.code
        assert (shown in capsys.readouterr().out) is bool(said)
