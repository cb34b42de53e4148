"""Sources of cases."""

import numpy as np
import pytest
from pydantic import ValidationError

from efficient_medsam2.errors import DataError
from efficient_medsam2.images import to_uint8
from efficient_medsam2.images.streamed import StreamedSlices
from stages.cases import DataConfig, open_dataset, phantom_digests, source_is_present
from tests.end_to_end import files


def test_the_phantom_is_slabs_of_one_patient_with_names():
    dataset = open_dataset(DataConfig(source="phantom", phantom_size=48, phantom_depth=24))
    assert {handle.split for handle in dataset.handles} == {"train", "validation", "test"}
    ids = [handle.case_id for handle in dataset.handles]
    assert ids == sorted(set(ids))
    for handle in dataset.handles:
        case = handle.load()
        assert case.case_id == handle.case_id
        assert case.label.any()
        assert set(case.object_ids) <= set(handle.object_names)
        assert handle.digests() == phantom_digests(
            DataConfig(source="phantom", phantom_size=48, phantom_depth=24)
        )


def test_another_phantom_has_another_digest():
    small, large = DataConfig(phantom_size=48), DataConfig(phantom_size=64)
    assert phantom_digests(small) != phantom_digests(large)


def test_a_folder_gives_its_cases_with_digests_that_follow_content(tmp_path):
    config = DataConfig(source=str(files.write_npz_folder(tmp_path / "data", count=5)))
    dataset = open_dataset(config)
    assert [handle.case_id for handle in dataset.handles] == [f"3D_case{n}" for n in range(5)]
    assert {handle.split for handle in dataset.handles} == {"train", "validation", "test"}
    first = dataset.handles[0]
    before = first.digests()
    assert before.keys() == first.files.keys() == {"3D_case0.npz"}
    assert first.load().image.shape == (4, 32, 32)
    files.write_npz(tmp_path / "data", "3D_case0", seed=77)
    assert first.digests() != before


def test_too_few_patients_are_told(tmp_path):
    config = DataConfig(source=str(files.write_npz_folder(tmp_path / "data", count=1)))
    dataset = open_dataset(config)
    assert any("borrows 1 training cases" in note for note in dataset.notes)
    assert dataset.splits.cases("test") == ("3D_case0",)
    assert dataset.without({"3D_case0"}).splits.cases("test") == ()


def test_skipped_files_are_told(tmp_path):
    folder = files.write_npz_folder(tmp_path / "data", count=2)
    (folder / "broken.npz").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"broken\.npz"):
        open_dataset(DataConfig(source=str(folder)))
    dataset = open_dataset(DataConfig(source=str(folder), on_error="skip"))
    assert [handle.case_id for handle in dataset.handles] == ["3D_case0", "3D_case1"]
    assert any(note.startswith("skipped") and "broken.npz" in note for note in dataset.notes)


def test_a_source_is_present_where_there_is_something_to_read(tmp_path):
    assert source_is_present(DataConfig(source="phantom"))
    assert source_is_present(DataConfig(source="mni152"))
    assert not source_is_present(DataConfig(source=str(tmp_path)))
    assert not source_is_present(DataConfig(source=str(tmp_path / "absent")))
    (tmp_path / "a.csv").write_text("image\n")
    assert source_is_present(DataConfig(source=str(tmp_path)))
    assert source_is_present(DataConfig(source=str(tmp_path / "a.csv")))


def test_where_data_lie_is_no_setting_of_the_rows():
    here = DataConfig(source="a", on_error="stop").row_settings()
    assert here == DataConfig(source="b", on_error="skip").row_settings()
    assert "data.phantom_size" not in here
    assert DataConfig(source="phantom").row_settings()["data.phantom_size"] == 96
    assert here != DataConfig(source="a", margin=3).row_settings()


@pytest.mark.parametrize("splits", [(0.5, 0.5, 0.5), (1.2, -0.2, 0.0)])
def test_splits_are_shares(splits):
    with pytest.raises(ValidationError, match="three shares that sum to 1"):
        DataConfig(splits=splits)


def test_labels_are_sixteen_bit_whatever_the_source():
    handle = open_dataset(DataConfig(source="phantom", phantom_size=48, phantom_depth=24)).handles[
        0
    ]
    assert handle.load().label.dtype == np.uint16


def test_a_case_opens_as_a_stream_and_is_surveyed_once_until_its_file_changes(
    tmp_path, monkeypatch
):
    config = DataConfig(source=str(files.write_npz_folder(tmp_path / "data", count=3)))
    handle = open_dataset(config).handles[0]
    surveys = []
    find = StreamedSlices._find
    monkeypatch.setattr(
        StreamedSlices, "_find", lambda slices: surveys.append(slices) or find(slices)
    )
    case = handle.load()
    for _ in range(3):
        slices = handle.open()
        assert isinstance(slices, StreamedSlices)
        assert slices.object_ids == case.object_ids
        np.testing.assert_array_equal(slices.labels(0, 4), case.label)
        pictures = slices.pictures(0, 4, config.intensity)
        np.testing.assert_array_equal(pictures, to_uint8(case, config.intensity))
        slices.close()
    assert len(surveys) == 1
    image = np.zeros((3, 9, 9), np.uint8)
    np.savez(tmp_path / "data" / "3D_case0.npz", imgs=image, gts=image + 5)
    changed = handle.open()
    assert (changed.shape, changed.object_ids) == ((3, 9, 9), (5,))
    changed.close()
    assert len(surveys) == 2
    (tmp_path / "data" / "3D_case0.npz").unlink()
    with pytest.raises(DataError, match=r"3D_case0\.npz"):
        handle.open()
