"""The scripts of examples/reproduce: they refuse other texts in one line, and run on small ones in the same forms."""

import json
import logging
import math
import re
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import jaxlm
from jaxlm.model.params import split_params
from jaxlm.runs.directory import load_config
from jaxlm.runs.metrics import read_metrics

FOLDER = Path(__file__).parent.parent / "examples" / "reproduce"


@pytest.fixture
def run(monkeypatch, capsys) -> Iterator[Callable[..., str]]:
    """Runs a script in this process, and returns its output, or its error."""
    monkeypatch.syspath_prepend(str(FOLDER))
    logger = logging.getLogger("jaxlm")
    handlers, level, propagate = logger.handlers, logger.level, logger.propagate

    def run_script(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        logger.handlers = []
        try:
            runpy.run_path(str(FOLDER / name), run_name="__main__")
        except SystemExit as end:
            assert end.code == 2
            return capsys.readouterr().err
        return capsys.readouterr().out

    yield run_script
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)


@pytest.fixture(scope="module")
def treebank(text_file, tmp_path_factory) -> Path:
    """A text in the form of the Penn Treebank: lower case, `<unk>`, N, and a blank at both ends of a line."""
    directory = tmp_path_factory.mktemp("ptb")
    lines = text_file.read_text(encoding="utf-8").lower().replace("rare1", "<unk>").replace("rare2", "N").splitlines()
    for name, part in (("train", lines[:1200]), ("valid", lines[1200:1350]), ("test", lines[1350:])):
        text = "".join(f" {' '.join(line.split())} \n" for line in part)
        (directory / f"ptb.{name}.txt").write_text(text, encoding="utf-8")
    return directory


