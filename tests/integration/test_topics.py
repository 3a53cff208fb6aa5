"""Topics and schemas as the contract describes them, however often that is asked for."""

from __future__ import annotations

import httpx
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from nigredo.kafka.topic_admin import EVERYWHERE, ensure_topics
from nigredo.testing import Stack, eventually
from schemas.topics import RETRIES_PREFIX, SCHEMAS, TOPICS, retry_topics


def test_every_topic_is_there_with_its_policies(stack: Stack) -> None:
    admin = AdminClient(stack.client_config())
    present = admin.list_topics(timeout=10).topics

    described = admin.describe_configs([ConfigResource(ResourceType.TOPIC, name) for name in EVERYWHERE])
    for resource, future in described.items():
        now = {name: entry.value for name, entry in future.result(10).items()}
        wanted = EVERYWHERE[resource.name].config
        assert {name: sorted(now[name].split(",")) for name in wanted} == {
            name: sorted(value.split(",")) for name, value in wanted.items()
        }
        assert len(present[resource.name].partitions) == (1 if resource.name == SCHEMAS else 4)
    ours = {name for name in present if name.startswith("nigredo.") and not name.startswith(RETRIES_PREFIX)}
    assert ours == set(EVERYWHERE)
    assert set(retry_topics("fibonacci")) <= set(present)


def test_the_limits_clock_is_the_brokers_and_its_topic_keeps_what_may_decide(stack: Stack) -> None:
    assert TOPICS["nigredo.submissions"].config["message.timestamp.type"] == "LogAppendTime"
    assert int(TOPICS["nigredo.rate-limits"].config["min.compaction.lag.ms"]) >= 3600 * 1000


def test_ensure_changes_nothing_the_second_time_and_corrects_what_differs(stack: Stack) -> None:
    settings = stack.settings()
    assert ensure_topics(settings) == []
    admin = AdminClient(stack.client_config())
    changed = ConfigResource(
        ResourceType.TOPIC,
        "nigredo.audit",
        incremental_configs=[ConfigEntry("retention.ms", "1000", incremental_operation=AlterConfigOpType.SET)],
    )
    for future in admin.incremental_alter_configs([changed]).values():
        future.result(10)

    # A broker shows a setting a moment after it took it.
    corrected = eventually(lambda: ensure_topics(settings), within_s=60, every_s=0.2, what="a correction")
    assert corrected == ["set retention.ms of topic nigredo.audit"]
    eventually(lambda: ensure_topics(settings) == [], within_s=60, every_s=0.2, what="nothing to correct")


def test_the_command_says_so_too(stack: Stack) -> None:
    # Another test's endpoint may have made retry topics, which have their subjects from here on.
    assert stack.nigredo("topics", "ensure").code == 0

    command = stack.nigredo("topics", "ensure")

    assert (command.code, command.out.strip(), command.err) == (0, "nothing to change", "")


def test_every_subject_is_registered_and_fully_compatible(stack: Stack) -> None:
    subjects = httpx.get(f"{stack.registry_url}/subjects", auth=stack.registry_credentials, timeout=10).json()

    for spec in (*TOPICS.values(), *retry_topics("fibonacci").values()):
        assert spec.subject in subjects
        level = httpx.get(
            f"{stack.registry_url}/config/{spec.subject}", auth=stack.registry_credentials, timeout=10
        ).json()
        assert level["compatibilityLevel"] == "FULL_TRANSITIVE"
