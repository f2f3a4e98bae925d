//! [`Choices`] over a library that notes what it is asked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::*;
use crate::element::Element;
use crate::meter::MeterDevice;

/// What a fake library was asked.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Call {
    Candidates(u32),
    Accepts(u32, u64),
    Multiply(u32, u64),
    Seconds(u32, u64),
}

/// Has the algorithms 1, 2, ..; the times, refusals and faults that a test gives it.
struct Fake {
    calls: Arc<Mutex<Vec<Call>>>,
    /// By algorithm: seconds, or none if it fails when it is tried.
    times: Vec<(u64, Option<f64>)>,
    is_capturing: bool,
    /// The only algorithm that serves these numbers of rows.
    odd_rows: HashMap<u32, u64>,
    refuses_to_multiply: bool,
    is_lost: bool,
}

impl Fake {
    fn new(times: &[(u64, Option<f64>)]) -> Self {
        Fake {
            calls: Arc::default(),
            times: times.to_vec(),
            is_capturing: false,
            odd_rows: HashMap::new(),
            refuses_to_multiply: false,
            is_lost: false,
        }
    }

    fn note(&self, call: Call) -> Result<(), BackendError> {
        self.calls.lock().unwrap().push(call);
        if self.is_lost { Err(BackendError::Fatal("lost".to_owned())) } else { Ok(()) }
    }

    fn took(&self) -> Vec<Call> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }
}

fn algorithm(number: u64) -> Algorithm {
    Algorithm([number; 8])
}

fn refused<T>() -> Result<T, BackendError> {
    Err(BackendError::Refused("no".to_owned()))
}

impl ProductLibrary for Fake {
    fn identity(&self) -> &str {
        "a fake"
    }

    fn describe(&self) -> String {
        "a fake".to_owned()
    }

    fn candidates(&mut self, product: &Product) -> Result<Vec<Algorithm>, BackendError> {
        self.note(Call::Candidates(product.num_rows))?;
        match self.odd_rows.get(&product.num_rows) {
            Some(&number) => Ok(vec![algorithm(number)]),
            None if self.times.is_empty() => refused(),
            None => Ok(self.times.iter().map(|&(number, _)| algorithm(number)).collect()),
        }
    }

    fn accepts(&mut self, product: &Product, candidate: &Algorithm) -> Result<bool, BackendError> {
        self.note(Call::Accepts(product.num_rows, candidate.0[0]))?;
        Ok(self.odd_rows.get(&product.num_rows).is_none_or(|&number| algorithm(number) == *candidate))
    }

    fn multiply(&mut self, product: &Product, candidate: &Algorithm) -> Result<(), BackendError> {
        self.note(Call::Multiply(product.num_rows, candidate.0[0]))?;
        if self.refuses_to_multiply { refused() } else { Ok(()) }
    }

    fn can_measure(&self) -> Result<bool, BackendError> {
        Ok(!self.is_capturing)
    }

    fn seconds(&mut self, product: &Product, candidate: &Algorithm) -> Result<f64, BackendError> {
        self.note(Call::Seconds(product.num_rows, candidate.0[0]))?;
        let found = self.times.iter().find(|(number, _)| algorithm(*number) == *candidate);
        found.and_then(|(_, seconds)| *seconds).map_or_else(refused, Ok)
    }
}

fn product(num_rows: u32) -> Product {
    let shape = ProductShape {
        element: Element::Bf16,
        rows: 256,
        cols: 64,
        out_stride: 256,
        out_is_f32: false,
        has_bias: false,
    };
    Product { shape, num_rows, weight: 1, x: 2, bias: 0, out: 3, workspace: 4 }
}

const THREE: [(u64, Option<f64>); 3] = [(1, Some(3e-6)), (2, Some(1e-6)), (3, Some(2e-6))];

#[test]
fn rows_belong_to_the_power_of_two_above_them() {
    assert_eq!([17, 31, 32, 33, 64, 65, 8192].map(bucket), [32, 32, 32, 64, 64, 128, 8192]);
}

#[test]
fn the_fastest_is_measured_once_per_bucket_with_as_many_rows_as_there_are() {
    let mut fake = Fake::new(&THREE);
    let mut choices = Choices::new(None);
    assert!(choices.multiply(&mut fake, &product(20), 100).unwrap());
    let tried = [1, 2, 3].map(|number| Call::Seconds(32, number));
    let expected = [&[Call::Candidates(32)], &tried[..], &[Call::Accepts(20, 2), Call::Multiply(20, 2)]];
    assert_eq!(fake.took(), expected.concat());
    // The same rows again, as in the next layer; others of the bucket; and a bucket that the operands do not fill.
    assert!(choices.multiply(&mut fake, &product(20), 100).unwrap());
    assert!(choices.multiply(&mut fake, &product(32), 100).unwrap());
    assert_eq!(fake.took(), [Call::Multiply(20, 2), Call::Accepts(32, 2), Call::Multiply(32, 2)]);
    assert!(choices.multiply(&mut fake, &product(70), 100).unwrap());
    assert_eq!(fake.took()[..2], [Call::Candidates(100), Call::Seconds(100, 1)]);
    // Another shape is another choice.
    let wider = Product { shape: ProductShape { rows: 512, ..product(20).shape }, ..product(20) };
    assert!(choices.multiply(&mut fake, &wider, 32).unwrap());
    assert_eq!(fake.took()[0], Call::Candidates(32));
}

