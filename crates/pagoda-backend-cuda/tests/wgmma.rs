//! T0: the wgmma kernels are what they are called: products on the tensor cores of sm_90a (HGMMA) and copies by the TMA (UTMALDG)
//! in the machine code, and no product of the older kind.

use std::path::Path;
use std::process::Command;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../kernels/paged_attention_prefill_wgmma.cu");

#[test]
fn wgmma_kernels_are_hgmma_and_tma_in_the_disassembly() {
    let Some(code) = disassemble() else {
        assert!(
            std::env::var("REQUIRE_ALL").as_deref() != Ok("1"),
            "REQUIRE_ALL=1, but the build had no nvcc, or there is no nvdisasm beside it: scripts/install_nvcc.sh"
        );
        println!("skipped: no nvcc or no nvdisasm");
        return;
    };
    let functions: Vec<&str> = code.split(".section\t.text.").skip(1).collect();
    assert_eq!(functions.len(), 4, "bf16 and f16, head_dim 64 and 128");
    for function in functions {
        let name = function.split(',').next().unwrap_or_default();
        let count = |instruction: &str| function.matches(instruction).count();
        let (products, copies, others) = (count(" HGMMA.64x"), count(" UTMALDG.2D"), count(" HMMA."));
        println!("{name}: {products} HGMMA, {copies} UTMALDG, {others} HMMA");
        // One per 16 channels of K and one per 16 keys of a tile of 128.
        let head_dim = if name.ends_with("_d64") { 64 } else { 128 };
        assert_eq!(products, head_dim / 16 + 128 / 16, "{name}");
        assert!(copies > 0 && others == 0, "{name}");
    }
}

/// The machine code for sm_90a as text. The build's image is compressed and of all architectures: this one is compiled anew.
fn disassemble() -> Option<String> {
    let nvcc = Path::new(env!("PAGODA_NVCC"));
    if nvcc.as_os_str().is_empty() {
        return None;
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (cubin, include) = (folder.join("wgmma.cubin"), Path::new(SOURCE).with_file_name("include"));
    let mut command = Command::new(nvcc);
    command.args(["-std=c++20", "-O3", "-cubin", "-gencode=arch=compute_90a,code=sm_90a", "-I"]).arg(include);
    let output = command.arg("-o").arg(&cubin).arg(SOURCE).output().expect("nvcc was found by the build");
    let log = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{log}");
    // What ptxas says when products cannot run beside other work.
    assert!(!log.contains("serialized"), "{log}");
    let output = Command::new(nvcc.with_file_name("nvdisasm")).arg("-c").arg(&cubin).output().ok()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}
