use super::*;
use std::collections::BTreeSet;
use std::fs::File;

fn run() -> (tempfile::TempDir, RunDirectory) {
    let home = tempfile::tempdir().expect("a directory");
    let directory = RunDirectory::new(home.path());
    (home, directory)
}

fn own(directory: &RunDirectory) -> Ownership {
    Ownership::claim(directory, 0, None).expect("claimed")
}

fn other_process() -> Holder {
    Holder { host: "elsewhere".to_owned(), pid: 9, nonce: "ab".repeat(16) }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).expect("readable")
}

/// Every kind of change, as a first-in-time owner or learner would make it, with its outcome.
fn changes(owned: &OwnedDirectory) -> Vec<(&'static str, Result<(), ServiceError>)> {
    let path = owned.path();
    vec![
        ("write", owned.write_file(&path.join("file"), b"late")),
        ("append", owned.append_line(&path.join("rows"), "late")),
        ("create", owned.create_directory(&path.join("new"))),
        ("write directory", owned.write_directory(&path.join("folder"), |_| Ok(()))),
        ("discard", owned.discard_directory(&path.join("folder"))),
        ("clear", owned.clear_leftovers(path)),
        ("rename", owned.rename(&path.join("file"), &path.join("renamed"))),
        ("remove", owned.remove_file(&path.join("file"))),
    ]
}

/// Files and directories with their contents, but for those that say who owns the run.
fn contents(directory: &RunDirectory) -> BTreeSet<(PathBuf, String)> {
    fn add(path: &Path, found: &mut BTreeSet<(PathBuf, String)>) {
        for entry in fs::read_dir(path).expect("a directory") {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                true => {
                    found.insert((path.clone(), String::new()));
                    add(&path, found);
                }
                false => {
                    found.insert((path.clone(), read(&path)));
                }
            }
        }
    }
    let mut found = BTreeSet::new();
    add(directory.path(), &mut found);
    found.retain(|(path, _)| !path.starts_with(directory.owners()) && *path != directory.owner_file());
    found
}

fn fill(owned: &OwnedDirectory) {
    owned.write_file(&owned.path().join("file"), b"kept").expect("written");
    owned.write_file(&owned.path().join("rows"), b"kept\n").expect("written");
    let folder = owned.path().join("folder");
    owned
        .write_directory(&folder, |folder| durable::write_file(&folder.join("a"), b"kept"))
        .expect("written");
    fs::write(owned.path().join(".left.partial"), "left").expect("written");
}

#[test]
fn an_owner_that_was_taken_over_changes_nothing() {
    let (_home, directory) = run();
    let first = own(&directory);
    fill(first.directory());
    let second = own(&directory);
    assert!(second.epoch() > first.epoch());
    let before = contents(&directory);
    for (kind, outcome) in changes(first.directory()) {
        let error = outcome.expect_err(kind);
        assert!(error.is_superseded() && error.exit_code() == crate::exit_code::FENCED, "{kind}: {error:?}");
    }
    assert!(first.beat().is_err() && first.let_write(|| None).is_ok(), "no change is none");
    assert!(first.let_write(|| Some(other_process())).is_err() && first.release().is_err());
    assert_eq!(contents(&directory), before);
    let told = first.beat().expect_err("fenced").to_string();
    assert!(told.contains(&format!("process {}", std::process::id())) && told.contains("UTC"), "{told}");
    second.beat().expect("it is the owner");
}

#[test]
fn a_learner_changes_the_run_while_the_owner_lets_it() {
    let (_home, directory) = run();
    let owner = own(&directory);
    fill(owner.directory());
    assert!(OwnedDirectory::of_learner(directory.clone()).is_err(), "nobody let it in");
    owner.let_write(|| Some(Holder::of_this_process())).expect("recorded");
    let learner = OwnedDirectory::of_learner(directory.clone()).expect("let in");
    learner.write_file(&directory.path().join("file"), b"its own").expect("written");
    let before = contents(&directory);
    owner.let_write(|| None).expect("recorded");
    for (kind, outcome) in changes(&learner) {
        let error = outcome.expect_err(kind);
        assert!(!error.is_superseded() && error.exit_code() == crate::exit_code::RETRY, "{kind}: {error:?}");
    }
    assert_eq!(contents(&directory), before);
    owner.let_write(|| Some(Holder::of_this_process())).expect("it joined again");
    learner.write_file(&directory.path().join("file"), b"again").expect("written");
    let before = contents(&directory);
    owner.let_write(|| Some(other_process())).expect("recorded");
    for (kind, outcome) in changes(&learner) {
        assert!(outcome.expect_err(kind).is_superseded(), "{kind}");
    }
    assert_eq!(contents(&directory), before);
}

#[test]
fn a_learner_goes_on_under_the_next_owner_that_was_told_of_it() {
    let (_home, directory) = run();
    let first = own(&directory);
    first.let_write(|| Some(Holder::of_this_process())).expect("recorded");
    let learner = OwnedDirectory::of_learner(directory.clone()).expect("let in");
    let heir = Ownership::claim(&directory, 0, Some(Holder::of_this_process())).expect("claimed");
    learner.check().expect("let in still");
    let stranger = own(&directory);
    assert!(!learner.check().expect_err("the owner elsewhere knows of none").is_superseded());
    assert!(stranger.epoch() > heir.epoch());
}

