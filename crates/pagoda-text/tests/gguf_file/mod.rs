//! Reads the tokenizer's metadata of a GGUF file: as much of the format as tests need.

use std::collections::HashMap;
use std::path::Path;

use pagoda_text::GgufVocab;

enum Field {
    Number(u64),
    Text(String),
    Texts(Vec<String>),
    Numbers(Vec<u64>),
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take(&mut self, len: usize) -> &[u8] {
        let (taken, rest) = self.0.split_at(len);
        self.0 = rest;
        taken
    }

    /// A little-endian number of `len` bytes.
    fn number(&mut self, len: usize) -> u64 {
        self.take(len).iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
    }

    fn text(&mut self) -> String {
        let len = self.number(8) as usize;
        String::from_utf8_lossy(self.take(len)).into_owned()
    }

    fn field(&mut self, kind: u64) -> Field {
        const TEXT: u64 = 8;
        const ARRAY: u64 = 9;
        match kind {
            TEXT => Field::Text(self.text()),
            ARRAY => {
                let (item_kind, len) = (self.number(4), self.number(8));
                match item_kind {
                    TEXT => Field::Texts((0..len).map(|_| self.text()).collect()),
                    _ => Field::Numbers((0..len).map(|_| self.number(width(item_kind))).collect()),
                }
            }
            _ => Field::Number(self.number(width(kind))),
        }
    }
}

fn width(kind: u64) -> usize {
    match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        10..=12 => 8,
        _ => panic!("GGUF value type {kind}"),
    }
}

/// The vocabulary of the file at `path`.
pub(crate) fn vocab(path: &Path) -> GgufVocab {
    let bytes = std::fs::read(path).expect("the model can be read");
    let mut reader = Reader(&bytes);
    assert_eq!(reader.take(4), b"GGUF");
    let (_version, _num_tensors, num_fields) = (reader.number(4), reader.number(8), reader.number(8));
    let mut fields = HashMap::new();
    for _ in 0..num_fields {
        let name = reader.text();
        let kind = reader.number(4);
        fields.insert(name, reader.field(kind));
    }
    let mut take = |name: &str| fields.remove(&format!("tokenizer.ggml.{name}"));
    let text = |field| if let Some(Field::Text(text)) = field { text } else { String::new() };
    let texts = |field| if let Some(Field::Texts(texts)) = field { texts } else { Vec::new() };
    let numbers = |field| if let Some(Field::Numbers(numbers)) = field { numbers } else { Vec::new() };
    let number = |field| if let Some(Field::Number(number)) = field { Some(number as u32) } else { None };
    GgufVocab {
        model: text(take("model")),
        pre: text(take("pre")),
        tokens: texts(take("tokens")),
        token_types: numbers(take("token_type")).into_iter().map(|kind| kind as i32).collect(),
        merges: texts(take("merges")),
        scores: Vec::new(),
        bos_token_id: number(take("bos_token_id")),
        eos_token_id: number(take("eos_token_id")),
        unknown_token_id: number(take("unknown_token_id")),
        padding_token_id: number(take("padding_token_id")),
        add_bos_token: number(take("add_bos_token")).map(|flag| flag == 1),
        add_eos_token: number(take("add_eos_token")).map(|flag| flag == 1),
        add_space_prefix: number(take("add_space_prefix")) == Some(1),
    }
}
