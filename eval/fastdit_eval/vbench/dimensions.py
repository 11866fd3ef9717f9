"""The dimensions of VBench and VBench-2.0: groups, published normalisation and weights, and what each one needs.

Figures are those of VBench's leaderboard script (constants of 2024, unchanged since).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One official dimension.

    Args:
        group: `"quality"` or `"semantic"`.
        low: Score that counts as 0.
        high: Score that counts as 1.
        weight: Weight inside its group.
        networks: Files below VBench's cache folder; `torch:` ones below `$TORCH_HOME/hub`. Empty: runs without weights.
        modules: What the official code imports besides torch, for this dimension.
        custom: Whether `custom_input` accepts it.
    """

    group: str
    low: float = 0.0
    high: float = 1.0
    weight: float = 1.0
    networks: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    custom: bool = True


_GRIT = ("grit_model/grit_b_densecap_objectdet.pth",)
_CLIP_B, _CLIP_L = "clip_model/ViT-B-32.pt", "clip_model/ViT-L-14.pt"
_VICLIP = ("ViCLIP/ViClip-InternVid-10M-FLT.pth",)
# The hub entry ignores the path it is given and looks here.
_DINO = ("dino_model/facebookresearch_dino_main/hubconf.py", "torch:checkpoints/dino_vitbase16_pretrain.pth")
_AESTHETIC = "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth"


def _semantic(
    high: float = 1.0, low: float = 0.0, networks: tuple[str, ...] = _GRIT, modules: tuple[str, ...] = ("detectron2",)
) -> Dimension:
    custom = networks == _VICLIP or modules == ("timm",)
    return Dimension(group="semantic", low=low, high=high, networks=networks, modules=modules, custom=custom)


DIMENSIONS: dict[str, Dimension] = {
    "subject_consistency": Dimension(group="quality", low=0.1462, networks=_DINO),
    "background_consistency": Dimension(group="quality", low=0.2615, networks=(_CLIP_B,), modules=("clip",)),
    "temporal_flickering": Dimension(group="quality", low=0.6293, modules=("cv2",)),
    "motion_smoothness": Dimension(
        group="quality", low=0.706, high=0.9975, networks=("amt_model/amt-s.pth",), modules=("cv2", "omegaconf")
    ),
    "dynamic_degree": Dimension(
        group="quality", weight=0.5, networks=("raft_model/models/raft-things.pth",), modules=("cv2", "easydict")
    ),
    "aesthetic_quality": Dimension(group="quality", networks=(_CLIP_L, _AESTHETIC), modules=("clip",)),
    "imaging_quality": Dimension(
        group="quality", networks=("pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",), modules=("pyiqa",)
    ),
    "object_class": _semantic(),
    "multiple_objects": _semantic(),
    "human_action": _semantic(networks=("umt_model/l16_ptk710_ftk710_ftk400_f16_res224.pth",), modules=("timm",)),
    "color": _semantic(),
    "spatial_relationship": _semantic(),
    "scene": _semantic(0.8222, networks=("caption_model/tag2text_swin_14m.pth",), modules=("timm", "fairscale")),
    "appearance_style": _semantic(0.2855, 0.0009, networks=(_CLIP_B,), modules=("clip",)),
    "temporal_style": _semantic(0.364, networks=_VICLIP, modules=("clip",)),
    "overall_consistency": _semantic(0.364, networks=_VICLIP, modules=("clip",)),
}
QUALITY_WEIGHT, SEMANTIC_WEIGHT = 4.0, 1.0
# The plain mean that Sparse VideoGen 2 calls its VBench score.
MEAN5 = (
    "subject_consistency",
    "background_consistency",
    "motion_smoothness",
    "aesthetic_quality",
    "imaging_quality",
)
FLICKER = "temporal_flickering"
# SHA-256 (or its first digits) of weights whose publishers put it into the name or the address.
KNOWN_SHA256 = {
    _CLIP_B: "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    _CLIP_L: "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
    "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth": "358bb6af",
}
DIVERSITY = "Diversity"
# VBench-2.0: a group's score is the mean of its dimensions, the total the mean of the groups; nothing is normalised.
GROUPS_2: dict[str, tuple[str, ...]] = {
    "creativity": ("Composition", DIVERSITY),
    "commonsense": ("Instance_Preservation", "Motion_Rationality"),
    "controllability": (
        "Camera_Motion",
        "Complex_Landscape",
        "Complex_Plot",
        "Dynamic_Attribute",
        "Dynamic_Spatial_Relationship",
        "Human_Interaction",
        "Motion_Order_Understanding",
    ),
    "human_fidelity": ("Human_Anatomy", "Human_Clothes", "Human_Identity"),
    "physics": ("Material", "Mechanics", "Multi-View_Consistency", "Thermotics"),
}
