//! SIGTERM, SIGINT, SIGUSR1 and SIGHUP ask a process to finish cleanly; a second one means at once.
//!
//! SIGHUP comes when a terminal closes or a line drops, often twice (from the shell and from the system), and never from
//! somebody in a hurry: it counts only where nothing came before.

use crate::{ServiceError, exit_code};
use tokio::signal::unix::{Signal, SignalKind, signal};
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
    let hang_up = SignalKind::hangup();
    let mut hang_up = if is_ignored(hang_up) { None } else { Some(listen(hang_up)?) };
    let (sender, receiver) = watch::channel(0);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                Some(()) = terminate.recv() => {}
                Some(()) = interrupt.recv() => {}
                Some(()) = user.recv() => {}
                () = received(&mut hang_up) => {
                    sender.send_if_modified(|count| std::mem::replace(count, (*count).max(1)) == 0);
                    continue;
                }
                () = sender.closed() => return,
                else => return,
            }
            sender.send_modify(|count| *count += 1);
        }
    });
    Ok(receiver)
}

/// Waits for a signal; for ever where none is listened to.
async fn received(signal: &mut Option<Signal>) {
    let outcome = match signal {
        Some(signal) => signal.recv().await,
        None => None,
    };
    if outcome.is_none() {
        std::future::pending().await
    }
}

/// Whether this process was started with a signal ignored, as `nohup` does, which then stays so.
fn is_ignored(signal: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    is_in_mask(&status, signal.as_raw_value())
}

/// Looks up a signal in the mask of ignored ones in `/proc/PID/status`: hexadecimal, signal 1 in the lowest bit.
fn is_in_mask(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
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
    use std::time::Duration;

    /// Waits until a number of signals was counted.
    async fn counted(count: &mut watch::Receiver<u32>, expected: u32) {
        let wait = tokio::time::timeout(Duration::from_secs(120), count.wait_for(|count| *count >= expected));
        assert_eq!(*wait.await.expect("counted in time").expect("signals are listened to"), expected);
    }

    /// One test, since signals reach every test of this process. Tests that `nohup` started hear of no closed terminal.
    #[tokio::test]
    async fn each_signal_is_counted_but_a_terminal_that_closes_only_first_and_once() {
        let first = if is_ignored(SignalKind::hangup()) { Signal::SIGUSR1 } else { Signal::SIGHUP };
        let mut count = signal_count().expect("handlers");
        raise(first).expect("raised");
        counted(&mut count, 1).await;
        raise(Signal::SIGHUP).expect("raised");
        raise(Signal::SIGUSR1).expect("raised");
        counted(&mut count, 2).await;
        raise(Signal::SIGTERM).expect("raised");
        counted(&mut count, 3).await;
    }

    #[test]
    fn what_nohup_ignores_stays_ignored() {
        let status = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t0000000180014006\n";
        let hang_up = SignalKind::hangup().as_raw_value();
        assert!(is_in_mask(status, hang_up) && !is_in_mask(status, SignalKind::terminate().as_raw_value()));
        assert!(!is_in_mask("", hang_up));
    }
}
