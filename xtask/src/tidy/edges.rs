//! Which crate may use which: the picture of ARCHITECTURE.md as a table. Development dependencies are free, except that no
//! crate may reach the binary.

use cargo_metadata::{DependencyKind, Metadata, Package};

/// Every crate of the workspace, and the crates of the workspace that it may use.
const ALLOWED: [(&str, &[&str]); 12] = [
    (
        "pagoda",
        &[
            "pagoda-engine",
            "pagoda-backend",
            "pagoda-backend-cpu",
            "pagoda-backend-cuda",
            "pagoda-conformance",
            "pagoda-model",
            "pagoda-text",
            "pagoda-server",
        ],
    ),
    ("pagoda-server", &["pagoda-engine", "pagoda-text"]),
    ("pagoda-model", &["pagoda-engine", "pagoda-backend"]),
    ("pagoda-backend-cpu", &["pagoda-backend"]),
    ("pagoda-backend-cuda", &["pagoda-backend"]),
    ("pagoda-conformance", &["pagoda-backend", "pagoda-backend-cpu"]),
    ("pagoda-kernels-host", &["pagoda-backend", "pagoda-backend-cuda", "pagoda-conformance"]),
    ("pagoda-backend", &[]),
    ("pagoda-engine", &[]),
    ("pagoda-text", &[]),
    ("pagoda-testkit", &["pagoda-engine"]),
    ("xtask", &[]),
];

/// Foreign crates that only some of ours may use.
const CONFINED: [(&str, &[&str]); 5] = [
    ("tokio", &["pagoda", "pagoda-server"]),
    ("axum", &["pagoda-server"]),
    ("candle-core", &["pagoda-model"]),
    ("cudarc", &["pagoda-backend-cuda"]),
    ("anyhow", &["pagoda", "xtask"]),
];

/// One line per edge or licence that is not allowed.
pub(crate) fn check(metadata: &Metadata) -> Vec<String> {
    metadata.workspace_packages().into_iter().flat_map(check_package).collect()
}

fn check_package(package: &Package) -> Vec<String> {
    let name = package.name.as_str();
    let mut violations = Vec::new();
    if package.license.as_deref() != Some("Apache-2.0") {
        violations.push(format!("{name}: the licence in Cargo.toml must be Apache-2.0"));
    }
    let Some((_, allowed)) = ALLOWED.iter().find(|(known, _)| *known == name) else {
        violations.push(format!("{name}: a new crate needs a row in xtask/src/tidy/edges.rs"));
        return violations;
    };
    for dependency in package.dependencies.iter().filter(|edge| edge.kind != DependencyKind::Development) {
        let used = dependency.name.as_str();
        let is_ours = ALLOWED.iter().any(|(known, _)| *known == used);
        if is_ours && !allowed.contains(&used) {
            violations.push(format!("{name} may not use {used}"));
        }
        if let Some((_, users)) = CONFINED.iter().find(|(confined, _)| *confined == used)
            && !users.contains(&name)
        {
            violations.push(format!("{name} may not use {used}: only {} may", users.join(" and ")));
        }
    }
    violations
}
