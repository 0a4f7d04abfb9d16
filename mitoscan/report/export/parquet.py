"""The findings of all slides as one Parquet file, plain or as GeoParquet; the only importer of pyarrow."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable

import pandas as pd
import shapely

from mitoscan.errors import MissingExtraError
from mitoscan.scan.findings import REVIEW_COLUMNS, SUBTYPE_COLUMNS, columns
from mitoscan.scan.result import SlideResult

GEOPARQUET_VERSION = "1.1.0"


def parquet_bytes(results: Iterable[SlideResult], *, geometry: bool = False) -> bytes:
    """Give the findings of slides, one below the other, with ``slide_id``, ``mpp_x`` and ``mpp_y`` in front.

    Columns are those of findings.csv. Subtype and review columns are there when any slide has them, null for
    slides that do not.

    Parameters
    ----------
    results
        The slides.
    geometry
        GeoParquet: a column ``geometry`` of points (WKB) in level-0 px, without a reference system.

    Raises
    ------
    MissingExtraError
        When pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as exc:
        raise MissingExtraError(
            "Parquet needs pyarrow, which is not installed",
            remedy='Install it: pip install "mitoscan[export]".',
        ) from exc
    table = _table([_with_slide(result) for result in results])
    metadata = {}
    if geometry:
        points = shapely.points(table["x_l0"].to_numpy(float), table["y_l0"].to_numpy(float))
        table["geometry"] = shapely.to_wkb(points)
        metadata[b"geo"] = json.dumps(_geo(table)).encode()
    arrow = pa.Table.from_pandas(table, schema=_schema(pa, table), preserve_index=False)
    stream = io.BytesIO()
    parquet.write_table(arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), **metadata}), stream)
    return stream.getvalue()


def _with_slide(result: SlideResult) -> pd.DataFrame:
    mpp = result.info.known_mpp()
    table = result.findings.copy()
    table.insert(0, "slide_id", result.summary.slide_id)
    table.insert(1, "mpp_x", mpp.x)
    table.insert(2, "mpp_y", mpp.y)
    return table


def _table(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Stack the tables; a column that a slide does not have is null there."""
    present = {name for table in tables for name in table.columns}
    stacked = {}
    for name in _kinds(SUBTYPE_COLUMNS[0] in present, next(iter(REVIEW_COLUMNS)) in present):
        values: list[object] = []
        for table in tables:
            values += table[name].tolist() if name in table else [None] * len(table)
        stacked[name] = pd.Series(values, dtype=object)
    return pd.DataFrame(stacked)


def _kinds(subtypes: bool, reviewed: bool) -> dict[str, str]:
    return {"slide_id": "str", "mpp_x": "float64", "mpp_y": "float64", **columns(subtypes, reviewed)}


def _schema(pa, table: pd.DataFrame):  # type: ignore[no-untyped-def]  # pyarrow has no types
    kinds = _kinds(subtypes=True, reviewed=True) | {"geometry": "wkb"}
    types = {"str": pa.string(), "float64": pa.float64(), "bool": pa.bool_(), "wkb": pa.binary()}
    return pa.schema([(name, types[kinds[name]]) for name in table.columns])


def _geo(table: pd.DataFrame) -> dict[str, object]:
    column: dict[str, object] = {"encoding": "WKB", "geometry_types": ["Point"], "crs": None}
    if len(table):
        x, y = table["x_l0"], table["y_l0"]
        column["bbox"] = [float(v) for v in (x.min(), y.min(), x.max(), y.max())]
    return {"version": GEOPARQUET_VERSION, "primary_column": "geometry", "columns": {"geometry": column}}
