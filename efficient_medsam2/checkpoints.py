"""Where a teacher's checkpoint lies and what its bytes are, without loading a network."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from efficient_medsam2.errors import WeightsError

__all__ = [
    "KNOWN_MODELS",
    "NETWORK_SIZES",
    "SHIPPED_TEACHER",
    "KnownModel",
    "TeacherKind",
    "check_record",
    "checkpoint_sha256",
    "known_model",
    "locate_checkpoint",
    "record_path",
]

TeacherKind = Literal["scratch", "medsam2", "sam2.1", "medsam"]

NETWORK_SIZES: dict[TeacherKind, int] = {"medsam2": 512, "sam2.1": 1024, "medsam": 1024}
"""Input side in pixels that each published network was trained at."""

SHIPPED_TEACHER = Path(__file__).resolve().parent / "weights" / "demo_teacher"
"""Model folder of the small teacher that comes with the package."""


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A published checkpoint.

    Attributes:
        name: what ``models pull`` calls it.
        kind: ``teacher.kind`` that loads it.
        size: ``teacher.size``, where the kind has several.
        what: one line for the user.
        file: its name.
        repository: on the Hugging Face hub; None where the hub does not have it in this format.
        page: where a person finds it.
        megabytes: about, in 10^6 bytes.
    """

    name: str
    kind: TeacherKind
    size: str | None
    what: str
    file: str
    repository: str | None
    page: str
    megabytes: int


def _medsam2(name: str, file: str, what: str) -> KnownModel:
    repository = "wanglab/MedSAM2"
    return KnownModel(
        name=name,
        kind="medsam2",
        size="t",
        what=what,
        file=file,
        repository=repository,
        page=f"https://huggingface.co/{repository}",
        megabytes=156,
    )


def _sam21(size: str, word: str, megabytes: int) -> KnownModel:
    repository = f"facebook/sam2.1-hiera-{word}"
    return KnownModel(
        name=f"sam2.1-{word}",
        kind="sam2.1",
        size=size,
        what=f"SAM 2.1, natural images and video, size {size}",
        file=f"sam2.1_hiera_{word.replace('-', '_')}.pt",
        repository=repository,
        page=f"https://huggingface.co/{repository}",
        megabytes=megabytes,
    )


KNOWN_MODELS: tuple[KnownModel, ...] = (
    _medsam2("medsam2", "MedSAM2_latest.pt", "MedSAM2, the recommended teacher"),
    _medsam2("medsam2-2411", "MedSAM2_2411.pt", "MedSAM2 of November 2024"),
    _medsam2("medsam2-ct-lesion", "MedSAM2_CTLesion.pt", "MedSAM2 for lesions in CT"),
    _medsam2(
        "medsam2-mri-liver-lesion",
        "MedSAM2_MRI_LiverLesion.pt",
        "MedSAM2 for lesions of the liver in MR",
    ),
    _medsam2("medsam2-us-heart", "MedSAM2_US_Heart.pt", "MedSAM2 for ultrasound of the heart"),
    _sam21("t", "tiny", 156),
    _sam21("s", "small", 184),
    _sam21("b+", "base-plus", 324),
    _sam21("l", "large", 898),
    KnownModel(
        name="medsam",
        kind="medsam",
        size=None,
        what="MedSAM, SAM 1 ViT-B: single slices, no tracks",
        file="medsam_vit_b.pth",
        repository=None,
        page="https://zenodo.org/records/10689643",
        megabytes=375,
    ),
)
"""Checkpoints that this package loads, the first of a kind and size being its default."""


def known_model(kind: TeacherKind, size: str | None) -> KnownModel | None:
    """The default checkpoint of a kind; None where the kind has none or needs a size."""
    for model in KNOWN_MODELS:
        if model.kind == kind and (size or model.size) == model.size:
            return None if kind == "sam2.1" and size is None else model
    return None


def locate_checkpoint(kind: TeacherKind, checkpoint: Path | None) -> Path:
    """The model folder (``scratch``) or file (all others) of a teacher.

    Raises:
        WeightsError: it is not there; says how to get it.
    """
    if kind == "scratch":
        folder = checkpoint or SHIPPED_TEACHER
        if not (folder / "model.safetensors").is_file():
            raise WeightsError(
                f"teacher.checkpoint: {folder} is no model folder (no model.safetensors). Train "
                "one: efficient-medsam2 train teacher -c configs/demo_teacher.yaml, then "
                "--set teacher.checkpoint=runs/demo_teacher/teacher/model"
            )
        return folder
    if checkpoint is None or not checkpoint.is_file():
        if checkpoint is None:
            where = "is not set, and none was pulled"
        elif checkpoint.is_dir():
            where = f"{checkpoint} is a folder, not a file"
        else:
            where = f"{checkpoint} does not exist"
        raise WeightsError(f"teacher.checkpoint {where}: {_how_to_get(kind)}")
    return checkpoint


def _how_to_get(kind: TeacherKind) -> str:
    models = [model for model in KNOWN_MODELS if model.kind == kind]
    names = " or ".join(dict.fromkeys(model.file for model in models if model.kind != "medsam2"))
    names = names or models[0].file
    size = " with --set teacher.size=SIZE" if kind == "sam2.1" else ""
    return (
        f"teacher.kind={kind} needs {names} ({models[0].page}). Fetch it: efficient-medsam2 "
        f"models pull {models[0].name}; such a file is found by itself{size}; any other by "
        "--set teacher.checkpoint=FILE"
    )


def checkpoint_sha256(kind: TeacherKind, checkpoint: Path | None) -> str:
    """SHA-256 of the weights' bytes, in hex: the identity of a teacher.

    Raises:
        WeightsError: the checkpoint is not there.
    """
    path = locate_checkpoint(kind, checkpoint)
    with (path / "model.safetensors" if kind == "scratch" else path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_path(path: Path) -> Path:
    """The record of a pulled file, beside it: where it came from and its SHA-256 (JSON)."""
    return path.with_name(path.name + ".json")


def check_record(path: Path, sha256: str) -> None:
    """Compare a checkpoint's digest with what was recorded when it was pulled, if it was.

    Raises:
        WeightsError: its bytes have changed since, or the record cannot be read.
    """
    record = record_path(path)
    if not record.is_file():
        return
    try:
        recorded = str(json.loads(record.read_text(encoding="utf-8"))["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{record}: the record of a pulled checkpoint is damaged: {error!r}. Pull it again: "
            "efficient-medsam2 models list names it"
        ) from error
    if recorded != sha256:
        raise WeightsError(
            f"{path}: its SHA-256 is {sha256[:12]}..., but {recorded[:12]}... was recorded when "
            "it was pulled: it has changed since. Pull it again: efficient-medsam2 models list "
            "names it"
        )
