"""Caches on object stores: from an address and the environment to an open mirror.

Credentials come from the environment alone, by the names that ``obstore`` knows
(https://developmentseed.org/obstore/latest/api/store/aws/): AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT, or the role of the machine;
GOOGLE_* and AZURE_* likewise.
"""

import os
import re
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efficient_medsam2.errors import MissingExtraError

if TYPE_CHECKING:
    from cache.mirror import Mirror
    from cache.patience import Patience
    from cache.remote import RemoteFolder
    from pipeline.config import Config

__all__ = [
    "cache_at",
    "config_of_process",
    "mirror_folder",
    "mirror_of",
    "mirrors_folder",
    "open_remote",
    "patience_of",
]

GIGABYTE = 1_000_000_000

_CLIENT_OPTIONS: Mapping[str, Any] = {"timeout": "10m", "connect_timeout": "5s"}
"""A shard of 128 MB takes minutes on a slow line, and the time counts the whole answer."""

_SILENT_SECONDS = 20.0
"""A connection on which not a byte of an answer comes for so long is dead."""


def mirrors_folder(environment: Mapping[str, str], *, platform: str, home: Path) -> Path:
    """The user's folder of mirrors, by the platform's convention for what can be fetched again.

    Args:
        environment: variables of the process.
        platform: ``sys.platform``.
        home: the user's home.
    """
    if platform == "win32":
        base = Path(environment.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")
    return base / "efficient-medsam2" / "mirrors"


def mirror_folder(url: str) -> Path:
    """The folder in which the user's programs mirror a cache, unless told otherwise."""
    from cache.durable import sha256_of_bytes

    readable = re.sub(r"[^A-Za-z0-9]+", "-", url.partition("://")[2]).strip("-")[-60:]
    name = f"{readable}-{sha256_of_bytes(url.rstrip('/').encode())[:8]}"
    return mirrors_folder(os.environ, platform=sys.platform, home=Path.home()) / name


def patience_of(
    seconds: float | None, *, setting: str = "--patience SECONDS", brief: bool = False
) -> "Patience":
    """How long to wait for a store that does not answer.

    Args:
        seconds: as the user says; None: a minute, and ten where it has answered before.
        setting: what a user types to say it.
        brief: a minute in any case by default, for a command that only looks.
    """
    from cache.patience import Patience

    if seconds is not None:
        return Patience(first_seconds=seconds, seconds=seconds, setting=setting)
    usual = Patience(setting=setting)
    return replace(usual, seconds=usual.first_seconds) if brief else usual


def open_remote(
    url: str,
    options: Mapping[str, str | bool | int],
    *,
    patience: "Patience | None" = None,
    note: Callable[[str], None] | None = None,
) -> "RemoteFolder":
    """Open the objects below an address; nothing is asked of the store yet.

    Args:
        url: such as ``s3://bucket/prefix``.
        options: of ``obstore`` (``endpoint``, ``region``, ...), before those of the environment.
        patience: how long a store that does not answer is asked again; see ``patience_of``.
        note: told when that begins and ends.

    Raises:
        MissingExtraError: obstore is not installed.
        ConfigError: an option or the address is wrong, or the store keeps nothing.
    """
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError as error:
        raise MissingExtraError(
            f"{url} needs the package obstore: pip install 'efficient-medsam2[s3]'"
        ) from error
    from cache.address import ADDRESS
    from cache.remote import RemoteFolder
    from pipeline.errors import ConfigError

    if not ADDRESS.match(url):
        raise ConfigError(
            f"{url} is no address of an object store that keeps what it is given: those begin "
            "with s3://bucket, gs://bucket or az://account. A folder is named without ://"
        )
    config: dict[str, Any] = {key: value for key, value in options.items() if key != "allow_http"}
    named = (os.environ.get(name) for name in ("AWS_ENDPOINT", "AWS_ENDPOINT_URL"))
    endpoint = config.get("endpoint") or next(filter(None, named), "")
    client = dict(_CLIENT_OPTIONS)
    if options.get("allow_http") or str(endpoint).startswith("http://"):
        client["allow_http"] = True
    wanted = patience or patience_of(None)
    silent = timedelta(seconds=max(1.0, min(_SILENT_SECONDS, wanted.first_seconds / 3)))
    # Waiting for a store that is away is the cache's own: see cache.patience.
    retry: Any = {"max_retries": 2, "retry_timeout": timedelta(seconds=3)}
    try:
        store, sender = (
            from_url(url, config=config, client_options=client | more, retry_config=retry)
            for more in ({"read_timeout": silent}, {})
        )
    except (BaseError, ValueError) as error:
        raise ConfigError(
            f"cache.path={url}: {str(error).splitlines()[0]}. Give an address such as "
            "s3://bucket/prefix, and options that obstore knows: --set "
            "'cache.store_options={endpoint: http://localhost:9000, region: us-east-1}'"
        ) from error
    # Workers have credentials of their own, and are told where the store is.
    told = dict(options)
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if url.startswith("s3"):
        told |= {"endpoint": str(endpoint)} if endpoint else {}
        told |= {"region": region} if region and "region" not in told else {}
    return RemoteFolder(
        store,
        url,
        sender=sender,
        patience=wanted,
        note=note,
        reopen=partial(open_remote, url, told, patience=wanted),
    )


def config_of_process(config: "Config", process: int) -> "Config":
    """Give each further process of an `accelerate launch` a mirror of its own."""
    mirror = config.cache.mirror
    if process == 0 or mirror.path is None:
        return config
    mirror = mirror.model_copy(update={"path": mirror.path / f"process-{process}"})
    cache = config.cache.model_copy(update={"mirror": mirror})
    return config.model_copy(update={"cache": cache})


@contextmanager
def mirror_of(
    config: "Config", *, note: Callable[[str], None] | None = None
) -> Generator["Mirror | None", None, None]:
    """The mirror of a config's cache, its small files up to date; None for a local cache.

    Raises:
        CacheUnreachableError: the store does not answer.
    """
    url = config.cache.remote_url
    if url is None:
        yield None
        return
    from cache.mirror import Mirror

    settings = config.cache.mirror
    assert settings.path is not None  # load_config sees to it
    patience = patience_of(
        settings.patience_seconds, setting="--set cache.mirror.patience_seconds=SECONDS"
    )
    remote = open_remote(url, config.cache.store_options, patience=patience, note=note)
    with Mirror(settings.path, remote, max_bytes=int(settings.max_gb * GIGABYTE)) as mirror:
        mirror.sync()
        yield mirror


@contextmanager
def cache_at(
    place: str,
    *,
    patience: "Patience | None" = None,
    note: Callable[[str], None] | None = None,
    max_gb: float = 50.0,
) -> Generator[tuple[Path, "Mirror | None"], None, None]:
    """The folder of a cache, for commands that are given its path or address.

    Args:
        place: a folder, or an address such as ``s3://bucket/prefix``.
        patience: how long a store that does not answer is asked again.
        note: told when that begins and ends.
        max_gb: gigabytes of shards in the mirror at most.

    Yields:
        The folder, and the mirror where ``place`` is an address.

    Raises:
        CacheUnreachableError: the store does not answer.
    """
    if "://" not in place:
        yield Path(place), None
        return
    from cache.mirror import Mirror

    remote = open_remote(place, {}, patience=patience, note=note)
    with Mirror(mirror_folder(place), remote, max_bytes=int(max_gb * GIGABYTE)) as mirror:
        mirror.sync()
        yield mirror.path, mirror
