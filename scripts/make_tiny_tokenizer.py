#!/usr/bin/env python3
"""Writes models/tiny/tokenizer.json: a byte-level BPE of 512 tokens (3 special tokens, 256 bytes, 253 merges).

Run once, offline; the result is committed. The merges are learned from the text below, so that English prompts become a
little shorter than their bytes. Needs nothing but Python.
"""

import collections
import json
import pathlib
import re

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCAB_SIZE = 512
TEXT = """
A pagoda is a tower with many floors, and every floor has a roof of its own. The keeper of the tower writes down who comes
and who goes, on which floor each guest sleeps, and which rooms are free. When a group of guests arrives together they are
given one key, and they share the rooms until one of them wants to change something; then that one receives a copy. When the
tower is full the keeper asks the guest who came last to wait outside for a while, and when a room is free again the guest
continues where the conversation was interrupted. Nobody is ever sent away without an answer, and nobody waits forever.

You are a helpful assistant. What is the capital of the country in the north? The user asks a question and the assistant
answers it in a few words. Please write a short story about a child that finds an old book in the garden. How many letters
are in the word? There were seven birds on the roof, then two of them flew over the river to the other side. Can you explain
to me why the sky is blue in the morning and red in the evening? The system reads the message from the user, thinks about
it, and writes the next word, and then the next one, until there is nothing more to say. This is the first line of the
program, that is the second line, and here is the end of it. I would like to know more about the weather today. Thank you
for the information, it was very useful. Let us count: one, two, three, four, five, six, seven, eight, nine, ten.
"""


def byte_characters():
    """The printable character that stands for each byte in byte-level vocabularies."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters, num_others = {}, 0
    for byte in range(256):
        if byte in printable:
            characters[byte] = chr(byte)
        else:
            characters[byte] = chr(256 + num_others)
            num_others += 1
    return characters


def learn_merges(words, num_merges):
    """The most frequent neighbours, again and again; ties go to the smaller pair."""
    merges = []
    while len(merges) < num_merges:
        pairs = collections.Counter()
        for word, count in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        merged = {}
        for word, count in words.items():
            parts, i = [], 0
            while i < len(word):
                if word[i : i + 2] == best:
                    parts.append(word[i] + word[i + 1])
                    i += 2
                else:
                    parts.append(word[i])
                    i += 1
            key = tuple(parts)
            merged[key] = merged.get(key, 0) + count
        words = merged
    return merges


def main():
    characters = byte_characters()
    pieces = re.findall(r" ?[A-Za-z]+| ?[0-9]| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", TEXT)
    words = collections.Counter(tuple(characters[b] for b in piece.encode()) for piece in pieces)
    merges = learn_merges(dict(words), VOCAB_SIZE - len(SPECIAL) - 256)
    tokens = SPECIAL + [characters[b] for b in range(256)] + [a + b for a, b in merges]
    assert len(tokens) == len(set(tokens)) == VOCAB_SIZE
    added = [
        {
            "id": i,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, text in enumerate(SPECIAL)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {text: i for i, text in enumerate(tokens)},
            "merges": [f"{a} {b}" for a, b in merges],
        },
    }
    path = pathlib.Path(__file__).parent.parent / "models" / "tiny" / "tokenizer.json"
    path.write_text(json.dumps(tokenizer, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
