//! How long a run will take.

use crate::account::clock;
use crate::cli::PlanArgs;
use crate::config_file;
use crate::error::CoordinatorError;
use crate::history::History;
use crate::learner_half::shown_directory;
use crate::run_place::run_directory;
use crate::run_record::RunRecord;
use config::{ComputeDevice, HeldOutCounts, PromptSplit, Rate, RunConfig, TaskKind};
use protocol::with_causes;
use std::collections::BTreeMap;
use std::time::Duration;

/// A thousand years: nobody reads a longer time.
const LONGEST_SECONDS: f64 = 3.2e10;

/// How long the run will take, at the rate given or else the run's own so far.
///
/// # Errors
/// If the config cannot be read, or prompts that are there cannot.
pub fn time(args: &PlanArgs) -> Result<String, CoordinatorError> {
    let (config, _) = config_file::read_to_plan(&args.config)?;
    let counts = count_prompts(&config)?;
    let own = || Some(Rate::OfRun(history(&config)?.evaluations_per_second()?));
    let Some(rate) = args.rate.map(Rate::OfWorker).or_else(own) else {
        return Ok("time: not known without a rate; give `--rate`, the network evaluations per second that \
                   `rollout-worker sample` tells, or plan again when the run has begun\n"
            .to_owned());
    };
    let count = |split| counts.get(&split).copied().unwrap_or_default();
    let held_out = HeldOutCounts {
        evaluated: count(config.data.split_of(TaskKind::Evaluate)),
        tested: if config.data.has_validation() { count(PromptSplit::Test) } else { 0 },
    };
    Ok(time_text(&config, held_out, rate))
}

/// What the run of a config has recorded so far; of one whose learner is elsewhere, what that has sent.
fn history(config: &RunConfig) -> Option<History> {
    let directory = run_directory(config).ok()?;
    let half = RunRecord::read(&directory).ok().and_then(|record| record.learner_half);
    Some(History::read(&shown_directory(&directory, half.as_ref())))
}

/// How many prompts there are. Those that are not there yet are named by `validate`; without them, training is what takes
/// the time.
fn count_prompts(config: &RunConfig) -> Result<BTreeMap<PromptSplit, usize>, CoordinatorError> {
    let count = |split: PromptSplit| {
        let file = config::prompt_file(config.data.path(split), split);
        match file.and_then(|file| config::read_prompts(&file)) {
            Ok(prompts) => Ok((split, prompts.len())),
            Err(error) if error.is_absence() => Ok((split, 0)),
            Err(error) => {
                let problem = format!("`{}`: {}", split.key(), with_causes(&error));
                Err(CoordinatorError::Usage(problem))
            }
        }
    };
    config.data.splits().into_iter().map(count).collect()
}

