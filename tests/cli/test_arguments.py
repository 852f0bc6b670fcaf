"""Options of the commands: one clear line for each that is invalid, has no effect or does not fit the run."""

import ast

import pytest
from helpers import error_line, jaxlm

from jaxlm.cli.arguments import MeshOptions, ModelOptions
from jaxlm.config import ModelConfig
from jaxlm.device_config import MeshConfig


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--learning-rate", 0], "Invalid --learning-rate"),
        (["--loss", "full", "--num-sampled", 0], "Invalid --num-sampled"),
        (["--steps", 5, "--minutes", 1], "only one of --steps, --epochs and --minutes"),
        (["--dropout", 2], "Invalid --dropout"),
        (["--tied"], "Invalid --tied: expected an --embedding-size of 1024"),
        (["--data-shards", 0], "Invalid --data-shards: expected at least 1. Received: 0."),
        (["--hidden-size", 0], "Invalid --hidden-size: expected at least 1. Received: 0."),
        (["--process-id", 1], "Invalid --process-id"),
        (["--batch-size", 10**6], "use a smaller --batch-size or --sequence-length"),
    ],
)
def test_bad_settings(corpus_dir, tmp_path, capsys, flags, message):
    assert jaxlm("train", corpus_dir, "--out", tmp_path / "run", *flags) == 2
    assert message in error_line(capsys)
    assert not (tmp_path / "run").exists()


SHAPE = ("--embedding-size", 7, "--hidden-size", 11, "--num-layers", 2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--embedding-size", 256, "--hidden-size", 1024], "with --hidden-size=11, not --hidden-size=1024;"),
        ([*SHAPE, "--num-layers", 1], "with --num-layers=2, not --num-layers=1;"),
        ([*SHAPE, "--dropout", 0.5], "with --dropout=0.0, not --dropout=0.5;"),
        (["--no-tied"], "with --hidden-size=11, not --hidden-size=1024;"),
        (["--num-sampled", 20, "--no-word-vectors"], "with --word-vectors, not --no-word-vectors;"),
        (["--num-sampled", 20, "--clip-each"], "with --no-clip-each, not --clip-each;"),
        (["--num-sampled", 20, "--beta-2", 0.5], "with --beta-2=0.999, not --beta-2=0.5;"),
    ],
)
def test_options_that_are_not_those_of_the_run_are_refused(run_dir, corpus_dir, capsys, flags, message):
    same = ["--batch-size", 4, "--sequence-length", 5]
    assert jaxlm("train", corpus_dir, "--out", run_dir, *same, *flags) == 2
    assert message in error_line(capsys)


def test_a_run_of_another_vocabulary_is_refused(run_dir, text_file, tmp_path, capsys):
    assert jaxlm("prepare", text_file, "--out", tmp_path / "data", "--vocab-size", 60) == 0
    assert jaxlm("train", tmp_path / "data", "--out", run_dir) == 2
    message = error_line(capsys)
    assert f"another vocabulary; prepare its text with --vocabulary {run_dir / 'vocabulary.json'} to" in message
    assert "or choose another --out." in message


def test_defaults_of_options_that_may_be_left_out_are_those_of_the_config(capsys):
    with pytest.raises(SystemExit):
        jaxlm("train", "--help")
    page = " ".join(capsys.readouterr().out.replace("│", " ").split())
    shown = {}
    for options in (ModelOptions, MeshOptions):
        for name in options.__annotations__:
            option = page.partition(f" --{name.replace('_', '-')}")[2]
            shown[name] = ast.literal_eval(option.partition("(default: ")[2].partition(")")[0])
    mesh = {name: shown.pop(name) for name in MeshOptions.__annotations__}
    assert ModelConfig(50, **shown) == ModelConfig(50) and MeshConfig(**mesh) == MeshConfig()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("prepare t --out x --vocab-size 200k", "--vocab-size: expected an integer. Received: 200k"),
        ("train t --out x --batch-size many", "--batch-size: expected an integer, or auto. Received: many"),
        ("rescore x t --weight half", "--weight: expected a number. Received: half"),
        ("train t --out x --steps 1e3", "--steps: expected an integer. Received: 1e3"),
        ("train t --out x --dropout 0,5", "--dropout: expected a number. Received: 0,5"),
        ("prepare t --out x --tokenization bytes", "invalid choice 'bytes' for argument '--tokenization'."),
    ],
)
def test_a_value_of_another_type_is_named_in_plain_words(capsys, arguments, message):
    with pytest.raises(SystemExit):
        jaxlm(*arguments.split())
    errors = capsys.readouterr().err
    assert message in errors and "None" not in errors and "literal" not in errors


