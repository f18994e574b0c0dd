from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeserve.contracts import names, topics
from edgeserve.contracts.errors import InputError

UNTIMED = settings(deadline=None, max_examples=40)

DIGEST = "sha256:" + "0123456789abcdef" * 4
CHECKS = {
    "device name": names.device_name,
    "device id": names.device_id,
    "model name": names.model_name,
    "version": names.version_name,
    "file name": names.file_name,
    "digest": names.digest,
    "target name": lambda text: names.plugin_name(text, "target"),
}
GOOD = {
    "device name": ["a", "pi-1", "0", "x" * 63],
    "device id": ["default.pi-1", "a.b", f"{'t' * 63}.{'d' * 63}"],
    "model name": ["digits", "a", "yolo-v8.1_n", "x" * 64],
    "version": ["1", "v2.0.1-rc_3", "A" * 64],
    "file name": ["model.onnx", "_x", "a..b", "X" * 128],
    "digest": [DIGEST],
    "target name": ["x86-cpu", "null"],
}
HOSTILE = [
    "", " ", ".", "..", "../x", "/", "/etc/passwd", "a/b", "a\\b", "+", "#", "a+b", "$SYS", "a b", "a\n", "\n", "a\0b",
    "<b>x</b>", "a'b", 'a"b', "a&b", "\x1b[31m", "ä", "\u0661", "\u202ereversed", "x" * 200, "-rf", "a%2fb",
]  # fmt: skip
WRONG = {
    "device name": ["-a", "a-", "A", "a.b", "a_b", "x" * 64],
    "device id": ["pi-1", ".a", "a.", "a.b.c", "Default.pi", f"{'t' * 64}.d", "a.-b", "a.b\n"],
    "model name": ["-a", "a-", ".a", "a.", "Digits", "x" * 65],
    "version": ["-1", ".1", "_1", "1 ", "1+2", "x" * 65],
    "file name": [".hidden", "-x", "x" * 129],
    "digest": [DIGEST.upper(), DIGEST[:-1], DIGEST + "0", "sha512:" + "0" * 64, "0" * 64, DIGEST + "\n"],
    "target name": ["CPU", "a-", "x" * 65],
}


@pytest.mark.parametrize(("what", "text"), [(what, text) for what, texts in GOOD.items() for text in texts])
def test_a_good_name_is_returned_as_it_is(what: str, text: str) -> None:
    assert CHECKS[what](text) == text


@pytest.mark.parametrize(
    ("what", "text"),
    [(what, text) for what in CHECKS for text in [*HOSTILE, *WRONG[what]]],
    ids=lambda value: ascii(value)[:40],
)
def test_any_other_name_is_refused_and_shown_harmlessly(what: str, text: str) -> None:
    with pytest.raises(InputError) as caught:
        CHECKS[what](text)
    assert caught.value.message.isascii()
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 300
    assert caught.value.hint


@pytest.mark.parametrize("what", CHECKS)
@UNTIMED
@given(text=st.text(max_size=80) | st.from_regex(r"[a-z0-9.:/_-]{1,70}", fullmatch=True))
def test_no_accepted_name_can_leave_its_place(what: str, text: str) -> None:
    try:
        CHECKS[what](text)
    except InputError:
        return
    assert not set(text) & set("/\\+#$<>&'\"%\0 \t\r\n")
    assert text.isascii()
    assert PurePosixPath("folder", text).parent == PurePosixPath("folder")
    assert text not in (".", "..")
    assert not text.startswith("-")


@UNTIMED
@given(st.text(max_size=80) | st.from_regex(r"[a-z0-9-]{1,20}\.[a-z0-9-]{1,20}", fullmatch=True))
def test_a_device_id_is_one_topic_level(device: str) -> None:
    try:
        topic = topics.desired(device)
    except InputError:
        return
    assert topic.split("/") == ["es1", device, "desired"]


@pytest.mark.parametrize("make", [topics.reported, topics.presence, topics.event, topics.stats])
def test_the_sender_is_read_back_from_its_topics(make) -> None:
    assert topics.sender(make("default.pi-1")) == "default.pi-1"


@pytest.mark.parametrize("make", [topics.desired, topics.ack, topics.reported, topics.presence, topics.event])
@pytest.mark.parametrize("device", ["+", "#", "a/b", "default.+", "pi-1"])
def test_no_topic_is_made_for_what_is_no_device(make, device: str) -> None:
    with pytest.raises(InputError):
        make(device)


@pytest.mark.parametrize(
    "topic",
    ["", "es1", "es1/default.pi-1/desired", "es2/default.pi-1/up/event", "es1/+/up/event", "es1/a.b/up/event/x",
     "es1//up/event", "es1/a.b/down/event"],
)  # fmt: skip
def test_another_topic_has_no_sender(topic: str) -> None:
    with pytest.raises(InputError):
        topics.sender(topic)


def test_every_subscription_matches_the_topic_it_is_for() -> None:
    pairs = [
        (topics.EVERY_REPORTED, topics.reported), (topics.EVERY_PRESENCE, topics.presence),
        (topics.EVERY_EVENT, topics.event), (topics.EVERY_STATS, topics.stats),
    ]  # fmt: skip
    for pattern, make in pairs:
        assert pattern.replace("+", "default.pi-1") == make("default.pi-1")


@pytest.mark.parametrize(
    "pairs",
    [{"Site": "a"}, {"": "a"}, {"site": "a b"}, {"site": "<b>"}, {"site": "x" * 64}, {"a/": "b"}, {"site\n": "b"}],
    ids=ascii,
)
def test_a_label_that_is_not_plain_is_refused(pairs: dict[str, str]) -> None:
    with pytest.raises(InputError, match="label"):
        names.labels(pairs)


def test_plain_labels_are_kept() -> None:
    pairs = {"site": "berlin-2", "example.org/line": "A.1", "empty": ""}
    assert names.labels(pairs) == pairs


def test_a_digest_is_told_from_a_tag() -> None:
    assert names.is_digest(DIGEST)
    assert not names.is_digest("latest")
