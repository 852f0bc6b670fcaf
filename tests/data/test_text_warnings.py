"""Warnings about a prepared text: frequent unknown words, words left out, and unsegmented text."""

import logging
import subprocess
import unicodedata

import numpy as np
import pytest

from jaxlm.data.corpus import load_corpus
from jaxlm.data.preparation import prepare
from jaxlm.data.vocabulary import Vocabulary
from jaxlm.errors import InputError


def told(tmp_path, caplog, text: str, **settings: object) -> str:
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    with caplog.at_level(logging.INFO, "jaxlm"):
        prepare(tmp_path / "text.txt", tmp_path / "data", **settings)
    return caplog.text


def test_frequent_unknown_words_are_named(tmp_path, caplog):
    text = "the the the sea Ahab Ahab Queequeg, Queequeg\n" * 100
    message = told(tmp_path, caplog, text, vocab_size=4)  # the, <unk>, <eos> and Ahab
    lines = int(np.load(tmp_path / "data" / "train.npy").size / 10)
    assert f"{4 * lines} of {10 * lines} words (40.00%) are read as <unk>" in message
    assert f"the most frequent: Queequeg ({2 * lines}), sea ({lines}), , ({lines})\n" in message


def test_all_known_words_are_no_remark(tmp_path, caplog):
    assert "training text:" not in told(tmp_path, caplog, "the sea\n" * 100)


def test_words_and_line_ends_without_an_id_are_left_out_and_counted(tmp_path, caplog):
    vocabulary = Vocabulary(("", "the", "sea"), None, "text_vectorization")
    message = told(tmp_path, caplog, "The open sea.\n" * 100, vocabulary=vocabulary)
    lines = int(np.load(tmp_path / "data" / "train.npy").size / 2)
    assert f"{lines} of {4 * lines} words (25.00%) are left out, since there is no <unk>" in message
    assert f"the most frequent: open ({lines})\n" in message
    assert f"{lines} line ends are left out, since the vocabulary has no <eos>" in message


def test_a_text_of_unknown_words_alone_is_refused(tmp_path):
    (tmp_path / "text.txt").write_text("another language\n" * 100)
    with pytest.raises(InputError, match="fewer than 3 words of the `vocabulary`"):
        prepare(tmp_path / "text.txt", tmp_path / "data", vocabulary=Vocabulary(("the", "sea"), None, "words"))
    assert not (tmp_path / "data").exists()


CHINESE = "我们在海上看见了一条白色的鲸鱼，船长命令水手们放下小艇去追赶它。\n"
THAI = "เราเห็นปลาวาฬสีขาวในทะเล กัปตันสั่งให้ลูกเรือปล่อยเรือเล็ก\n"
JAPANESE = "私たちは海で白い鯨を見つけた。船長は水夫たちに小舟を下ろすように命じた。\n"


@pytest.mark.parametrize("text", [CHINESE, THAI, JAPANESE, "English, too. " + CHINESE])
def test_text_without_spaces_needs_cutting_first(tmp_path, caplog, text):
    message = told(tmp_path, caplog, text * 100)
    assert "written without spaces" in message and "Cut the text into words first" in message


@pytest.mark.parametrize(
    "text",
    [
        "我们 在 海上 看见 了 一条 白色 的 鲸鱼 ， 船长 命令 水手们 放下 小艇 去 追赶 它 。\n",
        "เรา เห็น ปลาวาฬ สี ขาว ใน ทะเล กัปตัน สั่ง ให้ ลูกเรือ ปล่อย เรือ เล็ก\n",
        "We saw a white whale, 鲸鱼 in Chinese.\n",
        "Donaudampfschifffahrtsgesellschaft\n",
    ],
)
def test_words_with_spaces_between_them_do_not(tmp_path, caplog, text):
    assert "Cut the text" not in told(tmp_path, caplog, text * 100)


def test_one_line_without_spaces_says_so(tmp_path, caplog):
    with pytest.raises(InputError, match="cut it into words first"):
        told(tmp_path, caplog, CHINESE.strip() * 100_000)


@pytest.mark.parametrize(
    ("ours", "theirs", "given"), [("NFC", "NFD", True), ("NFD", "NFC", True), ("NFC", "NFD", False)]
)
def test_words_in_another_unicode_form_are_named_with_the_command_that_converts_them(
    tmp_path, caplog, ours, theirs, given
):
    sentence = "André schläft\n"
    known, other = (unicodedata.normalize(form, sentence) for form in (ours, theirs))
    settings = {"vocabulary": known.split()} if given else {}
    message = told(tmp_path, caplog, 50 * (other if given else known + other), **settings)
    assert "(2 in all)" in message
    command = message.partition(f"Convert the text to {ours}: ")[2].strip()
    command = command.replace("< TEXT > NEW_TEXT", "< text.txt > new/text.txt")
    (tmp_path / "new").mkdir()
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    converted = (tmp_path / "new" / "text.txt").read_text(encoding="utf-8")
    assert converted == known * (50 if given else 100)
    caplog.clear()
    assert "Unicode form" not in told(tmp_path / "new", caplog, converted, **settings)


@pytest.mark.parametrize("marker", ["<s>", "<bos>", "[CLS]", "<|endoftext|>"])
@pytest.mark.parametrize("tokenization", ["words", "whitespace"])
def test_sentence_markers_are_named(tmp_path, caplog, marker, tokenization):
    message = told(tmp_path, caplog, f"{marker} the sea\n" * 50, tokenization=tokenization)
    assert f'leave these markers out with `drop` "{marker}"' in message


@pytest.mark.parametrize("marker", ["<UNK>", "[UNK]", "<Unk>", "<unknown>", "<OOV>"])
def test_markers_of_unknown_words_are_named_and_that_of_a_word_list_is_used(tmp_path, caplog, marker):
    assert f'prepare with `unk` "{marker}"' in told(tmp_path, caplog, f"the {marker}\n" * 50)
    (tmp_path / "new").mkdir()
    message = told(tmp_path / "new", caplog, f"the {marker}\n" * 50, vocabulary=["the", marker])
    assert f"{marker} of the `vocabulary` stands for unknown words" in message
    assert len(set(load_corpus(tmp_path / "new" / "data").vocabulary.counts)) == 1  # of the, <unk> and <eos>


def test_a_file_in_two_texts_is_named(tmp_path, caplog):
    (tmp_path / "text.txt").write_text("the sea\n" * 50)
    prepare(tmp_path, tmp_path.with_name("data"), valid=tmp_path / ".." / tmp_path.name / "text.txt", progress=False)
    assert "text.txt is in the train and in the valid text" in caplog.text