#[test]
fn what_an_earlier_owner_says_too_late_is_put_right_and_lets_nobody_write() {
    let (_home, directory) = run();
    let first = own(&directory);
    first.let_write(|| Some(Holder::of_this_process())).expect("recorded");
    let late = read(&directory.owner_file());
    let second = own(&directory);
    second.let_write(|| Some(Holder::of_this_process())).expect("recorded");
    let learner = OwnedDirectory::of_learner(directory.clone()).expect("let in");
    for lost in [Some(late.as_str()), Some("{"), None] {
        match lost {
            Some(text) => fs::write(directory.owner_file(), text).expect("written"),
            None => fs::remove_file(directory.owner_file()).expect("removed"),
        }
        assert!(learner.check().is_err(), "{lost:?}");
        second.beat().expect("put right");
        learner.check().expect("let in again");
    }
    fs::write(directory.owner_file(), &late).expect("written");
    assert!(first.release().expect_err("it has the lower claim").is_superseded());
    assert_eq!(read(&directory.owner_file()), late);
}

#[test]
fn owners_that_begin_at_once_have_different_epochs_and_the_highest_is_the_owner() {
    let (_home, directory) = run();
    let claimed: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| Ownership::claim(&directory, 0, None))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let owners: Vec<&Ownership> = claimed.iter().flatten().collect();
    let epochs: BTreeSet<u64> = owners.iter().map(|owner| owner.epoch()).collect();
    assert_eq!(epochs.len(), owners.len());
    let living: Vec<u64> =
        owners.iter().filter(|owner| owner.beat().is_ok()).map(|owner| owner.epoch()).collect();
    assert_eq!(living, [*epochs.last().expect("somebody owns it")]);
}

#[test]
fn an_interrupted_claim_counts_and_its_number_is_not_taken_again() {
    let (_home, directory) = run();
    assert_eq!(incumbent(&directory).expect("readable"), None);
    let first = own(&directory);
    let found = incumbent(&directory).expect("readable").expect("it lives");
    assert!(is_of_this_machine(&found), "{found:?}");
    fs::write(directory.claim(first.epoch() + 3), "").expect("written");
    assert_eq!(incumbent(&directory).expect("readable").expect("somebody").epoch, first.epoch() + 3);
    let second = Ownership::claim(&directory, 100, None).expect("claimed");
    assert_eq!(second.epoch(), 101);
    assert_eq!(fs::read_dir(directory.owners()).expect("there").count(), 1, "earlier claims are gone");
    second.release().expect("released");
    assert_eq!(incumbent(&directory).expect("readable"), None);
}

#[test]
fn a_living_owner_gives_signs_of_life() {
    let (_home, directory) = run();
    assert_eq!(sign_of_life(&directory), None);
    let owner = own(&directory);
    let first = sign_of_life(&directory).expect("a claim");
    owner.beat().expect("it lives");
    assert!(sign_of_life(&directory).expect("a claim") > first);
}

#[test]
fn a_row_that_comes_late_ends_in_a_file_that_nobody_reads() {
    let (_home, directory) = run();
    let owner = own(&directory);
    let rows = directory.path().join("rows");
    owner.directory().write_file(&rows, b"one\n").expect("written");
    let mut opened = File::options().append(true).open(&rows).expect("opened by the first learner");
    owner.directory().write_file(&rows, b"one\ntwo\n").expect("written by the second");
    std::io::Write::write_all(&mut opened, b"two\n").expect("too late");
    assert_eq!(read(&rows), "one\ntwo\n");
}

#[test]
fn threads_of_one_process_write_one_file_whole_each() {
    let (_home, directory) = run();
    let owner = own(&directory);
    let path = directory.path().join("kinds");
    let texts: Vec<String> =
        (0..4_usize).map(|thread| format!("{thread}").repeat(100_000 * (thread + 1))).collect();
    std::thread::scope(|scope| {
        for text in &texts {
            let (owner, path) = (&owner, &path);
            scope.spawn(move || {
                (0..20).for_each(|_| owner.directory().write_file(path, text.as_bytes()).expect("written"));
            });
        }
    });
    assert!(texts.contains(&read(&path)), "one of them, whole");
    let names: Vec<_> =
        fs::read_dir(directory.path()).expect("listed").flatten().map(|entry| entry.file_name()).collect();
    assert!(!names.iter().any(|name| name.to_string_lossy().ends_with(".partial")), "{names:?}");
}

#[test]
fn two_processes_write_one_name_under_different_temporary_ones() {
    let (_home, directory) = run();
    let owner = own(&directory);
    let path = directory.path().join("folder");
    let partial = owner.directory().partial_name(&path);
    assert_ne!(partial, path.with_file_name(".folder.partial"));
    fs::create_dir(&partial).expect("created");
    owner.directory().clear_leftovers_of(&directory.path().join("fold")).expect("nothing of its own");
    assert!(partial.exists());
    owner.directory().clear_leftovers_of(&path).expect("cleared");
    assert!(!partial.exists());
}
