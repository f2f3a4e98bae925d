//! [`HostDevice`]: the process's memory as a device's, the shim as its processors.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::HashMap;
use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::time::Instant;

use pagoda_backend::BackendError;
use pagoda_backend_cuda::{AllocatedBytes, CountedBytes, Device, Launch, Memory, TensorMap};

use crate::library::Library;

/// In which order the threads of a block, and the blocks, take their turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// By rising index.
    Forward,
    /// By falling index.
    Reverse,
    /// By chance, from this seed.
    Random(u64),
}

/// As small as pieces may be, so that every test of a weight sees its seams.
const PIECE_BYTES: usize = 4096;

/// A device that is the host.
pub struct HostDevice {
    folder: PathBuf,
    order: Order,
    run: RunLaunch,
    kernels: HashMap<&'static str, Kernel>,
    /// Every file that may hold a kernel; loaded when a kernel is first launched.
    files: Vec<PathBuf>,
    allocated: AllocatedBytes,
    /// Launches since the beginning of a capture.
    capture: Option<HostGraph>,
}

/// A launch with its own parameters.
#[derive(Clone)]
struct OwnedLaunch {
    launch: Launch<'static>,
    params: Vec<u8>,
}

/// Captured launches.
#[derive(Default)]
pub struct HostGraph(Vec<OwnedLaunch>);

type RunLaunch = unsafe extern "C" fn(*const c_void, *const c_void, *const SimtLaunch);

/// A kernel's entry, and the threads and bytes of shared memory that its source asks for.
#[derive(Clone, Copy)]
struct Kernel {
    entry: *const c_void,
    geometry: [u32; 2],
}

// SAFETY: addresses of code, which may be called from any thread.
unsafe impl Send for Kernel {}

/// As aligned as any kernel's parameters.
#[derive(Clone, Copy)]
#[repr(C, align(128))]
struct AlignedBytes([u8; 128]);

/// `SimtLaunch` of `kernels/simt/simt.cpp`.
#[repr(C)]
struct SimtLaunch {
    grid: [u32; 3],
    num_threads: u32,
    shared_bytes: u32,
    order: u32,
    seed: u64,
}

impl HostDevice {
    /// A device over the shared objects in `folder` (`crate::compile_all`).
    pub fn new(folder: &Path, order: Order) -> Result<Self, String> {
        let shim = Library::open(&folder.join("simt.so"), true)?;
        let run = shim.symbol("simt_launch").ok_or("the shim has no simt_launch")?;
        // SAFETY: `simt_launch` has this signature in kernels/simt/simt.cpp.
        let run = unsafe { std::mem::transmute::<*const c_void, RunLaunch>(run) };
        let entries = std::fs::read_dir(folder).map_err(|error| error.to_string())?;
        let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
        let files = paths.filter(|path| path.extension().is_some_and(|ending| ending == "so")).collect();
        Ok(HostDevice {
            folder: folder.to_owned(),
            order,
            run,
            kernels: HashMap::new(),
            files,
            allocated: AllocatedBytes::default(),
            capture: None,
        })
    }

    /// The kernel of this name: in the file whose name begins it.
    fn kernel(&mut self, name: &'static str) -> Result<Kernel, BackendError> {
        if let Some(kernel) = self.kernels.get(name) {
            return Ok(*kernel);
        }
        let stem = |path: &Path| {
            path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
        };
        let candidates = self.files.iter().filter(|path| name.starts_with(&stem(path)));
        let file = candidates.max_by_key(|path| stem(path).len());
        let missing = || BackendError::Fatal(format!("no kernel {name} in {}", self.folder.display()));
        let library = Library::open(file.ok_or_else(missing)?, false).map_err(BackendError::Fatal)?;
        let entry = library.symbol(name).ok_or_else(missing)?;
        let geometry = library.symbol(&format!("{name}_geometry")).ok_or_else(missing)?;
        // SAFETY: `PAGODA_KERNEL` of the shim defines it as two 32-bit numbers.
        let geometry = unsafe { geometry.cast::<[u32; 2]>().read() };
        let kernel = Kernel { entry, geometry };
        self.kernels.insert(name, kernel);
        Ok(kernel)
    }
}

/// Exactly as many bytes as were asked for, so that the address sanitizer sees the end.
pub struct HostMemory {
    address: *mut u8,
    layout: Layout,
    _counted: CountedBytes,
}

// SAFETY: owned memory, which any one thread may use.
unsafe impl Send for HostMemory {}

impl Memory for HostMemory {
    fn address(&self) -> u64 {
        self.address as u64
    }

    fn num_bytes(&self) -> usize {
        self.layout.size()
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and freed once.
        unsafe { dealloc(self.address, self.layout) }
    }
}

impl Device for HostDevice {
    type Memory = HostMemory;
    type Reading = Vec<u8>;
    type Graph = HostGraph;
    type Moment = Instant;

    fn describe(&self) -> String {
        format!("host, threads {:?}", self.order)
    }

