//! The kernels' parameters are the same struct in Rust and in C++: names, sizes, offsets.

mod support;

use std::fmt::Write as _;
use std::process::Command;

#[test]
fn rust_and_cpp_agree_on_every_field() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut source = String::from("#include \"params.h\"\n#include <stddef.h>\n");
    for (name, size, fields) in pagoda_backend_cuda::params_layout() {
        writeln!(source, "static_assert(sizeof({name}) == {size}, \"size of {name}\");")
            .expect("a string grows");
        let mut end = 0;
        for (field, offset) in fields {
            writeln!(source, "static_assert(offsetof({name}, {field}) == {offset});")
                .expect("a string grows");
            assert!(offset >= end, "{name}.{field}");
            end = offset;
        }
    }
    let file = folder.path().join("layout.cpp");
    std::fs::write(&file, source).expect("the folder is writable");
    let include = support::kernels().join("include");
    let output =
        Command::new("g++").args(["-std=c++20", "-fsyntax-only", "-I"]).arg(include).arg(&file).output();
    let Ok(output) = output else {
        assert!(std::env::var("REQUIRE_ALL").as_deref() != Ok("1"), "REQUIRE_ALL=1, but there is no g++");
        println!("skipped: there is no g++");
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
