"""Finished results in other programs' formats, each read back by something that is not ours."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Annotated, Literal

import fakes
import numpy as np
import pandas as pd
import pytest
import shapely
import slides
from geojson_check import faults
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from results import findings, info, result
from shapely import MultiPolygon

from mitoscan import cli
from mitoscan.cli.results import FormatName
from mitoscan.errors import (
    ConfigError,
    DataError,
    MissingExtraError,
    OutputError,
    SlideNotFoundError,
)
from mitoscan.learn.config import CocoFile
from mitoscan.learn.data import load_amibr
from mitoscan.learn.fields import load_coco
from mitoscan.learn.run import train_from_config
from mitoscan.report.export.common import Options
from mitoscan.report.export.formats import FORMATS, export
from mitoscan.report.rescored import Wanted, rescore_stored, write_rescored
from mitoscan.report.stored import read_result, result_folders
from mitoscan.report.writer import write_slide
from mitoscan.scan.findings import read_findings
from mitoscan.scan.pipeline import scan_slide
from mitoscan.slide.write import write_pyramid
from mitoscan.units import Box, Mpp

MARKS = [(200.0 + 230 * i, 220.0 + 190 * j) for i in range(4) for j in range(3)]


def without_pictures(monkeypatch) -> None:
    """Leave out overview and page: they have tests of their own and take most of the time."""
    monkeypatch.setattr("mitoscan.report.writer.overview", lambda _: Image.new("RGB", (9, 9)))
    monkeypatch.setattr("mitoscan.report.writer.page_bytes", lambda _: b"page")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    without_pictures(monkeypatch)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A reviewed slide with bounds: one figure rejected, one relabelled, one added."""
    slide = info(bounds=Box(500.0, 300.0, 7000.0, 5000.0), mpp=Mpp(0.25, 0.5))
    tissue = MultiPolygon([shapely.box(600, 400, 7400, 5200) - shapely.box(3000, 3000, 3500, 3500)])
    whole = result(findings(60, subtypes=True, mpp=slide.mpp), slide=slide, tissue=tissue)
    folder = write_slide(whole, tmp_path / "out")
    ids = whole.findings[whole.findings["is_mf"]]["id"].tolist()
    review = tmp_path / "review.csv"
    review.write_text(
        f"id,x_l0,y_l0,label,subtype\n{ids[0]},,,not MF,\n{ids[1]},,,AMF,multipolar\n,1000.5,2000,NMF,\n"
    )
    return write_rescored(rescore_stored(read_result(folder), Wanted(review=review)))


@pytest.fixture
def table(folder) -> pd.DataFrame:
    return read_findings(folder / "findings.csv")


def written(folder: Path, name: str, out: Path, **options) -> Path:
    (path,) = export([folder], name, out, Options(**options))
    return path


def test_qupaths_own_python_package_reads_the_geojson(folder, table, tmp_path):
    objects = pytest.importorskip("qubalab.objects", reason="qubalab is not installed")
    figures = table[table["is_mf"]].set_index("id")
    plain = written(folder, "qupath", tmp_path / "a").read_bytes()
    packed = written(folder, "qupath-gz", tmp_path / "a").read_bytes()
    assert gzip.decompress(packed) == plain
    assert faults(json.loads(plain)) == []
    features = objects.geojson_features_from_string(plain.decode())
    read = {f["id"]: objects.ImageFeature.create_from_feature(f) for f in features}
    detections = {i: f for i, f in read.items() if f.object_type == objects.ObjectType.DETECTION}
    assert set(detections) == set(figures.index)
    for name, feature in detections.items():
        row = figures.loc[name]
        assert feature.classification.names == (row["label"],)
        assert feature.measurements.get("p_atypical", np.nan) == pytest.approx(row["p_atypical"], nan_ok=True)
        centre = shapely.geometry.shape(feature.geometry).centroid
        assert (centre.x + 500, centre.y + 300) == pytest.approx((row["x_l0"], row["y_l0"]), abs=0.02)
    uncropped = json.loads(written(folder, "qupath", tmp_path / "b", qupath_crop=False).read_bytes())
    tissue = next(f for f in uncropped["features"] if f["properties"]["classification"]["name"] == "Tissue")
    assert shapely.geometry.shape(tissue["geometry"]).bounds == (600, 400, 7400, 5200)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Point(Strict):
    """As Grand Challenge's schema of "Multiple points" has it, and MIDOG's two names."""

    name: Literal["mitotic figure", "non-mitotic figure"]
    point: Annotated[list[float | int], Field(min_length=3, max_length=3)]
    probability: Annotated[float, Field(ge=0, le=1)] | None = None


class Version(Strict):
    major: Literal[1]
    minor: Literal[0]


