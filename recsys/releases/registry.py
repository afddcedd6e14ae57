"""Which releases exist and which of them serves: MLflow's model registry.

Decides what MLflow's words mean here: a model version is a release, the alias `champion` is what
serves, `challenger` what is on trial, `previous` the champion before, so that a rollback needs no
argument. An artifact is never touched: a version is a pointer to a release's URI. SQLite on a laptop
and a tracking server in production differ by the URI only. MLflow is imported when first used.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, get_args

from recsys.errors import ReleaseError, UnavailableError
from recsys.releases.manifest import Release, open_release

if TYPE_CHECKING:
    from mlflow import MlflowClient

Alias = Literal["champion", "challenger", "previous"]
CHAMPION: Alias = "champion"
CHALLENGER: Alias = "challenger"
PREVIOUS: Alias = "previous"

_RELEASE_ID = "release_id"
_METRICS = "metrics"  # one tag of JSON: MLflow allows no @ in a tag's name, so `ndcg@10` can't be one
_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class RegisteredRelease:
    version: int
    release_id: str
    uri: str
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    aliases: tuple[str, ...]
    created: int  # epoch seconds


class Registry:
    """Releases by version and alias. `uri` is `sqlite:////absolute/path.db` or a server's http(s) URL;
    `name` is MLflow's registered model, one for each product on a shared server.

    Every method raises UnavailableError when the store can't be reached.
    """

    def __init__(self, uri: str, *, name: str = "recsys") -> None:
        self.uri = uri
        self.name = name
        self._client: MlflowClient | None = None

    def register(
        self,
        release_id: str,
        *,
        uri: str,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> int:
        """The version of this release. Registering it again gives the version it has.

        Raises ReleaseError when the id is taken by a release at another URI.
        """
        known = next((r for r in self.versions() if r.release_id == release_id), None)
        if known is not None:
            if known.uri != uri:
                raise ReleaseError(
                    f"release {release_id!r} is registered as version {known.version} at {known.uri}, not at "
                    f"{uri}; releases are immutable, so build a new one"
                )
            return known.version
        numbers = {key: float(value) for key, value in (metrics or {}).items()}
        stored = {**(tags or {}), _RELEASE_ID: release_id, _METRICS: json.dumps(numbers)}
        version = self._call(
            lambda c: c.create_model_version(self.name, source=uri, tags=stored), missing="the model"
        )
        return int(version.version)

    def versions(self) -> list[RegisteredRelease]:
        """All releases, newest first; none if nothing was ever registered."""
        found: list[RegisteredRelease] = []
        token: str | None = None
        while True:
            page = self._call(partial(_page, name=self.name, token=token), missing="the model")
            aliases = self._aliases() if page else {}
            found += [_release(version, aliases) for version in page]
            token = page.token
            if not token:
                return sorted(found, key=lambda release: -release.version)

    def resolve(self, alias: Alias) -> RegisteredRelease:
        """The release that `alias` points at; ReleaseError if it points at none."""
        found = self._find(alias)
        if found is None:
            remedy = {
                CHAMPION: "promote a release first (`recsys releases promote`)",
                CHALLENGER: "register a release and set the alias",
                PREVIOUS: "nothing was promoted twice, so there is nothing to go back to",
            }.get(alias, f"aliases are {CHAMPION}, {CHALLENGER} and {PREVIOUS}")
            raise ReleaseError(f"no release of {self.name!r} is {alias!r} in {self.uri}; {remedy}")
        return found

    def set_alias(self, alias: Alias, *, version: int) -> None:
        """Point `alias` at `version`; ReleaseError if there is no such version."""
        self._call(
            lambda c: c.set_registered_model_alias(self.name, alias, str(version)),
            missing=f"version {version}",
        )

    def promote(self, version: int | None = None) -> RegisteredRelease:
        """Make `version` (default: the challenger) the champion; the champion so far becomes `previous`.

        The steps are ordered so that a crash between them leaves a champion that serves: `previous` is
        set first. Promoting the champion again changes nothing.
        """
        wanted = self.resolve(CHALLENGER).version if version is None else version
        champion = self._find(CHAMPION)
        if champion is None or champion.version != wanted:
            self._call(lambda c: c.get_model_version(self.name, str(wanted)), missing=f"version {wanted}")
            if champion is not None:
                self.set_alias(PREVIOUS, version=champion.version)
            self.set_alias(CHAMPION, version=wanted)
        challenger = self._find(CHALLENGER)
        if challenger is not None and challenger.version == wanted:
            self._call(lambda c: c.delete_registered_model_alias(self.name, CHALLENGER), missing="alias")
        return self.resolve(CHAMPION)

    def rollback(self) -> RegisteredRelease:
        """Make the previous champion the champion again; the one it replaces becomes `previous`, so a
        second rollback undoes the first. ReleaseError if there is no previous one."""
        return self.promote(self.resolve(PREVIOUS).version)

    def _find(self, alias: str) -> RegisteredRelease | None:
        version = self._aliases().get(alias)
        if version is None:
            return None
        found = self._call(
            lambda c: c.get_model_version(self.name, str(version)), missing=f"version {version}"
        )
        return _release(found, self._aliases())

    def _aliases(self) -> dict[str, int]:
        model = self._call(lambda c: c.get_registered_model(self.name), missing="the model")
        return {alias: int(version) for alias, version in model.aliases.items()}

    def _call(self, request: Callable[["MlflowClient"], _Found], *, missing: str) -> _Found:
        """The one border to MLflow: its errors end here."""
        from mlflow.exceptions import MlflowException

        try:
            if self._client is None:
                self._client = _connect(self.uri, self.name)
            return request(self._client)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise ReleaseError(
                    f"{missing} of {self.name!r} is not in {self.uri}; `recsys releases list` shows what is"
                ) from error
            if error.error_code in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST"):
                raise ReleaseError(f"{self.uri} refused {missing}: {_first_line(error)}") from error
            raise _unavailable(self.uri, error) from error


def _connect(uri: str, name: str) -> "MlflowClient":
    """A client; creates the tables (about a second on SQLite) and the registered model if missing."""
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # else two INFO lines for each new database
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # 7 by default: minutes of silence
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.create_registered_model(name)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        if getattr(error, "error_code", None) != "RESOURCE_ALREADY_EXISTS":
            raise _unavailable(uri, error) from error
    return client


def _page(client: "MlflowClient", *, name: str, token: str | None) -> Any:
    return client.search_model_versions(f"name='{name}'", page_token=token)


def _release(version: Any, aliases: Mapping[str, int]) -> RegisteredRelease:
    tags = dict(version.tags)
    metrics = json.loads(tags.pop(_METRICS, "{}"))
    number = int(version.version)
    return RegisteredRelease(
        version=number,
        release_id=tags.pop(_RELEASE_ID, ""),
        uri=version.source,
        metrics=metrics,
        tags=tags,
        aliases=tuple(sorted(alias for alias, v in aliases.items() if int(v) == number)),
        created=version.creation_timestamp // 1000,
    )


def _unavailable(uri: str, error: BaseException) -> UnavailableError:
    return UnavailableError(
        f"model registry {uri} does not answer ({_first_line(error)}); check registry.uri and the server"
    )


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")[:200]


def resolve(release: str, *, registry: str, model: str) -> Release:
    """The release of an alias, or of the path of its manifest. Raises ReleaseError, UnavailableError."""
    if release.endswith(".json"):
        return open_release(Path(release).absolute())
    if release not in get_args(Alias):
        raise ReleaseError(
            f"release {release!r}: name an alias ({', '.join(get_args(Alias))}) or the path of a manifest"
        )
    return open_release(Registry(registry, name=model).resolve(cast(Alias, release)).uri)
