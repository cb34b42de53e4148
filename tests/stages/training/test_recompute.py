"""What is made again for the gradient: the same results, with less kept."""

import pytest
import torch

from cache.dataset import select_tracks
from stages.distill_encoder import EncoderConfig, EncoderModule, training_rows
from stages.distill_memory import ForcedWindows, MemoryConfig, MemoryModule
from stages.training.batches import SliceStream, TrackStream
from stages.training.heads import TeacherHeads, feature_deviations
from stages.training.student import StudentConfig, new_student, smallest_object

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
    module, batch = forced_case(reader, "no")
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


def outcome(module, batch):
    """Terms, gradients and buffers after one backward pass, and the bytes kept for it."""
    module.train()
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        terms = module(batch)
    terms["loss"].backward()
    gradients = [p.grad for p in module.parameters() if p.requires_grad]
    terms = {name: term.detach() for name, term in terms.items()}
    return terms, gradients, list(module.buffers()), sum(kept.values())


@pytest.mark.parametrize("case", [encoder_case, memory_case, forced_case])
def test_recomputing_changes_no_result_and_keeps_less(reader, case):
    terms, gradients, buffers, kept = outcome(*case(reader, "no"))
    for recompute in ("encoders", "all"):
        again, same, still, less = outcome(*case(reader, recompute))
        assert {name: float(term) for name, term in terms.items()} == {
            name: float(term) for name, term in again.items()
        }
        for mine, other in zip(gradients, same, strict=True):
            assert (mine is None) == (other is None)
            assert mine is None or torch.equal(mine, other)
        for mine, other in zip(buffers, still, strict=True):
            assert torch.equal(mine, other)
        assert less < 0.85 * kept
        kept = less


def test_still_norms_let_some_rows_go_through_the_encoder_after_the_others(reader, monkeypatch):
    terms, gradients, _, _ = outcome(*memory_case(reader, "encoders"))
    module, batch = memory_case(reader, "encoders")
    monkeypatch.setattr("stages.training.recompute._PIXELS_AT_ONCE", 1)
    calls = []
    encode = module.runner.encode
    monkeypatch.setattr(
        module.runner, "encode", lambda pixels: calls.append(len(pixels)) or encode(pixels)
    )
    again, same, _, _ = outcome(module, batch)
    assert calls == [1] * 12  # six slices, forwards and again for their gradients
    torch.testing.assert_close(again, terms)
    for mine, other in zip(gradients, same, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)


def test_the_switch_of_old_configs_is_read():
    assert EncoderConfig().recompute == "encoders"
    assert EncoderConfig(recompute=True).recompute == "all"
    assert EncoderConfig(recompute=False).recompute == "no"
