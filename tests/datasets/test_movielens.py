from pathlib import Path

import pytest

from recsys.catalog.items import Catalog
from recsys.datasets.sources import read_dataset
from recsys.errors import DataError
from recsys.events.validation import validate

DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.parametrize(
    ("name", "folder", "ratings", "users", "movies"),
    [
        ("movielens-100k", "ml-100k", 100_000, 943, 1682),
        ("movielens-latest-small", "ml-latest-small", 100_836, 610, 9742),
    ],
)
def test_public_data(name, folder, ratings, users, movies):
    if not (DATA / folder).exists():
        pytest.skip(f"{DATA / folder} is not here")
    dataset = read_dataset(name, DATA / folder)
    valid, rejected = validate(dataset.events, now=1_795_000_000)
    assert (len(valid), len(rejected), len(dataset.items)) == (ratings, 0, movies)
    assert len(valid["user_id"].unique()) == users
    assert len(valid["event_id"].unique()) == ratings
    catalog = Catalog.build(dataset.items)
    assert (catalog.rows_of(valid["item_id"]) >= 0).all()
    assert catalog.primary_categories[catalog.rows_of(["1"])[0]] in ("Animation", "Adventure")


def test_the_original_layout_of_100k(tmp_path):
    (tmp_path / "u.data").write_text("1\t2\t5\t881250949\n")
    flags = "|".join("1" if n in (1, 16) else "0" for n in range(19))
    (tmp_path / "u.item").write_bytes(f"2|Amélie (2001)|01-Jan-2001||http://x|{flags}\n".encode("latin-1"))
    dataset = read_dataset("movielens-100k", tmp_path)
    assert dataset.events.select(["user_id", "item_id", "value", "event_type"]).to_pylist() == [
        {"user_id": "1", "item_id": "2", "value": 5.0, "event_type": "rating"}
    ]
    item = dataset.items.to_pylist()[0]
    assert (item["title"], item["categories"]) == ("Amélie (2001)", ["Action", "Thriller"])


def test_errors_have_a_remedy(tmp_path):
    with pytest.raises(DataError, match=r"neither ml-100k\.inter nor u\.data"):
        read_dataset("movielens-100k", tmp_path)
    with pytest.raises(DataError, match="not shipped"):
        read_dataset("movielens-100k")
    with pytest.raises(DataError, match=r"no ratings\.csv"):
        read_dataset("movielens-latest-small", tmp_path)
    with pytest.raises(DataError, match="no data set 'netflix'; known: online-retail"):
        read_dataset("netflix")
