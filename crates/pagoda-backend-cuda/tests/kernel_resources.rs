//! T0: every kernel compiles for sm_80 and sm_90a, and its registers, shared memory and spills are those of
//! `kernels/resources.txt`, so that a spill is a visible diff. A spill in an attention kernel fails whatever the file says.

use std::collections::BTreeMap;
use std::path::Path;

const ARCHS: [&str; 2] = ["sm_80", "sm_90a"];

/// `(kernel, architecture)` to what ptxas said of it.
type Resources = BTreeMap<(String, String), Entry>;

#[derive(Default)]
struct Entry {
    registers: u32,
    stack_bytes: u32,
    spill_bytes: u32,
}

#[test]
fn kernels_use_the_registers_that_the_snapshot_says_and_attention_spills_nothing() {
    let log = std::fs::read_to_string(env!("PAGODA_KERNEL_RESOURCES")).expect("the build script wrote it");
    let resources = parse(&log);
    if resources.is_empty() {
        assert!(
            std::env::var("REQUIRE_ALL").as_deref() != Ok("1"),
            "REQUIRE_ALL=1, but the build had no nvcc: scripts/install_nvcc.sh"
        );
        println!("skipped: the build had no nvcc");
        return;
    }
    let mut table = String::from(
        "# kernel arch registers stack_bytes spill_bytes (nvcc 13.0; UPDATE_SNAPSHOTS=1 writes this file)\n",
    );
    for ((kernel, arch), entry) in &resources {
        if ARCHS.contains(&arch.as_str()) {
            let Entry { registers, stack_bytes, spill_bytes } = entry;
            table += &format!("{kernel} {arch} {registers} {stack_bytes} {spill_bytes}\n");
            assert!(
                !kernel.contains("attention") || *spill_bytes == 0,
                "{kernel} spills {spill_bytes} bytes on {arch}"
            );
        }
    }
    for kernel in resources.keys().map(|(kernel, _)| kernel) {
        for arch in ARCHS {
            assert!(
                resources.contains_key(&(kernel.clone(), arch.to_owned())),
                "{kernel} was not built for {arch}"
            );
        }
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels/resources.txt");
    if std::env::var("UPDATE_SNAPSHOTS").as_deref() == Ok("1") {
        std::fs::write(&file, &table).expect("the source folder is writable");
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        table == expected,
        "kernels/resources.txt differs; UPDATE_SNAPSHOTS=1 writes it:\n{}",
        difference(&expected, &table)
    );
}

/// Reads the lines of `nvcc --resource-usage`.
fn parse(log: &str) -> Resources {
    let mut resources = Resources::new();
    let mut current = None;
    for line in log.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            let mut quoted = rest.split('\'');
            let kernel = quoted.next().expect("a split has a first part").to_owned();
            let arch = quoted.nth(1).expect("ptxas names the architecture").to_owned();
            current = Some((kernel.clone(), arch.clone()));
            resources.insert((kernel, arch), Entry::default());
        }
        let Some(entry) = current.as_ref().and_then(|key| resources.get_mut(key)) else { continue };
        if let Some((stack, rest)) = line.trim().split_once(" bytes stack frame, ") {
            let numbers =
                rest.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse::<u32>().ok());
            entry.stack_bytes = stack.parse().expect("ptxas prints numbers");
            entry.spill_bytes = numbers.sum();
        }
        if let Some(rest) = line.split("Used ").nth(1) {
            entry.registers =
                rest.split(' ').next().and_then(|number| number.parse().ok()).expect("ptxas prints numbers");
        }
    }
    resources
}

fn difference(expected: &str, actual: &str) -> String {
    let missing = expected.lines().filter(|line| !actual.contains(line)).map(|line| format!("- {line}\n"));
    let added = actual.lines().filter(|line| !expected.contains(line)).map(|line| format!("+ {line}\n"));
    missing.chain(added).collect()
}
