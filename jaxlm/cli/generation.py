"""The generate, next-words and neighbors commands."""

import itertools
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import tyro

from jaxlm.cli.arguments import RunPath
from jaxlm.config_checks import require_seed
from jaxlm.errors import InputError, require, shorten

if TYPE_CHECKING:
    from jaxlm.data.vocabulary import Vocabulary


def generate(
    run: RunPath,
    /,
    prompt: str = "",
    num_words: int = 100,
    num_samples: int = 1,
    until_eos: bool = False,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> None:
    """Write text from a prompt with a run's best model, word by word.

    Args:
      run: Run directory.
      prompt: Text to continue. Without it, the text begins a line.
      num_words: Maximum number of words.
      num_samples: Number of texts, drawn together; the n-th equals that of --seed SEED+n-1.
      until_eos: Stop at the end of a line.
      temperature: Below 1 favors likely words; 0 takes the most likely one.
      top_k: Sample among the k most likely words; 0 for all.
      top_p: Sample among the most likely words that together have this probability; 1 for all.
      seed: Random seed for sampling, from 0 to 4294967295.
    """
    import jax
    import jax.numpy as jnp

    from jaxlm.inference.generation import draw_texts
    from jaxlm.parallel.mesh import open_mesh
    from jaxlm.runs.directory import load_model

    require_seed(seed)
    most = 2**32 - seed  # seeds from there on
    require(1 <= num_samples <= most, "num_samples", f"an integer from 1 to {most} with this `seed`", num_samples)
    loaded = load_model(run, mesh=open_mesh())
    _print_unknown(loaded.vocabulary, prompt)
    texts = draw_texts(
        loaded.model,
        loaded.vocabulary,
        prompt,
        num_words,
        until_eos=until_eos,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        keys=jnp.stack([jax.random.key(seed + n) for n in range(num_samples)]),
    )
    _print_texts(loaded.vocabulary, texts)


def _print_unknown(vocabulary: "Vocabulary", prompt: str) -> None:
    words = dict.fromkeys(vocabulary.tokenize(prompt.replace("\n", " ")))
    unknown = [word for word in words if word not in vocabulary.ids]
    if unknown:
        treatment = "left out" if vocabulary.unk is None else "read as <unk>"
        print(f"(not in the vocabulary, so {treatment}: {', '.join(map(shorten, unknown))})", file=sys.stderr)


def _print_texts(vocabulary: "Vocabulary", drawn: Iterable[list[list[int]]]) -> None:
    """Prints the first text word by word, then the others, with an empty line between them."""
    printed = ""
    for texts in drawn:
        text = vocabulary.decode(texts[0]).rstrip()  # the next word may change the space at the end
        if text.startswith(printed):
            print(text[len(printed) :], end="", flush=True)
            printed = text
    print(vocabulary.decode(texts[0])[len(printed) :].rstrip(" \n") if printed else vocabulary.decode(texts[0]))
    for ids in texts[1:]:
        print("\n" + vocabulary.decode(ids).rstrip(" \n"))


def next_words(
    run: RunPath,
    prompt: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROMPT")],
    /,
    k: int = 10,
) -> None:
    """Print the most likely next words of a text, with their probabilities.

    Args:
      run: Run directory.
      prompt: Beginning of a line.
      k: Number of words.
    """
    from jaxlm.inference.neighbors import next_words as most_likely
    from jaxlm.parallel.mesh import open_mesh
    from jaxlm.runs.directory import load_model

    loaded = load_model(run, mesh=open_mesh())
    _print_unknown(loaded.vocabulary, prompt)
    for word, probability in zip(*most_likely(loaded.model, loaded.vocabulary, prompt, k), strict=True):
        print(f"{probability:.6f}\t{word}")


def neighbors(
    run: RunPath,
    words: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="WORD [WORD ...]")],
    /,
    k: int = 10,
) -> None:
    """Print the words nearest to some words, by the cosine of their embedding and of their softmax rows.

    Args:
      run: Run directory.
      words: Words of the vocabulary.
      k: Number of neighbors.
    """
    from jaxlm.inference.neighbors import TABLES, nearest_words
    from jaxlm.parallel.mesh import open_mesh
    from jaxlm.runs.directory import load_model

    loaded = load_model(run, mesh=open_mesh())
    vocabulary = loaded.vocabulary
    if not words:
        raise InputError("No word: expected jaxlm neighbors RUN WORD [WORD ...].")
    unknown = [word for word in words if word not in vocabulary.ids]
    if unknown:
        found = ", ".join(map(shorten, unknown))
        forms = dict.fromkeys(form for word in unknown for form in (word.lower(), word.capitalize(), word.upper()))
        known = ", ".join(form for form in forms if form in vocabulary.ids)
        advice = f"Write {known}" if known else f"Give words of {run}/vocabulary.json"
        raise InputError(f"Not in the vocabulary: {found}. {advice}.")
    for n, (word, table) in enumerate(itertools.product(words, TABLES)):
        nearest = nearest_words(loaded.model, vocabulary, word, k, table=table)
        if n == 0:  # the arguments are valid
            print("word", "table", "neighbor", "cosine", sep="\t")
        for neighbor, cosine in zip(*nearest, strict=True):
            print(word, table, neighbor, f"{cosine:.3f}", sep="\t")
