"""Every bound of the product, with its reason. Nothing that comes from outside is unbounded."""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

# Release -------------------------------------------------------------------------------------------
MAX_INDEX_BYTES: Final = 1 * MIB
"""Image index or manifest: a thousand variants fit in a fifth of it; OCI registries refuse above 4 MiB."""
MAX_CONFIG_BYTES: Final = 1 * MIB
"""Variant contract: the largest part is the label list, 20 000 labels of 40 bytes fit."""
MAX_BLOB_BYTES: Final = 8 * GIB
"""One model file: larger ones do not fit the memory of any device in the profiles."""
MAX_RELEASE_BLOBS: Final = 4096
"""Files of one release: bounds the work that a hostile index can cause."""
MAX_GOLDEN_BYTES: Final = 64 * MIB
"""Golden set: 32 inputs of 640x640x3 float32 (157 MB raw) compress well below; it is loaded whole."""

# Documents over MQTT -------------------------------------------------------------------------------
MAX_DESIRED_BYTES: Final = 8 * KIB
"""Desired document on the wire: retained for every device, so 100 000 of them stay under 1 GB."""
MAX_HALT_BYTES: Final = 64 * KIB
"""Halt list: about 600 digests."""
MAX_REPORT_BYTES: Final = 64 * KIB
"""Reported document, event or statistics of one device."""
MAX_MODELS_PER_DEVICE: Final = 16
"""Models that one desired document names: more does not fit 8 KiB."""

# Serving -------------------------------------------------------------------------------------------
MAX_REQUEST_BYTES: Final = 64 * MIB
"""Body of an inference request, as in Triton's default; a 1080p float32 RGB frame is 24 MiB."""
MAX_HEAD_BYTES: Final = 64 * KIB
"""Request line and headers together; nginx allows 32 KiB."""
MAX_TENSOR_RANK: Final = 16
"""Dimensions of a tensor: numpy allows 64, no model uses more than 8."""
MAX_TENSOR_ELEMENTS: Final = 1 << 31
"""Elements of one tensor: beyond it, byte counts overflow 32-bit runtimes."""
MAX_REQUEST_ID_CHARS: Final = 256
"""Request id that is kept for feedback."""
FEEDBACK_RING: Final = 4096
"""Requests that feedback can still refer to, a model; the oldest is forgotten first."""
IDLE_CONNECTION_S: Final = 75.0
"""A connection without a request is closed after this, as nginx does."""
REQUEST_HEAD_S: Final = 10.0
"""Seconds for a whole request to arrive once its first byte came: ends slow-loris clients."""
REQUEST_BODY_MIN_BYTES_PER_S: Final = 16 * KIB
"""A body may take REQUEST_HEAD_S plus its length over this rate."""
MAX_PIPELINED: Final = 64
"""Requests read ahead on one connection before reading pauses."""

# Compiler ------------------------------------------------------------------------------------------
MAX_MODEL_FILE_BYTES: Final = 2 * GIB
"""An ONNX file without external data cannot be larger: protobuf's own limit."""
MAX_GRAPH_NODES: Final = 200_000
"""Nodes of a graph: the largest published ONNX models have about 50 000."""
MAX_DATASET_BYTES: Final = 4 * GIB
"""Calibration or validation file, decompressed: it is held in memory."""

# Agent ---------------------------------------------------------------------------------------------
MAX_RECORD_WRITES: Final = 64
"""Journal writes of one deployment: a correct one needs about ten; beyond it the device is in a loop and reverts."""
MAX_PROBATION_STARTS: Final = 3
"""Starts of the serving process in probation before the device reverts: one start and two crashes."""
MIN_FREE_BYTES: Final = 16 * MIB
"""Disk that a download must leave free, so that the journal can always be written."""
TRIAL_TIMEOUT_S: Final = 300.0
"""Loading a candidate and reproducing its golden set in the child process."""
DOWNLOAD_CHUNK_BYTES: Final = 256 * KIB
"""Bytes between two writes of a download; the resume point is exact to the last synced one."""
DOWNLOAD_ATTEMPTS: Final = 8
"""Consecutive failed attempts without a new byte before a download gives up."""
MAX_JOURNAL_EVENTS: Final = 256
"""Unacknowledged events kept on disk; the oldest non-terminal one is dropped first."""

# Fleet ---------------------------------------------------------------------------------------------
MAX_API_BODY_BYTES: Final = 1 * MIB
"""JSON body of the manager's REST API."""
MAX_WAVES: Final = 64
"""Waves of one rollout."""
MAX_LABELS: Final = 32
"""Labels of one device."""
GATE_MIN_SAMPLES: Final = 200
"""Feedback samples on each side before a gate may decide: at 0.9 accuracy the 95 % interval is +-0.06."""
DESIRED_LIFETIME_S: Final = 30 * 24 * 3600.0
"""A desired document expires after this; the manager signs it again at half of it."""

# Link ----------------------------------------------------------------------------------------------
BACKOFF_FIRST_S: Final = 1.0
"""First reconnect delay; each further one doubles, with full jitter."""
BACKOFF_MAX_S: Final = 60.0
"""Longest reconnect delay: a broker that returns is found within a minute by every device."""
MQTT_KEEPALIVE_S: Final = 60
"""Keep-alive interval; half-open connections end after 1.5 of it."""
MQTT_SESSION_EXPIRY_S: Final = 3600
"""Broker-side session lifetime: desired is retained, so a long queue has no value."""
MQTT_RECEIVE_MAXIMUM: Final = 16
"""QoS 1 messages in flight to one device."""
