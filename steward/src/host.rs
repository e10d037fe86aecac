//! What the procedures need of the process that they run in.

use cluster::name::MemberName;
use cluster::time::Moment;
use dcs::LocalDcs;
use futures_util::future::{Either, select};
use std::fmt::Arguments;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

/// How loud a sentence of the log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// For who looks for a fault.
    Debug,
    /// What happened.
    Info,
    /// What surprised us, and went on.
    Warning,
    /// What a person should look at.
    Error,
}

/// The process: its clock, its store, its log. No method may block.
pub trait Host {
    /// The cluster's store.
    type Store: LocalDcs;

    /// The cluster's store.
    fn store(&self) -> &Self::Store;
    /// This node.
    fn name(&self) -> &MemberName;
    /// CLOCK_BOOTTIME now, by which leases and promises are counted.
    fn clock(&self) -> Moment;
    /// Passes time.
    fn sleep(&self, span: Duration) -> impl Future<Output = ()>;
    /// A sentence for the log.
    fn tell(&self, tone: Tone, text: Arguments<'_>);

    /// For who looks for a fault.
    fn debug(&self, text: Arguments<'_>) {
        self.tell(Tone::Debug, text);
    }
    /// What happened.
    fn info(&self, text: Arguments<'_>) {
        self.tell(Tone::Info, text);
    }
    /// What surprised us, and went on.
    fn warn(&self, text: Arguments<'_>) {
        self.tell(Tone::Warning, text);
    }
    /// What a person should look at.
    fn error(&self, text: Arguments<'_>) {
        self.tell(Tone::Error, text);
    }
}

/// What the future gives, or None where that takes longer. What is there is taken before the time is looked at.
pub async fn within<T>(host: &impl Host, span: Duration, future: impl Future<Output = T>) -> Option<T> {
    match select(pin!(future), pin!(host.sleep(span))).await {
        Either::Left((value, _)) => Some(value),
        Either::Right(_) => None,
    }
}
