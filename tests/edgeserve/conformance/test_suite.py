import json
from collections import Counter
from xml.etree import ElementTree as ET

import pytest

from edgeserve.conformance.check import CHECKS, Check, Level, NoAnswer, Skip, Violation
from edgeserve.conformance.http import Answer, Http
from edgeserve.conformance.infer import HEAD_LENGTH, outputs_of
from edgeserve.conformance.models import write_models
from edgeserve.conformance.report import checks_table, junit, outcome_lines, summary_lines
from edgeserve.conformance.run import Outcome, Report, Verdict, chosen, run
from edgeserve.conformance.target import Target, read_model, samples
from edgeserve.contracts.errors import ConflictError, InputError, TransientError
from edgeserve.contracts.tensors import Datatype


@pytest.mark.system
def test_our_own_server_keeps_every_must(server, tools):
    report = tools.check(server)
    broken = [outcome for outcome in report.outcomes if outcome.verdict is Verdict.FAIL and outcome.level is Level.MUST]
    assert not broken, "\n".join("\n".join(outcome_lines(outcome)) for outcome in broken)
    assert report.conforms()
    checked = report.count(Verdict.PASS, Level.MUST)
    assert checked >= 85, f"only {checked} MUST could be checked"
    assert report.server.startswith("edgeserve ")
    assert {"simple", "identity_fp32", "classifier"} <= set(report.models)


@pytest.mark.system
def test_only_the_named_model_is_checked_when_one_is_named(server):
    report = run(Target(Http(server, timeout_s=10), wanted=["identity_fp32"]), chosen(["core"]))
    assert report.models == ["identity_fp32"]
    skipped = {outcome.id for outcome in report.outcomes if outcome.verdict is Verdict.SKIP}
    assert {"core.add-sub", "core.json-int64"} <= skipped
    assert "core.json-fp32" not in skipped


@pytest.mark.system
def test_a_model_that_the_server_does_not_have_is_the_users_mistake(server):
    with pytest.raises(InputError, match="does not describe a model 'nothing'"):
        run(Target(Http(server, timeout_s=10), wanted=["nothing"]), chosen(["core"]))


@pytest.mark.system
def test_an_extension_that_is_not_listed_is_skipped_unless_it_is_assumed(server, tools):
    def metadata_without_extensions(asked, forward):
        answer = forward(asked)
        return answer.changed(extensions=[]) if asked.path == "/v2" else answer

    with tools.spoiled(server, metadata_without_extensions) as url:
        skipped = tools.check(url, "binary.output")
        assert [outcome.verdict for outcome in skipped.outcomes] == [Verdict.SKIP]
        assert "does not list the extension 'binary_tensor_data'" in skipped.outcomes[0].reason
        checked = tools.check(url, "binary.output", assumed=("binary_tensor_data",))
        assert [outcome.verdict for outcome in checked.outcomes] == [Verdict.PASS]


@pytest.mark.system
def test_after_the_end_of_a_server_nothing_more_is_checked_and_the_run_fails(server, tools):
    gone = []

    def dies(asked, forward):
        if gone or asked.path.endswith("/health/ready"):
            gone.append(asked.path)
            raise ConnectionAbortedError
        return forward(asked)

    with tools.spoiled(server, dies) as url:
        report = tools.check(url, "core.live-body", "core.ready", "core.ready-body")
    assert [outcome.verdict for outcome in report.outcomes] == [Verdict.PASS, Verdict.FAIL, Verdict.SKIP]
    assert report.gone_after == "core.ready"
    assert report.outcomes[2].reason == "the server is gone since core.ready"
    assert not report.conforms()
    assert "the server is gone since core.ready" in "\n".join(summary_lines(report))


def test_nothing_that_listens_is_no_finding_but_an_error():
    with pytest.raises(TransientError, match="no connection"):
        run(Target(Http("http://127.0.0.1:9", timeout_s=1)), [])


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://host", "http://", "http://host:port"])
def test_what_is_no_url_is_the_users_mistake(url):
    with pytest.raises(InputError, match="is not the URL of a server"):
        Http(url, timeout_s=1)


def test_ids_are_of_the_form_area_name_and_every_check_has_words_and_a_source():
    checks = chosen()
    assert len(checks) > 250
    for check in checks:
        area, _, name = check.id.partition(".")
        assert area == area.lower()
        assert name == name.lower()
        assert name
        assert check.title[0].isupper(), check.id
        assert not check.title.endswith("."), check.id
        assert len(check.title) > 15
        assert len(check.source) > 5
        assert (check.level is not Level.EXTENSION) or check.extension or check.area == "v1", check.id


def test_an_area_and_an_id_choose_checks_and_skip_takes_some_away():
    assert {check.area for check in chosen(["ids"])} == {"ids"}
    assert [check.id for check in chosen(["core.live"])] == ["core.live"]
    assert not {"core.live"} & {check.id for check in chosen(skip=["core.live", "ids"])}
    with pytest.raises(InputError, match="no area or check") as caught:
        chosen(["nonsense"])
    assert "shared-memory" in caught.value.hint


def _outcome(verdict, level=Level.MUST, **more):
    fields = {"id": "core.x", "title": "T", "area": "core", "source": "S", **more}
    return Outcome(verdict=verdict, level=level, **fields)


def _report(*outcomes):
    return Report(url="http://h:1", server="s 1", extensions=[], models=["m"], outcomes=list(outcomes))


