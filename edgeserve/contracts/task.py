"""What the tensors of a model mean: preprocessing, decoding, labels and metric. Pure data, part of every variant.

`model.toml` says it, `edgeserve.task` does it: for calibration, validation, golden set and serving alike.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

import msgspec

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_CLASSES, MAX_IMAGE_SIDE


class Kind(str, Enum):
    """What a model answers."""

    CLASSIFICATION = "classification"
    """One score a class; the class with the highest is the answer."""
    DETECTION = "detection"
    """Boxes, each with a class and a score."""
    KEYWORDS = "keywords"
    """As classification, of sound."""
    EMBEDDING = "embedding"
    """A vector whose direction counts."""
    REGRESSION = "regression"
    """Numbers whose size counts."""
    TENSORS = "tensors"
    """Nothing is known of the outputs: they are held against the float model's number by number."""
    CUSTOM = "custom"
    """The user's own `module:function` decodes."""


class Metric(str, Enum):
    """How good answers are; larger is better, 1 is perfect. `module:function` is allowed, too."""

    TOP1 = "top1"
    TOP5 = "top5"
    MAP = "map"
    """Mean average precision over IoU 0.50:0.95 and the classes present, 101 recall points (COCO)."""
    IOU = "iou"
    """Share of boxes that have a counterpart: same class, IoU of at least 0.5; both sides count (F1)."""
    MAE = "mae"
    """1 - mean absolute error / `Task.scale`."""
    COSINE = "cosine"
    """Mean cosine similarity with the float model's vectors."""
    SQNR = "sqnr"
    """1 - noise power / signal power against the float model: 0.99 is 20 dB, 0.999 is 30 dB."""
    AGREEMENT = "agreement"
    """Share of rows whose answer is the float model's."""


METRICS: Final[dict[Kind, tuple[Metric, ...]]] = {
    Kind.CLASSIFICATION: (Metric.TOP1, Metric.TOP5, Metric.AGREEMENT),
    Kind.KEYWORDS: (Metric.TOP1, Metric.TOP5, Metric.AGREEMENT),
    Kind.DETECTION: (Metric.MAP, Metric.IOU, Metric.AGREEMENT),
    Kind.EMBEDDING: (Metric.COSINE, Metric.AGREEMENT),
    Kind.REGRESSION: (Metric.MAE, Metric.AGREEMENT),
    Kind.TENSORS: (Metric.SQNR, Metric.AGREEMENT),
    Kind.CUSTOM: (Metric.AGREEMENT,),
}
"""What each kind can be judged by; the first is the default."""

WITHOUT_LABELS: Final[dict[Kind, Metric]] = {
    Kind.CLASSIFICATION: Metric.AGREEMENT,
    Kind.KEYWORDS: Metric.AGREEMENT,
    Kind.DETECTION: Metric.IOU,
    Kind.EMBEDDING: Metric.COSINE,
    Kind.REGRESSION: Metric.MAE,
    Kind.TENSORS: Metric.SQNR,
    Kind.CUSTOM: Metric.AGREEMENT,
}
"""What each kind is judged by when the float model's answers are all the truth there is."""


class Resize(str, Enum):
    """How an image gets the size that the model takes."""

    STRETCH = "stretch"
    """Both sides to the size, whatever the proportions."""
    CROP = "crop"
    """The shorter side to `shorter_side`, then the centre cut out."""
    LETTERBOX = "letterbox"
    """The whole image as large as fits, the rest filled with `pad`."""


class Filter(str, Enum):
    """How pixels between pixels are computed."""

    BILINEAR = "bilinear"
    """Of the four neighbours, half-pixel centres, no antialiasing: what OpenCV's INTER_LINEAR does."""
    ANTIALIAS = "antialias"
    """Triangle over all the pixels that shrink into one: what Pillow's BILINEAR and torchvision do."""
    NEAREST = "nearest"


