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
MAX_VARIANTS: Final = 256
"""Manifests of one release: each is read with its contract when a release is opened, at most 2 MiB together."""
MAX_TAR_HEADERS: Final = 2 * MAX_RELEASE_BLOBS + 64
"""Headers of a release's tar: some tools write two for a file."""
MAX_GOLDEN_BYTES: Final = 64 * MIB
"""Golden set: 32 inputs of 640x640x3 float32 (157 MB raw) compress well below; it is loaded whole."""

# Documents over MQTT -------------------------------------------------------------------------------
MAX_DESIRED_BYTES: Final = 8 * KIB
"""Desired document on the wire: retained for every device, so 100 000 of them stay under 1 GB."""
MAX_HALT_BYTES: Final = 64 * KIB
"""Halt list: MAX_HALTED_RELEASES digests."""
MAX_HALTED_RELEASES: Final = 600
"""Digests on the halt list: 74 bytes each, a third more in the envelope, fit MAX_HALT_BYTES."""
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
MAX_SERVED_PIXELS: Final = 25_000_000
"""Pixels of a picture in a request: those of a 24-megapixel camera, 75 MB on each thread that decodes one."""
MAX_SERVED_SAMPLES: Final = 10_000_000
"""Samples of sound in a request, all channels together: ten minutes at 16 kHz, 80 MB on each thread."""
MAX_CONNECTIONS: Final = 16_384
"""Open connections of each protocol where the limit of file descriptors allows as many; further ones get 503. An idle
one takes 3.6 KiB of the process."""
DESCRIPTORS_KEPT: Final = 512
"""File descriptors that connections leave alone: MAX_LOCAL_CONNECTIONS, regions, worker processes, files of models."""
MAX_BODY_BYTES_IN_FLIGHT: Final = 256 * MIB
"""Bodies held at once over all connections: half the memory of the smallest board; beyond it 503."""
UNCOUNTED_BODY_BYTES: Final = 16 * KIB
"""Bodies up to it are not held against MAX_BODY_BYTES_IN_FLIGHT: a connection takes about as much itself."""
READ_BUFFER_BYTES: Final = 256 * KIB
"""The one buffer that all connections read into; longer bodies are read straight into their own."""
OUTBOX_CONNECTIONS: Final = 16
"""Answers of one turn of the event loop that are sent together: beyond it waking the clients costs little of each."""
OUTBOX_NS: Final = 200_000
"""No answer waits longer for the others of its turn, as long as two of the slowest calls that run on the loop."""
LOOP_RUN_MAX_US: Final = 100.0
"""Calls expected to take no longer run on the event loop: handing over to a thread costs about as much."""
DRAIN_S: Final = 30.0
"""A stopping server waits this long for requests in flight."""
LINGER_S: Final = 2.0
"""Input is thrown away for this long after a refusal, so that the client reads the answer and not a reset."""
MAX_CACHED_HEADS: Final = 256
"""Parsed request heads kept by their bytes; a client repeats the same few."""
MAX_CACHED_HEAD_BYTES: Final = 4 * KIB
"""A head that is kept: a model with 30 inputs fits."""
H2_FRAME_BYTES: Final = 1 * MIB
"""Largest HTTP/2 frame that is taken: a 602 KB picture is one; payloads are read where they belong, not buffered."""
H2_STREAM_WINDOW: Final = 1 * MIB
"""Octets of one HTTP/2 stream that a client may send ahead of what the service takes: a 602 KB picture never waits. For
a longer message the window is opened when it begins."""
H2_CONNECTION_WINDOW: Final = 64 * MIB
"""... of all streams of a connection: a quarter of MAX_BODY_BYTES_IN_FLIGHT. Messages under way are not held up by it:
what bounds them is their memory."""
H2_CONCURRENT_STREAMS: Final = 256
"""Calls at once on one HTTP/2 connection; nginx allows 128, grpc-java's and Envoy's clients open hundreds."""
H2_CONTINUATIONS: Final = 16
"""CONTINUATION frames of one field block: 16 KiB each hold MAX_HEAD_BYTES; ends floods (CVE-2024-27316)."""
H2_RESETS: Final = 1000
"""Streams of one connection reset in a burst, by the client or for its errors (CVE-2023-44487); nghttp2's figure."""
H2_RESETS_PER_S: Final = 33.0
"""... and in the long run; nghttp2's figure."""
H2_IDLE_FRAMES: Final = 1000
"""Frames in a row that carry no call (PING, SETTINGS, PRIORITY, empty DATA; CVE-2019-9512, 9513, 9515, 9518)."""
H2_IDLE_FRAMES_PER_S: Final = 33.0
"""... and in the long run: keep-alive pings come a few in a minute."""
H2_RESET_MEMORY: Final = 1024
"""Streams that we reset and whose late frames are still passed over: four times H2_CONCURRENT_STREAMS."""
H2_WAITING_BYTES: Final = MAX_BODY_BYTES_IN_FLIGHT
"""Answers of one stream that wait for the client's window: ten of 24 MiB; one that asks on without reading is reset."""
H2_PING_S: Final = 20.0
"""A silent client with calls open is pinged and must answer within this, as grpc's servers ask."""
H2_DEADLINE_TICK_S: Final = 0.02
"""Calls with a deadline are looked at this often: one timer for all of them; the client watches its own clock, too."""
H2_HELD_MESSAGE_BYTES: Final = 16 * KIB
"""Messages from this size on count against MAX_BODY_BYTES_IN_FLIGHT; counting costs 2 us."""
MAX_CACHED_BLOCKS: Final = 8
"""HTTP/2 field blocks kept by their bytes, a connection: as MAX_CACHED_HEADS; 8 KiB each at most."""
MAX_STATUS_MESSAGE_BYTES: Final = 2 * KIB
"""`grpc-message`, encoded: grpc's clients take 8 KiB of trailers."""
MAX_FEEDBACK_ROWS: Final = 256
"""Rows of a request whose predictions are kept for feedback: bounds the ring's memory to 8 MiB a model."""
MALLOC_MMAP_BYTES: Final = 32 * MIB
"""Blocks below it come from memory that malloc keeps; the most that glibc allows."""
MALLOC_KEPT_BYTES: Final = 32 * MIB
"""Free memory at the top of the heap above which it goes back to the system: that of a few pictures in flight."""
MAX_KEPT_COUNTERS: Final = 1024
"""Releases whose counters are kept, those of unloaded ones among them: each has a few hundred bytes."""
COMPRESS_FROM_BYTES: Final = 1400
"""A shorter answer fits one packet as it is."""
CODEC_THREAD_BYTES: Final = 64 * KIB
"""Bodies above it are (de)compressed on a thread: 64 KiB take about a millisecond."""
MAX_KNOWN_HEADS: Final = 1024
"""Request heads (line and headers) kept parsed by their bytes; a client repeats its own to the letter."""
MAX_KNOWN_HEAD_BYTES: Final = 1 * KIB
"""A request head that is kept; taken apart, one of 120 headers takes 15 KiB: MAX_KNOWN_HEADS of them 15 MiB."""
BOUND_RUN_BYTES: Final = 64 * KIB
"""Inputs and outputs of a call below this are copied through buffers bound once: cheaper than binding anew; a larger
copy is not."""
MAX_BOUND_SHAPES: Final = 16
"""Shapes of inputs for which a thread keeps such buffers, a model."""
MAX_BATCH_ROWS: Final = 4096
"""Rows of one call that requests are batched to."""
MAX_INSTANCES: Final = 64
"""Calls of one model that may run side by side: more than any device of the profiles has cores."""
MAX_PRIORITY_LEVELS: Final = 64
"""Priorities of one model's queue."""
MAX_QUEUE_DELAY_US: Final = 60_000_000
"""Time that a request may be made to wait for others: beyond a minute every client has given up."""
MAX_WAIT_US: Final = 7 * 24 * 3600 * 1_000_000
"""Time that a request may wait for its turn, or a sequence for its next request: a week: longer is a slip."""
JOIN_BUFFER_BYTES: Final = 16 * MIB
"""Joined inputs that a thread of a batched model keeps for the next batch: 27 pictures of 602 KB; of larger batches the
memory is given back."""
MAX_SEQUENCES: Final = 1024
"""Sequences of one model that are under way or wait for a place: each keeps its state, 1 KiB of a voice detector."""
MAX_SEQUENCE_REQUESTS: Final = 256
"""Requests of one sequence that wait for those before them: eight seconds of a voice detector."""
MAX_LABELLED_VERSIONS: Final = 32
"""Labels of one model's versions."""
MAX_CLASSIFICATION: Final = 20_000
"""Classes that the classification extension returns for a row: as many as a task may have."""
MAX_REPOSITORY_MODELS: Final = 1024
"""Models of one repository folder: a server with as many names none of them a second time in an index of 1 MiB."""
MAX_MODEL_VERSIONS: Final = 1024
"""Version folders of one model that are looked at."""
MAX_UPLOADED_FILES: Final = 64
"""Files that one load request brings."""
MAX_UPLOADED_BYTES: Final = 256 * MIB
"""... and their bytes together: a request over HTTP brings at most MAX_REQUEST_BYTES of base64, over gRPC as much."""
MAX_WARMUP_RUNS: Final = 1000
"""Calls that one entry of `model_warmup` asks for; TensorFlow Serving replays as many."""
MAX_WARMUP_BYTES: Final = 256 * MIB
"""Inputs of all warm-up requests of a model together."""
MAX_POLL_S: Final = 24 * 3600.0
"""Longest time between two looks at a repository folder."""
MAX_SHARED_REGIONS: Final = 256
"""Named regions of shared memory, two file descriptors each: perf_analyzer registers one for each tensor of each
request in flight, 64 requests at once have two."""
MAX_SHARED_BYTES: Final = 4 * GIB
"""Shared memory that clients let the server map, of each kind. It is theirs: what it takes here is address space."""
MAX_REGION_NAME_CHARS: Final = 255
"""Name or key of a region: what a file name may have."""
MAX_LOCAL_CONNECTIONS: Final = 256
"""Connections of the local protocol: each is a program on this device, and each costs a file descriptor."""
MAX_LOCAL_PLANS: Final = 32
"""Plans of one local connection: a program with as many models, or shapes, of its own."""
MAX_LOCAL_SLOTS: Final = 64
"""Requests in flight of one plan."""
MAX_LOCAL_MESSAGE_BYTES: Final = 64 * KIB
"""Largest message of the local protocol: the layout of a model with 300 tensors."""
MAX_LOCAL_LAYOUTS: Final = 64
"""Shapes of outputs that a plan has a number for; with more, numbers are given anew."""
LOCAL_READ_BYTES: Final = 1 * KIB
"""Read from a local connection at once: 64 requests, so that one client cannot hold the loop for long."""
MAX_TRACED_MODELS: Final = 256
"""Models with trace settings of their own: more than any device of the profiles serves."""
MAX_STREAM_REQUESTS: Final = 1024
"""Requests of one ModelStreamInfer that wait for their answers, which keep their order: a slow one holds all back, and
the client must wait."""
STREAM_BYTES: Final = 16 * MIB
"""... and their bytes, beyond which the client must wait, too: 27 pictures of 602 KB keep a batching model busy."""
MAX_INFER_FIELDS: Final = 16_384
"""Fields of one ModelInferRequest that protobuf is given: an empty input has 2 bytes on the wire and takes 90 in memory
and a microsecond; the largest models have 300 inputs. Texts in `bytes_contents` count one each."""
MAX_INFER_PARSED_BYTES: Final = 8 * MIB
"""... and their bytes, `raw_input_contents` aside: a 640x640 picture in `fp32_contents` has 4.9 MB; 8 MiB of one-byte
numbers take a quarter of a second of the loop to read, and 64 MB of memory."""
MAX_GRPC_METHOD_BYTES: Final = 64 * KIB
"""Request of any other unary method but RepositoryModelLoad: names and settings; as MAX_HEAD_BYTES."""
MAX_RAW_INPUTS: Final = 1024
"""`raw_input_contents` of one request: empty ones have two bytes on the wire and a hundred in memory."""
MAX_GRPC_CALLS: Final = 1024
"""Calls at once by grpcio; further ones get RESOURCE_EXHAUSTED."""
GRPC_PING_S: Final = 60.0
"""A silent client of grpcio's server is pinged after this; clients may ping every sixth of it."""
HEALTH_WATCH_S: Final = 1.0
"""Health is looked at this often while a client watches it."""
TUNE_LOAD_S: Final = 180.0
"""Start of one configuration: the largest models of the device profiles take half a minute on the smallest board."""
TUNE_INPUT_BYTES: Final = 256 * MIB
"""File of inputs to tune with: it is held in memory."""
TUNE_REQUESTS: Final = 256
"""Different requests of that file which are sent, again and again."""
TUNE_RESERVE_BYTES: Final = 64 * MIB
"""Memory of the machine that trials leave alone."""
MAX_TUNE_CLIENTS: Final = 256
"""Clients at once: beyond it the load itself would be what is measured."""
MAX_TUNE_S: Final = 24 * 3600.0
"""Longest search."""

