//! Runs the case table on kernels compiled for the host. A process of its own, because a kernel that breaks a rule ends it,
//! and because it runs with the sanitizers preloaded.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use clap::{Parser, ValueEnum};
use pagoda_backend_cuda::{CudaBackend, E4M3_TOLERANCE, Element, LinearPolicy, PrefillKernel, round_e4m3};
use pagoda_conformance::{Case, Subject, cases};
use pagoda_kernels_host::{Fault, HostDevice, HostProducts, Order};

/// Runs cases of the table; prints one line for each; fails if one does.
#[derive(Parser)]
struct Cli {
    /// Folder of the compiled kernels.
    #[arg(long)]
    kernels: PathBuf,
    /// Only cases whose name begins with one of these.
    #[arg(long)]
    only: Vec<String>,
    /// The n-th of m parts of the table, as n/m.
    #[arg(long, default_value = "0/1")]
    part: String,
    #[arg(long, value_enum, default_value = "bf16")]
    element: Elements,
    #[arg(long, value_enum, default_value = "forward")]
    order: Orders,
    /// Of the inputs and the random order.
    #[arg(long)]
    seed: u64,
    /// K and V as e4m3 codes.
    #[arg(long)]
    fp8_kv: bool,
    /// Prompts by wgmma and TMA, where there is such a kernel.
    #[arg(long)]
    wgmma: bool,
    /// One kernel for all numbers of rows.
    #[arg(long)]
    deterministic: bool,
    /// Products of many rows by a library, and what it gets wrong.
    #[arg(long, value_enum)]
    products: Option<Libraries>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Libraries {
    Right,
    NoBias,
    Transposed,
    LastRow,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Elements {
    Bf16,
    F16,
}

#[derive(Clone, Copy, ValueEnum)]
enum Orders {
    Forward,
    Reverse,
    Random,
}

type Backend = CudaBackend<HostDevice>;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let (part, num_parts) = cli.part.split_once('/').expect("--part is n/m");
    let part: usize = part.parse().expect("--part is n/m");
    let num_parts: usize = num_parts.parse().expect("--part is n/m");
    let is_wanted = |case: &Case| {
        cli.only.is_empty() || cli.only.iter().any(|start| case.to_string().starts_with(start.as_str()))
    };
    let mut subject = subject(&cli);
    let num_products = Arc::new(AtomicUsize::new(0));
    if let Some(library) = cli.products {
        let library = HostProducts::new(fault(library), Arc::clone(&num_products));
        subject.backend.use_products(Box::new(library), None);
        if let Err(why) = subject.backend.prove_products() {
            eprintln!("the library is not used: {why}");
            return ExitCode::FAILURE;
        }
        num_products.store(0, Ordering::Relaxed);
    }
    let (mut num_run, mut num_failed) = (0, 0);
    for (index, case) in cases().iter().filter(|case| is_wanted(case)).enumerate() {
        if index % num_parts != part {
            continue;
        }
        let start = Instant::now();
        // Before it is run: it may end the process.
        eprint!("{case}: ");
        let result = case.run(&mut subject, cli.seed.wrapping_add(index as u64));
        let time = start.elapsed().as_secs_f64();
        num_run += 1;
        match result {
            Ok(error) => eprintln!("{error:.1e} ({time:.2} s)"),
            Err(why) => {
                num_failed += 1;
                eprintln!("FAILED, seed {}: {why}", cli.seed);
            }
        }
    }
    eprintln!("{num_run} cases, {num_failed} failed");
    if cli.products.is_some() {
        let num_products = num_products.load(Ordering::Relaxed);
        eprintln!("{num_products} products by the library");
        num_failed += usize::from((num_products == 0) != cli.deterministic);
    }
    if num_run > 0 && num_failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn fault(library: Libraries) -> Fault {
    match library {
        Libraries::Right => Fault::None,
        Libraries::NoBias => Fault::NoBias,
        Libraries::Transposed => Fault::Transposed,
        Libraries::LastRow => Fault::LastRow,
    }
}

fn subject(cli: &Cli) -> Subject<Backend> {
    let order = match cli.order {
        Orders::Forward => Order::Forward,
        Orders::Reverse => Order::Reverse,
        Orders::Random => Order::Random(cli.seed),
    };
    let device = HostDevice::new(&cli.kernels, order).unwrap_or_else(|why| panic!("{why}"));
    let policy = if cli.deterministic { LinearPolicy::Deterministic } else { LinearPolicy::Fastest };
    let is_bf16 = cli.element == Elements::Bf16;
    let element = if is_bf16 { Element::Bf16 } else { Element::F16 };
    let prefill = if cli.wgmma { PrefillKernel::Wgmma } else { PrefillKernel::Mma };
    let backend = CudaBackend::new(device, element, policy).with_prefill(prefill);
    Subject {
        backend: if cli.fp8_kv { backend.with_fp8_kv() } else { backend },
        write: |backend, tensor, first_row, values| backend.write_tensor(tensor, first_row, values),
        read: |backend, tensor, num_rows| backend.read_tensor(tensor, num_rows),
        read_slot: |backend, kv, layer, slot| backend.read_slot(kv, layer, slot),
        round: if is_bf16 { |value| Element::Bf16.round(value) } else { |value| Element::F16.round(value) },
        round_head: if cli.fp8_kv { round_e4m3 } else { |_| () },
        tolerance: element.tolerance(),
        kv_tolerance: if cli.fp8_kv { E4M3_TOLERANCE } else { element.tolerance() },
    }
}