class ImageInput(msgspec.Struct, frozen=True, kw_only=True, tag="image", tag_field="type"):
    """An input that takes pictures: decode, turn upright (EXIF), resize, order colours, scale, normalise, lay out."""

    name: str = ""
    """Input of the model; empty = its only one (besides state and constants)."""
    size: tuple[int, int]
    """Height and width that the model takes."""
    resize: Resize = Resize.STRETCH
    """How the picture gets that size."""
    filter: Filter = Filter.ANTIALIAS
    """How pixels between pixels are computed."""
    shorter_side: int = 0
    """`crop` only: shorter side before the cut; 0 = so that the cut takes all of it."""
    align: str = "center"
    """`letterbox` only: where the image lies, `center` or `top-left`."""
    pad: int = 114
    """`letterbox` only: value of the filling, 0..255."""
    color: str = "rgb"
    """`rgb`, `bgr` or `gray`."""
    layout: str = "nchw"
    """`nchw` or `nhwc`."""
    scale: float = 1.0
    """Pixel values 0..255 are multiplied by it first."""
    mean: tuple[float, ...] = ()
    """Then it is subtracted, channel by channel in the order of `color`; empty = 0."""
    std: tuple[float, ...] = ()
    """Then divided by it; empty = 1."""

    def __post_init__(self) -> None:
        where = f"image input {self.name!r}" if self.name else "[[inputs]] (image)"
        if not all(1 <= side <= MAX_IMAGE_SIDE for side in self.size):
            raise InputError(f"{where}: size {list(self.size)} is not [height, width] of 1 to {MAX_IMAGE_SIDE}")
        _one_of(where, "align", self.align, ("center", "top-left"))
        _one_of(where, "color", self.color, ("rgb", "bgr", "gray"))
        _one_of(where, "layout", self.layout, ("nchw", "nhwc"))
        if not 0 <= self.pad <= 255:
            raise InputError(f"{where}: pad {self.pad} is not between 0 and 255")
        if self.shorter_side and self.shorter_side < max(self.size):
            raise InputError(f"{where}: shorter_side {self.shorter_side} is smaller than the cut {list(self.size)}")
        channels = 1 if self.color == "gray" else 3
        for field in ("mean", "std"):
            values = getattr(self, field)
            if len(values) not in (0, channels):
                raise InputError(f"{where}: {field} has {len(values)} values, {self.color} has {channels} channels")
        if any(value == 0 for value in self.std):
            raise InputError(f"{where}: std must not be 0")


class AudioInput(msgspec.Struct, frozen=True, kw_only=True, tag="audio", tag_field="type"):
    """An input that takes sound: WAV to mono at `rate`, cut or padded to `samples`, then its features.

    The result is reshaped to the model's own row shape (so `[49, 10]` and `[49, 10, 1]` both work).
    """

    name: str = ""
    """As of an image input."""
    rate: int = 16_000
    """Samples a second that the model takes. Other rates are refused, not resampled."""
    samples: int = 16_000
    """Length of the window: longer sound is cut at the end, shorter is padded with zeros there. Unused with `chunk`."""
    peak: bool = False
    """Divide by the largest sample (not its absolute value) when that is not 0."""
    features: str = "waveform"
    """`waveform`, `log-mel` or `mfcc`."""
    frame: int = 480
    """Samples of one frame, under a periodic Hann window."""
    step: int = 320
    """Samples between the starts of two frames."""
    fft: int = 512
    """Length of the Fourier transform, at least a frame; its magnitudes are used, the DC bin as zero."""
    mels: int = 40
    """Triangles, evenly spaced on HTK's mel scale, 1127 ln(1 + f/700)."""
    low_hz: float = 20.0
    """Where the first triangle begins."""
    high_hz: float = 4_000.0
    """Where the last triangle ends."""
    log_offset: float = 1e-6
    """Added before the logarithm: ln(mel + log_offset)."""
    coefficients: int = 10
    """`mfcc`: first coefficients of DCT-II / sqrt(2 mels)."""
    chunk: int = 0
    """Stateful models: samples of one step; a clip becomes a sequence of whole steps. 0 = one window a clip."""
    context: int = 0
    """Samples of the step before that are put in front of each step (zeros before the first)."""

    def __post_init__(self) -> None:
        where = f"audio input {self.name!r}" if self.name else "[[inputs]] (audio)"
        _one_of(where, "features", self.features, ("waveform", "log-mel", "mfcc"))
        positive = ("rate", "samples", "frame", "step", "fft", "mels", "coefficients")
        for field in positive:
            if not 0 < getattr(self, field) <= 10_000_000:
                raise InputError(f"{where}: {field} {getattr(self, field)} is not between 1 and 10 000 000")
        if self.fft < self.frame and self.features != "waveform":
            raise InputError(f"{where}: fft {self.fft} is shorter than a frame of {self.frame}")
        if self.features != "waveform" and not 0 <= self.low_hz < self.high_hz <= self.rate / 2:
            raise InputError(f"{where}: mel range {self.low_hz}-{self.high_hz} Hz is not within 0-{self.rate / 2} Hz")
        if self.features == "mfcc" and self.coefficients > self.mels:
            raise InputError(f"{where}: {self.coefficients} coefficients of {self.mels} mels")
        if min(self.chunk, self.context) < 0 or (self.context and not self.chunk):
            raise InputError(f"{where}: context needs a chunk, and neither is negative")
        if self.chunk and self.features != "waveform":
            raise InputError(f"{where}: chunk works on the waveform only")


