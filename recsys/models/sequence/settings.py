"""What configures a sequence model, but for its training."""

from dataclasses import dataclass

from recsys.errors import SettingsError
from recsys.models.retrieval import check_settings


@dataclass(frozen=True, slots=True)
class SequenceSettings:
    dimensions: int | None = None  # None = 128 of sessions, else 64
    layers: int = 2
    heads: int = 2  # of attention
    window: int = 50  # newest events of a history that are read
    content: bool = True  # an item is its tokens, too, where it has any
    token_buckets: int = 8192
    dropout: float | None = None  # of what each layer adds; None = .5 of small logs, .2 of large ones
    event_dropout: float = 0.2  # of the events' vectors
    temperature: float | None = None  # scores are cosines over it; 0 = inner products; None = by the log
    full_softmax: int = 20_000  # catalogs up to this size are told apart whole, larger ones by samples
    popular: int = 2048  # samples that are drawn by popularity
    uniform: int = 2048  # samples that are drawn evenly

    def __post_init__(self) -> None:
        check_settings(
            self,
            counts=("dimensions", "layers", "heads", "window", "token_buckets"),
            not_negative=("temperature", "full_softmax", "popular", "uniform"),
            shares=("dropout", "event_dropout"),
        )
        if not self.popular + self.uniform:
            raise SettingsError("popular and uniform are both 0: positives need negatives to be told from")
