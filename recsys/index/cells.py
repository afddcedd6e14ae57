"""The cells of an inverted file, for inner products of vectors of unlike lengths.

FAISS forms cells by direction alone. But of factors that carry popularity in their length, the nearest
to most queries are the long ones: of 41,000 factors trained on gowalla it had to look through 5,100 to
find 98 % of the 200 nearest, and 1,000 suffice. So k-means sees (x, LENGTH |x|), on a sample drawn in
proportion to |x| (norm ranging, Yan et al. 2018), and cells are visited by what their best item may
score: q . centroid + DEVIATIONS times the deviation of q . x within the cell (after the ball bound of
Ram and Gray 2012). Where all vectors are of one length that is ordinary k-means.

Both are part of the FAISS index itself: its coarse quantizer appends 1 to the query and a cell's bonus to
its centroid, so that whoever opens the file searches at FAISS's own speed.
"""

from collections.abc import Iterator

import faiss
import numpy as np

from recsys.index.vectors import Block

LENGTH = 3.0
DEVIATIONS = 3.0
SAMPLE = 64  # vectors for each cell that k-means sees
ITERATIONS = 10


class Cells:
    """`count` cells of D dimensions, and what was assigned to them so far."""

    def __init__(self, sample: np.ndarray, *, count: int, seed: int) -> None:
        """`sample` float32 [n, D], n >= count."""
        kmeans = faiss.Kmeans(
            sample.shape[1] + 1,
            count,
            niter=ITERATIONS,
            seed=seed,
            min_points_per_centroid=1,
            max_points_per_centroid=max(SAMPLE, -(-len(sample) // count)),
        )
        kmeans.train(_lengthened(sample))
        self.count = count
        self._by_length = faiss.IndexFlatL2(sample.shape[1] + 1)
        self._by_length.add(kmeans.centroids)
        self.centroids = np.ascontiguousarray(kmeans.centroids[:, :-1])
        self._squares = np.zeros(count)
        self._members = np.zeros(count)

    def nearest(self, vectors: np.ndarray) -> np.ndarray:
        """The cell of each vector float32 [n, D], int64 [n]."""
        return self._by_length.search(_lengthened(vectors), 1)[1].ravel()

    def assign(self, vectors: np.ndarray) -> np.ndarray:
        """The same; the vectors count as members of their cells from now on."""
        cell = self.nearest(vectors)
        away = vectors - self.centroids[cell]
        self._squares += np.bincount(cell, np.einsum("nd,nd->n", away, away), self.count)
        self._members += np.bincount(cell, minlength=self.count)
        return cell

    def bonus(self, query_length: float) -> np.ndarray:
        """By how much the best item of each cell may beat its centroid, float32 [count]."""
        dimensions = self.centroids.shape[1]
        deviation = np.sqrt(self._squares / np.maximum(self._members, 1) / dimensions)
        return (DEVIATIONS * query_length * deviation).astype(np.float32)

    def quantizer(self, bonus: np.ndarray) -> faiss.Index:
        """Finds the cells to visit: inner product with the centroid, plus `bonus` float32 [count]."""
        dimensions = self.centroids.shape[1]
        append = faiss.LinearTransform(dimensions, dimensions + 1, True)
        matrix = np.eye(dimensions + 1, dimensions, dtype=np.float32)
        faiss.copy_array_to_vector(matrix.ravel(), append.A)
        faiss.copy_array_to_vector(np.eye(dimensions + 1, dtype=np.float32)[-1], append.b)
        append.is_trained = True
        flat = faiss.IndexFlatIP(dimensions + 1)
        flat.add(np.hstack([self.centroids, bonus[:, None]]))
        whole = faiss.IndexPreTransform(append, flat)
        whole.metric_type = faiss.METRIC_INNER_PRODUCT
        whole.own_fields = True
        for part in (append, flat):
            part.this.disown()
        return whole


def sample_by_length(blocks: Iterator[Block], *, count: int, seed: int) -> np.ndarray:
    """`count` vectors, or all if there are fewer, float32 [n, D]; a vector's chance is in proportion to its
    length. One pass (Efraimidis and Spirakis 2006)."""
    random = np.random.default_rng(seed)
    kept: np.ndarray | None = None
    keys = np.zeros(0)
    for _, vectors in blocks:
        keys = np.append(keys, np.log(random.random(len(vectors))) / np.linalg.norm(vectors, axis=1))
        kept = vectors if kept is None else np.concatenate([kept, vectors])
        if len(keys) > count:
            best = np.argpartition(-keys, count)[:count]
            best.sort()  # as they came, so that nothing hangs on the partition's order
            keys, kept = keys[best], kept[best]
    return np.zeros((0, 0), np.float32) if kept is None else np.ascontiguousarray(kept, np.float32)


def _lengthened(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(np.hstack([vectors, LENGTH * length]), np.float32)