class Boxes(msgspec.Struct, frozen=True, kw_only=True):
    """How the outputs of a detector become boxes in pixels of the model's input."""

    layout: str = "decoded"
    """`grid`: [rows, cells, 5 + classes], raw: centre offset and log size in cells of the strides, objectness, classes
       (YOLOX).
    `decoded`: [rows, boxes, 5 + classes], boxes in pixels, objectness, classes (YOLOv5, v7, decoded YOLOX).
    `channels-first`: [rows, 4 + classes, boxes], boxes in pixels, classes, no objectness (Ultralytics v8, v9, v11).
    `end-to-end`: [rows, boxes, 6], corners, score, class; nothing overlaps (Ultralytics v10, v26, or NMS in the graph).
    `distances`: raw anchor-free head: [rows, cells, 4 bins + classes] or two outputs; distances to the four sides in
       cells from the centre of each, as a distribution over `bins` when that is more than 1 (Ultralytics raw, FCOS
       without centre-ness).
    `split`: boxes [rows, boxes, 4] and scores [rows, boxes, classes] are outputs of their own (SSD with its anchors
       applied, RT-DETR); with `classes`, scores are [rows, boxes] and nothing overlaps (TensorFlow's post-process)."""
    output: str = ""
    """Output with the boxes; empty = the task's output."""
    scores: str = ""
    """`split`, and `distances` when the scores are an output of their own."""
    classes: str = ""
    """`split`: output with the class of each box, [rows, boxes], when its score is only that of this class."""
    format: str = "cxcywh"
    """Of decoded boxes: `cxcywh`, `xyxy`, `yxyx` or `xywh` (left, top, width, height)."""
    normalised: bool = False
    """Coordinates are shares of the input's sides, not pixels."""
    logits: bool = False
    """Scores (and objectness) still need a sigmoid."""
    background: bool = False
    """Class 0 of the output is `nothing`: what it calls 1 is the first label."""
    strides: tuple[int, ...] = (8, 16, 32)
    """`grid`, `distances`: size of a cell in pixels, level by level in the order of the output."""
    bins: int = 1
    """`distances`: values of the distribution of each distance; 1 = the distance itself."""
    score: float = 0.25
    """Boxes below it are not shown to anyone; the metric `map` looks down to 0.01."""
    nms_iou: float = 0.65
    """Of two boxes of a class that overlap more, the better stays; unused where nothing overlaps."""
    most: int = 100
    """Boxes kept of one image, the best first."""

    def __post_init__(self) -> None:
        layouts = ("grid", "decoded", "channels-first", "end-to-end", "distances", "split")
        _one_of("boxes", "layout", self.layout, layouts)
        _one_of("boxes", "format", self.format, ("cxcywh", "xyxy", "yxyx", "xywh"))
        if not 0 < self.score < 1 or not 0 < self.nms_iou <= 1:
            raise InputError("boxes: score and nms_iou are shares between 0 and 1")
        if not self.strides or min(self.strides) < 1 or not 1 <= self.bins <= 64 or not 1 <= self.most <= 10_000:
            raise InputError("boxes: strides, bins or most is out of range")
        if self.layout == "split" and not self.scores:
            raise InputError("boxes: layout split needs the name of the output with the scores", hint='scores = "..."')
        if self.classes and self.layout != "split":
            raise InputError(f"boxes: layout {self.layout} has no output of classes", hint='layout = "split"')


