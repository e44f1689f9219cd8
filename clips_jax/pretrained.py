"""A model ready to use, from a training workdir or from a folder of files: ours or a released one.

`load` takes either, so that whatever embeds, evaluates, captions or exports needs no second way in.
"""

import contextlib
import dataclasses
import json
import os
from typing import Any, Literal

import jax
from etils import epath
from flax import traverse_util
from jax.sharding import Mesh

from clips_jax.checkpoint import Checkpoints, check_tokenizer
from clips_jax.config import (
    CheckpointConfig,
    Config,
    ConfigError,
    DataConfig,
    MeshConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TextConfig,
    TokenizerConfig,
    ViewConfig,
)
from clips_jax.config.parse import from_config_dict, parse_dataclass
from clips_jax.data.open_tokenizer import Tokenizer, open_tokenizer
from clips_jax.data.tokenizer import SPECIALS_PER_SEQUENCE
from clips_jax.encode import Encoder
from clips_jax.interop.open_clip_config import model_from
from clips_jax.interop.state_dict import WrongWeights, from_state_dict, normalize_keys
from clips_jax.interop.weights import find_weights, read_weights
from clips_jax.models.clips import Clips
from clips_jax.preprocessing import Preprocessing
from clips_jax.program import make_program
from clips_jax.sharding import make_mesh, parameter_shardings
from clips_jax.train_step import init_params

OPEN_CLIP_CONFIG = "open_clip_config.json"
OWN_CONFIG = "clips_jax.json"  # beside an export: our config, what it was trained on, how far
OWN_WEIGHTS = "clips_jax_model.safetensors"  # all parameters under our paths
CAPTIONER_WEIGHTS = "clips_jax_captioner.safetensors"  # the part that OpenCLIP's format has no place for

Positions = Literal["", "learned", "sincos"]


@dataclasses.dataclass(frozen=True)
class Made:
    """How a model came to be.

    Attributes:
      config: as it was trained.
      step, samples_seen: 0 where unknown.
    """

    config: Config
    step: int
    samples_seen: int


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model with its parameters on the devices, and what it needs to read pictures and texts.

    Attributes:
      path: where it came from.
      made: how it was trained, as far as is known.
      config: the run's, but for the mesh and what the caller of `load` changed; of an imported model, only `model`,
        `tokenizer` and the names of the views mean something.
    """

    path: str
    made: Made
    config: Config
    model: Clips
    tokenizer: Tokenizer
    preprocessing: Preprocessing
    mesh: Mesh
    params: Any
    encoder: Encoder

    @property
    def step(self) -> int:
        """Of the checkpoint; 0 where unknown."""
        return self.made.step

    @property
    def samples_seen(self) -> int:
        """By the checkpoint; 0 where unknown."""
        return self.made.samples_seen


@dataclasses.dataclass(frozen=True)
class _RunTime:
    """What a caller wants, whatever the model's config says; see `load`."""

    mesh: MeshConfig
    exact: bool
    batch_size: int

    def applied_to(self, config: Config) -> Config:
        # The training batch size plays no part here, but must divide over the devices.
        changes: dict[str, Any] = {"mesh": self.mesh, "batch_size": config.batch_size * jax.device_count()}
        if self.exact:
            changes["model"] = dataclasses.replace(config.model, dtype="float32")
        if self.batch_size:
            changes["evaluation"] = dataclasses.replace(config.evaluation, batch_size=self.batch_size)
        return dataclasses.replace(config, **changes)


