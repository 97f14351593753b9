//! What the files of a run tell of it so far: `metrics.jsonl` and `evaluations.jsonl`, which the learner writes.

use crate::results::HeldOutReward;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use service::RunDirectory;
use std::path::Path;

/// An iteration, as far as it matters here.
#[derive(Clone, Debug, Deserialize)]
struct IterationRow {
    iteration: u32,
    cost: IterationCost,
    time: IterationTime,
}

#[derive(Clone, Debug, Deserialize)]
struct IterationCost {
    network_evaluations: u64,
}

#[derive(Clone, Debug, Deserialize)]
struct IterationTime {
    iteration: f64,
}

/// An evaluation, as far as it matters here.
#[derive(Clone, Debug, Deserialize)]
struct EvaluationRow {
    version: u32,
    reward: f64,
    standard_error: f64,
    network_evaluations: u64,
    /// Since the start of the run.
    seconds: f64,
}

/// What a run has recorded.
#[derive(Clone, Debug, Default)]
pub struct History {
    iterations: Vec<IterationRow>,
    evaluations: Vec<EvaluationRow>,
    tests: Vec<EvaluationRow>,
}

impl History {
    /// Reads what is there; a file that is not there yet has no rows, and a row that is being written is not there yet.
    pub fn read(run: &RunDirectory) -> Self {
        Self::of_texts([run.metrics(), run.evaluations(), run.tests()].map(|path| text_of(&path)))
    }

    /// The same of what metrics, evaluations and tests hold; lines that are no rows are left out.
    pub fn of_texts([metrics, evaluations, tests]: [String; 3]) -> Self {
        Self { iterations: rows_of(&metrics), evaluations: rows_of(&evaluations), tests: rows_of(&tests) }
    }

    /// The held-out rewards so far, in the order of versions.
    pub fn held_out(&self) -> Vec<HeldOutReward> {
        let held_out = |row: &EvaluationRow| HeldOutReward {
            version: row.version,
            reward: row.reward,
            standard_error: row.standard_error,
        };
        self.evaluations.iter().map(held_out).collect()
    }

    /// Network evaluations per second of the run as a whole: from its first evaluation to its newest, or of its iterations
    /// alone where there are not two evaluations yet. `None` before there is an iteration.
    pub fn evaluations_per_second(&self) -> Option<f64> {
        let (evaluations, seconds) = self.between_evaluations().unwrap_or_else(|| {
            let seconds = self.iterations.iter().map(|row| row.time.iteration).sum();
            (sum(self.iterations.iter().map(|row| row.cost.network_evaluations)), seconds)
        });
        (evaluations > 0 && seconds > 0.0).then(|| evaluations as f64 / seconds)
    }

    /// Network evaluations and seconds after the first evaluation, up to the newest.
    fn between_evaluations(&self) -> Option<(u64, f64)> {
        let (first, later) = self.evaluations.split_first()?;
        let newest = later.last()?;
        let sampled =
            self.iterations.iter().filter(|row| (first.version..newest.version).contains(&row.iteration));
        let sampling = sum(sampled.map(|row| row.cost.network_evaluations));
        // Test images of the first version are drawn after it was evaluated.
        let is_between = |row: &&EvaluationRow| first.seconds < row.seconds && row.seconds <= newest.seconds;
        let held_out = later.iter().chain(self.tests.iter().filter(is_between));
        let evaluating = sum(held_out.map(|row| row.network_evaluations));
        Some((sampling.saturating_add(evaluating), newest.seconds - first.seconds))
    }
}

/// The sum, or the largest number: a damaged row may claim any.
fn sum(numbers: impl Iterator<Item = u64>) -> u64 {
    numbers.fold(0, u64::saturating_add)
}

fn text_of(path: &Path) -> String {
    let bytes = config::read_whole(path, config::MOST_RECORD_BYTES).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn rows_of<T: DeserializeOwned>(text: &str) -> Vec<T> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn history(metrics: &str, evaluations: &str) -> History {
        let home = tempfile::tempdir().expect("a directory");
        let run = RunDirectory::new(home.path());
        fs::write(run.metrics(), metrics).expect("written");
        fs::write(run.evaluations(), evaluations).expect("written");
        History::read(&run)
    }

    fn iteration(iteration: u32) -> String {
        format!(
            "{{\"iteration\": {iteration}, \"cost\": {{\"network_evaluations\": 100}}, \"time\": {{\"iteration\": 4.0}}}}\n"
        )
    }

    fn evaluation(version: u32, seconds: f64) -> String {
        format!(
            "{{\"version\": {version}, \"reward\": 0.5, \"standard_error\": 0.1, \"network_evaluations\": 60, \
             \"seconds\": {seconds}}}\n"
        )
    }

    #[test]
    fn a_rate_is_that_between_evaluations_or_of_iterations_where_there_are_none() {
        assert_eq!(history("", "").evaluations_per_second(), None);
        let metrics: String = (0..5).map(iteration).collect();
        assert_eq!(history(&metrics, &evaluation(0, 3.0)).evaluations_per_second(), Some(25.0));
        // Iterations 0 to 3 and the second evaluation, in 23 seconds.
        let evaluations = evaluation(0, 3.0) + &evaluation(4, 26.0);
        assert_eq!(history(&metrics, &evaluations).evaluations_per_second(), Some(460.0 / 23.0));
        let tested =
            |seconds| History { tests: rows_of(&evaluation(0, seconds)), ..history(&metrics, &evaluations) };
        assert_eq!(tested(5.0).evaluations_per_second(), Some(520.0 / 23.0));
        assert_eq!(tested(30.0).evaluations_per_second(), Some(460.0 / 23.0), "after the newest evaluation");
    }

    #[test]
    fn counts_that_add_up_to_more_than_there_are_numbers_have_a_rate() {
        let row = iteration(0).replace("100", &u64::MAX.to_string());
        let rate = history(&row.repeat(2), "").evaluations_per_second();
        assert_eq!(rate, Some(u64::MAX as f64 / 8.0));
        let evaluations = evaluation(0, 3.0) + &evaluation(4, 26.0);
        assert_eq!(history(&row, &evaluations).evaluations_per_second(), Some(u64::MAX as f64 / 23.0));
    }

    #[test]
    fn held_out_rewards_are_all_that_are_written_whole() {
        let evaluations = evaluation(0, 3.0) + &evaluation(4, 26.0) + "{\"version\": 8, \"rew";
        let held_out = history("", &evaluations).held_out();
        assert_eq!(held_out.iter().map(|row| row.version).collect::<Vec<_>>(), [0, 4]);
        assert_eq!((held_out[0].reward, held_out[0].standard_error), (0.5, 0.1));
    }
}
