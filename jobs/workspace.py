"""The work directory: where each job leaves its results and the next one finds them.

data/        events.parquet, items.parquet as a reader gave them       (ingest)
events/      the Delta table, and beside it the rejected events        (ingest)
catalog.parquet                                                        (ingest)
models/<moment>/*.npz    a snapshot of all retrieval models            (train_retrieval)
tuning/<name>/trials.jsonl                                             (tune)
rankers/<scene>.ubj      of two stages                                 (train_ranker)
index/       the shards, how they are searched, recall.png             (build_index)
evaluation/  report.json, slates.json, evaluation.png                  (evaluate)
artifacts/, mlflow.db    releases and their registry                   (build_release)
redis/, steps/           the embedded server; what is already done
"""

import io
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import xgboost

from recsys.catalog.items import Catalog
from recsys.datasets.event_log import catalog_tokens
from recsys.errors import DataError
from recsys.evaluation.windows import Windows, choose_windows, held_out_window
from recsys.events.interactions import interactions_of
from recsys.events.store import EventStore
from recsys.features.text import text_category
from recsys.interactions import Interactions
from recsys.models.ranker import Ranker
from recsys.models.snapshot import Snapshot
from recsys.pipeline.items import item_frame
from recsys.pipeline.wiring import Parts
from recsys.releases.registry import Registry
from recsys.settings import Settings, load_experiments, load_rules

# (share done in 0 .. 1, what is being done)
Progress = Callable[[float, str], None]


def silent(share: float, doing: str) -> None:
    """No progress display."""