class MultiplePoints(Strict):
    name: str
    type: Literal["Multiple points"]
    points: list[Point]
    version: Version


def test_midog_points_are_what_the_challenge_takes_in_mm(folder, table, tmp_path):
    said = MultiplePoints.model_validate_json(written(folder, "midog", tmp_path).read_bytes())
    assert len(said.points) == len(table)
    for point, row in zip(said.points, table.to_dict("records"), strict=True):
        assert point.point == pytest.approx([row["x_l0"] * 0.25e-3, row["y_l0"] * 0.5e-3, 0], abs=2e-5)
        assert (point.name == "mitotic figure") == row["is_mf"]
        assert (point.probability is None) == (row["label_source"] == "added")


def test_midog_coco_is_read_by_the_trainings_loader(folder, table, tmp_path):
    path = written(folder, "coco", tmp_path)
    content = json.loads(path.read_bytes())
    boxes = np.array([a["bbox"] for a in content["annotations"]])
    sizes = boxes[:, 2:] - boxes[:, :2]  # x1, y1, x2, y2: 12.5 µm are 50 by 25 px here
    assert (np.abs(sizes - [50, 25]) <= 1).all()
    assert content["images"] == [{"id": 1, "file_name": "example.svs", "width": 8000, "height": 6000}]
    (tmp_path / "slides").mkdir()
    slides.generic_tiff(
        tmp_path / "slides" / "example.svs", np.full((64, 64, 3), 200, np.uint8), mpp=(0.25, 0.5)
    )
    (field,) = load_coco(CocoFile(file=path.name, images="slides"), tmp_path, 0.25)
    figures = table[table["is_mf"]]
    assert field.figures == pytest.approx(figures[["x_um", "y_um"]].to_numpy() / 0.25, abs=2)
    rejected = table[(table["label_source"] == "reviewer") & ~table["is_mf"]]
    assert field.hard_negatives == pytest.approx(rejected[["x_um", "y_um"]].to_numpy() / 0.25, abs=2)


