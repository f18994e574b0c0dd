"""The session that every peer computes with: the settings of raw.py and of `edgeserve serve`."""

import os
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime


def load(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def load_all(folder):
    """Session and shape of the input of each model in the repository, by name."""
    sessions = {one.name: load(one / "1" / "model.onnx") for one in Path(folder).iterdir()}
    return {name: (session, session.get_inputs()[0].shape) for name, session in sessions.items()}
