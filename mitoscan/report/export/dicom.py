"""DICOM Microscopy Bulk Simple Annotations of a DICOM slide; the only importer of highdicom and pydicom.

An annotation object refers to the image that it lies on, so only slides that are DICOM themselves have one.
The figures are points in px of the Total Pixel Matrix of that image, which is level 0; (0, 0) is the outer
corner of its first pixel (PS3.3 C.18.6.1.2), as everywhere here. A group a label and origin (models or
reviewer). DICOM has no codes for atypical figures: they are coded in the private scheme ``99MITOSCAN``.
"""

from __future__ import annotations

import io
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mitoscan import __version__
from mitoscan.errors import DataError, MissingExtraError
from mitoscan.report.tables import findings_bytes
from mitoscan.scan.findings import AMF, BY_MODEL, NMF
from mitoscan.scan.result import SlideResult

SCHEME = "99MITOSCAN"
_MEANINGS = {AMF: "Atypical mitotic figure", NMF: "Normal mitotic figure"}
_MEASURED = {"p_mitosis": "Detector score, 0 to 1", "p_atypical": "Classifier score, 0 to 1"}


def annotations_bytes(result: SlideResult, slide: Path) -> bytes | None:
    """Give the annotation object of a slide's mitotic figures; None without any: it cannot be empty.

    Parameters
    ----------
    result
        The slide's result.
    slide
        The DICOM file, or the folder of the series.

    Raises
    ------
    DataError
        When the slide is no DICOM image of the scan's size.
    MissingExtraError
        When highdicom is not installed.
    """
    hd = _import_highdicom()
    if not result.findings["is_mf"].any():
        return None
    source = _source_image(slide, result)
    unique = uuid.uuid5(uuid.UUID(result.identity.uuid_of("dicom")), findings_bytes(result.findings).hex())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # highdicom passes on pydicom's doubts about the source's values
        dataset = hd.ann.MicroscopyBulkSimpleAnnotations(
            source_images=[source],
            annotation_coordinate_type=hd.ann.AnnotationCoordinateTypeValues.SCOORD,
            annotation_groups=list(_groups(hd, result, unique)),
            series_instance_uid=_uid(unique, "series"),
            series_number=1,
            sop_instance_uid=_uid(unique, "instance"),
            instance_number=1,
            manufacturer="mitoscan",
            manufacturer_model_name="mitoscan",
            software_versions=__version__,
            device_serial_number=f"{result.summary.detector_sha256}-{result.summary.classifier_sha256}",
            content_description="Mitotic figures, for research use",
            content_label="MITOTIC_FIGURES",
        )
        stream = io.BytesIO()
        dataset.save_as(stream)
    return stream.getvalue()


def _groups(hd: Any, result: SlideResult, unique: uuid.UUID) -> Iterator[Any]:
    from pydicom.sr.codedict import codes

    figures = result.findings[result.findings["is_mf"]]
    by_model = figures.get("label_source", pd.Series(BY_MODEL, figures.index)) == BY_MODEL
    models = f"{result.detector.name} + {result.classifier.name}"
    algorithm = hd.AlgorithmIdentificationSequence(
        name=f"mitoscan: {models}"[:64], family=codes.DCM.ArtificialIntelligence, version=__version__
    )
    number = 0
    for label, meaning in _MEANINGS.items():
        for automatic in (True, False):
            chosen = figures[(figures["label"] == label) & (by_model == automatic)]
            if chosen.empty:
                continue
            number += 1
            yield hd.ann.AnnotationGroup(
                number=number,
                uid=_uid(unique, f"group {number}"),
                label=label if automatic else f"{label}, reviewed",
                annotated_property_category=codes.SCT.MorphologicallyAbnormalStructure,
                annotated_property_type=hd.sr.CodedConcept(label, SCHEME, meaning),
                graphic_type=hd.ann.GraphicTypeValues.POINT,
                graphic_data=[np.array([[x, y]]) for x, y in chosen[["x_l0", "y_l0"]].to_numpy(np.float64)],
                algorithm_type=hd.ann.AnnotationGroupGenerationTypeValues(
                    "AUTOMATIC" if automatic else "MANUAL"
                ),
                algorithm_identification=algorithm if automatic else None,
                measurements=list(_measurements(hd, chosen)),
            )


def _measurements(hd: Any, figures: pd.DataFrame) -> Iterator[Any]:
    from pydicom.sr.codedict import codes

    for name, meaning in _MEASURED.items():
        values = figures[name].to_numpy(np.float32)
        if np.isfinite(values).any():
            yield hd.ann.Measurements(
                name=hd.sr.CodedConcept(name.upper(), SCHEME, meaning),
                values=values,
                unit=codes.UCUM.NoUnits,
            )


def _source_image(slide: Path, result: SlideResult) -> Any:
    """Read the header of the instance that is level 0."""
    import pydicom

    files = [slide] if slide.is_file() else []
    files += sorted(p for p in (slide if slide.is_dir() else slide.parent).glob("*") if p.is_file())
    wanted, series = (result.info.width_l0, result.info.height_l0), None
    for path in files:
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True)
        except (pydicom.errors.InvalidDicomError, OSError):
            if path == slide:
                break
            continue
        series = series or header.get("SeriesInstanceUID")
        size = header.get("TotalPixelMatrixColumns"), header.get("TotalPixelMatrixRows")
        if size == wanted and header.get("SeriesInstanceUID") == series:
            return header
    raise DataError(
        f"no DICOM image of {wanted[0]} x {wanted[1]} px, and DICOM annotations need the image they lie on",
        path=slide,
        remedy="Choose another --format for slides that are not DICOM.",
    )


def _uid(unique: uuid.UUID, what: str) -> str:
    return f"2.25.{uuid.uuid5(unique, what).int}"


def _import_highdicom() -> Any:
    try:
        import highdicom
        import highdicom.ann
    except ImportError as exc:
        raise MissingExtraError(
            "DICOM annotations need highdicom, which is not installed",
            remedy='Install it: pip install "mitoscan[export]".',
        ) from exc
    return highdicom
