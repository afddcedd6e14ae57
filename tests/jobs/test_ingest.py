"""What the ingest job keeps of one's own file."""

import pyarrow.parquet as pq

from jobs.ingest import read
from jobs.workspace import Workspace
from recsys.settings import Settings


def test_an_item_that_only_rejected_rows_name_gets_no_row(tmp_path):
    """Rows of the catalog are for ever: a broken id or a row of the year 1500 stayed in it."""
    (tmp_path / "own.csv").write_text(
        "u,i,t\n,ghost,1500-01-01\nu1,good,2024-01-02\nu1,bad\x01id,2024-01-02\n"
    )
    settings = Settings(workdir=str(tmp_path / "work"))
    figures = read(settings, path=str(tmp_path / "own.csv"), map="user=u,item=i,time=t,type==view")
    assert figures["events"] == 3
    items = pq.read_table(Workspace(settings).folder / "data" / "items.parquet")
    assert items["item_id"].to_pylist() == ["good"]
