from __future__ import annotations

import subprocess
import sys

HEAVY = ("numpy", "onnxruntime", "onnx", "openvino", "PIL", "typer", "rich", "sqlalchemy", "starlette")


def test_the_control_part_imports_nothing_heavy():
    program = f"import sys, edgeserve_agent.daemon; print([name for name in {HEAVY} if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
