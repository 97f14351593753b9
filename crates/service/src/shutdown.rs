//! SIGTERM, SIGINT and SIGUSR1 ask a process to finish cleanly; a second one means at once.

use crate::{ServiceError, exit_code};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Counts the signals received so far, from 0.
///
/// # Errors
/// If the handlers cannot be installed.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn signal_count() -> Result<watch::Receiver<u32>, ServiceError> {
    let listen = |kind| signal(kind).map_err(|source| ServiceError::Signals { source });
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut user = listen(SignalKind::user_defined1())?;
    let (sender, receiver) = watch::channel(0);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                Some(()) = terminate.recv() => {}
                Some(()) = interrupt.recv() => {}
                Some(()) = user.recv() => {}
                () = sender.closed() => return,
                else => return,
            }
            sender.send_modify(|count| *count += 1);
        }
    });
    Ok(receiver)
}

/// A token that the first signal cancels; the second ends the process with [`exit_code::RETRY`].
///
/// # Errors
/// If the handlers cannot be installed.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn on_signals() -> Result<CancellationToken, ServiceError> {
    let mut count = signal_count()?;
    let token = CancellationToken::new();
    let canceled = token.clone();
    tokio::spawn(async move {
        while count.changed().await.is_ok() {
            if *count.borrow() > 1 {
                tracing::warn!("second signal, leaving at once");
                std::process::exit(exit_code::RETRY.into());
            }
            tracing::info!("signal received, finishing what is in flight");
            canceled.cancel();
        }
    });
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::{Signal, raise};

    #[tokio::test]
    async fn each_signal_is_counted() {
        let mut count = signal_count().expect("handlers");
        raise(Signal::SIGUSR1).expect("raised");
        count.wait_for(|count| *count == 1).await.expect("counted");
        raise(Signal::SIGTERM).expect("raised");
        count.wait_for(|count| *count == 2).await.expect("counted");
    }
}
