//! How much memory this process may still take: what the kernel says is available, and what the control groups leave.

use std::path::{Path, PathBuf};

/// Available bytes, the tightest limit of machine and control groups.
pub(crate) fn available_bytes() -> u64 {
    available_under(Path::new("/"))
}

fn available_under(root: &Path) -> u64 {
    let machine = meminfo_available(&read(&root.join("proc/meminfo")));
    let membership = read(&root.join("proc/self/cgroup"));
    let groups = cgroup_folders(&root.join("sys/fs/cgroup"), &membership);
    groups.iter().filter_map(|folder| headroom(folder)).chain([machine]).min().unwrap_or(machine)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// `MemAvailable`, or a cautious guess where there is no such file.
fn meminfo_available(meminfo: &str) -> u64 {
    const GUESS: u64 = 2 << 30;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.map_or(GUESS, |kib| kib * 1024)
}

/// The groups that hold this process, from its own up to the root, in version 2 (`0::/path`) and 1 (`n:memory:/path`).
/// In a container the path is often the host's and absent here; the mount's root is then the own group.
fn cgroup_folders(mount: &Path, membership: &str) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for line in membership.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let base = match controllers {
            "" => mount.to_owned(),
            controllers if controllers.split(',').any(|name| name == "memory") => mount.join("memory"),
            _ => continue,
        };
        let own = base.join(path.trim_start_matches('/'));
        folders.extend(own.ancestors().take_while(|folder| folder.starts_with(&base)).map(Path::to_owned));
    }
    folders
}

/// What a group leaves: its limit less what it holds, file cache (which gives way) not counted.
fn headroom(group: &Path) -> Option<u64> {
    let number = |name: &str| read(&group.join(name)).trim().parse::<u64>().ok();
    let limit = number("memory.max").or_else(|| number("memory.limit_in_bytes"))?;
    let used = number("memory.current").or_else(|| number("memory.usage_in_bytes")).unwrap_or(0);
    let cache = read(&group.join("memory.stat"))
        .lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| matches!(*name, "inactive_file" | "total_inactive_file"))
        .and_then(|(_, value)| value.parse::<u64>().ok())
        .unwrap_or(0);
    Some(limit.saturating_sub(used.saturating_sub(cache)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn machine(files: &[(&str, &str)]) -> u64 {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        available_under(root.path())
    }

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal: 9 kB\nMemAvailable:   8388608 kB\n");

    #[test]
    fn without_control_groups_the_machine_decides() {
        assert_eq!(machine(&[MEMINFO]), 8 * GIB);
        assert_eq!(
            machine(&[MEMINFO, ("proc/self/cgroup", "0::/a\n"), ("sys/fs/cgroup/a/memory.max", "max")]),
            8 * GIB
        );
    }

    #[test]
    fn a_parent_group_of_version_2_limits_its_children() {
        let files = [
            MEMINFO,
            ("proc/self/cgroup", "0::/pod/box\n"),
            ("sys/fs/cgroup/pod/box/memory.max", "max\n"),
            ("sys/fs/cgroup/pod/memory.max", "4294967296\n"),
            ("sys/fs/cgroup/pod/memory.current", "3221225472\n"),
            ("sys/fs/cgroup/pod/memory.stat", "anon 1\ninactive_file 2147483648\n"),
        ];
        assert_eq!(machine(&files), 3 * GIB);
    }

    #[test]
    fn version_1_counts_and_a_container_sees_its_group_at_the_mount() {
        let files = [
            MEMINFO,
            ("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/host/path\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "2147483648"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1073741824"),
        ];
        assert_eq!(machine(&files), GIB);
    }
}
