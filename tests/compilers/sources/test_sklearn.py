from __future__ import annotations

import ast
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve_compilers.load import load
from edgeserve_compilers.sources.base import SourceOptions
from edgeserve_compilers.sources.table_trial import try_reading
from tests.suites.source import SourceCase, SourceContract, run

pytest.importorskip("skl2onnx", reason="skl2onnx is not installed: pip install 'edgeserve[sklearn]'")
pytest.importorskip("xgboost", reason="xgboost is not installed: pip install 'edgeserve[xgboost]'")
pytest.importorskip("lightgbm", reason="lightgbm is not installed: pip install 'edgeserve[lightgbm]'")

TRUSTED = SourceOptions(trust_pickle=True)
CLASSES = np.array(["a", "b", "c"])


@pytest.fixture(scope="module")
def table():
    from sklearn.datasets import make_classification

    x, y = make_classification(300, 8, n_informative=6, n_classes=3, random_state=0)
    return x.astype(np.float32), y


@pytest.fixture(scope="module")
def files(table, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, np.ndarray]]:
    """Files by kind, with the library's own answers to the first 50 rows."""
    import joblib
    import lightgbm
    import xgboost
    from sklearn.ensemble import GradientBoostingRegressor, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    (x, y), folder = table, tmp_path_factory.mktemp("tables")
    made = {}

    def add(name: str, answers: np.ndarray) -> None:
        made[name] = (folder / name, answers)

    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y)
    joblib.dump(pipeline, folder / "pipeline.joblib")
    add("pipeline.joblib", pipeline.predict_proba(x[:50]))
    forest = RandomForestClassifier(20, random_state=0).fit(x, CLASSES[y])
    (folder / "forest.pkl").write_bytes(pickle.dumps(forest))
    add("forest.pkl", forest.predict_proba(x[:50]))
    regressor = GradientBoostingRegressor(random_state=0).fit(x, x[:, 0] * 3 + y)
    joblib.dump(regressor, folder / "regressor.joblib", compress=3)
    add("regressor.joblib", regressor.predict(x[:50]).reshape(-1, 1))
    for suffix in ("json", "ubj"):
        xgb = xgboost.XGBClassifier(n_estimators=20, max_depth=4).fit(x, y)
        xgb.save_model(folder / f"xgb.{suffix}")
        add(f"xgb.{suffix}", xgb.predict_proba(x[:50]))
    binary = xgboost.XGBClassifier(n_estimators=20).fit(x, y == 1)
    binary.save_model(folder / "binary.ubj")
    add("binary.ubj", binary.predict_proba(x[:50]))
    lgbm = lightgbm.LGBMClassifier(n_estimators=20, verbose=-1).fit(x, y)
    lgbm.booster_.save_model(folder / "lgbm.txt")
    add("lgbm.txt", lgbm.booster_.predict(x[:50]))
    lgbm_binary = lightgbm.LGBMClassifier(n_estimators=20, verbose=-1).fit(x, y == 1)
    lgbm_binary.booster_.save_model(folder / "lgbm_binary.txt")
    share = lgbm_binary.booster_.predict(x[:50])
    add("lgbm_binary.txt", np.stack([1 - share, share], axis=1))
    lgbm_regressor = lightgbm.LGBMRegressor(n_estimators=20, verbose=-1).fit(x, x[:, 0])
    lgbm_regressor.booster_.save_model(folder / "lgbm_regressor.txt")
    add("lgbm_regressor.txt", lgbm_regressor.predict(x[:50]).reshape(-1, 1))
    return made


def case_of(files, table, name: str, library: str, extra: str, *, executes: bool = False) -> SourceCase:
    path, answers = files[name]
    return SourceCase(
        source="sklearn",
        path=path,
        rows={"input": table[0][:50]},
        answers=[answers],
        library=library,
        extra=extra,
        executes=executes,
        prefixes=16 if executes else 6,  # each starts a Python
    )


