//! What training moves: an adapter's factors, or all parameters of the network.
//!
//! The optimizer works on float32 *masters*. An adapter's factors are such, whatever the network's element type, and so
//! are the parameters of a float32 network. A network in half precision computes from its own tensors instead: after each
//! backward pass their gradients are added to the masters', and after each update they become the masters' rounded values.
//!
//! Parameters have the names of [`Network::parameters`], where modules that are evaluated together share a tensor: what
//! is trained, saved and sent to workers is the same list in all places. Only what is exported has a checkpoint's names.

use config::{AdapterMethod, RunConfig};
use flow::host_copy;
use models::adapter_file::SavedAdapter;
use models::{ModelError, Network};
use noise::standard_normal;
use run_setup::{adapter_key, lora_config};
use tch::{Kind, Tensor, no_grad};

/// Tensors by name.
pub type NamedTensors = Vec<(String, Tensor)>;

/// The tensors that training moves.
pub struct TrainedTensors {
    method: AdapterMethod,
    masters: NamedTensors,
    /// The network's own tensors in the order of the masters; none if the masters are what it computes from.
    rounded: Vec<Tensor>,
}

/// What stood in the place of an earlier version.
#[must_use = "the network computes from an earlier version until it is restored"]
pub struct Replaced {
    kept: Vec<Tensor>,
}

impl TrainedTensors {
    /// Makes a network trainable as the config says: with an adapter, which is fresh and changes nothing yet unless the
    /// config names one to go on from, or in all its parameters.
    ///
    /// # Errors
    /// If the adapter does not suit the network, or the one to go on from is not as the config says.
    pub fn new(network: &mut dyn Network, config: &RunConfig) -> Result<Self, ModelError> {
        let method = config.adapter.method;
        let (masters, rounded) = match method {
            AdapterMethod::Lora => {
                let start = starting_adapter(network, config)?;
                network.attach_adapter(&lora_config(&config.adapter), &mut |name, len| {
                    standard_normal(&adapter_key(config.run.seed, name), len)
                })?;
                if let Some(start) = start {
                    network.load_adapter(&start.tensors)?;
                }
                (network.adapter_parameters(), Vec::new())
            }
            AdapterMethod::Full => masters_of(network.parameters()),
        };
        let trained = Self { method, masters, rounded };
        trained.define_gradients();
        Ok(trained)
    }

    /// The float32 leaves that the optimizer moves.
    pub fn masters(&self) -> &[(String, Tensor)] {
        &self.masters
    }

    /// Adds what a backward pass left at the network's own tensors to the gradients of the masters.
    pub fn collect_gradients(&self) {
        for ((_, master), own) in self.masters.iter().zip(&self.rounded) {
            let _ = master.grad().g_add_(&own.grad().to_kind(Kind::Float));
            own.shallow_clone().zero_grad();
        }
    }

    /// Lets the network compute from the masters as they are now.
    pub fn refresh(&self, network: &mut dyn Network) {
        no_grad(|| {
            for ((_, master), own) in self.masters.iter().zip(&self.rounded) {
                own.shallow_clone().copy_(master);
            }
        });
        network.refresh_adapter();
    }

    /// Copies values into the masters, all or none, and refreshes.
    ///
    /// # Errors
    /// If a name is missing, unexpected or of another shape.
    pub fn load(&self, network: &mut dyn Network, values: &[(String, Tensor)]) -> Result<(), ModelError> {
        models::network::copy_values(&self.masters, values)?;
        self.refresh(network);
        Ok(())
    }

    /// Masters or their average as workers get them: in the element type that the network computes from, as copies
    /// in the host's memory.
    pub fn for_workers(&self, tensors: &[(String, Tensor)]) -> NamedTensors {
        let kind = self.rounded.first().map_or(Kind::Float, Tensor::kind);
        let rounded = |tensor: &Tensor| host_copy(&tensor.detach().to_kind(kind));
        tensors.iter().map(|(name, tensor)| (name.clone(), rounded(tensor))).collect()
    }

