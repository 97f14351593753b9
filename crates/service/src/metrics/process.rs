//! What the system says of this process.

use super::{Counts, Exposition};
use crate::system_numbers::number_after;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use nix::unistd::{SysconfVar, sysconf};

/// Shows memory, processor time and open files of this process, whose role is a label; what the system does not tell is
/// left out.
pub(super) fn show(exposition: &mut Exposition, label: &str) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kibibytes = |key| number_after(&status, key).map(|kibibytes| kibibytes as f64 * 1024.0);
    let mut gauge = |name: &str, meaning: &str, value: Option<f64>| {
        exposition.gauges(name, meaning, ["role"], value.map(|value| ([label.to_owned()], value)));
    };
    gauge(
        "tempflow_process_resident_memory_bytes",
        "Memory of the host that the process holds",
        kibibytes("VmRSS:"),
    );
    gauge(
        "tempflow_process_peak_memory_bytes",
        "The most memory of the host that it has held",
        kibibytes("VmHWM:"),
    );
    let open_files = std::fs::read_dir("/proc/self/fd").map(|files| files.count() as f64).ok();
    gauge("tempflow_process_open_files", "Open files and connections", open_files);
    gauge("tempflow_process_start_time_seconds", "When it was started, since 1970", start_time());
    let counted = Counts::new(["role"], []);
    processor_seconds().into_iter().for_each(|seconds| counted.add([label], seconds));
    exposition.counts("tempflow_process_cpu_seconds_total", "Processor time, of all its threads", &counted);
}

/// User's and system's.
fn processor_seconds() -> Option<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 * 1e-6;
    Some(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// When the system began, and how long after that the process did.
fn start_time() -> Option<f64> {
    let system = std::fs::read_to_string("/proc/stat").ok()?;
    let began: f64 = system.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    let process = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the program, in parentheses, may have blanks and parentheses in it; 20 fields follow until then.
    let ticks: f64 = process.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    let per_second = sysconf(SysconfVar::CLK_TCK).ok()??;
    Some(began + ticks / per_second as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_time_and_files() {
        let mut exposition = Exposition::default();
        show(&mut exposition, "worker");
        let table = include_str!("../../../../docs/monitoring.md");
        assert_eq!(crate::metrics::table_of(table, "process"), exposition.rows());
        let text = exposition.text();
        let value = |name: &str| -> f64 {
            let line = text.lines().find(|line| line.starts_with(&format!("{name}{{role=\"worker\"}} ")));
            line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
                .unwrap_or_else(|| panic!("{name}: {text}"))
        };
        assert!(value("tempflow_process_resident_memory_bytes") > 1e5);
        assert!(
            value("tempflow_process_peak_memory_bytes") >= value("tempflow_process_resident_memory_bytes")
        );
        assert!(value("tempflow_process_open_files") >= 3.0);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        let age = now.as_secs_f64() - value("tempflow_process_start_time_seconds");
        assert!((-2.0..3600.0).contains(&age), "{age}");
        assert!(value("tempflow_process_cpu_seconds_total") >= 0.0);
    }
}
