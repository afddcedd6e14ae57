"""Sequence models in torch: what comes next, asked at every position of a history at once.

Decides what SASRec and GRU4Rec share: items known by one vector as events and as candidates (the id's,
and the mean of the tokens'), a start token before the first event, layer norms at both ends, and the
softmax over all items or, corrected by log Q, over a pool of them. They differ in `layers`. Parameters
have the names of the arrays of `recsys.models.sequence.encoder`, which serves. Knows neither the loop nor
how a batch is made.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys.interactions import Tokens
from recsys.models.sampled_softmax import softmax_loss
from recsys.models.sequence.encoder import EPSILON, RecurrentEncoder, SelfAttentionEncoder, SequenceEncoder
from recsys.models.sequence.settings import SequenceSettings
from recsys.types import ragged_index


class SequenceModule(nn.Module):
    """With settings of which none is left to the log. `layers` maps normed events [B, n, d] to outputs
    [B, n, d]; position i sees 0 .. i only."""

    serves: type[SequenceEncoder]

    def __init__(self, *, items: int, tokens: Tokens | None, settings: SequenceSettings):
        super().__init__()
        d = settings.dimensions
        assert d is not None
        self.settings = settings
        spread = d**-0.5 if settings.temperature else 0.02  # of a vector's first entries
        self.tokens = None
        if tokens is not None:
            self.tokens = Tokens(tokens.offsets, (tokens.id % settings.token_buckets).astype(np.int32))
            self.token = nn.EmbeddingBag(settings.token_buckets, d, mode="mean")
            nn.init.normal_(self.token.weight, std=spread)
        self.id = nn.Embedding(items, d)
        nn.init.normal_(self.id.weight, std=spread)
        self.start = nn.Parameter(torch.randn(d) * spread)
        self.input_gain, self.input_shift = nn.Parameter(torch.ones(d)), nn.Parameter(torch.zeros(d))
        self.output_gain, self.output_shift = nn.Parameter(torch.ones(d)), nn.Parameter(torch.zeros(d))

    def layers(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def embed(self, rows: Tensor, tokens: Tensor | None, token_offsets: Tensor | None) -> Tensor:
        """Vectors [R, d] of items `rows` [R] with their content, ragged by `token_offsets` [R]."""
        vectors: Tensor = self.id(rows)
        if tokens is not None:
            vectors = vectors + self.token(tokens, token_offsets)
        return functional.normalize(vectors, dim=1) if self.settings.temperature else vectors

    def encode(self, items: Tensor, event: Tensor) -> Tensor:
        """Outputs [B, n, d] for events [B, n]: rows of `items` [R, d], R = start token, R + 1 = padding."""
        d = items.shape[1]
        table = torch.cat((items, self.start[None], items.new_zeros(1, d)))
        x = functional.layer_norm(table[event], (d,), self.input_gain, self.input_shift, EPSILON)
        x = self.layers(self.dropped(x, self.settings.event_dropout))
        x = functional.layer_norm(x, (d,), self.output_gain, self.output_shift, EPSILON)
        temperature = self.settings.temperature
        return functional.normalize(x, dim=2) / temperature if temperature else x

    def forward(self, **batch: Tensor) -> Tensor:
        """The loss of a batch, mean over its P targets by weight.

        `rows` [R] are the distinct items of the batch, `tokens`, `token_offsets` [R] their content.
        `event` [B, n] as `encode` takes it. `target` [P] (position in rows) is what came at `place` [P] (flat
        position in [B, n]), `weight` [P]. `pool` [N] (position in rows), `log_expected` [N] and `own` [P] as
        `softmax_loss` takes them.
        """
        items = self.embed(batch["rows"], batch.get("tokens"), batch.get("token_offsets"))
        users = self.encode(items, batch["event"]).flatten(0, 1)[batch["place"]]
        return softmax_loss(
            users,
            items[batch["target"]],
            pool=items[batch["pool"]],
            log_expected=batch["log_expected"],
            own=batch["own"],
            weight=batch["weight"],
        )

    def dropped(self, x: Tensor, share: float) -> Tensor:
        return functional.dropout(x, share, self.training)

    def content_of(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """`tokens` int64 [T] and `token_offsets` int64 [R] of items `rows`, as `forward` takes them."""
        if self.tokens is None:
            return {}
        counts = np.diff(self.tokens.offsets)[rows].astype(np.int64)
        tokens = self.tokens.id[ragged_index(self.tokens.offsets[rows], counts)]
        return {"tokens": tokens.astype(np.int64), "token_offsets": np.cumsum(counts) - counts}

    @torch.no_grad()
    def export(self, taught: np.ndarray) -> SequenceEncoder:
        """What serves: items that are not `taught` bool [V] are their content, or nothing."""
        where, rows = self.start.device, np.arange(len(taught))
        content = {name: torch.from_numpy(a).to(where) for name, a in self.content_of(rows).items()}
        vectors = self.id.weight * torch.from_numpy(taught).to(where)[:, None]
        if content:
            vectors = vectors + self.token(content["tokens"], content["token_offsets"])
        if self.settings.temperature:
            vectors = functional.normalize(vectors, dim=1)
        items = vectors.float().cpu().numpy().copy()
        described = np.diff(self.tokens.offsets) > 0 if self.tokens is not None else np.zeros_like(taught)
        items[~taught & ~described] = np.nan
        arrays = {name: p.detach().float().cpu().numpy().copy() for name, p in self.named_parameters()}
        arrays |= {"items": items, "again": np.zeros(2, np.float32), "window": np.array(self.settings.window)}
        arrays |= {"temperature": np.array(self.settings.temperature or 0.0)}
        return self.serves.from_arrays(arrays)


class SelfAttention(SequenceModule):
    """SASRec (Kang and McAuley 2018), with layer norms before each part, GELU, and instead of positions a
    learned bias for each head and distance (as Raffel et al. 2020)."""

    serves = SelfAttentionEncoder

    def __init__(self, *, items: int, tokens: Tokens | None, settings: SequenceSettings):
        super().__init__(items=items, tokens=tokens, settings=settings)
        d, n = len(self.start), settings.layers
        self.bias = nn.Parameter(torch.zeros(n, settings.heads, settings.window + 1))
        self.attention_gain, self.attention_shift = _layer_norms(n, d)
        self.attention_in, self.attention_in_bias = _linear(n, d, 3 * d)
        self.attention_out, self.attention_out_bias = _linear(n, d, d)
        self.wide_gain, self.wide_shift = _layer_norms(n, d)
        self.wide_in, self.wide_in_bias = _linear(n, d, 4 * d)
        self.wide_out, self.wide_out_bias = _linear(n, 4 * d, d)

    def layers(self, x: Tensor) -> Tensor:
        users, length, d = x.shape
        heads, window, share = self.settings.heads, self.settings.window, self.settings.dropout or 0.0
        place = torch.arange(length, device=x.device)
        distance = place[:, None] - place[None]
        far = torch.where(place[None] == 0, window, distance.clamp(0, window - 1))
        later = torch.zeros_like(distance, dtype=x.dtype).masked_fill(distance < 0, -torch.inf)
        for n in range(self.settings.layers):
            y = functional.layer_norm(x, (d,), self.attention_gain[n], self.attention_shift[n], EPSILON)
            y = functional.linear(y, self.attention_in[n], self.attention_in_bias[n])
            q, k, v = y.view(users, length, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
            bias = (self.bias[n][:, far] + later)[None].to(q.dtype)
            y = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
            y = y.transpose(1, 2).reshape(users, length, d)
            y = functional.linear(y, self.attention_out[n], self.attention_out_bias[n])
            x = x + self.dropped(y, share)
            y = functional.layer_norm(x, (d,), self.wide_gain[n], self.wide_shift[n], EPSILON)
            y = functional.gelu(
                functional.linear(y, self.wide_in[n], self.wide_in_bias[n]), approximate="tanh"
            )
            y = functional.linear(y, self.wide_out[n], self.wide_out_bias[n])
            x = x + self.dropped(y, share)
        return x


class Recurrent(SequenceModule):
    """GRU4Rec (Hidasi et al. 2016), trained as a language model: at every position, by a softmax."""

    serves = RecurrentEncoder

    def __init__(self, *, items: int, tokens: Tokens | None, settings: SequenceSettings):
        super().__init__(items=items, tokens=tokens, settings=settings)
        d, n = len(self.start), settings.layers
        self.gates, self.gates_bias = _linear(n, d, 3 * d)
        self.memory, self.memory_bias = _linear(n, d, 3 * d)

    def layers(self, x: Tensor) -> Tensor:
        d, n = len(self.start), self.settings.layers
        flat = [w[i] for i in range(n) for w in (self.gates, self.memory, self.gates_bias, self.memory_bias)]
        share = self.settings.dropout or 0.0
        y, _ = torch.gru(x, x.new_zeros(n, len(x), d), flat, True, n, share, self.training, False, True)
        return self.dropped(y, share)


def _layer_norms(layers: int, d: int) -> tuple[nn.Parameter, nn.Parameter]:
    return nn.Parameter(torch.ones(layers, d)), nn.Parameter(torch.zeros(layers, d))


def _linear(layers: int, d_in: int, d_out: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Weights [layers, d_out, d_in] and biases [layers, d_out], begun as torch's `Linear`."""
    bound = d_in**-0.5
    uniform: Callable[..., Tensor] = lambda *shape: torch.empty(*shape).uniform_(-bound, bound)  # noqa: E731
    return nn.Parameter(uniform(layers, d_out, d_in)), nn.Parameter(uniform(layers, d_out))
