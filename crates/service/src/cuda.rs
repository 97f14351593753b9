//! One program for CPU and CUDA: libtorch's CUDA half is loaded when it is wanted and there, and what stands in its way is
//! told.
//!
//! The programs are linked with `libtorch_cpu.so` alone, so that they start anywhere. Its CUDA half registers itself
//! when it is loaded, which must be before the first tensor. Loading a library is unsafe; starting oneself again with
//! `LD_PRELOAD` is not. This has never been run where a GPU is.

mod inventory;
mod reasons;
mod shadowing;

use config::{ComputeDevice, VisibleCards};
use reasons::{Facts, Half};
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const CPU_LIBRARY: &str = "libtorch_cpu.so";
const CUDA_LIBRARY: &str = "libtorch_cuda.so";
const PRELOAD: &str = "LD_PRELOAD";
/// There where an NVIDIA driver runs; the second is Windows' own, seen from its Linux.
const CONTROL_DEVICES: [&str; 2] = ["/dev/nvidiactl", "/dev/dxg"];
/// What separates the libraries of `LD_PRELOAD`.
const SEPARATORS: [char; 2] = [':', ' '];

pub use inventory::{BUILT_FOR, Card, CardMemory, Inventory};
pub use shadowing::shadowed_cudnn;

/// A device that cannot be used, with all that is known of why.
#[derive(Debug, thiserror::Error)]
#[error("{error}{}", reasons.iter().map(|reason| format!("\n  {reason}")).collect::<String>())]
pub struct Explained<E> {
    error: E,
    reasons: Vec<String>,
}

/// libtorch's CUDA half does not load.
#[derive(Debug, thiserror::Error)]
#[error("libtorch's CUDA half does not load; set right what stands below, or use the device `cpu`")]
pub struct CudaError;

/// Replaces this process by itself with libtorch's CUDA half loaded, if that is wanted, there and not loaded yet. To be
/// called before any thread or tensor. `device` is the one asked for; where none is, a GPU that is there and not hidden
/// counts, and a half that does not load is done without: [`explained`] tells why when it is missed.
///
/// The program must answer `--version`: the loader ends a process whose preloaded library lacks another, so that is tried
/// first.
///
/// # Errors
/// If the device asked for is CUDA, and its half does not load.
pub fn load_where_wanted(device: Option<ComputeDevice>) -> Result<(), Explained<CudaError>> {
    let is_wanted =
        device.map_or_else(|| has_gpu() && !are_hidden(list().as_deref()), |device| !device.is_cpu());
    let preloaded = std::env::var_os(PRELOAD);
    let library = library_to_load(&maps(), preloaded.as_deref()).filter(|library| library.is_file());
    let Some(library) = library.filter(|_| is_wanted) else { return Ok(()) };
    match (start_again(&with_library(preloaded, &library)), device) {
        (_, None) => Ok(()),
        (words, Some(_)) => {
            Err(Explained { error: CudaError, reasons: reasons::reasons(&facts(Half::Refused(words))) })
        }
    }
}

/// Adds to a device's error what is known of why CUDA does not work here. It tries once more what [`load_where_wanted`] did.
pub fn explained<E>(error: E) -> Explained<E> {
    Explained { error, reasons: reasons::reasons(&facts(half())) }
}

/// The card that a device is to this process, as `CUDA_VISIBLE_DEVICES` names it; `None` on the CPU.
pub fn card(device: ComputeDevice) -> Option<String> {
    let visible = list().map(|list| VisibleCards::seen(&list));
    device.card(visible.as_ref())
}

/// The models of the cards that this process sees; `None` where one of them is not known, or there is none.
pub(crate) fn visible_models() -> Option<BTreeSet<String>> {
    let visible = list().map(|list| VisibleCards::seen(&list));
    let names = visible.as_ref().map(VisibleCards::names).unwrap_or_default();
    let order = std::env::var("CUDA_DEVICE_ORDER").ok();
    let cards = Inventory::look(names, order.as_deref());
    let models: Option<BTreeSet<String>> = match visible {
        Some(_) => names.iter().map(|name| Some(cards.find(name)?.name.clone())).collect(),
        None => Some(cards.models()),
    };
    models.filter(|models| !models.is_empty() && !models.contains(""))
}

/// Keeps libtorch's CUDA half, which costs any program a third of a second and 470 MB, from a child that is no part of
/// this project. What else is preloaded stays.
pub fn without_cuda_half(command: &mut Command) -> &mut Command {
    match std::env::var_os(PRELOAD).map(|list| others_than_cuda_half(&list.to_string_lossy())) {
        Some(others) if others.is_empty() => command.env_remove(PRELOAD),
        Some(others) => command.env(PRELOAD, others),
        None => command,
    }
}

fn others_than_cuda_half(list: &str) -> String {
    let is_other = |library: &&str| !is_named(Path::new(library), CUDA_LIBRARY);
    list.split(SEPARATORS)
        .filter(|library| !library.is_empty())
        .filter(is_other)
        .collect::<Vec<_>>()
        .join(":")
}

