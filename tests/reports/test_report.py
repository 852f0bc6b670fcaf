"""The report: one file without links, with tables and figures that a screen reader can read."""

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import rewrite_json

from jaxlm.cli import run
from jaxlm.config import TrainConfig
from jaxlm.inference.perplexity import evaluate
from jaxlm.reports.frequency_bands import frequency_bands, inclusion_probabilities
from jaxlm.reports.html import format_cell
from jaxlm.reports.report import ReportedRun, differences, write_report
from jaxlm.reports.word_sections import score_text
from jaxlm.runs.directory import RunConfig, load_model

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Outline(HTMLParser):
    """The elements of a page, checked to be closed in order."""

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict]] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def reports(run_dir, tmp_path_factory) -> tuple[str, str]:
    """The report of a run, and that of two side by side."""
    directory = tmp_path_factory.mktemp("report")
    first, second = directory / "first", directory / "second & last"
    for copy in (first, second):
        shutil.copytree(run_dir, copy)
    pages = write_report([first]), write_report([first, second], directory / "both.html")
    assert pages[0] == first / "report.html"
    return pages[0].read_text(encoding="utf-8"), pages[1].read_text(encoding="utf-8")


@pytest.mark.parametrize("which", [0, 1])
def test_it_is_one_file_that_a_screen_reader_can_read(reports, which):
    page = reports[which]
    outline = Outline(page)
    assert outline.all("html")[0]["lang"] == "en" and outline.all("title") and len(outline.all("h1")) == 1
    assert "prefers-color-scheme" in page and "@media print" in page and outline.all("meta")[1]["name"] == "viewport"
    for tag in ("script", "link", "img", "iframe"):
        assert not outline.all(tag)
    links = [value for _, attributes in outline.found for key, value in attributes.items() if key.endswith("href")]
    assert all(link.startswith("#") for link in links) and "url(http" not in page and "@import" not in page
    assert all(svg["role"] == "img" and len(svg["aria-label"]) > 20 for svg in outline.all("svg"))
    assert len(outline.all("svg")) == len(outline.all("figure")) == len(outline.all("figcaption"))
    assert len(outline.all("table")) == len(outline.all("caption")) > 3
    assert all(cell.get("scope") in ("row", "col") for cell in outline.all("th"))
    ids = [attributes["id"] for _, attributes in outline.found if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_it_says_what_is_known_of_a_run(reports, run_dir):
    page = reports[0]
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings == [
        "Result",
        "Curves",
        "Frequent and rare words",
        "Most surprising words",
        "Samples",
        "Nearest words",
        "Map of frequent words",
        "Settings and data",
        "Machine",
    ]
    for text in ("lstms", "num_sampled", "fingerprint of train", "exact validation perplexity", "jaxlib"):
        assert text in page
    assert page.count("<h3>Temperature") == 3 and "bits" in page
    assert "second &amp; last" in reports[1] and reports[1].count("<h3>Temperature") == 6


def test_the_words_are_those_of_an_exact_evaluation(run_dir, corpus):
    model, _, _ = load_model(run_dir)
    scored = score_text(model, corpus.valid[:257])
    loss = evaluate(model, corpus.valid[:257], batch_size=1).loss
    np.testing.assert_allclose(-scored.log_probabilities.mean(), loss, rtol=1e-5)
    bands = frequency_bands(scored.ids, scored.log_probabilities, corpus.counts, TrainConfig(num_sampled=20))
    assert [(band.first, band.last) for band in bands] == [(0, 9), (10, 99), (100, 119)]
    total = sum(band.share * np.log(band.perplexity) for band in bands if band.share)
    np.testing.assert_allclose(total, loss, rtol=1e-5)
    order = np.random.default_rng(0).permutation(120)  # a vocabulary of Keras in another order
    settings = TrainConfig(num_sampled=20, sampler="unigram")
    labels, counts = np.argsort(order)[scored.ids], corpus.counts * 1000 - np.arange(120)
    again = [
        frequency_bands(ids, scored.log_probabilities, numbers, settings)
        for ids, numbers in ((scored.ids, counts), (labels, counts[order]))
    ]
    for plain, other in zip(*again, strict=True):
        np.testing.assert_array_equal(order[other.ids], plain.ids)
        np.testing.assert_allclose(other[3:], plain[3:])
    (diverged,) = frequency_bands(np.array([0, 3]), np.array([-95, -93], np.float32), np.ones(9), None)
    np.testing.assert_allclose(diverged.perplexity, np.exp(94), rtol=1e-5)  # not infinity, and without a warning
    assert format_cell(diverged.perplexity) == "6.663e+40"


@pytest.mark.parametrize("sampler", ["log_uniform", "uniform", "unigram"])
def test_inclusion_probabilities_add_up_to_the_sampled_classes(sampler):
    counts = np.array([5000, 900, 300, *range(250, 50, -1), 0, 0])
    found = inclusion_probabilities(counts, TrainConfig(num_sampled=50, sampler=sampler))
    np.testing.assert_allclose(found.sum(), 50, rtol=1e-6)
    assert (np.diff(found) <= 1e-12).all() and (found[0] > 3 * found[-1]) == (sampler != "uniform")
    assert (inclusion_probabilities(counts, TrainConfig(loss="full")) == 1).all()


def test_the_training_loss_of_loss_full_is_exact_and_has_no_gap(run_dir, tmp_path):
    sampled, full = tmp_path / "sampled", tmp_path / "full"
    for copy in (sampled, full):
        shutil.copytree(run_dir, copy)
    rewrite_json(full / "config.json", '"loss": "sampled_softmax"', '"loss": "full"')
    pages = [write_report(runs, max_tokens=64).read_text("utf-8") for runs in (full, [full, sampled], sampled)]
    kinds = [re.findall(r"training loss in nats \((.*?)\)", page)[0] for page in pages]
    assert kinds == ["exact", "exact or sampled classes", "sampled classes"]
    assert [page.count("ampling gap") > 0 for page in pages] == [False, True, True]


def test_a_run_without_its_corpus_still_has_a_report(run_dir, tmp_path, capsys):
    shutil.copytree(run_dir, tmp_path / "run")
    rewrite_json(tmp_path / "run" / "config.json", '"data": "/', '"data": "/nowhere/')
    (tmp_path / "run" / "metrics.jsonl").unlink()
    assert run(["report", str(tmp_path / "run"), "--out", str(tmp_path / "page.html")]) == 0
    page = Path(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Nothing was logged yet." in page and "not where it was during training" in page
    assert run(["report"]) == 2
    assert "No run" in capsys.readouterr().err


def test_bad_runs_are_one_line(tmp_path, capsys):
    assert run(["report", str(tmp_path)]) == 2
    assert "is not a run directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "differ"),
    [
        ({}, ""),
        ({"valid": "9 words, 0"}, "validation texts"),
        ({"vocabulary.json": "0"}, "vocabularies"),
        ({"vocabulary.json": "0", "valid": "9 words, 0"}, "vocabularies and validation texts"),
    ],
)
def test_runs_whose_perplexities_do_not_compare_are_named(change, differ):
    def reported(fingerprints: dict[str, str]) -> ReportedRun:
        vocabulary = SimpleNamespace(checksum=fingerprints["vocabulary.json"])
        return ReportedRun("run", None, vocabulary, RunConfig(None, fingerprints=fingerprints), [], None, None)

    before = {"vocabulary.json": "1", "valid": "8 words, 1"}
    expected = f"The perplexities of these runs are not comparable: their {differ} differ." if differ else ""
    assert differences([reported(before), reported(before | change)]) == expected
    rows = [{"valid_perplexity": 9.0, "valid_words": size} for size in (64, 220)]
    message = differences([reported(before)._replace(metrics=rows)])
    assert message == "The perplexities of this run are not comparable: their numbers of evaluated words differ."
