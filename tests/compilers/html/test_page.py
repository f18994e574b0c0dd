from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from importlib import resources
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from edgeserve.contracts.device import DeviceFacts
from edgeserve.contracts.limits import REPORT_PICTURE_BYTES
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.contracts.variant import Precision, Tolerance
from edgeserve_compilers.html.page import render
from edgeserve_compilers.html.view import headline
from edgeserve_compilers.report import (
    BaselineAgreement,
    Bucket,
    ClassAgreement,
    DataFacts,
    Example,
    GoldenFacts,
    Provenance,
    Report,
    TargetReport,
)
from edgeserve_compilers.spec import (
    FLOAT,
    Candidate,
    CompileOptions,
    FieldNoise,
    LayerNoise,
    Measurement,
    ModelSpec,
    PrecisionChoice,
    Trial,
    Verdict,
)

MODEL = ModelSpec(
    file="resnet.onnx", digest="sha256:" + "5f" * 32, size_bytes=21_940_112, opset=17, nodes=1412,
    signature=Signature(
        inputs=(TensorSpec(name="pixels", datatype=Datatype.FP32, shape=(-1, 3, 224, 224)),),
        outputs=(TensorSpec(name="logits", datatype=Datatype.FP32, shape=(-1, 1000)),),
    ),
)  # fmt: skip
MIXED = Candidate(precision=Precision.INT8, recipe="s8s8 percentile", float_layers=("/features/0/Conv", "/head/Gemm"))
PLAIN = Candidate(precision=Precision.INT8, recipe="s8s8 minmax")
PNG = b"\x89PNG\r\n\x1a\n" + b"picture"
VOID = {"meta", "img", "br", "circle", "rect", "line", "path"}


def measurement(**changes: Any) -> Measurement:
    fields: dict[str, Any] = {
        "value": 0.7357, "float_value": 0.7421, "drop": 0.0064, "drop_low": 0.0004, "drop_high": 0.0089,
        "agreement": 0.9559, "fields": (FieldNoise(field="scores", sqnr_db=24.3),), "has_nan": False,
        "positives": 412, "float_positives": 431, "latency_ms": 1.88, "float_latency_ms": 4.1,
        "executing_device": "CPU (simulated)",
    }  # fmt: skip
    return Measurement(**{**fields, **changes})


TRIALS = (
    Trial(candidate=FLOAT, size_bytes=21_900_000, float_size_bytes=21_900_000, compute_nodes=64,
          measurement=measurement(value=0.7421, drop=0.0, drop_low=-0.003, drop_high=0.003, agreement=1.0)),
    Trial(candidate=PLAIN, size_bytes=5_720_000, float_size_bytes=21_900_000, compute_nodes=64, quantized_nodes=64,
          measurement=measurement(value=0.6811, drop=0.061, drop_low=0.05, drop_high=0.07, agreement=0.871),
          refused=("loses 6.10 points",)),
    Trial(candidate=MIXED, size_bytes=6_410_000, float_size_bytes=21_900_000, compute_nodes=64, quantized_nodes=62,
          placement={"int8": 118, "float": 31}, measurement=measurement()),
    Trial(candidate=Candidate(precision=Precision.FP16, recipe="half"), refused=("no kernel for float16",)),
)  # fmt: skip
TARGET = TargetReport(
    target="intel-npu", form="openvino", runtime="openvino", requested_device="NPU", native=False, required=True,
    verdict=Verdict(kept=MIXED, why="the smallest that holds the bound"), trials=TRIALS,
    golden=GoldenFacts(
        rows=32, agreement=0.969, max_abs_difference=0.0123, tolerance=Tolerance(agreement=0.91, atol=0.05)
    ),
    sensitivity=(LayerNoise(layer="/head/Gemm", noise=0.03), LayerNoise(layer="/features/9/Conv", noise=0.0002)),
    differences=(Bucket(low=-0.5, high=0.0, count=321), Bucket(low=0.0, high=0.5, count=654)),
    examples=(
        Example(row=412, name="cat.jpg", truth="tabby", float_answer="tabby 0.61", answer="tiger 0.44", agreement=0.0),
        Example(row=7, name="", truth="", float_answer="zebra 0.99", answer="zebra 0.98", agreement=0.625),
    ),
    findings=("HardSwish may run on the CPU",),
)  # fmt: skip
REPORT = Report(
    model=MODEL, metric="top1",
    judged_on=DataFacts(file="val.npz", digest="sha256:" + "ab" * 32, rows=2048, labelled=True),
    interval="Newcombe 1998, paired", options=CompileOptions(), targets=(TARGET,),
    warnings=("12 rows are calibration rows, too",), unjudged=("no labels for the boxes",),
    baseline=BaselineAgreement(
        baseline="sha256:" + "9e" * 32, version="1.3.0", rows=2048, agreement=0.8931,
        classes=(
            ClassAgreement(label="zebra", rows=40, agreement=1.0),
            ClassAgreement(label="tabby", rows=31, agreement=0.6129),
        ),
    ),
)  # fmt: skip
CLEAN = replace(REPORT, warnings=(), unjudged=())
PROVENANCE = Provenance(
    model=MODEL, calibration=DataFacts(file="calib.npz", digest="sha256:" + "cd" * 32, rows=256, labelled=False),
    validation=REPORT.judged_on, options=REPORT.options, targets=("intel-npu",), versions={"onnxruntime": "1.23.0"},
    host=DeviceFacts(architecture="amd64", cpu="Test CPU"), seed=7,
)  # fmt: skip