fn facts(half: Half) -> Facts {
    let library = cpu_half(&maps());
    let version = |library: &Path| Some(library.parent()?.parent()?.join("version.py"));
    Facts {
        half,
        torch_version: library
            .as_deref()
            .and_then(version)
            .and_then(|file| std::fs::read_to_string(file).ok()),
        library,
        has_gpu: has_gpu(),
        driver: std::fs::read_to_string("/proc/driver/nvidia/version").ok(),
        hidden_by: list().filter(|list| are_hidden(Some(list))),
        shadowed: shadowed_cudnn(),
    }
}

/// What is the matter with the CUDA half.
fn half() -> Half {
    let maps = maps();
    if mapped(&maps).any(|path| is_named(path, CUDA_LIBRARY)) {
        return Half::Loaded;
    }
    let half = cpu_half(&maps).map(|library| library.with_file_name(CUDA_LIBRARY));
    let Some(half) = half.filter(|half| half.is_file()) else { return Half::Absent };
    let program = std::env::current_exe().map_err(|error| error.to_string());
    match program.and_then(|program| trial(&program, &with_library(std::env::var_os(PRELOAD), &half))) {
        Ok(()) => Half::Loaded,
        Err(words) => Half::Refused(words),
    }
}

/// libtorch's CPU half, if it is mapped.
fn cpu_half(maps: &str) -> Option<PathBuf> {
    mapped(maps).find(|path| is_named(path, CPU_LIBRARY)).map(Path::to_owned)
}

fn has_gpu() -> bool {
    CONTROL_DEVICES.iter().any(|file| Path::new(file).exists())
}

/// The user's list of cards, or the launcher's.
fn list() -> Option<String> {
    std::env::var("CUDA_VISIBLE_DEVICES").ok()
}

/// Whether a list hides all cards from CUDA.
fn are_hidden(list: Option<&str>) -> bool {
    list.is_some_and(|list| VisibleCards::seen(list).names().is_empty())
}

/// Elsewhere than on Linux there is no such file, and nothing to load.
fn maps() -> String {
    std::fs::read_to_string("/proc/self/maps").unwrap_or_default()
}

fn mapped(maps: &str) -> impl Iterator<Item = &Path> {
    maps.lines().filter_map(|line| Some(Path::new(&line[line.find('/')?..])))
}

fn is_named(path: &Path, name: &str) -> bool {
    path.file_name().is_some_and(|found| found == name)
}

/// Becomes this program again with other libraries preloaded; returns only if that fails, with the reason.
fn start_again(preload: &OsStr) -> String {
    let begin = || {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        trial(&program, preload)?;
        let arguments = std::env::args_os().skip(1);
        Err::<(), String>(Command::new(&program).args(arguments).env(PRELOAD, preload).exec().to_string())
    };
    begin().err().unwrap_or_default()
}

/// Whether the program starts with these libraries; if not, what the loader says.
fn trial(program: &Path, preload: &OsStr) -> Result<(), String> {
    match Command::new(program).arg("--version").env(PRELOAD, preload).output() {
        Ok(trial) if trial.status.success() => Ok(()),
        Ok(trial) => Err(String::from_utf8_lossy(&trial.stderr).trim().to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// The CUDA half beside the CPU half that is mapped into the process; `None` if it is mapped too, or if preloading it has
/// been tried before, in vain.
fn library_to_load(maps: &str, preloaded: Option<&OsStr>) -> Option<PathBuf> {
    if mapped(maps).any(|path| is_named(path, CUDA_LIBRARY)) {
        return None;
    }
    let library = cpu_half(maps)?.with_file_name(CUDA_LIBRARY);
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
    fn children_are_spared_the_cuda_half_alone() {
        for (list, left) in [
            (CUDA.to_owned(), ""),
            (format!("{CUDA}:/lib/other.so"), "/lib/other.so"),
            (format!("/lib/a.so {CUDA} /lib/b.so"), "/lib/a.so:/lib/b.so"),
            ("/lib/other.so".to_owned(), "/lib/other.so"),
        ] {
            assert_eq!(others_than_cuda_half(&list), left);
        }
    }

    #[test]
    fn a_list_without_cards_hides_them_all() {
        for (list, hides) in [
            (None, false),
            (Some("0"), false),
            (Some(""), true),
            (Some("-1"), true),
            (Some("0,0"), true),
            (Some("x,0"), true),
            (Some("0,x"), false),
            (Some("0,,1"), false),
        ] {
            assert_eq!(are_hidden(list), hides, "{list:?}");
        }
    }

    #[test]
    fn a_device_that_is_not_here_is_explained_below_it() {
        let missing = std::fmt::Error;
        let error: Box<dyn std::error::Error + Send + Sync> = Box::new(explained(missing));
        assert!(error.to_string().starts_with(&missing.to_string()));
        let told = explained("device `cuda` is not available").to_string();
        assert!(told.starts_with("device `cuda` is not available\n  "), "{told}");
    }

    #[test]
    fn other_libraries_stay_preloaded() {
        assert_eq!(with_library(None, Path::new(CUDA)), CUDA);
        let list = with_library(Some("/lib/other.so".into()), Path::new(CUDA));
        assert_eq!(list, OsString::from(format!("{CUDA}:/lib/other.so")));
    }
}
