//! How far an output is from the reference's.

/// `|a - b| / |b|`, or what is wrong with the lengths or the numbers.
pub(crate) fn relative_l2(actual: &[f32], expected: &[f32]) -> Result<f64, String> {
    assert_eq!(actual.len(), expected.len(), "outputs and references are of one length");
    if let Some(index) = actual.iter().position(|value| !value.is_finite()) {
        return Err(format!(
            "output {index} of {} is {}, expected {}",
            actual.len(),
            actual[index],
            expected[index]
        ));
    }
    let square = |value: f64| value * value;
    let difference: f64 =
        actual.iter().zip(expected).map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
    let norm: f64 = expected.iter().map(|&b| square(f64::from(b))).sum();
    Ok((difference / norm.max(1e-30)).sqrt())
}

/// The largest error over rows of `width`: one bad row in a thousand good ones is a bad output.
pub(crate) fn worst_row(actual: &[f32], expected: &[f32], width: usize) -> Result<f64, String> {
    let mut worst = 0.0f64;
    for (row, (actual, expected)) in actual.chunks(width).zip(expected.chunks(width)).enumerate() {
        worst = worst.max(relative_l2(actual, expected).map_err(|why| format!("row {row}: {why}"))?);
    }
    Ok(worst)
}

/// Fails if two outputs that must be equal are not.
pub(crate) fn equal(actual: &[f32], expected: &[f32], what: &str) -> Result<(), String> {
    let differs = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits() && !(a.is_nan() && b.is_nan());
    match actual.iter().zip(expected).position(differs) {
        Some(index) => {
            Err(format!("{what}: number {index} is {}, expected {}", actual[index], expected[index]))
        }
        None => Ok(()),
    }
}
