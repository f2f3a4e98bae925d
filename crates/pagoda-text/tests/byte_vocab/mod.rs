//! A small byte-level vocabulary for tests: any byte strings as tokens.

use pagoda_text::{GgufVocab, Tokenizer, TokenizerSource};

/// The character that spells `byte` in a byte-level vocabulary.
pub(crate) fn spelled(byte: u8) -> char {
    let prints = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let code =
        if prints(byte) { u32::from(byte) } else { 0x100 + (0..byte).filter(|&b| !prints(b)).count() as u32 };
    char::from_u32(code).expect("below the surrogates")
}

/// GGUF metadata of the `gpt-2` kind: special tokens first, then the 256 bytes, then `words`.
pub(crate) fn gguf(special: &[&str], words: &[Vec<u8>]) -> GgufVocab {
    let mut tokens: Vec<String> = special.iter().map(|&text| text.to_owned()).collect();
    let mut token_types = vec![3; special.len()];
    tokens.extend((0..=255).map(|byte| spelled(byte).to_string()));
    tokens.extend(words.iter().map(|word| word.iter().map(|&byte| spelled(byte)).collect::<String>()));
    tokens.push("ab".into());
    token_types.resize(tokens.len(), 1);
    GgufVocab {
        model: "gpt2".into(),
        pre: "gpt-2".into(),
        tokens,
        token_types,
        merges: vec!["a b".into()],
        ..GgufVocab::default()
    }
}

/// The tokenizer of [`gguf`].
pub(crate) fn tokenizer(special: &[&str], words: &[Vec<u8>]) -> Tokenizer {
    Tokenizer::new(TokenizerSource::Gguf(gguf(special, words))).expect("the vocabulary is well-formed")
}