def zaremba_in_pytorch(model: jaxlm.LanguageModel, corpus: jaxlm.Corpus, epochs: int) -> list[float]:
    """Returns the test perplexity after each epoch of the small model, trained as in TensorFlow's ptb_word_lm.py."""
    from pytorch_helpers import clipped_step, cross_entropy, lstm_outputs, torch_params, zero_carry

    params = torch_params(*split_params(model)[1:])
    streams, test, perplexities = corpus.train[: corpus.train.size // 20 * 20].reshape(20, -1), corpus.test, []
    for epoch in range(epochs):
        carry, learning_rate = zero_carry(params, 20), 0.5 ** max(epoch + 1 - 4, 0)
        for step in range((streams.shape[1] - 1) // 20):
            words = streams[:, 20 * step : 20 * step + 21]
            _, hidden, carry = lstm_outputs(params, words[:, :-1], carry)
            loss = 20 * cross_entropy(params, hidden, words[:, 1:])  # the sum over time steps
            clipped_step(loss, params, learning_rate, max_norm=5.0)
        _, hidden, _ = lstm_outputs(params, test[None, :-1], zero_carry(params, 1))
        perplexities.append(math.exp(cross_entropy(params, hidden, test[None, 1:]).item()))
    return perplexities


@pytest.mark.slow
def test_zaremba_s_small_model_has_the_perplexity_of_the_same_training_in_pytorch(run, treebank, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxlm.training.settings.fast_dtype", lambda: "float32")
    output = run("zaremba2014.py", "--data", treebank, "--out", tmp_path, "--no-check", "--epochs", 5, "--divisor", 8)
    *_, last = output.strip().splitlines()
    valid = [float(each) for each in re.findall(r"^step \d+: validation perplexity (\S+)", output, re.MULTILINE)]
    assert len(valid) == 5 and last.startswith("test perplexity ") and last.endswith("(published: 114.5)")
    assert float(last.split()[2]) < 18  # the unigram model has 26
    corpus, make = jaxlm.load_corpus(tmp_path / "data"), runpy.run_path(str(FOLDER / "zaremba2014.py"))["uniform_model"]
    model = make(jaxlm.ModelConfig(len(corpus.vocabulary), 25, 25, num_layers=2), 0.1)
    expected = zaremba_in_pytorch(model, corpus, epochs=5)
    np.testing.assert_allclose(float(last.split()[2]), expected[np.argmin(valid)], rtol=1e-3)


@pytest.fixture
def settings_of(run, treebank, tmp_path, monkeypatch) -> Callable[..., tuple]:
    """Returns the configurations that a script trains with."""

    def settings(name: str, *arguments: object) -> tuple:
        found: list[tuple] = []
        monkeypatch.setattr(jaxlm, "train", lambda corpus, out, *configs, **_: found.append(configs))
        run(name, "--out", tmp_path / "out", "--no-check", *arguments)
        return found[0]

    return settings


@pytest.mark.parametrize(
    ("text", "options"),  # of the authors' README
    [
        ("ptb", {"batch_size": 20, "dropouti": 0.4, "dropouth": 0.25, "epochs": 500}),
        ("wikitext2", {"epochs": 750, "dropouth": 0.2}),
    ],
)
def test_the_settings_of_merity_et_al_are_those_of_main_py(text, options, settings_of, treebank, tmp_path):
    defaults = {"emsize": 400, "nhid": 1150, "nlayers": 3, "lr": 30, "clip": 0.25, "batch_size": 80, "bptt": 70}
    defaults |= {"dropout": 0.4, "dropouth": 0.3, "dropouti": 0.65, "dropoute": 0.1, "wdrop": 0.5, "nonmono": 5}
    args = SimpleNamespace(**defaults | {"alpha": 2, "beta": 1, "wdecay": 1.2e-6} | options)
    for name in ("train", "valid", "test"):
        shutil.copy(treebank / f"ptb.{name}.txt", tmp_path / f"wiki.{name}.tokens")
        shutil.copy(treebank / f"ptb.{name}.txt", tmp_path)
    model, train, schedule = settings_of("merity2018.py", "--data", tmp_path, "--text", text)
    widths = [args.emsize, *[args.nhid] * (args.nlayers - 1), args.emsize]
    assert [model.embedding_size, *(lstm.size for lstm in model.lstms)] == widths
    assert model.tied and model.dropout_rates == (args.dropouti, args.dropouth, args.dropouth, args.dropout)
    assert (train.embedding_dropout, train.weight_dropout) == (args.dropoute, args.wdrop) and train.variational_dropout
    assert (train.batch_size, train.sequence_length) == (args.batch_size, args.bptt) and train.random_offsets
    assert (train.activation_regularization, train.temporal_activation_regularization) == (args.alpha, args.beta)
    assert (train.weight_decay, train.clip_norm, train.average_patience) == (args.wdecay, args.clip, args.nonmono)
    assert (train.optimizer, train.loss, schedule.learning_rate) == ("sgd", "full", args.lr)
    assert (schedule.epochs, schedule.decay_fraction, schedule.warmup_steps) == (args.epochs, 0, 0)


@pytest.mark.parametrize(
    ("size", "width", "keep_prob", "steps", "max_grad_norm", "max_epoch", "max_max_epoch", "decay"),
    [  # SmallConfig, MediumConfig and LargeConfig of TensorFlow's ptb_word_lm.py; decay is 1.25 there in the second
        ("small", 200, 1.0, 20, 5, 4, 13, 2.0),
        ("medium", 650, 0.5, 35, 5, 6, 39, 1.2),
        ("large", 1500, 0.35, 35, 10, 14, 55, 1.15),
    ],
)
def test_the_settings_of_zaremba_et_al_are_those_of_tensorflow(
    size, width, keep_prob, steps, max_grad_norm, max_epoch, max_max_epoch, decay, settings_of, treebank, tmp_path
):
    (tmp_path / "out" / size).mkdir(parents=True)  # so that no first model is written
    model, train, schedule = settings_of("zaremba2014.py", "--data", treebank, "--size", size)
    assert [model.embedding_size, *(lstm.size for lstm in model.lstms)] == [width] * 3 and not model.tied
    np.testing.assert_allclose(model.dropout_rates, [1 - keep_prob] * 3)
    assert (train.batch_size, train.sequence_length, train.optimizer, train.loss) == (20, steps, "sgd", "full")
    np.testing.assert_allclose([schedule.learning_rate / steps, train.clip_norm * steps], [1.0, max_grad_norm])
    assert (schedule.epochs, schedule.epoch_decay, schedule.warmup_steps) == (max_max_epoch, decay, 0)
    assert round((1 - schedule.decay_fraction) * max_max_epoch) == max_epoch
    assert not train.variational_dropout and not train.random_offsets


@pytest.mark.slow
def test_jozefowicz_plans_the_whole_run(run, treebank, tmp_path):
    for folder, name in (("training", "news.en-{:05}-of-00100"), ("heldout", "news.en.heldout-{:05}-of-00050")):
        directory = tmp_path / f"{folder}-monolingual.tokenized.shuffled"
        directory.mkdir()
        for number in (1, 2):
            shutil.copy(treebank / "ptb.train.txt", directory / name.format(number))
    arguments = ("--out", tmp_path / "out", "--divisor", 256, "--trial-minutes", 0.02, "--epochs", 10**8)
    error = run("jozefowicz2016.py", "--data", tmp_path, *arguments)
    assert re.fullmatch(r"error: .* 99 shards in .* and 50 in .* Received: 2 and 2\.\n", error)
    output = run("jozefowicz2016.py", "--data", tmp_path, "--no-check", *arguments)
    (plan,) = re.findall(r"^100000000 epochs of (\S+) words at (\S+) words/s: (\S+) hours$", output, re.MULTILINE)
    words, speed, hours = (float(number.replace(",", "")) for number in plan)
    assert words == jaxlm.load_corpus(tmp_path / "out" / "data").train.size
    np.testing.assert_allclose(hours, 1e8 * words / speed / 3600, rtol=1e-3)
    rows = read_metrics(tmp_path / "out" / "trial")
    speeds = [row["words_per_second"] for row in rows if "words_per_second" in row]
    assert round(min(speeds)) <= speed <= round(max(speeds))
    model = load_config(tmp_path / "out" / "trial").model
    assert model.dropout_rates == (0.1, 0.0, 0.1) and model.softmax_size == 512 // 256


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        (None, "there is no file .*ptb.train.txt"),
        (b"a b\n", "has 4 bytes instead of 5,101,618"),
        (b"a" * 5_101_618, "has the right size and other contents"),
    ],
)
def test_another_text_is_refused_in_one_line(file, problem, run, tmp_path):
    if file is not None:
        (tmp_path / "ptb.train.txt").write_bytes(file)
    error = run("zaremba2014.py", "--data", tmp_path, "--out", tmp_path / "out")
    assert re.fullmatch(f"error: .*Mikolov.*{problem}.*\n", error)


def test_a_text_without_a_checksum_is_checked_by_its_words(run, tmp_path):
    (tmp_path / "wiki.train.tokens").write_text(" = Title = \n \n" * 9, encoding="utf-8")
    error = run("merity2018.py", "--data", tmp_path, "--out", tmp_path / "out", "--text", "wikitext2")
    assert error.endswith(" has 45 words and line ends instead of 2,088,628.\n")


@pytest.mark.exhaustive
def test_merity_learns_and_prints_both_perplexities(run, treebank, tmp_path):
    output = run("merity2018.py", "--data", treebank, "--out", tmp_path, "--no-check", "--epochs", 12, "--divisor", 40)
    *_, last = output.strip().splitlines()
    assert last.startswith("test perplexity ") and last.endswith("(published: 58.8; 57.3 after fine-tuning)")
    assert float(last.split()[2]) < 24  # the unigram model has 26
    config = json.loads((tmp_path / "ptb" / "config.json").read_text(encoding="utf-8"))["train"]
    assert config["random_offsets"] and config["average_patience"] == 5
