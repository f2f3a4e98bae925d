//! Runs a script of a client library against a server and counts its checks.

use std::path::Path;
use std::process::Command;

/// Runs `tests/sdk/<script>` with `arguments`. It must succeed and print `ok ..` for each of `num_checks` checks.
pub(crate) fn run_checks(program: &Path, script: &str, arguments: &[String], num_checks: usize) {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk"));
    let output = Command::new(program)
        .arg(folder.join(script))
        .args(arguments)
        // Some packages look for updates when they are loaded: nothing but loopback is reached.
        .envs(
            ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"]
                .map(|name| (name, "http://127.0.0.1:9")),
        )
        .env("NO_PROXY", "127.0.0.1")
        .env("no_proxy", "127.0.0.1")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{script}: {}\n{stdout}\n{stderr}", output.status);
    let checks: Vec<&str> = stdout.lines().filter(|line| line.starts_with("ok ")).collect();
    assert_eq!(checks.len(), num_checks, "{script} checked something else:\n{stdout}");
}
