from __future__ import annotations

import pytest

from edgeserve.contracts.errors import InputError
from edgeserve_agent.config import load

MINIMAL = """
[device]
id = "default.pi-1"
"""
WHOLE = """
state_dir = "/var/lib/edgeserve"
[device]
id = "default.pi-1"
profile = "raspberry-pi-5"
simulate = true
[manager]
url = "http://127.0.0.1:8080"
token = "t"
key = "ed25519:x"
poll_s = 60
[mqtt]
url = "mqtt://127.0.0.1:1883"
[serving]
http = "127.0.0.1:8000"
threads = 1
insecure_dev = false
[limits]
minimum_probation_s = 10
allowed_models = ["digits", "camera-*"]
max_failure_share = 0.05
max_download_bytes_per_day = 0
[telemetry]
stats_s = 10
"""


@pytest.fixture
def file(tmp_path):
    def write(text: str):
        path = tmp_path / "agent.toml"
        path.write_text(text)
        return path

    return write


def test_every_key_is_read(file):
    config = load(file(WHOLE), {})
    assert (config.device.profile, config.mqtt.url, config.limits.minimum_probation_s) == (
        "raspberry-pi-5", "mqtt://127.0.0.1:1883", 10.0,
    )  # fmt: skip
    assert config.limits.allows("camera-left")
    assert not config.limits.allows("gate")


def test_the_environment_goes_before_the_file_and_flags_before_both(file):
    environment = {
        "EDGESERVE_STATE_DIR": "/from/environment", "EDGESERVE_SERVING_THREADS": "4",
        "EDGESERVE_LIMITS_ALLOWED_MODELS": "a, b", "EDGESERVE_SERVING_INSECURE_DEV": "true",
        "EDGESERVE_TESTDATA": "/not/ours", "EDGESERVE_MANAGER_TOKEN": "new",
    }  # fmt: skip
    config = load(file(WHOLE), environment, {"state_dir": "/from/flags"})
    assert config.state_dir == "/from/flags"
    assert (config.serving.threads, config.serving.insecure_dev) == (4, True)
    assert config.limits.allowed_models == ("a", "b")
    assert config.manager is not None
    assert config.manager.token == "new"
    assert load(file(WHOLE), environment).state_dir == "/from/environment"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "device"),
        ("[device", "not TOML"),
        ('[device]\nid = "pi"', "TENANT.DEVICE"),
        ('[device]\nid = "a.b/#"', "TENANT.DEVICE"),
        (MINIMAL + "simulate = true", "needs a profile"),
        (MINIMAL + 'colour = "red"', "colour"),
        ("speed = 1" + MINIMAL, "speed"),
        (MINIMAL + "[serving]\nthreads = -1", "threads"),
        (MINIMAL + '[serving]\nthreads = "two"', "threads"),
        (MINIMAL + '[serving]\nhttp = "8000"', "HOST:PORT"),
        (MINIMAL + "[limits]\nmax_failure_share = 2", "max_failure_share"),
        (MINIMAL + "[limits]\nminimum_probation_s = nan", "minimum_probation_s"),
        (MINIMAL + '[manager]\nurl = "ftp://x"\ntoken = "t"\nkey = "k"', "ftp"),
        (MINIMAL + '[manager]\nurl = "http://127.0.0.1"\ntoken = "a b"\nkey = "k"', "token"),
        (MINIMAL + '[manager]\nurl = "http://fleet.example.com"\ntoken = "t"\nkey = "k"', "TLS"),
        (f'state_dir = "/{"x" * 120}"' + MINIMAL, "too long"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_by_the_name_of_what_is_wrong(file, text, named):
    with pytest.raises(InputError) as caught:
        load(file(text), {})
    assert named in caught.value.message
    assert caught.value.hint or "agent.toml" in caught.value.message


def test_a_missing_file_says_who_writes_it(tmp_path):
    with pytest.raises(InputError, match=r"there is no") as caught:
        load(tmp_path / "agent.toml", {})
    assert "enroll" in caught.value.hint


def test_a_wrong_variable_is_named(file):
    with pytest.raises(InputError, match="EDGESERVE_SERVING_THREADS"):
        load(file(MINIMAL), {"EDGESERVE_SERVING_THREADS": "many"})


def test_a_plain_address_is_allowed_on_loopback_or_when_asked_for(file):
    far = WHOLE.replace("127.0.0.1:8080", "10.0.0.1:8080")
    with pytest.raises(InputError, match=r"manager\.url"):
        load(file(far), {})
    assert load(file(far.replace("insecure_dev = false", "insecure_dev = true")), {}).serving.insecure_dev
