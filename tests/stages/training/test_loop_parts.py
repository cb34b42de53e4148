"""What the loop is made of: learning rate, journal, checkpoints."""

import json

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from stages.errors import StageConfigError, StageInputError
from stages.training.checkpoint import load_checkpoint, remove_checkpoint, save_checkpoint
from stages.training.journal import Journal, read_journal
from stages.training.loop import share_done, train
from stages.training.optimisation import learning_rate_at, make_optimizer
from stages.training.settings import LoopConfig
from stages.training.task import TrainingTask


def test_the_learning_rate_warms_up_then_falls_as_a_cosine():
    config = LoopConfig(steps=100, learning_rate=1.0, final_learning_rate=0.1, warmup=0.1)
    assert learning_rate_at(0, config) == pytest.approx(0.1)
    assert learning_rate_at(9, config) == pytest.approx(1.0)
    assert learning_rate_at(10, config) == pytest.approx(1.0)
    assert learning_rate_at(55, config) == pytest.approx(0.55)
    assert learning_rate_at(100, config) == pytest.approx(0.1)
    rates = [learning_rate_at(step, config) for step in range(10, 101)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_the_learning_rate_without_either_part(warmup):
    config = LoopConfig(steps=4, learning_rate=1.0, warmup=warmup)
    first = learning_rate_at(0, config)
    assert first == pytest.approx(0.25 if warmup else 1.0)
    assert all(0 < learning_rate_at(step, config) <= 1 for step in range(4))


def test_weight_decay_is_for_matrices_that_are_trained():
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    module[2].requires_grad_(False)
    groups = make_optimizer(module, LoopConfig(weight_decay=0.3)).param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(1, 0.3), (3, 0)]


def test_a_journal_is_cut_back_to_the_step_that_training_continues_from(tmp_path):
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path, step=0)
    for step in (0, 5, 10, 15):
        journal.write(step=step, loss=1 / (step + 3))
    with path.open("a") as file:
        file.write('{"step": 20, "lo')
    assert [line["step"] for line in read_journal(path)] == [0, 5, 10, 15]
    kept = path.read_text().splitlines()[:3]
    Journal(path, step=10).write(step=15, loss=7.0)
    assert path.read_text().splitlines() == [*kept, '{"step": 15, "loss": 7.0}']
    Journal(path, step=0)
    assert path.read_text() == ""


def test_only_the_first_process_keeps_a_journal(tmp_path):
    Journal(None, step=0).write(step=1, loss=1.0)
    assert list(tmp_path.iterdir()) == []
    assert read_journal(tmp_path / "none.jsonl") == []


@pytest.fixture
def trained():
    """An accelerator with a prepared module and optimiser, one step done."""
    accelerator = Accelerator(cpu=True)
    module = nn.Linear(2, 1)
    module, optimizer = accelerator.prepare(module, torch.optim.AdamW(module.parameters()))
    accelerator.backward(module(torch.ones(1, 2)).sum())
    optimizer.step()
    return accelerator, module


def weight(module):
    return module.weight.detach().clone()


def save(accelerator, folder, step, fingerprint="a"):
    save_checkpoint(accelerator, folder, fingerprint=fingerprint, state={"step": step})


def load(accelerator, folder, fingerprint="a"):
    return load_checkpoint(accelerator, folder, fingerprint=fingerprint)


def test_a_checkpoint_gives_back_weights_and_state(trained, tmp_path):
    accelerator, module = trained
    before = weight(module)
    save(accelerator, tmp_path, 4)
    module.weight.data.zero_()
    assert load(accelerator, tmp_path) == {"step": 4}
    assert torch.equal(weight(module), before)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_checkpoint_of_other_settings_is_not_continued(trained, tmp_path):
    accelerator, module = trained
    save(accelerator, tmp_path, 4)
    module.weight.data.zero_()
    assert load(accelerator, tmp_path, "b") is None
    assert not weight(module).any()


def test_a_checkpoint_of_two_processes_is_refused_by_one(trained, tmp_path):
    accelerator, _ = trained
    save(accelerator, tmp_path, 4)
    file = tmp_path / "checkpoint" / "state.json"
    state = json.loads(file.read_text())
    assert state["processes"] == 1
    file.write_text(json.dumps(state | {"processes": 2}))
    with pytest.raises(StageInputError, match=r"--num_processes 2 .* --no-resume"):
        load(accelerator, tmp_path)


def test_a_kill_while_writing_leaves_the_previous_checkpoint(trained, tmp_path):
    accelerator, _ = trained
    save(accelerator, tmp_path, 4)
    (tmp_path / "checkpoint.tmp").mkdir()
    (tmp_path / "checkpoint.tmp" / "model.safetensors").write_bytes(b"half")
    assert load(accelerator, tmp_path) == {"step": 4}
    save(accelerator, tmp_path, 5)
    assert load(accelerator, tmp_path) == {"step": 5}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_kill_between_the_renames_leaves_the_previous_checkpoint(trained, tmp_path):
    accelerator, _ = trained
    save(accelerator, tmp_path, 4)
    (tmp_path / "checkpoint").rename(tmp_path / "checkpoint.old")
    assert load(accelerator, tmp_path) == {"step": 4}
    save(accelerator, tmp_path, 5)
    assert load(accelerator, tmp_path) == {"step": 5}
    assert not (tmp_path / "checkpoint.old").exists()


