"""`recsys settings` and `recsys doctor`: what they show, and what they must not."""

import socket

import pytest
import yaml
from kafka.admin import KafkaAdminClient
from typer.testing import CliRunner

from recsys.cli import app


def recsys(*arguments: str):
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "300"})


@pytest.fixture
def config(tmp_path):
    def write(tree) -> str:
        (tmp_path / "recsys.yaml").write_text(yaml.safe_dump({"workdir": str(tmp_path / "work")} | tree))
        return str(tmp_path / "recsys.yaml")

    return write


def test_settings_show_no_secret(config):
    """The passwords of Kafka and the keys of the object store stood there in clear."""
    given = {
        "bus": {
            "url": "kafka://host:9092",
            "kafka": {"sasl_plain_username": "name", "sasl_plain_password": 97531, "ssl_password": "hush1"},
        },
        "online_store": {"url": "redis://:hush2@host:6379/0"},
        "store": {
            "options": {
                "AWS_SECRET_ACCESS_KEY": "hush3",
                "aws_session_token": "hush4",
                "account_key": "hush5",
                "google_credentials": "hush6",
                "region": "eu",
            }
        },
        "registry": {"uri": "postgresql://me:hush7@host/db"},
    }
    shown = recsys("settings", "--config", config(given))
    assert shown.exit_code == 0, shown.output
    assert "hush" not in shown.output
    assert "97531" not in shown.output
    tree = yaml.safe_load(shown.output)
    assert tree["store"]["options"] == dict.fromkeys(given["store"]["options"], "***") | {"region": "eu"}
    assert tree["bus"]["kafka"]["sasl_plain_username"] == "name"
    assert tree["bus"]["kafka"]["sasl_plain_password"] == "***"
    assert tree["online_store"]["url"] == "redis://***@host:6379/0"
    assert tree["training"]["two_tower"]["model"]["token_buckets"] == 8192


def bus_line(config: str) -> str:
    lines = recsys("doctor", "--config", config).output.splitlines()
    (line,) = [line for line in lines if line.split()[1:2] == ["bus"]]
    return line


def test_doctor_asks_kafka_and_makes_no_topic(config, kafka_url):
    line = bus_line(config({"bus": {"url": kafka_url, "topic": "asked"}}))
    assert line.startswith("ok")
    assert "answers, brokers: 1" in line
    admin = KafkaAdminClient(bootstrap_servers=kafka_url.removeprefix("kafka://"))
    assert "asked" not in admin.list_topics()
    admin.close()
    wrong = bus_line(
        config({"bus": {"url": kafka_url, "kafka": {"ssl_cafile": 7, "security_protocol": "SSL"}}})
    )
    assert wrong.startswith("missing")
    unknown = bus_line(config({"bus": {"url": kafka_url, "kafka": {"no_such": 7}}}))
    assert "kafka-python has no such setting" in unknown


def test_doctor_asks_redis(config, redis_url):
    assert f"{redis_url} answers" in bus_line(config({"bus": {"url": redis_url}}))
    assert f"{redis_url} answers" in bus_line(config({"online_store": {"url": redis_url}}))
    assert bus_line(config({})).startswith("ok")


@pytest.mark.parametrize("scheme", ["kafka", "redis"])
def test_doctor_says_that_a_bus_does_not_answer(config, scheme):
    with socket.socket() as bound:  # and not listening
        bound.bind(("127.0.0.1", 0))
        url = f"{scheme}://127.0.0.1:{bound.getsockname()[1]}"
        line = bus_line(config({"bus": {"url": url}}))
    assert line.startswith("missing")
    assert "does not answer" in line
