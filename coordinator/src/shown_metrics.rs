//! What `up` has to do for metrics of the run: say where they are, and reckon what memory processes will hold.

use crate::display::Display;
use crate::error::CoordinatorError;
use crate::inspection::{self, Servers};
use crate::launch;
use crate::metrics::RunPage;
use crate::server::ControlPlane;
use crate::view::PlannedMemory;
use service::metrics::serve_page;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;

/// Shows metrics of the run from now on, at this place that scrapers are told.
pub fn show((listener, address): (TcpListener, String), plane: &ControlPlane, display: &Display) {
    display.say(&metrics_line(&address, listener.local_addr().ok()));
    plane.show_metrics_address(address);
    look_at_memory(plane);
    tokio::spawn(serve_page(listener, Arc::new(RunPage::new(plane.clone()))));
}

fn metrics_line(address: &str, bound: Option<SocketAddr>) -> String {
    let is_local = bound.is_none_or(|bound| bound.ip().to_canonical().is_loopback());
    let who = if is_local { "" } else { ", for whoever reaches that port" };
    format!("metrics at http://{address}/metrics{who}; who else is scraped at http://{address}/targets")
}

/// Reckons what processes will hold, beside what they are seen to hold. The rollout worker, which knows networks, takes its
/// time to say what model and rewards are, so a thread asks it; without an answer there is nothing to show.
fn look_at_memory(plane: &ControlPlane) {
    let (plane, config) = (plane.clone(), plane.read(|state| state.config().clone()));
    let look = move || -> Result<(), CoordinatorError> {
        let programs = launch::programs()?;
        let model = inspection::model(&config, &programs)?;
        let rewards = inspection::rewards(&config, &programs, Servers::default())?;
        let plan = config::memory_plan(&config, &model, &rewards);
        plane.plan_memory(PlannedMemory::of(&plan, config.resources.device));
        Ok(())
    };
    let look = move || look().unwrap_or_else(|error| tracing::warn!("memory is not planned: {error}"));
    if let Err(error) = std::thread::Builder::new().name("memory plan".to_owned()).spawn(look) {
        tracing::warn!("memory is not planned: {error}");
    }
}
