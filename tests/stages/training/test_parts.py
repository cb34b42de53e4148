"""A batch in parts: the terms and gradients of the whole, with less kept for the backward pass."""

import pytest
import torch

from cache.dataset import select_tracks
from stages import distill_memory
from stages.distill_encoder import EncoderConfig, EncoderModule
from stages.distill_memory import MemoryConfig, MemoryModule
from stages.finetune import FinetuneConfig, LabelledModule
from stages.training.heads import TeacherHeads, feature_deviations
from stages.training.labelled_batches import LabelledBatch
from stages.training.memory_batches import AnswerStep, ForcedWindows, RememberStep, forced_windows
from stages.training.norms import freeze_norms
from stages.training.student import StudentConfig, new_student
from tests.stages.training.streams import slices_of, windows_of

STUDENT = StudentConfig(backbone="mobilenetv3_small_100")
WHOLE = 99


def student_of(reader):
    return new_student(STUDENT, reader.path, seed=0, device="cpu")


def encoder_case(reader, at_once):
    runner = student_of(reader)
    config = EncoderConfig(at_once=at_once)
    heads = TeacherHeads.of_cache(reader, size=runner.image_size)
    module = EncoderModule(runner, heads, config).train()
    freeze_norms(module)  # else their statistics are those of a part
    return module, slices_of(reader).split(at_once)


def memory_case(reader, at_once, *, forced=False, **settings):
    module = MemoryModule(
        student_of(reader),
        feature_deviations(reader),
        MemoryConfig(at_once=at_once, **{"teach_memory": 1.0, **settings}),
    ).train()
    return module, module.parts(ForcedWindows(windows=windows_of(reader), forced=forced))


def forced_case(reader, at_once):
    return memory_case(reader, at_once, forced=True)


def labelled_case(reader, at_once):
    config = FinetuneConfig(at_once=at_once, length=3, weight_kl=0)
    module = LabelledModule(student_of(reader), config, None).train()
    windows = windows_of(reader)
    windows.labelled[0, 1] = windows.labelled[1, 2] = False
    return module, module.parts(LabelledBatch(slices=slices_of(reader), tracks=windows))


def outcome(case, reader, at_once):
    """Terms and gradients of a batch, and the most bytes that any part kept for its backward."""
    torch.manual_seed(0)
    module, parts = case(reader, at_once)
    weights = {value.untyped_storage().data_ptr() for value in module.parameters()}
    most, summed = 0, {}
    for part in parts:
        kept = {}

        def keep(tensor, kept=kept):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            terms = module(part)
        if terms["loss"].requires_grad:
            terms["loss"].backward()
        most = max(most, sum(kept.values()))
        for name, term in terms.items():
            summed[name] = summed.get(name, 0) + term.detach()
    gradients = {
        name: value.grad for name, value in module.named_parameters() if value.requires_grad
    }
    return summed, gradients, most


@pytest.mark.parametrize("case", [encoder_case, memory_case, forced_case, labelled_case])
@pytest.mark.parametrize(("at_once", "share"), [(2, 0.75), (1, 0.55)])
def test_parts_add_up_to_the_batch_and_keep_less(reader, case, at_once, share):
    terms, gradients, kept = outcome(case, reader, WHOLE)
    in_parts, same, less = outcome(case, reader, at_once)
    torch.testing.assert_close(in_parts, terms)
    assert same.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (gradient is None) == (same[name] is None), name
        if gradient is not None:
            off = torch.linalg.vector_norm(same[name] - gradient)
            assert off <= 1e-3 * torch.linalg.vector_norm(gradient) + 1e-5, name
    assert less < share * kept


def test_a_slice_without_a_prompt_teaches_its_features_alone(reader):
    batch = slices_of(reader)
    first = batch.slice_of == 0
    bare = type(batch)(
        image=batch.image,
        features=batch.features,
        prompts=batch.prompts.take(first),
        slice_of=batch.slice_of[first],
        masks=batch.masks[first],
    )
    module, _ = encoder_case(reader, 1)
    parts = bare.split(1)
    assert [len(part.slice_of) for part in parts] == [int(first.sum()), 0, 0, 0]
    with torch.no_grad():
        terms = [module(part) for part in parts]
    assert ["mask" in each for each in terms] == [True, False, False, False]
    assert sum(part.share for part in parts) == sum(part.prompt_share for part in parts) == 1


@pytest.mark.parametrize("forced", [False, True])
def test_one_drawn_memory_of_a_window_is_learnt_from(reader, forced):
    drawn = set()
    for seed in range(6):
        torch.manual_seed(seed)
        module, parts = memory_case(reader, WHOLE, forced=forced)
        places = [place for place, part in enumerate(parts) if isinstance(part, RememberStep)]
        assert len(places) == 1
        looked_at, answered = parts[places[0]], parts[places[0] - 1]
        assert answered.step == looked_at.step
        drawn.add(looked_at.step)
        # Where the teacher's memories are remembered, a prompted slice is for its own alone.
        first = 1 if forced and looked_at.step > 0 else 0
        answers = [part.step for part in parts if isinstance(part, AnswerStep)]
        assert answers == list(range(first, 3))
        if seed == 0:
            with torch.no_grad():
                terms = [module(part) for part in parts]
            assert [name for name in terms[places[0]] if name != "loss"] == ["memory"]
    assert len(drawn) > 1


