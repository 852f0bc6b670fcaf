"""The rescore command."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxlm.cli.arguments import Paths, RunPath, Scales, shown
from jaxlm.cli.results import print_unknown
from jaxlm.errors import InputError


def rescore(
    run: RunPath,
    nbest: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="NBEST")],
    /,
    weight: Annotated[float | None, shown(0.5)] = None,
    costs: Paths = (),
    lm_costs: Paths = (),
    acoustic_scale: Annotated[float | None, shown(1.0)] = None,
    scale: Scales = (),
    output: Annotated[Literal["best", "list"] | None, shown("best")] = None,
    unk_log_prob: float = 0.0,
    tune: Path | None = None,
) -> None:
    """Choose the best of the hypotheses of a speech recognizer or a translation system.

    Reads the forms of Kaldi (utterance-N words), Moses and Nematus (id ||| text ||| features ||| score), rnnlm
    (id words) and SRILM. The total is acoustic scale * score + (1 - weight) * log-probability of the language model
    that made the list + weight * log-probability of this one.

    Args:
      run: Run directory.
      nbest: N-best list; - for the standard input. The hypotheses of an utterance are consecutive.
      weight: Weight of this language model; from 0 to 1 if the other language model's costs are known.
      costs: Kaldi's tables (utterance-N cost) of acoustic costs, such as ac_cost. The score is minus their sum;
        without them it is 0.
      lm_costs: Kaldi's tables of the language model that made the list, such as lm_cost.
      acoustic_scale: Scale of the score: for Kaldi the inverse of its language model weight, 0.083 for 12.
      scale: Scales of single tables of costs, such as ac_cost=0.083 dur_cost=0.2, by their names; 1 for the others.
      output: The best path of each utterance, or the list with the score added: a cost for each key for Kaldi, a
        feature and the total for Moses.
      unk_log_prob: Added to the log-probability of <unk> for each unknown word, in nats.
      tune: Reference texts of a development list (utterance words, or one per line for ids from 0). Prints the options
        with the lowest word error rate instead: --weight, --acoustic-scale, and the --scale of each table of --costs
        but the first. The search begins at --scale; the scales of --lm-costs stay as given.
    """
    from jaxlm.data.text_files import read_lines
    from jaxlm.inference import nbest_forms as forms
    from jaxlm.inference.nbest import best_paths
    from jaxlm.inference.nbest import rescore as rescore_list
    from jaxlm.inference.nbest_costs import add_costs, read_costs, read_scales
    from jaxlm.inference.unknown_words import UnknownWords
    from jaxlm.runs.directory import load_model

    for name, value in (("weight", weight), ("acoustic_scale", acoustic_scale), ("output", output)):
        if tune and value is not None:
            raise InputError(f"`{name}` and `tune` are mutually exclusive.")
    names = [str(path) for path in (*costs, *lm_costs)]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"Invalid `costs`: expected each table once. Received {name} twice.")
    scales = read_scales(scale, names)
    loaded = load_model(run)
    tables = [{str(path): read_costs(read_lines(path), str(path)) for path in paths} for paths in (costs, lm_costs)]
    unknown = UnknownWords(loaded.vocabulary)
    hypotheses = rescore_list(
        loaded.model,
        loaded.vocabulary,
        forms.read_nbest(read_lines(nbest), str(nbest), *(add_costs(each, scales) for each in tables)),
        weight=0.5 if weight is None else weight,
        acoustic_scale=1.0 if acoustic_scale is None else acoustic_scale,
        unk_log_prob=unk_log_prob,
        seen=unknown.count,
    )
    if tune:
        from jaxlm.inference.nbest_tuning import read_references
        from jaxlm.inference.nbest_tuning import tune as best_settings

        scored = list(hypotheses)
        references = read_references(read_lines(tune), by_line=bool(scored) and scored[0].is_moses)
        print(best_settings(scored, references, tables[0], scales).describe())
    elif output == "list":
        for hypothesis in hypotheses:
            print(forms.format_scored(hypothesis))
    else:
        for hypothesis in best_paths(hypotheses):
            print(forms.format_best(hypothesis))
    print_unknown(unknown)
