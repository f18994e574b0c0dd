from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from edgeserve.contracts.errors import (
    ConflictError,
    DeviceError,
    EdgeServeError,
    InputError,
    NotFoundError,
)
from edgeserve_agent.serving.model_folder import ModelFolders, is_repository
from edgeserve_agent.serving.model_source import OpenOptions
from edgeserve_agent.serving.opened import warm_up
from tests.suites.repository import ROW, put_release, put_version


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def folders(root: Path, tmp_path: Path) -> ModelFolders:
    return ModelFolders(root, OpenOptions(threads=1, scratch=tmp_path / "scratch"))


def versions(folders: ModelFolders, name: str = "m") -> list[str]:
    return [version.identity.version for version in folders.find(name).versions]


# Names -----------------------------------------------------------------------------------------------


def test_models_are_the_folders_whose_names_a_model_can_have(root: Path, folders: ModelFolders):
    for name in ("b", "a model", "Résumé.v2", ".hidden", "_x", "-y", "UPPER"):
        (root / name).mkdir()
    (root / "file.txt").write_text("")
    (root / "circle").symlink_to("circle")
    (root / "nowhere").symlink_to(root / "gone")
    (root / "linked").symlink_to(root / "b")
    assert set(folders.names()) == {"Résumé.v2", "UPPER", "a model", "b", "linked"}
    assert folders.unusable() == ["'-y'", "'_x'"]


def test_a_name_that_no_file_system_takes_is_of_no_model(folders: ModelFolders):
    name = "\u65e5" * 128  # 384 bytes
    assert folders.fingerprint(name) == ""
    with pytest.raises(NotFoundError):
        folders.find(name)


@pytest.mark.parametrize("name", ["..", ".", "../models/m", "m/1", "/etc", ".hidden", "", "m\0", "m\n", "x" * 200])
def test_a_name_that_could_lead_elsewhere_is_refused(root: Path, folders: ModelFolders, name: str):
    put_version(root, "m", 1, adds=0)
    (root / ".hidden").mkdir()
    with pytest.raises(InputError, match="model name"):
        folders.find(name)
    assert folders.fingerprint(name) == ""


def test_what_is_not_there_is_not_found(folders: ModelFolders):
    with pytest.raises(NotFoundError, match="no model 'm'"):
        folders.find("m")
    assert folders.fingerprint("m") == ""


def test_a_release_folder_is_no_repository(root: Path, tmp_path: Path):
    assert is_repository(root)
    assert not is_repository(put_release(tmp_path / "release", counter=1))
    assert not is_repository(tmp_path / "nothing")


# Versions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        pytest.param("", ["10"], id="none: the latest"),
        pytest.param("version_policy: { latest { num_versions: 2 } }", ["3", "10"], id="latest 2"),
        pytest.param("version_policy: { latest { num_versions: 9 } }", ["1", "2", "3", "10"], id="latest 9"),
        pytest.param("version_policy: { all { } }", ["1", "2", "3", "10"], id="all"),
        pytest.param("version_policy: { specific { versions: [3, 1, 7] } }", ["1", "3"], id="specific"),
    ],
)
def test_the_version_policy_chooses_by_number(root: Path, folders: ModelFolders, policy: str, chosen: list[str]):
    for number in (1, 2, 3, 10):
        put_version(root, "m", number, adds=number)
    (root / "m" / "config.pbtxt").write_text(policy)
    assert versions(folders) == chosen


def test_what_is_no_version_is_passed_over(root: Path, folders: ModelFolders):
    put_version(root, "m", 4, adds=0)
    for name in ("0", "01", "v9", "9.5", "-9", "٩", ".9", "9" * 30):
        (root / "m" / name).mkdir()
    (root / "m" / "9").write_text("a file")
    assert versions(folders) == ["4"]


@pytest.mark.parametrize("config", ["", "version_policy: { specific { versions: [7] } }"])
def test_a_model_without_a_version_says_so(root: Path, folders: ModelFolders, config: str):
    (root / "m").mkdir()
    (root / "m" / "config.pbtxt").write_text(config)
    if config:
        put_version(root, "m", 2, adds=0)
    with pytest.raises(InputError, match="no version that its version policy serves") as caught:
        folders.find("m")
    assert ("there: 2" if config else "there: none") in caught.value.message


def test_a_version_that_cannot_be_opened_does_not_keep_others_from_it(root: Path, folders: ModelFolders):
    put_version(root, "m", 1, adds=1)
    (root / "m" / "2").mkdir()
    (root / "m" / "3").mkdir()
    (root / "m" / "3" / "model.onnx").write_bytes(b"junk")
    (root / "m" / "config.pbtxt").write_text("version_policy: { all { } }")
    one, two, three = folders.find("m").versions
    opened = one.open()
    assert opened.model.run({"x": ROW})["y"].tolist() == (ROW + 1).tolist()
    opened.model.close()
    with pytest.raises(InputError, match="has no model"):
        two.open()
    with pytest.raises(InputError, match=r"model\.onnx"):
        three.open()


