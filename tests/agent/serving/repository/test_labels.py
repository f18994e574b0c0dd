"""Labels lead to versions that answer, and only to those."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeserve.contracts.errors import ConflictError, InputError, NotFoundError
from tests.agent.serving.repository.model_server import Server
from tests.suites.repository import put_version


def labelled(canary: int) -> str:
    # Triton's format has no labels: they are edgeserve's.
    return f'{{"version_policy": {{"all": {{}}}}, "version_labels": {{"canary": {canary}}}}}'


def test_a_label_of_the_configuration_moves_only_to_a_version_that_is_ready(server: Server):
    for number in (1, 2):
        put_version(server.root, "m", number, adds=number)
    path = server.root / "m" / "config.json"
    path.write_text(labelled(1))
    server.start()
    assert server.at("canary") == "1"
    path.write_text(labelled(2))
    server.load()
    assert server.at("canary") == "2"
    put_version(server.root, "m", 3, adds=3).write_bytes(b"junk")
    path.write_text(labelled(3))
    with pytest.raises(InputError, match="version 3"):
        server.load()
    assert server.at("canary") == "2"
    path.write_text(labelled(9))  # there is no such version
    shutil.rmtree(server.root / "m" / "3")
    server.load()
    assert server.at("canary") == "2"
    put_version(server.root, "m", 2, adds=20)  # the label goes with its version
    server.load()
    assert server.at("canary") == "2"
    assert server.adds(version="2") == 20
    path.write_text('{"version_policy": {"all": {}}}')
    server.load()
    with pytest.raises(NotFoundError, match="no label 'canary'"):
        server.at("canary")


def test_a_label_is_set_by_hand_to_versions_that_answer(server: Server):
    for number in (1, 2):
        put_version(server.root, "m", number, adds=number)
    (server.root / "m" / "config.json").write_text(labelled(1))
    with pytest.raises(NotFoundError, match="not loaded"):
        server.label("mine", 1)
    server.start()
    server.label("mine", 1)
    assert server.at("mine") == "1"
    with pytest.raises(NotFoundError, match="version 3 of model 'm' does not answer"):
        server.label("mine", 3)
    with pytest.raises(ConflictError, match="placed by the model's configuration"):
        server.label("canary", 2)
    with pytest.raises(InputError):
        server.label("a/b", 2)
    assert server.at("mine") == "1"
    server.label("mine", None)
    with pytest.raises(NotFoundError, match="no label 'mine'"):
        server.at("mine")


def test_labels_are_where_they_were_after_a_restart(serve: Callable[..., Server], root: Path, tmp_path: Path):
    for number in (1, 2):
        put_version(root, "m", number, adds=number)
    (root / "m" / "config.json").write_text(labelled(2))
    first = serve(state=tmp_path)
    first.start()
    first.label("mine", 1)
    # Between the two lives version 2 breaks, and the configuration wants a version that is not there.
    (root / "m" / "config.json").write_text(labelled(3))
    second = serve(state=tmp_path)
    second.start()
    assert (second.at("mine"), second.at("canary")) == ("1", "2")
    put_version(root, "m", 2, adds=2).write_bytes(b"junk")
    third = serve(state=tmp_path)
    third.start()
    assert third.at("mine") == "1"
    with pytest.raises(NotFoundError, match="no label 'canary'"):
        third.at("canary")
    put_version(root, "m", 2, adds=2)
    third.load()
    assert third.at("canary") == "2"
