import numpy as np
import pytest
from PIL import Image

from efficient_medsam2.errors import DataError
from efficient_medsam2.images import find_cases, write_label
from efficient_medsam2.images.slices import CaseSlices
from efficient_medsam2.images.streamed import StreamedSlices
from efficient_medsam2.images.video import frame_order, is_frame_sequence


def ids(found):
    return [source.case_id for source in found]


@pytest.fixture
def video(tmp_path, picture, rng):
    """Write a video of colour frames named 1, 2, ... 12 with masks; its frames."""

    def write(
        name: str = "bear", *, folders: tuple[str, str] = ("images", "masks"), count: int = 12
    ) -> np.ndarray:
        frames = rng.integers(0, 255, (count, 6, 8, 3), np.uint8)
        for index, frame in enumerate(frames):
            picture(f"{folders[0]}/{name}/{index + 1}.png", frame)
            mask = np.zeros((6, 8), np.uint8)
            mask[1:3, 1:5] = 1
            # Object 2 goes and comes back.
            mask[4, 2:6] = 0 if index in (3, 4) else 2
            picture(f"{folders[1]}/{name}/{index + 1}.png", mask)
        return frames

    return write


def whole(slices: CaseSlices) -> np.ndarray:
    return slices.labels(0, slices.shape[0])


@pytest.mark.parametrize("folders", [("images", "masks"), ("JPEGImages/480p", "Annotations/480p")])
def test_folders_of_numbered_frames_are_videos(tmp_path, video, picture, mask, folders):
    frames = video("bear", folders=folders)
    video("cat", folders=folders, count=2)
    found = find_cases(tmp_path)
    assert ids(found) == ["bear", "cat"]
    assert any("12 numbered pictures are read as one video" in note for note in found.notes)
    case = found.sources[0].load()
    assert (case.modality, case.spacing_mm) == ("RGB", (1.0, 1.0, 1.0))
    np.testing.assert_array_equal(case.image, frames)
    assert case.object_ids == (1, 2)
    assert [bool((plane == 2).any()) for plane in case.label] == [
        i not in (3, 4) for i in range(12)
    ]
    slices = found.sources[0].open()
    assert isinstance(slices, StreamedSlices)
    np.testing.assert_array_equal(whole(slices), case.label)
    slices.close()


def test_natural_order_and_sequences(tmp_path):
    files = [tmp_path / name for name in ("f10.png", "f2.png", "f1.png")]
    assert [file.stem for file in sorted(files, key=frame_order)] == ["f1", "f2", "f10"]
    assert is_frame_sequence([tmp_path / f"{i:05d}.jpg" for i in range(0, 20, 4)])
    for names in (("1", "2", "4"), ("a", "b"), ("1",), ("x1", "y2"), ("1", "01")):
        assert not is_frame_sequence([tmp_path / f"{name}.png" for name in names])


def test_pictures_in_folders_that_are_no_videos_stay_pictures(tmp_path, picture, mask):
    for name in ("p7/left", "p7/right", "p8/3"):
        picture(f"images/{name}.png")
        picture(f"masks/{name}.png", mask)
    assert ids(find_cases(tmp_path)) == ["3", "left", "right"]


def test_a_frame_without_mask_shows_no_object_and_is_told(tmp_path, video):
    video()
    for index in (2, 11):
        (tmp_path / "masks" / "bear" / f"{index}.png").unlink()
    case = find_cases(tmp_path).sources[0].load()
    assert [bool(plane.any()) for plane in case.label] == [i not in (1, 10) for i in range(12)]
    assert "2 of 12 frames have no mask file" in case.notes[0]


def test_a_video_without_any_mask(tmp_path, video):
    video("bear")
    video("cat", folders=("images", "elsewhere"))
    with pytest.raises(DataError, match="cat: a video of 12 frames without any mask"):
        find_cases(tmp_path)
    found = find_cases(tmp_path, labels="optional")
    assert found.sources[1].load().label is None


def test_a_mask_without_frame(tmp_path, video, picture, mask):
    video()
    picture("masks/bear/13.png", mask)
    with pytest.raises(DataError, match=r"13\.png: a mask without frame"):
        find_cases(tmp_path)


@pytest.mark.parametrize("shape", [(6, 9, 3), (6, 8)])
def test_frames_of_unequal_size_or_type_are_refused_by_name(tmp_path, video, picture, shape):
    video()
    picture("images/bear/7.png", np.zeros(shape, np.uint8))
    (source,) = find_cases(tmp_path)
    for read in (source.load, source.open):
        with pytest.raises(DataError, match=r"7\.png: a frame of shape .*one by one"):
            read()


def test_mask_of_another_size(tmp_path, video, picture):
    video()
    picture("masks/bear/3.png", np.ones((6, 7), np.uint8))
    with pytest.raises(DataError, match=r"3\.png: the mask's shape \(6, 7\).*never resized"):
        find_cases(tmp_path).sources[0].open()


def test_greys_that_code_classes_mean_the_same_in_every_frame(tmp_path, video, picture):
    video(count=3)
    for index, greys in enumerate([(128, 255), (255,), (128,)], start=1):
        values = np.zeros((6, 8), np.uint8)
        for row, grey in enumerate(greys):
            values[row] = grey
        picture(f"masks/bear/{index}.png", values)
    label = find_cases(tmp_path).sources[0].load().label
    assert [tuple(np.unique(plane)[1:]) for plane in label] == [(1, 2), (2,), (1,)]


def test_palette_and_16_bit_masks(tmp_path, video):
    video(count=3)
    expected = find_cases(tmp_path).sources[0].load().label
    for index, plane in enumerate(expected, start=1):
        picture = Image.fromarray(plane.astype(np.uint8), mode=None)
        picture = picture.convert("P")
        picture.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
        picture.putdata(plane.ravel().tolist())
        picture.save(tmp_path / "masks" / "bear" / f"{index}.png")
    np.testing.assert_array_equal(find_cases(tmp_path).sources[0].load().label, expected)
    Image.fromarray(expected[0] * 300).save(tmp_path / "masks" / "bear" / "1.png")
    assert find_cases(tmp_path).sources[0].load().object_ids == (1, 2, 300, 600)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_listing_names_the_folders(tmp_path, video, labelled):
    video("bear", folders=("a", "b"))
    listing = tmp_path / "cases.csv"
    listing.write_text(f"image,label,case\na/bear,{'b/bear' if labelled else ''},mine\n")
    if not labelled:
        with pytest.raises(DataError, match="without any mask"):
            find_cases(listing)
        return
    (source,) = find_cases(listing)
    assert source.case_id == "mine"
    assert source.load().object_ids == (1, 2)


def test_masks_are_written_back_frame_by_frame(tmp_path, video):
    video()
    case = find_cases(tmp_path).sources[0].load()
    for _ in range(2):
        write_label(case.label, case, tmp_path / "predicted")
    written = sorted((tmp_path / "predicted").iterdir(), key=frame_order)
    assert [file.name for file in written] == [f"{i}.png" for i in range(1, 13)]
    for file, plane in zip(written, case.label, strict=True):
        with Image.open(file) as picture:
            np.testing.assert_array_equal(np.array(picture), plane)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    write_label(case.label, case, tmp_path / "a.nii.gz")
    with pytest.raises(DataError, match="a folder without a suffix"):
        write_label(case.label, case, tmp_path / "a.mp4")
