import pytest
from pydantic import ValidationError

from cache import ArraySpec, CacheSpec, TeacherIdentity
from tests.cache.example import ARRAYS, make_spec


def test_json_round_trip_keeps_spec_and_fingerprint():
    spec = make_spec(preprocessing={"sizes": (1, 2), "nested": {"window": (1.5, None)}})
    again = CacheSpec.model_validate_json(spec.model_dump_json())
    assert again == spec
    assert again.fingerprint() == spec.fingerprint()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"data_sha256": "e" * 64}, "data_sha256"),
        ({"rows_per_shard": 6}, "rows_per_shard"),
        ({"precompute": {"views": 3, "dtype": "fp16"}}, "precompute.views"),
        ({"arrays": ARRAYS[:-1]}, "arrays.track_mask_iou.dtype"),
        (
            {"teacher": TeacherIdentity(name="tiny", weights_sha256="1" * 64, config={})},
            "teacher.weights_sha256",
        ),
    ],
)
def test_every_part_of_the_identity_changes_the_fingerprint(changes, key):
    spec, other = make_spec(), make_spec(**changes)
    assert spec.fingerprint() != other.fingerprint()
    assert key in [path for path, _, _ in spec.differences(other)]


def test_created_by_and_order_of_arrays_are_not_part_of_the_identity():
    spec = make_spec()
    other = make_spec(created_by="somebody", arrays=tuple(reversed(ARRAYS)))
    assert spec.fingerprint() == other.fingerprint()
    assert spec.differences(other) == ()


def test_differences_name_key_and_both_values():
    other = make_spec(preprocessing={"size": 32, "window_hu": [-160.0, 240.0]})
    assert make_spec().differences(other) == (("preprocessing.size", 16, 32),)


def test_bad_specs_are_refused():
    with pytest.raises(ValidationError, match="same name"):
        make_spec(arrays=(ARRAYS[0], ARRAYS[0]))
    with pytest.raises(ValidationError, match="name"):
        ArraySpec(name="../image", rows="slices", shape=(1,), dtype="uint8")
    with pytest.raises(ValidationError, match="dtype"):
        ArraySpec(name="image", rows="slices", shape=(1,), dtype="object")
    with pytest.raises(ValidationError, match="preprocessing"):
        make_spec(preprocessing={"size": float("nan")})


def test_shards_cover_all_rows_once():
    spec = make_spec()
    rows = [row for k in range(spec.shard_count(28)) for row in spec.shard_rows(k, 28)]
    assert rows == list(range(28))
    assert spec.shard_count(0) == 0


def test_unknown_array_names_those_that_exist():
    with pytest.raises(KeyError, match="features_s16"):
        make_spec().array("features_s32")
