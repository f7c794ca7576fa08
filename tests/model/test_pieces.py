"""Every token is given the characters that it holds, whatever the tokenizer does at the joints."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from finetrial.model import pieces
from finetrial.model.config import ModelConfig
from finetrial.model.pieces import token_offsets
from finetrial.model.source import locate

BASE: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(locate(ModelConfig()))
TEXTS = st.text(st.sampled_from([*"ab ,.1\n", "é", "🙂", "漢", "’"]), max_size=30)


def metaspace() -> PreTrainedTokenizerBase:
    """As sentencepiece vocabularies with byte fallback are converted: a prepended space, bytes for what is unknown."""
    words = ["▁", "▁let", "▁me", "▁a", "a", "b", "é", ".", "1", ",", "\n"]
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{i:02X}>": 3 + i for i in range(256)}
    vocabulary |= {word: 259 + i for i, word in enumerate(words)}
    model = models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    inner = Tokenizer(model)
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def unigram() -> PreTrainedTokenizerBase:
    """As T5 and its kin: the Metaspace decoder."""
    scores = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -2.0), ("▁a", -1.0), ("▁let", -1.0)]
    scores += [(piece, -3.0) for piece in [*"ab,.1\n", "é", "🙂", "漢", "’", "let"]]
    inner = Tokenizer(models.Unigram(scores, unk_id=0))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    inner.add_special_tokens([AddedToken("</s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>")


def wordpiece() -> PreTrainedTokenizerBase:
    """As BERT: the decoder writes spaces that no token holds."""
    vocabulary = {w: i for i, w in enumerate(["[UNK]", "[SEP]", "let", "##s", "me", "think", ".", "a", "##b"])}
    inner = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece(cleanup=False)
    inner.add_special_tokens([AddedToken("[SEP]", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, sep_token="[SEP]", unk_token="[UNK]")


MAKERS = {"metaspace": metaspace(), "unigram": unigram(), "base": BASE, "wordpiece": wordpiece()}


def held(text: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    decoded, offsets_T2 = token_offsets(tokenizer.encode(text, add_special_tokens=False), tokenizer)
    return [decoded[start:end] for start, end in offsets_T2]


def test_the_built_in_tokenizer():
    text, offsets_T2 = token_offsets(BASE.encode("Wait, let me check. 12 + 7<|im_end|>"), BASE)
    assert text == "Wait, let me check. 12 + 7"
    assert "".join(text[start:end] for start, end in offsets_T2) == text
    assert offsets_T2[-1].tolist() == [len(text), len(text)]
    assert offsets_T2.dtype == np.int64


def test_tokens_that_share_a_character_all_hold_it():
    assert held("h🙂é", BASE) == ["h", "🙂", "🙂", "🙂", "🙂", "é", "é"]
    assert held("a漢a", MAKERS["metaspace"]) == ["a", "漢", "漢", "漢", "a"]


def test_added_tokens_that_are_not_special_are_text():
    assert "<tool_call>" in held("x<tool_call>y", BASE)


def test_the_space_that_opens_a_sentencepiece_text_is_no_text():
    tokenizer = MAKERS["unigram"]
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("let a", add_special_tokens=False)) == ["▁let", "▁a"]
    assert held("let a", tokenizer) == ["let", " a"]
    assert held("", tokenizer) == []


def test_words_that_a_decoder_sets_apart():
    assert held("lets think.", MAKERS["wordpiece"]) == ["let", "s", " think", " ."]


def test_nothing_and_ids_without_a_meaning():
    text, offsets_T2 = token_offsets([], BASE)
    assert (text, offsets_T2.shape) == ("", (0, 2))
    text, offsets_T2 = token_offsets(np.array([len(BASE) + 40, BASE.encode("a")[0]]), BASE)
    assert text == "a"
    assert offsets_T2.tolist() == [[0, 0], [0, 1]]


def test_malformed_bytes_become_replacement_characters():
    first = BASE.encode("🙂")[-1]  # the last byte of a character, without the others
    text, offsets_T2 = token_offsets([first, BASE.encode("a")[0]], BASE)
    assert text == "�a"
    assert offsets_T2.tolist() == [[0, 1], [1, 2]]


@pytest.mark.parametrize("name", sorted(MAKERS))
@given(text=TEXTS)
def test_tokens_tile_the_text(name: str, text: str):
    tokenizer = MAKERS[name]
    ids = tokenizer.encode(text, add_special_tokens=False)
    decoded, offsets_T2 = token_offsets(ids, tokenizer)
    covered = np.zeros(len(decoded), bool)
    for start, end in offsets_T2:
        assert 0 <= start <= end <= len(decoded)
        covered[start:end] = True
    assert covered.all()
    assert (np.diff(offsets_T2, axis=0) >= 0).all()
    assert decoded == tokenizer.decode(ids, skip_special_tokens=True)


@given(st.lists(st.integers(0, len(BASE) - 1), max_size=30))
def test_the_fast_way_and_prefixes_agree_on_whatever_a_model_samples(ids: list[int]):
    text, offsets_T2 = token_offsets(ids, BASE)
    slow_T2 = pieces._by_prefixes(ids, text, BASE)
    assert offsets_T2[:, 1].max(initial=0) == len(text)
    special = {i for i, token in BASE.added_tokens_decoder.items() if token.special}
    if "�" not in text and not special & set(ids):
        assert offsets_T2.tolist() == slow_T2.tolist()


@pytest.mark.parametrize("name", ["base", "metaspace", "unigram"])
def test_prefixes_are_not_needed_for_common_tokenizers(name: str, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> np.ndarray:
        raise AssertionError("decoded prefixes")

    monkeypatch.setattr(pieces, "_by_prefixes", refuse)
    assert "".join(held("let a b. 1", MAKERS[name])) == "let a b. 1"


def test_tokens_added_later_count():
    tokenizer = unigram()
    assert held("a", tokenizer) == ["a"]
    tokenizer.add_tokens(["<think>"])
    assert held("a<think>", tokenizer)[-1] == "<think>"
