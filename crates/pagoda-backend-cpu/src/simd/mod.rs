//! Sixteen f32 lanes, the unit that every kernel is written in: one zmm, two ymm, or a plain array.
//!
//! A kernel is one `#[inline(always)]` function generic over [`Simd`]; [`isa_entry`] compiles it once per instruction set
//! and picks one at run time. An instruction set differs in the primitives below and in nothing else, so AVX2 and AVX-512
//! give the same bits. Portable code has no fused multiply-add and differs from them in the last places.
//!
//! Kernels walk raw pointers: index arithmetic is checked in the profile that CI runs, and a check per multiply-add would
//! halve the speed.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod math;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
pub(crate) use math::{exp, sum_lanes, tanh};
pub(crate) use portable::Portable;

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// A `T` at any address. Reading one is a bare load, whereas the unaligned-load intrinsics copy through memory and check the
/// ranges in builds with debug assertions, which costs half the speed of a matrix product.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Unaligned<T>(T);

/// # Safety
/// `from` is valid for reading a `T`.
#[inline(always)]
unsafe fn read<T: Copy, U>(from: *const U) -> T {
    // SAFETY: the caller's promise; a packed struct needs no alignment.
    unsafe { from.cast::<Unaligned<T>>().read().0 }
}

/// # Safety
/// `to` is valid for writing a `T`.
#[inline(always)]
unsafe fn write<T: Copy, U>(to: *mut U, value: T) {
    // SAFETY: the caller's promise; a packed struct needs no alignment.
    unsafe { to.cast::<Unaligned<T>>().write(Unaligned(value)) }
}

/// Sixteen f32 lanes on one instruction set.
///
/// # Safety
/// Every function needs the instruction set it is for. Pointers must be valid for the lanes named; no alignment is needed.
pub(crate) trait Simd: Copy + 'static {
    /// Sixteen f32.
    type V: Copy;
    /// Sixteen i32, or sixteen pairs of i16.
    type I: Copy;
    /// Rows of the register tile of a matrix product.
    const TILE_ROWS: usize;
    /// Whether the register tile of a matrix product is two vectors wide.
    const HAS_WIDE_TILE: bool;
    /// `TILE_ROWS > 2`, as a constant that spares the compiler the branches behind it.
    const HAS_MANY_REGISTERS: bool;
    /// `TILE_ROWS > 6`
    const HAS_32_REGISTERS: bool;

    /// Asks for the cache line of an address, which need not be valid.
    unsafe fn prefetch(from: *const u8);
    unsafe fn splat(value: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    /// Lanes 0..8 from one place, 8..16 from another.
    unsafe fn load_halves(low: *const f32, high: *const f32) -> Self::V;
    /// The first `count <= 16` lanes; the others are 0 and their memory is not touched.
    unsafe fn load_first(from: *const f32, count: usize) -> Self::V;
    unsafe fn store(to: *mut f32, v: Self::V);
    /// The first `count <= 16` lanes; other memory is not touched.
    unsafe fn store_first(to: *mut f32, v: Self::V, count: usize);

    /// `a * b + c`
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `a < b ? a : b`; `b` where either is NaN.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// `a > b ? a : b`; `b` where either is NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// `a < b ? then : otherwise`
    unsafe fn select_less(a: Self::V, b: Self::V, then: Self::V, otherwise: Self::V) -> Self::V;
    /// Lanes `first..end` of `v`, `fill` elsewhere; any `first` and `end`.
    unsafe fn keep_lanes(v: Self::V, first: i32, end: i32, fill: Self::V) -> Self::V;
    /// To the nearest whole number, ties to even.
    unsafe fn round(v: Self::V) -> Self::V;
    /// `2^v` of whole numbers -126..=127.
    unsafe fn exp2_whole(v: Self::V) -> Self::V;

    /// 16 bf16.
    unsafe fn load_bf16(from: *const u16) -> Self::V;
    /// 16 IEEE halves.
    unsafe fn load_f16(from: *const u16) -> Self::V;
    /// 16 signed bytes.
    unsafe fn load_i8(from: *const u8) -> Self::V;
    /// The low and the high nibbles of 16 bytes.
    unsafe fn load_nibbles(from: *const u8) -> (Self::V, Self::V);

    /// Sixteen pairs of (low nibble, high nibble) of 16 bytes.
    unsafe fn load_nibble_pairs(from: *const u8) -> Self::I;
    /// Sixteen pairs of signed bytes, the first of each from `first`.
    unsafe fn load_i8_pairs(first: *const u8, second: *const u8) -> Self::I;
    unsafe fn load_i32(from: *const i32) -> Self::I;
    unsafe fn store_i32(to: *mut i32, v: Self::I);
    unsafe fn splat_i32(value: i32) -> Self::I;
    /// `sum + a.0 * b.0 + a.1 * b.1` of pairs of i16.
    unsafe fn add_products(sum: Self::I, a: Self::I, b: Self::I) -> Self::I;
    unsafe fn to_f32(v: Self::I) -> Self::V;
    /// Whole numbers within i16 as 16 i16.
    unsafe fn store_i16(to: *mut i16, v: Self::V);
}

/// `match`es a tile's height from 1 to `S::TILE_ROWS`: `$with!(rows)` for the taller ones, `$with!(low rows)` for 1 to 3.
/// Instruction sets with fewer registers do not compile the taller ones.
macro_rules! for_height {
    ($S:ident, $height:expr, $with:ident) => {
        match $height {
            1 => $with!(1, low),
            2 => $with!(2, low),
            height => {
                if $S::HAS_MANY_REGISTERS {
                    match height {
                        3 => $with!(3, low),
                        4 => $with!(4, tall),
                        5 => $with!(5, tall),
                        6 => $with!(6, tall),
                        height => {
                            if $S::HAS_32_REGISTERS {
                                match height {
                                    7 => $with!(7, tall),
                                    _ => $with!(8, tall),
                                }
                            }
                        }
                    }
                }
            }
        }
    };
}
pub(crate) use for_height;

/// Compiles a kernel for every instruction set and picks one at run time.
///
/// `isa_entry!(fn name(Params) = body)` makes `unsafe fn name(isa: Isa, params: &Params)` of
/// `#[inline(always)] unsafe fn body<S: Simd>(params: &Params)`.
macro_rules! isa_entry {
    ($(#[$attribute:meta])* fn $name:ident($params:ty) = $body:ident) => {
        $(#[$attribute])*
        ///
        /// # Safety
        /// The CPU has `isa`; the pointers in `params` are as its type says.
        pub(crate) unsafe fn $name(isa: $crate::options::Isa, params: &$params) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn avx2(params: &$params) {
                // SAFETY: the features are on here; the rest is the caller's promise.
                unsafe { $body::<$crate::simd::Avx2>(params) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")]
            unsafe fn avx512(params: &$params) {
                // SAFETY: the features are on here; the rest is the caller's promise.
                unsafe { $body::<$crate::simd::Avx512>(params) }
            }
            // SAFETY: the caller promises that the CPU has `isa`, and the pointers in `params`.
            unsafe {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    $crate::options::Isa::Avx512 => avx512(params),
                    #[cfg(target_arch = "x86_64")]
                    $crate::options::Isa::Avx2 => avx2(params),
                    _ => $body::<$crate::simd::Portable>(params),
                }
            }
        }
    };
}
pub(crate) use isa_entry;
