#!/usr/bin/env python3
"""Writes models/all-minilm-l6-v2/golden.json: vectors of sentence-transformers itself (PyTorch, f32) for the embedding model.

Run once, offline, never in CI; the result is committed:

    pip install sentence-transformers torch
    python scripts/export_embedding_golden.py FOLDER_OF_THE_MODEL

The folder is the one that `pagoda pull all-minilm-l6-v2` prints. Vectors are stored as base64 of little-endian f32.
"""

import base64
import json
import pathlib
import sys

import numpy as np
import sentence_transformers
import torch
from sentence_transformers import SentenceTransformer

GOLDEN = pathlib.Path(__file__).parent.parent / "models" / "all-minilm-l6-v2" / "golden.json"
TEXTS = [
    "Hello",
    "The capital of France is Paris.",
    "what is the CAPITAL of france?",
    "Human: my birthday is on the 3rd of May, and I am allergic to peanuts!",
    "Der Himmel über Köln ist grau; naïve façade, Ångström.",
    "日本語の文章もトークンになる。",
    "🙂 emoji, tabs\tand\nnew lines   and   spaces",
    "fn main() { println!(\"{}\", 1 + 1); } // code",
    " ".join(f"Sentence number {i} says that water boils at {90 + i} degrees." for i in range(8)),
    # Longer than 128 tokens, where tokenizer.json would cut, and shorter than 256.
    " ".join(f"word{i}" for i in range(70)),
    # Longer than 256 tokens: only the first 254 and the two special ones count.
    "The quick brown fox jumps over the lazy dog near the river bank. " * 40,
]


def main():
    model = SentenceTransformer(sys.argv[1], device="cpu")
    assert model.max_seq_length == 256, model.max_seq_length
    entries = []
    for text in TEXTS:
        vector = model.encode([text], convert_to_numpy=True)[0].astype("<f4")
        assert abs(float(np.linalg.norm(vector)) - 1) < 1e-5
        ids = model.tokenizer(text, truncation=True, max_length=256)["input_ids"]
        entries.append({"text": text, "token_ids": ids, "vector": base64.b64encode(vector.tobytes()).decode()})
    made_by = f"sentence-transformers {sentence_transformers.__version__}, torch {torch.__version__.split('+')[0]}"
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    GOLDEN.write_text(f'{{"made_by": "{made_by}", "texts": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
