//! How K and V are stored. Owns the formats' sizes; does not know where a backend keeps them.

use std::fmt;

/// The stored form of the K (or V) of one head in one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvFormat {
    /// 32-bit IEEE float.
    F32,
    /// 16-bit brain float.
    Bf16,
    /// 16-bit IEEE float.
    F16,
    /// A byte per channel (4 bits of exponent, 3 of fraction, finite up to 448) and one for the scale of them all, a power of
    /// two: one per head and slot, so that it needs no calibration and does not depend on other tokens.
    E4m3,
}

impl KvFormat {
    /// Bytes of one head's K (or V) in one slot.
    pub fn head_bytes(self, head_dim: usize) -> usize {
        match self {
            KvFormat::F32 => 4 * head_dim,
            KvFormat::Bf16 | KvFormat::F16 => 2 * head_dim,
            KvFormat::E4m3 => head_dim + 1,
        }
    }
}

impl fmt::Display for KvFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KvFormat::F32 => "f32",
            KvFormat::Bf16 => "bf16",
            KvFormat::F16 => "f16",
            KvFormat::E4m3 => "fp8 (e4m3)",
        })
    }
}