@pytest.mark.parametrize(
    ("files", "config", "says"),
    [
        pytest.param(["model.onnx", "other.onnx"], "", "", id="the usual name"),
        pytest.param(["net.onnx", "readme.md", ".net2.onnx"], "", "", id="the only one"),
        pytest.param(["a.onnx", "b.onnx"], 'default_model_filename: "b.onnx"', "", id="named"),
        pytest.param(["a.onnx", "b.onnx"], "", "2 models: a.onnx, b.onnx", id="two"),
        pytest.param(["a.onnx"], 'default_model_filename: "b.onnx"', "no b.onnx", id="named, missing"),
        pytest.param(["a.onnx"], 'default_model_filename: "../a.onnx"', "file name", id="named elsewhere"),
        pytest.param(["model.py"], 'backend: "python"', "no model", id="another backend's"),
    ],
)
def test_the_model_file_of_a_version(root: Path, folders: ModelFolders, files: list[str], config: str, says: str):
    for file in files:
        put_version(root, "m", 1, adds=1, file=file)
    (root / "m" / "config.pbtxt").write_text(config)
    (version,) = folders.find("m").versions
    if says:
        with pytest.raises(InputError, match=says):
            version.open()
    else:
        opened = version.open()
        assert opened.runtime == "onnxruntime"
        opened.model.close()


@pytest.mark.parametrize(
    ("where", "version"),
    [("3", "3"), ("3/sums", "3"), ("3/sums.tar", "3"), ("release", "7"), ("release.tar", "7")],
)
def test_a_release_is_a_version_by_folder_or_by_counter(root: Path, folders: ModelFolders, where: str, version: str):
    put_release(root / "m" / where, counter=7)
    (found,) = folders.find("m").versions
    opened = found.open()
    assert (found.identity.version, found.number, opened.runtime) == (version, int(version), "null")
    assert opened.variant.startswith("sha256:")
    opened.model.close()


def test_the_end_of_the_file_says_the_runtime(root: Path, folders: ModelFolders):
    if find_spec("openvino") is None:
        pytest.skip("openvino is not installed: pip install 'edgeserve[openvino]'")
    import edgeserve.runtimes.openvino  # noqa: F401 - first: it keeps the library from calling home

    import openvino  # isort: skip

    source = put_version(root.parent / "source", "m", 1, adds=1)
    (root / "m" / "1").mkdir(parents=True)
    openvino.save_model(openvino.convert_model(source), root / "m" / "1" / "model.xml", compress_to_fp16=False)
    opened = folders.find("m").versions[0].open()
    assert opened.runtime == "openvino"
    assert opened.model.run({"x": ROW})["y"].tolist() == (ROW + 1).tolist()
    opened.model.close()


def test_a_tflite_file_is_loaded_by_litert(root: Path, folders: ModelFolders):
    from tests.suites.litert import dense_net

    (root / "m" / "1").mkdir(parents=True)
    (root / "m" / "1" / "model.tflite").write_bytes(dense_net())
    opened = folders.find("m").versions[0].open()
    assert opened.runtime == "litert"
    opened.model.close()


def test_two_sources_of_one_version_are_a_conflict(root: Path, folders: ModelFolders):
    put_release(root / "m" / "release", counter=7)
    put_version(root, "m", 7, adds=0)
    with pytest.raises(ConflictError, match="version 7 twice"):
        folders.find("m")


def test_a_pipe_is_not_waited_for(root: Path, folders: ModelFolders):
    (root / "m" / "1").mkdir(parents=True)
    os.mkfifo(root / "m" / "1" / "model.onnx")
    (version,) = folders.find("m").versions
    with pytest.raises(EdgeServeError):
        version.open()


# Configurations --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "says"),
    [
        pytest.param('name = "other"', "is of model 'other'", id="name"),
        pytest.param('input = [{ name = "z" }]', "input 'z'", id="input"),
        pytest.param(
            'output = [{ name = "y", data_type = "TYPE_INT8" }]', "is INT8, the model's is FP32", id="datatype"
        ),
        pytest.param('output = [{ name = "y", data_type = "TYPE_X" }]', "'TYPE_X'", id="no datatype"),
        pytest.param('output = [{ name = "y", label_filename = "../labels" }]', "file name", id="labels elsewhere"),
        pytest.param('output = [{ name = "y", label_filename = "l.txt" }]', "l.txt is missing", id="no labels"),
        pytest.param('runtime = "abacus"', "abacus", id="runtime"),
    ],
)
def test_a_configuration_of_another_model_is_refused(root: Path, folders: ModelFolders, config: str, says: str):
    put_version(root, "m", 1, adds=0)
    (root / "m" / "config.toml").write_text(config)
    with pytest.raises(InputError) as caught:
        folders.find("m").versions[0].open()
    assert says in caught.value.message