# Compiler ------------------------------------------------------------------------------------------
MAX_MODEL_FILE_BYTES: Final = 2 * GIB
"""An ONNX file without external data cannot be larger: protobuf's own limit."""
MAX_GRAPH_NODES: Final = 200_000
"""Nodes of a graph: the largest published ONNX models have about 50 000."""
MAX_MODEL_FOLDER_FILES: Final = 10_000
"""Files of a model that is a folder (SavedModel): its variables have a few, its assets a few more."""
MAX_DATASET_BYTES: Final = 4 * GIB
"""Calibration or validation file, decompressed: it is held in memory."""
MAX_NPZ_ARRAYS: Final = 1024
"""Arrays in one npz file: no model of the profiles has more inputs and outputs."""
MAX_NPZ_TEXT_BYTES: Final = 4 * KIB
"""One text in an npz file: a path of 1000 characters, four bytes each."""
MAX_ANNOTATION_BYTES: Final = 512 * MIB
"""labels.csv, COCO JSON or list of pictures: the annotations of COCO's 118 000 training pictures have 448 MB."""
GOLDEN_ROWS: Final = 32
"""Rows of the golden set: a device runs them in under a second; fewer when they would pass MAX_GOLDEN_BYTES."""

MAX_CLASSES: Final = 20_000
"""Labels of a task: their names fit MAX_CONFIG_BYTES; ImageNet-21k has about as many."""
MAX_IMAGE_SIDE: Final = 8192
"""Side of an image that a model takes."""
MAX_IMAGE_PIXELS: Final = 100_000_000
"""Pixels of a picture that is decoded: a 100-megapixel camera; a decompression bomb claims more."""
MAX_MEDIA_BYTES: Final = 64 * MIB
"""One image or WAV file."""
MAX_DATASET_FILES: Final = 100_000
"""Files of one folder of data."""
MAX_TASK_BYTES: Final = 1 * MIB
"""`model.toml`: MAX_CLASSES labels of 40 bytes fit."""
DETECTION_CANDIDATES: Final = 1000
"""Boxes of one picture that non-maximum suppression looks at, the best first: bounds its time; a detector with some
thousand cells has a few hundred above a score of 0.01."""
DETECTION_ROWS: Final = 8
"""Pictures whose boxes are decoded at once: 8 x 8400 boxes x 80 classes are 22 MB."""
SEARCH_TRIALS: Final = 40
"""Quantized candidates of one variant that are judged on all rows: bounds the time of a compilation."""
CALIBRATION_STEPS: Final = 512
"""Steps of stateful models that ranges are taken from, evenly spread over the sequences."""
RANKING_ROWS: Final = 64
"""Calibration rows on which noise is measured, for every candidate and for every layer alone."""
RANKING_ELEMENTS: Final = 8 * MIB
"""Elements of inputs and outputs of those rows together: a detector of 0.8 million a row is ranked on ten rows."""
BOOTSTRAP_RESAMPLES: Final = 2000
"""Resamples of a mean difference: from seed to seed an end of the 95 % interval moves by a fortieth of its width."""
BOOTSTRAP_METRIC_RESAMPLES: Final = 200
"""Resamples of a metric that is computed anew for each: mAP of 500 pictures takes a second a trial."""
BOOTSTRAP_BLOCK: Final = 1 << 21
"""Row numbers drawn at once: 16 MiB of them."""
COMPILE_CACHE_BYTES: Final = 2 * GIB
"""Releases that `compile` keeps so that the same call answers at once: twenty of a 25 MB model for four targets."""
COMPILE_CACHE_LEFTOVER_S: Final = 3600.0
"""Unfinished entries of the cache older than this were left by a process that was killed."""
MAX_SKETCH_BYTES: Final = 64 * KIB
"""Baseline sketch: a device keeps it in memory for each model."""
SKETCH_BINS: Final = 20
"""Bins of a sketch's histogram, equally full but for the outer two: 10 to 20 are usual for the stability index."""
SKETCH_FIELDS: Final = 64
"""Tensors and decoded fields of a sketch: with names of usual length they fit MAX_SKETCH_BYTES."""
SKETCH_CLASSES: Final = 256
"""Classes that a sketch counts one by one, the most frequent first; the rest is counted together."""
SKETCH_VALUES: Final = 1 << 20
"""Elements of one tensor that a sketch looks at: more do not change three digits of a quantile."""
REPORT_PICTURE_SIDE: Final = 160
"""Side in pixels of an example's picture in the report page."""
REPORT_PICTURE_BYTES: Final = 4 * MIB
"""Pictures of one report page together; further examples have none."""
CALIBRATION_BATCH_BYTES: Final = 64 * MIB
"""Activations held at once while ranges are measured: rows run in batches that stay below it, one row at least."""
EXTERNAL_DATA_BYTES: Final = 16 * MIB
"""ONNX products above it keep their weights in a file beside the graph, which is mapped and not copied on loading."""
EXTERNAL_TENSOR_BYTES: Final = 1 * KIB
"""Smaller tensors stay in the graph."""
CONVERTER_S: Final = 900.0
"""One conversion in another environment: the largest models of the device profiles take about a minute."""
CONVERTER_INSTALL_S: Final = 1800.0
"""Each step of making such an environment: 600 MB over a slow line."""

