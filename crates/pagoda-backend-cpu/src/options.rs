//! How the CPU is used: threads and instruction set. Owns run-time detection.

use std::fmt;

/// Settings of [`crate::CpuBackend`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads that compute, the caller included.
    pub num_threads: usize,
    /// Instruction set; `None` takes the widest that this CPU has.
    pub isa: Option<Isa>,
}

/// How linear ops multiply by quantised weights, see [`crate::CpuBackend::with_arithmetic`]. Float weights and all other ops are f32 either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arithmetic {
    /// f32 activations.
    #[default]
    F32,
    /// int16 activations with a scale per 32, exact integer products: not the same bits as [`Arithmetic::F32`], but the
    /// same numerics law. On SmolLM2 Q4_1, teacher-forced over 3,672 tokens, the argmax was equal everywhere and the
    /// logprobs differed by 3.8e-4 (root mean square; 3.4e-3 at most). On AVX2 a product of 1 row takes 0.6 of the time of
    /// f32 (Q4_1), one of 32 rows or more 0.75. What more precise integers would cost: docs/decisions/202.
    Int16,
}

impl fmt::Display for Arithmetic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Arithmetic::F32 => "f32",
            Arithmetic::Int16 => "int16",
        })
    }
}

/// An instruction set that the kernels are built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust.
    Portable,
    /// x86-64 AVX2 with FMA and F16C.
    Avx2,
    /// x86-64 AVX-512 F, BW, VL and DQ.
    Avx512,
}

impl Isa {
    /// Every instruction set, for tests that force each in turn.
    pub const ALL: [Isa; 3] = [Isa::Portable, Isa::Avx2, Isa::Avx512];

    /// The widest that this CPU has.
    pub fn detect() -> Isa {
        Isa::ALL.into_iter().rev().find(|isa| isa.is_available()).expect("portable code runs everywhere")
    }

    /// Whether this CPU has it.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "AVX2",
            Isa::Avx512 => "AVX-512",
        })
    }
}