fn time_text(config: &RunConfig, held_out: HeldOutCounts, rate: Rate) -> String {
    let seconds = config.run_seconds(held_out, rate).min(LONGEST_SECONDS);
    let source = match rate {
        Rate::OfRun(rate) => format!("{rate:.1} network evaluations/s, as this run has gone so far"),
        Rate::OfWorker(rate) => {
            format!(
                "{rate:.1} network evaluations/s of each worker, and of the learner; decoding and rewards come on top"
            )
        }
    };
    let without = if held_out.evaluated == 0 {
        "  (without evaluations: the held-out prompts are not there)\n"
    } else {
        ""
    };
    let hours = seconds / 3600.0;
    let spent = match config.resources.device {
        ComputeDevice::Cpu => {
            let (workers, resources) = (config.n_processes() - 1, &config.resources);
            let cores = workers * resources.worker_threads + resources.learner_threads;
            format!("{:.2} core-hours ({cores} threads)", hours * cores as f64)
        }
        ComputeDevice::Cuda => {
            let n = config.n_processes();
            format!("{:.2} GPU-hours ({n} processes with a GPU each)", hours * n as f64)
        }
        ComputeDevice::CudaAt(_) => {
            format!("{hours:.2} GPU-hours ({} processes on one GPU)", config.n_processes())
        }
    };
    let total = config.run_evaluations(held_out);
    let time = clock(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX));
    let at_least = if seconds < LONGEST_SECONDS { "" } else { "more than " };
    format!(
        "time at {source}\n  {at_least}{time} for {total:.0} network evaluations in all, {spent}\n{without}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::ConfigArgs;
    use std::fs;

    #[test]
    fn time_comes_from_a_given_rate_or_from_the_run_itself() {
        let home = tempfile::tempdir().expect("a directory");
        let file = home.path().join("run.toml");
        config_file::init("tempflow-tiny-cpu", &file).expect("written");
        fs::write(home.path().join("test.txt"), "a\nb\n").expect("written");
        let settings = [
            format!("run.directory={}", home.path().display()),
            format!("data.test={}", home.path().join("test.txt").display()),
            "run.name=a".to_owned(),
        ];
        let config = ConfigArgs { file, settings: settings.to_vec() };
        let planned = |rate| time(&PlanArgs { config: config.clone(), rate }).expect("planned");
        assert!(planned(None).contains("give `--rate`"), "{}", planned(None));
        let given = planned(Some(100.0));
        assert!(
            given.contains("100.0 network evaluations/s of each worker")
                && given.contains("core-hours (3 threads)"),
            "{given}"
        );
        fs::create_dir(home.path().join("a")).expect("created");
        let row = r#"{"iteration": 0, "cost": {"network_evaluations": 3000}, "time": {"iteration": 2.0}}"#;
        fs::write(home.path().join("a/metrics.jsonl"), format!("{row}\n")).expect("written");
        let own = planned(None);
        assert!(own.contains("1500.0 network evaluations/s, as this run has gone"), "{own}");
        let half = r#"{"host": "gpu1", "directory": "/data/half", "has_begun": true}"#;
        let record = serde_json::to_value(RunRecord::new("a")).expect("JSON");
        let mut record = record.as_object().expect("an object").clone();
        record.insert("learner_half".to_owned(), serde_json::from_str(half).expect("JSON"));
        fs::write(home.path().join("a/run.json"), serde_json::to_vec(&record).expect("JSON"))
            .expect("written");
        assert!(planned(None).contains("give `--rate`"), "what the learner has not sent is not known");
        fs::create_dir(home.path().join("a/results")).expect("created");
        fs::rename(home.path().join("a/metrics.jsonl"), home.path().join("a/results/metrics.jsonl"))
            .expect("moved");
        assert_eq!(planned(None), own);
    }

    #[test]
    fn prompts_that_are_not_there_yet_are_none_but_what_is_no_file_is_refused() {
        let home = tempfile::tempdir().expect("a directory");
        let file = home.path().join("run.toml");
        config_file::init("tempflow-tiny-cpu", &file).expect("written");
        let planned = |prompts: &str| {
            let settings = ["train", "validation", "test"].map(|list| format!("data.{list}={prompts}"));
            time(&PlanArgs {
                config: ConfigArgs { file: file.clone(), settings: settings.into() },
                rate: Some(1.0),
            })
        };
        assert!(planned("no/prompts.txt").expect("planned").contains("without evaluations"));
        let error = planned("/dev/zero").expect_err("refused");
        assert_eq!(error.exit_code(), 2);
        let told = error.to_string();
        assert!(told.contains("`data.train`: ") && told.contains("it is a device, no file"), "{told}");
    }

    #[test]
    fn a_time_that_nobody_lives_to_see_is_short_to_read() {
        let config = config::preset("dgx-geneval-sd3-pr").expect("a preset").config;
        for rate in [1e-300, 1e-6] {
            let text = time_text(&config, HeldOutCounts::default(), Rate::OfRun(rate));
            let longest = text.split_whitespace().map(str::len).max().unwrap_or_default();
            assert!(text.contains("more than ") && longest < 30, "{text}");
        }
    }

    #[test]
    fn gpu_hours_are_those_of_all_processes() {
        let mut config = config::preset("dgx-geneval-sd3-pr").expect("a preset").config;
        config.resources.workers = 7;
        let held_out = HeldOutCounts { evaluated: 100, tested: 0 };
        let total = config.run_evaluations(held_out);
        let text = time_text(&config, held_out, Rate::OfRun(total / 7200.0));
        assert!(text.contains("2:00:00 for") && text.contains("16.00 GPU-hours (8 processes"), "{text}");
        assert!(
            time_text(&config, HeldOutCounts::default(), Rate::OfWorker(1.0)).contains("without evaluations")
        );
    }
}
