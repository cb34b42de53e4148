"""Load a teacher from a checkpoint, whatever its format, as a slice runner."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Sam2VideoModel

from efficient_medsam2.checkpoints import TeacherKind, checkpoint_sha256, locate_checkpoint
from efficient_medsam2.errors import WeightsError
from efficient_medsam2.networks.hiera import official_config
from efficient_medsam2.networks.model_folder import load_runner
from efficient_medsam2.networks.runner import RunnerOptions, SliceRunner
from efficient_medsam2.teachers.official import from_official

__all__ = ["Teacher", "load_teacher"]


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A loaded teacher.

    Attributes:
        runner: in ``eval`` mode on the CPU.
        name: its kind.
        weights_sha256: digest of the checkpoint's bytes.
        settings: image size, widths and switches (JSON values).
    """

    runner: SliceRunner
    name: TeacherKind
    weights_sha256: str
    settings: dict[str, Any]


def load_teacher(kind: TeacherKind, checkpoint: Path | None) -> Teacher:
    """Load a teacher.

    Args:
        kind: ``scratch`` is a model folder made by ``train teacher`` (by default the shipped
            one); ``medsam2`` the official checkpoint.
        checkpoint: the model folder or file.

    Raises:
        WeightsError: it is missing, damaged or of another architecture.
    """
    path = locate_checkpoint(kind, checkpoint)
    runner = load_runner(path) if kind == "scratch" else _load_official(path)
    config = runner.config
    settings = {
        "image_size": int(config.image_size),
        "hidden_size": int(config.memory_attention_hidden_size),
        "memory_layers": int(config.memory_attention_num_layers),
        "memory_slices": int(config.num_maskmem),
        "fill_box": runner.options.fill_box,
        "binarise_prompted_mask": runner.options.binarise_prompted_mask,
        "dynamic_multimask": runner.options.dynamic_multimask,
    }
    return Teacher(
        runner=runner,
        name=kind,
        weights_sha256=checkpoint_sha256(kind, checkpoint),
        settings=settings,
    )


def _load_official(path: Path) -> SliceRunner:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(f"{path}: not a readable torch checkpoint: {error}") from error
    state: dict[str, Tensor] = content.get("model", content)
    with torch.random.fork_rng(devices=[]):
        model = Sam2VideoModel(official_config())
    result = model.load_state_dict(from_official(state), strict=False)
    if result.missing_keys or result.unexpected_keys:
        missing = result.missing_keys[:1] or ["none"]
        unexpected = result.unexpected_keys[:1] or ["none"]
        raise WeightsError(
            f"{path}: not a SAM 2.1 Hiera-Tiny checkpoint in the official naming; first missing "
            f"key {missing[0]}, first unexpected key {unexpected[0]}. Was it saved from another "
            "model, or is it of another size?"
        )
    return SliceRunner(model.eval(), RunnerOptions())
