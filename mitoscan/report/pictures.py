"""pictures.zip: what the page of a slide shows of its pixels, so that it can be made again without the slide.

``slide.jpg`` is the thumbnail, ``crops/<finding id>.jpg`` are the pictures of ``scan.gallery``. Nothing is
compressed twice (ZIP_STORED), and the same result gives the same bytes.
"""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from mitoscan.errors import DataError
from mitoscan.scan.gallery import jpeg
from mitoscan.scan.result import SlideResult

PICTURES_NAME = "pictures.zip"

_SLIDE = "slide.jpg"
_CROP = re.compile(r"crops/([0-9a-fA-F-]{1,64})\.jpg")
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest date that a zip can hold."""
_THUMBNAIL_QUALITY = 88
_MAX_MEMBER_BYTES = 64 * 2**20
"""No picture of ours is near this; a file that claims more is not ours."""

Thumbnail = npt.NDArray[np.uint8]


def pictures_bytes(result: SlideResult) -> bytes:
    """Give pictures.zip."""
    members = {_SLIDE: jpeg(result.thumbnail, _THUMBNAIL_QUALITY)}
    members |= {f"crops/{name}.jpg": data for name, data in result.crops.items()}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data)
    return stream.getvalue()


def read_pictures(path: Path) -> tuple[Thumbnail, dict[str, bytes]]:
    """Read pictures.zip back.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    thumbnail
        uint8 (height, width, 3), the whole slide.
    crops
        Finding id → JPEG, 64 µm about it, in the order written.

    Raises
    ------
    DataError
        When the file is missing or is not such an archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            thumbnail = np.array(Image.open(io.BytesIO(_member(archive, _SLIDE))).convert("RGB"))
            names = [match for match in map(_CROP.fullmatch, archive.namelist()) if match]
            return thumbnail, {match[1]: _member(archive, match[0]) for match in names}
    except (
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        zipfile.BadZipFile,
        Image.DecompressionBombError,
    ) as exc:
        raise DataError(
            f"not readable as the pictures of a slide: {exc}",
            path=path,
            remedy="Run mitoscan again with --overwrite to rewrite it.",
        ) from exc


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > _MAX_MEMBER_BYTES:
        raise ValueError(f"{name} is too large")
    return archive.read(name)
