//! Sixteen lanes as two ymm registers (AVX2, FMA, F16C).

use std::arch::x86_64::*;

use super::{LANES, Simd, read, write};

/// AVX2 with FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

/// Lanes 0..8 and 8..16.
#[derive(Clone, Copy)]
pub(crate) struct Pair(__m256, __m256);

/// Lanes 0..8 and 8..16.
#[derive(Clone, Copy)]
pub(crate) struct IntPair(__m256i, __m256i);

/// Eight set lanes, then eight clear ones: a load at `8 - count` gives a mask of the first `count` lanes.
static MASKS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

#[inline(always)]
unsafe fn mask_of_first(count: usize) -> __m256i {
    // SAFETY: `count` is cut to 8, so the load stays inside the table.
    unsafe { read(MASKS.as_ptr().wrapping_add(8 - count.min(8))) }
}

#[inline(always)]
unsafe fn lanes_in(base: i32, first: i32, end: i32) -> __m256 {
    // SAFETY: arithmetic only.
    unsafe {
        let lane = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(base));
        let below_end = _mm256_cmpgt_epi32(_mm256_set1_epi32(end), lane);
        let below_first = _mm256_cmpgt_epi32(_mm256_set1_epi32(first), lane);
        _mm256_castsi256_ps(_mm256_andnot_si256(below_first, below_end))
    }
}

#[inline(always)]
unsafe fn power_of_two(v: __m256) -> __m256 {
    // SAFETY: arithmetic on registers.
    unsafe {
        let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(v), _mm256_set1_epi32(127));
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
    }
}

#[inline(always)]
unsafe fn nibble_pairs(bytes: i64) -> __m256i {
    // SAFETY: arithmetic on registers.
    unsafe {
        let wide = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bytes));
        let both = _mm256_or_si256(wide, _mm256_slli_epi32::<12>(wide));
        _mm256_and_si256(both, _mm256_set1_epi32(0x000f_000f))
    }
}

#[inline(always)]
unsafe fn i8_pairs(first: i64, second: i64) -> __m256i {
    // SAFETY: arithmetic on registers.
    unsafe {
        let pairs = _mm_unpacklo_epi8(_mm_cvtsi64_si128(first), _mm_cvtsi64_si128(second));
        _mm256_cvtepi8_epi16(pairs)
    }
}

macro_rules! both {
    ($intrinsic:ident, $($v:expr),+) => {
        // SAFETY: arithmetic on registers; the caller has AVX2 and FMA.
        unsafe { Pair($intrinsic($($v.0),+), $intrinsic($($v.1),+)) }
    };
}

impl Simd for Avx2 {
    type V = Pair;
    type I = IntPair;
    const TILE_ROWS: usize = 6;
    const HAS_WIDE_TILE: bool = false;
    const HAS_MANY_REGISTERS: bool = true;
    const HAS_32_REGISTERS: bool = false;