class TestPickledEstimator(SourceContract):
    @pytest.fixture
    def case(self, files, table) -> SourceCase:
        return case_of(files, table, "pipeline.joblib", "skl2onnx", "sklearn", executes=True)


class TestXGBoost(SourceContract):
    @pytest.fixture
    def case(self, files, table) -> SourceCase:
        return case_of(files, table, "xgb.ubj", "xgboost", "xgboost")


class TestLightGbm(SourceContract):
    @pytest.fixture
    def case(self, files, table) -> SourceCase:
        return case_of(files, table, "lgbm.txt", "lightgbm", "lightgbm")


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("forest.pkl", "probabilities"),
        ("regressor.joblib", "variable"),
        ("xgb.json", "probabilities"),
        ("binary.ubj", "probabilities"),
        ("lgbm_binary.txt", "probabilities"),
        ("lgbm_regressor.txt", "variable"),
    ],
)
def test_the_only_output_is_the_scored_one_and_equals_the_library_s(
    files, table, tmp_path: Path, name: str, output: str
) -> None:
    path, answers = files[name]
    model = load(path, TRUSTED)
    assert [spec.name for spec in model.spec.signature.outputs] == [output]
    (found,) = run(model, {"input": table[0][:50]}, tmp_path)
    close = np.abs(found - answers).max(axis=1) < 1e-3
    assert close.mean() >= 0.98  # of 50 rows one may meet a threshold


def test_class_names_go_along(files) -> None:
    assert ast.literal_eval(load(files["forest.pkl"][0], TRUSTED).metadata["names"]) == {0: "a", 1: "b", 2: "c"}


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["m.pkl", "m.joblib", "m.pickle", "m.onnx", "m.json", "m.txt"])
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_nothing_is_executed_without_trust(tmp_path: Path, name: str, protocol: int) -> None:
    sprung, path = tmp_path / "sprung", tmp_path / name
    path.write_bytes(pickle.dumps(Trap(sprung), protocol))
    with pytest.raises(InputError, match=name):
        load(path)
    assert not sprung.exists()
    pickle.loads(path.read_bytes())
    assert sprung.exists(), "the trap is one"


@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
def test_no_file_of_the_current_folder_runs_in_the_place_of_a_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    (tmp_path / f"{library}.py").write_text("from pathlib import Path\nPath('sprung').touch()\n")
    (tmp_path / "m").write_text("tree\n")
    monkeypatch.chdir(tmp_path)
    try_reading(library, tmp_path / "m")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ("unfitted", "that was fitted"),
        ("margin", "no probabilities"),
        ("dict", "holds dict, not"),
        ("clusters", "KMeans"),
    ],
)
def test_what_is_no_classifier_or_regressor_is_refused(table, tmp_path: Path, made: str, message: str) -> None:
    from sklearn.cluster import KMeans
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    x, y = table
    found = {
        "unfitted": lambda: LogisticRegression(),
        "margin": lambda: LinearSVC().fit(x, y),
        "dict": lambda: {"a": 1},
        "clusters": lambda: KMeans(2, n_init=1, random_state=0).fit(x),
    }[made]()
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(found))
    with pytest.raises(InputError, match=message) as raised:
        load(tmp_path / "m.pkl", TRUSTED)
    assert raised.value.hint


def test_a_class_that_is_not_here_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.pkl").write_bytes(b"cnowhere_to_be_found\nModel\n.")
    with pytest.raises(InputError, match="nowhere_to_be_found") as raised:
        load(tmp_path / "m.pkl", TRUSTED)
    assert "PYTHONPATH" in raised.value.hint


def test_a_skops_file_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "m.skops", "w") as file:
        file.writestr("schema.json", "{}")
    monkeypatch.setitem(sys.modules, "skops", None)
    with pytest.raises(DeviceError, match="skops") as raised:
        load(tmp_path / "m.skops")
    assert raised.value.hint == "pip install skops"
