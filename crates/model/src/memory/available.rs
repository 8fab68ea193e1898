//! How much memory there is: what the kernel says is available, and what the control groups that this
//! process is in leave of it.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use super::readable;

/// Memory that a model may take, in bytes; `None` where it is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Available {
    /// The processor's.
    pub host: Option<u64>,
    /// The GPU's.
    pub device: Option<u64>,
}

impl Available {
    /// Reads the host's from `/proc` and `/sys/fs/cgroup`. libtorch's interface has no way to ask a GPU:
    /// `device` is what the configuration says, or not known.
    pub fn read(device: Option<u64>) -> Self {
        let text = |path: &Path| fs::read_to_string(path).ok();
        let free = text(Path::new("/proc/meminfo")).and_then(|text| meminfo(&text));
        let groups = text(Path::new("/proc/self/cgroup")).unwrap_or_default();
        let left = cgroup_folders(&groups).into_iter().filter_map(|(folder, files)| {
            let read = |name: &str| text(&folder.join(name));
            let stat = read("memory.stat").unwrap_or_default();
            left(&read(files.limit)?, &read(files.used)?, &stat, files.reclaimable)
        });
        Self { host: left.chain(free).min(), device }
    }
}

impl fmt::Display for Available {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |bytes: Option<u64>| bytes.map_or_else(|| "not known".to_owned(), readable);
        write!(f, "host {}, GPU {}", of(self.host), of(self.device))
    }
}

/// `MemAvailable` of `/proc/meminfo`: what can be had without swapping, caches given up.
fn meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Names of a control group's files, in one of the two versions of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Files {
    limit: &'static str,
    used: &'static str,
    /// The line of `memory.stat` with cached files, which are given up before a limit hurts.
    reclaimable: &'static str,
}

const V1: Files = Files {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    reclaimable: "total_inactive_file",
};
const V2: Files =
    Files { limit: "memory.max", used: "memory.current", reclaimable: "inactive_file" };

/// Folders of the control groups that limit a process, innermost first, from `/proc/self/cgroup`. In a
/// container the path may be the host's: the root of the mount is asked in any case.
fn cgroup_folders(text: &str) -> Vec<(PathBuf, Files)> {
    let mut folders = Vec::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (mount, files) = match controllers {
            "" => ("/sys/fs/cgroup", V2),
            list if list.split(',').any(|name| name == "memory") => ("/sys/fs/cgroup/memory", V1),
            _ => continue,
        };
        let path = path.trim_start_matches('/');
        // Nothing leads out of the mount.
        if Path::new(path).components().all(|part| matches!(part, std::path::Component::Normal(_)))
        {
            let inner = Path::new(path).ancestors().filter(|path| !path.as_os_str().is_empty());
            folders.extend(inner.map(|path| (Path::new(mount).join(path), files)));
        }
        folders.push((PathBuf::from(mount), files));
    }
    folders
}

/// What a group's limit leaves; `None` when it has none.
fn left(limit: &str, used: &str, stat: &str, reclaimable: &str) -> Option<u64> {
    let limit: u64 = limit.trim().parse().ok()?;
    let used: u64 = used.trim().parse().ok()?;
    let cached = stat
        .lines()
        .find_map(|line| line.strip_prefix(reclaimable)?.strip_prefix(' ')?.trim().parse().ok())
        .unwrap_or(0);
    Some(limit.saturating_sub(used.saturating_sub(cached)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_word_is_read_in_bytes() {
        let text = "MemTotal:       24635000 kB\nMemFree:  1 kB\nMemAvailable:   2048 kB\n";
        assert_eq!(meminfo(text), Some(2048 * 1024));
        for nonsense in ["", "MemFree: 3 kB", "MemAvailable: x kB", "MemAvailable: 5 pages"] {
            assert_eq!(meminfo(nonsense), None, "{nonsense}");
        }
        assert!(Available::read(None).host.is_some_and(|bytes| bytes > 1 << 20));
        assert_eq!(Available::read(Some(7)).device, Some(7));
    }

    #[test]
    fn every_control_group_from_the_innermost_to_the_root_may_limit() {
        let paths = |text: &str| -> Vec<String> {
            let folders = cgroup_folders(text);
            folders.iter().map(|(path, _)| path.display().to_string()).collect()
        };
        assert_eq!(
            paths("0::/system.slice/a.service\n"),
            [
                "/sys/fs/cgroup/system.slice/a.service",
                "/sys/fs/cgroup/system.slice",
                "/sys/fs/cgroup"
            ]
        );
        assert_eq!(
            paths("5:cpu,cpuacct:/x\n4:memory:/docker\n"),
            ["/sys/fs/cgroup/memory/docker", "/sys/fs/cgroup/memory"]
        );
        assert_eq!(paths("0::/../../etc\n"), ["/sys/fs/cgroup"], "never outside the mount");
        assert_eq!(paths("nonsense\n"), [""; 0]);
    }

    #[test]
    fn cached_files_do_not_count_against_a_limit_and_no_limit_is_none() {
        let stat = "inactive_file 300\ntotal_inactive_file 500\n";
        assert_eq!(left("1000\n", "900\n", stat, V2.reclaimable), Some(400));
        assert_eq!(left("1000\n", "900\n", stat, V1.reclaimable), Some(600));
        assert_eq!(left("1000\n", "2000\n", "", V2.reclaimable), Some(0));
        assert_eq!(left("max\n", "900\n", stat, V2.reclaimable), None);
    }
}
