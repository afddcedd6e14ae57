"""How much more a sequence model should make of what a history holds already.

Decides it on what was held out, since on what it was trained on a model knows what comes next better than
it will ever know again, and what was there before looks worse beside it. Two numbers, of the newest event's
item and of older ones (a session goes back to what it saw; as Ren et al. 2019, RepeatNet, who learn it),
are chosen from a grid by NDCG@10, and kept where they help beyond chance.
"""

from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from recsys.datasets.problem import Judged
from recsys.models.held_out import AT, score_blocks
from recsys.models.sequence.encoder import SequenceEncoder, held_items
from recsys.models.top_k import top_k
from recsys.types import ragged_index

GRID = np.arange(-3, 3.5, 0.5).astype(np.float32)  # of logits


def with_again(encoder: SequenceEncoder, judged: Judged) -> SequenceEncoder:
    """`encoder` with the `again` that suits the questions `judged` best; its own is put aside."""
    encoder = replace(encoder, again=np.zeros(2, np.float32))
    blocks = score_blocks(encoder, judged, items=len(encoder.items))
    parts = [_Part.of(encoder, part, scores) for _, part, scores in blocks]
    if not any((part.kind >= 0).any() for part in parts):
        return encoder  # nothing is asked for again

    def gains(again: np.ndarray) -> np.ndarray:
        return np.concatenate([part.gains(again) for part in parts])

    before = gains(encoder.again)
    tried = [np.array(pair, np.float32) for pair in product(GRID, GRID)]
    best = max(tried, key=lambda again: float(gains(again).mean()))
    difference = gains(best) - before
    if difference.mean() <= 2 * difference.std() / np.sqrt(len(difference)):
        return encoder
    return replace(encoder, again=best)


@dataclass(frozen=True, slots=True)
class _Part:
    """T targets of B questions, and all that they can lose a place to."""

    request: np.ndarray  # int64 [T]
    score: np.ndarray  # float32 [T]
    kind: np.ndarray  # int64 [T] held as the newest event 0, before that 1, not at all -1
    others: np.ndarray  # float32 [B, AT] the best scores of what is not held
    held: np.ndarray  # float32 [B, H] the scores of what is, then -inf
    held_kind: np.ndarray  # int64 [B, H]

    @classmethod
    def of(cls, encoder: SequenceEncoder, judged: Judged, scores: np.ndarray) -> "_Part":
        """Overwrites `scores` [B, V]."""
        request = np.repeat(np.arange(len(judged)), judged.target_counts)
        kind = np.full(scores.shape, -1, np.int8)
        row, item, kinds = held_items(encoder.known(judged.queries), window=int(encoder.window))
        kind[row, item] = kinds
        own = scores[request, judged.target]
        counts = np.bincount(row, minlength=len(judged))
        place = ragged_index(np.zeros_like(counts), counts)
        held = np.full((len(judged), counts.max(initial=1)), -np.inf, np.float32)
        held_kind = np.zeros(held.shape, np.int64)
        held[row, place], held_kind[row, place] = scores[row, item], kinds
        scores[row, item] = -np.inf
        best = top_k(scores, k=min(AT, scores.shape[1]), tie_order=np.arange(scores.shape[1]))
        others = np.where(best < 0, -np.inf, np.take_along_axis(scores, np.maximum(best, 0), 1))
        return cls(request, own, kind[request, judged.target].astype(np.int64), others, held, held_kind)

    def gains(self, again: np.ndarray) -> np.ndarray:
        """What each target adds to the NDCG of a question that wants nothing else, float64 [T]."""
        score = self.score + np.where(self.kind < 0, 0, again[self.kind])
        against = np.concatenate((self.others, self.held + again[self.held_kind]), 1)[self.request]
        better = (against > score[:, None]).sum(1)
        return np.where((better < AT) & (score > -np.inf), 1 / np.log2(2 + better), 0)
