"""Ranking metrics on arrays, with the degenerate cases decided.

A ranking is int32 [B, K] item rows, best first, -1 = nothing at this place (short rankings are
padded at the end). What is relevant is a ragged column: `offsets` [B + 1] and item rows. A request
with nothing relevant has no recall and no NDCG: NaN, left out of means. Ties are the ranker's to
break (`types.rank_by_score` breaks them by item row); a NaN score must not get this far.
"""

import numpy as np


def hits(ranked: np.ndarray, offsets: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Whether each ranked item is relevant, bool [B, K]. `relevant` [R] has no doubles in a request."""
    width = int(max(ranked.max(initial=0), relevant.max(initial=0))) + 1
    request = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    keys = request * width + relevant.astype(np.int64)
    asked = np.arange(len(ranked))[:, None] * width + ranked.astype(np.int64)
    return np.isin(asked, keys) & (ranked >= 0)


def recall_at(hit: np.ndarray, relevant_counts: np.ndarray, k: int) -> np.ndarray:
    """Hits in the top k over all that is relevant, float64 [B]; NaN where nothing is relevant."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(relevant_counts > 0, hit[:, :k].sum(1) / relevant_counts, np.nan)


def ndcg_at(hit: np.ndarray, relevant_counts: np.ndarray, k: int) -> np.ndarray:
    """Binary NDCG with min(k, relevant) in the ideal, float64 [B] (Järvelin and Kekäläinen, 2002)."""
    k = min(k, max(hit.shape[1], int(relevant_counts.max(initial=0))))  # beyond them nothing is discounted
    discount = 1 / np.log2(np.arange(2, k + 2))
    gain = hit[:, :k] @ discount[: hit.shape[1]]
    ideal = np.concatenate(([np.nan], np.cumsum(discount)))[np.minimum(relevant_counts, k)]
    return gain / ideal


def precision_at(hit: np.ndarray, relevant_counts: np.ndarray, k: int) -> np.ndarray:
    """Hits in the top k over k, float64 [B]; NaN where nothing is relevant."""
    return np.where(relevant_counts > 0, hit[:, :k].sum(1) / k, np.nan)


def hr_at(hit: np.ndarray, relevant_counts: np.ndarray, k: int) -> np.ndarray:
    """Whether anything relevant is in the top k, float64 [B]; NaN where nothing is relevant. With one
    relevant item each this is also what session papers call P@k."""
    return np.where(relevant_counts > 0, hit[:, :k].any(1), np.nan)


def mrr_at(hit: np.ndarray, relevant_counts: np.ndarray, k: int) -> np.ndarray:
    """1 / place of the first hit in the top k, 0 without one, float64 [B]; NaN where nothing is relevant."""
    top = hit[:, :k]
    first = np.where(top.any(1), 1 / (1 + top.argmax(1)), 0.0) if top.shape[1] else np.zeros(len(hit))
    return np.where(relevant_counts > 0, first, np.nan)


def novelty_at(ranked: np.ndarray, popularity: np.ndarray, k: int) -> np.ndarray:
    """Mean surprise of the top k in bits, -log2 of the share of events that were of the item, float64 [B].

    `popularity` [V] counts training events; an item without one counts as half an event. NaN for an
    empty ranking (Castells, Vargas and Wang, 2011: mean self-information).
    """
    top = ranked[:, :k]
    share = np.maximum(popularity, 0.5) / max(popularity.sum(), 1)
    bits = np.where(top >= 0, -np.log2(share)[top], 0.0)
    shown = (top >= 0).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(shown > 0, bits.sum(1) / shown, np.nan)


def coverage_at(ranked: np.ndarray, items: int, k: int) -> float:
    """Share of the catalog of `items` that stands in somebody's top k."""
    shown = np.unique(ranked[:, :k])
    return float((shown >= 0).sum() / items) if items else 0.0


def category_diversity_at(ranked: np.ndarray, category: np.ndarray, k: int) -> np.ndarray:
    """Distinct categories in the top k over items there, float64 [B]; NaN for an empty ranking.

    `category` int [V] by item row; -1 = unknown, and each unknown counts as a category of its own.
    """
    top = ranked[:, :k]
    present = top >= 0
    own = -2 - np.arange(top.shape[1])  # a category that nothing else in the ranking has
    categories = np.where(present, category[top], 0)
    categories = np.where(categories < 0, own, categories)
    categories = np.where(present, categories, np.iinfo(np.int64).max)
    ordered = np.sort(categories, axis=1)
    distinct = 1 + (np.diff(ordered, axis=1) != 0).sum(1) - (~present).any(1)
    shown = present.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(shown > 0, distinct / shown, np.nan)


def bootstrap_interval(
    values: np.ndarray, *, rng: np.random.Generator, samples: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the mean of `values` [B] over resampled requests (Efron, 1979).

    NaN values are left out; no values at all give (NaN, NaN).
    """
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    means = np.empty(samples)
    at_once = max(1, 4_000_000 // len(values))  # bounds memory
    for start in range(0, samples, at_once):
        shape = (min(at_once, samples - start), len(values))
        drawn = rng.integers(len(values), size=shape, dtype=np.int32)
        means[start : start + at_once] = values[drawn].mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_difference(
    ours: np.ndarray, theirs: np.ndarray, *, rng: np.random.Generator, samples: int = 2000
) -> tuple[float, float, float, float]:
    """Mean of `ours - theirs` [B] over requests, its 95 % bootstrap interval, and the two-sided p-value of
    Fisher's randomization test (signs flipped at random; Smucker, Allan and Carterette, 2007).

    Requests where either is NaN are left out; none at all give NaN.
    """
    difference = ours - theirs
    difference = difference[~np.isnan(difference)]
    if not len(difference):
        return (float("nan"),) * 4
    mean = float(difference.mean())
    low, high = bootstrap_interval(difference, rng=rng)
    extreme = 0
    at_once = max(1, 4_000_000 // len(difference))
    for start in range(0, samples, at_once):
        shape = (min(at_once, samples - start), len(difference))
        flipped = np.where(rng.random(shape, dtype=np.float32) < 0.5, -difference, difference).mean(1)
        extreme += int((np.abs(flipped) >= abs(mean) - 1e-15).sum())
    return mean, low, high, (extreme + 1) / (samples + 1)


def coverage_interval(
    ranked: np.ndarray, items: int, k: int, *, rng: np.random.Generator, samples: int = 200
) -> tuple[float, float]:
    """Normal bootstrap interval (95 %) of `coverage_at` over resampled requests.

    A resample has fewer distinct requests and so covers less, always: percentiles would miss the
    estimate itself. Its spread is of use, its center is not: 1.96 deviations around the estimate.
    """
    top = ranked[:, :k]
    shown = np.zeros((len(ranked), items), np.float32)
    request, place = np.nonzero(top >= 0)
    shown[request, top[request, place]] = 1
    counts = rng.multinomial(len(ranked), np.full(len(ranked), 1 / len(ranked)), size=samples)
    covered = ((counts.astype(np.float32) @ shown) > 0).sum(1) / items
    estimate, half = coverage_at(ranked, items, k), 1.96 * float(covered.std())
    return max(estimate - half, 0.0), min(estimate + half, 1.0)
