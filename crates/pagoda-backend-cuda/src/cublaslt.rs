//! [`CublasLt`]: NVIDIA's library of products, loaded at run time. Nothing needs it: without it the kernels of `kernels/` multiply.
//!
//! Its matrices are column by column. So `out = x weight^T` of rows is `out^T = weight x^T` of columns: A is the weight as
//! `[cols, rows]`, transposed, B is x as `[cols, num_rows]`, D is out as `[rows, num_rows]`.
//!
//! *Not yet run on a GPU.*

mod descriptors;
mod symbols;

use std::collections::HashMap;
use std::ffi::c_void;
use std::path::{Path, PathBuf};

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUevent_flags};
use pagoda_backend::BackendError;

use self::descriptors::{Descriptors, Search, done};
use self::symbols::{Found, Opaque, Symbols};
use crate::fault::step_error;
use crate::products::{Algorithm, PRODUCT_WORKSPACE_BYTES, Product, ProductLibrary, ProductShape};
use crate::queue::Queue;

/// Names under which the loader finds it.
const NAMES: [&str; 2] = ["libcublasLt.so.13", "libcublasLt.so.12"];
/// Algorithms that are tried.
const NUM_CANDIDATES: usize = 8;
/// Calls are timed for about so long, but not more often than that.
const MEASURED_SECONDS: f64 = 2e-3;
const MAX_MEASURED_CALLS: f64 = 20.0;

/// The library on a device's queue.
pub struct CublasLt {
    symbols: Symbols,
    queue: Queue,
    handle: Opaque,
    search: Search,
    descriptors: HashMap<ProductShape, Descriptors>,
    /// Before and behind what is timed.
    events: [sys::CUevent; 2],
    identity: String,
}

// SAFETY: handles of the driver and the library, which any one thread may use in which the context is current; every call makes
// it so.
unsafe impl Send for CublasLt {}

impl CublasLt {
    /// Loads the first of `files` that can be loaded, or what the system's loader finds.
    pub(crate) fn open(files: &[PathBuf], queue: Queue, device: &str) -> Result<Self, String> {
        let names = NAMES.iter().map(|name| Path::new(*name));
        let mut why = Vec::new();
        for path in files.iter().map(PathBuf::as_path).chain(names) {
            match Symbols::load(path) {
                Ok(symbols) => return Self::start(symbols, queue, device),
                Err(error) => why.push(error),
            }
        }
        Err(why.join("; "))
    }

    fn start(symbols: Symbols, queue: Queue, device: &str) -> Result<Self, String> {
        queue.make_current().map_err(|error| error.to_string())?;
        let mut driver = 0;
        // SAFETY: the number outlives the call.
        unsafe { sys::cuDriverGetVersion(&raw mut driver) }
            .result()
            .map_err(|error| format!("{:?}", error.0))?;
        // SAFETY: asks nothing of anything.
        let version = unsafe { (symbols.version)() };
        let search = Search::new(symbols).map_err(|error| error.to_string())?;
        let event = || result::event::create(CUevent_flags::CU_EVENT_DEFAULT);
        let events = [event(), event()].map(|event| event.map_err(|error| format!("{:?}", error.0)));
        let [start, end] = events;
        let events = [start?, end?];
        let mut handle = std::ptr::null_mut();
        // SAFETY: the context is current; the handle outlives the call.
        done(unsafe { (symbols.create)(&raw mut handle) }, "a handle").map_err(|error| error.to_string())?;
        let identity = format!("{device}, driver {driver}, cuBLASLt {version}");
        Ok(CublasLt { symbols, queue, handle, search, descriptors: HashMap::new(), events, identity })
    }

    /// The descriptors of a product; the context is current afterwards.
    fn prepare(&mut self, product: &Product) -> Result<Descriptors, BackendError> {
        self.queue.make_current()?;
        let descriptors = match self.descriptors.get(&product.shape) {
            Some(&descriptors) => descriptors,
            None => {
                let descriptors = Descriptors::new(self.symbols, product.shape)?;
                self.descriptors.insert(product.shape, descriptors);
                descriptors
            }
        };
        descriptors.describe(self.symbols, product)?;
        Ok(descriptors)
    }

