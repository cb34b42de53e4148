"""Students: a timm backbone + FPN neck in the teacher's frame, with a slim memory attention."""

from collections.abc import Mapping
from typing import Any, Literal

import timm
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from transformers import EdgeTamVisionConfig, Sam2VideoConfig, Sam2VideoModel, TimmWrapperConfig

from efficient_medsam2.errors import NetworkConfigError, WeightsError
from efficient_medsam2.networks.hiera import level_sizes, new_model

__all__ = [
    "FITTING_BACKBONES",
    "ResizeMode",
    "StudentConfig",
    "build_student",
    "check_student_size",
    "student_size",
]

ResizeMode = Literal["bilinear", "area"]
"""``bilinear`` (anti-aliased where it shrinks) or ``area``: the mean over each new cell."""

FITTING_BACKBONES = (
    "repvit_m0_9",
    "repvit_m1_1",
    "repvit_m2_3",
    "mobilenetv3_small_100",
    "mobilenetv3_large_100",
    "mobilenetv4_conv_small",
    "mobilenetv2_100",
    "efficientnet_b0",
    "efficientvit_b1",
    "efficientvit_l1",
    "tiny_vit_5m_224",
    "tiny_vit_21m_224",
)
"""timm backbones that give strides 4, 8, 16 and 32 and are known to work here."""

_MEND = (
    f"Backbones that work: {', '.join(FITTING_BACKBONES)}. "
    "Example: --set student.backbone=repvit_m0_9"
)


class StudentConfig(BaseModel):
    """A student network.

    Attributes:
        backbone: any timm model whose ``features_only`` form gives strides 4, 8 and 16 as
            (B, C, H, W) at the student's image size.
        image_size: side of the student's input in pixels; the teacher's where None.
        resize_targets: how the teacher's features and logits are brought to the student's grids
            where the two differ in image size; there it has to be said.
        pretrained: load timm's ImageNet weights (downloads them once).
        memory_layers: layers of the memory attention; copied from the teacher's first ones.
        memory_slices: prompted slice + remembered slices that the memory attention sees.
        top_down_levels: pyramid levels (0 = stride 4) that receive the coarser level's features.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str = "mobilenetv3_small_100"
    image_size: int | None = Field(default=None, ge=32, multiple_of=32)
    resize_targets: ResizeMode | None = None
    pretrained: bool = False
    memory_layers: int = Field(default=1, ge=1)
    memory_slices: int = Field(default=3, ge=1)
    top_down_levels: tuple[int, ...] = (0, 1, 2)


def student_size(config: StudentConfig, teacher_size: int) -> int:
    """Side of the student's input in pixels."""
    return teacher_size if config.image_size is None else config.image_size


def check_student_size(config: StudentConfig, teacher_size: int) -> None:
    """See to it that a student of another image size is meant as such.

    Raises:
        NetworkConfigError: it differs from the teacher's and nothing says how targets are resized.
    """
    size = student_size(config, teacher_size)
    if size != teacher_size and config.resize_targets is None:
        raise NetworkConfigError(
            f"student.image_size={size} is not the teacher's {teacher_size}: the teacher's "
            "features and masks lie on other grids than the student's and have to be resized. Say "
            "how: --set student.resize_targets=area (the mean over each cell) or "
            f"=bilinear; or keep the teacher's: --set student.image_size={teacher_size}"
        )


def backbone_levels(name: str) -> tuple[list[int], list[int]]:
    """Output indices and channels of the levels at strides 4, 8, 16 (and 32).

    Raises:
        NetworkConfigError: the name is unknown to timm or its strides do not fit.
    """
    try:
        probe = timm.create_model(name, features_only=True, pretrained=False)
    except (RuntimeError, AttributeError, ValueError) as error:
        near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:6])
        hint = f" (timm has: {near})" if near else ""
        raise NetworkConfigError(
            f"student.backbone={name!r}: timm cannot build it with features_only{hint}: {error}\n"
            f"{_MEND}"
        ) from error
    reductions = list(probe.feature_info.reduction())
    if not {4, 8, 16} <= set(reductions):
        raise NetworkConfigError(
            f"student.backbone={name!r} gives strides {reductions}; a student needs 4, 8 and 16.\n"
            f"{_MEND}"
        )
    wanted = [stride for stride in (4, 8, 16, 32) if stride in reductions]
    last = {stride: index for index, stride in enumerate(reductions)}
    indices = [last[stride] for stride in wanted]
    channels = [int(probe.feature_info.channels()[index]) for index in indices]
    return indices, channels