def load(
    path: str,
    *,
    step: int | None = None,
    data_dir: str = "",
    mesh: MeshConfig | None = None,
    positions: Positions = "",
    exact: bool = False,
    batch_size: int = 0,
) -> Pretrained:
    """Opens a model on all devices.

    Args:
      path: the workdir of a run, or a model folder: an export of ours, or an OpenCLIP-format CLIPS or OpenVision model
        (`open_clip_config.json`, weights, tokenizer files), or one weight file in such a folder.
      step: of a workdir: which checkpoint; None is the newest complete one.
      data_dir: of a workdir: TFDS folder, if the data has moved since.
      mesh: None spreads the batch over all devices, each with all parameters.
      positions: of a model folder: how the image position table is held. "" is sin-cos, an error if it is not.
      batch_size: pictures or texts that the encoder takes at once; 0 is what the config says.
      exact: compute in float32 at the highest matmul precision, whatever the model was trained in.

    Raises:
      FileNotFoundError: no model there. WrongWeights: one that ours cannot hold. CheckpointMismatch: another tokenizer
        lies where the run's was. ConfigError: it does not fit these devices.
    """
    run_time = _RunTime(mesh or MeshConfig(), exact, batch_size)
    if is_workdir(path):
        if positions:
            raise ConfigError(f"positions is for imported models; {path} is a workdir, whose config says it.")
        return _from_workdir(path, step, data_dir, run_time)
    if step is not None:
        raise ConfigError(f"step is for workdirs; {path} is none.")
    return _from_folder(path, positions, run_time)


def is_workdir(path: str) -> bool:
    """Whether a training run wrote there; anything else is taken for a model folder."""
    return (epath.Path(path) / "checkpoints").exists()


def _from_workdir(workdir: str, step: int | None, data_dir: str, run_time: "_RunTime") -> Pretrained:
    with contextlib.closing(Checkpoints(workdir)) as checkpoints:
        steps = checkpoints.steps()
        if not steps or (step is not None and step not in steps):
            wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
            raise FileNotFoundError(f"{checkpoints.directory} has no complete {wanted}; there are steps {steps}.")
        step = steps[-1] if step is None else step
        meta: dict[str, Any] = checkpoints.meta(step)
        trained = from_config_dict(meta["config"])
        config = run_time.applied_to(trained)
        if data_dir:
            config = dataclasses.replace(config, data=dataclasses.replace(config.data, data_dir=data_dir))
        program = make_program(config)
        check_tokenizer(meta["tokenizer"], program.tokenizer_identity(), checkpoints.path(step))
        params = checkpoints.restore_params(step, program.state_shapes.params)
    preprocessing = Preprocessing.of_training(config.model.image.image_size)
    made = Made(trained, step, int(meta["samples_seen"]))
    return _pretrained(workdir, made, config, program.tokenizer, preprocessing, program.mesh, params, run_time)


def _from_folder(path: str, positions: Positions, run_time: _RunTime) -> Pretrained:
    folder = _folder_of(path)
    own = _read_json(folder, OWN_CONFIG)
    config, params, preprocessing = read_folder(path, positions)
    tokenizer = open_tokenizer(folder)
    if own is not None:
        check_tokenizer(own["tokenizer"], tokenizer.identity(), folder)
    if tokenizer.vocab_size > config.model.text.vocab_size:
        raise WrongWeights(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} ids, the model's token table "
            f"{config.model.text.vocab_size} rows: they do not belong together."
        )
    trained = dataclasses.replace(config, tokenizer=TokenizerConfig(path=folder))
    config = run_time.applied_to(trained)
    mesh = make_mesh(config)
    params = _on_devices(params, config, tokenizer, mesh)
    made = Made(trained, *(int((own or {}).get(key, 0)) for key in ("step", "samples_seen")))
    return _pretrained(path, made, config, tokenizer, preprocessing, mesh, params, run_time)


