//! A run that goes on with what it began with, and one that is made to go on with something else.

use super::*;
use crate::cli::{Cli, Command};
use crate::opening::open_run;
use crate::placement::place_of_run;
use crate::run_place::run_directory;
use crate::run_record::RunRecord;
use crate::stand_ins::StandIn;
use clap::Parser;
use service::Ownership;
use std::fs;

/// A folder with prompts, a model and the config of a run on them.
struct Home {
    folder: tempfile::TempDir,
    config: RunConfig,
}

impl Home {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut config = config::preset("tempflow-tiny-cpu").expect("a preset").config;
        config.run.directory = folder.path().join("runs");
        config.model.path = folder.path().join("model");
        config.data.train = folder.path().join("train.txt");
        config.data.validation = PathBuf::new();
        config.data.test = folder.path().join("test.txt");
        config.rewards = vec![config::RewardSection::new("jpeg_compressibility")];
        let home = Self { folder, config };
        home.write("train.txt", "a cat\na dog\n");
        home.write("test.txt", "a fox\n");
        home.write("model/model_index.json", r#"{"vae": ["a", "b"]}"#);
        home.write("model/vae/config.json", "{}");
        home
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("created");
        fs::write(path, text).expect("written");
    }

    fn owner(&self) -> Ownership {
        Ownership::claim(&self.directory(), 0, None).expect("claimed")
    }

    /// Opens the run as `coordinator up` with these flags does; what was accepted, or the refusal.
    async fn up(&self, flags: &[&str]) -> Result<Vec<String>, String> {
        self.open(flags).await.map(|(accepted, _)| accepted)
    }

    /// Goes on with the run; what there is to say of that, or the refusal.
    async fn resume(&self) -> Result<Vec<String>, String> {
        self.open(&["--resume"]).await.map(|(_, said)| said)
    }

    async fn open(&self, flags: &[&str]) -> Result<(Vec<String>, Vec<String>), String> {
        let line = ["coordinator", "up", "run.toml"].iter().chain(flags);
        let Command::Up(args) = Cli::try_parse_from(line).expect("valid flags").command else {
            panic!("not `up`")
        };
        let refused = |error: CoordinatorError| {
            assert_eq!(error.exit_code(), 2, "{error}");
            error.to_string()
        };
        let kept = KeptInputs::of(&self.directory());
        let catalog = match args.resume {
            true => Catalog::open_again(self.config.clone(), &kept).map_err(|errors| errors.to_string())?,
            false => Catalog::open(self.config.clone()).expect("prompts"),
        };
        let here = MembersHere::of(place_of_run(&args, catalog.config()), catalog.config());
        let inputs = Inputs::of(&catalog, &Hub::at("no/cache"), here).map_err(refused)?;
        inputs.check(&args, &self.directory()).map_err(refused)?;
        let (mut opened, _) = open_run(&args, &self.config).await.map_err(refused)?;
        let accepted = inputs.settle(&args, &mut opened).map_err(refused)?;
        Ok((accepted, [catalog.notes(), &opened.notices].concat()))
    }

    /// Makes something depend on what the run has read.
    fn train(&self) {
        fs::create_dir(self.directory().checkpoints().join("iteration-000001")).expect("created");
    }

    fn remove(&self, path: PathBuf) {
        let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        removed.expect("removed");
    }

    fn directory(&self) -> RunDirectory {
        run_directory(&self.config).expect("a path")
    }

    fn copied(&self, split: PromptSplit) -> String {
        fs::read_to_string(self.directory().prompts(split)).expect("a copy")
    }
}

