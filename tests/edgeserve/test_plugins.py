from __future__ import annotations

from pathlib import Path

import pytest

from edgeserve import plugins
from edgeserve.contracts.errors import DeviceError, NotFoundError


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution of somebody else that registers runtimes: one works, one needs what is not installed."""
    info = tmp_path / "stranger-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[edgeserve.runtimes]\nworking = stranger_runtime:Runtime\n"
        "broken = stranger_broken:Runtime\nunknown = stranger_unknown:Runtime\n"
    )
    (tmp_path / "stranger_runtime.py").write_text("class Runtime:\n    name = 'working'\n")
    (tmp_path / "stranger_broken.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'openvino'\", name='openvino')\n"
    )
    (tmp_path / "stranger_unknown.py").write_text("import a_package_that_nobody_has.inside\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_ours_are_registered_like_everybodys() -> None:
    assert {"onnxruntime", "openvino", "null"} <= set(plugins.names(plugins.RUNTIMES))
    assert {"x86-cpu", "arm-cpu", "intel-npu", "null"} <= set(plugins.names(plugins.TARGETS))
    assert plugins.find(plugins.RUNTIMES, "null").name == "null"


def test_a_strangers_plugin_is_found(stranger: None) -> None:
    assert "working" in plugins.names(plugins.RUNTIMES)
    assert plugins.find(plugins.RUNTIMES, "working").name == "working"


def test_names_are_listed_without_importing_anything(stranger: None) -> None:
    assert {"broken", "unknown"} <= set(plugins.names(plugins.RUNTIMES))


def test_an_unknown_name_gets_the_known_ones() -> None:
    with pytest.raises(NotFoundError, match="no runtime is named 'tensort'") as caught:
        plugins.find(plugins.RUNTIMES, "tensort")
    assert "onnxruntime" in caught.value.hint
    assert "null" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "needs", "hint"),
    [
        ("broken", "openvino", "pip install 'edgeserve[openvino]'"),
        ("unknown", "a_package_that_nobody_has", "install the package that provides a_package_that_nobody_has"),
    ],
)
def test_what_is_not_installed_is_named_with_the_way_to_get_it(
    stranger: None, name: str, needs: str, hint: str
) -> None:
    with pytest.raises(DeviceError, match=f"runtime {name} needs {needs}") as caught:
        plugins.find(plugins.RUNTIMES, name)
    assert caught.value.hint == hint
