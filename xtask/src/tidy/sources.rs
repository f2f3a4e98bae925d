//! What every source file must have and may not have. Looks at lines, not at syntax: a rule that a plain search can check
//! is a rule that everybody can check.

use std::path::{Path, PathBuf};

use anyhow::Context;

/// Folders that hold what we wrote.
const FOLDERS: [&str; 9] =
    ["crates", "xtask", "scripts", "models", "docs", "benches", "kernels", ".ci", ".github"];
/// Crates in which unsafe code may stand, and the file that maps checkpoints into memory.
const UNSAFE_PLACES: [&str; 4] = [
    "crates/pagoda-backend-cpu/",
    "crates/pagoda-backend-cuda/",
    "crates/pagoda-kernels-host/",
    "crates/pagoda-model/src/mapping.rs",
];
/// Crates that may read the environment.
const ENV_PLACES: [&str; 2] = ["crates/pagoda/", "xtask/"];
/// How far above unsafe code its justification may end.
const SAFETY_REACH: usize = 8;

/// One line per violation below `root`.
pub(crate) fn check(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut violations = Vec::new();
    for folder in FOLDERS {
        let mut files = Vec::new();
        collect(&root.join(folder), &mut files)?;
        for file in files {
            // Binary fixtures are nobody's prose.
            let Ok(text) = std::fs::read_to_string(&file) else { continue };
            let path = file.strip_prefix(root).unwrap_or(&file).to_string_lossy().replace('\\', "/");
            check_file(&path, &text, &mut violations);
        }
    }
    for document in ["README.md", "ARCHITECTURE.md", "STYLE.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE"]
    {
        if !root.join(document).is_file() {
            violations.push(format!("{document} is missing"));
        }
    }
    Ok(violations)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    for entry in std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        let is_ours = !path.ends_with("target") && !path.ends_with("__pycache__");
        if path.is_dir() && is_ours {
            collect(&path, files)?;
        } else if path.is_file() {
            files.push(path);
        }
    }
    Ok(())
}

fn check_file(path: &str, text: &str, violations: &mut Vec<String>) {
    let mut report = |line: usize, what: &str| violations.push(format!("{path}:{line}: {what}"));
    let has_source_ending =
        [".rs", ".sh", ".py", ".toml", ".md", ".cu", ".cuh", ".h"].iter().any(|end| path.ends_with(end));
    if !has_source_ending {
        return;
    }
    for (index, line) in text.lines().enumerate() {
        for (word, why) in forbidden_words() {
            if line.contains(&word) {
                report(index + 1, &format!("{word:?}: {why}"));
            }
        }
    }
    if path.ends_with(".rs") {
        check_rust(path, text, &mut report);
    }
}

/// Put together at run time, so that this file does not break its own rules.
fn forbidden_words() -> Vec<(String, &'static str)> {
    let join = |parts: &[&str]| parts.concat();
    vec![
        (join(&["TO", "DO"]), "finish it, or write an issue"),
        (join(&["FIX", "ME"]), "fix it, or write an issue"),
        (join(&["#[ig", "nore"]), "a test runs or does not exist"),
        (join(&["/ro", "ot/"]), "no path of one machine"),
        (join(&["/ho", "me/"]), "no path of one machine"),
        (join(&["/wo", "rk/"]), "no path of one machine"),
        (join(&["/Us", "ers/"]), "no path of one machine"),
    ]
}

fn check_rust(path: &str, text: &str, report: &mut impl FnMut(usize, &str)) {
    if !text.starts_with("//!") {
        report(1, "a file begins with its //! header: what it owns, what it does not know");
    }
    let lines: Vec<&str> = text.lines().collect();
    let is_test_file = path.contains("/tests/")
        || path.contains("/benches/")
        || path.contains("/examples/")
        || path.contains("pagoda-testkit");
    // Unit tests stand at the end of a file.
    let num_production = match lines.iter().position(|line| line.trim() == "#[cfg(test)]") {
        _ if is_test_file => 0,
        Some(position) => position,
        None => lines.len(),
    };
    // Cargo hands a build script its settings in the environment.
    let may_read_env = ENV_PLACES.iter().any(|place| path.starts_with(place)) || path.ends_with("/build.rs");
    let may_be_unsafe = UNSAFE_PLACES.iter().any(|place| path.contains(place));
    for (index, line) in lines.iter().enumerate() {
        let code = line.split("//").next().unwrap_or("");
        if index < num_production && !may_read_env && (code.contains("std::env") || code.contains("env::var"))
        {
            report(index + 1, "only the binary reads the environment");
        }
        // A blank before it, so that names that end in `unsafe` are none.
        let forms = [" unsafe {", " unsafe impl", " unsafe fn", " unsafe extern"];
        let is_unsafe = forms.iter().any(|form| format!(" {code}").contains(form));
        if !is_unsafe || code.contains('"') {
            continue;
        }
        if !may_be_unsafe {
            report(index + 1, "unsafe code belongs into the backends and the mmap file");
        }
        let above = &lines[index.saturating_sub(SAFETY_REACH)..=index];
        let is_justified = above.iter().any(|line| line.contains("SAFETY:") || line.contains("# Safety"));
        if !is_justified && !code.contains("unsafe fn") {
            report(index + 1, "unsafe code says above it why it is sound: // SAFETY: ..");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violations(path: &str, text: &str) -> Vec<String> {
        let mut violations = Vec::new();
        check_file(path, text, &mut violations);
        violations
    }

    #[test]
    fn a_clean_file_passes_and_each_rule_catches_its_breach() {
        let server = "crates/pagoda-server/src/x.rs";
        assert_eq!(violations(server, "//! What it owns.\nfn f() {}\n"), Vec::<String>::new());
        for (text, what) in [
            ("fn f() {}\n", "header"),
            ("//! H.\nlet x = std::env::var(\"A\");\n", "environment"),
            ("//! H.\n// SAFETY: fine\nunsafe { f() }\n", "belongs into the backends"),
        ] {
            let found = violations(server, text);
            assert!(found.len() == 1 && found[0].contains(what), "{text:?}: {found:?}");
        }
        let unjustified = violations("crates/pagoda-backend-cpu/src/x.rs", "//! H.\nunsafe { f() }\n");
        assert!(unjustified[0].contains("SAFETY"), "{unjustified:?}");
    }

    #[test]
    fn unit_tests_may_read_the_environment() {
        let text = "//! H.\n#[cfg(test)]\nmod tests { fn f() { std::env::var(\"A\"); } }\n";
        assert_eq!(violations("crates/pagoda-engine/src/x.rs", text), Vec::<String>::new());
    }
}
