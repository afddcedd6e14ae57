"""The whole typed configuration: one YAML file, environment overrides, unknown key = error.

Each part is a frozen dataclass beside the code that it configures; this file only assembles the
tree and reads it. `RECSYS__ONLINE_STORE__URL=redis://...` overrides `online_store.url`; values are
YAML. Entry points load settings and hand each part to the library, which never reads them itself.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from recsys.errors import SettingsError
from recsys.events.bus import BusSettings
from recsys.events.committer import IngestionSettings
from recsys.events.validation import ValidationSettings
from recsys.experiments.assignment import Experiments
from recsys.index.settings import IndexSettings
from recsys.models.ranker import RankerSettings
from recsys.models.retrieval import RetrievalModel
from recsys.models.two_tower.settings import TwoTowerTraining
from recsys.pipeline.diversity import DiversitySettings
from recsys.pipeline.rules import Rule
from recsys.pipeline.wiring import PipelineSettings
from recsys.training.retrieval_models import model_class
from recsys.training.snapshot import TableSettings

ENVIRONMENT = "RECSYS__"
OVERRIDABLE = {"diversity": DiversitySettings}  # stages whose settings an experiment's arm may change


@dataclass(frozen=True, slots=True)
class Ray:
    address: str | None = None  # null = a local cluster, started and stopped by the command
    object_store_mb: int = 512  # of a local cluster


@dataclass(frozen=True, slots=True)
class OnlineStore:
    url: str | None = None  # redis://...; null = a Redis is started in the work directory
    time_to_live_days: float = 0.0  # of a user's record; 0 = for ever


@dataclass(frozen=True, slots=True)
class Store:
    uri: str | None = None  # folder or s3://...; null = events/ in the work directory
    options: Mapping[str, str] = field(default_factory=dict)  # of the object store: keys, region, endpoint
    partition_by: Literal["month", "day"] = "month"  # when the tables are made; by day from ~1 GB a day on
    cold_uri: str | None = None  # where `recsys events archive` moves old events; null = cold/ in it
    cold_options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Collector:
    queue_events: int = 20_000  # events that are not answered yet, in each replica; beyond them 503
    wait_s: float = 5.0  # how long a request waits for a bus that does not answer; then 503

    def __post_init__(self) -> None:
        if self.queue_events < 1000 or not self.wait_s > 0:
            raise ValueError("queue_events must be 1,000 or more (a request may bring as many), wait_s > 0")


@dataclass(frozen=True, slots=True)
class Registry:
    uri: str | None = None  # of an MLflow server or database; null = SQLite in the work directory
    model: str = "recsys"


@dataclass(frozen=True, slots=True)
class Training:
    model: str | None = None  # of a single stage: "auto", "sasrec window=20"; null = two stages
    workers: int = 2  # data-parallel workers of Ray Train
    slices: int = 4  # windows before the last one from which the rankers learn
    window_days: int = 28  # length of a window; the last one is held out for evaluation
    event_types: tuple[str, ...] = ("purchase", "rating")  # events that count as consumption
    two_tower: TwoTowerTraining = field(default_factory=TwoTowerTraining)
    tables: TableSettings = field(default_factory=TableSettings)
    rankers: Mapping[str, RankerSettings] = field(
        default_factory=lambda: {"home": RankerSettings(), "discover": RankerSettings()}
    )

    def __post_init__(self) -> None:
        for name in ("workers", "slices", "window_days"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.model is not None:
            try:
                model_of(self.model)
            except SettingsError as error:
                raise SettingsError(f"training.model = {self.model!r}: {error}") from error


@dataclass(frozen=True, slots=True)
class Serving:
    host: str = "127.0.0.1"
    port: int = 8000
    max_n: int = 100  # items that one request may ask for
    default_n: int = 20
    clock: int | None = None  # epoch seconds at which time stands still, for replays; null = now
    batch: int = 64  # requests that cross the path together
    batch_wait_ms: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise SettingsError(f"port {self.port} is none: give 0 to 65535")
        if min(self.max_n, self.default_n, self.batch) < 1:
            raise SettingsError("max_n, default_n and batch must be at least 1")


@dataclass(frozen=True, slots=True)
class Settings:
    workdir: str = "work"
    seed: int = 1
    ray: Ray = field(default_factory=Ray)
    online_store: OnlineStore = field(default_factory=OnlineStore)
    bus: BusSettings = field(default_factory=BusSettings)
    collector: Collector = field(default_factory=Collector)
    store: Store = field(default_factory=Store)
    ingestion: IngestionSettings = field(default_factory=IngestionSettings)
    registry: Registry = field(default_factory=Registry)
    events: ValidationSettings = field(default_factory=ValidationSettings)
    training: Training = field(default_factory=Training)
    index: IndexSettings = field(default_factory=IndexSettings)
    pipeline: PipelineSettings = field(default_factory=PipelineSettings)
    rules: str | None = None  # a rules file; null = configs/rules/default.yaml
    experiments: str | None = None  # an experiments file; null = configs/experiments/default.yaml
    serving: Serving = field(default_factory=Serving)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**31:  # what torch and NumPy take
            raise SettingsError(f"seed = {self.seed}: must be from 0 to {2**31 - 1:,}")

    @property
    def folder(self) -> Path:
        return Path(self.workdir).absolute()

    @property
    def store_uri(self) -> str:
        return self.store.uri or str(self.folder / "events")

    @property
    def registry_uri(self) -> str:
        return self.registry.uri or f"sqlite:///{self.folder / 'mlflow.db'}"


def load_settings(
    path: str | Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """Settings of `path` (None = defaults), then of the environment, then of `overrides` ("a.b" -> value).

    Raises SettingsError naming the file or variable, and the key.
    """
    tree = read_yaml(path) if path is not None else {}
    _check(tree, Settings, str(path))
    environment = os.environ if environment is None else environment
    given: dict[tuple[str, ...], str] = {}  # key -> where it was given, if not in the file
    for name, text in sorted(environment.items()):
        if name.startswith(ENVIRONMENT):
            keys = name[len(ENVIRONMENT) :].lower().split("__")
            _set(tree, keys, _yaml(text, name), name)
            given[tuple(keys)] = name
            _check(tree, Settings, name)
    for key, value in (overrides or {}).items():
        _set(tree, key.split("."), value, "command line")
        given[tuple(key.split("."))] = "command line"
        _check(tree, Settings, "command line")
    return parse(Settings, tree, str(path or "settings"), given)


def load_rules(path: str | Path) -> tuple[Rule, ...]:
    """The rules file: a list `rules` of `name` and `remove`."""
    tree = read_yaml(path)
    if unknown := set(tree) - {"rules"}:
        raise SettingsError(f"{path}: unknown key {sorted(unknown)[0]!r}: there is 'rules'")
    return parse(tuple[Rule, ...], tree.get("rules") or [], str(path))


def load_experiments(path: str | Path) -> Experiments:
    """The experiments file; what its arms set must be settings of a stage."""
    experiments = parse(Experiments, read_yaml(path) or {"layers": {}}, str(path))
    for layer in experiments.layers.values():
        for _, name, arm in layer.ranges():
            for key, value in arm.set.items():
                stage, _, setting = key.partition(".")
                if stage not in OVERRIDABLE:
                    raise SettingsError(
                        f"{path}: {name} sets {key!r}: arms can set {', '.join(OVERRIDABLE)}.<setting>"
                    )
                parse(OVERRIDABLE[stage], {setting: value}, f"{path}: {name}: {stage}")
    return experiments


def model_of(text: str, *, overrides: Sequence[str] = ()) -> RetrievalModel:
    """The retrieval model of `text`, its name and settings: "ease regularization=300"; then of `overrides`.

    A list may have blanks: "auto models=[ease, ials]". Raises SettingsError for an unknown name, key or
    value.
    """
    name, *given = words_of(text)
    cls = model_class(name)
    tree: dict[str, Any] = {}
    for setting in [*given, *overrides]:
        key, equals, value = setting.partition("=")
        if not equals:
            raise SettingsError(f"{setting!r} is no setting of {name}: write key=value")
        _set(tree, key.split("."), _yaml(value, f"{name}: {key}"), name)
    model: RetrievalModel = parse(cls, tree, name)
    return model


def words_of(text: str) -> list[str]:
    """The name of a model and its settings, each a word: blanks part them, but not those of a list."""
    return re.split(r"\s+(?![^\[]*\])", text.strip())


def read_yaml(path: str | Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise SettingsError(f"can't read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise SettingsError(f"{path} must be a mapping of keys, it is a {type(tree).__name__}")
    return tree


def parse(kind: Any, tree: Any, where: str, given: Mapping[tuple[str, ...], str] | None = None) -> Any:
    """`tree` as a value of `kind`; SettingsError names the key, and `where` or the place in `given`."""
    _check(tree, kind, where)
    try:
        return TypeAdapter(kind).validate_python(tree)
    except ValidationError as error:
        first = error.errors()[0]
        at = tuple(str(part) for part in first["loc"])
        for keys, place in (given or {}).items():
            if keys[: len(at)] == at[: len(keys)]:
                where = place
        key = ".".join(at)
        raise SettingsError(f"{where}: {key} = {first['input']!r}: {first['msg']}") from error
    except SettingsError as error:  # a value that refuses itself does not know where it was written
        raise SettingsError(f"{where}: {error}") from error


def _check(tree: Any, kind: Any, where: str) -> None:
    """Raise SettingsError for the first key of `tree` that `kind` has no place for."""
    for path, known in _unknown(tree, kind, ()):
        raise SettingsError(f"{where}: unknown key {'.'.join(path)!r}; keys here: {', '.join(known)}")


def _unknown(tree: Any, kind: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        kind = next((k for k in arguments if is_dataclass(k)), None)
    if is_dataclass(kind) and isinstance(tree, Mapping):
        hints = get_type_hints(kind)
        names = [f.name for f in fields(kind) if f.init]
        for key, value in tree.items():
            if key not in names:
                yield (*path, str(key)), names
            else:
                yield from _unknown(value, hints[key], (*path, key))
    elif isinstance(tree, Mapping) and len(arguments) == 2:
        for key, value in tree.items():
            yield from _unknown(value, arguments[1], (*path, str(key)))
    elif isinstance(tree, list | tuple) and arguments:
        for number, value in enumerate(tree):
            yield from _unknown(value, arguments[0], (*path, str(number)))


def _set(tree: dict[str, Any], keys: list[str], value: Any, where: str) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise SettingsError(f"{where}: {key!r} holds a value, not further keys")
    tree[keys[-1]] = value


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"{where}={text!r} is not YAML") from error
