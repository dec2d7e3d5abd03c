"""Galileo (arXiv 2502.09356)."""

from __future__ import annotations

from geopeft.models.registry import TRANSFORMER_ADAPTERS, BackboneCard, CardBand, WeightsSource

# Mean and standard deviation of the pre-training data, reflectance x 10 000 (config/normalization.json, key "13").
GALILEO_BANDS = (
    CardBand("B02", "blue", 0.493, 1395.3408730676722, 917.7041440370853),
    CardBand("B03", "green", 0.560, 1338.4026921784578, 913.2988423581528),
    CardBand("B04", "red", 0.665, 1343.09883810357, 1092.678723527555),
    CardBand("B05", "rededge1", 0.704, 1543.8607982512297, 1047.2206083460424),
    CardBand("B06", "rededge2", 0.740, 2186.2022069512263, 1048.0101611156767),
    CardBand("B07", "rededge3", 0.783, 2525.0932853316694, 1143.6903026819996),
    CardBand("B08", "nir", 0.842, 2410.3377187373408, 1098.979177731649),
    CardBand("B8A", "nir08", 0.865, 2750.2854646886753, 1204.472755085893),
    CardBand("B11", "swir16", 1.610, 2234.911100061487, 1145.9774063078878),
    CardBand("B12", "swir22", 2.190, 1474.5311266077113, 980.2429840007796),
)


def _galileo(
    size: str, dim: int, depth: int, heads: int, parameters_m: float, revision: str, sha256: str = ""
) -> BackboneCard:
    return BackboneCard(
        name=f"galileo_{size}",
        title=f"Galileo {size}: Sentinel-2 and similar multispectral scenes, 10 to 30 m",
        builder="geopeft.models.backbones.galileo:build",
        licence="MIT",
        paper="https://arxiv.org/abs/2502.09356",
        bands=GALILEO_BANDS,
        unit="reflectance10000",
        normalize="mean2std",
        patch_size_px=4,
        chip_size_px=32,
        gsd_m=(5.0, 40.0),
        parameters_m=parameters_m,
        weights=WeightsSource(
            file="encoder.pt",
            sha256=sha256,
            repo="nasaharvest/galileo",
            revision=revision,
            path=f"models/{size}/encoder.pt",
        ),
        adapters=TRANSFORMER_ADAPTERS,
        metadata=("time",),
        frames=24,
        options={"dim": dim, "depth": depth, "heads": heads, "patch_size_px": 4, "month": 6},
    )


ROWS = (
    # The revisions are those that torchgeo pins. Of tiny and base no checksum has been published, so they are
    # taken from the user's folder only.
    _galileo(
        "nano",
        128,
        4,
        8,
        1.04,
        "0bbc53293a37dea7d563566f015c5527bdaf3793",  # pragma: allowlist secret
        "eab6acacf527886a508a555bc24efe4b4a2cf91b162e84cd1c4a1807e942180c",  # pragma: allowlist secret
    ),
    _galileo("tiny", 192, 12, 3, 5.7, "87d646dd7b63f14d9610694d87f8dc7b5912a6df"),  # pragma: allowlist secret
    _galileo("base", 768, 12, 12, 86.5, "f039dd5dde966a931baeda47eb680fa89b253e4e"),  # pragma: allowlist secret
)
