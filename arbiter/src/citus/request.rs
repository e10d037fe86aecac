//! Work for a planned change goes on for as long as somebody asks for it: the worker that asked may die, or think better of it, while statements are
//! waited for, and clients wait for that.

use super::session::Changes;
use crate::postgres::query::LocalSql;
use cluster::citus;
use dcs::{Dcs, Etcd};
use std::time::Duration;

/// Between two tries to end a statement that waits for nothing any more: it may have been between two statements.
const CANCEL_AGAIN: Duration = Duration::from_millis(100);

/// Does the work, whose statements run in the sessions of these processes. Where `over` comes about first they are cancelled until the work
/// has ended, and there is no result.
pub(super) async fn as_long_as<T>(
    sql: &LocalSql,
    backends: &[i32],
    over: impl Future<Output = ()>,
    work: impl Future<Output = T>,
) -> Option<T> {
    let mut work = std::pin::pin!(work);
    tokio::select! {
        biased;
        done = &mut work => return Some(done),
        () = over => {}
    }
    loop {
        for backend in backends.iter().filter(|backend| **backend != 0) {
            if let Err(why) = sql.run("SELECT pg_cancel_backend($1)", &[backend]).await {
                tracing::debug!("Citus: {why:#}");
            }
        }
        if tokio::time::timeout(CANCEL_AGAIN, &mut work).await.is_ok() {
            return None;
        }
    }
}

/// Returns when none of these requests, each of its group, is to be served any more.
pub(super) async fn asked_no_more(scope: &Etcd, mut changes: Changes, requests: &[(u32, i64)]) {
    loop {
        // While etcd is away nobody knows, and the work's own bounds hold.
        if let Ok(groups) = scope.load_groups().await
            && !citus::are_wanted(&groups, requests)
        {
            return;
        }
        await_change(&mut changes).await;
    }
}

/// Returns when the word that asked this group to wait counts no more, or another has taken its place.
pub(super) async fn gate_gone(own: &Etcd, mut changes: Changes, word: i64) {
    loop {
        if let Ok(view) = own.load_view().await
            && citus::gate_wanted(&view).is_none_or(|(now, _)| now != word)
        {
            return;
        }
        await_change(&mut changes).await;
    }
}

async fn await_change(changes: &mut Changes) {
    if changes.changed().await.is_err() {
        std::future::pending().await
    }
}
