//! The alphabet in which byte-level BPE vocabularies are spelled: each of the 256 bytes is one printable character.
//!
//! Bytes that print (`!`..`~`, `¡`..`¬`, `®`..`ÿ`) stand for themselves; the other 68 take U+0100, U+0101, .. in byte
//! order. `Ġ` (U+0120) is the space, `Ċ` (U+010A) the newline. (Radford et al. 2019, GPT-2.)

/// Whether byte `b` is spelled by the character of the same number.
const fn stands_for_itself(b: u8) -> bool {
    matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// `BYTE_OF[c - 0x100]` for the characters U+0100.. that stand for the bytes which do not print.
const SHIFTED: [u8; 68] = {
    let mut table = [0; 68];
    let mut next = 0;
    let mut byte = 0;
    while byte < 256 {
        if !stands_for_itself(byte as u8) {
            table[next] = byte as u8;
            next += 1;
        }
        byte += 1;
    }
    table
};

/// The byte that `c` spells; `None` for a character outside the alphabet.
pub(crate) fn byte_of(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ 0..=0xFF if stands_for_itself(code as u8) => Some(code as u8),
        code @ 0x100.. => SHIFTED.get((code - 0x100) as usize).copied(),
        _ => None,
    }
}

/// The bytes that a vocabulary entry spells, or its own UTF-8 where a character is outside the alphabet (some files keep
/// added tokens as plain text).
pub(crate) fn bytes_of(piece: &str) -> Vec<u8> {
    piece.chars().map(byte_of).collect::<Option<Vec<u8>>>().unwrap_or_else(|| piece.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_exactly_one_character() {
        let mut seen = [0; 256];
        for c in (0..0x200).filter_map(char::from_u32) {
            if let Some(byte) = byte_of(c) {
                seen[usize::from(byte)] += 1;
            }
        }
        assert_eq!(seen, [1; 256]);
        assert_eq!(byte_of('Ġ'), Some(b' '));
        assert_eq!(byte_of('Ċ'), Some(b'\n'));
        assert_eq!(byte_of('a'), Some(b'a'));
        assert_eq!(byte_of(' '), None);
        assert_eq!(byte_of('▁'), None);
    }

    #[test]
    fn a_plain_text_entry_stands_for_its_own_utf8() {
        assert_eq!(bytes_of("ĠcafÃ©"), " café".as_bytes());
        assert_eq!(bytes_of("two words"), b"two words");
        assert_eq!(bytes_of("<｜end▁of▁sentence｜>"), "<｜end▁of▁sentence｜>".as_bytes());
    }
}
