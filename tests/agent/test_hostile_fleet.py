"""A whole agent against a manager and a registry that serve what no honest ones would: it goes on serving."""

from __future__ import annotations

import hashlib
import json

import pytest

from edgeserve.contracts.desired import Generation
from edgeserve.contracts.limits import GIB, MAX_DESIRED_BYTES
from edgeserve.trust.keys import SigningKey

pytestmark = pytest.mark.system


@pytest.fixture
def serving(agent, manager, releases, eventually):
    """An agent that has committed version 1."""
    one = agent().start()
    manager.want(manager.publish(releases.make("1")))
    eventually(lambda: manager.states()[-1:] == ["committed"])
    return one


class Registry:
    """Publishes a release and then changes what is stored of it."""

    def __init__(self, manager, release) -> None:
        self.manager, self.release = manager, release
        self.target = manager.publish(release)
        self.weights = release.variants[0].files["weights.bin"]

    def stored(self, digest):
        path = self.manager.blobs.path(digest)
        path.chmod(0o644)
        return path

    def flip(self):
        path = self.stored(self.weights.digest)
        data = path.read_bytes()
        path.write_bytes(bytes([data[0] ^ 1]) + data[1:])

    def lose(self):
        self.stored(self.weights.digest).unlink()

    def lengthen(self):
        with self.stored(self.weights.digest).open("ab") as file:
            file.write(b"x" * 1_000_000)

    def lie(self, **changes):
        """Change the descriptor of the weights, and name the manifest and the index by what they are then."""
        index = json.loads(self.manager.blobs.path(self.release.digest).read_bytes())
        entry = next(one for one in index["manifests"] if one["digest"] == self.release.variants[0].digest)
        manifest = json.loads(self.manager.blobs.path(entry["digest"]).read_bytes())
        layer = next(one for one in manifest["layers"] if one["digest"] == self.weights.digest)
        layer.update(changes)
        entry.update(self._add(manifest))
        added = self._add(index)
        return self.target.__class__(
            **{
                **{name: getattr(self.target, name) for name in self.target.__struct_fields__},
                "release": added["digest"],
                "index_size": added["size"],
            }
        )

    def _add(self, document):
        data = json.dumps(document).encode()
        self.manager.blobs.add(data)
        return {"digest": "sha256:" + hashlib.sha256(data).hexdigest(), "size": len(data)}


TITLE = "org.opencontainers.image.title"


HARMS = {
    "flipped byte": (Registry.flip, "the registry's copy is damaged: publish it again"),
    "missing blob": (Registry.lose, "does not have"),
    "longer than declared": (Registry.lengthen, "sends more than the 1 bytes"),
    "10 GB declared": (lambda one: one.lie(size=10 * GIB), "10737418240 bytes"),
    "climbing path": (lambda one: one.lie(annotations={TITLE: "../../evil"}), "file name '../../evil'"),
    "climbing digest": (lambda one: one.lie(digest="sha256:../../evil"), "digest 'sha256:../../evil'"),
}


def test_a_hostile_release_is_rejected_with_its_reason_while_the_old_one_answers(
    serving, manager, releases, eventually
):
    folder = serving.config.folder
    for counter, (name, (harm, words)) in enumerate(HARMS.items(), start=2):
        registry = Registry(manager, releases.make(str(counter), counter=counter))
        manager.want(harm(registry) or registry.target)
        eventually(lambda count=counter - 1: manager.states().count("rejected") == count)
        assert words in manager.events[-1].reason, name
        assert serving.active() == "1", name
        assert not (folder.parent / "evil").exists(), name
        kept = {path.name for path in folder.rglob("*")}
        assert not kept & {"evil", registry.weights.digest.removeprefix("sha256:")}, name
    assert "Traceback" not in serving.log.read_text()

    # Nothing was lost: the next release, a sound one, arrives.
    manager.want(manager.publish(releases.make("9", counter=9)))
    eventually(lambda: serving.active() == "9")


def test_a_desired_document_that_is_not_right_changes_nothing_and_the_log_says_why(
    serving, manager, releases, eventually
):
    def forged():
        genuine, manager.key = manager.key, SigningKey.generate()
        data = manager.sign(manager.document(gen=Generation(1, 50)))
        manager.key = genuine
        return data

    wrong = [
        (b"this is not JSON", "JSON is malformed"),
        (b"x" * (MAX_DESIRED_BYTES + 1), f"at most {MAX_DESIRED_BYTES}"),
        (forged(), "no valid signature by the pinned key"),
        (manager.sign(manager.document(gen=Generation(1, 50), device="default.pi-2")), "is for default.pi-2"),
        (manager.sign(manager.document(gen=Generation(1, 0))), "is older than"),
    ]
    for document, words in wrong:
        manager.envelope = document
        eventually(lambda words=words: words in serving.log.read_text())
    assert serving.active() == "1"
    assert serving.process.poll() is None
    assert "Traceback" not in serving.log.read_text()
    manager.want(manager.publish(releases.make("2", counter=2)))
    eventually(lambda: serving.active() == "2")