#[test]
fn algorithms_that_fail_are_passed_over() {
    let mut fake = Fake::new(&[(1, Some(2e-6)), (2, None), (3, Some(1e-6)), (4, None)]);
    assert!(Choices::new(None).multiply(&mut fake, &product(64), 64).unwrap());
    assert_eq!(fake.took().last(), Some(&Call::Multiply(64, 3)));
}

#[test]
fn without_an_algorithm_it_is_another_kernels_turn_and_nothing_is_asked_again() {
    for times in [&[][..], &[(1, None)]] {
        let mut fake = Fake::new(times);
        let mut choices = Choices::new(None);
        assert!(!choices.multiply(&mut fake, &product(64), 64).unwrap());
        fake.took();
        assert!(!choices.multiply(&mut fake, &product(64), 64).unwrap());
        assert!(!choices.multiply(&mut fake, &product(40), 64).unwrap());
        assert_eq!(fake.took(), []);
    }
}

#[test]
fn rows_that_the_fastest_does_not_serve_go_by_the_librarys_guess() {
    let mut fake = Fake::new(&THREE);
    fake.odd_rows.insert(33, 9);
    let mut choices = Choices::new(None);
    assert!(choices.multiply(&mut fake, &product(64), 64).unwrap());
    fake.took();
    assert!(choices.multiply(&mut fake, &product(33), 64).unwrap());
    assert_eq!(fake.took(), [Call::Accepts(33, 2), Call::Candidates(33), Call::Multiply(33, 9)]);
    assert!(choices.multiply(&mut fake, &product(33), 64).unwrap());
    assert!(choices.multiply(&mut fake, &product(34), 64).unwrap());
    assert_eq!(fake.took(), [Call::Multiply(33, 9), Call::Accepts(34, 2), Call::Multiply(34, 2)]);
}

#[test]
fn nothing_is_measured_while_launches_are_captured_and_nothing_remembered() {
    let mut fake = Fake { is_capturing: true, ..Fake::new(&THREE) };
    let mut choices = Choices::new(None);
    assert!(choices.multiply(&mut fake, &product(64), 64).unwrap());
    assert_eq!(fake.took(), [Call::Candidates(64), Call::Multiply(64, 1)]);
    fake.is_capturing = false;
    assert!(choices.multiply(&mut fake, &product(64), 64).unwrap());
    assert_eq!(fake.took().last(), Some(&Call::Multiply(64, 2)));
    // What is known serves a capture too.
    fake.is_capturing = true;
    assert!(choices.multiply(&mut fake, &product(64), 64).unwrap());
    assert_eq!(fake.took(), [Call::Multiply(64, 2)]);
}

#[test]
fn a_refused_product_is_left_to_another_kernel_and_a_lost_device_is_not() {
    let mut fake = Fake { refuses_to_multiply: true, ..Fake::new(&THREE) };
    let mut choices = Choices::new(None);
    assert!(!choices.multiply(&mut fake, &product(64), 64).unwrap());
    fake.took();
    assert!(!choices.multiply(&mut fake, &product(64), 64).unwrap());
    assert_eq!(fake.took(), []);
    let mut fake = Fake { is_lost: true, ..Fake::new(&THREE) };
    let error = Choices::new(None).multiply(&mut fake, &product(64), 64).unwrap_err();
    assert!(matches!(error, BackendError::Fatal(_)), "{error}");
}

#[test]
fn what_was_measured_is_not_measured_after_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("products.txt");
    let mut fake = Fake::new(&THREE);
    let calls = Arc::clone(&fake.calls);
    let start = |fake: Fake| {
        let mut products = Products::new(Box::new(fake), Some(path.clone()));
        let mut device = MeterDevice::default();
        assert!(products.multiply(&mut device, product(64), 64).unwrap());
        assert_eq!(device.allocated_bytes(), PRODUCT_WORKSPACE_BYTES as u64);
        std::mem::take(&mut *calls.lock().unwrap())
    };
    assert_eq!(start(Fake { calls: Arc::clone(&calls), ..Fake::new(&THREE) }).len(), 5);
    fake.calls = Arc::clone(&calls);
    assert_eq!(start(fake), [Call::Accepts(64, 2), Call::Multiply(64, 2)]);
    // A damaged file is as good as none.
    std::fs::write(&path, "damaged").unwrap();
    assert_eq!(start(Fake { calls: Arc::clone(&calls), ..Fake::new(&THREE) }).len(), 5);
    assert_eq!(start(Fake { calls: Arc::clone(&calls), ..Fake::new(&THREE) }).len(), 2);
}
