"""Adjacency lists: a folder with train.txt and test.txt, a line "user item item ...".

The form of the collaborative filtering benchmarks (NGCF, LightGCN: Gowalla, Yelp2018, Amazon-book).
The order carries no meaning. Users and items are those of both files: who stands in test.txt only is
a user without a history, what stands there only an item that nothing taught. A line without items and
several lines of one user are allowed. A target that the user has in train.txt stays a target and is
masked, so it counts as missed, as those benchmarks count it.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from recsys.datasets.lines import encode, read_id_lines
from recsys.datasets.problem import Problem, judge_users
from recsys.errors import DataError
from recsys.interactions import interactions_from_pairs

LINE = "'user item item ...' between spaces"
FILES = ("train.txt", "test.txt")


def read_adjacency(folder: str | Path, *, repeats: bool = False) -> Problem:
    """The split that the files give; training items are ranked if `repeats`. Raises DataError."""
    train, test = (read_id_lines(Path(folder) / name, expected=LINE, head=True) for name in FILES)
    users, user_ids = encode(train.heads, test.heads)
    items, item_ids = encode(train.tails, test.tails)
    if not len(items[0]):
        raise DataError(f"{train.path} has no item on any line; expected {LINE}")
    log = interactions_from_pairs(
        np.repeat(users[0], train.counts - 1), items[0], users=len(user_ids), items=len(item_ids)
    )
    log = replace(log, user_ids=user_ids, repeats=repeats)
    return Problem(log, judge_users(log, user=np.repeat(users[1], test.counts - 1), item=items[1]))
