"""A checkpoint file → its named tensors, told by content and not by suffix.

Read are torch's zip and its older pickle format (``weights_only=True``: no code of the file runs)
and safetensors, holding ``{"model": state dict}`` or the bare state dict. Zip files are mapped
into memory, not copied, and so are safetensors: a tensor costs memory when it is used.
"""

import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from efficient_medsam2.errors import WeightsError

__all__ = ["read_state_dict"]

_HEAD_BYTES = 512
_TRAINING_KEYS = ("state_dict", "model_state_dict", "network", "net", "model_state", "ema")
"""Where training frameworks other than SAM 2's own keep the weights."""


def read_state_dict(path: Path, *, mend: str) -> dict[str, Tensor]:
    """Named tensors of a checkpoint file, on the CPU in their stored dtype.

    Args:
        path: the file; must not be rewritten while the tensors are in use.
        mend: what the user can do about a bad file; ends every error's message.

    Raises:
        WeightsError: it is no checkpoint, is cut off, or holds no state dict; says which.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    stand_in = _stand_in(head, size)
    if stand_in:
        raise WeightsError(f"{path}: not a readable torch checkpoint: {stand_in}. {mend}")
    if _is_safetensors(head):
        return _read_safetensors(path, head, size, mend)
    if head.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise WeightsError(
            f"{path}: not a readable torch checkpoint: its end is missing ({size:,} bytes are "
            f"here), so the download or copy was cut off. {mend}"
        )
    try:
        content = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except Exception as error:
        first = str(error).partition("\n")[0]
        raise WeightsError(
            f"{path}: not a readable torch checkpoint that holds tensors alone: {first}. {mend}"
        ) from error
    return _named_tensors(content, path, mend)


def _stand_in(head: bytes, size: int) -> str | None:
    """What lies in the file's place, where that is no checkpoint at all."""
    start = head.lstrip()[:64].lower()
    if not size:
        return "it is empty"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself (git lfs pull fetches it)"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page (an error page or the page about the file, not the file)"
    return None


def _is_safetensors(head: bytes) -> bool:
    """Eight bytes of header length, then JSON."""
    return len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 30


def _read_safetensors(path: Path, head: bytes, size: int, mend: str) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        cut = int.from_bytes(head[:8], "little") + 8 > size or "not fully covered" in str(error)
        cause = "the download or copy was cut off" if cut else "the file is damaged"
        raise WeightsError(f"{path}: not readable safetensors: {error}; {cause}. {mend}") from error


def _named_tensors(content: Any, path: Path, mend: str) -> dict[str, Tensor]:  # noqa: ANN401
    """The state dict in what a torch file holds."""
    state = content.get("model", content) if isinstance(content, dict) else content
    if (
        isinstance(state, dict)
        and state
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items())
    ):
        return state
    named = list(content) if isinstance(content, dict) else []
    found = next((key for key in _TRAINING_KEYS if key in named), None)
    if found is not None:
        raise WeightsError(
            f'{path}: holds no state dict, neither bare nor under "model": its weights lie under '
            f'"{found}", so a training framework wrote it. Save torch.load(...)["{found}"] in '
            f'the official naming as {{"model": ...}}. {mend}'
        )
    keys = f" (its keys: {', '.join(map(str, named[:6]))})" if named else ""
    raise WeightsError(f'{path}: holds no state dict, neither bare nor under "model"{keys}. {mend}')