class Task(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """What a model is for. The default is a classifier over tensors whose first output has one score a class."""

    kind: Kind = Kind.CLASSIFICATION
    """What the model answers."""
    output: str = ""
    """Name of the output that is decoded; empty = the first output."""
    labels: tuple[str, ...] = ()
    """Names of the classes."""
    metric: str = ""
    """A `Metric` or `module:function`; empty = the first of the kind, `WITHOUT_LABELS` where there are none."""
    inputs: tuple[ImageInput | AudioInput, ...] = ()
    """Preprocessing; an input that is not named takes tensors as they come."""
    softmax: bool = False
    """Classification: the scores are logits; clients are shown their softmax. Never changes which class wins."""
    first_class: int = 0
    """Classification: place of class 0 in the output (1 where place 0 is background)."""
    boxes: Boxes | None = None
    """Detection."""
    scale: float = 0.0
    """Regression: an error that counts as wholly wrong; 0 = mean absolute deviation of the truth from its median."""
    state: dict[str, str] = {}
    """Stateful models: input -> output whose value it gets in the next step; zeros in the first. Data are then
    `[sequence, step, ...]`, and the model is run with a batch of 1."""
    constants: dict[str, float] = {}
    """Inputs that are fixed when the model is compiled, such as a sampling rate."""
    function: str = ""
    """Custom: `module:function` that takes the outputs of one row by name and returns the answer (JSON-like)."""

    def __post_init__(self) -> None:
        if self.kind not in METRICS:
            raise InputError(
                f"task kind {self.kind!r} is not known", hint=f"use {', '.join(kind.value for kind in Kind)}"
            )
        if self.kind is Kind.DETECTION and self.boxes is None:
            raise InputError("a detection task needs a table [boxes]", hint='such as [boxes] with layout = "decoded"')
        if self.kind is not Kind.DETECTION and self.boxes is not None:
            raise InputError(f"a {self.kind.value} task has no [boxes]", hint='kind = "detection"')
        if (self.kind is Kind.CUSTOM) != bool(self.function):
            raise InputError('kind = "custom" and function = "module:function" belong together')
        if self.function:
            check_function(self.function, "function")
        if len(self.labels) > MAX_CLASSES:
            raise InputError(f"the task has {len(self.labels)} labels, at most {MAX_CLASSES} are allowed")
        if self.scale < 0 or self.first_class not in (0, 1):
            raise InputError("scale must not be negative, and first_class is 0 or 1")
        if len({entry.name for entry in self.inputs}) != len(self.inputs):
            raise InputError("the task describes an input twice")
        _check_metric(self.kind, self.metric)

    @property
    def stateful(self) -> bool:
        """Whether state is carried from step to step."""
        return bool(self.state)


FUNCTION: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*")
"""`module:function`, the user's own code."""


def check_function(text: str, what: str) -> str:
    """Return `text` if it has the form `module:function`.

    Raises:
        InputError: It has not.
    """
    if not FUNCTION.fullmatch(text):
        raise InputError(f"{what} {text[:80]!r} is not module:function", hint="such as mypackage.metrics:recall")
    return text


def _check_metric(kind: Kind, metric: str) -> None:
    if not metric:
        return
    if ":" in metric:
        check_function(metric, "metric")
        return
    known = [entry.value for entry in METRICS[kind]]
    if metric not in known:
        raise InputError(
            f"metric {metric[:80]!r} does not judge {kind.value}", hint=f"use {', '.join(known)} or module:function"
        )


def _one_of(where: str, field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{where}: {field} {value[:40]!r} is not known", hint=f"use {', '.join(allowed)}")
