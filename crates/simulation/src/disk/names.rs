//! The names on a disk, and how they change.

use std::collections::BTreeMap;

/// A file, whatever its name.
pub(super) type Inode = u64;

/// Names, each of a file or a directory. Directories are those that were made; their files' names begin with theirs and `/`.
pub(super) type Names = BTreeMap<String, Option<Inode>>;

/// One change of names.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Link(String, Option<Inode>),
    Unlink(String),
    Move(String, String),
    Exchange(String, String),
}

impl Change {
    /// Whose names it changes; nothing is moved from one directory to another.
    pub(super) fn directory(&self) -> &str {
        let (Self::Link(name, _) | Self::Unlink(name) | Self::Move(name, _) | Self::Exchange(name, _)) = self;
        name.rsplit_once('/').map_or("", |(directory, _)| directory)
    }

    /// A directory above was given another name before this change was safe.
    pub(super) fn follow(&mut self, other: &Self) {
        let follow = |name: &mut String| match other {
            Self::Move(from, to) => drop(replace_above(name, from, to)),
            Self::Exchange(one, two) => drop(replace_above(name, one, two) || replace_above(name, two, one)),
            Self::Link(..) | Self::Unlink(_) => {}
        };
        match self {
            Self::Link(name, _) | Self::Unlink(name) => follow(name),
            Self::Move(from, to) | Self::Exchange(from, to) => {
                follow(from);
                follow(to);
            }
        }
    }
}

/// Puts a name below another directory, if it was below this one.
fn replace_above(name: &mut String, from: &str, to: &str) -> bool {
    let rest = name.strip_prefix(from).filter(|rest| rest.starts_with('/')).map(str::to_owned);
    let is_below = rest.is_some();
    if let Some(rest) = rest {
        *name = format!("{to}{rest}");
    }
    is_below
}

/// Changes names.
pub(super) fn apply(names: &mut Names, change: Change) {
    match change {
        Change::Link(name, file) => drop(names.insert(name, file)),
        Change::Unlink(name) => drop(names.remove(&name)),
        Change::Move(from, to) => {
            let moved = take_below(names, &from);
            take_below(names, &to);
            names.extend(moved.into_iter().map(|(rest, file)| (format!("{to}{rest}"), file)));
        }
        Change::Exchange(one, other) => {
            let (first, second) = (take_below(names, &one), take_below(names, &other));
            names.extend(first.into_iter().map(|(rest, file)| (format!("{other}{rest}"), file)));
            names.extend(second.into_iter().map(|(rest, file)| (format!("{one}{rest}"), file)));
        }
    }
}

/// Takes out a name and all below it; returns what follows the name.
fn take_below(names: &mut Names, path: &str) -> Vec<(String, Option<Inode>)> {
    let is_below =
        |name: &str| name.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let found: Vec<String> = names.keys().filter(|name| is_below(name)).cloned().collect();
    found
        .into_iter()
        .filter_map(|name| names.remove(&name).map(|file| (name[path.len()..].to_owned(), file)))
        .collect()
}
