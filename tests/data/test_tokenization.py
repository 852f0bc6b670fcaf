"""Pieces of text are encoded as the whole text."""

from itertools import cycle
from unittest import mock

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.data.tokenization import KerasTokenizer, PieceEncoder, auto_ids, tokenizer
from jaxlm.data.vocabulary import EOS, UNK, Vocabulary


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.text(st.sampled_from("abA'- \t\n\r\xa0\x1c\u2028é\u0308न्\u200c\u200d👩👍🏽🇩🇪❤\ufe0f<unk>")) | st.text()
    ),
    st.sampled_from(["words", "whitespace", "text_vectorization", KerasTokenizer(), KerasTokenizer(False, "ab")]),
)
def test_pieces_are_encoded_as_by_a_tokenizer_that_sees_the_whole_text(chunks, tokenization):
    chunks = [chunk + end for chunk, end in zip(chunks, cycle(" \n"))]
    vocabulary = Vocabulary(("a", "b", UNK, EOS, "é", "'"), (1,) * 6, tokenization)
    raw_ids = auto_ids()
    encoder = PieceEncoder(tokenization, raw_ids.__getitem__)
    with mock.patch("jaxlm.data.tokenization.CACHED_CHARS", 20):  # the cache is often cleared
        ids = np.concatenate([*(encoder.encode(chunk) for chunk in chunks), np.zeros(0, np.int32)])
    expected = vocabulary.encode("".join(chunks))
    new_ids = vocabulary.ids_of(raw_ids)[ids]
    np.testing.assert_array_equal(new_ids[new_ids >= 0], expected)
    assert [list(raw_ids)[i] for i in ids] == tokenizer(tokenization)("".join(chunks))
