"""Configurations as files, in three formats."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeserve.contracts.errors import InputError, UnsupportedError
from edgeserve.contracts.model_config import ModelConfig
from edgeserve_agent.serving.config_file import find_config, parse_config

PBTXT = """
name: "m"
backend: "onnxruntime"
max_batch_size: 8
input [ { name: "x", data_type: TYPE_FP32, dims: [ 4 ] } ]
output [ { name: "y", data_type: TYPE_FP32, dims: [ 4 ], label_filename: "labels.txt" } ]
version_policy: { specific { versions: [ 1, 3 ] } }
instance_group [ { count: 2, kind: KIND_CPU } ]
dynamic_batching { preferred_batch_size: [ 4 ] max_queue_delay_microseconds: 100 priority_levels: 2
  priority_queue_policy { key: 1 value { max_queue_size: 3 timeout_action: DELAY } } }
parameters { key: "a" value { string_value: "b" } }
"""
TOML = """
name = "m"
backend = "onnxruntime"
max_batch_size = 8
input = [{ name = "x", data_type = "TYPE_FP32", dims = [4] }]
output = [{ name = "y", data_type = "TYPE_FP32", dims = [4], label_filename = "labels.txt" }]
version_policy.specific.versions = [1, 3]
instance_group = [{ count = 2, kind = "KIND_CPU" }]
[dynamic_batching]
preferred_batch_size = [4]
max_queue_delay_microseconds = 100
priority_levels = 2
priority_queue_policy.1 = { max_queue_size = 3, timeout_action = "DELAY" }
[parameters]
a.string_value = "b"
"""
JSON = """{"name": "m", "backend": "onnxruntime", "max_batch_size": 8,
"input": [{"name": "x", "data_type": "TYPE_FP32", "dims": ["4"]}],
"output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [4], "label_filename": "labels.txt"}],
"version_policy": {"specific": {"versions": ["1", 3]}}, "instance_group": [{"count": 2, "kind": "KIND_CPU"}],
"dynamic_batching": {"preferred_batch_size": [4], "max_queue_delay_microseconds": "100", "priority_levels": "2",
"priority_queue_policy": {"1": {"max_queue_size": 3, "timeout_action": "DELAY"}}},
"parameters": {"a": {"string_value": "b"}}}"""


def test_three_formats_say_the_same():
    pbtxt, toml, json = (
        parse_config(text.encode(), what=f"config.{kind}")
        for kind, text in (("pbtxt", PBTXT), ("toml", TOML), ("json", JSON))
    )
    assert pbtxt == toml == json
    assert pbtxt.version_policy.chosen((1, 2, 3)) == (1, 3)
    assert pbtxt.dynamic_batching is not None
    assert pbtxt.dynamic_batching.policy(1).max_queue_size == 3
    assert pbtxt.instances == 2


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        pytest.param("config.pbtxt", "max_batch_size: 'many'", "max_batch_size", id="pbtxt: type"),
        pytest.param("config.pbtxt", "input [ { name: ", "1:", id="pbtxt: cut off"),
        pytest.param("config.pbtxt", "input [ { data_type: TYPE_FOO } ]", "TYPE_FOO", id="pbtxt: enum"),
        pytest.param("config.pbtxt", "max_batch_size: -1", "max_batch_size", id="pbtxt: value"),
        pytest.param("config.pbtxt", "a{" * 20_000, "recursion", id="pbtxt: deep"),
        pytest.param("config.pbtxt", "\xff", "valid", id="pbtxt: not UTF-8"),
        pytest.param("config.toml", "max_batch_size = 'many'", "max_batch_size", id="toml: type"),
        pytest.param("config.toml", "max_batch_size", "valid", id="toml: syntax"),
        pytest.param("config.json", '{"instance_group": [{"count": 0}]}', "count", id="json: value"),
        pytest.param(
            "config.json", '{"max_batch_size": 2, "dynamic_batching": {"dealy": 1}}', "dealy", id="json: field"
        ),
        pytest.param("config.json", "[]", "valid", id="json: no object"),
        pytest.param("config.json", "[" * 100_000, "valid", id="json: deep"),
        pytest.param("config.json", " " * (1 << 20) + "{}", "bytes", id="json: long"),
    ],
)
def test_an_error_names_the_file_and_the_field(tmp_path: Path, name: str, text: str, says: str):
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError) as caught:
        find_config(tmp_path)
    assert str(tmp_path / name) in caught.value.message
    assert says in caught.value.message


def test_fields_that_mean_nothing_here_are_named_in_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "config.pbtxt").write_text(
        "max_batch_size: 4\noptimization { eager_batching: true }\nfrobnicate: 3\n"
        'dynamic_batching { wobble { inner: "not_a_field: 1" } }  # commented_out: 1'
    )
    assert find_config(tmp_path).max_batch_size == 4
    assert "optimization" in caplog.text
    for name in ("frobnicate", "wobble", "inner"):
        assert name in caplog.text
    for name in ("commented_out", "not_a_field", "eager_batching"):
        assert name not in caplog.text


def test_two_configurations_are_refused_and_none_is_the_default(tmp_path: Path):
    assert find_config(tmp_path) == ModelConfig()
    (tmp_path / "config.toml").write_text("")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"config\.toml and config\.json"):
        find_config(tmp_path)


def test_an_ensemble_is_refused():
    with pytest.raises(UnsupportedError, match="ensemble_scheduling"):
        parse_config(b'{"ensemble_scheduling": {"step": []}}', what="config of model 'm'")


@pytest.mark.parametrize("name", ["a.toml", "a.json"])
def test_a_number_without_end_is_no_configuration(name: str):
    separator = "=" if name.endswith(".toml") else ":"
    text = f'"max_batch_size" {separator} {"9" * 5000}'
    with pytest.raises(InputError, match="is not valid"):
        parse_config((text if separator == "=" else f"{{{text}}}").encode(), what=name)
