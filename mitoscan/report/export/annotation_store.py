"""tiatoolbox's AnnotationStore (.db), which TIAViz shows over the slide; the other importer of tiatoolbox.

The outlines and properties are those of the GeoJSON, in level-0 px of the whole slide; ``type`` is what
TIAViz colours by.
"""

from __future__ import annotations

import logging
import sqlite3
import tempfile
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

from shapely.geometry import shape

from mitoscan.errors import MissingExtraError
from mitoscan.report.export.common import in_frame
from mitoscan.report.geojson import feature_collection
from mitoscan.scan.result import SlideResult


def store_bytes(result: SlideResult) -> bytes:
    """Give the SQLite file of a slide.

    Raises
    ------
    MissingExtraError
        When tiatoolbox is not installed.
    """
    store_class, annotation = _import_store()
    annotations, keys = [], []
    for feature in feature_collection(in_frame(result, qupath_crop=False))["features"]:
        properties = feature["properties"]
        said = {
            "type": properties["classification"]["name"],
            "name": properties["name"],
            **properties["measurements"],
            **properties["metadata"],
        }
        annotations.append(annotation(shape(feature["geometry"]), said))
        keys.append(feature["id"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.db"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            store = store_class(path)
            store.append_many(annotations, keys)
            store.commit()
            del store  # its destructor closes it; after a close by hand that would open it again
        return path.read_bytes()


def _import_store() -> tuple[Any, Any]:
    """Import the store; tiatoolbox sets up the root logger and warns on import, which is undone here."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from tiatoolbox.annotation.storage import Annotation, SQLiteStore
    except ImportError as exc:
        raise MissingExtraError(
            "an AnnotationStore needs tiatoolbox, which is not installed",
            remedy='Install it: pip install "mitoscan[tiatoolbox]".',
        ) from exc
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    if not hasattr(sqlite3.Connection, "enable_load_extension"):
        SQLiteStore.compile_options = staticmethod(_compile_options)
    return SQLiteStore, Annotation


def _compile_options() -> list[str]:
    """Stand in for tiatoolbox's own, which switches on SQLite's extensions first.

    It has no need of them, and many Pythons are built without.
    """
    with closing(sqlite3.connect(":memory:")) as connection:
        return [name for (name,) in connection.execute("pragma compile_options")]