# Agent ---------------------------------------------------------------------------------------------
MAX_RECORD_WRITES: Final = 64
"""Journal writes of one deployment: a correct one needs about ten; beyond it the device is in a loop and reverts."""
MAX_PROBATION_STARTS: Final = 3
"""Starts of the serving process in probation before the device reverts: one start and two crashes."""
MIN_FREE_BYTES: Final = 16 * MIB
"""Disk that a download must leave free, so that the journal can always be written."""
TRIAL_TIMEOUT_S: Final = 300.0
"""Loading a candidate and reproducing its golden set in the child process."""
MAX_ALTERNATIVES: Final = 3
"""Variants of one release that a device fetches and tries to find the fastest: int8 by two runtimes, and float."""
TRIAL_TIMED_CALLS: Final = 50
"""Warm calls with one row whose median is a variant's latency on the device."""
TRIAL_TIMED_S: Final = 2.0
"""Slow variants are timed by fewer calls, at least one."""
DOWNLOAD_CHUNK_BYTES: Final = 256 * KIB
"""Bytes between two writes of a download; the resume point is exact to the last synced one."""
DOWNLOAD_ATTEMPTS: Final = 8
"""Consecutive failed attempts without a new byte before a download gives up."""
MAX_JOURNAL_EVENTS: Final = 256
"""Unacknowledged events kept on disk; the oldest non-terminal one is dropped first."""
MAX_JOURNAL_BYTES: Final = 4 * MIB
"""The agent's journal: its events, the desired document and the halt list together stay below 1 MiB."""
MAX_QUARANTINED: Final = 256
"""Release digests that failed on a device; the oldest is forgotten first and may then be tried again."""
SERVING_START_S: Final = 180.0
"""The serving process must answer this long after its start: a Raspberry Pi loads a 500 MB model in under a minute."""
SERVING_LOAD_S: Final = 300.0
"""Loading and warming up one variant in the serving process."""
SERVING_SILENT_S: Final = 30.0
"""A serving process that answered before and is silent this long hangs: its event loop is never busy for seconds."""
START_EXTENSION_S: Final = 60.0
"""What a start under systemd asks for at a time; a control loop that hangs while it starts is ended within it."""
MAX_NOTIFY_STATUS_BYTES: Final = 1000
"""Of the line that `systemctl status` shows: the rest of a datagram of 4096 bytes, systemd's bound, is ample."""

