"""Batches that tests of the student stages take from the example cache: augmented nowhere."""

from cache.dataset import select_tracks
from stages.training.slice_batches import SliceStream
from stages.training.track_batches import TrackStream

LENGTH = 3


def slices_of(reader, *, count=4, smallest=1):
    """Training slices with prompts and the teacher's features."""
    return SliceStream(
        reader,
        reader.index.select("slices", split="train"),
        batch_size=count,
        prompts_per_slice=2,
        smallest=smallest,
        box_share=0.5,
        augment=0.0,
        features=True,
        seed=0,
    )(0)


def windows_of(reader, *, tracks=3):
    """Windows of training tracks, with all that the teacher gave."""
    return TrackStream(
        reader,
        select_tracks(reader, split="train", minimum_length=LENGTH),
        batch_size=tracks,
        length=LENGTH,
        augment=0.0,
        labelled_rows=None,
        features=True,
        seed=0,
    )(0)