def test_raw_features_are_read_for_own_memories_alone(reader):
    tracks = select_tracks(reader, split="train", minimum_length=3)
    make = forced_windows(
        reader,
        tracks,
        batch_size=2,
        length=3,
        augment=0.0,
        seed=0,
        forced=lambda number: number == 0,
    )
    forced, own = make(0), make(1)
    assert (forced.forced, own.forced) == (True, False)
    assert forced.windows.cached.features_s16 is None
    assert own.windows.cached.features_s16 is not None
    again = windows_of(reader, tracks=2).cached
    assert torch.equal(again.tracks, forced.windows.cached.tracks)
    assert torch.equal(again.conditioned_s16, forced.windows.cached.conditioned_s16)


def trained(module, *prefixes):
    return [
        name
        for name, value in module.student.named_parameters()
        if name.startswith(prefixes) and value.grad is not None and value.grad.any()
    ]


def run(module, parts, but=()):
    for part in parts:
        loss = module(part)["loss"]
        if loss.requires_grad and not isinstance(part, but):
            loss.backward()


def test_the_encoder_keeps_still_while_the_teachers_memories_are_remembered(reader):
    for case, learns in ((forced_case, False), (memory_case, True)):
        module, parts = case(reader, 2)
        run(module, parts)
        assert bool(trained(module, "vision_encoder.")) == learns
        assert trained(module, "memory_attention.")


def test_the_memory_encoder_learns_from_the_teachers_memories_alone(reader):
    module, parts = memory_case(reader, WHOLE)
    run(module, parts, but=RememberStep)
    assert not trained(module, "memory_encoder.")
    assert trained(module, "memory_attention.", "vision_encoder.")
    module, parts = memory_case(reader, WHOLE)
    with torch.no_grad():
        for part in parts[: parts.index(remembered(parts))]:
            module(part)
    run(module, [remembered(parts)])
    assert trained(module, "memory_encoder.")
    assert not trained(module, "memory_attention.", "vision_encoder.")


def test_the_memory_encoder_learns_in_a_share_of_the_steps_and_more_from_each(reader):
    shares, firsts = [], set()
    for seed in range(40):
        torch.manual_seed(seed)
        _, parts = memory_case(reader, WHOLE, forced=True, teach_memory=0.25)
        shares += [part.share for part in parts if isinstance(part, RememberStep)]
        answered = [part for part in parts if isinstance(part, AnswerStep)]
        if not any(isinstance(part, RememberStep) for part in parts):
            firsts.add(answered[0].step)
    assert 3 <= len(shares) <= 20
    assert set(shares) == {4.0}
    assert firsts == {1}  # nothing is asked about the prompted slice
    _, parts = memory_case(reader, WHOLE, teach_memory=0.0)
    assert all(part.remember == (part.step < 2) for part in parts)


def test_every_slice_but_the_last_is_remembered_once_and_without_its_making(reader, monkeypatch):
    made = []
    remember = distill_memory.remember_step

    def count(*arguments, position, **others):
        made.append(position)
        return remember(*arguments, position=position, **others)

    monkeypatch.setattr(distill_memory, "remember_step", count)
    banks, drawn = [], set()
    for seed in range(6):
        torch.manual_seed(seed)
        module, parts = memory_case(reader, WHOLE)
        made.clear()
        run(module, parts)
        drawn.add(remembered(parts).step)
        # The drawn slice's memory is made once, with gradients, and remembered without them.
        assert made == sorted({0, 1, remembered(parts).step})
        assert [entry.position for entry in module._bank] == [0, 1]
        assert not any(entry.memory.requires_grad for entry in module._bank)
        banks.append([entry.memory for entry in module._bank])
    assert drawn == {0, 1, 2}
    for bank in banks[1:]:
        torch.testing.assert_close(bank, banks[0])


def remembered(parts):
    return next(part for part in parts if isinstance(part, RememberStep))


def test_the_students_own_memories_are_those_of_the_same_windows(reader):
    def answers(at_once):
        torch.manual_seed(0)
        module, parts = memory_case(reader, at_once)
        with torch.no_grad():
            losses = [(part, float(module(part)["loss"])) for part in parts]
        steps = [part.step for part in parts if isinstance(part, AnswerStep)]
        return [
            sum(loss for part, loss in losses if isinstance(part, AnswerStep) and part.step == step)
            for step in sorted(set(steps))
        ]

    assert answers(1) == pytest.approx(answers(WHOLE), rel=1e-3)


def test_a_prompted_slice_is_answered_and_remembered_but_not_learnt_from(reader):
    module, parts = memory_case(reader, WHOLE)
    first, second = [part for part in parts if isinstance(part, AnswerStep)][:2]
    assert (first.step, second.step) == (0, 1)
    terms = module(first)
    assert list(terms) == ["loss"]
    assert not terms["loss"].requires_grad
    for part in parts[1 : parts.index(second)]:
        module(part)
    assert len(module._bank) == 1
    assert module(second)["loss"].requires_grad
    assert not module.student.no_memory_embedding.requires_grad