FINALIZE_TIMEOUT_S: Final = 3600.0
"""Building an engine on the device, beside TRIAL_TIMEOUT_S: detectors were seen to take ten minutes on an Orin."""

# What a device builds of a model (engines) -----------------------------------------------------------
MAX_ENGINE_BYTES: Final = MAX_BLOB_BYTES
"""One engine: it has the weights of one model."""
MAX_ENGINE_CACHE_BYTES: Final = 16 * GIB
"""All engines of a device: twice MAX_ENGINE_BYTES, the active one and the previous one."""
MAX_ENGINE_ENTRIES: Final = 256
"""Engines of a device: four for each of MAX_MODELS_PER_DEVICE times variants; bounds a look at the folder."""
ENGINE_PROGRESS_S: Final = 10.0
"""Between two lines of the log that say that an engine is still being built."""
ENGINE_ROWS: Final = 8
"""Rows of the largest call of an engine whose variant does not say; a larger call is computed in parts."""

# Isolation ("process": a model in a worker process of its own) -------------------------------------
MAX_ISOLATED_CALLS: Final = 32
"""Calls that one worker process computes at once: each has a thread and a region of shared memory."""
ISOLATION_REGION_BYTES: Final = 256 * MIB
"""Shared memory of one call, inputs and outputs together: MAX_REQUEST_BYTES in and three times as much out."""
ISOLATION_MESSAGE_BYTES: Final = 64 * KIB
"""Shapes of one call, or an order to the fork server: a thousand tensors of four dimensions fit."""
ISOLATION_CALL_S: Final = 300.0
"""A worker process that does not answer a call for so long hangs and is ended: five times what any client waits."""
ISOLATION_CLOSE_S: Final = 5.0
"""A model that is closed waits this long for calls under way; then they end with the worker process."""
ISOLATION_LAST_WORD_S: Final = 2.0
"""A call whose worker process is gone waits this long to learn how it ended, so that the error can say it."""
ISOLATION_BACKOFF_FIRST_S: Final = 0.1
"""Delay before a worker process is started again; each further crash within the window doubles it."""
ISOLATION_BACKOFF_MAX_S: Final = 30.0
"""Longest such delay."""
ISOLATION_CRASHES: Final = 5
"""Crashes within ISOLATION_CRASH_WINDOW_S from which a model is restarted; one more and it stays down."""
ISOLATION_CRASH_WINDOW_S: Final = 600.0
"""A crash is forgotten after this: a worker that an overfull memory ends now and then is no loop."""

