"""model.sparse: a model's tensors in a file near the entropy of its masks and values.

    path.write_bytes(pack({name: encode(x, "int8") for name, x in weights.items()}))
    weights = load_sparse(path)

model.sparse, start to end (integers are little-endian):

    8 bytes   "SPARSE-1"
    32 bytes  SHA-256 of all that follows
    4 bytes   length of the header
    header    JSON: a list with one record for each tensor
    streams   three for each tensor, in the header's order: positions, scales, values

The header and every stream are DEFLATE data (RFC 1951) without wrapping. A record is
{"name", "shape", "positions", "values", "bytes": [lengths of the three streams]}. A tensor's
entries are taken row after row, and those whose bits are not all zero are stored (so −0.0 is):

  positions "gaps"    A byte b < 255: skip b entries, then comes a stored one. 255: skip 255.
            "bitmap"  One bit an entry, 1 where stored, the highest bit of a byte first.
            "all"     An empty stream: every entry is stored, zeros too.
  values    "float32" The stored entries, as they are.
            "bf16"    Their upper two bytes, rounded.
            "int8"    Whole numbers c from −127 to 127; an entry is c times the scale of its row.
                      Scales, one a row, are bf16; the other kinds have none.
            All first bytes come first (the lowest), then all second bytes, and so on.

Why this is small. Gaps between the entries of a random mask are geometrically distributed, and
for such numbers a Huffman code comes within about 1 % of the entropy; DEFLATE is told to use
nothing else. Splitting values by bytes lets it find that signs and exponents repeat.
"""

import hashlib
import io
import json
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from support.files import UserError

