"""The border to other replicas, and what start refuses: no cluster."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from deployments.app import AppArguments
from deployments.remote import call
from deployments.server import check_port, read_config
from recsys.errors import RuleError, SettingsError, UnavailableError


class Handle:
    """A handle whose replicas answer with these in turn."""

    deployment_name = "Ranking"

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    async def remote(self, *arguments: Any) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if callable(answer):
            return await answer()
        return answer


def ask(*answers: Any, timeout_s: float = 1.0) -> Any:
    return asyncio.run(call(Handle(*answers), timeout_s=timeout_s))  # type: ignore[arg-type]


def test_a_lost_replica_is_asked_again_once() -> None:
    assert ask(ActorDiedError(), "answer") == "answer"
    with pytest.raises(UnavailableError, match="Ranking lost two replicas"):
        ask(ActorDiedError(), ActorDiedError(), "too late")


def test_a_late_replica_is_unavailable() -> None:
    with pytest.raises(UnavailableError, match=r"Ranking did not answer within 0\.05 s"):
        ask(lambda: asyncio.sleep(5), timeout_s=0.05)


def test_our_own_errors_arrive_as_themselves_and_others_stay_visible() -> None:
    with pytest.raises(RuleError, match=r"^no clocks$"):
        ask(RayTaskError("f", "trace", RuleError("no clocks")).as_instanceof_cause())
    with pytest.raises(ZeroDivisionError):
        ask(RayTaskError("f", "trace", ZeroDivisionError("a bug")).as_instanceof_cause())


def test_a_taken_port_is_named_with_the_remedy() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UnavailableError, match=rf"127\.0\.0\.1:{port} .*serving\.port"):
            check_port("127.0.0.1", port)


@pytest.mark.parametrize("name", ["laptop", "cluster", "staged"])
def test_config_files_name_what_their_placement_puts_apart(name: str) -> None:
    (application,) = read_config(name)["applications"]
    placement = AppArguments(**application["args"]).placement
    apart = {step.capitalize() for step, place in placement if step != "shards" and place == "deployment"}
    apart |= {"Gateway", "FeatureStreamer"} | (
        {"Shard0", "Shard1"} if placement.shards == "deployment" else set()
    )
    assert {d["name"] for d in application["deployments"]} == apart
    cpus = sum(
        d["ray_actor_options"]["num_cpus"]
        * d.get("num_replicas", d.get("autoscaling_config", {}).get("min_replicas", 1))
        for d in application["deployments"]
    )
    assert cpus <= 2, "every placement starts on two cores"


def test_wrong_config_files_are_named(tmp_path: Path) -> None:
    wrong = tmp_path / "serve.yaml"
    wrong.write_text("applications: [{name: recsys, deployments: [{name: A, num_replicas: many}]}]")
    with pytest.raises(SettingsError, match=r"serve\.yaml: applications"):
        read_config(wrong)
    with pytest.raises(SettingsError, match="can't read"):
        read_config("nowhere")
