from __future__ import annotations

import pytest

from edgeserve.contracts.errors import InputError
from edgeserve_agent.serving.repository_control import check_unload, load_request


def test_a_load_without_parameters_takes_what_the_repository_has():
    wanted = load_request({})
    assert (wanted.config, wanted.files) == (None, {})


def test_a_load_may_bring_configuration_and_files():
    wanted = load_request(
        {
            "config": '{"max_batch_size": 8, "dynamic_batching": {"max_queue_delay_microseconds": "100"}, "x": 1}',
            "file:1/model.onnx": b"one",
            "file:labels.txt": b"two",
        }
    )
    assert (wanted.config.max_batch_size, wanted.config.dynamic_batching.max_queue_delay_microseconds) == (8, 100)
    assert wanted.files == {"1/model.onnx": b"one", "labels.txt": b"two"}


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"configuration": "{}"}, "no parameter 'configuration'"),
        ({"file:": b""}, "no parameter 'file:'"),
        ({"config": "{"}, "no model configuration"),
        ({"config": '{"max_batch_size": -1}'}, "max_batch_size"),
        ({"config": "[" * 100_000}, "no model configuration"),
        ({"config": b"{}"}, "a text that holds JSON"),
        ({"config": None}, "a text that holds JSON"),
        ({"config": "{}", "file:1/m": "text"}, "the bytes of the file"),
        ({"file:1/m": b""}, "needs the parameter config"),
    ],
)
def test_wrong_parameters_of_a_load_are_refused(parameters, says):
    with pytest.raises(InputError, match=says):
        load_request(parameters)


def test_an_unload_knows_its_one_parameter():
    check_unload({})
    check_unload({"unload_dependents": True})
    for wrong in ({"unload_dependents": "yes"}, {"force": True}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            check_unload(wrong)
