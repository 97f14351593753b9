//! Where a member of a run shows its metrics, if it was told to.

use super::{Page, serve_page};
use crate::network::{self, ListenAddress};
use crate::{Address, Membership, ServiceError};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

/// Listens for scrapers, or does not.
#[derive(Debug, Default)]
pub struct MemberMetrics {
    listener: Option<TcpListener>,
    /// What others are told, `host:port`; empty where nobody listens.
    pub address: String,
    /// Why nobody does, though it was asked for. A run goes on without numbers, so this is told and no more.
    trouble: Option<String>,
}

impl MemberMetrics {
    /// Listens at the first free port, if there is a place at all. It is told as others reach it: by `advertise`, or by the
    /// address of this host on the way to `coordinator`.
    ///
    /// # Errors
    /// If this host has no such address, or may not listen there, or the coordinator's address does not parse. That its ports
    /// are taken is a trouble.
    pub async fn open(
        place: Option<&ListenAddress>,
        advertise: &str,
        coordinator: &str,
    ) -> Result<Self, ServiceError> {
        let Some(place) = place else { return Ok(Self::default()) };
        match place.bind().await {
            Ok(listener) => {
                let coordinator = coordinator.parse::<Address>()?.number().await;
                let address = network::told_address(&listener, advertise, coordinator);
                tracing::info!("metrics at http://{address}/metrics");
                Ok(Self { listener: Some(listener), address, trouble: None })
            }
            Err(error) if error.is_taken() => {
                let trouble = format!("metrics are not shown: {error}");
                tracing::warn!("{trouble}");
                Ok(Self { trouble: Some(trouble), ..Self::default() })
            }
            Err(problem) => {
                Err(ServiceError::MetricsPlace { place: place.to_string(), problem: Box::new(problem) })
            }
        }
    }

    /// Lets the coordinator know why no metrics are shown that were asked for.
    pub fn tell_trouble(&self, membership: &Membership) {
        self.trouble.iter().for_each(|trouble| membership.troubled("metrics", trouble.clone()));
    }

    /// Shows a page, where there is a place for it, until what is returned is dropped.
    pub fn serve(&mut self, page: Arc<dyn Page>) -> Option<AbortOnDropHandle<()>> {
        self.listener.take().map(|listener| AbortOnDropHandle::new(tokio::spawn(serve_page(listener, page))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn open(place: &str) -> Result<MemberMetrics, ServiceError> {
        let place = place.parse().expect("well-formed");
        MemberMetrics::open(Some(&place), "", "http://127.0.0.1:1").await
    }

    #[tokio::test]
    async fn a_member_goes_on_without_a_port_that_is_taken_but_not_with_a_place_that_is_not_here() {
        let silent = MemberMetrics::open(None, "", "nonsense").await.expect("nothing to do");
        assert!(silent.address.is_empty() && silent.trouble.is_none());
        let first = open("127.0.0.1:0").await.expect("free");
        assert!(first.address.starts_with("127.0.0.1:") && first.trouble.is_none());
        let second = open(&first.address).await.expect("it goes on");
        let trouble = second.trouble.expect("it is told");
        assert!(trouble.contains(&format!("cannot listen at {}", first.address)), "{trouble}");
        assert!(second.address.is_empty());
        let error = open("no-such-interface:0").await.expect_err("refused");
        assert!(error.to_string().contains("`--metrics-listen no-such-interface:0`"), "{error}");
        assert_eq!(error.exit_code(), crate::exit_code::BAD_USAGE);
    }
}
