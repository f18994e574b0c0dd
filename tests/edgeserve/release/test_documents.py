from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeserve.contracts.errors import EdgeServeError, InputError
from edgeserve.contracts.limits import MAX_INDEX_BYTES, MAX_VARIANTS
from edgeserve.contracts.oci import EVIDENCE_TYPE, TITLE
from edgeserve.release.documents import is_evidence, parse_index, parse_manifest
from edgeserve.release.layout import open_release


def title(text: str, layer: int = 0):
    return lambda manifest: manifest["layers"][layer]["annotations"].update({TITLE: text})


def drop_platform_and_add(index: dict, count: int) -> None:
    entry = index["manifests"][0]
    index["manifests"] += [{**entry, "digest": f"sha256:{number:064x}"} for number in range(count)]


@pytest.mark.parametrize(
    "text",
    ["../x", "/etc/passwd", "a/b", "a\\b", "..", ".", ".hidden", "", "a\0b", "a\nb", "x" * 129, "-rf", "ä"],
    ids=ascii,
)
def test_a_title_that_is_no_plain_file_name_is_refused(forge, text: str) -> None:
    with pytest.raises(InputError, match="file name"):
        open_release(forge(manifest=title(text)))


@pytest.mark.parametrize(
    ("edits", "word"),
    [
        ({"manifest": title("w.bin")}, "two files of the manifest are titled"),
        ({"manifest": title("W.BIN")}, "two files of the manifest are titled"),
        ({"manifest": title("other.onnx")}, r"lacks its entry 'model\.onnx'"),
        ({"manifest": title("Contract.json", 1)}, "kept for the contract"),
        ({"manifest": lambda m: m["layers"][0]["annotations"].clear()}, "has no annotation"),
        ({"manifest": lambda m: m["config"].update(mediaType="application/x")}, "a variant has"),
        ({"manifest": lambda m: m["config"].update(digest="sha256:../../etc/passwd")}, "digest"),
        ({"manifest": lambda m: m["layers"][0].update(digest="md5:0")}, "digest"),
        ({"manifest": lambda m: m["layers"][0].update(size=-1)}, "declares -1 bytes"),
        ({"manifest": lambda m: m["layers"][0].update(size="1")}, "Expected `int`"),
        ({"manifest": lambda m: m.update(schemaVersion=1)}, "schemaVersion 2"),
        ({"manifest": lambda m: m.pop("layers")}, "layers"),
        ({"config": lambda c: c.update(schema=2)}, "schema 2, this edgeserve reads 1"),
        ({"config": lambda c: c.update(model="faces")}, "another model, 'faces'"),
        ({"config": lambda c: c.update(target="arm-cpu")}, "index says io.edgeserve.target is 'x86-cpu'"),
        ({"config": lambda c: c.update(precision="fp32")}, "index says io.edgeserve.precision"),
        ({"config": lambda c: c.update(entry="../model.onnx")}, "file name"),
        ({"config": lambda c: c.update(target="\x1b[31m")}, "target name"),
        ({"index": lambda i: i.update(artifactType="application/other")}, "a release has"),
        ({"index": lambda i: i.update(mediaType="application/json")}, "schemaVersion 2"),
        ({"index": lambda i: i["annotations"].pop("io.edgeserve.counter")}, "lacks the annotation"),
        ({"index": lambda i: i["annotations"].update({"io.edgeserve.counter": "-1"})}, "not a number"),
        ({"index": lambda i: i["annotations"].update({"io.edgeserve.counter": "9" * 20})}, "not a number"),
        ({"index": lambda i: i["annotations"].update({"io.edgeserve.name": "../x"})}, "model name"),
        ({"index": lambda i: i["manifests"].append(i["manifests"][0])}, "names one manifest twice"),
        ({"index": lambda i: drop_platform_and_add(i, MAX_VARIANTS)}, f"at most {MAX_VARIANTS}"),
        ({"index": lambda i: i["manifests"][0].update(artifactType="application/other")}, "does not know"),
        ({"index": lambda i: i["manifests"][0].update(artifactType=EVIDENCE_TYPE)}, "2 evidence manifests"),
        ({"index": lambda i: i.update(manifests=[])}, "no variant"),
        ({"index": lambda i: i.update(manifests=i["manifests"][-1:])}, "no variant"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_document_that_says_what_it_must_not_is_refused(forge, edits, word: str) -> None:
    with pytest.raises(InputError, match=word):
        open_release(forge(**edits))


def test_an_unknown_schema_says_what_to_do(forge) -> None:
    with pytest.raises(InputError) as caught:
        open_release(forge(config=lambda config: config.update(schema=2)))
    assert caught.value.hint == "update edgeserve"


def test_fields_that_are_not_known_are_ignored(forge) -> None:
    edit = {"future": {"x": [1]}}
    path = forge(config=lambda c: c.update(edit), manifest=lambda m: m.update(edit), index=lambda i: i.update(edit))
    assert open_release(path).identity.name == "digits"


def test_evidence_is_told_from_variants(layout) -> None:
    index = open_release(layout).index
    assert [is_evidence(descriptor) for descriptor in index.manifests] == [False, False, True]


@pytest.mark.parametrize("parse", [parse_index, parse_manifest])
@pytest.mark.parametrize(
    "data",
    [b"", b"null", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"a":' * 100_000, b" " * (MAX_INDEX_BYTES + 1)],
    ids=["empty", "null", "list", "cut", "no-utf8", "deep-list", "deep-object", "too-large"],
)
def test_what_is_no_document_is_refused(parse, data: bytes) -> None:
    with pytest.raises(InputError):
        parse(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None)
@given(data=st.data(), value=JSON)
def test_a_release_with_any_one_field_replaced_is_read_or_refused(data: st.DataObject, value: object) -> None:
    digest = "sha256:" + "0" * 64
    manifest = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 5}
    document = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "artifactType": "application/vnd.edgeserve.release.v1",
        "manifests": [{**manifest, "platform": {"architecture": "amd64", "os": "linux"}}],
        "annotations": {
            "io.edgeserve.name": "m",
            "org.opencontainers.image.version": "1",
            "io.edgeserve.counter": "1",
        },
    }
    assert parse_index(json.dumps(document).encode())[1].name == "m"
    place: dict = data.draw(st.sampled_from([document, document["manifests"][0], document["annotations"]]))
    place[data.draw(st.sampled_from(sorted(place)))] = value
    try:
        index, identity = parse_index(json.dumps(document).encode())
    except EdgeServeError:
        return
    assert index.manifests[0].size <= MAX_INDEX_BYTES
    assert "/" not in identity.name + identity.version