# Handlers (Python beside a model, in a process of its own) ---------------------------------------------
HANDLER_MEMORY_BYTES: Final = 2 * GIB
"""Address space of a handler's process unless its file says another number: interpreter and numpy reserve 0.4 GiB."""
MAX_HANDLER_MEMORY_BYTES: Final = 16 * GIB
"""... and the most that it may say."""
HANDLER_CALL_S: Final = 30.0
"""Seconds of one step of a handler unless its file says another number."""
MAX_HANDLER_CALL_S: Final = 300.0
"""... and the most that it may say: five times what any client waits."""
HANDLER_START_S: Final = 120.0
"""Start of a handler's process and its `load`: a vocabulary of 100 MB is read in seconds on the smallest board."""
HANDLER_CLOSE_S: Final = 5.0
"""A process that was killed is gone after this, or the kernel holds it."""
HANDLER_IDLE_CPU_S: Final = 10
"""Processor time of a handler between two calls: what it computes then no one asked for."""
HANDLER_HEAD_BYTES: Final = 64 * KIB
"""Names and shapes of a message to or from a handler: a thousand tensors fit."""
HANDLER_TENSOR_BYTES: Final = 256 * MIB
"""Tensors of one message: MAX_REQUEST_BYTES in and four times as much out."""
HANDLER_FILES: Final = 64
"""Descriptors that a handler may have open: its files are read in `load`, one after another."""
HANDLER_TASKS: Final = 256
"""Threads of all handlers together where they run under a user of their own."""
HANDLER_COPY_BYTES: Final = 1 * GIB
"""Files beside a handler that are copied where it runs under another user, who may not see the original folder."""
HANDLER_CRASHES: Final = 5
"""Crashes and hangs within HANDLER_CRASH_WINDOW_S that are followed by a new process; one more and it stays down."""
HANDLER_CRASH_WINDOW_S: Final = 600.0
"""A crash is forgotten after this."""
HANDLER_LOG_LINE_CHARS: Final = 1000
"""One line of what a handler prints; the rest of it is left out."""
HANDLER_LOG_BYTES: Final = 64 * KIB
"""What of a handler's printing is logged within HANDLER_LOG_WINDOW_S; the rest is counted and thrown away."""
HANDLER_LOG_WINDOW_S: Final = 60.0
"""... which keeps a device's journal below 100 MB a day at the worst."""