def test_a_kill_before_the_old_one_is_removed_leaves_the_newer(trained, tmp_path):
    accelerator, _ = trained
    save(accelerator, tmp_path, 4)
    (tmp_path / "checkpoint").rename(tmp_path / "checkpoint.old")
    (tmp_path / "keep").mkdir()
    save_checkpoint(accelerator, tmp_path / "keep", fingerprint="a", state={"step": 5})
    (tmp_path / "keep" / "checkpoint").rename(tmp_path / "checkpoint")
    assert load(accelerator, tmp_path) == {"step": 5}


def test_no_checkpoint_is_none_and_removing_leaves_nothing(trained, tmp_path):
    accelerator, _ = trained
    assert load(accelerator, tmp_path) is None
    save(accelerator, tmp_path, 4)
    (tmp_path / "best.pt").write_bytes(b"weights")
    remove_checkpoint(tmp_path)
    assert list(tmp_path.iterdir()) == []


class Line(nn.Module):
    """y = w x; the loss is its distance from 3 x."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor([[0.0]]))

    def forward(self, batch):
        return {"loss": ((self.factor * batch - 3 * batch) ** 2).mean()}


def test_the_loop_trains_logs_and_hands_on_the_best_weights(context):
    module = Line()
    seen = []

    def validate():
        seen.append(module.factor.item())
        # Best in the middle: the last weights are not the ones to hand on.
        return {"score": -abs(module.factor.item() - 1.5)}

    config = LoopConfig(
        steps=40, learning_rate=0.1, weight_decay=0, log_every=10, validate_every=10
    )
    numbers = []

    def make_batch(number):
        numbers.append(number)
        return torch.tensor([float(number % 3 + 1)])

    task = TrainingTask(module=module, make_batch=make_batch, validate=validate, best_by="score")
    result = train(task, config, context, name="line")
    assert numbers == list(range(40))
    assert result.steps == 40
    best = max(range(1, 5), key=lambda place: -abs(seen[place] - 1.5))
    assert result.best_step == 10 * best
    assert result.best_step < 40
    assert module.factor.item() == seen[best]
    assert result.started_at == {"score": -1.5}
    lines = read_journal(context.directory / "metrics.jsonl")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert [line["step"] for line in lines if "loss" in line] == [10, 20, 30, 40]
    assert losses[-1] < losses[0]


def test_accumulation_takes_the_mean_of_its_batches(context):
    """Two batches a step, 1 and 3: the gradient of the mean of both losses."""
    module = Line()
    config = LoopConfig(steps=1, accumulate=2, learning_rate=0.1, weight_decay=0, log_every=1)
    task = TrainingTask(module=module, make_batch=lambda n: torch.tensor([[1.0 + 2 * n]]))
    result = train(task, config, context, name="line")
    assert result.final["loss"] == pytest.approx((9 * 1 + 9 * 9) / 2)
    assert module.factor.item() == pytest.approx(0.1, rel=1e-4)  # one step of Adam
    assert share_done(1, config) == 0.5


def test_a_step_is_made_of_the_gradients_of_all_parts(context):
    """Two parts, 1 and 3, and one that nothing is learnt from: one step, of their sum."""
    module, seen = Line(), []

    class InParts(nn.Module):
        def __init__(self):
            super().__init__()
            self.line = module

        def forward(self, part):
            seen.append((float(part), module.factor.item()))
            if part == 0:
                return {"loss": torch.zeros(()), "bare": torch.ones(())}
            return {"loss": self.line(part.reshape(1))["loss"] / 2}

    task = TrainingTask(
        module=InParts(),
        make_batch=lambda number: torch.tensor([1.0, 0.0, 3.0]),
        parts=lambda batch: list(batch),
    )
    config = LoopConfig(steps=2, learning_rate=0.1, weight_decay=0, log_every=1, warmup=0)
    train(task, config, context, name="line")
    assert [part for part, _ in seen] == [1, 0, 3] * 2
    before = {factor for _, factor in seen[:3]}
    assert before == {0.0}
    assert len({factor for _, factor in seen[3:]}) == 1
    lines = read_journal(context.directory / "metrics.jsonl")
    assert lines[0]["loss"] == pytest.approx((9 * 1 + 9 * 9) / 2)
    assert lines[0]["bare"] == 1


def test_a_loss_that_is_not_finite_stops_with_the_setting_to_change(context):
    class Broken(Line):
        def forward(self, batch):
            return {"loss": self.factor.sum() * float("nan")}

    task = TrainingTask(module=Broken(), make_batch=lambda number: number)
    with pytest.raises(StageConfigError, match=r"--set finetune.learning_rate=0.0001"):
        train(task, LoopConfig(steps=2), context, name="finetune_10")
    with pytest.raises(StageConfigError, match=r"--set teacher_training.learning_rate"):
        train(task, LoopConfig(steps=2), context, name="teacher")


def test_an_error_in_a_batch_reaches_the_caller(context):
    def make_batch(number):
        raise OSError(5, "the disk is gone")

    task = TrainingTask(module=Line(), make_batch=make_batch)
    with pytest.raises(OSError, match="the disk is gone"):
        train(task, LoopConfig(steps=2), context, name="line")
    assert json.dumps(read_journal(context.directory / "metrics.jsonl")) == "[]"
