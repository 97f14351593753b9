//! A model of `service::durable` on a simulated [`Disk`]: the same operations in the same order, one by one.

use crate::bug::Bug;
use crate::disk::fence::check;
use crate::disk::{Disk, DiskFault, Moment};

/// As `OwnedDirectory::partial_name`.
fn partial(disk: &Disk, path: &str) -> String {
    let (directory, name) = path.rsplit_once('/').unwrap_or((".", path));
    let tag = disk.at_work.map(|own| format!(".{}", own.0)).unwrap_or_default();
    format!("{directory}/.{name}{tag}.partial")
}

/// What is asked before something takes its name.
fn check_before_naming(disk: &Disk, bug: Option<Bug>) -> Result<(), DiskFault> {
    if bug == Some(Bug::RenamesUnasked) { Ok(()) } else { check(disk) }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(directory, _)| directory)
}

/// As `durable::write_file`.
pub fn write_file(disk: &mut Disk, path: &str, bytes: &[u8], bug: Option<Bug>) -> Result<(), DiskFault> {
    let partial = partial(disk, path);
    disk.create(&partial)?;
    disk.write(&partial, bytes)?;
    if bug != Some(Bug::RenamesBeforeFlush) {
        disk.flush(&partial)?;
    }
    check_before_naming(disk, bug)?;
    disk.rename(&partial, path)?;
    disk.flush_names(parent(path))
}

/// As `durable::append_line`.
pub fn append_line(disk: &mut Disk, path: &str, line: &str, bug: Option<Bug>) -> Result<(), DiskFault> {
    disk.note(Moment::Append);
    let is_new = !disk.exists(path);
    if is_new {
        disk.create(path)?;
    }
    check(disk)?;
    let before = disk.read(path).unwrap_or_default();
    let length = before.len();
    let is_torn = before.last().is_some_and(|last| *last != b'\n');
    let text = if is_torn { format!("\n{line}\n") } else { format!("{line}\n") };
    let written = disk.write(path, text.as_bytes()).and_then(|()| match bug {
        Some(Bug::AppendsWithoutFlush) => Ok(()),
        _ => disk.flush(path),
    });
    if let Err(fault) = written {
        if fault != DiskFault::Died {
            disk.cut_off(path, length)?;
        }
        return Err(fault);
    }
    if length == 0 { disk.flush_names(parent(path)) } else { Ok(()) }
}

/// As `durable::create_directory`, of a directory whose parent is there.
pub fn create_directory(disk: &mut Disk, path: &str) -> Result<(), DiskFault> {
    check(disk)?;
    disk.make_directory(path)?;
    disk.flush_names(parent(path))
}

/// As `durable::flush_file`.
pub fn flush_file(disk: &mut Disk, path: &str) -> Result<(), DiskFault> {
    match disk.exists(path) {
        true => disk.flush(path).and_then(|()| disk.flush_names(parent(path))),
        false => Ok(()),
    }
}

/// As `durable::write_directory`, with files of these names and bytes.
pub fn write_directory(
    disk: &mut Disk,
    path: &str,
    files: &[(&str, Vec<u8>)],
    bug: Option<Bug>,
) -> Result<(), DiskFault> {
    let partial = partial(disk, path);
    disk.remove_all(&partial)?;
    disk.make_directory(&partial)?;
    if let Err(fault) = fill(disk, &partial, path, files, bug) {
        if fault != DiskFault::Died {
            // The disk may be full; the first error is the one to tell.
            let _ = disk.remove_all(&partial);
        }
        return Err(fault);
    }
    if bug != Some(Bug::AcknowledgesBeforeFlush) {
        disk.flush_names(parent(path))?;
    }
    disk.remove_all(&partial)
}

fn fill(
    disk: &mut Disk,
    partial: &str,
    path: &str,
    files: &[(&str, Vec<u8>)],
    bug: Option<Bug>,
) -> Result<(), DiskFault> {
    for (name, bytes) in files {
        write_file(disk, &format!("{partial}/{name}"), bytes, bug)?;
    }
    if bug != Some(Bug::RenamesBeforeFlush) {
        for (name, _) in files {
            disk.flush(&format!("{partial}/{name}"))?;
        }
        disk.flush_names(partial)?;
    }
    check_before_naming(disk, bug)?;
    disk.note(Moment::Naming);
    match disk.exists(path) {
        true => disk.exchange(partial, path),
        false => disk.rename(partial, path),
    }
}

/// As `durable::clear_leftovers`, where two directories can be exchanged.
pub fn clear_leftovers(disk: &mut Disk, directory: &str) -> Result<(), DiskFault> {
    clear(disk, directory, "")
}

/// As `OwnedDirectory::clear_leftovers_of`.
pub fn clear_leftovers_of(disk: &mut Disk, path: &str) -> Result<(), DiskFault> {
    let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
    clear(disk, parent(path), &format!("{name}."))
}

fn clear(disk: &mut Disk, directory: &str, beginning: &str) -> Result<(), DiskFault> {
    for name in disk.list(directory) {
        let hidden = name.strip_prefix('.').filter(|hidden| hidden.starts_with(beginning));
        if hidden.is_some_and(|hidden| hidden.ends_with(".partial")) {
            check(disk)?;
            let path = format!("{directory}/{name}");
            let own = partial(disk, &path);
            disk.rename(&path, &own)?;
            disk.remove_all(&own)?;
            disk.flush_names(directory)?;
        }
    }
    Ok(())
}

/// As `durable::discard_directory`.
pub fn discard_directory(disk: &mut Disk, path: &str) -> Result<(), DiskFault> {
    let partial = partial(disk, path);
    disk.remove_all(&partial)?;
    check(disk)?;
    disk.rename(path, &partial)?;
    disk.flush_names(parent(path))?;
    disk.remove_all(&partial)
}