KINDS = {"float32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
MAGIC = b"SPARSE-1"
START = struct.Struct("<8s32sI")
MOST_ENTRIES = 2**29  # of all tensors together; BERT-large has 2**28.3

# ------------------------------------------------------------------------- bytes and positions


def squeeze(plain: bytes) -> bytes:
    """DEFLATE with Huffman coding alone: searching for repeats only costs where there are none."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    return packer.compress(plain) + packer.flush()


def unsqueeze(stream: bytes, most: int) -> bytes:
    """Undo `squeeze`; refuses what is broken, or longer than `most` bytes."""
    unpacker = zlib.decompressobj(-15)
    found = unpacker.decompress(stream, most + 1)
    need(len(found) <= most and unpacker.eof and not unpacker.unused_data, "a broken stream")
    return found


def need(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(what)


def to_gaps(stored: np.ndarray) -> bytes:
    """(n,) bool → gap bytes: 255 for each 255 entries skipped, then the rest."""
    gaps = np.diff(np.flatnonzero(stored), prepend=-1) - 1
    ends = np.cumsum(gaps // 255 + 1)  # where each gap's last byte lies
    found = np.full(ends[-1] if len(ends) else 0, 255, np.uint8)
    found[ends - 1] = gaps % 255
    return found.tobytes()


def from_gaps(plain: bytes, n: int) -> np.ndarray:
    """Gap bytes → (n,) bool."""
    gaps = np.frombuffer(plain, np.uint8)
    ends = gaps < 255
    positions = np.cumsum(gaps, dtype=np.int64)[ends] + np.arange(ends.sum())
    need(len(positions) == 0 or positions[-1] < n, "a position outside its tensor")
    stored = np.zeros(n, bool)
    stored[positions] = True
    return stored


def to_planes(raw: np.ndarray) -> bytes:
    """(k, width) uint8, the bytes of k numbers → all first bytes, then all second ones …"""
    return squeeze(raw.T.tobytes())


def from_planes(stream: bytes, k: int, width: int) -> np.ndarray:
    plain = unsqueeze(stream, k * width)
    need(len(plain) == k * width, "fewer values than positions")
    return np.frombuffer(plain, np.uint8).reshape(width, k).T.copy()


# ---------------------------------------------------------------------- one tensor, in and out


@dataclass
class Coded:
    """A tensor as model.sparse holds it; streams are positions, scales, values."""

    shape: list[int]
    values: str
    positions: str
    streams: tuple[bytes, bytes, bytes]


def quantise(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, …) → int8 codes (rows, entries of a row), bf16 scales (rows)."""
    x = x.reshape(len(x), -1)
    scales = x.abs().amax(1) / 127
    # bf16 is the upper half of float32; rounded up, so that no code passes 127
    scales = (scales.view(torch.int32) + 0xFFFF >> 16).to(torch.int16).view(torch.bfloat16)
    step = scales.float()[:, None]
    codes = torch.where(step > 0, x / step, 0.0).round().clamp(-127, 127).to(torch.int8)
    return codes, scales


def raw_bytes(x: torch.Tensor) -> np.ndarray:
    """n numbers → (n, width) uint8, the lowest byte first."""
    return x.reshape(-1, 1).view(torch.uint8).numpy()


def encode(x: torch.Tensor, values: str) -> Coded:
    """A float32 tensor in the smallest of the three codings of positions."""
    shape, scales = list(x.shape), torch.empty(0, dtype=torch.bfloat16)
    if values == "int8":
        x, scales = quantise(x)
    raw = raw_bytes(x.to(KINDS[values]))
    stored = raw.any(1)
    tried = {"all": (b"", to_planes(raw))}
    if not stored.all():
        some = to_planes(raw[stored])
        tried["bitmap"] = (squeeze(np.packbits(stored).tobytes()), some)
        tried["gaps"] = (squeeze(to_gaps(stored)), some)
    best = min(tried, key=lambda name: sum(map(len, tried[name])))
    where, what = tried[best]
    return Coded(shape, values, best, (where, to_planes(raw_bytes(scales)), what))


def read_positions(c: Coded, n: int) -> np.ndarray:
    """(n,) bool: where an entry is stored."""
    if c.positions == "gaps":
        return from_gaps(unsqueeze(c.streams[0], 2 * n), n)
    if c.positions == "bitmap":
        bits = unsqueeze(c.streams[0], -(-n // 8))
        need(len(bits) == -(-n // 8), "a bitmap of the wrong length")
        return np.unpackbits(np.frombuffer(bits, np.uint8), count=n).view(bool)
    need(not c.streams[0], "positions where none belong")
    return np.ones(n, bool)


def decode(c: Coded) -> torch.Tensor:
    """Float32 tensor; ValueError or zlib.error where the streams do not fit the shape."""
    n, kind = math.prod(c.shape), KINDS[c.values]
    rows = c.shape[0] if c.values == "int8" else 0
    stored = read_positions(c, n)
    raw = np.zeros((n, kind.itemsize), np.uint8)
    raw[stored] = from_planes(c.streams[2], int(stored.sum()), kind.itemsize)
    x = torch.from_numpy(raw).view(kind).float()  # (n, 1)
    scales = from_planes(c.streams[1], rows, 2)
    if rows:
        x = x.view(rows, -1) * torch.from_numpy(scales).view(torch.bfloat16).float()
    return x.reshape(c.shape)


# ------------------------------------------------------------------------------ the whole file


def pack(coded: dict[str, Coded]) -> bytes:
    records = [{"name": name, "shape": c.shape, "positions": c.positions, "values": c.values,
                "bytes": [len(s) for s in c.streams]} for name, c in coded.items()]
    header = squeeze(json.dumps(records, separators=(",", ":")).encode())
    rest = header + b"".join(s for c in coded.values() for s in c.streams)
    length = struct.pack("<I", len(header))
    return MAGIC + hashlib.sha256(length + rest).digest() + length + rest


def check(records) -> None:
    """Every field of the header, before anything is made from it."""
    need(isinstance(records, list) and all(isinstance(r, dict) for r in records), "no records")
    for r in records:
        need(isinstance(r.get("name"), str), "a tensor without a name")
        need(r.get("positions") in ("all", "bitmap", "gaps"), "an unknown kind of positions")
        need(r.get("values") in tuple(KINDS), "an unknown kind of values")
        for field, least, lengths in (("shape", 1, (1, 2, 3, 4)), ("bytes", 0, (3,))):
            value = r.get(field)
            need(isinstance(value, list) and len(value) in lengths
                 and all(type(v) is int and least <= v < 2**32 for v in value),
                 f"a broken field {field!r}")
    need(len({r["name"] for r in records}) == len(records), "a tensor twice")
    need(sum(math.prod(r["shape"]) for r in records) <= MOST_ENTRIES, "too many entries")


def unpack(whole: bytes) -> dict[str, torch.Tensor]:
    need(len(whole) >= START.size, "too short")
    magic, digest, length = START.unpack_from(whole)
    at = START.size + length
    need(magic == MAGIC, "not in this format")
    need(hashlib.sha256(whole[40:]).digest() == digest, "damaged or cut off")
    records = json.loads(unsqueeze(whole[START.size : at], 2**24))
    check(records)
    need(at + sum(sum(r["bytes"]) for r in records) == len(whole), "streams of the wrong length")
    streams = io.BytesIO(whole[at:])
    return {r["name"]: decode(Coded(r["shape"], r["values"], r["positions"],
                                    tuple(streams.read(size) for size in r["bytes"])))
            for r in records}


def load_sparse(path: str | Path) -> dict[str, torch.Tensor]:
    """model.sparse → float32 tensors under Hugging Face's names, zeros filled in.

    Nothing in the file is trusted: any damage is a UserError.
    """
    try:
        return unpack(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (ValueError, zlib.error, RecursionError) as error:
        why = str(error).splitlines()[0] if str(error) else "broken"
        raise UserError(f"{path}: not a whole model.sparse ({why}); write it again with "
                        "python export.py RUN") from None