@pytest.mark.parametrize(
    ("outcomes", "conforms", "strictly"),
    [
        ([_outcome(Verdict.PASS)], True, True),
        ([_outcome(Verdict.FAIL)], False, False),
        ([_outcome(Verdict.FAIL, Level.SHOULD)], True, False),
        ([_outcome(Verdict.FAIL, Level.EXTENSION)], True, False),
        ([_outcome(Verdict.SKIP)], True, True),
    ],
)
def test_a_server_conforms_when_no_must_failed_and_strictly_when_nothing_did(outcomes, conforms, strictly):
    report = _report(*outcomes)
    assert (report.conforms(), report.conforms(strict=True)) == (conforms, strictly)


def test_junit_has_a_case_for_each_check_and_survives_control_characters():
    report = _report(
        _outcome(Verdict.PASS, id="core.a"),
        _outcome(Verdict.FAIL, id="ids.b", sent='POST <x> & "y"', expected="200", got="\x00\x1b[31m 500"),
        _outcome(Verdict.SKIP, id="v1.c", reason="needs <a> & more"),
    )
    suite = ET.fromstring(junit(report))
    assert suite.attrib | {"name": ""} == {"name": "", "tests": "3", "failures": "1", "skipped": "1", "errors": "0"}
    cases = {case.get("classname"): case for case in suite}
    assert set(cases) == {"conformance.core", "conformance.ids", "conformance.v1"}
    assert 'sent POST <x> & "y"' in cases["conformance.ids"].find("failure").text
    assert cases["conformance.v1"].find("skipped").get("message") == "needs <a> & more"
    assert len(cases["conformance.core"]) == 0


def test_junit_can_be_written_whatever_a_server_says():
    text = junit(
        _report(_outcome(Verdict.FAIL, sent="GET /v2", expected="200", got=json.loads('"half \\ud800 \\uffff"')))
    )
    assert "got half \ufffd \ufffd" in ET.fromstring(text.encode()).find("testcase/failure").text


@pytest.mark.parametrize(
    "changes",
    [
        {"parameters": [1]},
        {"parameters": {"binary_data_size": "four"}},
        {"parameters": {"binary_data_size": {}}},
        {"shape": [10**30], "data": [1.0]},
    ],
)
def test_nonsense_in_an_answer_is_a_finding_and_not_the_end_of_the_run(changes):
    output = {"name": "y", "shape": [1], "datatype": "FP32"} | changes
    body = json.dumps({"outputs": [output]}).encode()
    answer = Answer(sent="POST", status=200, headers={HEAD_LENGTH: str(len(body))}, body=body)
    with pytest.raises(Violation):
        outputs_of(answer)


def test_the_summary_counts_by_level_and_says_why_checks_were_skipped():
    text = "\n".join(
        summary_lines(
            _report(_outcome(Verdict.PASS), _outcome(Verdict.FAIL), _outcome(Verdict.SKIP, reason="no models"))
        )
    )
    assert "1 MUST not kept (1 checked)" in text
    assert "  1  no models" in text


def test_the_table_for_the_documentation_has_every_check_once():
    lines = checks_table().splitlines()
    rows = Counter(line.split("`")[1] for line in lines if line.startswith("| `"))
    assert set(rows) == set(CHECKS)
    assert set(rows.values()) == {1}


def test_a_violation_says_what_was_sent_expected_and_came():
    text = str(Violation(sent="GET /v2", expected="200", got="500"))
    assert text == "sent GET /v2; expected 200; got 500"
    assert issubclass(NoAnswer, Violation)


@pytest.mark.parametrize("datatype", [datatype for datatype in Datatype if datatype is not Datatype.BYTES])
def test_samples_have_the_datatype_and_more_than_one_value(datatype):
    array = samples(datatype, (2, 3))
    assert array.dtype.name == datatype.numpy_name
    assert array.shape == (2, 3)
    assert len(set(array.ravel().tolist())) > 1


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"name": 7},
        {"name": "m", "inputs": [{}]},
        {"name": "m", "inputs": [{"name": "x", "datatype": "FP99", "shape": [1]}]},
        {"name": "m", "inputs": [{"name": "x", "datatype": "FP32", "shape": [-2]}]},
        {"name": "m", "inputs": [{"name": "x", "datatype": "FP32", "shape": "1"}]},
    ],
)
def test_metadata_that_are_not_the_protocols_are_refused(document):
    with pytest.raises(ValueError, match=r"name|shape|Datatype"):
        read_model(document)


def test_models_are_written_once_and_never_over_something(tmp_path):
    onnx = pytest.importorskip("onnx")
    folder = tmp_path / "models"
    names = write_models(folder)
    assert {"simple", "identity_fp16", "identity_bytes", "identity_2d", "zero_size", "classifier"} <= set(names)
    for name in names:
        onnx.checker.check_model(onnx.load(folder / name / "1" / "model.onnx"))
        assert f'name: "{name}"' in (folder / name / "config.pbtxt").read_text()
    assert (folder / "classifier" / "labels.txt").read_text().split() == ["cat", "dog", "owl", "fox"]
    with pytest.raises(ConflictError, match="is not an empty folder"):
        write_models(folder)


def test_a_check_that_skips_gives_its_reason_and_one_that_crashes_is_shown_and_ends_no_other():
    def skips(target):
        raise Skip("because")

    def crashes(target):
        raise ZeroDivisionError("by nothing")

    def made(body):
        return Check(id="core.x", title="T", level=Level.MUST, source="S", extension="", body=body)

    target = _Unasked()
    crashed, skipped = run(target, [made(crashes), made(skips)]).outcomes
    assert (crashed.verdict, crashed.got) == (Verdict.FAIL, "ZeroDivisionError: by nothing")
    assert skipped.reason == "because"


class _Unasked(Target):
    """A target whose server is never asked anything."""

    models = ()
    metadata = json.loads("{}")

    def __init__(self):
        super().__init__(_NoHttp("http://127.0.0.1:9", timeout_s=1))


class _NoHttp(Http):
    def reach(self):
        pass
