"""A run that takes seconds: a tiny teacher of fixed weights, the small phantom, a few steps."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from efficient_medsam2.networks.hiera import SmallNetConfig, new_model, small_config
from efficient_medsam2.networks.model_folder import save_model
from efficient_medsam2.networks.options import RunnerOptions
from efficient_medsam2.networks.runner import SliceRunner

ROOT = Path(__file__).parents[2]

NETWORK = SmallNetConfig(
    image_size=64,
    hidden_size=64,
    embed_dims=(8, 16, 24, 32),
    blocks=(1, 1, 1, 1),
    memory_layers=1,
    memory_slices=3,
)

_STEPS = {"encoder": 4, "memory": 3, "finetune": 3}


def save_tiny_teacher(folder):
    """A teacher of random weights, the same every time; its object scores are high enough."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = new_model(small_config(NETWORK))
    runner = SliceRunner(model.eval(), RunnerOptions(fill_box=True, fixed_num_frames=8))
    save_model(runner, folder, origin={"name": "scratch"})
    return folder


def settings(run_dir, teacher):
    """Settings of a run on the phantom, by their full key."""
    values = {
        "run.dir": run_dir,
        "run.device": "cpu",
        "teacher.checkpoint": teacher,
        "data.source": "phantom",
        "data.phantom_size": 48,
        "data.phantom_depth": 24,
        "data.smallest": 5,
        "cache.rows_per_shard": 8,
        "precompute.prompts.per_object": 1,
        "precompute.tracks.per_object": 1,
        "precompute.tracks.length": 3,
        "student.backbone": "mobilenetv3_small_100",
        "student.memory_layers": 1,
        "evaluate.track_length": 3,
        "evaluate.samples": 2,
        "baseline.batch_size": 3,
        "baseline.length": 2,
        "baseline.tracks": 1,
        "finetune.label_fractions": "[1.0]",
        "finetune.length": 2,
        "finetune.tracks": 1,
        "memory.length": 2,
        "memory.batch_size": 2,
        "encoder.batch_size": 3,
        "encoder.learning_rate": 1.5e-3,
        "encoder.second_click": 0.5,
        "finetune.batch_size": 3,
    }
    for stage, steps in _STEPS.items():
        values |= {f"{stage}.steps": steps, f"{stage}.log_every": 1}
        values |= {f"{stage}.validate_every": 2}
    return values | {"baseline.log_every": 1}


TEACHER_TRAINING = {
    "teacher.train": "true",
    "teacher_training.steps": 3,
    "teacher_training.batch_size": 1,
    "teacher_training.window": 2,
    "teacher_training.pool": 2,
    "teacher_training.real": "none",
    "teacher_training.log_every": 1,
    "teacher_training.validate_every": 2,
    "teacher_training.network": NETWORK.model_dump_json(),
}
"""Settings that train the tiny teacher too."""


def words(command, values):
    """The arguments of a command with these settings."""
    overrides = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    progress = [] if command[0] in ("status", "plan") else ["--progress", "plain"]
    return [*command, "-c", "phantom", *overrides, *progress]


def environment():
    """One thread, the packages of this checkout, and no warning left unseen."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(code, arguments):
    """A process of its own that runs ``code`` with ``arguments`` in ``sys.argv``."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