#[tokio::test]
async fn what_a_run_began_with_may_move_but_not_change() {
    let mut home = Home::new();
    assert_eq!(home.up(&[]).await, Ok(vec![]));
    assert_eq!(home.copied(PromptSplit::Train), "{\"prompt\":\"a cat\"}\n{\"prompt\":\"a dog\"}\n");
    assert_eq!(home.up(&["--resume"]).await, Ok(vec![]));
    // The same prompts in another file of another format.
    home.write("elsewhere/train.json", "[\"a cat\",\n \"a dog\"]");
    home.config.data.train = home.folder.path().join("elsewhere");
    assert_eq!(home.up(&["--resume"]).await, Ok(vec![]));
    let record = fs::read(home.directory().run_file()).expect("a record");
    home.write("elsewhere/train.json", "[\"a cat\", \"a bat\"]");
    home.write("test.txt", "a fox\nan owl\n");
    home.write("model/vae/config.json", "{ }");
    let refusal = home.up(&["--resume"]).await.expect_err("changed");
    for expected in [
        "`data.train`: prompt 2 was \"a dog\" and is \"a bat\"",
        "`data.test`: 2 prompts, 1 when the run began; prompt 2 was nothing and is \"an owl\"",
        "`model.path`: vae/config.json had 2 bytes and has 3",
        "--accept-changed-data",
    ] {
        assert!(refusal.contains(expected), "{refusal}");
    }
    assert_eq!(fs::read(home.directory().run_file()).expect("a record"), record, "nothing was touched");
    assert!(home.copied(PromptSplit::Train).contains("a dog"));
}

#[tokio::test]
async fn a_change_that_is_wished_for_is_noted_for_good() {
    let home = Home::new();
    assert_eq!(home.up(&[]).await, Ok(vec![]));
    home.write("test.txt", "an owl\n");
    let accepted = home.up(&["--resume", "--accept-changed-data"]).await.expect("accepted");
    assert_eq!(accepted, ["`data.test`: prompt 1 was \"a fox\" and is \"an owl\""]);
    assert_eq!(home.copied(PromptSplit::Test), "{\"prompt\":\"an owl\"}\n");
    home.write("model/vae/config.json", "[]");
    home.up(&["--resume", "--accept-changed-data"]).await.expect("accepted");
    assert_eq!(home.up(&["--resume"]).await, Ok(vec![]), "it is what the run goes on with now");
    let record = KeptInputs::of(&home.directory()).record.expect("a record");
    let changes: Vec<_> =
        record.accepted.iter().map(|accepted| (accepted.generation, &accepted.change)).collect();
    let expected = [
        (2, "`data.test`: prompt 1 was \"a fox\" and is \"an owl\"".to_owned()),
        (3, "`model.path`: vae/config.json has other content of the same size".to_owned()),
    ];
    assert_eq!(changes, expected.each_ref().map(|(generation, change)| (*generation, change)));
}

#[tokio::test]
async fn living_members_must_not_learn_of_a_change_by_surprise() {
    let home = Home::new();
    assert_eq!(home.up(&[]).await, Ok(vec![]));
    home.write("train.txt", "a bat\n");
    let member = StandIn::start("learner");
    member.record(&home.directory(), "learner");
    let told = home.up(&["--resume", "--accept-changed-data"]).await.expect_err("it lives");
    let pid = member.pid();
    assert!(
        told.contains(&format!(
            "learner (process {pid}) still live and know what was before; end them first by `kill {pid}`"
        )),
        "{told}"
    );
    drop(member);
    let mut record = RunRecord::read(&home.directory()).expect("a record");
    record.members.clear();
    record.write(home.owner().directory()).expect("written");
    home.up(&["--resume", "--accept-changed-data"]).await.expect("nobody lives");
}

#[tokio::test]
async fn a_folder_in_place_of_the_digests_is_named_with_the_remedy() {
    let home = Home::new();
    assert_eq!(home.up(&[]).await, Ok(vec![]));
    let path = home.directory().inputs();
    fs::remove_file(&path).expect("removed");
    fs::create_dir(&path).expect("created");
    let told = home.up(&["--resume"]).await.expect_err("no file");
    assert!(told.contains("inputs.json is a folder") && told.contains("move it away"), "{told}");
}

