"""The small BERT: a WordPiece vocabulary and masked language modelling on generated text.

    python -m sample.pretrain                      # 4 layers × 128 wide, two minutes on two cores
    python -m sample.pretrain --model small:2x64   # another size, trained in the same way

The result is a Hugging Face folder in $MOVEMENT_CACHE (default ~/.cache/movement-pruning). train.py
makes it on first use and finds it there afterwards.
"""

import itertools
import math
import re
import time
from functools import partial
from pathlib import Path

import numpy as np
import tokenizers
import torch
from tokenizers import BertWordPieceTokenizer, Tokenizer
from torch.nn import functional as F

import bert
import data
from sample import generate
from support import cli
from support.files import UserError, cache_path, cached, run_main
from support.progress import Progress

VERSION = 2  # raise it when the weights change though the constants below and the text do not
DOCUMENTS = 50_000
VOCABULARY = 2_000
MAX_LENGTH = 64  # tokens
STEPS, BATCH, LR, SEED = 2_100, 32, 1e-3, 0
WARMUP = 0.04  # share of the steps
MASKED = 0.2  # share of tokens to predict; BERT has 0.15, but short texts learn faster from more
THREADS = 2  # always, so that the weights are the same to the bit whatever else is running
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


# ------------------------------------------------------------------------------ names


def is_small(model: str) -> bool:
    """Does --model name a BERT made here ("small", "untrained:2x64", …), and not a folder?"""
    return model.split(":")[0] in ("small", "untrained")


def is_untrained(model: str) -> bool:
    """Is it the small BERT with its weights as initialised?"""
    return model.split(":")[0] == "untrained"


def remark(model: str) -> str:
    """What to say of such weights where a run describes itself; nothing for other models."""
    if is_untrained(model):
        return " · random weights"
    small = " · pretrained on generated text; real weights: --model bert-base-uncased"
    return small if is_small(model) else ""


def parse_size(model: str) -> tuple[int, int]:
    """"small", "small:LxH", "untrained" or "untrained:LxH" → (layers, width)."""
    match = re.fullmatch(r"(?:small|untrained)(?::(\d+)x(\d+))?", model)
    if not match:
        raise UserError(f"--model {model}: write small, or small:LAYERSxWIDTH such as small:2x64")
    layers, width = int(match[1] or 4), int(match[2] or 128)
    if not (1 <= layers <= 24 and 32 <= width <= 1024 and width % 32 == 0):
        raise UserError(f"--model {model}: 1 to 24 layers, and a width of 32 to 1024 that is a "
                        "multiple of 32")
    return layers, width


def cache_entry(model: str) -> tuple[str, str]:
    """Name and key in the cache; the key is all that decides the weights to the bit."""
    layers, width = parse_size(model)
    key = (VERSION, generate.VERSION, DOCUMENTS, VOCABULARY, MAX_LENGTH, STEPS, BATCH, LR, SEED,
           WARMUP, MASKED, THREADS, torch.__version__, tokenizers.__version__)
    return f"{model.split(':')[0]}-{layers}x{width}", str(key)


def is_there(model: str) -> bool:
    """Is this small BERT in the cache?"""
    return cache_path(*cache_entry(model)).is_dir()


# ------------------------------------------------------------------------------ training


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """BERT's lower-casing WordPiece, its vocabulary learned from `texts`."""
    # The library numbers ##a, ##b, … in an order that differs from run to run, and merges depend on
    # these numbers. As special tokens they come first, in a fixed order.
    letters = sorted(c for c in set().union(*map(str.lower, texts)) if c.isalnum())
    learner = BertWordPieceTokenizer()
    learner.train_from_iterator(
        texts, VOCABULARY, min_frequency=0, show_progress=False,
        special_tokens=SPECIAL + [f"##{c}" for c in letters])
    return Tokenizer.from_str(BertWordPieceTokenizer(learner.get_vocab()).to_str())


def encode(documents: list[tuple[str, ...]], tokenizer: Tokenizer) -> data.Features:
    unlabelled = data.Rows(documents, np.zeros(len(documents), dtype=np.int64))
    return data.encode_texts(unlabelled, tokenizer, MAX_LENGTH)