class Page(HTMLParser):
    """Checks that elements nest, and collects what a test asks for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), f"<{tag}> names an attribute twice"
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"[ \n\t]+", " ", " ".join(self.texts))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_every_figure_of_the_report_is_there() -> None:
    page = Page(render(REPORT, provenance=PROVENANCE))
    expected = [
        "resnet.onnx", "21.9 MB", "1\u202f412", "top-1 accuracy", "2\u202f048 labelled rows of val.npz",
        "1.00 points", "auto", "intel-npu", "int8", "s8s8 percentile, 2 layers in float", "73.57 %",
        "float 74.21 %", "0.64 points (0.04 to 0.89)", "6.41 MB", "3.42\u00d7 smaller", "1.88 ms",
        "2.18\u00d7 faster", "host proxy", "CPU (simulated)", "made for NPU", "Newcombe 1998, paired",
        "the smallest that holds the bound", "HardSwish may run on the CPU",
        "12 rows are calibration rows, too", "no labels for the boxes", "s8s8 minmax", "loses 6.10 points",
        "68.11 %", "5.72 MB", "87.1 %", "no kernel for float16", "not measured", "95.59 %", "24.3 dB",
        "412, float 431", "62 of 64", "118", "31", "/features/0/Conv, /head/Gemm",
        "32 rows, 96.9 % agree, largest difference 0.0123", "91 % agreement, every number within 0.05",
        "/head/Gemm", "3.0e-02", "/features/9/Conv", "-0.5 to 0: 321", "0 to 0.5: 654", "cat.jpg", "tabby",
        "tabby 0.61", "tiger 0.44", "row 7", "zebra 0.98", "62.5 %", "version 1.3.0", "89.31 %", "61.29 %",
        "sha256:" + "9e" * 32, "sha256:" + "5f" * 32, "sha256:" + "ab" * 32, "opset 17",
        "pixels: FP32 [-1, 3, 224, 224]", "logits: FP32 [-1, 1000]", "calib.npz, 256 rows",
        "sha256:" + "cd" * 32, "Test CPU, amd64", "onnxruntime 1.23.0",
    ]  # fmt: skip
    missing = [text for text in expected if text not in page.text]
    assert missing == []


def test_classes_of_the_baseline_stand_with_the_worst_first() -> None:
    text = Page(render(replace(REPORT, targets=()))).text
    assert text.index("tabby") < text.index("zebra")


def test_the_page_loads_and_runs_nothing() -> None:
    text = render(REPORT, pictures={"intel-npu (openvino)": [PNG]}, provenance=PROVENANCE)
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in page.elements}
    assert re.findall(r"https?:|url\(|@import|javascript:", text) == []
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,")), tag


def test_the_policy_allows_its_own_style_and_pictures_only() -> None:
    text = render(REPORT)
    policies = [m["content"] for m in Page(text).all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    style = re.search(r"<style>(.*)</style>", text, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in (policies[0] or "")
    assert "default-src 'none'" in (policies[0] or "")
    assert "unsafe" not in (policies[0] or "")


def test_it_can_be_read_without_seeing() -> None:
    page = Page(render(REPORT, pictures={"intel-npu": [PNG, PNG]}))
    assert page.all("html") == [{"lang": "en"}]
    assert page.all("th")
    assert all(cell.get("scope") in ("row", "col") for cell in page.all("th"))
    assert [image["alt"] for image in page.all("img")] == ["Input of row 412", "Input of row 7"]
    for drawing in page.all("svg"):
        assert drawing.get("aria-hidden") == "true" or drawing.get("aria-labelledby")
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for name in (attributes.get("aria-labelledby") or "").split():
            assert name in ids
        if (attributes.get("href") or "").startswith("#"):
            assert (attributes["href"] or "")[1:] in ids


FIXED = ("options", "datatype", "metric", "precision")
"""Fields whose values are an enumeration's."""


