"""Exact evaluation against full logits, however it is cut into batches; a small billion-word corpus."""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from jaxlm.config import ModelConfig, TrainConfig
from jaxlm.data.batches import train_batches
from jaxlm.data.corpus import Corpus, oov_rate
from jaxlm.data.preparation import prepare
from jaxlm.data.vocabulary import EOS, UNK
from jaxlm.data.word_lists import read_vocabulary
from jaxlm.errors import InputError
from jaxlm.inference.perplexity import Evaluation, evaluate
from jaxlm.inference.scoring import score
from jaxlm.model.language_model import LanguageModel
from jaxlm.training.state import TrainState
from jaxlm.training.step import train_step


def make_model() -> LanguageModel:
    model = LanguageModel(ModelConfig(37, embedding_size=5, hidden_size=8, num_layers=2), rngs=nnx.Rngs(0))
    model.weights[...] *= 20.0
    model.biases[...] = jax.random.normal(jax.random.key(1), (37,))
    return model


@pytest.mark.parametrize(("batch_size", "sequence_length"), [(1, 7), (1, 100), (500, 3)])
def test_the_loss_is_that_of_full_logits(batch_size, sequence_length):
    model = make_model()
    tokens = np.random.default_rng(0).integers(0, 37, 91).astype(np.int32)
    if batch_size == 1:
        log_probabilities = jax.nn.log_softmax(model(tokens[None, :-1])[0])[0]
        losses = -log_probabilities[np.arange(90), tokens[1:]]
    else:  # more streams than words: each word from the zero state
        log_probabilities = jax.nn.log_softmax(model(tokens[:-1, None])[0])[:, 0]
        losses = -log_probabilities[np.arange(90), tokens[1:]]
    result = evaluate(model, tokens, batch_size=batch_size, sequence_length=sequence_length)
    assert result.num_tokens == 90
    np.testing.assert_allclose(result.loss, losses.mean(), rtol=1e-6)
    np.testing.assert_allclose(result.perplexity, np.exp(losses.mean()), rtol=1e-5)


def test_a_partial_evaluation_has_as_many_words_as_asked():
    model = make_model()
    tokens = np.random.default_rng(0).integers(0, 37, 1001).astype(np.int32)
    assert evaluate(model, tokens, batch_size=4, max_tokens=100).num_tokens == 100


@pytest.mark.parametrize(
    ("tokens", "change", "message"),
    [
        ([3], {}, "Invalid `tokens`: expected at least two ids"),
        ([[3, 4]], {}, "expected integer ids of shape"),
        ([3, 37], {}, "expected ids from 0 to 36"),
        ([3, 10**6], {}, "Received: 3 to 1000000"),
        ([3, -1], {}, "expected ids from 0 to 36"),
        ([3, 4], {"batch_size": 0}, "Invalid `batch_size`: expected an integer of at least 1"),
        ([3, 4], {"batch_size": 2.0}, "Invalid `batch_size`: expected an integer of at least 1"),
        ([3, 4], {"sequence_length": 0}, "sequence_length"),
        ([3, 4], {"max_tokens": -1}, "max_tokens"),
    ],
)
def test_wrong_arguments_raise(tokens, change, message):
    with pytest.raises(InputError, match=message):
        evaluate(make_model(), tokens, **change)


@pytest.mark.parametrize(
    ("loss", "expected"), [(np.log(7.0), 7.0), (700.0, np.inf), (np.inf, np.inf), (np.nan, np.nan)]
)
def test_the_perplexity_is_that_of_the_loss(loss, expected):
    np.testing.assert_allclose(Evaluation(loss, 1).perplexity, expected, rtol=1e-12)


@pytest.mark.parametrize("word", [37, -1, 10**6])
def test_an_invalid_id_on_the_device_makes_the_loss_nan(word):
    assert np.isnan(evaluate(make_model(), jax.numpy.array([3, word, 4, 5])).loss)


NAMES = [f"w{n}" for n in range(300)]