MOSES = "0 ||| the whale ||| LM0= -9.5 ||| -4.5\n"
REFUSED = [  # command, arguments, message; RUN, TEXT and so on are paths
    ("score", "RUN TEXT --ignore-unk --unk-log-prob=-3", "Invalid --unk-log-prob: expected 0 with --ignore-unk."),
    ("prepare", "TEXT --out NEW --vocabulary WORDS --vocab-size 3", "--vocab-size and --vocabulary are mutually"),
    ("prepare", "TEXT --out NEW --vocabulary RUN --tokenization whitespace", "--tokenization: expected none, since"),
    ("prepare", "TEXT --valid --out NEW", "--valid is given without a value;"),
    ("prepare", "no.txt --out NEW", "no.txt does not exist; expected a text file"),
    ("prepare", "TEXT --valid no.txt --out NEW", "no.txt does not exist; expected a text file"),
    ("prepare", "TEXT --out RUN", "already exists and is not an empty directory"),
    ("prepare", "TEXT --out NEW --drop", "--drop is given without a value;"),
    ("rescore", "RUN MOSES --costs COSTS", "expected a list of Kaldi, `utterance-N words`, beside --costs,"),
    (
        "rescore",
        "RUN MOSES --lm-costs COSTS",
        "expected a list of Kaldi, `utterance-N words`, beside --lm-costs,",
    ),
    ("rescore", "RUN MOSES --lm_costs COSTS --lm-costs=COSTS", "--lm-costs is given twice;"),
    ("rescore", "RUN MOSES --tune TEXT --weight 0.5", "--weight and --tune are mutually exclusive."),
    ("rescore", "RUN MOSES --tune TEXT --acoustic-scale 1", "--acoustic-scale and --tune are mutually exclusive."),
    ("rescore", "RUN MOSES --tune TEXT --output best", "--output and --tune are mutually exclusive."),
    ("rescore", "RUN BLANK", "has no hypotheses;"),
    ("compare", "RUN BLANK", "has no pairs;"),
    ("compare", "RUN HEADER --failed NEW", "has no pairs;"),
    ("compare", "RUN MOSES --failed no/where.tsv", "no/where.tsv cannot be written: the directory no does not exist."),
    ("compare", "RUN MOSES --failed RUN", "cannot be written: it is a directory."),
    ("compare", "RUN MOSES --failed /dev/null", "cannot be written: it is no regular file."),
    ("report", "RUN --out no/where.html", "no/where.html cannot be written: the directory no does not exist."),
    ("report", "RUN --max-tokens=-1", "Invalid --max-tokens: expected an integer of at least 0. Received: -1."),
    ("generate", "RUN --temperature inf", "Invalid --temperature: expected at least 0, and finite in float32."),
    ("generate", "RUN --temperature 1e39", "Invalid --temperature: expected at least 0, and finite in float32."),
    (
        "generate",
        "RUN --seed 4294967295 --num-samples 2",
        "Invalid --num-samples: expected an integer from 1 to 1 with",
    ),
    ("neighbors", "RUN the --k 0", "Invalid --k"),
    ("trian", "TEXT --out NEW", "report, doctor. Received: trian. Did you mean train?"),
    ("next_word", "RUN the", "Did you mean next-words?"),
]


@pytest.mark.parametrize(("command", "arguments", "message"), REFUSED)
def test_an_option_without_an_effect_or_out_of_range_is_refused_before_any_output(
    run_dir, text_file, tmp_path, capsys, command, arguments, message
):
    texts = {"WORDS": "the\nsea\n", "MOSES": MOSES, "COSTS": "a-1 3\n", "BLANK": "\n\n", "HEADER": "good\tbad\n"}
    paths = {"RUN": run_dir, "TEXT": text_file, "NEW": tmp_path / "new"}
    for name, text in texts.items():
        paths[name] = tmp_path / name
        paths[name].write_text(text)
    assert jaxlm(command, *(paths.get(argument, argument) for argument in arguments.split())) == 2
    output = capsys.readouterr()
    assert output.out == "" and message in output.err and output.err.count("\n") == 1
    assert not (tmp_path / "new").exists()
