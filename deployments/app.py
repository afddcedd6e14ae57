"""The typed builder of the Serve application: which release, and what runs where.

`import_path: deployments.app:build` in `configs/serve/*.yaml`. Names are resolved here, once: the
alias becomes the path of a manifest and the settings become plain values, so that replicas import
neither MLflow nor torch. Deploying again after the alias moved rolls the replicas to that release.
"""

from dataclasses import replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from ray import serve

from deployments.feature_streamer import FeatureStreamer
from deployments.gateway import Gateway, GatewayOptions
from deployments.index_shard import IndexShard
from deployments.stage import Stage
from recsys.errors import SettingsError
from recsys.releases.manifest import Release
from recsys.releases.parts import index_manifest
from recsys.releases.registry import resolve
from recsys.settings import Settings, load_settings, parse

Place = Literal["inline", "deployment"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Placement(_Strict):
    """Where each step runs: in the gateway's replica, or in replicas of its own."""

    experiments: Place = "inline"
    retrieval: Place = "inline"
    ranking: Place = "inline"
    rules: Place = "inline"
    diversity: Place = "inline"
    backfill: Place = "inline"
    shards: Place = "inline"


class AppArguments(_Strict):
    """`args` of the application in a Serve config file. `deployments:` there must name what
    `placement` puts apart: Gateway, FeatureStreamer, Ranking, Shard0, ..."""

    settings: str | dict[str, Any] | None = None  # path of a recsys.yaml, or its content; null = defaults
    release: str = "champion"  # an alias of the registry, or the path of a manifest
    placement: Placement = Placement()
    step_timeout_s: float = 2.0  # of a step that is placed elsewhere; above the sources' own deadline


def build(arguments: AppArguments) -> serve.Application:
    """The application. Raises SettingsError, ReleaseError, UnavailableError."""
    if isinstance(arguments.settings, dict):
        settings = parse(Settings, arguments.settings, "args.settings")
    else:
        settings = load_settings(arguments.settings)
    store_url = settings.online_store.url
    if store_url is None:
        raise SettingsError(
            "online_store.url is not set: name a Redis, or use `recsys serve`, which starts one"
        )
    options = GatewayOptions(
        online_store_url=store_url,
        time_to_live_s=int(settings.online_store.time_to_live_days * 86_400),
        bus=replace(settings.bus, url=settings.bus.url or store_url),
        validation=settings.events,
        queue_events=settings.collector.queue_events,
        wait_s=settings.collector.wait_s,
        max_n=settings.serving.max_n,
        default_n=settings.serving.default_n,
        clock=settings.serving.clock,
        batch=settings.serving.batch,
        batch_wait_s=settings.serving.batch_wait_ms / 1000,
        step_timeout_s=arguments.step_timeout_s,
    )
    return graph(
        resolve(arguments.release, registry=settings.registry_uri, model=settings.registry.model),
        options=options,
        placement=arguments.placement,
        event_types=settings.training.event_types,
        horizon_s=settings.ingestion.duplicate_horizon_s,
    )


def graph(
    release: Release,
    *,
    options: GatewayOptions,
    placement: Placement,
    event_types: tuple[str, ...],
    horizon_s: float,
) -> serve.Application:
    """The deployments of `release` as `placement` says, bound to each other. What a replica may use
    and its environment stand in the config file, which replaces such options anyway."""
    uri = release.uri
    shards = {}
    if placement.shards == "deployment":
        for number in range(len(index_manifest(release).shards)):
            shards[str(number)] = _named(IndexShard, f"Shard{number}").bind(uri, number, options.bus)
    steps = {}
    for step, place in placement:
        if step != "shards" and place == "deployment":
            used = shards if step == "retrieval" else {}
            steps[step] = _named(Stage, step.capitalize()).bind(uri, step, used, options.bus)
    streamer = _named(FeatureStreamer, "FeatureStreamer").bind(
        uri,
        online_store_url=options.online_store_url,
        time_to_live_s=options.time_to_live_s,
        bus=options.bus,
        validation=options.validation,
        event_types=event_types,
        horizon_s=horizon_s,
    )
    return _named(Gateway, "Gateway").bind(uri, options, shards=shards, steps=steps, streamer=streamer)


def _named(deployment: Any, name: str) -> serve.Deployment:
    return deployment.options(name=name)  # type checkers take a decorated class for the class itself
