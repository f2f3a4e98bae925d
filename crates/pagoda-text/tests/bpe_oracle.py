"""Byte-level BPE written out plainly: the second opinion on our token ids. Needs the `regex` package only.

stdin:  {"tokens": [..], "token_types": [..], "merges": [..], "kinds": [names of pre-tokenizers], "texts": [..]}
stdout: {kind: [[ids of each text]]}
"""

import json
import sys
import unicodedata

import regex

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What each kind cuts a text by, one pattern after the other, whether it composes characters first, and whether a piece
# that is a token is taken without merging.
KINDS = {
    "gpt-2": ([GPT2], False, False),
    "smollm": ([r"\p{N}", GPT2], False, False),
    "llama-bpe": ([LLAMA3], False, True),
    "qwen2": ([LLAMA3.replace("{1,3}", "")], True, False),
}
CONTROL, USER_DEFINED = 3, 4


def alphabet():
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def cut(text, pattern):
    """The matches of the pattern and what lies between them."""
    at = 0
    for match in regex.finditer(pattern, text):
        if match.start() > at:
            yield text[at : match.start()]
        if match.group():
            yield match.group()
        at = match.end()
    if at < len(text):
        yield text[at:]


def merge(symbols, ranks):
    symbols = list(symbols)
    while len(symbols) > 1:
        pairs = [(ranks.get(pair, len(ranks)), at) for at, pair in enumerate(zip(symbols, symbols[1:]))]
        rank, at = min(pairs)
        if rank == len(ranks):
            break
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    return symbols


def encode(text, kind, ids, ranks, added):
    patterns, composes, takes_whole = KINDS[kind]
    spelled = alphabet()
    result = []
    for section in regex.split(added, text) if added else [text]:
        if section in ids and added and regex.fullmatch(added, section):
            result.append(ids[section])
            continue
        pieces = [unicodedata.normalize("NFC", section) if composes else section]
        for pattern in patterns:
            pieces = [part for piece in pieces for part in cut(piece, pattern)]
        for piece in pieces:
            symbols = "".join(spelled[byte] for byte in piece.encode())
            whole = takes_whole and symbols in ids
            result.extend(ids[symbol] for symbol in ([symbols] if whole else merge(symbols, ranks)))
    return result


def main():
    job = json.load(sys.stdin)
    ids = {}
    for id, token in enumerate(job["tokens"]):
        ids.setdefault(token, id)
    ranks = {tuple(line.split(" ")): rank for rank, line in enumerate(job["merges"])}
    added = [t for t, kind in zip(job["tokens"], job["token_types"]) if kind in (CONTROL, USER_DEFINED)]
    pattern = "(" + "|".join(regex.escape(token) for token in sorted(added, key=len, reverse=True)) + ")" if added else None
    json.dump(
        {kind: [encode(text, kind, ids, ranks, pattern) for text in job["texts"]] for kind in job["kinds"]},
        sys.stdout,
    )


main()
