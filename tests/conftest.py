"""Strict JAX for all tests, and small corpora and runs that several of them share."""

import gc
import os
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# compilation takes most of the tests' time: programs of a few steps do not repay LLVM's optimization, XLA's older
# emitters write a quarter of the code, and the same programs are compiled by several tests, workers and processes.
# `make test-all` compiles as users do: it sets XLA_FLAGS to nothing
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_parallel_codegen_split_count=1"
    # jax 0.12 has one kind of emitters, and refuses the flag
    + (" --xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""),
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / "build" / "jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.01")

import jax
import numpy as np
import pytest
from helpers import branches_for, make_random_model

from jaxlm.config import ModelConfig, ScheduleConfig, TrainConfig
from jaxlm.data.corpus import Corpus, load_corpus
from jaxlm.data.preparation import prepare
from jaxlm.runs.loop import train

jax.config.update("jax_numpy_rank_promotion", "raise")

one_device = os.environ["XLA_FLAGS"]
os.environ["XLA_FLAGS"] = f"{one_device} --xla_force_host_platform_device_count=8"  # for some of the tests
assert len(jax.devices()) == 8 or jax.default_backend() != "cpu"
os.environ["XLA_FLAGS"] = one_device  # processes that tests start are as a user's

WORDS = ["the", "of", "and", "whale", "sea", "Ahab", "harpoon", "ship", "don", "t"]


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_programs():
    """A process may map 65,530 areas of memory; a compiled program takes several, and JAX keeps each it has made."""
    yield
    with open("/proc/self/maps", "rb") as areas:
        if sum(1 for _ in areas) > 25_000:
            jax.clear_caches()
    spare_the_garbage_collector()


@pytest.fixture(autouse=True)
def visible_devices(monkeypatch):
    """Lets jaxlm see one device, as on most machines. Tests of meshes and processes replace it, and see all eight."""
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)


def spare_the_garbage_collector() -> None:
    """Sets aside what lives on, such as modules. Without it, a quarter of the tests' time goes into looking at it."""
    gc.collect()
    gc.freeze()


def pytest_collection_finish() -> None:
    gc.set_threshold(100_000)
    spare_the_garbage_collector()


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12,000 words of a language with structure: each word depends on the one before."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("text") / "train.txt"
    state, lines = 0, []
    for _ in range(1500):
        line = []
        for _ in range(8):
            state = (state + int(rng.integers(1, 4))) % len(WORDS)
            line.append(WORDS[state])
        lines.append(" ".join(line) + rng.choice([".", "!", "", " rare" + str(rng.integers(400))]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def corpus_dir(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("corpus") / "data"
    prepare(text_file, directory, vocab_size=120, progress=False)
    return directory


@pytest.fixture(scope="session")
def corpus(corpus_dir: Path) -> Corpus:
    return load_corpus(corpus_dir)


@pytest.fixture(scope="session")
def run_dir(corpus: Corpus, corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run of two layers, to be read only."""
    directory = tmp_path_factory.mktemp("run") / "run"
    model = ModelConfig(len(corpus.vocabulary), embedding_size=7, hidden_size=11, num_layers=2)
    config = TrainConfig(batch_size=4, sequence_length=5, num_sampled=20)
    schedule = ScheduleConfig(learning_rate=0.03, steps=60, eval_every=20, eval_tokens=400)
    train(corpus, directory, model, config, schedule, data=corpus_dir, progress=False)
    return directory


@pytest.fixture(params=["cpu", "default"])
def branch(request, monkeypatch):
    """Runs a test on the branches for a processor, and again on those for everything else."""
    with branches_for(request.param, monkeypatch):
        yield request.param


@pytest.fixture
def random_model():
    return make_random_model


@pytest.fixture
def random_run():
    """Makes a `convert.weights.run_model.RunModel` of a random model, with words."""
    from convert.weights.run_model import RunModel

    def make(num_layers: int = 2, **change: int) -> RunModel:
        model = make_random_model(num_layers, **change)
        words = ("the", "<eos>", "<unk>", *(f"word{i}" for i in range(3, model.config.vocab_size)))
        return RunModel(model, words, "words")

    return make
