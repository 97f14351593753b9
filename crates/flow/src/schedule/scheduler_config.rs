//! `scheduler_config.json` of a diffusers pipeline, with the meaning that `FlowMatchEulerDiscreteScheduler` gives it.
//!
//! A key is honoured or refused by name. Keys that the scheduler does not know mean nothing to it, and nothing here; one
//! that a pipeline looks for, `use_flow_sigmas`, is that pipeline's. `null` is what it is in Python: false for a switch,
//! no stretch for `shift_terminal`, and nothing to calculate with where a number is needed.

use serde_json::{Map, Value};

use crate::FlowError;

const CLASS: &str = "FlowMatchEulerDiscreteScheduler";
/// Switches that may only be off, and whether null turns them off: the scheduler adds up those where it does not.
const UNSUPPORTED: [(&str, bool); 5] = [
    ("invert_sigmas", true),
    ("stochastic_sampling", true),
    ("use_karras_sigmas", false),
    ("use_exponential_sigmas", false),
    ("use_beta_sigmas", false),
];

/// How a pipeline's scheduler bends noise levels; what a bend does not look at has its default.
#[derive(Debug, Clone, PartialEq)]
pub struct SchedulerConfig {
    /// Length of the training grid; a time step is `σ` times this.
    pub num_train_timesteps: usize,
    /// Factor of the static shift.
    pub shift: f64,
    /// Whether the shift depends on the number of image tokens.
    pub use_dynamic_shifting: bool,
    /// `μ` at `base_image_seq_len` tokens.
    pub base_shift: f64,
    /// `μ` at `max_image_seq_len` tokens.
    pub max_shift: f64,
    /// Number of tokens at which `μ` is `base_shift`.
    pub base_image_seq_len: f64,
    /// Number of tokens at which `μ` is `max_shift`.
    pub max_image_seq_len: f64,
    /// The last noise level before 0, if the schedule is to be stretched to it.
    pub shift_terminal: Option<f64>,
    /// Form of the dynamic shift.
    pub time_shift_type: TimeShift,
}

/// Form of the dynamic shift.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeShift {
    /// `e^μ / (e^μ + 1/u − 1)`.
    Exponential,
    /// `μ / (μ + 1/u − 1)`.
    Linear,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            shift: 1.0,
            use_dynamic_shifting: false,
            base_shift: 0.5,
            max_shift: 1.15,
            base_image_seq_len: 256.0,
            max_image_seq_len: 4096.0,
            shift_terminal: None,
            time_shift_type: TimeShift::Exponential,
        }
    }
}

impl SchedulerConfig {
    /// Reads the contents of the file; keys that are not there have the scheduler's defaults.
    ///
    /// # Errors
    /// If it is no JSON object, or the first key that is unsupported or cannot be used.
    pub fn read(json: &Value) -> Result<Self, FlowError> {
        let Some(object) = json.as_object() else {
            return Err(refused("scheduler_config.json", json, "it must be a JSON object"));
        };
        let keys = Keys(object);
        keys.refuse_unsupported()?;
        let is_dynamic = keys.switch("use_dynamic_shifting", true)?;
        let default = Self::default();
        let config = Self {
            num_train_timesteps: keys.num_train_timesteps(default.num_train_timesteps)?,
            shift: keys.number("shift", default.shift, !is_dynamic)?,
            use_dynamic_shifting: is_dynamic,
            base_shift: keys.number("base_shift", default.base_shift, is_dynamic)?,
            max_shift: keys.number("max_shift", default.max_shift, is_dynamic)?,
            base_image_seq_len: keys.number("base_image_seq_len", default.base_image_seq_len, is_dynamic)?,
            max_image_seq_len: keys.number("max_image_seq_len", default.max_image_seq_len, is_dynamic)?,
            shift_terminal: keys.shift_terminal()?,
            time_shift_type: keys.time_shift_type()?,
        };
        match is_dynamic {
            true if config.base_image_seq_len == config.max_image_seq_len => {
                let length = config.max_image_seq_len.into();
                Err(refused("max_image_seq_len", &length, "make it differ from `base_image_seq_len`"))
            }
            false if config.shift <= 0.0 => {
                Err(refused("shift", &config.shift.into(), "use a positive number"))
            }
            _ => Ok(config),
        }
    }
}

/// The keys of a file by name.
struct Keys<'a>(&'a Map<String, Value>);

impl Keys<'_> {
    fn refuse_unsupported(&self) -> Result<(), FlowError> {
        match self.0.get("_class_name") {
            None => {}
            Some(Value::String(class)) if class == CLASS => {}
            Some(other) => {
                let remedy = "use a pipeline with a FlowMatchEulerDiscreteScheduler";
                return Err(refused("_class_name", other, remedy));
            }
        }
        for (key, null_is_off) in UNSUPPORTED {
            if self.switch(key, null_is_off)? {
                return Err(refused(key, &Value::Bool(true), "set it to false"));
            }
        }
        Ok(())
    }

    fn switch(&self, key: &'static str, null_is_off: bool) -> Result<bool, FlowError> {
        match self.0.get(key) {
            None => Ok(false),
            Some(Value::Bool(on)) => Ok(*on),
            Some(Value::Null) if null_is_off => Ok(false),
            Some(other) => Err(refused(key, other, "write true or false")),
        }
    }

    fn number(&self, key: &'static str, default: f64, is_needed: bool) -> Result<f64, FlowError> {
        match self.0.get(key) {
            None => Ok(default),
            Some(Value::Null) if !is_needed => Ok(default),
            Some(value) => value.as_f64().ok_or_else(|| refused(key, value, "write a number")),
        }
    }

    fn num_train_timesteps(&self, default: usize) -> Result<usize, FlowError> {
        let Some(value) = self.0.get("num_train_timesteps") else { return Ok(default) };
        let whole = value.as_u64().filter(|steps| *steps >= 2).and_then(|steps| usize::try_from(steps).ok());
        whole.ok_or_else(|| refused("num_train_timesteps", value, "write a whole number of at least 2"))
    }

    /// Zero means "no stretch" to the scheduler, like null.
    fn shift_terminal(&self) -> Result<Option<f64>, FlowError> {
        let terminal = self.number("shift_terminal", 0.0, false)?;
        match (0.0..1.0).contains(&terminal) {
            true => Ok(Some(terminal).filter(|terminal| *terminal > 0.0)),
            false => Err(refused("shift_terminal", &terminal.into(), "use a number in [0, 1) or null")),
        }
    }

    fn time_shift_type(&self) -> Result<TimeShift, FlowError> {
        match self.0.get("time_shift_type") {
            None => Ok(TimeShift::Exponential),
            Some(Value::String(form)) if form == "exponential" => Ok(TimeShift::Exponential),
            Some(Value::String(form)) if form == "linear" => Ok(TimeShift::Linear),
            Some(other) => Err(refused("time_shift_type", other, "write \"exponential\" or \"linear\"")),
        }
    }
}

fn refused(setting: &'static str, value: &Value, remedy: &'static str) -> FlowError {
    FlowError::Scheduler { setting, value: value.to_string(), remedy }
}
