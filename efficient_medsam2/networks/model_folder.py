"""A model on disk: ``config.json`` + ``model.safetensors`` + ``runner.json`` in one folder.

The first two are transformers' own layout, so ``Sam2VideoModel.from_pretrained`` reads the folder
without this package; ``runner.json`` keeps the deployment switches and where the model came from.
A SAM 1 network (MedSAM) is a folder of the kind ``medsam``, which ``SamModel`` reads.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from transformers import Sam2VideoConfig, Sam2VideoModel, SamConfig, SamModel

from efficient_medsam2.errors import WeightsError
from efficient_medsam2.networks.options import RunnerOptions
from efficient_medsam2.networks.runner import SliceRunner
from efficient_medsam2.networks.sam1 import PromptedNetwork, Sam1Runner

__all__ = [
    "MODEL_FILES",
    "ModelKind",
    "load_network",
    "load_runner",
    "load_weights",
    "read_kind",
    "read_model_config",
    "read_sam1_config",
    "save_model",
]

ModelKind = Literal["sam2", "medsam"]
"""``sam2``: teachers and students of SAM 2's shape; ``medsam``: SAM 1."""

MODEL_FILES = ("config.json", "model.safetensors", "runner.json")
"""The files of a model folder."""

_MEND = "Rerun the stage that makes it: efficient-medsam2 status -c CONFIG names it"


def save_model(
    runner: PromptedNetwork,
    folder: Path,
    *,
    origin: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
) -> tuple[str, ...]:
    """Write a model folder; each file appears whole or not at all.

    Args:
        runner: the network and its switches.
        folder: created where it is missing.
        origin: how the model was made (JSON values), kept in ``runner.json``.
        dtype: of the stored weights.

    Returns:
        The names of the files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: (value.detach().to("cpu", dtype) if value.is_floating_point() else value.cpu())
        .contiguous()
        .clone()
        for name, value in runner.model.state_dict().items()
    }
    weights = folder / "model.safetensors.tmp"
    weights.write_bytes(save(state, metadata={"format": "pt"}))
    weights.replace(folder / "model.safetensors")
    _write_json(folder / "config.json", runner.config.to_dict())
    own: dict[str, Any] = (
        {"kind": "medsam"}
        if isinstance(runner, Sam1Runner)
        else {"options": asdict(runner.options)}
    )
    _write_json(folder / "runner.json", own | {"origin": dict(origin)})
    return MODEL_FILES


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    partial = path.with_suffix(".json.tmp")
    partial.write_text(json.dumps(value, indent=2, sort_keys=True, default=str) + "\n")
    partial.replace(path)


def _read_runner_json(folder: Path) -> dict[str, Any]:
    """What ``runner.json`` says, of a folder that has all of its files.

    Raises:
        WeightsError: a file of the folder is missing or not readable.
    """
    for name in MODEL_FILES:
        if not (folder / name).is_file():
            raise WeightsError(f"{folder} is no model folder: {name} is missing. {_MEND}")
    try:
        return dict(json.loads((folder / "runner.json").read_text()))
    except (ValueError, TypeError) as error:
        raise _damaged(folder, error) from error


def _damaged(folder: Path, error: Exception) -> WeightsError:
    return WeightsError(f"{folder}: its configuration is damaged: {error!r}. {_MEND}")


def read_kind(folder: Path) -> ModelKind:
    """Which sort of network a model folder holds.

    Raises:
        WeightsError: a file of the folder is missing or not readable.
    """
    return "medsam" if _read_runner_json(folder).get("kind") == "medsam" else "sam2"


def read_sam1_config(folder: Path) -> SamConfig:
    """Configuration of a model folder of the kind ``medsam``.

    Raises:
        WeightsError: a file is missing or not readable, or it is of another kind.
    """
    if read_kind(folder) != "medsam":
        raise WeightsError(f"{folder} holds no SAM 1 network. {_MEND}")
    try:
        return SamConfig.from_dict(json.loads((folder / "config.json").read_text()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, error) from error


def read_model_config(folder: Path) -> tuple[Sam2VideoConfig, RunnerOptions, dict[str, Any]]:
    """Configuration, switches and origin of a model folder.

    Raises:
        WeightsError: a file of the folder is missing or not readable, or it holds MedSAM.
    """
    runner = _read_runner_json(folder)
    if runner.get("kind") == "medsam":
        raise WeightsError(
            f"{folder} holds MedSAM (SAM 1), which has no memory: it segments single slices and "
            "follows nothing. Use a student, or a SAM 2 teacher: --set teacher.kind=medsam2"
        )
    try:
        options, origin = RunnerOptions(**runner["options"]), dict(runner["origin"])
        config = Sam2VideoConfig.from_dict(json.loads((folder / "config.json").read_text()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, error) from error
    return config, options, origin


def load_weights(folder: Path, *, without: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """The state dict of a model folder, in float32 on the CPU.

    Args:
        folder: of the model.
        without: beginnings of names that are not read.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    path = folder / "model.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in list(file.keys()) if not name.startswith(without)]
            state = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} cannot be read: {error}. {_MEND}") from error
    return {
        name: value.float() if value.is_floating_point() else value for name, value in state.items()
    }


def load_runner(folder: Path) -> SliceRunner:
    """A model folder → a runner in ``eval`` mode on the CPU.

    Raises:
        WeightsError: the folder is incomplete, its weights are of another architecture, or it
            holds MedSAM, which has no memory.
    """
    config, options, _ = read_model_config(folder)
    with torch.random.fork_rng(devices=[]):
        model = Sam2VideoModel(config)
    _load(model, folder)
    return SliceRunner(model.eval(), options)


def load_network(folder: Path) -> PromptedNetwork:
    """A model folder of either kind → a network in ``eval`` mode on the CPU.

    Raises:
        WeightsError: the folder is incomplete or its weights are of another architecture.
    """
    if read_kind(folder) == "sam2":
        return load_runner(folder)
    config = read_sam1_config(folder)
    with torch.random.fork_rng(devices=[]):
        model = SamModel(config)
    _load(model, folder)
    return Sam1Runner(model.eval())


def _load(model: nn.Module, folder: Path) -> None:
    try:
        model.load_state_dict(load_weights(folder))
    except RuntimeError as error:
        raise WeightsError(
            f"{folder}: weights and configuration disagree: {error}. {_MEND}"
        ) from error
