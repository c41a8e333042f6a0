"""The small BERT: a WordPiece vocabulary and masked language modelling on the sample's text.

    python -m sample.pretrain                     # 4 layers × 128 wide, two minutes on two cores
    python -m sample.pretrain --model small:2x64   # another size, trained in the same way

The result lands in $MOVEMENT_CACHE (default ~/.cache/movement-pruning) as a Hugging Face folder,
named by all that made it; train.py makes it on first use and finds it again afterwards.
"""

import itertools
import math
import re
import time
from pathlib import Path

import numpy as np
import tokenizers
import torch
from tokenizers import BertWordPieceTokenizer, Tokenizer
from torch.nn import functional as F
from tqdm import tqdm

import bert
import data
from sample import generate as sample_data
from support import cli
from support.files import UserError, cached, run_main, write_atomically

DOCUMENTS = 50_000
VOCABULARY = 2_000
STEPS, BATCH, LR, WARMUP = 2_500, 32, 1e-3, 100
MASKED = 0.2  # share of tokens to predict; BERT has 0.15, but short texts learn faster from more
THREADS = 2  # always, so that the weights are the same bits whatever runs beside it
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def is_small(model: str) -> bool:
    """Is `model` this file's small BERT, or a folder?"""
    return model.split(":")[0] in ("small", "untrained")


def is_untrained(model: str) -> bool:
    return model.split(":")[0] == "untrained"


def parse_size(name: str) -> tuple[int, int]:
    """"small", "small:LxH" (or untrained, untrained:LxH) → (layers, width)."""
    found = re.fullmatch(r"(?:small|untrained)(?::(\d+)x(\d+))?", name)
    if not found:
        raise UserError(f"--model {name}: write small, or small:LAYERSxWIDTH such as small:2x64")
    layers, width = int(found[1] or 4), int(found[2] or 128)
    if not (1 <= layers <= 24 and 32 <= width <= 1024 and width % 32 == 0):
        raise UserError(f"--model {name}: 1 to 24 layers, and a width of 32 to 1024 that is a "
                        "multiple of 32")
    return layers, width


def small_config(layers: int, width: int, vocab_size: int) -> bert.Config:
    return bert.Config(
        vocab_size=vocab_size, hidden_size=width, num_hidden_layers=layers,
        num_attention_heads=width // 32, intermediate_size=4 * width,
        max_position_embeddings=256, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """BERT's lower-casing WordPiece, its vocabulary learned from `texts`."""
    # the library numbers ##a, ##b, … in an order that differs from run to run, and what it merges
    # depends on these numbers: so they come first, as its special tokens do, in a fixed order
    letters = sorted(c for c in set().union(*map(str.lower, texts)) if c.isalnum())
    learner = BertWordPieceTokenizer()
    learner.train_from_iterator(
        texts, VOCABULARY, min_frequency=0, show_progress=False,
        special_tokens=SPECIAL + [f"##{c}" for c in letters])
    return Tokenizer.from_str(BertWordPieceTokenizer(learner.get_vocab()).to_str())


def mask_tokens(batch: dict, vocab_size: int, mask_id: int):
    """BERT's corruption of a share MASKED of the tokens: 80 % [MASK], 10 % random, 10 % left.

    Returns input_ids (B, T), chosen (B, T) true where a token is to be predicted.
    """
    ids = batch["input_ids"]
    chosen = (torch.rand(ids.shape) < MASKED) & (ids >= len(SPECIAL))  # (B, T)
    dice = torch.rand(ids.shape)  # (B, T)
    ids = torch.where(chosen & (dice < 0.8), torch.full_like(ids, mask_id), ids)
    noise = torch.randint(len(SPECIAL), vocab_size, ids.shape)
    return torch.where(chosen & (dice >= 0.9), noise, ids), chosen


def train(features: data.Features, tokenizer: Tokenizer, layers: int, width: int, steps: int):
    """The masked language model after so many steps."""
    torch.manual_seed(0)
    vocab_size = tokenizer.get_vocab_size()
    model = bert.create(small_config(layers, width, vocab_size), "mlm")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.01, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min((t + 1) / WARMUP, (STEPS - t) / (STEPS - WARMUP)))
    orders = (data.batches(features, BATCH, seed=0, epoch=epoch) for epoch in itertools.count())
    order = itertools.chain.from_iterable(orders)
    bar = tqdm(range(steps), desc="pretraining", unit="step", mininterval=1, disable=None)
    mean = math.log(vocab_size)
    for index in itertools.islice(order, steps):
        batch = data.collate(features, index)
        ids, chosen = mask_tokens(batch, vocab_size, tokenizer.token_to_id("[MASK]"))
        hidden = model.bert(ids, batch["attention_mask"], batch["token_type_ids"])  # (B, T, H)
        logits = model.predict(hidden[chosen])  # (chosen tokens, V)
        loss = F.cross_entropy(logits, batch["input_ids"][chosen])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        mean = 0.99 * mean + 0.01 * loss.item()
        bar.set_postfix(loss=f"{mean:.2f}", refresh=False)
        bar.update()
    bar.close()
    if steps:
        print(f"pretrained: masked-token loss {mean:.2f} (perplexity {math.exp(mean):.1f})")
    return model


def make(folder: Path, layers: int, width: int, steps: int) -> None:
    texts = list(sample_data.pretraining_text(DOCUMENTS))
    tokenizer = train_tokenizer([" ".join(text) for text in texts])
    rows = data.Rows(texts, np.zeros(len(texts), dtype=np.int64))
    model = train(data.encode_texts(rows, tokenizer, 64), tokenizer, layers, width, steps)
    bert.save(model, folder)
    write_atomically(folder / "tokenizer.json", tokenizer.to_str())
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    write_atomically(folder / "vocab.txt", "".join(f"{token}\n" for token, _ in vocabulary))


def small_bert(name: str = "small") -> Path:
    """The folder of the small BERT of that size, trained now if it is not in the cache yet; of an
    untrained one, whose weights are as initialised."""
    layers, width = parse_size(name)
    kind = name.split(":")[0]

    def make_and_tell(folder: Path) -> None:
        if is_untrained(name):
            return make(folder, layers, width, 0)
        print(f"pretraining the small BERT once ({layers} layers × {width} wide, on generated "
              f"text) → {folder.parent}", flush=True)
        began, threads = time.time(), torch.get_num_threads()
        torch.set_num_threads(THREADS)
        make(folder, layers, width, STEPS)
        torch.set_num_threads(threads)
        print(f"pretraining took {time.time() - began:.0f} s", flush=True)

    libraries = f"{torch.__version__} {tokenizers.__version__}"
    return cached(f"{kind}-{layers}x{width}", f"1 {libraries}", make_and_tell)


def main() -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--model", default="small", metavar="NAME",
                        help="small or small:LAYERSxWIDTH")
    print(small_bert(parser.parse_args().model))


if __name__ == "__main__":
    run_main(main)
