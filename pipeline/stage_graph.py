"""The stages of this project: what each consumes, what determines its result, how it is run.

Stage modules are imported when a stage runs, not before: training a student loads no teacher.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from pipeline.stage_node import StageNode, StageState
from stages.context import Artifact, StageContext

if TYPE_CHECKING:
    from pipeline.config import Config

__all__ = ["build_graph", "fraction_suffix"]

_WITHOUT_EFFECT = frozenset({"log_every", "checkpoint_seconds"})
"""Settings of the training loop that change no result but by rounding: no reason to train again."""

_MEMORY_RECIPE = 4
"""Raised when the stage's code learns something else from the same settings; 2: own memories count
where they are remembered or drawn, no longer all; 3: the image encoder keeps still while the
teacher's memories are remembered; 4: memories are remembered without a gradient, one of them is
learnt from, and prompted slices are not. What an older one trained is stale."""

_NOT_IN_A_CACHE = (
    "cache.path",
    "cache.mirror",
    "cache.store_options",
    "cache.accept_rounded",
    "run.seed",
)
"""Where a cache lies and what is put up with change nothing in it, and any seed may use it."""


def build_graph(config: "Config") -> tuple[StageNode, ...]:
    """Give the stages of ``config``, each after those it consumes."""
    nodes: list[StageNode] = []
    if config.teacher.train:
        nodes.append(_teacher(config))
    nodes.append(_precompute(config))
    nodes.append(_encoder(config))
    if config.memory.enabled:
        nodes.append(_memory(config))
    fractions = config.finetune.label_fractions
    nodes += [_finetune(config, fraction) for fraction in fractions]
    if config.baseline.enabled:
        nodes += [_baseline(config, fraction) for fraction in fractions]
    nodes.append(_evaluate(config, tuple(n.name for n in nodes if n.name != "teacher")))
    return tuple(nodes)


def fraction_suffix(fraction: float) -> str:
    """Name a label fraction: 1.0 → ``""``, 0.1 → ``_10``, 0.005 → ``_0p5``."""
    return "" if fraction == 1.0 else f"_{fraction * 100:g}".replace(".", "p")


def _teacher(config: "Config") -> StageNode:
    def run(context: StageContext) -> Artifact:
        from stages import train_teacher

        return train_teacher.run(config.teacher_training, context)

    settings = _settings(config, teacher_training=config.teacher_training)
    return StageNode(name="teacher", upstream=(), settings=settings, run=run, shared=True)


def _precompute(config: "Config") -> StageNode:
    def run(context: StageContext) -> Artifact:
        from stages import precompute

        return precompute.run(config.data, config.teacher, config.cache, config.precompute, context)

    def examine() -> StageState:
        from cache.errors import CacheError
        from stages import cache_examine

        try:
            fingerprint, differing, note = cache_examine.examine(
                config.data,
                config.teacher,
                config.cache,
                config.precompute,
                path=config.cache_folder,
                trained_teacher=config.run.dir / "teacher" if config.teacher.train else None,
            )
        except CacheError as error:
            return StageState(fingerprint=None, problem=str(error))
        return StageState(fingerprint=fingerprint, differing=tuple(differing), note=note)

    settings = _settings(
        config,
        data=config.data,
        teacher=config.teacher,
        cache=config.cache,
        precompute=config.precompute,
    )
    for key in [*settings]:
        if key.startswith(_NOT_IN_A_CACHE):
            del settings[key]
    upstream = ("teacher",) if config.teacher.train else ()
    return StageNode(
        name="precompute", upstream=upstream, settings=settings, run=run, examine=examine
    )


def _encoder(config: "Config") -> StageNode:
    def run(context: StageContext) -> Artifact:
        from stages import distill_encoder

        return distill_encoder.run(config.student, config.encoder, context)

    settings = _settings(config, student=config.student, encoder=config.encoder)
    return StageNode(
        name="encoder", upstream=("precompute",), settings=settings, run=run, shared=True
    )


def _memory(config: "Config") -> StageNode:
    def run(context: StageContext) -> Artifact:
        from stages import distill_memory

        return distill_memory.run(config.student, config.memory, context)

    settings = _settings(config, student=config.student, memory=config.memory)
    del settings["memory.enabled"], settings["memory.at_once"]
    settings["memory.recipe"] = _MEMORY_RECIPE
    return StageNode(
        name="memory",
        upstream=("encoder", "precompute"),
        settings=settings,
        run=run,
        shared=True,
    )


def _finetune(config: "Config", fraction: float) -> StageNode:
    def run(context: StageContext) -> Artifact:
        from stages import finetune

        return finetune.run(config.student, config.finetune, context, label_fraction=fraction)

    settings = _settings(config, student=config.student, finetune=config.finetune)
    settings = _one_fraction(settings, fraction)
    return StageNode(
        name=f"finetune{fraction_suffix(fraction)}",
        upstream=("memory" if config.memory.enabled else "encoder", "precompute"),
        settings=settings,
        run=run,
        shared=True,
    )


def _baseline(config: "Config", fraction: float) -> StageNode:
    # The same number of optimiser steps as the distilled student had in all its stages.
    steps = config.encoder.steps + config.finetune.steps
    steps += config.memory.steps if config.memory.enabled else 0

    def run(context: StageContext) -> Artifact:
        from stages import finetune

        return finetune.run_baseline(
            config.student, config.baseline, context, steps=steps, label_fraction=fraction
        )

    settings = _settings(config, student=config.student, baseline=config.baseline)
    del settings["baseline.enabled"]
    settings = _one_fraction(settings, fraction)
    settings["baseline.total_steps"] = steps
    return StageNode(
        name=f"baseline{fraction_suffix(fraction)}",
        upstream=("precompute",),
        settings=settings,
        run=run,
        shared=True,
    )


def _evaluate(config: "Config", upstream: tuple[str, ...]) -> StageNode:
    def run(context: StageContext) -> Artifact:
        from stages import evaluate

        return evaluate.run(config.data, config.evaluate, context)

    settings = _settings(config, data=config.data, evaluate=config.evaluate)
    # What is in the data is told by the cache; where the raw files lie does not matter.
    for key in ("data.source", "data.on_error"):
        settings.pop(key, None)
    return StageNode(name="evaluate", upstream=upstream, settings=settings, run=run)


def _settings(config: "Config", **blocks: BaseModel) -> dict[str, Any]:
    """Flat settings of the given blocks and the seed."""
    flat: dict[str, Any] = {"run.seed": config.run.seed}
    for name, block in blocks.items():
        flat |= _flat(block.model_dump(mode="json"), f"{name}.")
    # Through JSON and back, so that they equal what a manifest gives back.
    settings: dict[str, Any] = json.loads(json.dumps(flat, allow_nan=False))
    return settings


def _one_fraction(settings: Mapping[str, Any], fraction: float) -> dict[str, Any]:
    """Replace the list of label fractions by the one of this stage: the others do not matter."""
    kept = {k: v for k, v in settings.items() if k != "finetune.label_fractions"}
    return {**kept, "finetune.label_fraction": fraction}


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        elif key not in _WITHOUT_EFFECT:
            flat[f"{prefix}{key}"] = value
    return flat
