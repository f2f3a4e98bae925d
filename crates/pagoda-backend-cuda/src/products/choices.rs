//! [`Products`]: which algorithm of the library computes a product. Measured once per shape and bucket of rows, on the operands
//! of the first product that asks, and remembered in a file; none where the library has nothing for the shape.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::path::PathBuf;

use pagoda_backend::BackendError;

use super::cache::{CacheFile, Entry};
use super::{Algorithm, PRODUCT_WORKSPACE_BYTES, Product, ProductLibrary, ProductShape};
use crate::device::{Device, Memory};
use crate::memory::Scratch;

/// The library, and what is known of it.
pub(crate) struct Products<M> {
    library: Box<dyn ProductLibrary>,
    workspace: Scratch<M>,
    choices: Choices,
}

impl<M: Memory> Products<M> {
    /// Begins with what `cache` remembers of this library on this device.
    pub(crate) fn new(library: Box<dyn ProductLibrary>, cache: Option<PathBuf>) -> Self {
        let choices = Choices::new(cache.map(|path| CacheFile::new(path, library.identity())));
        Products { library, workspace: Scratch::new(0, "the workspace of products"), choices }
    }

    /// Name and version of the library.
    pub(crate) fn describe(&self) -> String {
        self.library.describe()
    }

    /// Takes the workspace.
    pub(crate) fn reserve<D: Device<Memory = M>>(&mut self, device: &mut D) -> Result<u64, BackendError> {
        Ok(self.workspace.reserve(device, PRODUCT_WORKSPACE_BYTES)?.address())
    }

    /// Queues a product whose x and out have room for `max_rows` rows. Says whether it did: if not, it is another kernel's turn.
    pub(crate) fn multiply<D: Device<Memory = M>>(
        &mut self,
        device: &mut D,
        product: Product,
        max_rows: u32,
    ) -> Result<bool, BackendError> {
        let product = Product { workspace: self.reserve(device)?, ..product };
        self.choices.multiply(self.library.as_mut(), &product, max_rows)
    }
}

/// Rows up to a power of two are served by what was measured for that number: 17..32, 33..64, and so on.
pub(super) fn bucket(num_rows: u32) -> u32 {
    num_rows.next_power_of_two()
}

/// What is known of a shape and a bucket.
struct Choice {
    /// The fastest one; `None` if the library has nothing.
    best: Option<Algorithm>,
    /// What serves this number of rows: as a rule the fastest one, asked once and not in each of a model's layers.
    current: (u32, Option<Algorithm>),
}

struct Choices {
    cache: Option<CacheFile>,
    known: HashMap<(ProductShape, u32), Choice>,
}

impl Choices {
    fn new(cache: Option<CacheFile>) -> Self {
        let entries = cache.as_ref().map(CacheFile::load).unwrap_or_default();
        let choice = |entry: Entry| {
            let choice = Choice { best: Some(entry.algorithm), current: (0, None) };
            ((entry.shape, entry.bucket), choice)
        };
        Choices { cache, known: entries.into_iter().map(choice).collect() }
    }

    fn multiply(
        &mut self,
        library: &mut dyn ProductLibrary,
        product: &Product,
        max_rows: u32,
    ) -> Result<bool, BackendError> {
        let Some(algorithm) = self.algorithm_for(library, product, max_rows)? else { return Ok(false) };
        if let Some(()) = unless_refused(library.multiply(product, &algorithm))? {
            return Ok(true);
        }
        tracing::warn!(
            ?product,
            library = library.identity(),
            "a product is refused that was accepted before"
        );
        let refused = Choice { best: None, current: (product.num_rows, None) };
        self.known.insert((product.shape, bucket(product.num_rows)), refused);
        Ok(false)
    }

    fn algorithm_for(
        &mut self,
        library: &mut dyn ProductLibrary,
        product: &Product,
        max_rows: u32,
    ) -> Result<Option<Algorithm>, BackendError> {
        let key = (product.shape, bucket(product.num_rows));
        let is_news = match self.known.entry(key) {
            Slot::Occupied(_) => false,
            Slot::Vacant(_) if !library.can_measure()? => return first_guess(library, product),
            Slot::Vacant(slot) => {
                // All rows that there are, up to the bucket's end: what the rows behind the product's own hold is nobody's.
                let num_rows = key.1.min(max_rows).max(product.num_rows);
                let best = fastest(library, &Product { num_rows, ..*product })?;
                slot.insert(Choice { best, current: (num_rows, best) });
                best.is_some()
            }
        };
        if is_news {
            self.store();
        }
        let choice = self.known.get_mut(&key).expect("it is known by now");
        if choice.current.0 != product.num_rows {
            choice.current = (product.num_rows, serving(library, product, choice.best)?);
        }
        Ok(choice.current.1)
    }

    fn store(&self) {
        let Some(cache) = &self.cache else { return };
        let entry = |(&(shape, bucket), choice): (&(ProductShape, u32), &Choice)| {
            choice.best.map(|algorithm| Entry { shape, bucket, algorithm })
        };
        let mut entries: Vec<Entry> = self.known.iter().filter_map(entry).collect();
        entries.sort_unstable_by_key(|entry| (entry.shape, entry.bucket));
        cache.store(&entries);
    }
}

/// The best of the bucket if it can serve this number of rows, else what the library thinks of first.
fn serving(
    library: &mut dyn ProductLibrary,
    product: &Product,
    best: Option<Algorithm>,
) -> Result<Option<Algorithm>, BackendError> {
    match best {
        Some(best) if unless_refused(library.accepts(product, &best))? == Some(true) => Ok(Some(best)),
        Some(_) => first_guess(library, product),
        None => Ok(None),
    }
}

fn first_guess(
    library: &mut dyn ProductLibrary,
    product: &Product,
) -> Result<Option<Algorithm>, BackendError> {
    Ok(unless_refused(library.candidates(product))?.unwrap_or_default().first().copied())
}

/// Measures all candidates.
fn fastest(library: &mut dyn ProductLibrary, product: &Product) -> Result<Option<Algorithm>, BackendError> {
    let mut best: Option<(f64, Algorithm)> = None;
    for candidate in unless_refused(library.candidates(product))?.unwrap_or_default() {
        let Some(seconds) = unless_refused(library.seconds(product, &candidate))? else { continue };
        if best.is_none_or(|(least, _)| seconds < least) {
            best = Some((seconds, candidate));
        }
    }
    let (shape, num_rows) = (product.shape, product.num_rows);
    tracing::debug!(?shape, num_rows, seconds = best.map(|(seconds, _)| seconds), "measured a product");
    Ok(best.map(|(_, algorithm)| algorithm))
}

/// `None` for a refusal; an error that ends the process stays one.
fn unless_refused<T>(result: Result<T, BackendError>) -> Result<Option<T>, BackendError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error @ BackendError::Fatal(_)) => Err(error),
        Err(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests;
