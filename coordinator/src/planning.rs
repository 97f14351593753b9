//! `coordinator plan`: the counting is the config crate's; what model and rewards are, the rollout worker tells.

mod time;

use crate::cards::{Places, SeatingError};
use crate::cli::ConfigArgs;
use crate::config_file;
use crate::error::CoordinatorError;
use crate::inspection::{self, Servers};
use crate::run_place;
use config::{Plan, RewardInspection, RewardSection, RunConfig};
use service::Hub;
use std::path::Path;

pub use time::time;

/// Works out what a run will cost, and what there is to say beside it. `programs` is the folder of the rollout worker.
///
/// A model that is not there yet leaves the plan without memory and bytes.
///
/// # Errors
/// If the config cannot be read, or there is something wrong with the model.
pub fn plan(args: &ConfigArgs, hub: &Hub, programs: &Path) -> Result<(Plan, Vec<String>), CoordinatorError> {
    let (config, lacking) = config_file::read_to_plan(args)?;
    run_place::check(&config)?;
    let mut notes: Vec<String> =
        lacking.iter().map(|problem| format!("`{}`: {}", problem.key, problem.message)).collect();
    let model = match config_file::missing_model(&config.model.path, hub) {
        None => Some(inspection::model(&config, programs)?),
        Some(missing) => {
            notes.push(format!(
                "memory, bytes and the weights of steps stay unknown without the model; {missing}"
            ));
            None
        }
    };
    notes.extend(model.iter().flat_map(|model| inspection::start_notes(&config, model)));
    let rewards = inspected_rewards(&config, programs, &mut notes);
    notes.extend(reward_notes(&rewards, model.is_some()));
    notes.extend(inspection::plain_text_note(&config));
    notes.extend(repeated_evaluations(&config));
    notes.extend(config.rewards.iter().filter(|reward| reward.is_judge()).map(judge_note));
    Ok((config::plan(&config, model, rewards), notes))
}

/// Who would sit on which of this machine's cards; nothing on the CPU.
///
/// # Errors
/// If the config cannot be read.
pub fn seats(args: &ConfigArgs) -> Result<String, CoordinatorError> {
    let (config, _) = config_file::read_to_plan(args)?;
    Ok(match config.resources.device.is_cpu() {
        true => String::new(),
        false => seats_text(&Places::look(&config)),
    })
}

fn seats_text(places: &Result<Places, SeatingError>) -> String {
    let lines: Vec<String> = match places {
        Ok(places) if !places.are_known() => {
            vec!["  none is known; each process takes the first that CUDA shows it".to_owned()]
        }
        Ok(places) => {
            let seats = places.seats().map(|(member, seat)| format!("  {:<12} {seat}", member.to_string()));
            seats.chain(places.notes().into_iter().map(|note| format!("  {note}"))).collect()
        }
        // A plan is made on whatever machine; `validate` refuses.
        Err(error) => vec![format!("  {error}")],
    };
    format!("cards of this machine\n{}\n", lines.join("\n"))
}

/// Evaluations look at averaged weights, which move every so many updates only.
fn repeated_evaluations(config: &RunConfig) -> Option<String> {
    let between = config.evaluation.every as u64 * config.training.updates_per_iteration as u64;
    let interval = config.ema.interval;
    (between < interval).then(|| {
        format!(
            "there are {between} updates between two evaluations, but averaged weights move every {interval} (`ema.interval`), \
             so some evaluations see the same weights twice; raise `evaluation.every`"
        )
    })
}

fn judge_note(reward: &RewardSection) -> String {
    format!(
        "reward `{}` is a language model that is asked in words: a run can be repeated to the last bit only as far as its \
         answers can",
        reward.name
    )
}

/// What rewards are, none where they cannot be looked at; a plan needs none of them.
fn inspected_rewards(config: &RunConfig, programs: &Path, notes: &mut Vec<String>) -> Vec<RewardInspection> {
    inspection::rewards(config, programs, Servers::default()).unwrap_or_else(|error| {
        notes.push(format!("rewards are not looked at, and memory is without them: {error}"));
        Vec::new()
    })
}