@dataclass(frozen=True)
class Workspace:
    """Loads lazily and once; a job that changed a file makes a new one."""

    settings: Settings

    @classmethod
    def of_model(cls, settings: Settings, model: str) -> Self:
        """As for a release with `model` as its single stage, whatever the settings train."""
        return cls(replace(settings, training=replace(settings.training, model=model)))

    @property
    def folder(self) -> Path:
        return self.settings.folder

    @cached_property
    def store(self) -> EventStore:
        return open_store(self.settings)

    @property
    def catalog_path(self) -> Path:
        return self.folder / "catalog.parquet"

    @cached_property
    def catalog(self) -> Catalog:
        return Catalog.load(self.catalog_path)

    @cached_property
    def interactions(self) -> Interactions:
        """All consumption in the event store, by the rows of the catalog."""
        kinds = self.settings.training.event_types
        events = self.store.read()
        of_kind = events.filter(pc.is_in(events["event_type"], value_set=pa.array(kinds)))
        if not len(of_kind):
            found = sorted(pc.unique(events["event_type"]).to_pylist())
            raise DataError(
                f"no event of type {' or '.join(kinds)} in {self.folder / 'events'}: there are "
                f"{', '.join(found)}; name those that count as consumption in training.event_types"
            )
        rows = self.catalog.rows_of(of_kind["item_id"])
        return interactions_of(of_kind, rows=rows, items=len(self.catalog))

    @cached_property
    def described(self) -> Interactions:
        """All consumption of the release's items, with their content; what somebody consumed before is asked
        for where a scene shows it. A value teaches where all are ratings; that of a purchase is money."""
        shown = not all(scene.hide_consumed for scene in self.settings.pipeline.scenes.values())
        log = replace(self.interactions, item_tokens=catalog_tokens(self.catalog), repeats=shown)
        kinds = set(pc.unique(self.store.read(columns=["event_type"])["event_type"]).to_pylist())
        if kinds & set(self.settings.training.event_types) != {"rating"}:
            unknown = np.full(len(log), np.nan, np.float32)
            log = replace(log, histories=replace(log.histories, value=unknown))
        return log.below(self.sizes[-1])

    @cached_property
    def taught(self) -> Interactions:
        """What a single stage learns from: what was consumed before its release."""
        return self.described.before(self.windows.held_out)

    @cached_property
    def windows(self) -> Windows:
        training = self.settings.training
        if training.model is not None:
            return held_out_window(self.interactions, days=training.window_days)
        return choose_windows(self.interactions, days=training.window_days, slices=training.slices)

    @cached_property
    def sizes(self) -> list[int]:
        """V at the start of each window: how many items were published before it."""
        return [self.catalog.size_at(start) for start in self.windows.starts]

    @cached_property
    def items(self) -> pl.DataFrame:
        """The item contract by row, with `category`: the item's first one; where most have none, one from the
        title."""
        categories = self.catalog.primary_categories
        if 2 * sum(map(bool, categories)) < len(categories):
            # Titles of the release's items only: later ones must not move a category.
            known = text_category(self.catalog.titles[: self.sizes[-1]])
            named = [known.names[code] if code >= 0 else "" for code in known.code]
            categories = [own or name for own, name in zip_longest(categories, named, fillvalue="")]
        return item_frame(self.catalog.items, categories)

    @cached_property
    def category(self) -> np.ndarray:
        """Code of each item's category, int32 [V]; -1 = none."""
        codes = self.items["category"].replace("", None).rank("dense").fill_null(0).cast(pl.Int32)
        return codes.to_numpy() - 1

    def snapshot(self, moment: int) -> Snapshot:
        folder = self.folder / "models" / str(moment)
        if not folder.is_dir():
            raise DataError(f"no models as of {moment} in {folder}: run `python -m jobs.train_retrieval`")
        return Snapshot.from_arrays({path.stem: dict(np.load(path)) for path in folder.glob("*.npz")})

    def save_snapshot(self, snapshot: Snapshot) -> None:
        folder = self.folder / "models" / str(snapshot.as_of)
        folder.mkdir(parents=True, exist_ok=True)
        parts = snapshot.arrays()
        for path in folder.glob("*.npz"):
            if path.stem not in parts:  # of another architecture
                path.unlink()
        for name, arrays in parts.items():
            buffer = io.BytesIO()
            np.savez(buffer, **arrays)  # type: ignore[arg-type]  # a keyword of its own: allow_pickle
            write_atomically(folder / f"{name}.npz", buffer.getvalue())

    @property
    def rankers(self) -> dict[str, Ranker]:
        """By name; none of a single stage."""
        if self.settings.training.model is not None:
            return {}
        paths = sorted((self.folder / "rankers").glob("*.ubj"))
        if not paths:
            raise DataError(f"no ranker in {self.folder / 'rankers'}: run `python -m jobs.train_ranker`")
        return {p.stem: Ranker(xgboost.Booster(model_file=str(p))) for p in paths}

    def parts(self, moment: int, *, rankers: dict[str, Ranker]) -> Parts:
        """What a release of this moment would hold."""
        snapshot = self.snapshot(moment)
        configs = Path(__file__).parent.parent / "configs"
        return Parts(
            items=self.items,
            snapshot=snapshot,
            rankers=rankers,
            rules=load_rules(self.settings.rules or configs / "rules" / "default.yaml"),
            experiments=load_experiments(
                self.settings.experiments or configs / "experiments" / "default.yaml"
            ),
            settings=self.settings.pipeline,
        )

    @property
    def registry(self) -> Registry:
        return Registry(self.settings.registry_uri, name=self.settings.registry.model)


def store_arguments(settings: Settings) -> dict[str, Any]:
    """What an EventStore is made of: plain values, which travel to actors."""
    store = settings.store
    return {
        "uri": settings.store_uri,
        "storage_options": dict(store.options),
        "partition_by": store.partition_by,
        "cold_uri": store.cold_uri,
        "cold_options": dict(store.cold_options) or None,
    }


def open_store(settings: Settings, **changes: Any) -> EventStore:
    return EventStore(**store_arguments(settings) | changes)


def write_atomically(path: Path, content: bytes) -> None:
    """A reader sees the whole file or the one before; a full disk leaves the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(content)
    os.replace(draft, path)
