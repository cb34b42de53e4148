"""Is a state dict one of SAM 2.1 in the official naming? If not, what is it likely to be?"""

from collections.abc import Mapping
from pathlib import Path

from efficient_medsam2.errors import WeightsError
from efficient_medsam2.networks.hiera import Sam2Size
from efficient_medsam2.teachers.official_export import official_shapes, size_of_shapes

__all__ = ["check_official"]

_NEW_IN_21 = ("no_obj_embed_spatial", "obj_ptr_tpos_proj.weight", "obj_ptr_tpos_proj.bias")
"""What SAM 2.1 has and the first SAM 2 has not (``sam2_hiera_*.yaml``)."""

Shapes = Mapping[str, tuple[int, ...]]


def check_official(
    shapes: Shapes, *, path: Path, kind: str, size: Sam2Size | None, mend: str
) -> Sam2Size:
    """Compare every name and shape with those of the official network.

    Args:
        shapes: official name → shape of each tensor of the checkpoint.
        path: the file, for the message.
        kind: the teacher's kind, for the message.
        size: what the user says it is of; None: whatever it is.
        mend: what the user can do about a bad file; ends the message.

    Returns:
        Its size.

    Raises:
        WeightsError: it lacks a tensor, has one too many or one of another shape, or is of
            another size; names the first of each and the likely cause.
    """
    found = size_of_shapes(shapes)
    wanted = official_shapes(size or found or "t")
    missing = [name for name in wanted if name not in shapes]
    unexpected = [name for name in shapes if name not in wanted]
    reshaped = [name for name in wanted if name in shapes and shapes[name] != wanted[name]]
    if not missing and not unexpected and not reshaped and found is not None:
        return found
    what = f"not a SAM 2.1 checkpoint of size {size or found or 't'} in the official naming"
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing keys, the first {missing[0]}")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected keys, the first {unexpected[0]}")
    if reshaped:
        name = reshaped[0]
        parts.append(f"{name} has shape {shapes[name]} instead of {wanted[name]}")
    cause = _likely_cause(shapes, kind=kind, size=size, found=found, missing=missing)
    raise WeightsError(f"{path}: {what}: {'; '.join(parts)}. Likely cause: {cause}. {mend}")


def _likely_cause(
    shapes: Shapes,
    *,
    kind: str,
    size: Sam2Size | None,
    found: Sam2Size | None,
    missing: list[str],
) -> str:
    """One sentence on what the file seems to be."""
    if missing and set(missing) <= set(_NEW_IN_21):
        return (
            "it is of the first SAM 2, which lacks what SAM 2.1 added: take "
            "the sam2.1_hiera_*.pt of the same size"
        )
    if found is not None and size is not None and found != size:
        if kind == "medsam2":
            return (
                f"it is SAM 2.1 of size {found}, and MedSAM2 is of size t: "
                f"--set teacher.kind=sam2.1 --set teacher.size={found}"
            )
        return f"it is of size {found}: --set teacher.size={found}"
    if found is not None:
        return "some of its tensors were changed, added or left out after SAM 2.1 was trained"
    return _by_names(shapes)


def _by_names(shapes: Shapes) -> str:
    """What other networks and training frameworks call their tensors."""
    for prefix in ("module.", "_orig_mod.", "model.", "net.", "sam."):
        if shapes and all(name.startswith(prefix) for name in shapes):
            return (
                f'every name begins with "{prefix}", as a training wrapper writes them: save the '
                f'state dict without it as {{"model": ...}}'
            )
    stem = shapes.get("image_encoder.trunk.patch_embed.proj.weight")
    signs = (
        (
            "image_encoder.patch_embed.proj.weight" in shapes,
            "it is a SAM 1 checkpoint, such as MedSAM: --set teacher.kind=medsam",
        ),
        (
            stem is not None and stem[-1] == 16,
            "it is an EfficientTAM checkpoint (a plain ViT as image encoder), which is not "
            "supported as a teacher",
        ),
        (
            any(name.startswith("image_encoder.trunk.body.") for name in shapes)
            or any(name.startswith("spatial_perceiver.") for name in shapes),
            "it is an EdgeTAM checkpoint, which is not supported as a teacher",
        ),
        (
            any(name.startswith("vision_encoder.") for name in shapes),
            "it is in the naming of transformers: take the official .pt file instead, or "
            "--set teacher.kind=scratch where it is a model folder",
        ),
        (
            stem is not None and stem[-1] == 7,
            "it is a Hiera network of another width or depth than SAM 2.1's",
        ),
    )
    return next((cause for holds, cause in signs if holds), "it is another network altogether")
