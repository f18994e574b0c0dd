"""OVMS' client (TensorFlow Serving's REST API): always a version in the path, 0 for the one that answers."""

from __future__ import annotations

import numpy as np

from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec

SCRIPT = """
import sys
import numpy as np
import ovmsclient

client = ovmsclient.make_http_client(sys.argv[1])
for version in (0, 7):
    assert client.get_model_status("m", version) == {7: {"state": "AVAILABLE", "error_code": 0, "error_message": ""}}
    metadata = client.get_model_metadata("m", version)
    assert metadata["model_version"] == 7, metadata
    assert metadata["inputs"] == {"x": {"shape": [-1, 4], "dtype": "DT_FLOAT"}}, metadata
    assert metadata["outputs"] == {"y": {"shape": [-1, 3], "dtype": "DT_FLOAT"}}, metadata
rows = np.arange(8, dtype=np.float32).reshape(2, 4)
for inputs in (rows, rows.tolist()):
    for version in (0, 7):
        found = client.predict({"x": inputs}, "m", version)
        assert found.tolist() == [[6.0] * 3, [22.0] * 3], found
two = client.predict({"a": np.float32([[1], [2]]), "b": [b"one", b"\\xff\\x01"]}, "two")
assert two["sum"].tolist() == [2, 4] and two["back_bytes"].tolist() == [{"b64": "b25l"}, {"b64": "/wE="}], two

def refused(call, kind, says):
    try:
        call()
    except kind as error:
        assert says in str(error), error
    else:
        raise AssertionError(f"not refused: {says}")

errors = ovmsclient.tfs_compat.base.errors
refused(lambda: client.predict({"x": rows}, "nobody"), errors.ModelNotFoundError, "unknown model 'nobody'")
refused(lambda: client.get_model_status("m", 9), errors.ModelNotFoundError, "no version '9'")
refused(lambda: client.get_model_metadata("nobody"), errors.ModelNotFoundError, "unknown model 'nobody'")
refused(lambda: client.predict({"x": rows[:, :3]}, "m"), errors.InvalidInputError, "has shape [2, 3]")
refused(lambda: client.predict({"z": rows}, "m"), errors.InvalidInputError, "'z' is not one of the model's")
print("all well")
"""


def test_ovmsclient_predicts_reads_metadata_and_status_and_our_errors(
    shared_server, ovmsclient_python, run_foreign, tools
):
    signature = Signature(
        inputs=(
            TensorSpec(name="a", datatype=Datatype.FP32, shape=(-1, 1)),
            TensorSpec(name="b", datatype=Datatype.BYTES, shape=(-1,)),
        ),
        outputs=(
            TensorSpec(name="sum", datatype=Datatype.FP32, shape=(-1,)),
            TensorSpec(name="back_bytes", datatype=Datatype.BYTES, shape=(-1,)),
        ),
    )

    def compute(given):
        return {"sum": (2 * given["a"][:, 0]).astype(np.float32), "back_bytes": given["b"]}

    shared_server.serve(tools.model(compute, signature=signature), name="two")
    printed = run_foreign([ovmsclient_python, "-W", "ignore", "-c", SCRIPT, f"127.0.0.1:{shared_server.port}"])
    assert printed == "all well\n"