def test_labels_and_warmup_come_from_files_beside_the_configuration(root: Path, folders: ModelFolders):
    put_version(root, "m", 1, adds=0)
    (root / "m" / "labels.txt").write_text("cat\ndog\n")
    (root / "m" / "warmup").mkdir()
    (root / "m" / "warmup" / "data").write_bytes(np.arange(8, dtype=np.float32).tobytes())
    (root / "m" / "config.pbtxt").write_text(
        'max_batch_size: 4 output { name: "y" label_filename: "labels.txt" }\n'
        'model_warmup { name: "w" batch_size: 2 count: 3 '
        'inputs { key: "x" value { data_type: TYPE_FP32 dims: 4 input_data_file: "data" } } }'
    )
    opened = folders.find("m").versions[0].open()
    assert opened.labels == ("cat", "dog")
    (request,) = opened.warmup
    assert (request.count, request.inputs["x"].tolist()) == (3, [[0, 1, 2, 3], [4, 5, 6, 7]])
    warm_up(opened)
    opened.model.close()


# Changes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "changes"),
    [
        pytest.param(lambda m: (m / "1" / "model.onnx").write_bytes(b"x"), True, id="content"),
        pytest.param(lambda m: (m / "config.toml").write_text("threads = 2"), True, id="configuration"),
        pytest.param(lambda m: (m / "2").mkdir(), True, id="version"),
        pytest.param(lambda m: os.utime(m / "1" / "model.onnx", (1, 1)), True, id="time"),
        pytest.param(lambda m: (m / "1" / "model.onnx").unlink(), True, id="gone"),
        pytest.param(lambda m: (m / ".swap").write_text("x"), False, id="hidden"),
        pytest.param(lambda m: (m / "1" / "again").symlink_to(m), False, id="circle"),
    ],
)
def test_a_fingerprint_tells_changes(
    root: Path, folders: ModelFolders, change: Callable[[Path], object], changes: bool
):
    put_version(root, "m", 1, adds=0)
    before = folders.fingerprint("m")
    assert before == folders.fingerprint("m") != ""
    change(root / "m")
    assert (folders.fingerprint("m") != before) is changes


def test_a_version_with_links_in_circles_is_served(root: Path, folders: ModelFolders):
    put_version(root, "m", 1, adds=0)
    (root / "m" / "1" / "again").symlink_to(root / "m")
    (root / "m" / "1" / "itself").symlink_to("itself")
    opened = folders.find("m").versions[0].open()
    opened.model.close()


def test_versions_with_the_same_files_are_told_apart(root: Path, folders: ModelFolders):
    for number in (1, 2):
        put_version(root, "m", number, adds=0)
    (root / "m" / "config.toml").write_text("version_policy.all = {}")
    one, two = folders.find("m").versions
    assert one.identity.release != two.identity.release
    again = folders.find("m").versions[0]
    assert again.identity == one.identity


COMING_AND_GOING = """
import os, sys
names = [os.path.join(sys.argv[1], f"labels-{number}") for number in range(40)]
print("begun", flush=True)
while True:
    for name in names:
        open(name, "w").close()
    for name in names:
        os.unlink(name)
"""


def test_files_that_come_and_go_meanwhile_stop_nothing(root: Path, folders: ModelFolders):
    """Between a look at the folder and a look at the file: with `is_file` and then `stat`, once in 200 times."""
    put_version(root, "m", 1, adds=0)
    program = [sys.executable, "-c", COMING_AND_GOING, str(root / "m")]
    with subprocess.Popen(program, stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == b"begun\n"
            for _ in range(600):
                assert versions(folders) == ["1"]
                assert folders.fingerprint("m")
        finally:
            other.kill()


def test_links_that_lead_nowhere_are_passed_over(root: Path, folders: ModelFolders):
    put_version(root, "m", 1, adds=0)
    for name in ("labels.txt", "warmup", "release.tar2"):
        (root / "m" / name).symlink_to("nowhere")
    (root / "m" / "loop").symlink_to("loop")
    assert versions(folders) == ["1"]


def test_a_version_whose_file_cannot_be_read_does_not_keep_others_from_it(root: Path, folders: ModelFolders):
    for number in (1, 2):
        put_version(root, "m", number, adds=number)
    (root / "m" / "config.pbtxt").write_text("version_policy: { all { } }")
    (root / "m" / "2" / "model.onnx").unlink()
    (root / "m" / "2" / "model.onnx").symlink_to("/proc/self/mem")  # may be opened and not be read
    one, two = folders.find("m").versions
    one.open().model.close()
    with pytest.raises(DeviceError, match="cannot read"):
        two.open()


def test_a_folder_that_cannot_be_read_is_the_devices_fault(tmp_path: Path):
    folders = ModelFolders(tmp_path / "gone", OpenOptions(threads=1, scratch=tmp_path))
    with pytest.raises(DeviceError, match="cannot read"):
        folders.names()