/// Why rewards cannot be built and, where no plan of memory says it, what they take on each worker.
fn reward_notes(rewards: &[RewardInspection], is_planned: bool) -> Vec<String> {
    let note = |reward: &RewardInspection| match inspection::reward_problem(reward) {
        Some(problem) => Some(problem),
        None => (reward.bytes > 0 && !is_planned).then(|| {
            let gigabytes = reward.bytes as f64 / 1e9;
            format!("reward `{}` takes {gigabytes:.2} GB of each worker's memory besides", reward.name)
        }),
    };
    rewards.iter().filter_map(note).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cards::{Card, Inventory};
    use crate::catalog::PromptSource;
    use crate::stand_ins::install_program;
    use std::fs;
    use std::path::PathBuf;

    /// A folder with a config, a model that has nothing but its index, and a worker that runs a script.
    fn home(script: &str) -> (tempfile::TempDir, ConfigArgs) {
        let home = tempfile::tempdir().expect("a directory");
        let path = |name: &str| home.path().join(name);
        config_file::init("dgx-geneval-sd3-pr", &path("run.toml")).expect("written");
        fs::create_dir(path("model")).expect("created");
        fs::write(path("model/model_index.json"), "{}").expect("written");
        install_program(&path("rollout-worker"), script);
        let model = format!("model.path={}", path("model").display());
        let args = ConfigArgs { file: path("run.toml"), settings: vec![model] };
        (home, args)
    }

    #[test]
    fn what_is_wrong_with_a_model_is_passed_on() {
        let (home, args) = home("echo 'error: transformer/config.json is damaged' >&2; exit 2");
        let error = plan(&args, &Hub::at("no/cache"), home.path()).expect_err("damaged");
        assert_eq!(error.exit_code(), 2);
        let expected = "the model cannot be used: transformer/config.json is damaged";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_run_directory_that_cannot_be_made_is_refused() {
        let (home, mut args) = home("exit 1");
        args.settings = vec!["model.path=./no/model".to_owned(), "run.directory=/proc/x".to_owned()];
        let error = plan(&args, &Hub::at("no/cache"), home.path()).expect_err("no place");
        assert_eq!(error.exit_code(), 2);
        let opened = config_file::open(&args, &Hub::at("no/cache"), (PromptSource::Config, &|_| true))
            .expect_err("no place");
        for told in [error.to_string(), opened.to_string()] {
            assert!(told.contains("`run.directory`: the run directory /proc/x/"), "{told}");
        }
    }

    #[test]
    fn a_model_that_is_not_there_yet_leaves_the_counts() {
        let (home, mut args) = home("exit 1");
        let text = fs::read_to_string(&args.file).expect("readable");
        fs::write(&args.file, text.replace("name = \"geneval\"", "name = \"nobody\"")).expect("written");
        args.settings = vec!["model.path=./no/model".to_owned()];
        let (plan, notes) = plan(&args, &Hub::at("no/cache"), home.path()).expect("planned");
        assert!(plan.to_string().contains("53568") && !plan.to_string().contains("memory"), "{plan}");
        assert!(notes[0].contains("`nobody` is not available"), "{notes:?}");
        assert!(notes[1].contains("no/model/model_index.json"), "{notes:?}");
    }

    #[test]
    fn rewards_are_looked_at_beside_the_model() {
        let inspection = r#"[{"key": "rewards[0]", "name": "geneval", "bytes": 3900000000, "problem": null},
            {"key": "rewards[1]", "name": "ocr", "bytes": 0, "problem": "no `tesseract`"}]"#;
        let (home, mut args) = home(&format!("echo '{inspection}'"));
        let text = fs::read_to_string(&args.file).expect("readable");
        let text = text.replace("name = \"geneval\"", "name = \"jpeg_compressibility\"");
        fs::write(&args.file, text).expect("written");
        args.settings = vec!["model.path=./no/model".to_owned()];
        let (_, notes) = plan(&args, &Hub::at("no/cache"), home.path()).expect("planned");
        let expected = [
            "reward `geneval` takes 3.90 GB of each worker's memory besides",
            "`rewards[1]`: no `tesseract`",
        ];
        assert_eq!(notes[1..], expected, "{notes:?}");
        let text = fs::read_to_string(&args.file).expect("readable");
        let text =
            text.replace("name = \"jpeg_compressibility\"", "name = \"geneval\"\nurl = \"http://gpu-7:1\"");
        fs::write(&args.file, text).expect("written");
        let (_, notes) = plan(&args, &Hub::at("no/cache"), home.path()).expect("planned");
        assert!(notes[3].contains("the reward server gpu-7:1 is spoken to in plain text"), "{notes:?}");
    }

    #[test]
    fn what_a_reward_takes_is_noted_only_where_no_memory_is_planned() {
        let reward = |problem: Option<&str>| RewardInspection {
            key: "rewards[0]".to_owned(),
            name: "pickscore".to_owned(),
            bytes: 3_944_000_000,
            problem: problem.map(str::to_owned),
            is_of_host: false,
        };
        let rewards = [reward(None), reward(Some("no tokenizer"))];
        let problem = "`rewards[0]`: no tokenizer";
        let besides = "reward `pickscore` takes 3.94 GB of each worker's memory besides";
        assert_eq!(reward_notes(&rewards, true), [problem]);
        assert_eq!(reward_notes(&rewards, false), [besides, problem]);
    }

    #[test]
    fn evaluations_that_see_the_same_weights_twice_are_said() {
        let (home, mut args) = home("echo '[]'");
        let rare = |every: u32| {
            let settings = ["model.path=./no/model", "ema.interval=8", "training.updates_per_iteration=2"];
            let settings = settings.map(str::to_owned).into_iter();
            args.settings = settings.chain([format!("evaluation.every={every}")]).collect();
            let (_, notes) = plan(&args, &Hub::at("no/cache"), home.path()).expect("planned");
            notes.iter().any(|note| note.contains("see the same weights twice"))
        };
        assert_eq!([3, 4].map(rare), [true, false]);
    }

    #[test]
    fn a_judge_is_said_to_leave_the_last_bit_open() {
        let (home, mut args) = home("echo '[]'");
        let text = fs::read_to_string(&args.file).expect("readable");
        fs::write(&args.file, text.replace("name = \"geneval\"", "name = \"unifiedreward\""))
            .expect("written");
        args.settings = vec!["model.path=./no/model".to_owned()];
        let (_, notes) = plan(&args, &Hub::at("no/cache"), home.path()).expect("planned");
        let note = notes.last().expect("a note");
        assert!(
            note.starts_with("reward `unifiedreward` is a language model") && note.contains("last bit"),
            "{notes:?}"
        );
    }

    #[test]
    fn who_sits_on_which_card_is_planned() {
        let mut config = config::preset("dgx-geneval-sd3-pr").expect("a preset").config;
        config.resources.workers = 2;
        let card =
            |uuid: &str| Card { uuid: uuid.to_owned(), name: "NVIDIA H200".to_owned(), ..Card::default() };
        let text = |list: Option<&str>, cards: &[Card]| {
            let variable = |name: &str| list.filter(|_| name == "CUDA_VISIBLE_DEVICES").map(str::to_owned);
            seats_text(&Places::of(&config, variable, Inventory::new(cards.to_vec(), None)))
        };
        let cards = [card("GPU-a"), card("GPU-b")];
        let expected = [
            "cards of this machine",
            "  learner      card 0 (NVIDIA H200)",
            "  worker-0     card 1 (NVIDIA H200)",
            "  worker-1     card 0 (NVIDIA H200)",
        ];
        assert_eq!(text(None, &cards).lines().collect::<Vec<_>>(), expected);
        assert!(text(Some(""), &cards).contains("lists no card"));
        assert!(text(None, &[]).contains("none is known"));
    }

    #[test]
    fn a_worker_of_another_build_is_told() {
        let (home, args) = home("echo '{}'");
        let error = plan(&args, &Hub::at("no/cache"), home.path()).expect_err("no inspection").to_string();
        assert!(error.contains("build both programs together"), "{error}");
    }

    #[test]
    fn a_missing_worker_is_named() {
        let (_home, args) = home("");
        let nowhere = PathBuf::from("/no/programs");
        let error = plan(&args, &Hub::at("no/cache"), &nowhere).expect_err("missing").to_string();
        assert!(error.contains("/no/programs/rollout-worker"), "{error}");
    }
}
