"""scikit-learn (`.joblib`, `.pkl`, `.skops`), XGBoost (`.json`, `.ubj`) and LightGBM (`.txt`): models of tables."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edgeserve.contracts.errors import InputError
from edgeserve_compilers.sources.base import Model, SourceOptions
from edgeserve_compilers.sources.files import needs, read
from edgeserve_compilers.sources.sniff import TORCH_SUFFIXES, Content, sniff

_CONTENTS: Final = (Content.PICKLE, Content.SKOPS, Content.XGBOOST, Content.LIGHTGBM)
_PICKLE_HINT: Final = (
    "add --trust-pickle if you made it yourself; or run where it was trained: "
    "from skl2onnx import to_onnx; open('model.onnx', 'wb').write(to_onnx(model, X[:1].astype('float32'), "
    "options={'zipmap': False}, target_opset=17).SerializeToString()); or save it with skops.io.dump"
)


class SklearnSource:
    """Converts classifiers to `probabilities` [batch, classes] and regressors to `variable` [batch, 1].

    The input is `input` [batch, features], float32. The class names of a classifier become metadata, its label output
    goes: the place of the highest probability says the same. Files of XGBoost, LightGBM and skops execute nothing.
    """

    name = "sklearn"

    def recognises(self, path: Path) -> bool:
        """Whether `path` is a pickle that is not PyTorch's, or a file of skops, XGBoost or LightGBM."""
        content = sniff(path)
        return content in _CONTENTS and not (content is Content.PICKLE and path.suffix.lower() in TORCH_SUFFIXES)

    def load(self, path: Path, options: SourceOptions) -> Model:
        """Read, convert and check; see `edgeserve_compilers.sources.base.Source.load`."""
        data, content = read(path), sniff(path)
        if content is Content.PICKLE and not options.trust_pickle:
            raise InputError(f"{path} is a Python pickle, which can execute code when it is read", hint=_PICKLE_HINT)
        with needs(content.value):
            from edgeserve_compilers.sources import table_model
            from edgeserve_compilers.sources.checked import Origin, checked, digest_of

            estimator = table_model.read_estimator(path, content, options)
            model = table_model.to_onnx(estimator, path)
        return checked(
            model,
            Origin(path=path, format=self.name, digest=digest_of(data), metadata=estimator.metadata),
            options,
        )
