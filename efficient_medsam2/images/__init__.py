"""Medical images: finding, reading, splitting, preparing and writing back."""

from efficient_medsam2.images.case import MODALITIES, Case, CaseFormat, Modality, Provenance
from efficient_medsam2.images.find import DEFAULT_PATIENT_PATTERN, find_cases
from efficient_medsam2.images.intensity import CT_WINDOWS_HU, CtWindow, IntensityConfig, to_uint8
from efficient_medsam2.images.preprocess import (
    PIXEL_MEAN,
    PIXEL_STD,
    Squash,
    logits_to_mask,
    squash_labels,
    squash_slices,
    to_network_input,
)
from efficient_medsam2.images.source import CaseList, CaseSource, LabelNeed, Skipped, Split
from efficient_medsam2.images.splits import SplitReport, assign_splits
from efficient_medsam2.images.write import write_label

__all__ = [
    "CT_WINDOWS_HU",
    "DEFAULT_PATIENT_PATTERN",
    "MODALITIES",
    "PIXEL_MEAN",
    "PIXEL_STD",
    "Case",
    "CaseFormat",
    "CaseList",
    "CaseSource",
    "CtWindow",
    "IntensityConfig",
    "LabelNeed",
    "Modality",
    "Provenance",
    "Skipped",
    "Split",
    "SplitReport",
    "Squash",
    "assign_splits",
    "find_cases",
    "logits_to_mask",
    "squash_labels",
    "squash_slices",
    "to_network_input",
    "to_uint8",
    "write_label",
]