    /// Lets the network compute from an earlier version, as [`Self::for_workers`] made it, until [`Self::restore`] with what
    /// this returns. Gradients gathered so far stay.
    ///
    /// # Errors
    /// If a name is missing, unexpected or of another shape; nothing is changed then.
    pub fn replace(
        &self,
        network: &mut dyn Network,
        version: &[(String, Tensor)],
    ) -> Result<Replaced, ModelError> {
        // A half-precision network is restored from its masters, all others from copies.
        let kept: Vec<Tensor> = match self.rounded.is_empty() {
            true => self.masters.iter().map(|(_, master)| master.detach().copy()).collect(),
            false => Vec::new(),
        };
        models::network::copy_values(&self.computed_from(), version)?;
        network.refresh_adapter();
        Ok(Replaced { kept })
    }

    /// Ends what [`Self::replace`] began: the network computes from the masters again, to the last bit.
    pub fn restore(&self, network: &mut dyn Network, replaced: Replaced) {
        no_grad(|| {
            for ((_, master), kept) in self.masters.iter().zip(&replaced.kept) {
                master.shallow_clone().copy_(kept);
            }
        });
        self.refresh(network);
    }

    /// The tensors that the network computes from, by the names of the masters.
    fn computed_from(&self) -> NamedTensors {
        let own = |((name, master), own): ((&String, &Tensor), Option<&Tensor>)| {
            (name.clone(), own.unwrap_or(master).shallow_clone())
        };
        let masters = self.masters.iter().map(|(name, master)| (name, master));
        let rounded = self.rounded.iter().map(Some).chain(std::iter::repeat(None));
        masters.zip(rounded).map(own).collect()
    }

    /// What `look` makes of the network while its parameters have other values.
    ///
    /// # Errors
    /// If a name is missing, unexpected or of another shape; nothing is changed then.
    pub fn with_values<T>(
        network: &mut dyn Network,
        values: &[(String, Tensor)],
        look: impl FnOnce(&dyn Network) -> T,
    ) -> Result<T, ModelError> {
        let own = network.parameters().into_iter().map(|(name, tensor)| (name, tensor.detach().copy()));
        let own: NamedTensors = own.collect();
        network.load_parameters(values)?;
        let seen = look(network);
        network.load_parameters(&own)?;
        Ok(seen)
    }

    /// How the file of the masters is called in a checkpoint.
    pub fn file_name(&self) -> &'static str {
        match self.method {
            AdapterMethod::Lora => "adapter.safetensors",
            AdapterMethod::Full => "transformer.safetensors",
        }
    }

    /// Zero is a gradient too: an update in which nothing was learned decays moments and weights like any other, also
    /// right after a resume.
    fn define_gradients(&self) {
        let masters = self.masters.iter().map(|(_, master)| master);
        masters.chain(&self.rounded).for_each(|tensor| (tensor * 0.0).sum(Kind::Float).backward());
    }
}

/// The adapter that training goes on from, if the config names one.
fn starting_adapter(network: &dyn Network, config: &RunConfig) -> Result<Option<SavedAdapter>, ModelError> {
    let path = &config.adapter.start_from;
    if path.as_os_str().is_empty() {
        return Ok(None);
    }
    let saved = SavedAdapter::to_go_on_from(path, &lora_config(&config.adapter), network)?;
    for part in &saved.left_out {
        tracing::warn!("{}: {part} are left out; only the transformer is trained", path.display());
    }
    Ok(Some(saved))
}

/// Float32 leaves of a network's parameters, and the parameters themselves where they are in another element type.
fn masters_of(parameters: NamedTensors) -> (NamedTensors, Vec<Tensor>) {
    let leaf = |tensor: &Tensor| tensor.set_requires_grad(true);
    if parameters.iter().all(|(_, parameter)| parameter.kind() == Kind::Float) {
        return (parameters.iter().map(|(name, tensor)| (name.clone(), leaf(tensor))).collect(), Vec::new());
    }
    let masters = parameters
        .iter()
        .map(|(name, tensor)| (name.clone(), leaf(&tensor.detach().to_dtype(Kind::Float, false, true))));
    (masters.collect(), parameters.iter().map(|(_, tensor)| leaf(tensor)).collect())
}