def mask_tokens(ids: torch.Tensor, tokenizer: Tokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    """ids (B, T) → ids with some tokens masked (B, T), and which of them to predict (B, T).

    As in BERT (arXiv 1810.04805, section 3.1), 80 % of the chosen tokens become [MASK], 10 % a
    random token, and 10 % stay as they are.
    """
    chosen = (torch.rand(ids.shape) < MASKED) & (ids >= len(SPECIAL))  # (B, T)
    dice = torch.rand(ids.shape)  # (B, T)
    masked = torch.where(chosen & (dice < 0.8), tokenizer.token_to_id("[MASK]"), ids)  # (B, T)
    noise = torch.randint(len(SPECIAL), tokenizer.get_vocab_size(), ids.shape)  # (B, T)
    return torch.where(chosen & (dice >= 0.9), noise, masked), chosen


def masked_loss(model, batch: dict[str, torch.Tensor], tokenizer: Tokenizer) -> torch.Tensor:
    """Mean cross-entropy of the tokens to predict."""
    ids, chosen = mask_tokens(batch["input_ids"], tokenizer)
    # each row's chosen tokens first, filled up with others to the largest number in a row, R
    R = int(chosen.sum(1).max())
    positions = chosen.int().argsort(dim=1, descending=True, stable=True)[:, :R]  # (B, R)
    hidden = model.bert(ids, batch["attention_mask"], batch["token_type_ids"], positions)
    chosen, targets = (x.gather(1, positions) for x in (chosen, batch["input_ids"]))  # (B, R)
    logits = model.predict(hidden[chosen])  # (chosen tokens, V)
    return F.cross_entropy(logits, targets[chosen])


def rate(step: int) -> float:
    """Learning-rate factor: up linearly over the warm-up, then down to 0 at STEPS."""
    warmup = max(1, round(WARMUP * STEPS))
    return min((step + 1) / warmup, (STEPS - step) / (STEPS - warmup))


def train(features: data.Features, tokenizer: Tokenizer, layers: int, width: int, steps: int):
    """The masked language model after the first `steps` of STEPS steps."""
    torch.manual_seed(SEED)
    vocab_size = tokenizer.get_vocab_size()
    config = bert.Config(
        vocab_size=vocab_size, hidden_size=width, num_hidden_layers=layers,
        num_attention_heads=width // 32, intermediate_size=4 * width,
        max_position_embeddings=256, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = bert.create(config, "mlm")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.01, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    epochs = (data.batches(features, BATCH, SEED, epoch) for epoch in itertools.count())
    order = itertools.islice(itertools.chain.from_iterable(epochs), steps)
    bar = Progress("pretraining step", steps, "step")
    mean, began = math.log(vocab_size), time.perf_counter()  # mean: of about the last 100 losses
    for index in order:
        loss = masked_loss(model, data.collate(features, index), tokenizer)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        mean = 0.99 * mean + 0.01 * loss.item()
        bar.advance(1, f"loss {mean:.2f}")
    bar.close()
    if steps:
        print(f"pretrained in {time.perf_counter() - began:.0f} s: masked-token loss {mean:.2f} "
              f"(perplexity {math.exp(mean):.1f})", flush=True)
    return model


def make(model_name: str, folder: Path) -> None:
    """Pretrain a small BERT and write its Hugging Face folder."""
    layers, width = parse_size(model_name)
    steps = 0 if is_untrained(model_name) else STEPS
    if steps:
        print(f"pretraining the small BERT once ({layers} layers × {width} wide, on generated "
              f"text) → {folder.parent}", flush=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    documents = list(generate.pretraining_documents(DOCUMENTS))
    tokenizer = train_tokenizer([" ".join(document) for document in documents])
    model = train(encode(documents, tokenizer), tokenizer, layers, width, steps)
    torch.set_num_threads(threads)
    bert.save(model, folder, tokenizer=tokenizer)


def small_bert(model: str = "small") -> Path:
    """The folder of a small BERT, pretrained now if it is not in the cache yet."""
    return cached(*cache_entry(model), partial(make, model))


def main() -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--model", default="small", metavar="NAME",
                        help="small or small:LAYERSxWIDTH")
    print(small_bert(parser.parse_args().model))


if __name__ == "__main__":
    run_main(main)
