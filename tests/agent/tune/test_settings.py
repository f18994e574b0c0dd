from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.contracts.model_config import (
    AllVersions,
    ConfigTensor,
    DynamicBatching,
    InstanceGroup,
    Isolation,
    ModelConfig,
    QueuePolicy,
    RateLimiter,
    Resource,
    TimeoutAction,
    VersionPolicy,
    Warmup,
    WarmupInput,
)
from edgeserve_agent.serving.config_file import parse_config
from edgeserve_agent.tune.settings import model_config, toml
from edgeserve_agent.tune.space import Configuration

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)

CONFIGS = st.builds(
    ModelConfig,
    name=TEXTS,
    runtime=TEXTS,
    max_batch_size=st.just(16),
    output=st.lists(st.builds(ConfigTensor, name=TEXTS, label_filename=TEXTS), max_size=2).map(tuple),
    version_policy=st.sampled_from([VersionPolicy(), VersionPolicy(all=AllVersions())]),
    instance_group=st.lists(
        st.builds(
            InstanceGroup,
            name=TEXTS,
            count=st.integers(1, 8),
            rate_limiter=st.just(RateLimiter(resources=(Resource(name="r", global_=True),), priority=2)),
        ),
        max_size=2,
    ).map(tuple),
    dynamic_batching=st.sampled_from(
        [
            None,
            DynamicBatching(),
            DynamicBatching(
                preferred_batch_size=(4, 8),
                max_queue_delay_microseconds=100,
                priority_levels=2,
                default_priority_level=2,
                priority_queue_policy={1: QueuePolicy(timeout_action=TimeoutAction.DELAY, max_queue_size=3)},
            ),
        ]
    ),
    model_warmup=st.sampled_from(
        [(), (Warmup(inputs={"a b": WarmupInput(data_type="TYPE_FP32", dims=(1, 2), zero_data=True)}),)]
    ),
    parameters=st.dictionaries(TEXTS, st.dictionaries(TEXTS, TEXTS, max_size=1), max_size=2),
    threads=st.sampled_from([None, 0, 4]),
    isolation=st.sampled_from(list(Isolation)),
    version_labels=st.dictionaries(st.sampled_from(["stable", "two"]), st.integers(1, 9), max_size=2),
)


@given(CONFIGS, st.lists(st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=20), max_size=3))
def test_what_is_written_is_read_back_by_the_server(config, comments):
    assert parse_config(toml(config, comments).encode(), what="model.toml") == config


def test_only_what_was_decided_or_said_is_written():
    config = model_config(Configuration(threads=2, instances=1), ModelConfig())
    assert toml(config, ["a comment"]) == "# a comment\nthreads = 2\ninstance_group = [{count = 1}]\n"


def test_a_batching_configuration_says_all_of_it():
    one = Configuration(runtime="openvino", threads=1, instances=2, batch=16, preferred=8, delay_us=500)
    config = model_config(one, ModelConfig())
    assert config.instances == 2
    assert config.runtime == "openvino"
    assert config.threads == 1
    assert config.max_batch_size == 16
    assert config.dynamic_batching == DynamicBatching(preferred_batch_size=(8,), max_queue_delay_microseconds=500)


@given(CONFIGS, st.booleans())
def test_what_tuning_does_not_decide_stays(base, batched):
    one = Configuration(threads=3, instances=2, batch=8 if batched else 0)
    found = model_config(one, base)
    decided = ("runtime", "threads", "instance_group", "max_batch_size", "dynamic_batching")
    for field in msgspec.structs.fields(ModelConfig):
        if field.name not in decided:
            assert getattr(found, field.name) == getattr(base, field.name)
    assert found.runtime == base.runtime
    if batched and base.dynamic_batching is not None:
        assert found.dynamic_batching.priority_queue_policy == base.dynamic_batching.priority_queue_policy
    assert (found.dynamic_batching is not None) == batched


@pytest.mark.parametrize("text", ['"', "\\", "\n", "\x7f", "\x00", "é", "\U0001f600"])
def test_every_character_of_a_text_survives(text):
    config = ModelConfig(platform=text)
    assert parse_config(toml(config).encode(), what="model.toml") == config
