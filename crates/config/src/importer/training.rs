//! How they update the policy, as ours: the optimizer, the objective and the moving average.

use super::sections::Translation;
use crate::KlDenominator;

impl Translation {
    pub(super) fn optimizer(&mut self) {
        self.config.training.learning_rate =
            self.carried_number("train.learning_rate", 1e-5, "training.learning_rate");
        let betas = self.document.get("train.adam_betas").is_some();
        let (beta1, beta2) = match betas {
            true => self.document.pair("train.adam_betas", 0.9),
            false => (0.9, 0.999),
        };
        (self.config.training.adam_beta1, self.config.training.adam_beta2) = (beta1, beta2);
        self.translated("train.adam_betas", "training.adam_beta1", "and training.adam_beta2");
        self.config.training.adam_epsilon =
            self.carried_number("train.adam_epsilon", 1e-8, "training.adam_epsilon");
        self.config.training.weight_decay =
            self.carried_number("train.adam_weight_decay", 1e-4, "training.weight_decay");
        self.config.training.max_grad_norm =
            self.carried_number("train.max_grad_norm", 1.0, "training.max_grad_norm");
        self.config.training.updates_per_iteration =
            self.carried_count("train.gradient_step_per_epoch", 2, "training.updates_per_iteration");
        match self.document.count("train.num_inner_epochs", 1) {
            1 => self.not_carried("train.num_inner_epochs", "every sample is trained on once, as there"),
            _ => self.not_carried("train.num_inner_epochs", "every sample is trained on once"),
        }
    }

    pub(super) fn objective(&mut self) {
        self.combination();
        self.clip_range();
        self.advantage_clip();
        self.divergence();
    }

    /// A range around 1, given as its half width or as both ends.
    fn clip_range(&mut self) {
        let (low, high) = self.document.range("train.clip_range", 1e-4);
        if low == 0.0 || high == 0.0 {
            let problem = "`train.clip_range` is 0 on a side of 1; give a distance above 0 on either";
            return self.document.problems.push(problem.to_owned());
        }
        let training = &mut self.config.training;
        training.clip_range = low.abs().min(high.abs());
        if low.abs() == high.abs() {
            return self.carried("train.clip_range", "training.clip_range");
        }
        (training.clip_range_lt, training.clip_range_gt) = (low.abs(), high.abs());
        let note = "as distances from 1: training.clip_range_lt below it, training.clip_range_gt above it";
        self.translated("train.clip_range", "training.clip_range_lt", note);
    }

    /// A range around 0, given likewise.
    fn advantage_clip(&mut self) {
        let (theirs, ours) = ("train.adv_clip_range", "training.advantage_clip");
        let (low, high) = self.document.range(theirs, 5.0);
        self.config.training.advantage_clip = low.abs().min(high.abs());
        match low.abs() == high.abs() {
            true => self.carried(theirs, ours),
            false => {
                self.translated(theirs, ours, "this range is symmetric; the NARROWER side is taken for both")
            }
        }
    }

    fn divergence(&mut self) {
        let beta = self.document.number("train.kl_beta", 0.0);
        let kind = self.document.text("train.kl_type", "x-based");
        if beta > 0.0 && kind != "x-based" {
            self.not_carried(
                "train.kl_beta",
                format!("the KL here is between steps; there is no {kind} one"),
            );
            self.not_carried("train.kl_type", "the KL here is between steps; none is taken");
            return;
        }
        self.config.training.kl_beta = beta;
        self.carried("train.kl_beta", "training.kl_beta");
        if beta > 0.0 {
            self.config.training.kl_denominator = KlDenominator::Eta;
            let note = "divided by the diffusion coefficient, to which weights of this size belong";
            self.translated("train.kl_type", "training.kl_denominator", note);
        } else {
            self.not_carried("train.kl_type", "without effect, since kl_beta is 0");
        }
    }

    pub(super) fn averaging(&mut self) {
        self.config.ema.decay = self.carried_number("train.ema_decay", 0.995, "ema.decay");
        let epochs = self.document.count("train.ema_update_interval", 10);
        let updates = self.config.training.updates_per_iteration;
        self.config.ema.interval = epochs.saturating_mul(updates) as u64;
        let note = format!("theirs counts epochs, ours updates, of which there are {updates} per iteration");
        self.translated("train.ema_update_interval", "ema.interval", note);
    }
}