#[tokio::test]
async fn an_adapter_and_the_models_of_rewards_are_part_of_what_a_run_reads() {
    let mut home = Home::new();
    home.config.adapter.start_from = home.folder.path().join("adapter");
    let mut reward = config::RewardSection::new("pickscore");
    let path = home.folder.path().join("scorer").display().to_string();
    reward.options.insert("model".to_owned(), toml::Value::String(path));
    home.config.rewards.push(reward);
    let missing = home.up(&[]).await.expect_err("missing");
    assert!(missing.contains("`adapter.start_from`: there is no "), "{missing}");
    home.write("adapter/adapter_config.json", "{}");
    home.write("scorer/config.json", "{}");
    assert_eq!(home.up(&[]).await, Ok(vec![]));
    home.write("adapter/adapter_config.json", "[]");
    home.write("scorer/config.json", "[]");
    let refusal = home.up(&["--resume"]).await.expect_err("changed");
    for key in ["`adapter.start_from`: adapter_config.json has", "`rewards[1].model`: config.json has"] {
        assert!(refusal.contains(key), "{refusal}");
    }
}

#[tokio::test]
async fn prompts_whose_copies_are_lost_are_compared_by_their_digests() {
    let home = Home::new();
    assert_eq!(home.up(&[]).await, Ok(vec![]));
    home.train();
    home.remove(home.directory().prompt_folder());
    let said = home.resume().await.expect("as it was").join("\n");
    assert!(said.contains("train.jsonl is lost or damaged; it is made anew of `data.train`"), "{said}");
    assert!(home.copied(PromptSplit::Train).contains("a dog"));
    for damage in [None, Some("{\"prompt\": \"a bat\"}\n"), Some("{")] {
        home.write("train.txt", "a cat\na bat\n");
        match damage {
            None => home.remove(home.directory().prompt_folder()),
            Some(text) => fs::write(home.directory().prompts(PromptSplit::Train), text).expect("written"),
        }
        let refusal = home.up(&["--resume"]).await.expect_err("changed");
        assert!(
            refusal.contains("`data.train`: these 2 prompts are not the 2 that the run began with"),
            "{refusal}"
        );
        home.write("train.txt", "a cat\na dog\n");
        assert_eq!(home.up(&["--resume"]).await, Ok(vec![]));
    }
    assert_eq!(home.resume().await, Ok(vec![]), "all is whole again");
}

#[tokio::test]
async fn digests_that_are_lost_once_are_put_back() {
    let home = Home::new();
    assert_eq!(home.up(&[]).await, Ok(vec![]));
    home.train();
    let before = fs::read(home.directory().inputs()).expect("digests");
    for lost in [home.directory().inputs(), home.directory().run_file()] {
        home.write("model/vae/config.json", "[]");
        home.remove(lost.clone());
        let refusal = home.up(&["--resume"]).await.expect_err("changed");
        assert!(refusal.contains("`model.path`: vae/config.json has other content"), "{refusal}");
        home.write("model/vae/config.json", "{}");
        let said = home.resume().await.expect("as it was").join("\n");
        assert!(said.contains(&format!("{} is lost or damaged", lost.display())), "{said}");
        assert_eq!(fs::read(home.directory().inputs()).expect("digests"), before);
        assert_eq!(home.resume().await, Ok(vec![]));
    }
    fs::write(home.directory().inputs(), "{").expect("written");
    assert_eq!(home.resume().await.expect("as it was").len(), 1);
}

#[tokio::test]
async fn what_nothing_is_left_to_compare_with_is_refused_unless_it_is_wished_for() {
    let home = Home::new();
    assert_eq!(home.up(&[]).await, Ok(vec![]));
    let lose = || {
        home.remove(home.directory().inputs());
        home.remove(home.directory().run_file());
        home.remove(home.directory().prompts(PromptSplit::Train));
    };
    lose();
    assert_eq!(home.up(&["--resume"]).await, Ok(vec![]), "nothing has been trained of it");
    home.train();
    lose();
    let refusal = home.up(&["--resume"]).await.expect_err("nothing to compare with");
    for expected in [
        "has lost what tells whether it would go on with what it began with",
        "`data.train`: ",
        "train.jsonl is lost or damaged, and nothing else tells which prompts",
        "`model.path`: neither ",
        "--accept-changed-data",
    ] {
        assert!(refusal.contains(expected), "{refusal}");
    }
    assert!(!refusal.contains("data.test"), "{refusal}");
    let accepted = home.up(&["--resume", "--accept-changed-data"]).await.expect("wished for");
    assert_eq!(accepted.len(), 2);
    let record = KeptInputs::of(&home.directory()).record.expect("a record");
    assert_eq!(record.accepted.len(), 2);
    assert_eq!(home.up(&["--resume"]).await, Ok(vec![]));
}

