"""What is made again for the gradient: the same results, with less kept."""

import pytest
import torch

from cache.dataset import select_tracks
from stages.distill_encoder import EncoderConfig, EncoderModule, training_rows
from stages.distill_memory import ForcedWindows, MemoryConfig, MemoryModule
from stages.training.batches import SliceStream, TrackStream
from stages.training.student import (
    StudentConfig,
    TeacherHeads,
    feature_deviations,
    new_student,
    smallest_object,
)

STUDENT = StudentConfig(backbone="mobilenetv3_small_100")


def encoder_case(reader, recompute):
    config = EncoderConfig(batch_size=4, recompute=recompute)
    runner = new_student(STUDENT, reader.path, seed=0, device="cpu")
    heads = TeacherHeads.of_cache(reader, size=runner.image_size)
    batch = SliceStream(
        reader,
        training_rows(reader, config),
        batch_size=4,
        prompts_per_slice=2,
        smallest=smallest_object(reader),
        box_share=0.5,
        augment=0.0,
        features=True,
        seed=0,
    )(0)
    return EncoderModule(runner, heads, config), batch


def memory_case(reader, recompute, *, forced=False):
    config = MemoryConfig(batch_size=2, length=3, recompute=recompute)
    runner = new_student(STUDENT, reader.path, seed=0, device="cpu")
    windows = TrackStream(
        reader,
        select_tracks(reader, split="train", minimum_length=3),
        batch_size=2,
        length=3,
        augment=0.0,
        labelled_rows=None,
        features=True,
        seed=0,
    )(0)
    batch = ForcedWindows(windows=windows, forced=forced)
    return MemoryModule(runner, feature_deviations(reader), config), batch


def forced_case(reader, recompute):
    return memory_case(reader, recompute, forced=True)


def test_in_forced_windows_one_drawn_memory_is_learnt_from(reader):
    module, batch = forced_case(reader, recompute=False)
    seen = []
    for seed in range(6):
        torch.manual_seed(seed)
        with torch.no_grad():
            seen.append(float(module(batch)["memory"]))
    values = set(seen)
    assert 1 < len(values) <= 3  # one for each step of the window
    torch.manual_seed(0)
    with torch.no_grad():
        assert float(module(batch)["memory"]) == seen[0]


@pytest.mark.parametrize("case", [encoder_case, memory_case, forced_case])
def test_recomputing_changes_no_result_and_keeps_less(reader, case):
    seen = []
    for recompute in (False, True):
        module, batch = case(reader, recompute)
        module.train()
        kept = {}

        def keep(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            terms = module(batch)
        terms["loss"].backward()
        gradients = [p.grad for p in module.parameters() if p.requires_grad]
        seen.append((terms, gradients, list(module.buffers()), sum(kept.values())))
    (terms, gradients, buffers, kept), (again, same, still, less) = seen
    assert {name: float(term.detach()) for name, term in terms.items()} == {
        name: float(term.detach()) for name, term in again.items()
    }
    for mine, other in zip(gradients, same, strict=True):
        assert (mine is None) == (other is None)
        assert mine is None or torch.equal(mine, other)
    for mine, other in zip(buffers, still, strict=True):
        assert torch.equal(mine, other)
    assert less < 0.7 * kept
