//! Sixteen lanes as one zmm register (AVX-512 F, BW, VL, DQ).

use std::arch::x86_64::*;

use super::{Simd, read, write};

/// AVX-512.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

#[inline(always)]
fn mask_of_first(count: usize) -> __mmask16 {
    if count >= 16 { u16::MAX } else { (1u16 << count).wrapping_sub(1) }
}

impl Simd for Avx512 {
    type V = __m512;
    type I = __m512i;
    const TILE_ROWS: usize = 8;
    const HAS_WIDE_TILE: bool = true;
    const HAS_MANY_REGISTERS: bool = true;
    const HAS_32_REGISTERS: bool = true;

    #[inline(always)]
    unsafe fn prefetch(from: *const u8) {
        // SAFETY: any address may be asked for.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) };
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> __m512 {
        // SAFETY: arithmetic on registers.
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        // SAFETY: the caller's pointer has 16 lanes.
        unsafe { read(from) }
    }
    #[inline(always)]
    unsafe fn load_halves(low: *const f32, high: *const f32) -> __m512 {
        // SAFETY: the caller's pointers have 8 lanes each.
        unsafe { _mm512_insertf32x8::<1>(_mm512_castps256_ps512(read(low)), read(high)) }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> __m512 {
        // SAFETY: masked lanes are not read.
        unsafe { _mm512_maskz_loadu_ps(mask_of_first(count), from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: __m512) {
        // SAFETY: the caller's pointer has 16 lanes.
        unsafe { write(to, v) }
    }
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, v: __m512, count: usize) {
        // SAFETY: masked lanes are not written.
        unsafe { _mm512_mask_storeu_ps(to, mask_of_first(count), v) }
    }
    #[inline(always)]
    unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: arithmetic on registers.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: arithmetic on registers.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        // SAFETY: arithmetic on registers.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: arithmetic on registers.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        // SAFETY: arithmetic on registers.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        // SAFETY: arithmetic on registers.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        // SAFETY: arithmetic on registers.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn select_less(a: __m512, b: __m512, then: __m512, otherwise: __m512) -> __m512 {
        // SAFETY: arithmetic on registers.
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), otherwise, then) }
    }
    #[inline(always)]
    unsafe fn keep_lanes(v: __m512, first: i32, end: i32, fill: __m512) -> __m512 {
        let mask = mask_of_first(end.max(0) as usize) & !mask_of_first(first.max(0) as usize);
        // SAFETY: arithmetic on registers.
        unsafe { _mm512_mask_blend_ps(mask, fill, v) }
    }
    #[inline(always)]
    unsafe fn round(v: __m512) -> __m512 {
        // SAFETY: arithmetic on registers.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v) }
    }
    #[inline(always)]
    unsafe fn exp2_whole(v: __m512) -> __m512 {
        // SAFETY: arithmetic on registers.
        unsafe {
            let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(v), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> __m512 {
        // SAFETY: the caller's pointer has 16 numbers.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(read(from));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> __m512 {
        // SAFETY: the caller's pointer has 16 numbers.
        unsafe { _mm512_cvtph_ps(read(from)) }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> __m512 {
        // SAFETY: the caller's pointer has 16 numbers.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(read(from))) }
    }
    #[inline(always)]
    unsafe fn load_nibbles(from: *const u8) -> (__m512, __m512) {
        // SAFETY: the caller's pointer has 16 bytes.
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(read(from));
            (
                _mm512_cvtepi32_ps(_mm512_and_si512(bytes, _mm512_set1_epi32(15))),
                _mm512_cvtepi32_ps(_mm512_srli_epi32::<4>(bytes)),
            )
        }
    }
    #[inline(always)]
    unsafe fn load_nibble_pairs(from: *const u8) -> __m512i {
        // SAFETY: the caller's pointer has 16 bytes.
        unsafe {
            let wide = _mm512_cvtepu8_epi32(read(from));
            let both = _mm512_or_si512(wide, _mm512_slli_epi32::<12>(wide));
            _mm512_and_si512(both, _mm512_set1_epi32(0x000f_000f))
        }
    }
    #[inline(always)]
    unsafe fn load_i8_pairs(first: *const u8, second: *const u8) -> __m512i {
        // SAFETY: the caller's pointers have 16 bytes each.
        unsafe {
            let (first, second): (__m128i, __m128i) = (read(first), read(second));
            let low = _mm256_castsi128_si256(_mm_unpacklo_epi8(first, second));
            let pairs = _mm256_inserti128_si256::<1>(low, _mm_unpackhi_epi8(first, second));
            _mm512_cvtepi8_epi16(pairs)
        }
    }
    #[inline(always)]
    unsafe fn load_i32(from: *const i32) -> __m512i {
        // SAFETY: the caller's pointer has 16 lanes.
        unsafe { read(from) }
    }
    #[inline(always)]
    unsafe fn store_i32(to: *mut i32, v: __m512i) {
        // SAFETY: the caller's pointer has 16 lanes.
        unsafe { write(to, v) }
    }
    #[inline(always)]
    unsafe fn splat_i32(value: i32) -> __m512i {
        // SAFETY: arithmetic on registers.
        unsafe { _mm512_set1_epi32(value) }
    }
    #[inline(always)]
    unsafe fn add_products(sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: arithmetic on registers.
        unsafe { _mm512_add_epi32(sum, _mm512_madd_epi16(a, b)) }
    }
    #[inline(always)]
    unsafe fn to_f32(v: __m512i) -> __m512 {
        // SAFETY: arithmetic on registers.
        unsafe { _mm512_cvtepi32_ps(v) }
    }
    #[inline(always)]
    unsafe fn store_i16(to: *mut i16, v: __m512) {
        // SAFETY: the caller's pointer has 16 lanes.
        unsafe { write(to, _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(v))) }
    }
}
