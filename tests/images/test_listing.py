import numpy as np
import pytest

from efficient_medsam2.errors import DataError
from efficient_medsam2.images import find_cases


@pytest.fixture
def pair(picture, mask):
    picture("data/x.png")
    picture("data/x_liver.png", mask)
    picture("data/x_aorta.png", np.roll(mask, 3, axis=0))


def test_csv(tmp_path, pair):
    listing = tmp_path / "cases.csv"
    listing.write_text(
        "image,label,case,patient,split,modality\n"
        "data/x.png,data/x_liver.png;data/x_aorta.png,one,p1,test,US\n"
        "data/x.png,data/x_liver.png,,,,\n"
    )
    one, x = find_cases(listing)
    assert (one.case_id, one.patient_id, one.split, one.modality) == ("one", "p1", "test", "US")
    assert one.names == ("data/x.png", "data/x_liver.png", "data/x_aorta.png")
    assert one.load().object_ids == (1, 2)
    assert one.load().modality == "US"
    assert (x.case_id, x.patient_id, x.split, x.modality) == ("x", "x", None, None)


@pytest.mark.parametrize("head", ["", "cases:\n"])
def test_yaml(tmp_path, pair, head):
    listing = tmp_path / "cases.yaml"
    listing.write_text(
        f"{head}- {{image: data/x.png, label: [data/x_liver.png, data/x_aorta.png], case: 7}}\n"
    )
    (source,) = find_cases(listing)
    assert source.case_id == "7"
    assert len(source.label_files) == 2


def test_npz_in_a_listing(tmp_path, npz):
    npz("a.npz", imgs=np.zeros((2, 3, 4), np.uint8), gts=np.ones((2, 3, 4), np.uint8))
    listing = tmp_path / "cases.csv"
    listing.write_text("image,split\na.npz,validation\n")
    (source,) = find_cases(listing)
    assert (source.split, source.load().object_ids) == ("validation", (1,))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "image,lable\nx.png,y.png\n", r"line 2: unknown column lable; the known ones"),
        ("a.csv", "image\n", "names no case"),
        ("a.csv", "label\ndata/x.png\n", "line 2: no `image`"),
        ("a.csv", "image,split\ndata/x.png,dev\n", "split 'dev' is not one of train, validation"),
        ("a.csv", "image,modality\ndata/x.png,PT\n", "modality 'PT' is not one of CT"),
        ("a.csv", "image,label\ndata/x.png,gone.png\n", r"line 2: .*gone\.png does not exist"),
        ("a.csv", "image\ndata/x.png\n", "line 2: no `label`"),
        ("a.csv", "image,label\na.csv,data/x.png\n", "a format that is not read"),
        ("a.csv", "image,label\ndata/x.png,a.csv\n", "of different formats"),
        ("a.csv", "image,label\ndata,data/x.png\n", "its label is one folder"),
        ("a.yaml", "image: x.png\n", "a list of mappings"),
        ("a.yaml", "- [\n", "cannot be read as a listing"),
        ("a.yaml", "", "names no case"),
        (
            "a.csv",
            "image,label\ndata/x.png,data/x_liver.png\ndata/x.png,data/x_aorta.png\n",
            "case 'x' comes from",
        ),
    ],
)
def test_listings_that_are_wrong(tmp_path, pair, name, text, message):
    listing = tmp_path / name
    listing.write_text(text)
    with pytest.raises(DataError, match=message):
        find_cases(listing)


def test_bad_rows_are_skipped_when_asked(tmp_path, pair):
    listing = tmp_path / "a.csv"
    listing.write_text("image,label\ndata/x.png,data/x_liver.png\ndata/gone.png,data/x_liver.png\n")
    found = find_cases(listing, on_error="skip")
    assert len(found) == 1
    assert "gone.png does not exist" in found.skipped[0].reason
