"""Changes in the folder that nobody announces."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable
from typing import Any

import pytest

from edgeserve.contracts.model_config import ModelConfig
from edgeserve_agent.serving.model_folder import ModelFolders
from edgeserve_agent.serving.model_source import FoundModel, OpenOptions
from edgeserve_agent.serving.polling import Change
from tests.agent.serving.repository.model_server import Server, config
from tests.suites.repository import put_version


def poll(server: Server, *, new_models: bool = True) -> None:
    server.thread.call(lambda: server.repository.poll(0.02, new_models=new_models))


def test_polling_takes_up_new_changed_and_removed_models(server: Server, tools):
    put_version(server.root, "m", 1, adds=1)
    server.start()
    poll(server)
    put_version(server.root, "m", 2, adds=2)
    tools.until(lambda: server.adds() == 2, "the new version answered")
    put_version(server.root, "new", 1, adds=3)
    tools.until(lambda: ("new", "1", "READY") in server.index(), "the new model answered")
    (server.root / "m" / "2" / "model.onnx").write_bytes(b"junk")
    tools.until(lambda: "not a model" in server.reason("m", "2"), "the broken file was seen")
    assert server.adds() == 2
    shutil.rmtree(server.root / "m")
    tools.until(lambda: not any(model == "m" for model, _, _ in server.index()), "the removed model was gone")
    assert server.adds("new") == 3
    assert server.client.ready()


def test_polling_leaves_alone_what_a_request_has_loaded_or_unloaded(server: Server, tools):
    for name in ("canary", "by-hand", "gone", "never"):
        put_version(server.root, name, 1, adds=1)
    server.start("canary", "by-hand", "gone", explicit=True)
    server.load("by-hand", config=config("max_batch_size: 4"))
    server.unload("gone")
    poll(server, new_models=False)
    for name in ("never", "by-hand", "gone", "canary"):
        put_version(server.root, name, 2, adds=2)
    tools.until(lambda: server.adds("canary") == 2, "the canary was reloaded")
    put_version(server.root, "canary", 3, adds=3)
    tools.until(lambda: server.adds("canary") == 3, "the canary was reloaded again")
    assert server.adds("by-hand") == 1
    assert server.index(ready_only=True) == [("by-hand", "1", "READY"), ("canary", "3", "READY")]


def test_a_folder_that_is_gone_for_a_while_unloads_nothing(server: Server, tools, caplog: pytest.LogCaptureFixture):
    put_version(server.root, "m", 1, adds=1)
    server.start()
    poll(server)
    away = server.root.rename(server.root.with_name("away"))
    tools.until(lambda: caplog.text.count("looking for changes") >= 3, "it looked three times")
    assert server.adds() == 1
    away.rename(server.root)
    put_version(server.root, "m", 2, adds=2)
    tools.until(lambda: server.adds() == 2, "it looked again")


BY_HAND = {
    "loaded with a configuration": lambda server: server.repository.load("m", config=config("max_batch_size: 4")),
    "unloaded": lambda server: server.repository.unload("m"),
}


class HeldBack(ModelFolders):
    """Looks at a model only when the test lets it, and fails as the test says."""

    def __init__(self, root: Any) -> None:
        super().__init__(root, OpenOptions(threads=1, scratch=root.parent / "scratch"))
        self.may_look = threading.Event()
        self.may_look.set()
        self.fails: dict[str, Exception] = {}

    def find(self, name: str, *, config: ModelConfig | None = None) -> FoundModel:
        assert self.may_look.wait(10)
        if name in self.fails:
            raise self.fails[name]
        return super().find(name, config=config)


@pytest.mark.parametrize("change", Change)
@pytest.mark.parametrize("by_hand", BY_HAND.values(), ids=BY_HAND)
def test_a_change_that_was_seen_before_a_request_does_not_undo_it(serve, root, by_hand, change: Change):
    """The look comes first, but the request holds the model when what was seen is to be done."""
    source = HeldBack(root)
    server = serve(source=source)
    put_version(root, "m", 1, adds=1)
    server.start()
    put_version(root, "m", 2, adds=2)

    async def cross() -> None:
        loading = asyncio.ensure_future(server.repository.load("m"))  # holds the model
        source.may_look.clear()
        await asyncio.sleep(0)
        asked = asyncio.ensure_future(by_hand(server))
        await asyncio.sleep(0)
        polled = asyncio.ensure_future(server.repository._change("m", change, "as it was seen"))
        source.may_look.set()
        await asyncio.gather(loading, asked, polled)

    server.thread.run(cross())
    served = [(release.identity.version, release.config.max_batch_size) for release in server.thread.plane.loaded("m")]
    assert served == ([("2", 4)] if by_hand is BY_HAND["loaded with a configuration"] else [])


def test_what_a_request_has_taken_up_already_is_not_loaded_again(serve, root):
    server = serve()
    put_version(root, "m", 1, adds=1)
    server.start()
    put_version(root, "m", 2, adds=2)
    seen = server.repository._source.fingerprint("m")
    server.load()
    found = []
    server.repository._source.find = lambda *_arguments, **_more: found.append(1)
    server.thread.run(server.repository._change("m", Change.LOAD, seen))
    assert found == []
    assert server.adds() == 2


@pytest.mark.parametrize("error", [PermissionError("not yours"), ZeroDivisionError("a bug")], ids=["disk", "bug"])
def test_a_failure_that_nobody_expected_is_one_models_affair(
    serve: Callable[..., Server], root, tools, caplog: pytest.LogCaptureFixture, error: Exception
):
    source = HeldBack(root)
    server = serve(source=source)
    for name in ("bad", "good"):
        put_version(root, name, 1, adds=1)
    source.fails["bad"] = error
    failed = server.start()
    assert list(failed) == ["bad"]
    assert str(error) in failed["bad"].message
    assert server.adds("good") == 1
    assert not server.client.ready()
    poll(server)
    for name in ("bad", "good", "also"):
        put_version(root, name, 2, adds=2)
    source.fails["also"] = error
    tools.until(lambda: server.adds("good") == 2, "the good model was reloaded")
    tools.until(lambda: "loading also failed" in caplog.text, "the failure was logged")
    source.fails.clear()
    for name in ("bad", "also"):
        put_version(root, name, 3, adds=3)
        tools.until(lambda name=name: (name, "3", "READY") in server.index(), "the mended model was loaded")