def test_tiatoolboxs_own_store_reads_the_annotations(folder, table, tmp_path):
    pytest.importorskip("tiatoolbox", reason="the extra tiatoolbox is not installed")
    path = written(folder, "tiatoolbox", tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tiatoolbox.annotation.storage import SQLiteStore

        store = SQLiteStore.open(path)
        read = {key: (a.geometry, a.properties) for key, a in store.items()}
        around = store.query((900, 1900, 1100, 2100), where="props['type'] == 'NMF'")
        del store
    figures = table[table["is_mf"]].set_index("id")
    assert set(figures.index) < set(read)
    for name, row in figures.iterrows():
        geometry, properties = read[name]
        assert (geometry.centroid.x, geometry.centroid.y) == pytest.approx(
            (row["x_l0"], row["y_l0"]), abs=0.02
        )
        assert properties["type"] == row["label"]
        assert properties.get("p_mitosis", np.nan) == pytest.approx(row["p_mitosis"], nan_ok=True)
    assert table[table["label_source"] == "added"]["id"].item() in around
    assert {p["type"] for _, p in read.values()} == {"AMF", "NMF", "Hot spot", "Tissue"}


def test_parquet_is_the_table_and_geoparquet_opens_in_geopandas(folder, table, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra export is not installed")
    bare = write_slide(result(findings(20), slide=info(slide_id="bare")), folder.parent)
    folders = result_folders([folder.parent])
    (path,) = export(folders, "parquet", tmp_path / "p", Options())
    read = parquet.read_table(path).to_pandas()
    assert read["slide_id"].tolist() == ["bare"] * 20 + ["example"] * len(table)
    mine = read[read["slide_id"] == "example"].reset_index(drop=True)
    pd.testing.assert_frame_equal(
        mine[[*table.columns]].astype(table.dtypes.to_dict()), table, check_dtype=False
    )
    assert read[read["slide_id"] == "bare"]["p_ring"].isna().all()
    assert parquet.read_schema(path).field("is_mf").type == "bool"
    geopandas = pytest.importorskip("geopandas", reason="geopandas is not installed")
    (path,) = export([folder], "geoparquet", tmp_path / "p", Options())
    frame = geopandas.read_parquet(path)
    assert frame.crs is None
    assert frame.geometry.x.tolist() == table["x_l0"].tolist()
    assert frame.geometry.y.tolist() == table["y_l0"].tolist()
    assert bare in folders


def dicom_slide(path: Path, width: int, height: int) -> Path:
    """The header of a whole-slide image as a scanner writes it; pixels do not matter here."""
    pydicom = pytest.importorskip("pydicom", reason="the extra export is not installed")
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.VLWholeSlideMicroscopyImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    image = pydicom.dataset.Dataset()
    image.file_meta = meta
    image.SOPClassUID, image.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        setattr(image, name, pydicom.uid.generate_uid())
    image.PatientID, image.PatientName, image.PatientBirthDate, image.PatientSex = "P1", "A^B", "", ""
    image.StudyDate, image.StudyTime, image.StudyID = "20260101", "120000", "1"
    image.AccessionNumber, image.ReferringPhysicianName = "", ""
    image.Modality, image.ImageType = "SM", ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    image.TotalPixelMatrixColumns, image.TotalPixelMatrixRows = width, height
    image.Rows = image.Columns = 256
    image.NumberOfFrames = 1
    image.PositionReferenceIndicator = "SLIDE_CORNER"
    image.SpecimenDescriptionSequence = []
    image.ContainerIdentifier = "C1"
    image.save_as(path, enforce_file_format=True)
    return path


def test_dicom_annotations_are_read_by_pydicom_and_wsidicom(tmp_path):
    pytest.importorskip("highdicom", reason="the extra export is not installed")
    series = tmp_path / "series"
    series.mkdir()
    path = dicom_slide(series / "a.dcm", 8000, 6000)
    whole = result(findings(60), slide=info(path=path, slide_id="a"))
    annotations = written(write_slide(whole, tmp_path / "out"), "dicom", tmp_path / "dicom")
    figures = whole.findings[whole.findings["is_mf"]]

    import pydicom

    raw = pydicom.dcmread(annotations)
    source = pydicom.dcmread(path)
    assert raw.SOPClassUID == pydicom.uid.MicroscopyBulkSimpleAnnotationsStorage
    assert raw.StudyInstanceUID == source.StudyInstanceUID
    assert raw.ReferencedImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert raw.PixelOriginInterpretation == "VOLUME"
    for group in raw.AnnotationGroupSequence:
        mine = figures[figures["label"] == group.AnnotationGroupLabel]
        values = np.frombuffer(group.DoublePointCoordinatesData, np.float64).reshape(-1, 2)
        assert values == pytest.approx(mine[["x_l0", "y_l0"]].to_numpy(), abs=1e-9)
        scores = group.MeasurementsSequence[1].MeasurementValuesSequence[0].FloatingPointValues
        assert np.frombuffer(scores, np.float32) == pytest.approx(mine["p_atypical"].to_numpy(), abs=1e-6)
    assert sum(g.NumberOfAnnotations for g in raw.AnnotationGroupSequence) == len(figures)

    graphical = pytest.importorskip("wsidicom.graphical_annotations", reason="wsidicom is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (opened,) = graphical.AnnotationInstance.open([annotations])
    points = {
        group.label: [(a.geometry.x, a.geometry.y) for a in group.annotations] for group in opened.groups
    }
    for label in ("AMF", "NMF"):
        mine = figures[figures["label"] == label]
        assert np.array(points[label]) == pytest.approx(mine[["x_l0", "y_l0"]].to_numpy(), abs=1e-3)


def test_dicom_is_for_dicom_slides(folder, tmp_path):
    pytest.importorskip("highdicom", reason="the extra export is not installed")
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "example.svs").write_text("no DICOM")
    with pytest.raises(DataError, match="no DICOM image of 8000 x 6000 px"):
        written(folder, "dicom", tmp_path / "d", slides=tmp_path / "slides")
    none = write_slide(result(findings(9, p_mitosis=0.1), slide=info(slide_id="n")), folder.parent)
    dicom_slide(tmp_path / "slides" / "example.svs", 8000, 6000)
    assert export([none], "dicom", tmp_path / "d", Options(slides=tmp_path / "slides")) == []


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    """``slides`` and ``out``: three scanned slides whose figures were all reviewed, every third atypical."""
    top = tmp_path_factory.mktemp("cohort")
    (top / "slides").mkdir()
    review = top / "review.csv"
    with pytest.MonkeyPatch.context() as monkeypatch:
        without_pictures(monkeypatch)
        for number in range(3):
            path = top / "slides" / f"s{number}.svs"
            write_pyramid(path, slides.with_marks(1000, 700, MARKS), 0.25)
            scanned = scan_slide(path, models=fakes.models())
            rows = [
                f"{name},{'AMF,multipolar' if i % 3 == 0 else 'NMF,'}"
                for i, name in enumerate(scanned.findings[scanned.findings["is_mf"]]["id"])
            ]
            review.write_text("\n".join(["id,label,subtype", *rows]))
            stored = read_result(write_slide(scanned, top / "out"))
            write_rescored(rescore_stored(stored, Wanted(review=review)))
    return top


def test_crops_of_a_reviewed_cohort_become_a_training_set(cohort, tmp_path):
    folders = result_folders([cohort / "out"])
    tables = export(folders, "crops", tmp_path / "data", Options(dataset="lab"))
    assert [path.name for path in tables] == ["AMI-BR.csv", "amibr_train_split.csv"]
    crops = load_amibr(tmp_path / "data" / "amf", "train")
    labels = pd.concat(read_findings(folder / "findings.csv").query("is_mf") for folder in folders)
    assert len(crops) == len(labels) == 3 * len(MARKS)
    assert (crops.atypical == (labels["label"] == "AMF").to_numpy()).all()
    assert set(crops.subtype[crops.atypical]) == {5}  # multipolar, as the reviewer said
    assert set(crops.subtype[~crops.atypical]) == {-1}  # she did not say
    assert len(set(crops.slide)) == 3
    for crop in crops.images:  # the figure is in the middle
        assert slides.centroid(crop[16:112, 16:112]) == pytest.approx((48, 48), abs=2.5)
    assert crops.xy == pytest.approx(labels[["x_l0", "y_l0"]].to_numpy(), abs=0.01)
    config = tmp_path / "tiny.yaml"
    values = {"name": "t", "description": "t", "steps": 1, "batch": 4, "learning_rate": 1e-3, "folds": 3}
    values |= {"weight_decay": 0.0, "validate_every": 1, "trained_on": "mine", "validated_on": "mine"}
    config.write_text("train:\n  task: classifier\n" + "".join(f"  {k}: {v}\n" for k, v in values.items()))
    card = train_from_config("classifier", str(config), tmp_path / "data", tmp_path / "model")
    assert card.task == "classifier"


def test_crops_of_moved_changed_or_unreviewed_slides(cohort, tmp_path):
    folder = Path(shutil.copytree(cohort / "out" / "s0", tmp_path / "out" / "s0"))
    record = folder / "record.json"
    record.write_text(record.read_text().replace(str(cohort), "/gone"))
    with pytest.raises(SlideNotFoundError, match="--slides"):
        export([folder], "crops", tmp_path / "a", Options())
    assert export([folder], "crops", tmp_path / "a", Options(slides=cohort))
    write_pyramid(tmp_path / "s0.svs", slides.with_marks(1000, 700, MARKS[:3]), 0.25)
    with pytest.raises(SlideNotFoundError, match="its content differs"):
        export([folder], "crops", tmp_path / "b", Options(slides=tmp_path))
    write_rescored(rescore_stored(read_result(folder), Wanted(forget_review=True)))
    with pytest.raises(DataError, match="label from a reviewer"):
        export([folder], "crops", tmp_path / "c", Options(slides=cohort))
    export([folder], "crops", tmp_path / "c", Options(slides=cohort, unreviewed=True))
    assert len(load_amibr(tmp_path / "c" / "amf", "train")) == len(MARKS)
    with pytest.raises(ConfigError, match="cannot be called"):
        export([folder], "crops", tmp_path / "d", Options(dataset="../x"))


def test_files_that_are_there_stay_and_twins_are_refused(folder, tmp_path):
    written(folder, "midog", tmp_path / "x")
    with pytest.raises(OutputError, match="is there already"):
        written(folder, "midog", tmp_path / "x")
    written(folder, "midog", tmp_path / "x", overwrite=True)
    shutil.copytree(folder, tmp_path / "other" / "example")
    with pytest.raises(ConfigError, match="two slides are called example"):
        export([folder, tmp_path / "other" / "example"], "coco", tmp_path / "y", Options())


@pytest.mark.parametrize(
    ("name", "library", "extra"),
    [
        ("parquet", "pyarrow", "export"),
        ("dicom", "highdicom", "export"),
        ("tiatoolbox", "tiatoolbox", "tiatoolbox"),
    ],
)
def test_a_missing_library_is_named_with_the_command(folder, tmp_path, monkeypatch, name, library, extra):
    for module in [m for m in sys.modules if m.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)
    (tmp_path / "example.svs").touch()
    with pytest.raises(MissingExtraError) as caught:
        written(folder, name, tmp_path / "z", slides=tmp_path)
    assert f'pip install "mitoscan[{extra}]"' in caught.value.remedy


def test_the_command_knows_every_format_and_says_what_it_wrote(folder, tmp_path, monkeypatch, capsys):
    assert {f.value for f in FormatName} == set(FORMATS)
    arguments = ["mitoscan", "export", str(folder.parent), "--format", "midog", "-o", str(tmp_path / "e")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert (stop.value.code or 0) == 0
    assert str(tmp_path / "e" / "example.json") in capsys.readouterr().out