# Fleet ---------------------------------------------------------------------------------------------
MAX_API_BODY_BYTES: Final = 1 * MIB
"""JSON body of the manager's REST API."""
MAX_FLEET_ANSWER_BYTES: Final = 64 * MIB
"""Answer of the manager that a client reads: 20 000 devices of 3 KiB."""
MAX_UPLOADS: Final = 64
"""Unfinished blob uploads of the embedded registry: `skopeo` has six under way at once."""
UPLOAD_LIFETIME_S: Final = 3600.0
"""An upload without a new byte for this long is removed."""
MAX_EVENT_STREAMS: Final = 64
"""Open pages that follow changes: each holds a connection for as long as it is open."""
MAX_WAVES: Final = 64
"""Waves of one rollout."""
MAX_LABELS: Final = 32
"""Labels of one device."""
MAX_COUNT: Final = 1 << 53
"""Largest counter, generation, epoch or sequence number: exact in JSON readers with doubles, fits 64-bit columns."""
MAX_REASON_CHARS: Final = 2000
"""Of a device's reason for a failure that the manager keeps: a traceback's end fits."""
DISPATCH_BATCH: Final = 100
"""Devices that one transaction offers or recalls: at 5 ms each it holds the database for half a second."""
SEEN_LATELY_S: Final = 900.0
"""A device heard within this counts as reachable when waves are planned, though no broker says that it is online."""
STATS_RETENTION_S: Final = 7 * 24 * 3600.0
"""Statistics kept; those of rollouts that still move are kept until they end."""
EVENTS_RETENTION_S: Final = 90 * 24 * 3600.0
"""Deployment events kept."""
INGEST_BATCH: Final = 256
"""Messages from devices that one transaction stores: one disk sync for all of them."""
INGEST_QUEUE: Final = 4096
"""Messages from devices that wait for the database; beyond it the broker is not acknowledged and holds them."""
OUTBOX_BATCH: Final = 500
"""Messages handed to the broker before their acknowledgements are awaited."""
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
MAX_MQTT_PACKET_BYTES: Final = 256 * KIB
"""One MQTT packet, both ways: four times the largest document; the embedded broker refuses more, too."""
MQTT_MAX_IN_FLIGHT: Final = 10
"""QoS 1 messages sent and not acknowledged: the smallest Receive Maximum that common brokers announce by default."""
MQTT_MAX_UNACKNOWLEDGED: Final = 10_000
"""Messages handed to the link and not acknowledged; beyond it `publish` refuses, since the broker does not keep up."""
MQTT_WILL_DELAY_S: Final = 2
"""The broker holds a last will this long: longer than a first reconnect (`BACKOFF_FIRST_S`), so it is not announced."""
MQTT_CONNECT_TIMEOUT_S: Final = 10.0
"""TCP, TLS and the broker's answer to CONNECT, each."""
MQTT_FLUSH_S: Final = 2.0
"""What `stop` waits for acknowledgements before it says goodbye."""

