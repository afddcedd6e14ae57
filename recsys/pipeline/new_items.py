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
    lacking, made = list[int](), set[int]()
    for place, (_, change) in enumerate(changes):
        if change.kind == "upsert" and change.row not in made:
            if space not in change.vectors and has(change.row):
                continue
            made.add(change.row)  # once, however the changes come in batches
            if space not in change.vectors:
                lacking.append(place)
    vectors = content_vectors(token, [(changes[place][1].item or {}).get("title") for place in lacking])
    completed = list(changes)
    for place, vector in zip(lacking, vectors):
        offset, change = changes[place]
        if vector.any():
            completed[place] = offset, replace(change, vectors={**change.vectors, space: vector})
    return completed
