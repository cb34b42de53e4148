import subprocess
import sys

import cache
from cache import errors
from cache.errors import CacheError
from tests.cache.conftest import ROOT


def test_public_names_are_pinned():
    assert sorted(cache.__all__) == [
        "ArraySpec",
        "BadPart",
        "CacheCorruptError",
        "CacheDataError",
        "CacheError",
        "CacheIndex",
        "CacheInfo",
        "CacheLockedError",
        "CacheMissingError",
        "CacheReader",
        "CacheSpaceError",
        "CacheSpec",
        "CacheStaleError",
        "CacheUnreachableError",
        "CacheWriter",
        "CaseRow",
        "ChannelStatistics",
        "IDENTITY_AFFINE",
        "PromptRow",
        "SCHEMA_VERSION",
        "SliceRow",
        "TeacherIdentity",
        "TrackRow",
        "VerifyReport",
        "describe",
        "discard_bad",
        "required_bytes",
        "verify",
    ]
    assert all(hasattr(cache, name) for name in cache.__all__)


def test_exit_codes():
    codes = {name: getattr(errors, name).exit_code for name in errors.__all__}
    assert codes == {
        "CacheError": 4,
        "CacheCorruptError": 4,
        "CacheMissingError": 4,
        "CacheStaleError": 4,
        "CacheLockedError": 4,
        "CacheDataError": 3,
        "CacheSpaceError": 5,
        "CacheUnreachableError": 4,
    }
    assert all(issubclass(getattr(errors, name), CacheError) for name in errors.__all__)


def test_looking_into_a_cache_does_not_load_torch():
    script = "import sys, cache; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0
