"""The official network's outputs, reproduced from a checkpoint in the official naming.

Weights, frames, prompts and the meaning of each array: tests/golden/README.md.
"""

import re

import numpy as np
import pytest
import torch

from efficient_medsam2.networks.options import RunnerOptions
from efficient_medsam2.networks.records import Prompts, boxes_to_prompts
from efficient_medsam2.networks.runner import SliceRunner
from efficient_medsam2.teachers.load import load_teacher
from tests.networks import golden

TOLERANCE = 1e-4
DEPLOYED = RunnerOptions(binarise_prompted_mask=True, dynamic_multimask=True)

pytestmark = pytest.mark.slow


def sampled(tensor, *steps):
    """Every so-many-th channel, row and column, without the batch axis."""
    return tensor[0].numpy()[tuple(slice(None, None, step) for step in steps)]


class Produced:
    """Our arrays under the golden names."""

    def __init__(self, model, features):
        self.model = model
        self.features = features
        self.arrays = {}

    def encoder(self, raw):
        first = self.features[0]
        self.arrays |= {
            "fpn_raw_s4": sampled(raw[0], 16, 8, 8),
            "fpn_raw_s8": sampled(raw[1], 16, 4, 4),
            "fpn_s4": sampled(first.s4, 4, 4, 4),
            "fpn_s8": sampled(first.s8, 4, 2, 2),
            "fpn_s16": sampled(first.s16, 4, 2, 2),
        }

    def answer(self, name, prompts):
        record = SliceRunner(self.model).prompted(self.features[0], prompts)
        self.arrays |= {
            f"{name}_low_logits": sampled(record.candidate_logits),
            f"{name}_iou": sampled(record.iou),
            f"{name}_obj_score": sampled(record.object_score),
            f"{name}_obj_ptr": sampled(record.object_pointer),
        }
        return record

    def sequence(self, name, order, *, prompts=None, mask=None, options=None):
        runner = SliceRunner(self.model, options)
        bank = []
        for t in order:
            here, first = self.features[t], not bank
            if not first:
                record = runner.tracked(
                    here, bank, position=t, reverse=order[0] > order[-1], num_frames=4
                )
            elif mask is None:
                record = runner.prompted(here, prompts)
            else:
                record = runner.mask_prompted(here, mask)
            full = mask if first else None
            entry = runner.remember(here, record, position=t, prompted=first, full_mask_B1SS=full)
            bank.append(entry)
            every = 1 if name == "prop" else 2
            found = {
                "low_logits": sampled(record.mask_logits, 1, every, every)[0],
                "memory": sampled(entry.memory, 2, 2, 2),
                "obj_ptr": sampled(record.object_pointer),
                "obj_score": sampled(record.object_score),
            }
            if full is None:
                found["post_memory"] = sampled(record.conditioned_s16, 4, 2, 2)
                found["iou"] = sampled(record.iou)
            self.arrays |= {f"{name}_t{t}_{what}": value for what, value in found.items()}


@pytest.fixture(scope="module")
def reference():
    return golden.arrays()


@pytest.fixture(scope="module")
def state():
    return golden.state_dict()


@pytest.fixture(scope="module")
def model(state, tmp_path_factory):
    """Through a file and the strict loader, as a user's checkpoint comes."""
    path = tmp_path_factory.mktemp("official") / "MedSAM2_latest.pt"
    torch.save({"model": state}, path)
    runner = load_teacher("medsam2", path).runner
    path.unlink()
    return runner.model


@pytest.fixture(scope="module")
def encoded(model):
    """Features of the four frames, and the neck's raw outputs of the first."""
    raw = []
    encoder = model.vision_encoder
    hook = encoder.register_forward_hook(lambda *call: raw.append(call[-1].fpn_hidden_states))
    torch.set_num_threads(1)
    with torch.no_grad():
        features = [SliceRunner(model).encode(frame) for frame in golden.network_inputs()]
    hook.remove()
    return features, raw[0]


