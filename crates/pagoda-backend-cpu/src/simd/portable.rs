//! Sixteen lanes as a plain array; the compiler makes what it can of it.

use half::f16;

use super::{LANES, Simd, read, write};

/// Plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

type V = [f32; LANES];

#[inline(always)]
fn zip(a: V, b: V, f: impl Fn(f32, f32) -> f32) -> V {
    let mut out = a;
    for lane in 0..LANES {
        out[lane] = f(a[lane], b[lane]);
    }
    out
}

#[inline(always)]
fn lanes(f: impl Fn(usize) -> f32) -> V {
    let mut out = [0.0; LANES];
    for (lane, value) in out.iter_mut().enumerate() {
        *value = f(lane);
    }
    out
}

// SAFETY (all functions): unaligned reads and writes of exactly the lanes that the trait names.
impl Simd for Portable {
    type V = V;
    type I = [i32; LANES];
    const TILE_ROWS: usize = 2;
    const HAS_WIDE_TILE: bool = false;
    const HAS_MANY_REGISTERS: bool = false;
    const HAS_32_REGISTERS: bool = false;

    #[inline(always)]
    unsafe fn prefetch(_from: *const u8) {}
    #[inline(always)]
    unsafe fn splat(value: f32) -> V {
        [value; LANES]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> V {
        // SAFETY: see above.
        unsafe { read(from) }
    }
    #[inline(always)]
    unsafe fn load_halves(low: *const f32, high: *const f32) -> V {
        let mut out = [0.0; LANES];
        // SAFETY: see above.
        unsafe {
            out.as_mut_ptr().copy_from_nonoverlapping(low, 8);
            out.as_mut_ptr().add(8).copy_from_nonoverlapping(high, 8);
        }
        out
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> V {
        let mut out = [0.0; LANES];
        // SAFETY: see above; `count <= 16`.
        unsafe { out.as_mut_ptr().copy_from_nonoverlapping(from, count) };
        out
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: V) {
        // SAFETY: see above.
        unsafe { write(to, v) }
    }
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, v: V, count: usize) {
        // SAFETY: see above; `count <= 16`.
        unsafe { to.copy_from_nonoverlapping(v.as_ptr(), count) }
    }
    #[inline(always)]
    unsafe fn mul_add(a: V, b: V, c: V) -> V {
        lanes(|lane| a[lane] * b[lane] + c[lane])
    }
    #[inline(always)]
    unsafe fn add(a: V, b: V) -> V {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: V, b: V) -> V {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: V, b: V) -> V {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: V, b: V) -> V {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn min(a: V, b: V) -> V {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn max(a: V, b: V) -> V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn select_less(a: V, b: V, then: V, otherwise: V) -> V {
        lanes(|lane| if a[lane] < b[lane] { then[lane] } else { otherwise[lane] })
    }
    #[inline(always)]
    unsafe fn keep_lanes(v: V, first: i32, end: i32, fill: V) -> V {
        lanes(|lane| if (first..end).contains(&(lane as i32)) { v[lane] } else { fill[lane] })
    }
    #[inline(always)]
    unsafe fn round(v: V) -> V {
        lanes(|lane| v[lane].round_ties_even())
    }
    #[inline(always)]
    unsafe fn exp2_whole(v: V) -> V {
        lanes(|lane| f32::from_bits(((v[lane] as i32).wrapping_add(127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> V {
        // SAFETY: see above.
        let bits: [u16; LANES] = unsafe { read(from) };
        lanes(|lane| f32::from_bits(u32::from(bits[lane]) << 16))
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> V {
        // SAFETY: see above.
        let bits: [u16; LANES] = unsafe { read(from) };
        lanes(|lane| f16::from_bits(bits[lane]).to_f32())
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> V {
        // SAFETY: see above.
        let codes: [i8; LANES] = unsafe { read(from) };
        lanes(|lane| f32::from(codes[lane]))
    }
    #[inline(always)]
    unsafe fn load_nibbles(from: *const u8) -> (V, V) {
        // SAFETY: see above.
        let bytes: [u8; LANES] = unsafe { read(from) };
        (lanes(|lane| f32::from(bytes[lane] & 15)), lanes(|lane| f32::from(bytes[lane] >> 4)))
    }
    #[inline(always)]
    unsafe fn load_nibble_pairs(from: *const u8) -> [i32; LANES] {
        // SAFETY: see above.
        let bytes: [u8; LANES] = unsafe { read(from) };
        bytes.map(|byte| i32::from(byte & 15) | i32::from(byte >> 4) << 16)
    }
    #[inline(always)]
    unsafe fn load_i8_pairs(first: *const u8, second: *const u8) -> [i32; LANES] {
        // SAFETY: see above.
        let (first, second): ([i8; LANES], [i8; LANES]) = unsafe { (read(first), read(second)) };
        std::array::from_fn(|lane| i32::from(first[lane]) & 0xffff | i32::from(second[lane]) << 16)
    }
    #[inline(always)]
    unsafe fn load_i32(from: *const i32) -> [i32; LANES] {
        // SAFETY: see above.
        unsafe { read(from) }
    }
    #[inline(always)]
    unsafe fn store_i32(to: *mut i32, v: [i32; LANES]) {
        // SAFETY: see above.
        unsafe { write(to, v) }
    }
    #[inline(always)]
    unsafe fn splat_i32(value: i32) -> [i32; LANES] {
        [value; LANES]
    }
    #[inline(always)]
    unsafe fn add_products(sum: [i32; LANES], a: [i32; LANES], b: [i32; LANES]) -> [i32; LANES] {
        let product = |a: i32, b: i32| i32::from(a as i16).wrapping_mul(i32::from(b as i16));
        std::array::from_fn(|lane| {
            let products = product(a[lane], b[lane]).wrapping_add(product(a[lane] >> 16, b[lane] >> 16));
            sum[lane].wrapping_add(products)
        })
    }
    #[inline(always)]
    unsafe fn to_f32(v: [i32; LANES]) -> V {
        lanes(|lane| v[lane] as f32)
    }
    #[inline(always)]
    unsafe fn store_i16(to: *mut i16, v: V) {
        // SAFETY: see above.
        unsafe { write(to, v.map(|value| value as i16)) }
    }
}
