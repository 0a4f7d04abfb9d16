"""Find mitotic figures in H&E whole-slide images and tell atypical from normal ones.

The public interface::

    scan_slide(path, config) -> SlideResult
    load_detector(name_or_folder=None, device="auto")    .detect(image, mpp)    .threshold
    load_classifier(name_or_folder=None, device="auto")  .predict(crops)  .predict_subtypes(crops)  .threshold
    ScanConfig, SlideResult, MitoscanError

Names are imported at first use, so that ``import mitoscan`` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mitoscan.config import ScanConfig
    from mitoscan.errors import MitoscanError
    from mitoscan.scan.classify import Classifier, load_classifier
    from mitoscan.scan.detect import Detector, load_detector
    from mitoscan.scan.pipeline import scan_slide
    from mitoscan.scan.result import SlideResult

__version__ = "0.1.0"

__all__ = [
    "Classifier",
    "Detector",
    "MitoscanError",
    "ScanConfig",
    "SlideResult",
    "__version__",
    "load_classifier",
    "load_detector",
    "scan_slide",
]

_HOME = {
    "Classifier": "scan.classify",
    "Detector": "scan.detect",
    "MitoscanError": "errors",
    "ScanConfig": "config",
    "SlideResult": "scan.result",
    "load_classifier": "scan.classify",
    "load_detector": "scan.detect",
    "scan_slide": "scan.pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mitoscan' has no attribute {name!r}")
    return getattr(import_module(f"mitoscan.{_HOME[name]}"), name)
