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
from efficient_medsam2.networks.options import RunnerOptions
from efficient_medsam2.networks.runner import SliceRunner
from efficient_medsam2.teachers.official import from_official

__all__ = ["Teacher", "load_teacher"]

_FETCH_AGAIN = (
    "Fetch MedSAM2_latest.pt (huggingface.co/wanglab/MedSAM2); then "
    "--set teacher.checkpoint=MedSAM2_latest.pt"
)


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A loaded teacher.

    Attributes:
        runner: in ``eval`` mode on the CPU.
        name: its kind.
        weights_sha256: digest of the checkpoint's bytes.
        settings: image size, widths and switches (JSON values): what changes the teacher's answers
            besides its weights.
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
        "fixed_num_frames": runner.options.fixed_num_frames,
    }
    return Teacher(
        runner=runner,
        name=kind,
        weights_sha256=checkpoint_sha256(kind, checkpoint),
        settings=settings,
    )


def _load_official(path: Path) -> SliceRunner:
    """MedSAM2's file, ``{"model": state dict}`` or the bare state dict, as ``SAM2Base`` runs it."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(
            f"{path}: not a readable torch checkpoint: {error}. {_FETCH_AGAIN}"
        ) from error
    state = _state_dict(content, path)
    with torch.random.fork_rng(devices=[]):
        model = Sam2VideoModel(official_config())
    given, wanted = from_official(state), model.state_dict()
    missing = next((name for name in wanted if name not in given), None)
    unexpected = next((name for name in given if name not in wanted), None)
    if missing or unexpected:
        raise WeightsError(
            f"{path}: not a SAM 2.1 Hiera-Tiny checkpoint in the official naming; first missing "
            f"key {missing}, first unexpected key {unexpected} (transformers' names). Was it "
            f"saved from another model, or is it of another size? {_FETCH_AGAIN}"
        )
    for name, value in wanted.items():
        if given[name].shape != value.shape:
            raise WeightsError(
                f"{path}: not a SAM 2.1 Hiera-Tiny checkpoint: {name} has shape "
                f"{tuple(given[name].shape)} instead of {tuple(value.shape)}. {_FETCH_AGAIN}"
            )
    model.load_state_dict(given)
    return SliceRunner(model.eval(), RunnerOptions())


def _state_dict(content: object, path: Path) -> dict[str, Tensor]:
    """The named tensors in what a checkpoint file holds."""
    state = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise WeightsError(
            f'{path}: holds no state dict, neither bare nor under "model". {_FETCH_AGAIN}'
        )
    return state
