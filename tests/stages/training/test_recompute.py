"""What is made again for the gradient: the same results, with less kept."""

import pytest
import torch
from timm.layers import DropPath

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


def calls_of(monkeypatch, owner, name, rows_of):
    """How many rows each later call has."""
    calls, function = [], getattr(owner, name)

    def counted(*arguments):
        calls.append(rows_of(*arguments))
        return function(*arguments)

    monkeypatch.setattr(owner, name, counted)
    return calls


def assert_close(mine, other):
    torch.testing.assert_close(mine[0], other[0])
    for one, two in zip(mine[1], other[1], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


def test_with_still_norms_slices_go_through_the_encoder_some_at_a_time(reader, monkeypatch):
    whole = outcome(*memory_case(reader, "encoders"))
    module, batch = memory_case(reader, "encoders")
    monkeypatch.setattr("stages.training.recompute._PIXELS_ON_CPU", 1)
    calls = calls_of(monkeypatch, module.runner, "encode", len)
    assert_close(outcome(module, batch), whole)
    assert calls == [1] * 12  # six slices, forwards and again for their gradients


def test_dropped_paths_are_those_of_the_whole_batch(reader, monkeypatch):
    monkeypatch.setattr("stages.training.recompute._PIXELS_ON_CPU", 1)
    outcomes = []
    for recompute in ("no", "encoders"):
        module, batch = memory_case(reader, recompute)
        blocks = module.student.vision_encoder.backbone.timm_model.blocks
        dropping = [part for part in blocks.modules() if hasattr(part, "drop_path")]
        assert dropping
        for part in dropping:
            part.drop_path = DropPath(0.5)
        outcomes.append(outcome(module, batch))
    assert_close(*outcomes)


def test_prompts_are_answered_some_at_a_time(reader, monkeypatch):
    whole = outcome(*encoder_case(reader, "all"))
    module, batch = encoder_case(reader, "all")
    monkeypatch.setattr("stages.training.recompute._PIXELS_ON_CPU", 1)
    calls = calls_of(
        monkeypatch, module.runner, "prompted", lambda _, prompts: len(prompts.labels_BN)
    )
    assert_close(outcome(module, batch), whole)
    assert set(calls) == {1}
    assert len(calls) == 2 * len(batch.slice_of)


def test_the_encoder_keeps_still_while_the_teachers_memories_are_remembered(reader):
    for case, learns in ((forced_case, False), (memory_case, True)):
        module, batch = case(reader, "encoders")
        terms, *_ = outcome(module, batch)
        encoder = dict(module.student.vision_encoder.named_parameters())
        assert any(value.grad is not None for value in encoder.values()) == learns
        memory = dict(module.student.memory_attention.named_parameters())
        assert all(value.grad is not None for value in memory.values())
        assert float(terms["encoder"]) > 0


def test_the_switch_of_old_configs_is_read():
    assert EncoderConfig().recompute == "no"
    assert EncoderConfig(recompute=True).recompute == "all"
    assert EncoderConfig(recompute=False).recompute == "no"