def student_config(config: StudentConfig, teacher: Sam2VideoConfig) -> Sam2VideoConfig:
    """The teacher's configuration with another image encoder and a slimmer memory.

    Raises:
        NetworkConfigError: the backbone is unknown to timm or its strides do not fit.
    """
    indices, channels = backbone_levels(config.backbone)
    size = student_size(config, int(teacher.image_size))
    coarsest = len(indices) - 1
    vision = EdgeTamVisionConfig(
        backbone_config=TimmWrapperConfig(
            architecture=config.backbone,
            model_args={"in_chans": 3, "features_only": True, "out_indices": indices},
        ),
        backbone_channel_list=channels[::-1],
        backbone_feature_sizes=level_sizes(size),
        fpn_hidden_size=teacher.vision_config.fpn_hidden_size,
        fpn_top_down_levels=[*config.top_down_levels, coarsest],
    )
    values = teacher.to_dict()
    for owner in ("model_type", "transformers_version", "architectures", "dtype"):
        values.pop(owner, None)
    values |= {
        "image_size": size,
        "prompt_encoder_config": values["prompt_encoder_config"] | {"image_size": size},
        "memory_attention_rope_feat_sizes": [size // 16] * 2,
        "vision_config": vision.to_dict(),
        "num_maskmem": config.memory_slices,
        "memory_attention_num_layers": config.memory_layers,
        "memory_attention_dropout": 0.0,
        "memory_attention_rope_dropout": 0.0,
    }
    return Sam2VideoConfig(**values)


def build_student(
    config: StudentConfig,
    teacher: Sam2VideoConfig,
    teacher_state: Mapping[str, Tensor],
    *,
    seed: int,
    fresh: tuple[str, ...] = (),
) -> Sam2VideoModel:
    """A student with timm's backbone and the teacher's other modules copied.

    Copied: prompt encoder, mask decoder (with the 1x1 convolutions on s4 and s8), memory encoder,
    object pointer, all embeddings, and the first layers of the memory attention.

    Args:
        config: of the student.
        teacher: the teacher's configuration.
        teacher_state: the teacher's weights; those of its image encoder are not read.
        seed: of the initialisation; the global random state is left as it was.
        fresh: beginnings of names that this teacher does not have, and the student initialises.

    Raises:
        NetworkConfigError: the backbone does not fit, the teacher has fewer memory layers or
            remembers fewer slices, or the image sizes differ and nothing says how to resize.
        WeightsError: timm's weights are wanted and cannot be had.
    """
    check_student_size(config, int(teacher.image_size))
    for key, wanted, most in (
        ("memory_layers", config.memory_layers, int(teacher.memory_attention_num_layers)),
        ("memory_slices", config.memory_slices, int(teacher.num_maskmem)),
    ):
        if wanted > most:
            raise NetworkConfigError(
                f"student.{key}={wanted} but the teacher has {most}; use --set student.{key}="
                f"{most} or less"
            )
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed the GPUs as well.
        torch.default_generator.manual_seed(seed)
        net_config = student_config(config, teacher)
        student = new_model(net_config)
        # transformers overwrites timm's own initialisation with N(0, 0.02).
        arguments = net_config.vision_config.backbone_config.model_args
        backbone = _timm_backbone(config, arguments)
    _check_grids(backbone, config.backbone, size=int(net_config.image_size))
    student.vision_encoder.backbone.timm_model.load_state_dict(backbone.state_dict())
    for convolution in student.vision_encoder.neck.convs:
        torch.nn.init.zeros_(convolution.bias)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            torch.nn.init.xavier_uniform_(convolution.weight)
    _copy_teacher(student, teacher_state, fresh)
    return student


def _timm_backbone(config: StudentConfig, arguments: Mapping[str, Any]) -> nn.Module:
    """The backbone as timm itself initialises it, or with its ImageNet weights."""
    try:
        backbone: nn.Module = timm.create_model(
            config.backbone, pretrained=config.pretrained, **arguments
        )
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"student.pretrained=true: timm's weights of {config.backbone} cannot be had: {error}\n"
            "Go online once, or use --set student.pretrained=false"
        ) from error
    return backbone


@torch.no_grad()
def _check_grids(backbone: nn.Module, name: str, *, size: int) -> None:
    """Run one blank image: some backbones take one image size only, or give (B, H, W, C).

    Raises:
        NetworkConfigError: it does not run at this size or gives other grids than its strides say.
    """
    was_training = backbone.training
    try:
        levels = backbone.eval()(torch.zeros(1, 3, size, size))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise NetworkConfigError(
            f"student.backbone={name!r} does not run at {size} px: {error}\n{_MEND}"
        ) from error
    finally:
        backbone.train(was_training)
    grids = [tuple(level.shape[-2:]) for level in levels]
    expected = [(size // stride, size // stride) for stride in (4, 8, 16, 32)][: len(grids)]
    if grids != expected:
        raise NetworkConfigError(
            f"student.backbone={name!r} gives grids {grids} at {size} px; a student needs "
            f"{expected}.\n{_MEND}"
        )


def _copy_teacher(
    student: Sam2VideoModel, teacher_state: Mapping[str, Tensor], fresh: tuple[str, ...]
) -> None:
    """Copy every module that the student shares with the teacher.

    Raises:
        NetworkConfigError: a shape differs.
    """
    own = student.state_dict()
    copied: dict[str, Tensor] = {}
    for name, value in own.items():
        if name.startswith(("vision_encoder.", *fresh)):
            continue
        source = teacher_state[name]
        if name == "memory_temporal_positional_encoding":
            # Codes of the nearest slices, then the code of the prompted slice, which is last.
            source = torch.cat([source[: value.shape[0] - 1], source[-1:]])
        if source.shape != value.shape:
            raise NetworkConfigError(
                f"teacher and student differ in {name}: {tuple(source.shape)} and "
                f"{tuple(value.shape)}"
            )
        copied[name] = source.to(value.dtype)
    missing = student.load_state_dict(copied, strict=False).missing_keys
    assert all(name.startswith(("vision_encoder.", *fresh)) for name in missing)