def hostile(document: Any, poison: str) -> Any:
    """The same document with `poison` at the end of every text that may be any text."""
    if isinstance(document, str):
        return document + poison
    if isinstance(document, list):
        return [hostile(entry, poison) for entry in document]
    if isinstance(document, dict):
        return {key: value if key in FIXED else hostile(value, poison) for key, value in document.items()}
    return document


@pytest.mark.parametrize(
    "poison",
    [
        "</td><script>alert(1)</script>",
        "\"'><img src=x onerror=alert(1)>",
        "{{ 7 * 7 }}{% raw %}",
        "</title></svg>&amp;",
    ],
)
def test_names_from_models_and_files_are_text_and_never_markup(poison: str) -> None:
    poisoned = msgspec.convert(hostile(msgspec.to_builtins(REPORT), poison), Report)
    before, after = Page(render(REPORT)), Page(render(poisoned, provenance=None))
    assert [tag for tag, _ in after.elements] == [tag for tag, _ in before.elements]
    assert "resnet.onnx" + poison in after.texts


def test_pictures_belong_to_the_examples_in_order() -> None:
    page = Page(render(REPORT, pictures={"intel-npu": [b"", PNG]}))
    assert [image["alt"] for image in page.all("img")] == ["Input of row 7"]
    assert page.all("img")[0]["src"] == "data:image/png;base64," + base64.b64encode(PNG).decode()


def test_pictures_of_two_forms_of_a_target_are_not_mixed_up() -> None:
    other = replace(TARGET, form="other", runtime="other")
    assert TARGET.title == other.title
    two = replace(REPORT, targets=(TARGET, other))
    assert Page(render(two, pictures={TARGET.title: [PNG]})).all("img") == []
    page = Page(render(two, pictures={"intel-npu (other)": [PNG]}))
    assert len(page.all("img")) == 1
    assert "intel-npu (openvino)" in page.text
    assert "intel-npu (other)" in page.text


@pytest.mark.parametrize(
    "picture",
    [b"<svg onload=alert(1)>", b"GIF89a", PNG[:8] + bytes(REPORT_PICTURE_BYTES)],
    ids=["svg", "gif", "too large"],
)
def test_what_is_no_small_png_is_left_out(picture: bytes) -> None:
    assert Page(render(REPORT, pictures={"intel-npu": [picture]})).all("img") == []


def test_the_page_stays_small_whatever_it_is_given() -> None:
    long = "x" * 1_000_000
    trial = replace(TRIALS[1], refused=(long,), candidate=replace(PLAIN, recipe=long))
    kept = replace(TRIALS[2], candidate=replace(MIXED, float_layers=tuple(f"{long}{n}" for n in range(3))))
    target = replace(
        TARGET,
        trials=(trial,) * 40 + (kept,),
        verdict=Verdict(kept=kept.candidate, why=long),
        sensitivity=tuple(LayerNoise(layer=f"{long}{n}", noise=0.1) for n in range(50)),
        examples=(replace(TARGET.examples[0], name=long, answer=long, truth=long),) * 12,
    )
    classes = tuple(ClassAgreement(label=long, rows=1, agreement=0.5) for _ in range(1000))
    assert REPORT.baseline is not None
    report = replace(REPORT, targets=(target,), warnings=(long,), baseline=replace(REPORT.baseline, classes=classes))
    pictures = {"intel-npu": [PNG[:8] + bytes(500_000)] * 12}
    assert len(render(report, pictures=pictures)) < REPORT_PICTURE_BYTES * 4 / 3 + 500_000