# Probes of the machine ------------------------------------------------------------------------------
MAX_PROBE_FILE_BYTES: Final = 1 * MIB
"""Of one file of the kernel: `/proc/cpuinfo` of 512 processors has 0.8 MB."""
MAX_PROBE_FILES: Final = 8192
"""Files and folders looked at in one probe: 256 processors with a clock of their own each take 2600."""
MAX_PROBE_NAMES: Final = 1024
"""Entries of one folder: one each for processors, sensors and mounts of the largest servers."""
MAX_PROBE_TEXT_CHARS: Final = 120
"""A name that the kernel gives: x86 allows 48 characters, models of boards are about as long."""
MAX_PROBE_FEATURES: Final = 96
"""CPU flags of a report: an EPYC with AVX-512 has 25 that matter."""
MAX_PROBE_ACCELERATORS: Final = 16
"""Accelerators of a report: the largest servers have 8 cards."""
MAX_PROBE_CPUS: Final = 8192
"""Processors of a CPU list: what Linux can be built for."""
MAX_PROBE_PROBLEMS: Final = 64
"""Files that could not be read and are named."""
RUNTIME_PROBE_S: Final = 30.0
"""A runtime is imported and asked for its devices in this time: one that waits for a broken driver is ended."""
RUNTIME_PROBE_BYTES: Final = 64 * KIB
"""Its answer: a device has a few hundred bytes."""

# Conformance checks --------------------------------------------------------------------------------
MAX_CONFORMANCE_ELEMENTS: Final = 1 << 20
"""Elements of the inputs of a model that checks send, many times and as JSON: larger models are left out."""
