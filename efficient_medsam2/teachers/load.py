"""Load a teacher from a checkpoint, whatever its format and architecture."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Sam2VideoModel

from efficient_medsam2.checkpoints import (
    NETWORK_SIZES,
    TeacherKind,
    check_record,
    checkpoint_sha256,
    locate_checkpoint,
)
from efficient_medsam2.errors import NetworkConfigError
from efficient_medsam2.networks.hiera import Sam2Size, official_config
from efficient_medsam2.networks.model_folder import load_runner
from efficient_medsam2.networks.options import RunnerOptions
from efficient_medsam2.networks.runner import SliceRunner
from efficient_medsam2.teachers.checkpoint_file import read_state_dict
from efficient_medsam2.teachers.official import from_official
from efficient_medsam2.teachers.official_check import check_official
from efficient_medsam2.teachers.protocol import SliceTeacher
from efficient_medsam2.teachers.sam2 import Sam2Teacher

__all__ = ["Teacher", "load_teacher"]

_FETCH_AGAIN = {
    "medsam2": "Fetch MedSAM2_latest.pt: efficient-medsam2 models pull medsam2",
    "sam2.1": "Fetch a checkpoint of SAM 2.1: efficient-medsam2 models list names them",
}


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A loaded teacher.

    Attributes:
        model: the network behind the teachers' protocol, in ``eval`` mode on the CPU.
        name: its kind.
        weights_sha256: digest of the checkpoint's bytes.
        settings: image size, widths and switches (JSON values): what changes the teacher's answers
            besides its weights.
    """

    model: SliceTeacher
    name: TeacherKind
    weights_sha256: str
    settings: dict[str, Any]

    @property
    def runner(self) -> SliceRunner:
        """The runner of a teacher that propagates objects."""
        runner = self.model.tracker
        assert runner is not None, f"{self.name} has no memory: ask model.tracker first"
        return runner


def load_teacher(
    kind: TeacherKind,
    checkpoint: Path | None,
    *,
    size: Sam2Size | None = None,
    image_size: int | None = None,
) -> Teacher:
    """Load a teacher.

    Args:
        kind: ``scratch``: a model folder made by ``train teacher`` (by default the shipped one);
            ``medsam2``: the official file, size t at 512; ``sam2.1``: an official file of any
            size; ``medsam``: the official SAM 1 file of MedSAM.
        checkpoint: the model folder or file.
        size: of a ``sam2.1`` or ``medsam2`` file; None: told from the file.
        image_size: S, for ``sam2.1``: any multiple of 64; None: what the network was trained at.

    Raises:
        WeightsError: it is missing, damaged, of another size or of another architecture.
        NetworkConfigError: the kind has no such size or image size.
    """
    path = locate_checkpoint(kind, checkpoint)
    _check_sizes(kind, size, image_size)
    weights_sha256 = checkpoint_sha256(kind, checkpoint)
    settings: dict[str, Any]
    if kind != "scratch":
        check_record(path, weights_sha256)
    if kind == "medsam":
        from efficient_medsam2.teachers.medsam import load_medsam

        model: SliceTeacher = load_medsam(path)
        settings = {"image_size": model.image_size}
    elif kind == "scratch":
        model = Sam2Teacher(load_runner(path))
        settings = _settings(model.runner)
    else:
        said: Sam2Size | None = "t" if kind == "medsam2" else size
        runner, found = _load_official(path, kind, said, image_size or NETWORK_SIZES[kind])
        model = Sam2Teacher(runner)
        settings = {"size": found, **_settings(runner)}
    return Teacher(model=model, name=kind, weights_sha256=weights_sha256, settings=settings)


def _check_sizes(kind: TeacherKind, size: Sam2Size | None, image_size: int | None) -> None:
    """Refuse a size or an image size that a kind does not have.

    Raises:
        NetworkConfigError: names the setting.
    """
    own = NETWORK_SIZES.get(kind)
    if kind != "sam2.1" and image_size not in (None, own):
        what = f"is {own} for kind {kind}" if own else "belongs to the network of kind scratch"
        raise NetworkConfigError(
            f"teacher.image_size={image_size}: it {what}; leave it out, or take "
            "teacher.kind=sam2.1, which runs SAM 2.1 and MedSAM2 checkpoints at any multiple of 64"
        )
    fitting = {"sam2.1": (None, "t", "s", "b+", "l"), "medsam2": (None, "t")}.get(kind, (None,))
    if size not in fitting:
        raise NetworkConfigError(
            f"teacher.size={size}: kind {kind} has no such size; sizes belong to "
            "teacher.kind=sam2.1"
        )


def _settings(runner: SliceRunner) -> dict[str, Any]:
    config, options = runner.config, runner.options
    return {
        "image_size": int(config.image_size),
        "hidden_size": int(config.memory_attention_hidden_size),
        "memory_layers": int(config.memory_attention_num_layers),
        "memory_slices": int(config.num_maskmem),
        "fill_box": options.fill_box,
        "binarise_prompted_mask": options.binarise_prompted_mask,
        "dynamic_multimask": options.dynamic_multimask,
        "fixed_num_frames": options.fixed_num_frames,
    }


def _load_official(
    path: Path, kind: TeacherKind, size: Sam2Size | None, image_size: int
) -> tuple[SliceRunner, Sam2Size]:
    """An official file as ``SAM2Base`` runs it, and its size.

    The file is mapped, so its numbers are in memory once: in the network.
    """
    mend = _FETCH_AGAIN[kind]
    state = read_state_dict(path, mend=mend)
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    found = check_official(shapes, path=path, kind=kind, size=size, mend=mend)
    with torch.random.fork_rng(devices=[]):
        model = Sam2VideoModel(official_config(found, image_size))
    model.load_state_dict(from_official(state))
    return SliceRunner(model.eval(), RunnerOptions()), found
