"""Two-tower retrieval: a user is what they took, an item is its id and its content, both unit vectors.

Decides the architecture and the losses. The user tower pools the embeddings of the history, at several
half-lives and by attention, and adds what else is known: dense features, attributes, the time of the
request, a hashed id. Both towers share the item embedding. It exports as plain arrays (`UserEncoder`,
numpy only: no torch where it serves). Items are encoded from content alone where nothing taught their
id, which id dropout prepares the item tower for. It does not know the loop, nor how a batch is drawn.
"""

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys.interactions import Tokens
from recsys.models.two_tower.settings import TwoTowerSettings
from recsys.models.two_tower.user_encoder import UserEncoder
from recsys.types import ragged_index

HOURS, WEEKDAYS = 24, 7
_NEVER = -1e4  # logit of what is no negative

_Table = TypeVar("_Table", nn.Embedding, nn.EmbeddingBag)


class TwoTower(nn.Module):
    """Item tower: normalize(id + mean of tokens). User tower: normalize(W [pooled histories, features]
    + b + id + mean of attributes + hour + weekday).

    Attention weighs event j of a history by softmax((q + Q e_newest) . e_j + place_j), without Q and place
    where histories have no order: as STAMP (Liu et al. 2018) it needs no candidate, so an index can serve.
    """

    def __init__(
        self,
        *,
        items: int,
        tokens: Tokens | None,
        settings: TwoTowerSettings,
        feature_mean: np.ndarray | None = None,
        feature_scale: np.ndarray | None = None,
        attributes: bool = False,
    ):
        """`tokens` are the content of all V items; `feature_mean` and `feature_scale` [F] standardize
        log(1 + |feature|); `attributes` says whether users have any."""
        super().__init__()
        d = settings.dimensions
        self.settings = settings
        self.tokens = None if tokens is None else folded(tokens, settings.token_buckets)
        self.feature_mean = np.zeros(0, np.float32) if feature_mean is None else feature_mean
        self.feature_scale = np.ones(0, np.float32) if feature_scale is None else feature_scale
        self.id = nn.Embedding(items, d)
        nn.init.normal_(self.id.weight, std=0.1)
        if self.tokens is not None:
            self.token = nn.EmbeddingBag(settings.token_buckets, d, mode="mean")
            nn.init.normal_(self.token.weight, std=0.1)
        pooled = len(settings.half_lives_days) + settings.attention
        self.user = nn.Linear(pooled * d + len(self.feature_mean), d)
        with torch.no_grad():  # start as the plain mean of what was taken
            self.user.weight.mul_(0.1)
            for part in range(pooled):
                self.user.weight[:, part * d : (part + 1) * d] += torch.eye(d)
        if settings.attention:
            self.query = nn.Parameter(torch.zeros(d))
            if settings.places:
                self.query_newest = nn.Parameter(torch.zeros(d, d))
                self.place = nn.Parameter(torch.zeros(settings.places))
        if settings.user_buckets:
            self.user_id = _nothing_yet(nn.Embedding(settings.user_buckets, d))
        if attributes:
            self.attribute = _nothing_yet(nn.EmbeddingBag(settings.attribute_buckets, d, mode="mean"))
        if settings.context:
            self.hour = _nothing_yet(nn.Embedding(HOURS, d))
            self.weekday = _nothing_yet(nn.Embedding(WEEKDAYS, d))

    def embed(
        self, rows: Tensor, tokens: Tensor | None, token_offsets: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Ids [R, d] of items `rows` [R] and the mean of their content (ragged by `token_offsets` [R])."""
        words = None if tokens is None else self.token(tokens, token_offsets)
        return self.id(rows), words

    def encode_users(self, items: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Unit user vectors [B, d]; events are rows of `items` [R, d]."""
        event, offsets = batch["event"], batch["event_offsets"]
        weights = list(batch["weights"])
        if self.settings.attention:
            weights.append(self._attention(items[event], batch))
        bags = [
            functional.embedding_bag(event, items, offsets, mode="sum", per_sample_weights=weight)
            for weight in weights
        ]
        user = self.user(torch.cat([*bags, batch["features"]], dim=1))
        if "user" in batch:  # -1 = no id
            user = user + self.user_id(batch["user"].clamp(min=0)) * (batch["user"] >= 0)[:, None]
        if "attribute" in batch:
            user = user + self.attribute(batch["attribute"], batch["attribute_offsets"])
        if self.settings.context:
            user = user + self.hour(batch["hour"]) + self.weekday(batch["weekday"])
        return functional.normalize(user, dim=1)

    def _attention(self, events: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Weight of each event [M] of `events` [M, d], summing to 1 over a history."""
        owner, users, query = batch["event_owner"], len(batch["event_offsets"]), self.query
        logit = (query * events).sum(1)
        if self.settings.places:
            place = batch["place"]
            newest = events.new_zeros(users, events.shape[1])
            newest = newest.index_copy(0, owner[place == 0], events[place == 0])
            logit = logit + ((newest @ self.query_newest)[owner] * events).sum(1)
            logit = logit + self.place[place.clamp(max=len(self.place) - 1)]
        largest = logit.new_full((users,), -torch.inf).scatter_reduce(0, owner, logit.detach(), "amax")
        strength = torch.exp(logit - largest[owner])
        return strength / strength.new_zeros(users).index_add(0, owner, strength)[owner]

    def forward(self, **batch: Tensor) -> Tensor:
        """The loss of a batch, mean over its P targets by weight.

        `rows` [R] are the distinct items of the batch, `tokens`, `token_offsets` [R] their content and
        `keep_id` [R] 0 for a candidate that must do without its id. Histories: `event` [M] (position in
        rows), `event_owner` [M], `event_offsets` [B], `weights` [H, M], `place` [M] (0 = newest).
        Users: `features` [B, F], and if the model has them `user` [B], `attribute` with
        `attribute_offsets` [B], `hour`, `weekday` [B]. `target` [P] (position in rows), `owner` [P],
        `target_weight` [P]; `pool` [N] (position in rows) are negatives for all, `log_expected` [N] the log
        of how often each was to be expected there, `masked` flat positions of [B, N] that are none.
        `log_share` [R] is the log of each item's share of all targets.
        """
        ids, words = self.embed(batch["rows"], batch.get("tokens"), batch.get("token_offsets"))
        users = self.encode_users(ids if words is None else ids + words, batch)
        kept = ids * batch["keep_id"][:, None]
        items = functional.normalize(kept if words is None else kept + words, dim=1)
        cosine = users @ items[batch["pool"]].T
        positive = (users[batch["owner"]] * items[batch["target"]]).sum(1)
        if self.settings.loss == "softmax":
            loss = self._softmax(positive.float(), cosine.float(), batch)
        else:
            loss = self._ccl(positive.float(), cosine.float(), batch)
        weight = batch["target_weight"]  # a batch of few examples may have no target by chance
        return (loss * weight).sum() / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)

    def _softmax(self, positive: Tensor, cosine: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Sampled softmax: the sum over all items is estimated by the positive itself and the pool, each
        entry over how often it was to be expected (logQ correction, Yi et al. 2019; the positive, which is
        there for certain, is not corrected).

        What stands for log p(item | user) is the score less popularity * log share, so that the scores rank
        by p * share ** popularity (as Menon et al. 2021, "Logit adjustment", with the other sign).
        """
        known = (self.settings.popularity or 0.0) * batch["log_share"]
        logits = cosine / self.settings.temperature - known[batch["pool"]] - batch["log_expected"]
        logits = logits.view(-1).index_fill(0, batch["masked"], _NEVER).view(logits.shape)
        negatives = torch.logsumexp(logits, dim=1)[batch["owner"]]
        positive = positive / self.settings.temperature - known[batch["target"]]
        return functional.softplus(negatives - positive)

    def _ccl(self, positive: Tensor, cosine: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Cosine contrastive loss (Mao et al. 2021): 1 - positive + w mean(max(0, negative - margin))."""
        excess = functional.relu(cosine - self.settings.margin)
        excess = excess.view(-1).index_fill(0, batch["masked"], 0.0).view(excess.shape)
        return 1 - positive + self.settings.negative_weight * excess.mean(1)[batch["owner"]]

    @torch.no_grad()
    def raw_items(self, items: int, taught: np.ndarray | None = None) -> np.ndarray:
        """Embeddings of rows 0 .. items - 1 before normalization, float32 [items, d]; those that are not
        `taught` bool [items] come from content alone, which is 0 where there is none."""
        vectors = self.id.weight[:items].float().cpu().numpy().copy()
        if taught is not None:
            vectors[~taught[:items]] = 0
        if self.tokens is not None:
            offsets, tokens = self.content_of(np.arange(items))
            where = self.token.weight.device
            words = self.token(torch.from_numpy(tokens).to(where), torch.from_numpy(offsets).to(where))
            vectors += words.float().cpu().numpy()
        return vectors

    def content_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(offsets int64 [R], tokens int64 [T]) of items `rows`, as `forward` takes them."""
        assert self.tokens is not None
        counts = np.diff(self.tokens.offsets)[rows].astype(np.int64)
        tokens = self.tokens.id[ragged_index(self.tokens.offsets[rows], counts)]
        return np.cumsum(counts) - counts, tokens.astype(np.int64)

    def item_vectors(self, items: int, taught: np.ndarray | None = None) -> np.ndarray:
        """Unit vectors of rows 0 .. items - 1, float32 [items, d]; 0 where nothing is known."""
        vectors = self.raw_items(items, taught)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def export(self, items: int, taught: np.ndarray | None = None) -> UserEncoder:
        """The encoder that knows rows 0 .. items - 1."""
        d = self.settings.dimensions
        none = {
            "token": np.zeros((0, d), np.float32),
            "query": np.zeros(0, np.float32),
            "query_newest": np.zeros((0, 0), np.float32),
            "place": np.zeros(0, np.float32),
            "hour": np.zeros((0, d), np.float32),
            "weekday": np.zeros((0, d), np.float32),
        }
        state = {name.removesuffix(".weight"): value for name, value in self.state_dict().items()}
        given = {name: array_of(state[name]) for name in none if name in state}
        return UserEncoder(
            history=self.raw_items(items, taught),
            half_lives_days=np.array(self.settings.half_lives_days, np.float32),
            weight=array_of(state["user"]),
            bias=array_of(state["user.bias"]),
            feature_mean=self.feature_mean,
            feature_scale=self.feature_scale,
            **none | given,
        )


def folded(tokens: Tokens, buckets: int) -> Tokens:
    """The same things with their tokens folded into `buckets`."""
    return Tokens(tokens.offsets, (tokens.id % buckets).astype(np.int32))


def array_of(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().float().cpu().numpy().copy()
    return array


def _nothing_yet(embedding: _Table) -> _Table:
    """All zero: what is added to the user means nothing until it has learned something."""
    nn.init.zeros_(embedding.weight)
    return embedding
