import pytest
from pydantic import ValidationError

from cache import ArraySpec, CacheSpec, TeacherIdentity
from cache.encoding import array_specs
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


def test_a_plain_cache_keeps_the_identity_that_it_had_before_there_were_encodings():
    # A change here makes every cache of every user stale.
    assert make_spec().fingerprint() == (
        "620f8e9706e186a193b8c022da02a8c14f5f47748c9a8c29c66b5f33c685b08f"
    )
    assert "encoding" not in make_spec().model_dump(mode="json")["arrays"][0]


def test_an_encoding_is_part_of_the_identity():
    spec = make_spec(arrays=array_specs("features_s4", "slices", (2, 40, 33), "bf16"))
    assert ("arrays.features_s4.encoding", "bf16", None) in spec.differences(make_spec())
    again = CacheSpec.model_validate_json(spec.model_dump_json())
    assert again == spec
    assert again.schema_version == 2


def test_arrays_and_scales_belong_together():
    values, scales = array_specs("features_s4", "slices", (2, 40, 33), "int8")
    assert scales.shape == (2, 3, 3)
    assert make_spec(arrays=(values, scales)).array("features_s4").scale_name == scales.name
    with pytest.raises(ValidationError, match="has no features_s4_scale"):
        make_spec(arrays=(values,))
    with pytest.raises(ValidationError, match="belong to no array"):
        make_spec(arrays=(scales,))
    with pytest.raises(ValidationError, match="not one scale for each tile"):
        make_spec(arrays=(values, scales.model_copy(update={"shape": (2, 3, 2)})))
    with pytest.raises(ValidationError, match="bf16 is stored as uint16, not float16"):
        ArraySpec(name="a", rows="slices", shape=(1,), dtype="float16", encoding="bf16")
    with pytest.raises(ValidationError, match="needs an encoding"):
        ArraySpec(name="a", rows="slices", shape=(1,), dtype="int8")
    with pytest.raises(ValidationError, match="rows and columns"):
        ArraySpec(name="a", rows="slices", shape=(4,), dtype="int8", encoding="int8_tile16")