def read_folder(path: str, positions: Positions) -> tuple[Config, Any, Preprocessing]:
    """The config, the parameters (on the host) and the preprocessing of a model folder; see `load` for the errors."""
    folder = _folder_of(path)
    own, file = _read_json(folder, OWN_CONFIG), _read_json(folder, OPEN_CLIP_CONFIG)
    if own is None:
        state = normalize_keys(read_weights(find_weights(path) if os.path.isdir(path) else path))
        try:
            model, preprocessing = model_from(state, file, positions == "learned")
        except (TypeError, AttributeError, KeyError) as error:  # a list where an object is wanted, and the like
            raise WrongWeights(f"{os.path.join(folder, OPEN_CLIP_CONFIG)} has another form: {error}") from error
        with_bias = "logit_bias" in state
        return imported_config(model, with_bias, folder), from_state_dict(state, model, with_bias), preprocessing
    config = from_config_dict(own["config"])
    preprocessing = parse_dataclass(Preprocessing, own["preprocessing"], "preprocessing")
    if positions:
        held = "learned" if positions == "learned" else "sincos2d"
        image = dataclasses.replace(config.model.image, positions=held)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, image=image))
    return config, _own_params(folder, config), preprocessing


def _folder_of(path: str) -> str:
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no {path}; a training workdir or a model folder is wanted.")
    return path if os.path.isdir(path) else os.path.dirname(path) or "."


def _own_params(folder: str, config: Config) -> Any:
    whole = os.path.join(folder, OWN_WEIGHTS)
    if os.path.isfile(whole):
        return traverse_util.unflatten_dict(read_weights(whole), sep="/")
    state = normalize_keys(read_weights(find_weights(folder)))
    params = from_state_dict(state, config.model, config.objective.contrastive == "sigmoid")
    if config.model.captioner:
        captioner = read_weights(os.path.join(folder, CAPTIONER_WEIGHTS))
        params |= traverse_util.unflatten_dict(captioner, sep="/")
    return params


def _on_devices(params: Any, config: Config, tokenizer: Tokenizer, mesh: Mesh) -> Any:
    """Every array where the mesh wants it; raises `WrongWeights` listing the paths if they are not the model's."""
    model = Clips(config.model, config.objective, tokenizer.special.bos)
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
    wanted: dict[str, Any] = traverse_util.flatten_dict(
        jax.eval_shape(lambda k: init_params(config, model, k), key), sep="/"
    )
    found: dict[str, Any] = traverse_util.flatten_dict(params, sep="/")
    wrong = [
        f"{name}: {found[name].shape if name in found else 'not there'}, wanted "
        f"{wanted[name].shape if name in wanted else 'nothing'}"
        for name in sorted(wanted.keys() | found.keys())
        if name not in wanted or name not in found or wanted[name].shape != found[name].shape
    ]
    if wrong:
        raise WrongWeights("the weights do not fit the config:" + "".join(f"\n  {line}" for line in wrong))
    return jax.device_put(params, parameter_shardings(params, mesh))


def imported_config(model: ModelConfig, with_bias: bool, tokenizer: str) -> Config:
    """A config around an imported model: one view called "caption", nothing to train on."""
    length = model.text.length
    return Config(
        data=DataConfig("", {"caption": TextConfig(length - SPECIALS_PER_SEQUENCE)}),
        model=model,
        objective=ObjectiveConfig(
            {"caption": ViewConfig({"caption": 1.0}, length)}, contrastive="sigmoid" if with_bias else "softmax"
        ),
        optimizer=OptimizerConfig(learning_rate=0.0, warmup_samples=0),
        checkpoint=CheckpointConfig(every_steps=1),
        tokenizer=TokenizerConfig(tokenizer),
        batch_size=1,
        total_samples=1,
    )


def _pretrained(
    path: str,
    made: Made,
    config: Config,
    tokenizer: Tokenizer,
    preprocessing: Preprocessing,
    mesh: Mesh,
    params: Any,
    run_time: "_RunTime",
) -> Pretrained:
    model = Clips(config.model, config.objective, tokenizer.special.bos)
    encoder = Encoder(config, model, tokenizer, mesh, params, preprocessing, "highest" if run_time.exact else None)
    return Pretrained(path, made, config, model, tokenizer, preprocessing, mesh, params, encoder)


def _read_json(folder: str, name: str) -> dict[str, Any] | None:
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except ValueError as error:
        raise WrongWeights(f"{path} is not JSON: {error}") from error
