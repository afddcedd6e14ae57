"""UCI Online Retail: invoice lines as purchases, and the items sold.

Both published headers are read (`InvoiceNo`/`Invoice`, ...), as CSV or Parquet. Times have no zone and
are taken as UTC. A line's event id is the hash of invoice, stock code and occurrence in the invoice:
the file has 5,231 identical lines that are not duplicates. Customer 0 or none is null, and lines
without customer, quantity or price stay: the validators reject them with a reason.

Items are those with at least one valid sale (a customer, quantity and price above 0), others are
omitted; published at that first sale, priced at the median unit price, titled by the last description
that is not empty. The file has no categories: `features.text` derives them from the titles.
"""

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from recsys.catalog.schema import conform_items
from recsys.datasets.tables import Dataset, read_table
from recsys.errors import DataError
from recsys.events.schema import CONTEXT, EVENT_SCHEMA, hashed_ids, ids_from, occurrences
from recsys.events.times import parse_times

SHIPPED = Path(__file__).parent / "files" / "online_retail.parquet"

_HEADERS = {  # ours -> published names
    "invoice": ("InvoiceNo", "Invoice"),
    "code": ("StockCode",),
    "description": ("Description",),
    "quantity": ("Quantity",),
    "time": ("InvoiceDate",),
    "price": ("UnitPrice", "Price"),
    "customer": ("CustomerID", "Customer ID"),
    "country": ("Country",),
}


def read_online_retail(path: str | Path | None = None) -> Dataset:
    """The shipped year, or a user's file. Raises DataError naming missing columns and those found."""
    path = Path(path or SHIPPED)
    lines = _lines(_read(path), path)
    return Dataset(events=_events(lines), items=_items(lines))


def _read(path: Path) -> pa.Table:
    try:
        return read_table(path)
    except DataError as error:
        if "UTF8" not in str(error) and "UTF-8" not in str(error):
            raise
        return read_table(path, encoding="latin-1")  # the CSV of 2011 has pound signs in Latin-1


def _lines(table: pa.Table, path: Path) -> pa.Table:
    """The lines under our names: text, float64 and time columns."""
    found = {
        ours: next((n for n in names if n in table.column_names), None) for ours, names in _HEADERS.items()
    }
    missing = [" or ".join(_HEADERS[ours]) for ours, name in found.items() if name is None]
    if missing:
        raise DataError(
            f"{path} lacks {', '.join(missing)} (it has {', '.join(table.column_names)}): "
            "rename its columns, or ingest it with --map"
        )
    columns = {ours: table[name] for ours, name in found.items()}
    for name in ("quantity", "price", "customer"):
        try:
            number = columns[name].cast(pa.float64())
            columns[name] = pc.if_else(pc.is_nan(number), pa.scalar(None, pa.float64()), number)
        except pa.ArrowInvalid as error:
            raise DataError(f"{path}, column {found[name]}: {error}; correct that value") from error
    customer = columns["customer"]
    columns["customer"] = ids_from(pc.if_else(pc.equal(customer, 0), pa.scalar(None, pa.float64()), customer))
    columns["time"] = parse_times(columns["time"], where=f"{path}, column {found['time']}")
    columns["code"] = pc.utf8_upper(pc.utf8_trim_whitespace(columns["code"].cast(pa.string())))
    columns["invoice"] = ids_from(columns["invoice"])
    for name in ("description", "country"):
        columns[name] = pc.utf8_trim_whitespace(columns[name].cast(pa.string()))
    return pa.table(columns)


def _events(lines: pa.Table) -> pa.Table:
    key = pc.binary_join_element_wise(
        pc.fill_null(lines["invoice"], ""), pc.fill_null(lines["code"], ""), "\x1f"
    )
    number = pa.array(occurrences(key)).cast(pa.string())
    texts = pc.binary_join_element_wise(key, pa.chunked_array([number]), "\x1f").to_pylist()
    country = lines["country"].combine_chunks()
    context = [country if f.name == "country" else pa.nulls(len(lines), f.type) for f in CONTEXT]
    columns = {
        "event_id": hashed_ids(texts),
        "user_id": lines["customer"],
        "item_id": lines["code"],
        "event_type": pa.array(np.full(len(lines), "purchase", object), pa.string()),
        "timestamp": lines["time"],
        "value": pc.multiply(lines["quantity"], lines["price"]),
        "currency": pa.array(np.full(len(lines), "GBP", object), pa.string()),
        "quantity": pc.round(lines["quantity"]).cast(pa.int32()),
        "order_id": lines["invoice"],
        "context": pa.StructArray.from_arrays(context, fields=list(CONTEXT)),
        "attributes": pa.nulls(len(lines), EVENT_SCHEMA.field("attributes").type),
    }
    return pa.table(columns, schema=EVENT_SCHEMA)


def _items(lines: pa.Table) -> pa.Table:
    valid = (
        pl.col("customer").is_not_null()
        & (pl.col("quantity") > 0)
        & (pl.col("price") > 0)
        & pl.col("time").is_not_null()
        & (pl.col("code") != "")
    )
    sold = (
        pl.DataFrame(lines.select(["code", "description", "quantity", "time", "price", "customer"]))
        .filter(valid)
        .sort("time", maintain_order=True)
        .group_by("code", maintain_order=True)
        .agg(
            title=pl.col("description").filter(pl.col("description") != "").last(),
            price=pl.col("price").median(),
            published_at=pl.col("time").first(),
        )
        .rename({"code": "item_id"})
    )
    return conform_items(sold.to_arrow())
