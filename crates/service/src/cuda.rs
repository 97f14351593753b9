//! One program for CPU and CUDA: libtorch's CUDA half is loaded when it is wanted and there.
//!
//! The programs are linked with `libtorch_cpu.so` alone, so that they start anywhere. Its CUDA half registers itself
//! when it is loaded, which must be before the first tensor. Loading a library is unsafe; starting oneself again with
//! `LD_PRELOAD` is not. This has never been run where a GPU is.

use config::ComputeDevice;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const CPU_LIBRARY: &str = "libtorch_cpu.so";
const CUDA_LIBRARY: &str = "libtorch_cuda.so";
const PRELOAD: &str = "LD_PRELOAD";
/// There where an NVIDIA driver runs.
const CONTROL_DEVICE: &str = "/dev/nvidiactl";

/// libtorch's CUDA half is there but does not load.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot load {}: {reason}; install the CUDA libraries that PyTorch of this version needs, or use the device `cpu`",
    library.display()
)]
pub struct CudaError {
    library: PathBuf,
    reason: String,
}

/// Replaces this process by itself with libtorch's CUDA half loaded, if that is wanted, there and not loaded yet. To be
/// called before any thread or tensor. `device` is the one asked for; where none is, a GPU that is there counts, and a
/// half that does not load is done without.
///
/// The program must answer `--version`: the loader ends a process whose preloaded library lacks another, so that is tried
/// first.
///
/// # Errors
/// If the device asked for is CUDA, and its half does not load.
pub fn load_where_wanted(device: Option<ComputeDevice>) -> Result<(), CudaError> {
    let is_wanted = device.map_or_else(|| Path::new(CONTROL_DEVICE).exists(), |device| !device.is_cpu());
    let preloaded = std::env::var_os(PRELOAD);
    // Elsewhere than on Linux there is no such file, and nothing to load.
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let library = library_to_load(&maps, preloaded.as_deref()).filter(|library| library.is_file());
    let Some(library) = library.filter(|_| is_wanted) else { return Ok(()) };
    match (start_again(&with_library(preloaded, &library)), device) {
        (_, None) => Ok(()),
        (reason, Some(_)) => Err(CudaError { library, reason }),
    }
}

/// Becomes this program again with other libraries preloaded; returns only if that fails, with the reason.
fn start_again(preload: &OsStr) -> String {
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return error.to_string(),
    };
    match Command::new(&program).arg("--version").env(PRELOAD, preload).output() {
        Ok(trial) if trial.status.success() => {
            let arguments = std::env::args_os().skip(1);
            Command::new(&program).args(arguments).env(PRELOAD, preload).exec().to_string()
        }
        Ok(trial) => String::from_utf8_lossy(&trial.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    }
}

/// The CUDA half beside the CPU half that is mapped into the process; `None` if it is mapped too, or if preloading it has
/// been tried before, in vain.
fn library_to_load(maps: &str, preloaded: Option<&OsStr>) -> Option<PathBuf> {
    let mut mapped = maps.lines().filter_map(|line| Some(Path::new(&line[line.find('/')?..])));
    let is_named = |path: &Path, name| path.file_name().is_some_and(|found| found == name);
    if mapped.clone().any(|path| is_named(path, CUDA_LIBRARY)) {
        return None;
    }
    let library = mapped.find(|path| is_named(path, CPU_LIBRARY))?.with_file_name(CUDA_LIBRARY);
    let is_tried = preloaded.is_some_and(|list| list.to_string_lossy().contains(&*library.to_string_lossy()));
    (!is_tried).then_some(library)
}

fn with_library(preloaded: Option<OsString>, library: &Path) -> OsString {
    let mut list = library.as_os_str().to_owned();
    if let Some(others) = preloaded.filter(|others| !others.is_empty()) {
        list.push(":");
        list.push(others);
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU_ONLY: &str = "7f00-7f01 r-xp 00000000 08:01 12    /opt/torch/lib/libc10.so\n\
                            7f02-7f03 r-xp 00000000 08:01 13    /opt/torch/lib/libtorch_cpu.so\n\
                            7f04-7f05 rw-p 00000000 00:00 0     [stack]\n";
    const CUDA: &str = "/opt/torch/lib/libtorch_cuda.so";

    #[test]
    fn the_cuda_half_is_looked_for_beside_the_cpu_half() {
        assert_eq!(library_to_load(CPU_ONLY, None).expect("wanted"), Path::new(CUDA));
        assert_eq!(library_to_load("", None), None);
    }

    #[test]
    fn it_is_neither_loaded_nor_tried_twice() {
        let loaded = format!("{CPU_ONLY}7f06-7f07 r-xp 00000000 08:01 14    {CUDA}\n");
        assert_eq!(library_to_load(&loaded, None), None);
        assert_eq!(library_to_load(CPU_ONLY, Some(OsStr::new(CUDA))), None);
        assert!(library_to_load(CPU_ONLY, Some(OsStr::new("/lib/other.so"))).is_some());
    }

    #[test]
    fn other_libraries_stay_preloaded() {
        assert_eq!(with_library(None, Path::new(CUDA)), CUDA);
        let list = with_library(Some("/lib/other.so".into()), Path::new(CUDA));
        assert_eq!(list, OsString::from(format!("{CUDA}:/lib/other.so")));
    }
}
