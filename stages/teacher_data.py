"""The real volumes of a small teacher's training, and those that judge it."""

from efficient_medsam2.synthetic.mni152 import STRUCTURES, mni152_volumes
from efficient_medsam2.synthetic.record import Split
from stages.training.windows import LabelledVolume

__all__ = ["KINDS", "real_volumes"]


def _kind_name(structure: str) -> str:
    return structure.removesuffix("-left").removesuffix("-right")


KINDS = {
    name: number
    for number, name in enumerate(dict.fromkeys(map(_kind_name, STRUCTURES.values())), start=1)
}
"""Kinds of structure of the MNI152 slabs, sides merged, from 1."""


def real_volumes(split: Split) -> list[LabelledVolume]:
    """The MNI152 slabs of a split.

    Raises:
        MissingExtraError: nilearn is not installed.
    """
    kinds = {label: KINDS[_kind_name(name)] for label, name in STRUCTURES.items()}
    return [
        LabelledVolume(image=slab.image, label=slab.label, kinds=kinds)
        for slab in mni152_volumes(label_sets=("structures",))
        if slab.split == split
    ]