    #[inline(always)]
    unsafe fn prefetch(from: *const u8) {
        // SAFETY: any address may be asked for.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) };
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Pair {
        // SAFETY: arithmetic on registers.
        unsafe { Pair(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Pair {
        // SAFETY: the caller's pointer has 16 lanes.
        unsafe { Pair(read(from), read(from.wrapping_add(8))) }
    }
    #[inline(always)]
    unsafe fn load_halves(low: *const f32, high: *const f32) -> Pair {
        // SAFETY: the caller's pointers have 8 lanes each.
        unsafe { Pair(read(low), read(high)) }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Pair {
        if count >= LANES {
            // SAFETY: all lanes are named.
            return unsafe { Self::load(from) };
        }
        // SAFETY: masked lanes are not read; the second address is only formed, never outside wrapping arithmetic.
        unsafe {
            Pair(
                _mm256_maskload_ps(from, mask_of_first(count)),
                _mm256_maskload_ps(from.wrapping_add(8), mask_of_first(count.saturating_sub(8))),
            )
        }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Pair) {
        // SAFETY: the caller's pointer has 16 lanes.
        unsafe {
            write(to, v.0);
            write(to.wrapping_add(8), v.1);
        }
    }
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, v: Pair, count: usize) {
        // A masked store is microcode on some CPUs: an order of magnitude slower than a plain one.
        if count >= LANES {
            // SAFETY: all lanes are named.
            return unsafe { Self::store(to, v) };
        }
        // SAFETY: masked lanes are not written.
        unsafe {
            _mm256_maskstore_ps(to, mask_of_first(count), v.0);
            _mm256_maskstore_ps(to.wrapping_add(8), mask_of_first(count.saturating_sub(8)), v.1);
        }
    }
    #[inline(always)]
    unsafe fn mul_add(a: Pair, b: Pair, c: Pair) -> Pair {
        both!(_mm256_fmadd_ps, a, b, c)
    }
    #[inline(always)]
    unsafe fn add(a: Pair, b: Pair) -> Pair {
        both!(_mm256_add_ps, a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: Pair, b: Pair) -> Pair {
        both!(_mm256_sub_ps, a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: Pair, b: Pair) -> Pair {
        both!(_mm256_mul_ps, a, b)
    }
    #[inline(always)]
    unsafe fn div(a: Pair, b: Pair) -> Pair {
        both!(_mm256_div_ps, a, b)
    }
    #[inline(always)]
    unsafe fn min(a: Pair, b: Pair) -> Pair {
        both!(_mm256_min_ps, a, b)
    }
    #[inline(always)]
    unsafe fn max(a: Pair, b: Pair) -> Pair {
        both!(_mm256_max_ps, a, b)
    }
    #[inline(always)]
    unsafe fn select_less(a: Pair, b: Pair, then: Pair, otherwise: Pair) -> Pair {
        // SAFETY: arithmetic on registers.
        unsafe {
            Pair(
                _mm256_blendv_ps(otherwise.0, then.0, _mm256_cmp_ps::<_CMP_LT_OQ>(a.0, b.0)),
                _mm256_blendv_ps(otherwise.1, then.1, _mm256_cmp_ps::<_CMP_LT_OQ>(a.1, b.1)),
            )
        }
    }
    #[inline(always)]
    unsafe fn keep_lanes(v: Pair, first: i32, end: i32, fill: Pair) -> Pair {
        // SAFETY: arithmetic on registers.
        unsafe {
            Pair(
                _mm256_blendv_ps(fill.0, v.0, lanes_in(0, first, end)),
                _mm256_blendv_ps(fill.1, v.1, lanes_in(8, first, end)),
            )
        }
    }
    #[inline(always)]
    unsafe fn round(v: Pair) -> Pair {
        // SAFETY: arithmetic on registers.
        unsafe {
            Pair(
                _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v.0),
                _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v.1),
            )
        }
    }
    #[inline(always)]
    unsafe fn exp2_whole(v: Pair) -> Pair {
        // SAFETY: arithmetic on registers.
        unsafe { Pair(power_of_two(v.0), power_of_two(v.1)) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Pair {
        // SAFETY: the caller's pointer has 16 numbers.
        unsafe {
            let low = _mm256_cvtepu16_epi32(read(from));
            let high = _mm256_cvtepu16_epi32(read(from.wrapping_add(8)));
            Pair(
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            )
        }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Pair {
        // SAFETY: the caller's pointer has 16 numbers.
        unsafe { Pair(_mm256_cvtph_ps(read(from)), _mm256_cvtph_ps(read(from.wrapping_add(8)))) }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> Pair {
        // SAFETY: the caller's pointer has 16 numbers.
        unsafe {
            Pair(
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(read(from)))),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(read(from.wrapping_add(8))))),
            )
        }
    }
    #[inline(always)]
    unsafe fn load_nibbles(from: *const u8) -> (Pair, Pair) {
        // SAFETY: the caller's pointer has 16 bytes.
        unsafe {
            let first = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(read(from)));
            let second = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(read(from.wrapping_add(8))));
            let low = _mm256_set1_epi32(15);
            (
                Pair(
                    _mm256_cvtepi32_ps(_mm256_and_si256(first, low)),
                    _mm256_cvtepi32_ps(_mm256_and_si256(second, low)),
                ),
                Pair(
                    _mm256_cvtepi32_ps(_mm256_srli_epi32::<4>(first)),
                    _mm256_cvtepi32_ps(_mm256_srli_epi32::<4>(second)),
                ),
            )
        }
    }
    #[inline(always)]
    unsafe fn load_nibble_pairs(from: *const u8) -> IntPair {
        // SAFETY: the caller's pointer has 16 bytes.
        unsafe { IntPair(nibble_pairs(read(from)), nibble_pairs(read(from.wrapping_add(8)))) }
    }
    #[inline(always)]
    unsafe fn load_i8_pairs(first: *const u8, second: *const u8) -> IntPair {
        // SAFETY: the caller's pointers have 16 bytes each.
        unsafe {
            IntPair(
                i8_pairs(read(first), read(second)),
                i8_pairs(read(first.wrapping_add(8)), read(second.wrapping_add(8))),
            )
        }
    }
    #[inline(always)]
    unsafe fn load_i32(from: *const i32) -> IntPair {
        // SAFETY: the caller's pointer has 16 lanes.
        unsafe { IntPair(read(from), read(from.wrapping_add(8))) }
    }
    #[inline(always)]
    unsafe fn store_i32(to: *mut i32, v: IntPair) {
        // SAFETY: the caller's pointer has 16 lanes.
        unsafe {
            write(to, v.0);
            write(to.wrapping_add(8), v.1);
        }
    }
    #[inline(always)]
    unsafe fn splat_i32(value: i32) -> IntPair {
        // SAFETY: arithmetic on registers.
        unsafe { IntPair(_mm256_set1_epi32(value), _mm256_set1_epi32(value)) }
    }
    #[inline(always)]
    unsafe fn add_products(sum: IntPair, a: IntPair, b: IntPair) -> IntPair {
        // SAFETY: arithmetic on registers.
        unsafe {
            IntPair(
                _mm256_add_epi32(sum.0, _mm256_madd_epi16(a.0, b.0)),
                _mm256_add_epi32(sum.1, _mm256_madd_epi16(a.1, b.1)),
            )
        }
    }
    #[inline(always)]
    unsafe fn to_f32(v: IntPair) -> Pair {
        // SAFETY: arithmetic on registers.
        unsafe { Pair(_mm256_cvtepi32_ps(v.0), _mm256_cvtepi32_ps(v.1)) }
    }
    #[inline(always)]
    unsafe fn store_i16(to: *mut i16, v: Pair) {
        // SAFETY: the caller's pointer has 16 lanes.
        unsafe {
            let packed = _mm256_packs_epi32(_mm256_cvtps_epi32(v.0), _mm256_cvtps_epi32(v.1));
            write(to, _mm256_permute4x64_epi64::<0b11_01_10_00>(packed));
        }
    }
}