def test_the_readme_states_the_prompts():
    assert golden.box("BOX").shape == golden.box("DEPLOY_BOX").shape == (1, 4)
    assert not torch.equal(golden.box("BOX"), golden.box("DEPLOY_BOX"))
    points, labels = golden.clicks("POINT")
    assert points.shape == (1, 1, 2)
    assert labels.tolist() == [[1]]
    points, labels = golden.clicks("REFINE")
    assert points.shape == (1, 2, 2)
    assert labels.tolist() == [[1, 0]]
    assert 0 < golden.disc().mean() < 0.5


def errors(produced, reference):
    """Relative error of each array of ours, by name."""
    found = {}
    for name, ours in produced.items():
        theirs = reference[name].astype(np.float64)
        assert ours.shape == theirs.shape, name
        found[name] = np.abs(ours - theirs).max() / np.abs(theirs).max()
    return found


def test_weights_and_frames_follow_the_rules(reference, state):
    checks = [name for name in reference if name.startswith("check_weight/")]
    assert checks
    ours = {
        name: state[name.removeprefix("check_weight/")].flatten()[:4].numpy() for name in checks
    }
    frames = golden.frames().astype(np.int64)
    ours |= {"check_image_sum": frames.sum((1, 2)), "check_image_head": frames[:, 0, :8]}
    assert max(errors(ours, reference).values()) < 1e-6


@torch.no_grad()
def test_every_golden_array_is_reproduced_on_one_thread(model, encoded, reference):
    features, raw = encoded
    produced = Produced(model, features)
    produced.encoder(raw)
    produced.answer("box", boxes_to_prompts(golden.box("BOX")))
    points, labels = golden.clicks("POINT")
    point = produced.answer("point", Prompts(points_BN2=points, labels_BN=labels))
    points, labels = golden.clicks("REFINE")
    refined = Prompts(points_BN2=points, labels_BN=labels, mask_logits=point.mask_logits)
    produced.answer("refine", refined)
    produced.sequence("prop", [0, 1, 2, 3], prompts=boxes_to_prompts(golden.box("BOX")))
    produced.sequence("revmask", [3, 2, 1], mask=golden.disc())
    produced.sequence(
        "deploy", [0, 1], prompts=boxes_to_prompts(golden.box("DEPLOY_BOX")), options=DEPLOYED
    )
    bias = model.mask_decoder.pred_obj_score_head.proj_out.bias
    before = bias.clone()
    bias.fill_(-100.0)
    produced.sequence("absent", [0, 1], prompts=boxes_to_prompts(golden.box("BOX")))
    bias.copy_(before)

    wanted = {name for name in reference if not name.startswith("check_")}
    assert wanted <= set(produced.arrays)
    ours = {name: produced.arrays[name] for name in wanted}
    off = {name: e for name, e in errors(ours, reference).items() if not e <= TOLERANCE}
    assert not off


@torch.no_grad()
def test_eager_attention_on_two_threads_gives_the_same(model, encoded, reference):
    torch.set_num_threads(2)
    features, _ = encoded
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    attentions = [
        module
        for module in model.modules()
        if re.search("Attention$", type(module).__name__) and hasattr(module, "config")
    ]
    assert {module.config._attn_implementation for module in attentions} == {"eager"}
    try:
        first = SliceRunner(model).encode(golden.network_inputs()[0])
        produced = Produced(model, [first, features[1]])
        produced.answer("box", boxes_to_prompts(golden.box("BOX")))
        produced.sequence("prop", [0, 1], prompts=boxes_to_prompts(golden.box("BOX")))
    finally:
        model.set_attn_implementation(before)
    produced.arrays["fpn_s16"] = sampled(first.s16, 4, 2, 2)
    ours = {name: value for name, value in produced.arrays.items() if name in reference}
    assert {"fpn_s16", "box_low_logits", "prop_t1_low_logits"} <= set(ours)
    assert max(errors(ours, reference).values()) <= TOLERANCE
