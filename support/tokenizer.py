"""Reading a BERT's tokenizer from its folder; the tokenising itself is the tokenizers library's."""

import re
from pathlib import Path

from tokenizers import BertWordPieceTokenizer, Tokenizer

from support.files import UserError, read_json, read_lines, reading


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder, with truncation and padding switched off.

    It is tokenizer.json, or else made from vocab.txt. UserError if there is neither, or if it does
    not join texts as BERT's does.
    """
    folder = Path(folder)
    path = folder / "tokenizer.json"
    if not path.exists() and not (folder / "vocab.txt").exists():
        raise UserError(f"{folder}: neither tokenizer.json nor vocab.txt is there")
    with reading(path if path.exists() else folder, "not a tokenizer"):
        tokenizer = Tokenizer.from_file(str(path)) if path.exists() else from_vocabulary(folder)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode("\u2603")  # fails if there is no token for unknown words
        empty_pair = tokenizer.encode("", "")
    pad, *joined = (tokenizer.token_to_id(x) for x in ("[PAD]", "[CLS]", "[SEP]", "[SEP]"))
    if pad is None or empty_pair.ids != joined or empty_pair.type_ids != [0, 0, 1]:
        raise UserError(f"{folder}: the tokenizer joins two texts as {empty_pair.tokens}, not as "
                        "BERT's does, [CLS] … [SEP] … [SEP], or has no [PAD]")
    return tokenizer


def from_vocabulary(folder: Path) -> Tokenizer:
    """BERT's WordPiece tokenizer with the words of vocab.txt.

    tokenizer_config.json says whether text is lower-cased. If it does not say, we lower-case unless
    the vocabulary has words with capitals, which lower-cased text would never match.
    """
    path = folder / "tokenizer_config.json"
    config = read_json(path) if path.exists() else {}
    lines = read_lines(folder / "vocab.txt")
    words = [line for line in lines if not line.startswith("[")]  # all but [CLS] and the like
    has_capitals = any(re.search("[A-Z]", word) for word in words)
    return Tokenizer.from_str(BertWordPieceTokenizer(
        str(folder / "vocab.txt"), lowercase=config.get("do_lower_case", not has_capitals),
        strip_accents=config.get("strip_accents"),
        handle_chinese_chars=config.get("tokenize_chinese_chars", True)).to_str())
