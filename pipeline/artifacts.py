"""Manifests: what a stage made, from what, and how that is found again.

``<run>/<stage>/manifest.json`` is written last and atomically; a folder without one is not an
artifact. Its ``fingerprint`` names the settings and inputs, its ``identity`` the result as well
(fingerprint and file digests): downstream stages record the identity of what they consumed, so
a rerun that made other weights is noticed although its settings are the same.
"""

import hashlib
import json
import math
import os
import platform
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline.errors import ArtifactError

__all__ = [
    "CHECKPOINT_FOLDERS",
    "MANIFEST_NAME",
    "SCHEMA_VERSION",
    "FileRecord",
    "Manifest",
    "canonical_json",
    "check_files",
    "checkpoint_steps",
    "describe_files",
    "fingerprint",
    "json_value",
    "library_versions",
    "read_manifest",
    "write_atomically",
    "write_manifest",
]

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
CHECKPOINT_FOLDERS = ("checkpoint", "checkpoint.old")
"""Where a training stage keeps what it needs to continue; written by `stages.training`, whose
``state.json`` in it names the fingerprint and the step."""

_BLOCK_BYTES = 1 << 20
_LIBRARIES = ("efficient-medsam2", "torch", "transformers", "timm", "numpy", "zarr")


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """One file of an artifact: its size and digest."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a finished stage made, and from what.

    Attributes:
        schema_version: version of this record.
        stage: name of the stage.
        fingerprint: digest of settings, inputs and schema version.
        settings: flat settings that determine the result (``encoder.learning_rate`` → value).
        upstream: upstream stage → identity of the artifact that was consumed.
        files: name relative to the artifact folder → size and digest.
        summary: figures the stage reported.
        started_utc: ISO 8601.
        finished_utc: ISO 8601.
        versions: library → version that made this.
    """

    schema_version: int
    stage: str
    fingerprint: str
    settings: dict[str, Any]
    upstream: dict[str, str]
    files: dict[str, FileRecord]
    summary: dict[str, Any]
    started_utc: str
    finished_utc: str
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """Digest of the fingerprint and the files: changes when the result does."""
        digests = {name: record.sha256 for name, record in self.files.items()}
        return _sha256_text(canonical_json({"fingerprint": self.fingerprint, "files": digests}))


_MANIFEST = TypeAdapter(Manifest)


def canonical_json(value: Any) -> str:  # noqa: ANN401 (any JSON value)
    """JSON text that is the same for equal values: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint(
    settings: Mapping[str, Any], upstream: Mapping[str, str], *, schema: int = SCHEMA_VERSION
) -> str:
    """Sha256 hex of a stage's settings, its inputs' identities and the schema version."""
    value = {"settings": dict(settings), "upstream": dict(upstream), "schema_version": schema}
    return _sha256_text(canonical_json(value))


def json_value(value: Any) -> Any:  # noqa: ANN401 (any value in, any JSON value out)
    """Make ``value`` fit for JSON: array scalars → numbers, paths → text, NaN → ``"nan"``.

    A summary with a NaN in it must not cost the result of a long training run.

    Raises:
        TypeError: a value that has no JSON form; says which type.
    """
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Path):
        return str(value)
    if callable(getattr(value, "item", None)):  # numpy and torch scalars
        return json_value(value.item())
    raise TypeError(f"a {type(value).__name__} has no JSON form: {value!r}")


def checkpoint_steps(directory: Path) -> dict[str, int]:
    """Fingerprint → step of every complete checkpoint in an artifact folder."""
    steps: dict[str, int] = {}
    for name in CHECKPOINT_FOLDERS:
        with suppress(FileNotFoundError, json.JSONDecodeError, KeyError):
            state = json.loads((directory / name / "state.json").read_text(encoding="utf-8"))
            steps.setdefault(state["fingerprint"], state["step"])
    return steps


def describe_files(directory: Path, names: tuple[str, ...]) -> dict[str, FileRecord]:
    """Size and digest of each named file below ``directory``, all of them safely on disk.

    Raises:
        ArtifactError: a name that leads outside ``directory``, or no such file.
    """
    records: dict[str, FileRecord] = {}
    for name in sorted(names):
        path = directory / name
        if Path(name).is_absolute() or ".." in Path(name).parts or not path.is_file():
            raise ArtifactError(f"{directory}: the stage named {name!r}, which is no file in it")
        _fsync(path)
        records[name] = FileRecord(bytes=path.stat().st_size, sha256=_sha256_file(path))
    return records


def check_files(directory: Path, manifest: Manifest, *, digests: bool = False) -> tuple[str, ...]:
    """Compare the files below ``directory`` with ``manifest``.

    Args:
        directory: the artifact folder.
        manifest: its manifest.
        digests: compare contents too, which reads every byte; otherwise sizes alone.

    Returns:
        One sentence for each file that is missing or differs; empty when all is well.
    """
    problems: list[str] = []
    for name, record in manifest.files.items():
        path = directory / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif (size := path.stat().st_size) != record.bytes:
            problems.append(f"{name} has {size} bytes instead of {record.bytes}")
        elif digests and _sha256_file(path) != record.sha256:
            problems.append(f"{name} was changed after the stage wrote it (other sha256)")
    return tuple(problems)


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Publish ``manifest`` in ``directory``: there completely, or not at all."""
    text = json.dumps(asdict(manifest), indent=2, allow_nan=False)
    write_atomically(directory / MANIFEST_NAME, text + "\n")


def read_manifest(directory: Path) -> Manifest | None:
    """Read the manifest of ``directory``; None where there is none.

    Raises:
        ArtifactError: the file is damaged, or of a newer schema.
    """
    path = directory / MANIFEST_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error
    try:
        data = json.loads(text)
        version = data.get("schema_version") if isinstance(data, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise ArtifactError(
                f"{path} has schema version {version}, newer than {SCHEMA_VERSION}: "
                f"it was written by a newer efficient-medsam2"
            )
        return _MANIFEST.validate_python(data)
    except json.JSONDecodeError as error:
        raise ArtifactError(f"{path} is damaged: no JSON: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "(top level)"
        raise ArtifactError(f"{path} is damaged: {where}: {first['msg']}") from error


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` through a temporary file, fsync and rename."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)  # mkstemp makes 0600
        Path(temporary).replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise
    _fsync(path.parent)


def library_versions() -> dict[str, str]:
    """Versions of Python and of the installed libraries that determine a result."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
