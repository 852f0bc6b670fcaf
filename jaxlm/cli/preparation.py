"""The prepare command."""

from pathlib import Path
from typing import Annotated

from jaxlm.cli.arguments import OptionalWord, Paths, Texts, TokenizationName, Words, shown
from jaxlm.cli.results import print_corpus
from jaxlm.errors import InputError


def prepare(
    train: Texts,
    /,
    out: Path,
    valid: Paths = (),
    test: Paths = (),
    vocab_size: Annotated[int | None, shown(200_000)] = None,
    tokenization: Annotated[TokenizationName | None, shown("words")] = None,
    vocabulary: Path | None = None,
    unk: OptionalWord = None,
    drop: Words = (),
) -> None:
    """Turn texts into a vocabulary and token files.

    Args:
      train: Training texts in UTF-8, plain or compressed: files, directories of shards, or - for the standard input.
        The vocabulary comes from these alone.
      out: Directory to make.
      valid: Validation texts. Without them, the end of the training text is held out.
      test: Test texts. Without them, the end of the training text is held out.
      vocab_size: Maximum number of words; less frequent ones become <unk>.
      tokenization: "words" and punctuation marks, "whitespace" for text that is already tokenized, or a
        default tokenization of Keras.
      vocabulary: vocabulary.json of an existing model, in place of --vocab-size and --tokenization; or a list of the
        words to keep, one per line, with or without counts, in place of --vocab-size.
      unk: Word of the texts that stands for unknown words, such as "<UNK>". Default: that of a list, if it has one.
      drop: Words of the texts to leave out, such as "<s>" "</s>".
    """
    from jaxlm.data.preparation import prepare as prepare_corpus
    from jaxlm.data.vocabulary import Vocabulary
    from jaxlm.data.word_lists import read_vocabulary

    if not train:
        raise InputError("No training text: expected jaxlm prepare TEXT [TEXT ...] --out DIRECTORY, texts first.")
    given = read_vocabulary(vocabulary) if vocabulary else None
    if given is not None and vocab_size is not None:
        raise InputError("`vocab_size` and `vocabulary` are mutually exclusive.")
    if isinstance(given, Vocabulary) and tokenization is not None:
        raise InputError(f"`tokenization`: expected none, since {vocabulary} is that of a model and has its own.")
    corpus = prepare_corpus(
        train,
        out,
        valid=valid,
        test=test,
        vocab_size=200_000 if vocab_size is None else vocab_size,
        tokenization=tokenization or "words",
        vocabulary=given,
        unk=unk,
        drop=drop,
    )
    print_corpus(corpus, advise_size=given is None)
    print(f"written to {out}")
