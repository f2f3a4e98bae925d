//! A tokenizer for a model that has none: 256 bytes, then every id as a word that is its number. Text of any kind can be
//! encoded (byte by byte) and every token has a text of its own.

use std::fmt::Write;

/// A `tokenizer.json` of `vocab_size` tokens.
pub(super) fn json(vocab_size: usize) -> Vec<u8> {
    let mut vocab = String::with_capacity(24 * vocab_size);
    for (id, letter) in byte_letters().into_iter().enumerate().take(vocab_size) {
        let letter = match letter {
            '"' | '\\' => format!("\\{letter}"),
            _ => letter.to_string(),
        };
        let _ = write!(vocab, "{}\"{letter}\":{id}", if id == 0 { "" } else { "," });
    }
    for id in 256..vocab_size {
        // The letter of the byte-level alphabet that stands for a space.
        let _ = write!(vocab, ",\"\u{120}{id}\":{id}");
    }
    let byte_level = r#"{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false}"#;
    format!(
        r#"{{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
"pre_tokenizer":{byte_level},"post_processor":null,"decoder":{byte_level},
"model":{{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,
"fuse_unk":false,"byte_fallback":false,"ignore_merges":false,"vocab":{{{vocab}}},"merges":[]}}}}"#
    )
    .into_bytes()
}

/// The letter of each byte in the byte-level alphabet: itself where it can be seen, else one from 256 on.
fn byte_letters() -> Vec<char> {
    let mut next_unseen = 256u32;
    let letter = |byte: u32| match byte {
        33..=126 | 161..=172 | 174..=255 => byte,
        _ => {
            next_unseen += 1;
            next_unseen - 1
        }
    };
    (0..256).map(letter).map(|letter| char::from_u32(letter).expect("letters are below 512")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_has_a_text_of_its_own() {
        let json: serde_json::Value = serde_json::from_slice(&json(300)).unwrap();
        let vocab = json["model"]["vocab"].as_object().unwrap();
        assert_eq!(vocab.len(), 300);
        assert_eq!(vocab["A"], 65);
        assert_eq!(vocab["\u{120}"], 32);
        assert_eq!(vocab["\u{120}299"], 299);
    }
}
