"""Published checkpoints on this machine: where they lie, fetching them, telling if they are whole.

A pulled file lies in a folder of its model's name; its record (JSON beside it) says where it came
from and its SHA-256. It is fetched with the Hugging Face hub's library, which continues a broken
download, or copied from a file that the user brought.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from efficient_medsam2.checkpoints import (
    KNOWN_MODELS,
    KnownModel,
    TeacherKind,
    check_record,
    known_model,
    record_path,
)
from efficient_medsam2.errors import WeightsError
from pipeline.artifacts import write_atomically
from pipeline.errors import ConfigError

__all__ = ["Origin", "Presence", "find_model", "look", "models_folder", "pull", "pulled_checkpoint"]

MODELS_VARIABLE = "EFFICIENT_MEDSAM2_MODELS"
"""Environment variable that names another folder for pulled models."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The record of a pulled file.

    Attributes:
        name: of the model.
        file: its name.
        source: repository on the hub, or the file that it was copied from.
        revision: commit of the repository; None for a copied file.
        sha256: of its bytes, in hex.
        bytes: its size.
    """

    name: str
    file: str
    source: str
    revision: str | None
    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Presence:
    """Whether a model is on this machine.

    Attributes:
        state: ``here``: whole; ``changed``: other bytes than were pulled; ``absent``.
        path: where it is or would be.
        sha256: of its bytes as they are; None where absent.
    """

    state: Literal["here", "changed", "absent"]
    path: Path
    sha256: str | None


def models_folder(environment: Mapping[str, str], *, platform: str, home: Path) -> Path:
    """The user's folder of pulled models, by the platform's convention.

    Args:
        environment: variables of the process; EFFICIENT_MEDSAM2_MODELS goes before all.
        platform: ``sys.platform``.
        home: the user's home.
    """
    if environment.get(MODELS_VARIABLE):
        return Path(environment[MODELS_VARIABLE])
    if platform == "win32":
        base = Path(environment.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif platform == "darwin":
        base = home / "Library" / "Application Support"
    else:
        base = Path(environment.get("XDG_DATA_HOME") or home / ".local" / "share")
    return base / "efficient-medsam2" / "models"


def find_model(name: str) -> KnownModel:
    """A known model by its name.

    Raises:
        ConfigError: there is none of that name; lists those there are.
    """
    for model in KNOWN_MODELS:
        if model.name == name:
            return model
    names = ", ".join(model.name for model in KNOWN_MODELS)
    raise ConfigError(f"no model is called {name}; there are {names}")


def pulled_checkpoint(kind: TeacherKind, size: str | None, folder: Path) -> Path | None:
    """The pulled file that a teacher without ``checkpoint`` is loaded from; None if absent."""
    model = known_model(kind, size)
    path = None if model is None else folder / model.name / model.file
    return path if path is not None and path.is_file() else None


def look(model: KnownModel, folder: Path) -> Presence:
    """Whether a model is in the folder, and whole: every byte is read."""
    path = folder / model.name / model.file
    if not path.is_file():
        return Presence(state="absent", path=path, sha256=None)
    sha256 = _sha256(path)
    try:
        check_record(path, sha256)
    except WeightsError:
        return Presence(state="changed", path=path, sha256=sha256)
    state: Literal["here", "changed"] = "here" if record_path(path).is_file() else "changed"
    return Presence(state=state, path=path, sha256=sha256)


def pull(
    model: KnownModel, folder: Path, *, revision: str = "main", source: Path | None = None
) -> Origin:
    """Bring a model into the folder, load it once to see that it is what it says, and record it.

    A file that is here, whole and of that revision is not fetched again; nor is one of an
    unknown revision while there is no network.

    Args:
        model: which.
        folder: of all pulled models.
        revision: branch, tag or commit on the hub.
        source: a file to copy instead of fetching.

    Raises:
        WeightsError: it cannot be fetched, is cut off, or is not that model.
    """
    path = folder / model.name / model.file
    commit, came_from = None, str(source)
    if source is not None:
        _copy(model, source, path)
    else:
        commit, came_from = _fetch(model, path, revision), str(model.repository)
        if commit is None:
            return _recorded(path)
    origin = Origin(
        name=model.name,
        file=model.file,
        source=came_from,
        revision=commit,
        sha256=_sha256(path),
        bytes=path.stat().st_size,
    )
    write_atomically(record_path(path), json.dumps(asdict(origin), indent=2) + "\n")
    return origin


def _copy(model: KnownModel, source: Path, path: Path) -> None:
    """Check a file that the user brought, then copy it; the copy appears whole or not at all."""
    if not source.is_file():
        raise WeightsError(f"--from {source}: no such file")
    _load_once(model, source)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    shutil.copyfile(source, partial)
    record_path(path).unlink(missing_ok=True)
    partial.replace(path)


def _fetch(model: KnownModel, path: Path, revision: str) -> str | None:
    """Download a file into its place; the commit that it is of, None if it is here already."""
    bring = f"efficient-medsam2 models pull {model.name} --from {model.file}"
    if model.repository is None:
        raise WeightsError(
            f"{model.file} is not on the Hugging Face hub: download it from {model.page}, then "
            f"{bring}"
        )
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    # Whatever HTTP library the hub's client stands on, its errors' base is this one's.
    transport: type[Exception] = HfHubHTTPError.__bases__[0]
    present = look(model, path.parent.parent)
    try:
        url = hf_hub_url(model.repository, model.file, revision=revision)
        there = get_hf_file_metadata(url)
        commit, etag = there.commit_hash, there.etag
        if commit is None:
            raise WeightsError(f"{url}: the server names no commit, so it is no hub. {bring}")
        if present.state == "here" and _recorded(path).revision == commit:
            return None
        record_path(path).unlink(missing_ok=True)
        hf_hub_download(
            model.repository,
            model.file,
            revision=commit,
            local_dir=path.parent,
            force_download=present.state == "changed",
        )
    except (HfHubHTTPError, OfflineModeIsEnabled, transport, OSError) as error:
        answered = isinstance(error, HfHubHTTPError)
        unreachable = not answered and isinstance(error, OfflineModeIsEnabled | transport)
        if unreachable and present.state == "here":
            return None
        first = str(error).partition("\n")[0]
        raise WeightsError(
            f"{model.name} cannot be fetched from {model.repository}: {type(error).__name__}: "
            f"{first}. Where there is no network, download {model.file} from {model.page} on "
            f"another machine, bring it here, then {bring}"
        ) from error
    # The hub's tag of a large file is the SHA-256 of its bytes.
    if etag is not None and len(etag) == 64 and _sha256(path) != etag:
        path.unlink()
        raise WeightsError(
            f"{model.file}: the bytes that came are not those that the hub promised (SHA-256 "
            f"{etag[:12]}...); they were removed. Type the same command again"
        )
    try:
        _load_once(model, path)
    except WeightsError:
        path.unlink()
        raise
    return commit


def _load_once(model: KnownModel, path: Path) -> None:
    """Load a file as the teacher that it is said to be."""
    from efficient_medsam2.networks.hiera import SAM2_SIZES
    from efficient_medsam2.teachers.load import load_teacher

    size = next((letter for letter in SAM2_SIZES if letter == model.size), None)
    load_teacher(model.kind, path, size=size)


def _recorded(path: Path) -> Origin:
    return Origin(**json.loads(record_path(path).read_text(encoding="utf-8")))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
