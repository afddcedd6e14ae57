"""Vectors of items that the models have not seen: from their content, by the release's content tower."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from recsys.catalog.changelog import Change
from recsys.features.text import hash_tokens
from recsys.models.two_tower.user_encoder import encode_content


def content_vectors(token: np.ndarray, titles: Sequence[str | None]) -> np.ndarray:
    """Unit vectors float32 [n, D] by the embeddings of hashed words, float32 [buckets, D]; 0 = no word is
    known of it, or no tower reads words (no bucket)."""
    if not len(token) or not len(titles):
        return np.zeros((len(titles), token.shape[1]), np.float32)
    words = hash_tokens([title or "" for title in titles], buckets=len(token))
    return np.nan_to_num(encode_content(token, offsets=words.offsets, tokens=words.id))


def with_vectors(
    changes: Sequence[tuple[int, Change]], *, space: str, token: np.ndarray, has: Callable[[int], bool]
) -> list[tuple[int, Change]]:
    """`changes`, with a vector for each upsert that brings none of this `space` to a row which `has` none:
    whoever wrote it served another release. Every reader of a release comes to the same vectors."""
    size = token.shape[1:]
    brings = [
        (v := change.vectors.get(space)) is not None and v.shape == size and bool(v.any())
        for _, change in changes
    ]
    lacking = [
        place
        for place, (_, change) in enumerate(changes)
        if change.kind == "upsert" and not brings[place] and not has(change.row)
    ]
    titles = [(changes[place][1].item or {}).get("title") for place in lacking]
    vectors = dict(zip(lacking, content_vectors(token, titles)))
    completed, have = list(changes), set[int]()
    for place, (offset, change) in enumerate(changes):
        if place in vectors and change.row not in have and vectors[place].any():
            made = {**change.vectors, space: vectors[place]}
            completed[place] = offset, replace(change, vectors=made)
            have.add(change.row)  # once, however the changes come in batches
        elif brings[place]:
            have.add(change.row)
    return completed
