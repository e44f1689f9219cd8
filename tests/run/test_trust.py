"""Nothing that is read is executed: checkpoints, metrics, data, tokenizer."""

import ast
import pathlib
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clips_jax
from clips_jax.checkpoint import Checkpoints
from clips_jax.config import CheckpointConfig
from clips_jax.data.tokenizer import SentencePieceTokenizer
from clips_jax.data.triples import Records, open_builder
from clips_jax.metrics import read_metrics
from clips_jax.train_step import TrainState

SOURCES = sorted(pathlib.Path(clips_jax.__file__).parent.rglob("*.py"))
# Modules that build any object their input names, and functions that run it.
FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}


def violations(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [f"imports {name}" for name in names if name.split(".")[0] in FORBIDDEN_IMPORTS]
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
                found.append(f"calls {node.func.id}")
            for keyword in node.keywords:
                value = getattr(keyword.value, "value", None)
                if keyword.arg in ("allow_pickle", "shell") and value is not False:
                    found.append(f"{keyword.arg}={value}")
                if keyword.arg == "weights_only" and value is not True:
                    found.append(f"{keyword.arg}={value}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_source_executes_what_it_reads(path):
    assert violations(path.read_text()) == []


def test_the_search_finds_what_it_looks_for():
    bad = ["import pickle", "from dill import loads", "eval(x)", "np.load(f, allow_pickle=True)"]
    bad += ["torch.load(f, weights_only=False)", "subprocess.run(x, shell=True)"]
    assert [len(violations(line)) for line in bad] == [1] * len(bad)


def test_checkpoints_data_and_metrics_are_read_without_pickle(tmp_path, emoji_data_dir, monkeypatch):
    checkpoints = Checkpoints(str(tmp_path), CheckpointConfig(every_steps=1))
    checkpoints.save(TrainState(jnp.int32(1), {"a": jnp.arange(3.0)}, {"m": jnp.ones(3)}), {"counters": {}})
    checkpoints.close()
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')

    def refuse(*_, **__):
        raise AssertionError("something is unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    with pytest.raises(AssertionError):
        pickle.loads(b"")  # the guard is in place
    checkpoints = Checkpoints(str(tmp_path))
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = TrainState(
        jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding),
        {"a": jax.ShapeDtypeStruct((3,), jnp.float32, sharding=sharding)},
        {"m": jax.ShapeDtypeStruct((3,), jnp.float32, sharding=sharding)},
    )
    np.testing.assert_array_equal(checkpoints.restore(1, shapes).params["a"], [0, 1, 2])
    assert checkpoints.meta(1)["counters"] == {} and read_metrics(str(tmp_path)) == [{"step": 1}]
    records = Records("emoji", "train", emoji_data_dir)
    assert records[0]["alt_text"]
    folder = open_builder("emoji", emoji_data_dir).data_dir
    assert SentencePieceTokenizer(str(folder) + "/tokenizer.model").vocab_size == 2000
