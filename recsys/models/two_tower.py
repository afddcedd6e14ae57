"""Two-tower retrieval: a user is what they bought, an item is its id and its words, both unit vectors.

Decides the architecture and the loss. The user tower has no user id: it pools the embeddings of the
history at several half-lives and adds user features, so that it serves anyone with an event, and
exports as plain arrays (`UserEncoder`, numpy only: no torch where it serves). New items are encoded
from their words alone, which id dropout prepares the item tower for. Does not know the training loop.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from recsys.models.two_tower_settings import TwoTowerSettings
from recsys.models.user_encoder import UserEncoder, pooling_weights
from recsys.types import Histories


class TwoTower(nn.Module):
    """Item tower: normalize(id + mean of tokens). User tower: normalize(W [pooled history, features] + b)."""

    tokens_offsets: torch.Tensor
    tokens: torch.Tensor
    feature_mean: torch.Tensor
    feature_scale: torch.Tensor

    def __init__(
        self,
        *,
        items: int,
        tokens_offsets: np.ndarray,
        tokens: np.ndarray,
        feature_mean: np.ndarray,
        feature_scale: np.ndarray,
        settings: TwoTowerSettings,
    ):
        """`tokens_offsets` int32 [V + 1] and `tokens` int32 [T] are the hashed words of all V titles;
        `feature_mean` and `feature_scale` [F] standardize log(1 + |feature|)."""
        super().__init__()
        self.settings = settings
        d, features = settings.dimensions, len(feature_mean)
        pooled = len(settings.half_lives_days) * d
        self.id = nn.Embedding(items, d)
        self.token = nn.EmbeddingBag(settings.token_buckets, d, mode="mean")
        self.user = nn.Linear(pooled + features, d)
        for embedding in (self.id, self.token):
            nn.init.normal_(embedding.weight, std=0.1)
        with torch.no_grad():  # start as the plain mean of what was bought
            self.user.weight.mul_(0.1)
            for part in range(len(settings.half_lives_days)):
                self.user.weight[:, part * d : (part + 1) * d] += torch.eye(d)
        self.register_buffer("tokens_offsets", torch.as_tensor(tokens_offsets, dtype=torch.long))
        self.register_buffer("tokens", torch.as_tensor(tokens, dtype=torch.long))
        self.register_buffer("feature_mean", torch.as_tensor(feature_mean, dtype=torch.float32))
        self.register_buffer("feature_scale", torch.as_tensor(feature_scale, dtype=torch.float32))

    def embed(self, items: torch.Tensor, *, keep_id: torch.Tensor | None = None) -> torch.Tensor:
        """Item embeddings before normalization, [n, d]; `keep_id` bool [n] = False leaves out the id."""
        start = self.tokens_offsets[items]
        counts = self.tokens_offsets[items + 1] - start
        before = torch.cumsum(counts, 0) - counts
        flat = torch.repeat_interleave(start - before, counts) + torch.arange(int(counts.sum()))
        words = self.token(self.tokens[flat], before)
        ids = self.id(items)
        return words + (ids if keep_id is None else ids * keep_id[:, None])

    def encode_users(
        self, item: torch.Tensor, request: torch.Tensor, weights: torch.Tensor, features: torch.Tensor
    ) -> torch.Tensor:
        """Unit user vectors [B, d] from history events (`item`, `request` [M]; `weights` [H, M], which
        sum to 1 over a request's events) and standardized `features` [B, F]."""
        rows, inverse = torch.unique(item, return_inverse=True)
        vectors = self.embed(rows)
        pooled = [
            torch.sparse.mm(
                torch.sparse_coo_tensor(
                    torch.stack((request, inverse)),
                    weight,
                    (len(features), len(rows)),
                    check_invariants=False,
                ),
                vectors,
            )
            for weight in weights
        ]
        return nn.functional.normalize(self.user(torch.cat([*pooled, features], dim=1)), dim=1)

    def standardize(self, features: torch.Tensor) -> torch.Tensor:
        """log(1 + |x|), standardized; NaN = the mean, 0."""
        return torch.nan_to_num((torch.log1p(features.abs()) - self.feature_mean) / self.feature_scale)

    def loss(
        self,
        histories: Histories,
        *,
        now: np.ndarray,
        user_features: np.ndarray,
        targets_offsets: np.ndarray,
        targets: np.ndarray,
        sampled: np.ndarray,
        masked: tuple[np.ndarray, np.ndarray],
        probability: np.ndarray,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """In-batch sampled softmax with logQ correction (Yi et al. 2019), mean over the positives.

        `targets` [P] (ragged by `targets_offsets` [B + 1]) are the positives; `sampled` [S] are the items
        that serve as each other's negatives (with repetition), drawn with `probability` float [V].
        `masked` = (request [Z], item [Z]): pairs that are no negative of that request (its whole basket
        and history: accidental hits).
        """
        weights = torch.from_numpy(
            pooling_weights(histories, now=now, half_lives_days=self.settings.half_lives_days)
        )
        users = self.encode_users(
            torch.from_numpy(histories.item).long(),
            torch.from_numpy(histories.request),
            weights,
            self.standardize(torch.from_numpy(user_features)),
        )
        pool, multiplicity = np.unique(sampled, return_counts=True)
        keep = torch.rand(len(pool), generator=generator) >= self.settings.id_dropout
        vectors = nn.functional.normalize(self.embed(torch.from_numpy(pool).long(), keep_id=keep), dim=1)
        logits = users @ vectors.T / self.settings.temperature
        correction = np.log(multiplicity) - np.log(np.maximum(probability[pool], 1e-12))
        as_negative = logits + torch.from_numpy(correction.astype(np.float32))
        request, item = masked
        place = np.searchsorted(pool, item)
        hit = place < len(pool)
        hit[hit] = pool[place[hit]] == item[hit]
        mask = torch.zeros(as_negative.shape, dtype=torch.bool)
        mask[torch.from_numpy(request[hit]), torch.from_numpy(place[hit])] = True
        negatives = torch.logsumexp(as_negative.masked_fill(mask, -torch.inf), dim=1)
        owner = torch.from_numpy(np.repeat(np.arange(len(now)), np.diff(targets_offsets)))
        column = torch.from_numpy(np.searchsorted(pool, targets))
        positive = logits[owner, column] - torch.from_numpy(
            np.log(len(sampled) * np.maximum(probability[targets], 1e-12)).astype(np.float32)
        )
        # the positive stands in the softmax once, as one draw of its own, corrected like the negatives
        negatives = negatives[owner] - float(np.log(len(sampled)))
        return (torch.logaddexp(positive, negatives) - positive).mean()

    @torch.no_grad()
    def item_vectors(self, items: int) -> np.ndarray:
        """Unit vectors of rows 0 .. items - 1, float32 [items, d]."""
        return nn.functional.normalize(self.embed(torch.arange(items)), dim=1).numpy()

    @torch.no_grad()
    def export(self, items: int) -> Mapping[str, np.ndarray]:
        """The arrays of a `UserEncoder` that knows rows 0 .. items - 1."""
        return UserEncoder(
            history=self.embed(torch.arange(items)).numpy().copy(),
            half_lives_days=np.array(self.settings.half_lives_days, np.float32),
            weight=self.user.weight.numpy().copy(),
            bias=self.user.bias.numpy().copy(),
            feature_mean=self.feature_mean.numpy().copy(),
            feature_scale=self.feature_scale.numpy().copy(),
            token=self.token.weight.numpy().copy(),
        ).arrays()