#[tokio::test]
async fn a_run_goes_on_with_its_own_copies_where_the_files_are_gone() {
    let mut home = Home::new();
    assert_eq!(home.up(&[]).await, Ok(vec![]));
    home.train();
    home.remove(home.config.data.train.clone());
    home.config.data.test = home.folder.path().join("nowhere");
    let said = home.resume().await.expect("it has copies").join("\n");
    for expected in
        ["`data.train`: cannot read the prompt file", "`data.test`: ", "goes on with its own copy"]
    {
        assert!(said.contains(expected), "{said}");
    }
    assert!(home.copied(PromptSplit::Train).contains("a dog"));
    home.remove(home.directory().prompts(PromptSplit::Train));
    let refusal = home.up(&["--resume"]).await.expect_err("neither is there");
    assert!(
        refusal.contains("train.txt: ") && refusal.contains("nor is the run's own copy whole"),
        "{refusal}"
    );
    assert!(!refusal.contains("data.test"), "{refusal}");
}

#[tokio::test]
async fn files_of_rewards_are_compared_where_they_are_and_not_missed_where_no_worker_runs() {
    let mut home = Home::new();
    home.write("scorer/config.json", "{}");
    let scorer = home.folder.path().join("scorer");
    let reward = config::reward_from_settings("pickscore", &[format!("model={}", scorer.display())]);
    home.config.rewards = vec![reward.expect("well-formed")];
    assert_eq!(home.up(&[]).await, Ok(vec![]));
    home.train();
    home.remove(scorer);
    let refusal = home.up(&["--resume"]).await.expect_err("workers run here");
    assert!(refusal.contains("`rewards[0].model`: there is no "), "{refusal}");
    home.config.resources.workers = 0;
    assert_eq!(home.up(&["--resume"]).await, Ok(vec![]));
    home.write("scorer/config.json", "{ }");
    let refusal = home.up(&["--resume"]).await.expect_err("what was seen is remembered");
    assert!(refusal.contains("`rewards[0].model`: config.json had 2 bytes and has 3"), "{refusal}");
}

#[tokio::test]
async fn a_record_of_an_earlier_version_is_taken_for_what_it_holds() {
    let home = Home::new();
    assert_eq!(home.up(&[]).await, Ok(vec![]));
    home.train();
    let downgrade = || {
        let mut record = KeptInputs::of(&home.directory()).record.expect("a record");
        record.prompts = None;
        record.write(home.owner().directory()).expect("written");
    };
    downgrade();
    assert_eq!(home.resume().await, Ok(vec![]));
    downgrade();
    home.write("test.txt", "an owl\n");
    let refusal = home.up(&["--resume"]).await.expect_err("changed");
    assert!(refusal.contains("prompt 1 was \"a fox\" and is \"an owl\""), "{refusal}");
    home.remove(home.directory().prompt_folder());
    let refusal = home.up(&["--resume"]).await.expect_err("lost");
    assert!(refusal.contains("nothing else tells which prompts"), "{refusal}");
}

#[test]
fn the_first_difference_of_two_lists_is_named() {
    let list = |text: &str| -> Vec<PromptRecord> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.jsonl");
        fs::write(&path, text).expect("written");
        config::read_prompts(&path).expect("valid")
    };
    let (one, two) = (list("\"a\"\n\"b\"\n"), list("\"a\"\n{\"prompt\": \"b\", \"tag\": \"x\"}\n"));
    assert_eq!(change_of_list(&one, &one), None);
    assert_eq!(change_of_list(&one, &two).as_deref(), Some("prompt 2 \"b\" has other metadata"));
    let grown = change_of_list(&[], &one).expect("grown");
    assert_eq!(grown, "2 prompts, 0 when the run began; prompt 1 was nothing and is \"a\"");
}