@pytest.fixture
def billion_words(tmp_path) -> Corpus:
    """A billion-word corpus in its published form, made small: 99 shards, 50 held-out ones, and a vocabulary file."""
    rng = np.random.default_rng(0)
    for folder, count in (("training", 99), ("heldout", 50)):
        (tmp_path / folder).mkdir()
        for n in range(count):
            lines = [" ".join(line) for line in rng.choice(NAMES, (200, 5))]
            (tmp_path / folder / f"news.en-{n:05}-of-{count:05}").write_text("\n".join(lines) + "\n")
    (tmp_path / "vocab").write_text("".join(f"{word} 9\n" for word in ["<S>", "</S>", "<UNK>", *NAMES[:200]]))
    (tmp_path / "data").mkdir()
    return prepare(
        tmp_path / "training",
        tmp_path / "data",
        valid=sorted(map(str, (tmp_path / "heldout").iterdir()))[1:],
        test=str(tmp_path / "heldout" / "*-00000-of-*"),
        tokenization="whitespace",
        vocabulary=read_vocabulary(tmp_path / "vocab"),
        unk="<UNK>",
        progress=False,
    )


def numpy_losses(model: LanguageModel, ids: list[int]) -> np.ndarray:
    """Returns the losses of all ids but the first, read from the zero state, in float64."""
    (lstm,) = model.lstms
    weights = [model.embedding, lstm.kernel, lstm.recurrent_kernel, lstm.bias, model.weights, model.biases]
    embedding, kernel, recurrent, bias, rows, biases = (np.asarray(weight[...], np.float64) for weight in weights)
    c, h, losses = np.zeros(len(recurrent)), np.zeros(len(recurrent)), []
    for word, label in zip(ids, ids[1:], strict=False):
        i, f, g, o = np.split(embedding[word] @ kernel + h @ recurrent + bias, 4)
        c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h = np.tanh(c) / (1 + np.exp(-o))
        logits = rows @ h + biases
        losses.append(np.log(np.exp(logits).sum()) - logits[label])
    return np.array(losses)


@pytest.mark.slow
def test_a_billion_word_corpus_is_prepared_trained_and_evaluated_as_its_papers_do(billion_words, tmp_path):
    """The state passes over the ends of sentences, which count as words."""
    corpus, vocabulary = billion_words, billion_words.vocabulary
    assert [tokens.size for tokens in corpus[1:]] == [99 * 200 * 6, 49 * 200 * 6, 200 * 6]
    assert set(vocabulary.words) == {"<S>", "</S>", UNK, EOS, *NAMES[:200]}
    assert vocabulary.counts[vocabulary.eos] == 99 * 200
    assert oov_rate(corpus.train, vocabulary) == pytest.approx(5 / 6 / 3, abs=0.01)
    np.testing.assert_array_equal(np.bincount(corpus.train, minlength=204), vocabulary.counts)
    config = TrainConfig(batch_size=4, sequence_length=5, num_sampled=20)
    shape = ModelConfig(len(vocabulary), embedding_size=5, hidden_size=7)
    state = TrainState.from_corpus(corpus, shape, config)
    for batch in train_batches(corpus.train, config, 5):
        state, _ = train_step(state, batch, 0.03)
    model = state.model

    lines = Path(tmp_path / "heldout" / "news.en-00000-of-00050").read_text().splitlines()
    sentences = [[vocabulary.ids.get(word, vocabulary.unk) for word in line.split()] for line in lines]
    sentences = [[*sentence, vocabulary.eos] for sentence in sentences]
    expected = numpy_losses(model, sum(sentences, start=[]))
    found = evaluate(model, corpus.test, batch_size=1, progress=False)
    assert found.num_tokens == expected.size
    np.testing.assert_allclose(found.perplexity, np.exp(expected.mean()), rtol=1e-5)

    alone = [numpy_losses(model, [vocabulary.eos, *sentence]).sum() for sentence in sentences]
    scores = [line.log_probability for line in score(model, vocabulary, lines)]
    np.testing.assert_allclose(scores, -np.array(alone), rtol=1e-5)