    /// Seconds of calls in a row.
    fn time(
        &mut self,
        product: &Product,
        algorithm: &Algorithm,
        num_calls: usize,
    ) -> Result<f64, BackendError> {
        let [start, end] = self.events;
        let stream = self.queue.stream;
        // SAFETY: events and stream live; the second event has passed when they are compared.
        unsafe {
            result::event::record(start, stream).map_err(step_error)?;
            for _ in 0..num_calls {
                self.multiply(product, algorithm)?;
            }
            result::event::record(end, stream).map_err(step_error)?;
            result::event::synchronize(end).map_err(step_error)?;
            let milliseconds = result::event::elapsed(start, end).map_err(step_error)?;
            Ok(f64::from(milliseconds) * 1e-3)
        }
    }
}

impl ProductLibrary for CublasLt {
    fn identity(&self) -> &str {
        &self.identity
    }

    fn describe(&self) -> String {
        // SAFETY: asks nothing of anything.
        format!("cuBLASLt {}", unsafe { (self.symbols.version)() })
    }

    fn candidates(&mut self, product: &Product) -> Result<Vec<Algorithm>, BackendError> {
        let Descriptors { desc, weight, x, out } = self.prepare(product)?;
        let (mut found, mut num_found) = ([Found::default(); NUM_CANDIDATES], 0);
        // SAFETY: handle and descriptors live; there is room for as many results as are asked for.
        let status = unsafe {
            let (search, most) = (self.search.0, NUM_CANDIDATES as i32);
            let results = found.as_mut_ptr();
            (self.symbols.search)(
                self.handle,
                desc,
                weight,
                x,
                out,
                out,
                search,
                most,
                results,
                &raw mut num_found,
            )
        };
        done(status, "a search")?;
        let found = found.iter().take(usize::try_from(num_found).unwrap_or(0));
        Ok(found.filter(|found| found.status == 0).map(|found| Algorithm(found.algorithm)).collect())
    }

    fn accepts(&mut self, product: &Product, algorithm: &Algorithm) -> Result<bool, BackendError> {
        let Descriptors { desc, weight, x, out } = self.prepare(product)?;
        let mut found = Found::default();
        // SAFETY: handle and descriptors live; algorithm and result outlive the call.
        let status = unsafe {
            let bits = algorithm.0.as_ptr();
            (self.symbols.check)(self.handle, desc, weight, x, out, out, bits, &raw mut found)
        };
        Ok(status == 0 && found.status == 0 && found.workspace_bytes <= PRODUCT_WORKSPACE_BYTES)
    }

    fn multiply(&mut self, product: &Product, algorithm: &Algorithm) -> Result<(), BackendError> {
        let Descriptors { desc, weight, x, out } = self.prepare(product)?;
        let (one, zero) = (1.0f32, 0.0f32);
        let (scale, no_addend) = ((&raw const one).cast::<c_void>(), (&raw const zero).cast::<c_void>());
        let (weight_at, x_at) = (product.weight as *const c_void, product.x as *const c_void);
        let (out_at, workspace) = (product.out as *mut c_void, product.workspace as *mut c_void);
        let bits = algorithm.0.as_ptr();
        // SAFETY: the shapes are those of the descriptors, and the backend holds the memory at these addresses until the stream
        // is done; the factors and the algorithm are read before the call returns.
        let status = unsafe {
            (self.symbols.multiply)(
                self.handle,
                desc,
                scale,
                weight_at,
                weight,
                x_at,
                x,
                no_addend,
                out_at,
                out,
                out_at,
                out,
                bits,
                workspace,
                PRODUCT_WORKSPACE_BYTES,
                self.queue.stream.cast(),
            )
        };
        done(status, "a product")
    }

    fn can_measure(&self) -> Result<bool, BackendError> {
        self.queue.make_current()?;
        // SAFETY: the stream lives.
        let status = unsafe { result::stream::is_capturing(self.queue.stream) }.map_err(step_error)?;
        Ok(status == sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
    }

    fn seconds(&mut self, product: &Product, algorithm: &Algorithm) -> Result<f64, BackendError> {
        // The first call loads the kernel's code.
        self.time(product, algorithm, 1)?;
        let once = self.time(product, algorithm, 1)?;
        let num_calls = (MEASURED_SECONDS / once.max(1e-9)).clamp(1.0, MAX_MEASURED_CALLS) as usize;
        Ok(self.time(product, algorithm, num_calls)? / num_calls as f64)
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        if self.queue.make_current().is_err() {
            return;
        }
        for descriptors in self.descriptors.values() {
            descriptors.destroy(self.symbols);
        }
        self.search.destroy(self.symbols);
        // SAFETY: each was made once and is destroyed once. A lost device cannot: there is nobody to tell.
        unsafe {
            let _ = (self.symbols.destroy)(self.handle);
            for event in self.events {
                let _ = result::event::destroy(event);
            }
        }
    }
}
