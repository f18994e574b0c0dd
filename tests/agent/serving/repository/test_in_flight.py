"""Requests that are under way while models change."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from edgeserve.client.inference import InferenceClient
from edgeserve.contracts.errors import EdgeServeError, NotFoundError
from edgeserve.contracts.model_config import ModelConfig
from edgeserve_agent.serving.model_source import FoundModel, FoundVersion
from edgeserve_agent.serving.opened import Opened
from edgeserve_agent.serving.served import Identity
from tests.agent.serving.repository.model_server import ALL_VERSIONS, Server
from tests.suites.repository import ROW, put_version


class GatedSource:
    """One model, whose version is held back or broken as the test says."""

    def __init__(self, tools: Any) -> None:
        self.tools = tools
        self.number = 1
        self.opening = threading.Event()
        self.may_open = threading.Event()
        self.may_open.set()
        self.began = threading.Semaphore(0)
        self.may_answer = threading.Event()
        self.models: dict[int, Any] = {}

    def names(self) -> list[str]:
        return ["m"]

    def fingerprint(self, name: str) -> str:
        return str(self.number) if name == "m" else ""

    def find(self, name: str, *, config: ModelConfig | None = None) -> FoundModel:
        if name != "m":
            raise NotFoundError(name)
        number = self.number
        release = self.tools.digest(number)
        identity = Identity(model="m", version=str(number), release=release, variant=release, counter=number)
        version = FoundVersion(identity=identity, open=lambda: self._open(number))
        return FoundModel(name="m", config=config or ModelConfig(), versions=(version,), fingerprint=str(number))

    def _open(self, number: int) -> Opened:
        self.opening.set()
        assert self.may_open.wait(10)

        def compute(inputs: Any) -> Any:
            if inputs["x"][0, 0] < 0:
                self.began.release()
                assert self.may_answer.wait(10)
            return {"y": np.full((len(inputs["x"]), 3), number, np.float32)}

        self.models[number] = self.tools.model(compute, slow=True)
        return Opened(model=self.models[number], runtime="simulator")


def test_requests_in_flight_are_answered_by_the_version_they_began_with(serve: Callable[..., Server], tools):
    source = GatedSource(tools)
    server = serve(source=source)
    server.start()
    answers: list[float] = []

    def ask() -> None:
        client = InferenceClient(server.thread.url)
        answers.append(float(client.infer("m", {"x": -ROW}).outputs["y"][0, 0]))
        client.close()

    asking = threading.Thread(target=ask)
    asking.start()
    assert source.began.acquire(timeout=10)
    source.number = 2
    server.load()
    assert float(server.client.infer("m", {"x": ROW}).outputs["y"][0, 0]) == 2
    assert server.index() == [("m", "1", "UNLOADING"), ("m", "2", "READY")]
    assert not source.models[1].closed.is_set()
    server.unload()
    assert not source.models[1].closed.is_set()
    tools.until(source.models[2].closed.is_set, "the idle model was closed")
    source.may_answer.set()
    asking.join()
    assert answers == [1]
    tools.until(source.models[1].closed.is_set, "the model was closed after its last answer")


def test_the_old_version_answers_while_the_new_one_loads(serve: Callable[..., Server], tools):
    source = GatedSource(tools)
    server = serve(source=source)
    server.start()
    source.may_open.clear()
    source.opening.clear()
    source.number = 2
    loading = asyncio.run_coroutine_threadsafe(server.repository.load("m"), server.thread.loop)
    assert source.opening.wait(10)
    assert float(server.client.infer("m", {"x": ROW}).outputs["y"][0, 0]) == 1
    assert server.index() == [("m", "1", "READY"), ("m", "2", "LOADING")]
    loading.cancel()  # whoever asked has gone
    source.may_open.set()
    tools.until(lambda: 2 in source.models and source.models[2].closed.is_set(), "what was opened in vain was closed")
    assert float(server.client.infer("m", {"x": ROW}).outputs["y"][0, 0]) == 1
    server.load()
    assert float(server.client.infer("m", {"x": ROW}).outputs["y"][0, 0]) == 2


def test_loads_unloads_and_requests_at_once_give_right_answers_or_clear_errors(server: Server):
    """Two models change while all of three are asked: the third is never disturbed, no answer is mixed."""
    for name in ("a", "b", "still"):
        put_version(server.root, name, 1, adds=1)
    (server.root / "a" / "config.pbtxt").write_text(ALL_VERSIONS)
    server.start()
    stop = threading.Event()
    wrong: list[str] = []
    answered = {"a": 0, "b": 0, "still": 0}

    def ask(name: str) -> None:
        client = InferenceClient(server.thread.url)
        while not stop.is_set():
            try:
                result = client.infer(name, {"x": ROW})
            except EdgeServeError as error:
                if name != "b" or not ("unknown model 'b'" in error.message or "is not ready" in error.message):
                    wrong.append(f"{name}: {error.message}")
                continue
            if float(result.outputs["y"][0, 0]) - 1 != float(result.model_version):
                wrong.append(f"{name} {result.model_version}: {result.outputs}")
            answered[name] += 1
        client.close()

    def grow() -> None:
        for number in range(2, 12):
            put_version(server.root, "a", number, adds=number)
            server.load("a")

    def toggle() -> None:
        for _ in range(15):
            server.unload("b")
            server.load("b")

    asking = [threading.Thread(target=ask, args=(name,)) for name in ("a", "b", "still", "still")]
    changing = [threading.Thread(target=work) for work in (grow, toggle, toggle)]
    for thread in (*asking, *changing):
        thread.start()
    for thread in changing:
        thread.join()
    stop.set()
    for thread in asking:
        thread.join()
    assert wrong == []
    assert all(answered.values()), answered
    assert (server.adds("a"), server.adds("b")) == (11, 1)