    fn alloc(&mut self, num_bytes: usize, fill: u8, what: &'static str) -> Result<HostMemory, BackendError> {
        let out_of_memory = || BackendError::OutOfMemory { what, needed_bytes: num_bytes as u64 };
        let layout = Layout::from_size_align(num_bytes, 256).map_err(|_| out_of_memory())?;
        assert!(num_bytes > 0, "memory for {what} has a size");
        // SAFETY: the size is not 0.
        let address = unsafe { alloc(layout) };
        if address.is_null() {
            return Err(out_of_memory());
        }
        // SAFETY: just allocated with this size.
        unsafe { address.write_bytes(fill, num_bytes) };
        Ok(HostMemory { address, layout, _counted: self.allocated.count(num_bytes) })
    }

    fn allocated_bytes(&self) -> u64 {
        self.allocated.now()
    }

    fn write_with(
        &mut self,
        to: &HostMemory,
        offset: usize,
        num_bytes: usize,
        fill: &mut dyn FnMut(usize, &mut [u8]),
    ) -> Result<(), BackendError> {
        assert!(offset + num_bytes <= to.num_bytes(), "a write behind the end");
        assert!(self.capture.is_none(), "a write within a capture");
        // SAFETY: within the memory, which nothing else refers to while the device is borrowed, and which is filled.
        let bytes = unsafe { std::slice::from_raw_parts_mut(to.address.add(offset), num_bytes) };
        for (index, piece) in bytes.chunks_mut(PIECE_BYTES).enumerate() {
            fill(index * PIECE_BYTES, piece);
        }
        Ok(())
    }

    fn reserve_readings(&mut self, _: usize, _: usize) -> Result<(), BackendError> {
        Ok(())
    }

    fn start_read(
        &mut self,
        from: &HostMemory,
        offset: usize,
        num_bytes: usize,
    ) -> Result<Vec<u8>, BackendError> {
        assert!(offset + num_bytes <= from.num_bytes(), "a read behind the end");
        assert!(self.capture.is_none(), "a read within a capture");
        // SAFETY: within the memory, every byte of which was filled when it was made.
        Ok(unsafe { std::slice::from_raw_parts(from.address.add(offset), num_bytes) }.to_vec())
    }

    fn finish_read(&mut self, reading: Vec<u8>, bytes: &mut [u8]) -> Result<(), BackendError> {
        bytes.copy_from_slice(&reading);
        Ok(())
    }

    fn begin_capture(&mut self) -> Result<(), BackendError> {
        assert!(self.capture.replace(HostGraph::default()).is_none(), "a capture within a capture");
        Ok(())
    }

    fn end_capture(&mut self) -> Result<HostGraph, BackendError> {
        Ok(self.capture.take().expect("a capture has begun"))
    }

    fn replay(&mut self, graph: &HostGraph) -> Result<(), BackendError> {
        assert!(self.capture.is_none(), "a replay within a capture");
        for OwnedLaunch { launch, params } in &graph.0 {
            self.launch(&Launch { params, ..*launch })?;
        }
        Ok(())
    }

    /// Nothing is queued here: what was called has ended.
    fn moment(&mut self) -> Result<Instant, BackendError> {
        assert!(self.capture.is_none(), "a moment within a capture");
        Ok(Instant::now())
    }

    fn seconds_between(&mut self, from: &Instant, to: &Instant) -> Result<f64, BackendError> {
        Ok((*to - *from).as_secs_f64())
    }

    fn tensor_map(
        &mut self,
        memory: &HostMemory,
        num_rows: usize,
        num_cols: usize,
    ) -> Result<TensorMap, BackendError> {
        assert!(num_rows * num_cols * 2 <= memory.num_bytes(), "a matrix beyond its memory");
        let mut map = TensorMap::default();
        map[..3].copy_from_slice(&[memory.address(), num_rows as u64, num_cols as u64]);
        Ok(map)
    }

    fn launch(&mut self, launch: &Launch<'_>) -> Result<(), BackendError> {
        let kernel = self.kernel(launch.kernel)?;
        let geometry = [launch.num_threads, launch.shared_bytes];
        assert_eq!(geometry, kernel.geometry, "threads and shared bytes of {}", launch.kernel);
        if let Some(HostGraph(launches)) = &mut self.capture {
            let params = launch.params.to_vec();
            launches.push(OwnedLaunch { launch: Launch { params: &[], ..*launch }, params });
            return Ok(());
        }
        let (order, seed) = match self.order {
            Order::Forward => (0, 0),
            Order::Reverse => (1, 0),
            Order::Random(seed) => (2, seed),
        };
        let Launch { grid, num_threads, shared_bytes, .. } = *launch;
        let simt = SimtLaunch { grid, num_threads, shared_bytes, order, seed };
        // Parameters at the alignment that the kernel expects.
        let mut params = vec![AlignedBytes([0; 128]); launch.params.len().div_ceil(128)];
        // SAFETY: as many bytes as the vector has room for.
        unsafe {
            params
                .as_mut_ptr()
                .cast::<u8>()
                .copy_from_nonoverlapping(launch.params.as_ptr(), launch.params.len());
        }
        // SAFETY: the kernel takes these parameters (its layout is compared by a test); the addresses in them are of memory
        // that the backend holds; the sanitizers watch over the rest.
        unsafe { (self.run)(kernel.entry, params.as_ptr().cast(), &raw const simt) };
        Ok(())
    }
}
