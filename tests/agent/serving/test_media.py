"""Pictures and sound over HTTP: the same tensors that the compiler makes, the answer in words, threads, refusals."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import time
import wave

import numpy as np
import pytest
from PIL import Image

from edgeserve.contracts.limits import MAX_SERVED_PIXELS, MAX_SERVED_SAMPLES
from edgeserve.contracts.task import AudioInput, Boxes, ImageInput, Kind, Resize, Task
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.runtimes.base import RuntimeOptions
from edgeserve.runtimes.onnx import OnnxRuntime
from edgeserve.task.prepare import prepare

INFER = "/v2/models/m/infer"
SIZE = 8
LABELS = ("dark", "grey", "bright")


def spec(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, datatype=Datatype.FP32, shape=shape)


PICTURES = Signature(inputs=(spec("x", -1, 3, SIZE, SIZE),), outputs=(spec("y", -1, 3),))
IMAGE = ImageInput(size=(SIZE, SIZE), scale=1 / 255)
CLASSIFY = Task(inputs=(IMAGE,), labels=LABELS)
SOUND = Signature(inputs=(spec("x", -1, 1600),), outputs=(spec("y", -1, 3),))
LISTEN = Task(kind=Kind.KEYWORDS, inputs=(AudioInput(samples=1600),), labels=LABELS)


def picture(kind: str = "JPEG", *, size: tuple[int, int] = (31, 17), level: int | None = None) -> bytes:
    """A picture of noise, or of one grey `level`."""
    width, height = size
    pixels = np.random.default_rng(7).integers(0, 256, (height, width, 3), np.uint8)
    if level is not None:
        pixels[:] = level
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def sound(*, samples: int = 1600, rate: int = 16_000) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes(np.random.default_rng(7).integers(-20_000, 20_000, samples, "<i2").tobytes())
    return file.getvalue()


class Seen:
    """What reached a model: compute function of a simulated one that says how bright a row is."""

    def __init__(self) -> None:
        self.inputs: list[dict[str, np.ndarray]] = []

    def __call__(self, inputs):
        self.inputs.append({name: array.copy() for name, array in inputs.items()})
        (rows,) = inputs.values()
        level = rows.reshape(len(rows), -1).mean(axis=1)
        return {"y": np.stack([1 - level, 0.9 - abs(level - 0.5), level], axis=1).astype(np.float32)}


@pytest.fixture
def serve(start_server, connect, tools):
    """Serves a simulated model under a task; returns what it saw and a function that sends it a body."""

    def start(task=CLASSIFY, signature=PICTURES, compute=None, **limits):
        server = start_server(**limits)
        seen = Seen()
        server.serve(tools.model(compute or seen, signature=signature), task=task)
        seen.inputs.clear()  # those of the warm-up
        client = connect(server)

        def send(body, path=INFER, **headers):
            return client.send(tools.request("POST", path, body, **headers)).answer()

        return server, seen, send

    return start


@pytest.mark.parametrize(
    ("task", "signature", "body", "headers"),
    [
        pytest.param(CLASSIFY, PICTURES, picture("JPEG"), {"content_type": "image/jpeg"}, id="jpeg"),
        pytest.param(CLASSIFY, PICTURES, picture("PNG"), {"content_type": "image/png"}, id="png"),
        pytest.param(CLASSIFY, PICTURES, picture("PNG"), {"content_type": "Image/PNG; a=b"}, id="png-in-other-letters"),
        pytest.param(CLASSIFY, PICTURES, picture("JPEG"), {"content_type": "image/png"}, id="named-wrongly"),
        pytest.param(CLASSIFY, PICTURES, picture("JPEG"), {"content_type": "application/octet-stream"}, id="bytes"),
        pytest.param(CLASSIFY, PICTURES, picture("JPEG"), {}, id="no-content-type"),
        pytest.param(CLASSIFY, PICTURES, picture("PNG", size=(700, 500)), {}, id="larger-than-the-read-buffer"),
        pytest.param(LISTEN, SOUND, sound(), {"content_type": "audio/wav"}, id="wav"),
        pytest.param(LISTEN, SOUND, sound(samples=900), {"content_type": "audio/x-wav"}, id="short-wav"),
    ],
)
def test_the_tensors_that_reach_the_model_are_those_of_the_compiler_bit_for_bit(serve, task, signature, body, headers):
    _server, seen, send = serve(task, signature)
    assert send(body, **headers).status == 200
    expected = prepare(task, signature, body, what="test").inputs
    (given,) = seen.inputs
    assert given.keys() == expected.keys()
    for name, array in expected.items():
        assert (given[name].dtype, given[name].shape) == (array.dtype, array.shape)
        assert given[name].tobytes() == array.tobytes()


def test_a_picture_is_answered_with_its_classes(serve, tools):
    _server, _seen, send = serve()
    answer = send(picture(level=250), content_type="image/jpeg")
    assert answer.headers["edgeserve-release"] == tools.digest(1)
    assert answer.json.keys() == {"model_name", "model_version", "predictions"}
    assert (answer.json["model_name"], answer.json["model_version"]) == ("m", "1")
    (prediction,) = answer.json["predictions"]
    assert [entry["label"] for entry in prediction["classes"]] == ["bright", "grey", "dark"]
    assert prediction["classes"][0]["score"] == pytest.approx(250 / 255, abs=0.01)


def test_outputs_come_when_they_are_asked_for(serve):
    _server, _seen, send = serve()
    (output,) = send(picture(level=0), INFER + "?outputs=1").json["outputs"]
    assert output == {"name": "y", "datatype": "FP32", "shape": [1, 3], "data": pytest.approx([1.0, 0.4, 0.0])}
    assert "outputs" not in send(picture(level=0), INFER + "?outputs=0").json
    refused = send(picture(level=0), INFER + "?outputs=yes")
    assert (refused.status, refused.error) == (400, "?outputs=yes is neither 0 nor 1")


def test_a_version_in_the_path_is_obeyed(serve):
    _server, _seen, send = serve()
    assert send(picture(), "/v2/models/m/versions/1/infer").status == 200
    assert send(picture(), "/v2/models/m/versions/2/infer").status == 404


def test_boxes_are_in_pixels_of_the_picture(serve):
    signature = Signature(inputs=PICTURES.inputs, outputs=(spec("y", -1, 1, 6),))
    task = Task(
        kind=Kind.DETECTION, inputs=(IMAGE,), labels=("thing",), boxes=Boxes(layout="end-to-end", format="xyxy")
    )
    box = np.array([[[2, 2, 6, 4, 0.75, 0]]], np.float32)
    _server, _seen, send = serve(task, signature, lambda _inputs: {"y": box})
    (prediction,) = send(picture(size=(80, 160)), content_type="image/jpeg").json["predictions"]
    assert prediction["boxes"] == [
        {"label": "thing", "index": 0, "score": 0.75, "box": pytest.approx([20.0, 40.0, 60.0, 80.0])}
    ]


def test_a_clip_goes_through_a_stateful_model_step_by_step(serve):
    signature = Signature(
        inputs=(spec("x", 1, 400), spec("before", 1, 1)), outputs=(spec("y", 1, 2), spec("after", 1, 1))
    )
    task = Task(kind=Kind.KEYWORDS, inputs=(AudioInput(name="x", chunk=400),), state={"before": "after"})
    states = []

    def count(inputs):
        states.append(float(inputs["before"][0, 0]))
        after = inputs["before"] + 1
        return {"y": np.concatenate([after, -after], axis=1), "after": after}

    _server, _seen, send = serve(task, signature, count)
    states.clear()
    answer = send(sound(samples=1600), INFER + "?outputs=1", content_type="audio/wav")
    assert states == [0.0, 1.0, 2.0, 3.0]
    assert [step["classes"][0]["score"] for step in answer.json["predictions"]] == [1.0, 2.0, 3.0, 4.0]
    assert answer.json["outputs"][0]["shape"] == [1, 4, 2]


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        (INFER + "?id=r%C3%A9-1", {}),
        (INFER, {"x_request_id": "r-1"}),
        (INFER + "?id=r-1&outputs=1", {"x_request_id": "other"}),
    ],
    ids=["query", "header", "query-wins"],
)
def test_feedback_finds_the_request_by_its_id(serve, path, headers):
    server, _seen, send = serve()
    answer = send(picture(level=250), path, **headers)
    request_id = answer.json["id"]
    assert request_id in ("ré-1", "r-1")
    (judgement,) = server.call(server.plane.feedback, "m", [(request_id, "bright")])
    assert (judgement.verdict.value, judgement.rows, judgement.correct) == ("counted", 1, 1)


@pytest.mark.parametrize(
    ("task", "body", "headers", "says"),
    [
        pytest.param(None, picture(), {"content_type": "image/jpeg"}, "send tensors", id="no-task"),
        pytest.param(Task(), picture(), {}, "compile it with [[inputs]]", id="no-inputs"),
        pytest.param(CLASSIFY, sound(), {}, "takes image files, not audio", id="sound-for-pictures"),
        pytest.param(CLASSIFY, b"", {"content_type": "audio/wav"}, "takes image files", id="nothing-for-pictures"),
        pytest.param(CLASSIFY, b"GIF89a", {"content_type": "image/gif"}, "image/gif is not taken", id="gif"),
        pytest.param(CLASSIFY, b"<svg/>", {"content_type": "image/svg+xml"}, "JPEG, PNG", id="svg"),
    ],
)
def test_a_file_that_the_model_has_no_input_for_is_refused_with_the_way_out(serve, task, body, headers, says):
    server, seen, send = serve(task)
    answer = send(body, **headers)
    assert answer.status == 415
    assert says in answer.error
    assert "send" in answer.error or "JPEG" in answer.error
    assert seen.inputs == []
    assert [one.rejected for one in server.plane.counters()] == [1]


def too_many_pixels() -> bytes:
    side = int(MAX_SERVED_PIXELS**0.5) + 1
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        pytest.param(b"", "the request body", id="empty"),
        pytest.param(b"not a picture", "the request body", id="text"),
        pytest.param(picture()[:200], "the request body", id="cut-off"),
        pytest.param(b"\xff\xd8\xff" + b"\0" * 500, "the request body", id="only-the-first-bytes"),
        pytest.param(too_many_pixels(), "pixels", id="too-many-pixels"),
    ],
)
def test_a_bad_picture_is_the_clients_mistake_and_the_connection_lives(serve, body, says):
    server, seen, send = serve()
    answer = send(body, content_type="image/jpeg")
    assert answer.status == 400
    assert says in answer.error
    assert seen.inputs == []
    assert [(one.rejected, one.failed.count) for one in server.plane.counters()] == [(1, 0)]
    assert send(picture(), content_type="image/jpeg").status == 200


def test_sound_at_another_rate_is_refused_with_both_rates(serve):
    _server, _seen, send = serve(LISTEN, SOUND)
    answer = send(sound(rate=8_000), content_type="audio/wav")
    assert answer.status == 400
    assert "8000" in answer.error.replace(" ", "")
    assert "16000" in answer.error.replace(" ", "")


def test_sound_for_a_stateful_model_is_no_longer_than_a_thread_can_hold(serve):
    signature = Signature(
        inputs=(spec("x", 1, 400), spec("before", 1, 1)), outputs=(spec("y", 1, 3), spec("after", 1, 1))
    )
    task = Task(kind=Kind.KEYWORDS, inputs=(AudioInput(name="x", chunk=400),), state={"before": "after"})

    def compute(inputs):
        return {"y": np.zeros((1, 3), np.float32), "after": inputs["before"]}

    _server, _seen, send = serve(task, signature, compute)
    answer = send(sound(samples=MAX_SERVED_SAMPLES + 1), content_type="audio/wav")
    assert answer.status == 400
    assert f"at most {MAX_SERVED_SAMPLES} are taken" in answer.error


def test_a_task_that_does_not_fit_the_outputs_is_the_servers_fault(serve):
    _server, _seen, send = serve(Task(inputs=(IMAGE,)), compute=lambda _inputs: {"y": np.zeros((1, 3), np.float32)})
    assert send(picture()).status == 200
    server, _seen, send = serve(
        Task(inputs=(IMAGE,), kind=Kind.DETECTION, boxes=Boxes(layout="split", scores="nowhere"))
    )
    answer = send(picture())
    assert answer.status == 500
    assert "the task does not fit" in answer.error
    assert [one.failed.count for one in server.plane.counters()] == [1]


def test_files_count_in_the_metrics_like_other_requests(serve):
    server, _seen, send = serve()
    for body in (picture(), picture("PNG"), b"\xff\xd8\xffno"):
        send(body, content_type="image/jpeg")
    (counters,) = server.plane.counters()
    assert (counters.successes, counters.rows, counters.failed.count, counters.rejected) == (2, 2, 0, 1)
    assert sum(counters.latency) == 2
    assert counters.success_ns > 0


def test_decoding_a_large_picture_does_not_keep_the_loop_from_other_requests(serve, connect, tools):
    server, _seen, send = serve()
    body = picture(size=(5000, 4000), level=128)
    began = time.monotonic()
    assert send(body, content_type="image/jpeg").status == 200
    alone = time.monotonic() - began
    took = []

    def decode() -> None:
        send(body, content_type="image/jpeg")

    sending = threading.Thread(target=decode)
    sending.start()
    other = connect(server)
    while sending.is_alive():
        began = time.monotonic()
        other.send(tools.request("GET", "/v2/health/live")).answer()
        took.append(time.monotonic() - began)
    sending.join()
    assert len(took) > 5
    assert sorted(took)[len(took) // 2] < alone / 4


def test_json_and_binary_tensors_go_on_as_before(serve, tools):
    _server, _seen, send = serve()
    values = np.zeros((1, 3, SIZE, SIZE), np.float32)
    body = tools.infer_json(values.ravel().tolist(), shape=values.shape)
    for headers in ({}, {"content_type": "application/json"}, {"content_type": "application/octet-stream"}):
        assert send(body, **headers).status == 200
    assert send(picture(), content_type="application/json").status == 400
    assert send(body, content_type="image/jpeg").status == 400


def test_real_pictures_get_the_classes_of_the_models_own_recipe(start_server, connect, tools, realdata):
    """SqueezeNet, with the preprocessing of its authors written down once more."""
    task = Task(
        inputs=(
            ImageInput(
                size=(224, 224), resize=Resize.CROP, shorter_side=256, scale=1 / 255,
                mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
            ),
        )
    )  # fmt: skip
    model = OnnxRuntime().load(realdata / "models" / "squeezenet1_1.onnx", RuntimeOptions())
    server = start_server()
    server.serve(model, task=task)
    client = connect(server)
    for path in sorted((realdata / "data" / "imagenet500" / "images").glob("*.jpg"))[:500:50]:
        pixels = np.asarray(Image.open(path).convert("RGB"))[16:240, 16:240] / 255
        row = ((pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).astype(np.float32).transpose(2, 0, 1)[None]
        expected = model.run({"input": row})["logits"][0]
        answer = client.send(tools.request("POST", INFER, path.read_bytes(), content_type="image/jpeg")).answer()
        best = answer.json["predictions"][0]["classes"][0]
        assert best["index"] == int(expected.argmax())
        assert best["score"] == pytest.approx(float(expected.max()), rel=1e-4)


def test_a_server_imports_no_image_library_before_the_first_picture():
    program = "import sys, edgeserve_agent.serving.process; print('PIL' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"
