//! Where what a run has written is, for who asks: in its directory, or, where its learner has a half of its own, on two hosts.

use crate::advice;
use crate::learner_half::LearnerHalf;
use serde::{Serialize, Serializer};
use service::RunDirectory;
use std::path::PathBuf;

/// The places of a run's files.
#[derive(Clone, Debug, PartialEq)]
pub struct RunFiles {
    /// On the host of its coordinator.
    pub directory: RunDirectory,
    /// The learner's, if it has one of its own.
    pub half: Option<LearnerHalf>,
}

impl RunFiles {
    /// The places by their names; those on the learner's host as `scp` writes them.
    pub fn places(&self) -> [(&'static str, String); 6] {
        let run = &self.directory;
        let here = |path: PathBuf| path.display().to_string();
        let (shown, trained) = match &self.half {
            None => (run.clone(), run.clone()),
            Some(half) => (run.results(), RunDirectory::new(&half.directory)),
        };
        let there = |path: PathBuf| match &self.half {
            None => here(path),
            Some(half) => format!("{}:{}", half.host, path.display()),
        };
        [
            ("directory", here(run.path().to_owned())),
            ("adapter", here(shown.adapter())),
            ("checkpoints", there(trained.checkpoints())),
            ("samples", there(trained.samples())),
            ("logs", here(run.logs())),
            ("tensorboard", there(trained.tensorboard())),
        ]
    }

    /// The command that shows the curves, and on which host, if not on this one.
    pub fn curves(&self) -> String {
        match &self.half {
            None => advice::tensorboard(&self.directory),
            Some(half) => {
                let command = advice::tensorboard(&RunDirectory::new(&half.directory));
                format!("{command} (on {})", half.host)
            }
        }
    }
}

/// A key for each place.
impl Serialize for RunFiles {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.places())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_learner_elsewhere_has_is_not_looked_for_here() {
        let half = |has_begun| LearnerHalf {
            host: "gpu1".to_owned(),
            directory: "/data/half".to_owned(),
            has_begun,
        };
        let files = RunFiles { directory: RunDirectory::new("/runs/demo"), half: Some(half(true)) };
        let expected = [
            "/runs/demo",
            "/runs/demo/results/adapter",
            "gpu1:/data/half/checkpoints",
            "gpu1:/data/half/samples",
            "/runs/demo/logs",
            "gpu1:/data/half/tensorboard",
        ];
        assert_eq!(files.places().map(|(_, place)| place), expected);
        assert_eq!(files.curves(), "tensorboard --logdir /data/half/tensorboard (on gpu1)");
    }
}
