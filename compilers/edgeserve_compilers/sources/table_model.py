"""Models of tables to ONNX by skl2onnx and onnxmltools, held against their own library on random rows."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve.runtimes.base import Tensor
from edgeserve.runtimes.checks import first_line
from edgeserve_compilers.sources.base import SourceOptions
from edgeserve_compilers.sources.opset import UPGRADED_OPSET, opset_of
from edgeserve_compilers.sources.session import Session
from edgeserve_compilers.sources.sniff import Content
from edgeserve_compilers.sources.table_trial import try_reading

INPUT: Final = "input"
_ML_OPSET: Final = 3
"""Of ai.onnx.ml; tree ensembles with float32 thresholds, known to every runtime."""
_TREES_OPSET: Final = 15
"""The newest standard operator set that onnxmltools writes."""
_ROWS: Final = 512
_SPREAD: Final = 3.0
"""Standard deviation of the random rows: features are mostly scaled to about 1."""
_AGREE: Final = 0.99
"""Share of rows that must agree: float32 thresholds of trees may fall either way for a few."""
_CLOSE: Final = 1e-3


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """A model of a table, whatever its library."""

    features: int
    convert: Callable[[], Any]
    """To ONNX with the input `input`."""
    predict: Callable[[Tensor], Tensor]
    """Probabilities [rows, classes], or numbers [rows] of a regressor."""
    classifier: bool
    metadata: dict[str, str] = field(default_factory=dict)


def read_estimator(path: Path, content: Content, options: SourceOptions) -> Estimator:
    """Read a file; pickles only after the caller has checked that they are trusted.

    Raises:
        InputError: Damaged, or neither a classifier nor a regressor.
        DeviceError: skops is missing.
        ImportError: Another library is.
    """
    try:
        with _quiet():
            if content is Content.XGBOOST:
                return _xgboost(_xgboost_file(path))
            if content is Content.LIGHTGBM:
                return _lightgbm(_lightgbm_file(path))
            found = _skops(path, options) if content is Content.SKOPS else _pickle(path)
            return _any(found, path)
    except (InputError, DeviceError):
        raise
    except ImportError as error:
        if content in (Content.XGBOOST, Content.LIGHTGBM) or error.name in ("joblib", "sklearn", "skl2onnx"):
            raise
        raise InputError(
            f"{path} needs a class that is not here: {first_line(error)}",
            hint="install the package, or name the folder of its code in PYTHONPATH",
        ) from error
    except Exception as error:  # unpickling raises what it likes, the libraries have errors of their own
        raise InputError(
            f"{path} cannot be read: {type(error).__name__}: {first_line(error)}",
            hint="it is damaged, or of another version of its library: save it again",
        ) from error


def to_onnx(estimator: Estimator, path: Path) -> onnx.ModelProto:
    """Convert and hold the result against the library.

    Raises:
        InputError: It cannot be converted, or the result answers something else.
        ImportError: A converter is missing.
    """
    try:
        with _quiet():
            model = onnx.ModelProto.FromString(estimator.convert().SerializeToString())
    except ImportError:
        raise
    except Exception as error:  # the converters raise what they like
        raise InputError(
            f"{path} cannot be converted to ONNX: {type(error).__name__}: {first_line(error)}",
            hint="give the model without its pre-processing steps, or export it to ONNX yourself",
        ) from error
    if not opset_of(model):  # trees alone need no standard operator
        model.opset_import.append(onnx.helper.make_opsetid("", UPGRADED_OPSET))
    output = model.graph.output[-1 if estimator.classifier else 0].name
    model = onnx.utils.Extractor(model).extract_model([model.graph.input[0].name], [output])
    model.graph.name = "table"  # the converters put a random number there
    _verify(estimator, model, path)
    return model


def _verify(estimator: Estimator, model: onnx.ModelProto, path: Path) -> None:
    rows = (np.random.default_rng(0).standard_normal((_ROWS, estimator.features)) * _SPREAD).astype(np.float32)
    with _quiet():
        expected = np.asarray(estimator.predict(rows), np.float64).reshape(_ROWS, -1)
    (found,) = Session(model.SerializeToString(), str(path)).run({model.graph.input[0].name: rows}).values()
    agreeing = 0.0
    if found.reshape(_ROWS, -1).shape == expected.shape:
        scale = 1.0 if estimator.classifier else max(float(expected.std()), 1e-12)
        have = found.astype(np.float64).reshape(_ROWS, -1)
        agreeing = float((np.abs(have - expected).max(axis=1) <= _CLOSE * scale).mean())
    if agreeing < _AGREE:
        raise InputError(
            f"{path} was converted to ONNX, but answers {1 - agreeing:.0%} of random rows differently",
            hint="export it to ONNX yourself, and give that file",
        )


def _any(found: Any, path: Path) -> Estimator:  # noqa: ANN401
    library = type(found).__module__.partition(".")[0]
    if library == "xgboost":
        return _xgboost(
            found.get_booster() if hasattr(found, "get_booster") else found, getattr(found, "classes_", None)
        )
    if library == "lightgbm":
        return _lightgbm(getattr(found, "booster_", found), getattr(found, "classes_", None))
    from sklearn.base import is_classifier, is_regressor

    features = getattr(found, "n_features_in_", None)
    if features is None or not (is_classifier(found) or is_regressor(found)):
        raise InputError(
            f"{path} holds {type(found).__name__}, not a classifier or regressor that was fitted",
            hint="save the fitted estimator, or the pipeline that ends in it",
        )
    if is_classifier(found) and not hasattr(found, "predict_proba"):
        raise InputError(
            f"{path} holds {type(found).__name__}, which gives no probabilities",
            hint="fit it in a CalibratedClassifierCV, or with probability=True where it has that",
        )
    classes = getattr(found, "classes_", None)
    return Estimator(
        features=int(features),
        convert=lambda: _convert_sklearn(found, int(features)),
        predict=found.predict_proba if is_classifier(found) else found.predict,
        classifier=is_classifier(found),
        metadata=_names(classes) if is_classifier(found) else {},
    )


def _convert_sklearn(found: Any, features: int) -> Any:  # noqa: ANN401
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType

    return convert_sklearn(
        found,
        initial_types=[(INPUT, FloatTensorType([None, features]))],
        options={"zipmap": False} if hasattr(found, "predict_proba") else None,
        target_opset={"": UPGRADED_OPSET, "ai.onnx.ml": _ML_OPSET},
    )


def _xgboost_file(path: Path) -> Any:  # noqa: ANN401
    import xgboost

    try_reading("xgboost", path)
    booster = xgboost.Booster()
    booster.load_model(bytearray(path.read_bytes()))
    return booster


def _xgboost(booster: Any, classes: Any = None) -> Estimator:  # noqa: ANN401
    import xgboost

    objective = str(json.loads(booster.save_config())["learner"]["objective"]["name"])
    if objective == "multi:softmax":  # answers with the class alone
        booster.set_param({"objective": "multi:softprob"})
    binary = objective == "binary:logistic"

    def convert() -> Any:  # noqa: ANN401
        from onnxmltools import convert_xgboost
        from onnxmltools.convert.common.data_types import FloatTensorType

        types = [(INPUT, FloatTensorType([None, booster.num_features()]))]
        return convert_xgboost(booster, initial_types=types, target_opset=_TREES_OPSET)

    def predict(rows: Tensor) -> Tensor:
        names = booster.feature_names
        found = booster.predict(xgboost.DMatrix(rows, feature_names=names))
        return np.stack([1 - found, found], axis=1) if binary else np.asarray(found)

    return Estimator(
        features=int(booster.num_features()),
        convert=convert,
        predict=predict,
        classifier=binary or objective.startswith("multi:"),
        metadata=_names(classes),
    )


def _lightgbm_file(path: Path) -> Any:  # noqa: ANN401
    import lightgbm

    try_reading("lightgbm", path)
    text = path.read_text(encoding="utf-8", errors="replace")
    if "end of trees" not in text:  # LightGBM itself takes what is left
        raise InputError(f"{path} is truncated: its trees have no end", hint="save it again with save_model")
    return lightgbm.Booster(model_str=text)


def _lightgbm(booster: Any, classes: Any = None) -> Estimator:  # noqa: ANN401
    objective = str(booster.dump_model(num_iteration=1).get("objective", "")).partition(" ")[0]
    binary = objective in ("binary", "cross_entropy")

    def convert() -> Any:  # noqa: ANN401
        from onnxmltools import convert_lightgbm
        from onnxmltools.convert.common.data_types import FloatTensorType

        types = [(INPUT, FloatTensorType([None, booster.num_feature()]))]
        return convert_lightgbm(booster, initial_types=types, target_opset=_TREES_OPSET, zipmap=False)

    def predict(rows: Tensor) -> Tensor:
        found = np.asarray(booster.predict(rows))
        return np.stack([1 - found, found], axis=1) if binary else found

    return Estimator(
        features=int(booster.num_feature()),
        convert=convert,
        predict=predict,
        classifier=binary or objective.startswith("multiclass"),
        metadata=_names(classes),
    )


def _pickle(path: Path) -> Any:  # noqa: ANN401
    import joblib

    return joblib.load(path)


def _skops(path: Path, options: SourceOptions) -> Any:  # noqa: ANN401
    try:
        import skops.io  # type: ignore[import-not-found]
    except ImportError as error:
        raise DeviceError(f"{path} needs skops, which cannot be imported: {error}", hint="pip install skops") from error
    unknown = skops.io.get_untrusted_types(file=path)
    if unknown and not options.trust_pickle:
        raise InputError(
            f"{path} contains types that may execute code: {', '.join(unknown)[:200]}",
            hint="add --trust-pickle if you made it yourself",
        )
    return skops.io.load(path, trusted=unknown)


def _names(classes: Any) -> dict[str, str]:  # noqa: ANN401
    """Class names as `metadata_props` of Ultralytics have them: a Python literal."""
    return {} if classes is None else {"names": repr({place: str(name) for place, name in enumerate(classes)})}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
