"""Figures of the published studies, to stand beside ours; all trained on AMi-Br's training part only."""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """Balanced accuracy and AUROC, mean of five folds, on the three test sets."""

    model: str
    amibr: tuple[float, float]
    atnorm_br: tuple[float, float]
    atnorm_md: tuple[float, float]


BENCHMARK = (
    Published("EfficientNetV2-M", (0.7474, 0.8315), (0.7283, 0.8110), (0.6975, 0.7604)),
    Published("ViT-L/16", (0.7899, 0.8872), (0.7788, 0.8710), (0.7494, 0.8720)),
    Published("Swin-B", (0.8052, 0.9029), (0.7752, 0.8683), (0.7723, 0.8806)),
    Published("UNI, linear probe", (0.6339, 0.6949), (0.6406, 0.7028), (0.5510, 0.5892)),
    Published("Virchow2, linear probe", (0.6089, 0.6637), (0.6236, 0.6795), (0.5694, 0.6046)),
    Published("H-Optimus-0, linear probe", (0.6319, 0.6801), (0.6369, 0.7090), (0.5821, 0.6142)),
    Published("UNI, LoRA", (0.7952, 0.8839), (0.7183, 0.7979), (0.7069, 0.8222)),
    Published("UNI2-h, LoRA", (0.7138, 0.8153), (0.7301, 0.8228), (0.6914, 0.7616)),
    Published("Virchow, LoRA", (0.7878, 0.8891), (0.7696, 0.8540), (0.7705, 0.8641)),
    Published("Virchow2, LoRA", (0.8135, 0.9026), (0.7632, 0.8579), (0.7424, 0.8503)),
    Published("Prov-GigaPath, LoRA", (0.7602, 0.8682), (0.7263, 0.8077), (0.7007, 0.8073)),
    Published("H-Optimus-0, LoRA", (0.7846, 0.8721), (0.7044, 0.7921), (0.6549, 0.7879)),
    Published("H-Optimus-1, LoRA", (0.7762, 0.8611), (0.7658, 0.8524), (0.7396, 0.8389)),
)
"""Banerjee et al., the AMi-Br / AtNorM benchmark."""

SUBTYPE_AUC = {
    "prometaphase": 0.9526,
    "metaphase": 0.9382,
    "anaphase_telophase": 0.8985,
    "ring": 0.8747,
    "bipolar_asymmetric": 0.5483,
    "multipolar": 0.9436,
    "segregation": 0.8240,
    "other": 0.8922,
}
"""One-vs-rest AUC of the eight-subtype study's ConvNeXt ensemble; mean .8590."""
