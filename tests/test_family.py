"""Every member of the family: its config is valid at every size, has the parts it should, and one step trains them."""

import dataclasses
import importlib

import jax
import numpy as np
import pytest

from clips_jax.config import ConfigError, to_dict
from clips_jax.config.parse import from_config_dict
from clips_jax.models.clips import Clips
from clips_jax.optimizer import path_name
from clips_jax.program import make_step_program
from clips_jax.train_step import init_params
from configs import clipa, clips, family, laclip, openvision2
from tests import small

CLIP_PARTS = {"image", "text", "logit_scale"}
PARTS = {  # and the losses that its step reports
    "clip": (CLIP_PARTS, {"contrastive", "contrastive/alt"}),
    "siglip": (CLIP_PARTS | {"logit_bias"}, {"contrastive", "contrastive/alt"}),
    "clipa": (CLIP_PARTS, {"contrastive", "contrastive/alt"}),
    "recap_mix": (CLIP_PARTS, {"contrastive", "contrastive/mix"}),
    "veclip": (CLIP_PARTS, {"contrastive", "contrastive/mix"}),
    "laclip": (CLIP_PARTS, {"contrastive", "contrastive/alt"}),
    "coca": (CLIP_PARTS | {"captioner"}, {"contrastive", "contrastive/alt", "caption"}),
    "clips": (CLIP_PARTS | {"captioner"}, {"contrastive", "contrastive/alt", "contrastive/recap", "caption"}),
    "openvision2": ({"image", "captioner"}, {"caption"}),
}


def test_every_member_is_tested():
    assert set(PARTS) == set(family.MEMBERS)


def member(name: str, arguments: str = ""):
    return from_config_dict(importlib.import_module(f"configs.{name}").get_config(arguments))


def shapes_of(config):
    model = Clips(config.model, config.objective, bos=2)
    return jax.eval_shape(lambda key: init_params(config, model, key), jax.random.key(0))


@pytest.mark.parametrize("name", PARTS)
def test_valid_at_every_size(name):
    for arguments in ("", "size=b16", "size=b16,stage=2", "size=l14", "size=l14,stage=3", "size=l14,smoke=True"):
        config = member(name, arguments)
        assert from_config_dict(to_dict(config)) == config
    assert set(shapes_of(member(name, "size=l14"))) == PARTS[name][0]
    for arguments, message in (("size=b17", "size=b17"), ("size=b16,stage=3", "stage=3"), ("stage=3", "stage=3")):
        with pytest.raises(ConfigError, match=message):
            member(name, arguments)


@pytest.mark.parametrize("name", PARTS)
def test_a_step_at_smoke_size_trains_every_parameter(name):
    config = member(name, "smoke=True")
    data = dataclasses.replace(config.data, jitter=0.0, grayscale_probability=0.0)  # half of the compile time
    config = dataclasses.replace(config, data=data)
    program = make_step_program(config, small.one_device(), small.SPECIAL)
    rng = np.random.default_rng(0)  # parameters by NumPy: the initialisers would take as long to compile as the step
    state = jax.tree.map(lambda shape: np.zeros(shape.shape, shape.dtype), program.state_shapes)
    params = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(x.dtype), state.params)
    state, metrics = program.step()(state.replace(params=params), small.batch(config))
    assert metrics["finite"] == 1 and np.isfinite(metrics["loss"])
    assert {key.removeprefix("loss/") for key in metrics if key.startswith("loss/")} == PARTS[name][1]
    moments = {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(state.opt_state)}
    first = {path: moment for path, moment in moments.items() if "/mu/" in path}
    assert len(first) == len(jax.tree.leaves(state.params))
    assert [path for path, moment in first.items() if not np.any(moment)] == []


def test_openvision2_has_nothing_that_leads_into_a_joint_space():
    assert not {"head", "norm"} & set(shapes_of(member("openvision2", "size=b16"))["image"])


def test_arguments_of_members():
    assert from_config_dict(clipa.get_config("size=b16,keep=0.25")).model.image.keep_tokens == 0.25
    assert from_config_dict(clipa.get_config("size=b16,stage=2")).model.image.keep_tokens == 1
    assert from_config_dict(openvision2.get_config("keep=0.35")).model.captioner.keep_image_tokens == 0.35
    assert from_config_dict(laclip.get_config("size=b16,rewrites=llm")).data.texts["llm"].among == ("alt_text",)
    assert clips.get_config("captioner=none").model.captioner is None
    assert clips.get_config("captioner=learnable").model.captioner.kind == "learnable"
    with pytest.raises(ConfigError, match="captioner=both"):
        clips.get_config("captioner=both")
