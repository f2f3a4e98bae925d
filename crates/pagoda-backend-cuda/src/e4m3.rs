//! K and V in eight bits on the host: what `kernels/include/e4m3.cuh` stores, by the definition of the format. For reading a
//! cache back and for references; a step converts on the device only.

use std::sync::LazyLock;

/// The magnitudes of codes 0..=126, rising; 127 is NaN.
static MAGNITUDES: LazyLock<Vec<f32>> = LazyLock::new(|| {
    let magnitude = |code: i32| match (code >> 3, (code & 7) as f32) {
        (0, fraction) => fraction * 2f32.powi(-9),
        (exponent, fraction) => (1.0 + fraction / 8.0) * 2f32.powi(exponent - 7),
    };
    (0..127).map(magnitude).collect()
});

/// Relative L2 error of a head of which a few numbers were rounded the other way.
pub const E4M3_TOLERANCE: f64 = 2e-2;

/// Exponents of the scales.
const MIN_EXPONENT: i32 = -14;
const MAX_EXPONENT: i32 = 7;
/// A scale's byte is its exponent and this.
const SCALE_BIAS: i32 = 247;
/// The scale of a head that is not finite.
const NOT_FINITE: u8 = 255;

/// The numbers of codes under a scale.
pub(crate) fn decode(codes: &[u8], scale: u8) -> Vec<f32> {
    if scale == NOT_FINITE {
        return vec![f32::NAN; codes.len()];
    }
    let scale = 2f32.powi(i32::from(scale) - SCALE_BIAS);
    let number = |&code: &u8| {
        let magnitude = MAGNITUDES.get(usize::from(code & 127)).copied().unwrap_or(f32::NAN);
        if code & 128 == 0 { magnitude * scale } else { -magnitude * scale }
    };
    codes.iter().map(number).collect()
}

/// Replaces a head by what the cache keeps of it.
pub fn round_e4m3(head: &mut [f32]) {
    if head.iter().any(|number| !number.is_finite()) {
        head.fill(f32::NAN);
        return;
    }
    let largest = head.iter().fold(0.0f32, |largest, number| largest.max(number.abs()));
    let fits = |exponent: &i32| largest <= 448.0 * 2f32.powi(*exponent);
    let exponent = (MIN_EXPONENT..=MAX_EXPONENT).find(fits).unwrap_or(MAX_EXPONENT);
    let scale = 2f32.powi(exponent);
    for number in head {
        *number = (nearest(number.abs() / scale) * scale).copysign(*number);
    }
}

/// The nearest magnitude, of two equally near the one with the even code.
fn nearest(magnitude: f32) -> f32 {
    let above = MAGNITUDES.partition_point(|&known| known < magnitude).min(MAGNITUDES.len() - 1);
    let below = above.saturating_sub(1);
    let (to_above, to_below) = ((MAGNITUDES[above] - magnitude).abs(), (magnitude - MAGNITUDES[below]).abs());
    let takes_above = to_above < to_below || (to_above == to_below && above % 2 == 0);
    MAGNITUDES[if takes_above { above } else { below }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_kept_under_every_scale() {
        for exponent in MIN_EXPONENT..=MAX_EXPONENT {
            // The largest code fixes the scale.
            let codes: Vec<u8> = (0..127).chain(129..255).collect();
            let scale = (exponent + SCALE_BIAS) as u8;
            let numbers = decode(&codes, scale);
            let mut rounded = numbers.clone();
            round_e4m3(&mut rounded);
            assert_eq!(rounded, numbers, "2^{exponent}");
        }
    }

    #[test]
    fn ties_go_to_even_codes_and_the_ends_saturate() {
        let rounded = |number: f32| {
            let mut head = [448.0, number];
            round_e4m3(&mut head);
            head[1]
        };
        assert_eq!([1.0625, 1.1875, -1.0625, 0.0009765625, 3e-4].map(rounded), [1.0, 1.25, -1.0, 0.0, 0.0]);
        let mut huge = [1e9, -1e9, 1.0];
        round_e4m3(&mut huge);
        assert_eq!(huge, [57344.0, -57344.0, 1.0]);
        let mut broken = [1.0, f32::INFINITY];
        round_e4m3(&mut broken);
        assert!(broken.iter().all(|number| number.is_nan()));
    }
}
