//! The element types of activations and KV: bf16 and f16.

use half::{bf16, f16};
use pagoda_backend::KvFormat;

/// How activations and KV are stored. Sums are f32 everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Element {
    /// 8 bits of exponent, 7 of fraction: no overflow that f32 has not.
    Bf16,
    /// 5 bits of exponent, 10 of fraction.
    F16,
}

impl Element {
    /// The number that is stored for `value`.
    pub fn round(self, value: f32) -> f32 {
        match self {
            Element::Bf16 => bf16::from_f32(value).to_f32(),
            Element::F16 => f16::from_f32(value).to_f32(),
        }
    }

    /// Relative L2 error that one rounding of an output may make, and twice that: at most 2^-9 or 2^-12 per number.
    pub fn tolerance(self) -> f64 {
        match self {
            Element::Bf16 => 4e-3,
            Element::F16 => 5e-4,
        }
    }

    /// The stored bytes of a number.
    pub(crate) fn bytes(self, value: f32) -> [u8; 2] {
        match self {
            Element::Bf16 => bf16::from_f32(value).to_le_bytes(),
            Element::F16 => f16::from_f32(value).to_le_bytes(),
        }
    }

    /// Appends the stored bytes of `values`.
    pub(crate) fn encode(self, values: impl IntoIterator<Item = f32>, out: &mut Vec<u8>) {
        for value in values {
            out.extend(self.bytes(value));
        }
    }

    /// The number of two stored bytes.
    pub(crate) fn decode(self, bytes: [u8; 2]) -> f32 {
        match self {
            Element::Bf16 => bf16::from_le_bytes(bytes).to_f32(),
            Element::F16 => f16::from_le_bytes(bytes).to_f32(),
        }
    }

    /// The format of a cache that keeps K and V as they are.
    pub(crate) fn kv_format(self) -> KvFormat {
        match self {
            Element::Bf16 => KvFormat::Bf16,
            Element::F16 => KvFormat::F16,
        }
    }

    /// The instantiation of a kernel for this type.
    pub(crate) fn kernel(self, bf16: &'static str, f16: &'static str) -> &'static str {
        match self {
            Element::Bf16 => bf16,
            Element::F16 => f16,
        }
    }
}

/// Both names of a kernel's instantiations.
macro_rules! kernel {
    ($element:expr, $name:literal) => {
        $element.kernel(concat!($name, "_bf16"), concat!($name, "_f16"))
    };
    ($element:expr, $name:literal, $ending:literal) => {
        $element.kernel(concat!($name, "_bf16", $ending), concat!($name, "_f16", $ending))
    };
}
pub(crate) use kernel;