def with_kept(**changes: Any) -> TargetReport:
    trial = replace(TRIALS[2], measurement=measurement(**changes))
    return replace(TARGET, trials=(*TRIALS[:2], trial), findings=())


@pytest.mark.parametrize(
    ("report", "state", "words"),
    [
        (replace(CLEAN, targets=(with_kept(),)), "ready", "The variant keeps top-1 accuracy"),
        (replace(CLEAN, targets=(with_kept(),) * 2), "ready", "All 2 variants keep"),
        (REPORT, "look", "Could not be judged: no labels"),
        (replace(CLEAN, targets=(with_kept(drop_high=0.0129),)), "look", "as large as 1.29 points"),
        (
            replace(REPORT, targets=(replace(TARGET, verdict=Verdict(kept=None, why="all lose too much")),)),
            "failed",
            "no variant for intel-npu within 1.00 points",
        ),
        (
            replace(
                CLEAN, targets=(with_kept(), replace(TARGET, verdict=Verdict(kept=None, why="no gain"), required=False))
            ),
            "look",
            "has no variant: no gain",
        ),
        (replace(REPORT, targets=()), "failed", "No release"),
        (
            replace(REPORT, targets=(replace(TARGET, verdict=Verdict(kept=None, why="no gain"), required=False),)),
            "failed",
            "No release",
        ),
    ],
    ids=[
        "ready",
        "two",
        "unjudged",
        "interval beyond the bound",
        "failed",
        "an optional form failed",
        "no target",
        "nothing kept",
    ],
)
def test_the_headline_says_whether_it_can_be_shipped(report: Report, state: str, words: str) -> None:
    found = headline(report)
    assert found.state == state
    assert words in " ".join((found.text, *found.reasons))
    page = Page(render(report))
    assert {"ready": "Ready to ship", "look": "Packed, look at this first", "failed": "Not ready"}[state] in page.text


@pytest.mark.parametrize(
    ("precision", "reasons"),
    [
        (PrecisionChoice.FP32, ()),
        (PrecisionChoice.AUTO, ("intel-npu is packed in float: no quantized one holds the bound",)),
    ],
)
def test_a_float_variant_is_worth_a_look_unless_it_was_asked_for(
    precision: PrecisionChoice, reasons: tuple[str, ...]
) -> None:
    """The width of its interval says nothing: it is the model that it is held against."""
    target = replace(TARGET, verdict=Verdict(kept=FLOAT, why="no quantized one holds the bound"), findings=())
    wide = replace(TRIALS[0], measurement=measurement(drop=0.0, drop_low=-0.03, drop_high=0.03))
    targets = (replace(target, trials=(wide,)),)
    found = headline(replace(CLEAN, targets=targets, options=CompileOptions(precision=precision)))
    assert (found.state, found.reasons) == ("look" if reasons else "ready", reasons)


@pytest.mark.parametrize(
    "changes",
    [
        {
            "value": float("nan"),
            "drop": float("nan"),
            "drop_low": float("nan"),
            "drop_high": float("nan"),
            "has_nan": True,
        },
        {"latency_ms": 0.0, "float_latency_ms": 0.0},
        {"value": -3.5, "float_value": 0.0, "drop": 3.5, "drop_low": 3.0, "drop_high": 4.0},
    ],
    ids=["NaN", "no time", "below zero"],
)
def test_odd_measurements_are_shown_all_the_same(changes: dict[str, Any]) -> None:
    page = Page(render(replace(REPORT, targets=(with_kept(**changes),))))
    assert "intel-npu" in page.text


def test_a_target_of_which_nothing_could_be_made_has_its_reasons() -> None:
    empty = replace(TARGET, trials=(), verdict=Verdict(kept=None, why="LSTM cannot be converted"), golden=None,
                    sensitivity=(), differences=(), examples=(), findings=())  # fmt: skip
    page = Page(render(replace(REPORT, targets=(empty,), baseline=None)))
    assert "LSTM cannot be converted" in page.text
    assert len(page.all("table")) == 1


def test_the_same_report_is_the_same_page() -> None:
    assert render(REPORT, pictures={"intel-npu": [PNG]}) == render(REPORT, pictures={"intel-npu": [PNG]})


def test_template_and_style_are_in_the_package() -> None:
    folder = resources.files("edgeserve_compilers.html")
    for name in ("report.html.j2", "style.css"):
        assert (folder / name).is_file()
