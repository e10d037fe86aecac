//! This node's data parted from the cluster's history: pg_rewind takes it back to where they parted.

use crate::duties::done::Done;
use crate::duties::follow::{self, unless_nostream};
use crate::duties::source;
use crate::duties::start::start;
use crate::duties::word;
use crate::ground::program;
use crate::node::Node;
use crate::node::recovery;
use crate::postgres::postmaster::StopMode;
use crate::postgres::rewind::{self, Rewound};
use anyhow::Result;
use cluster::member::MemberState;
use cluster::upstream::Upstream;
use cluster::view::ClusterView;

/// Rewinds to the history of this source and starts the server as a standby.
pub async fn rewind(node: &Node, view: &ClusterView, from: &Upstream) -> Result<Done> {
    let config = &node.config;
    let conninfo = source::conninfo(node, view, from, config.postgres.authentication.for_rewind(), Some(&config.postgres.database))?;
    // A member of a standby cluster is wound back to the other cluster's history, and follows its own leader again.
    let upstream = unless_nostream(
        node,
        match view.leader.as_ref().filter(|leader| leader.name != config.name) {
            Some(leader) => Upstream::Member(leader.name.clone()),
            None => from.clone(),
        },
    );
    let role = node.standby_role(view);
    node.speak(MemberState::Stopping, role.clone());
    node.stop(StopMode::Fast).await?;
    node.clear_orphans().await?;
    program::end_leftovers(&config.postgres.data_dir).await?;
    node.speak(MemberState::Stopped, role);
    word::take_back(node, view).await?;
    let recovery = follow::settings(node, view, &upstream);
    node.write_configuration(view, &recovery).await?;
    tracing::info!("rewinding to the history of {from} ({})", source::address(&conninfo));
    let options = rewind::Options { user: &config.postgres.rewind, restore_target_wal: recovery::restores(config, &recovery) };
    match rewind::rewind(&node.programs, &config.postgres.data_dir, &config.postgres.files().main(), &conninfo, options).await? {
        Rewound::Done => {
            node.note_rewind(None);
            tracing::info!("rewound");
            node.remote.forget();
            start(node, view, &recovery).await
        }
        Rewound::DiskFailed { why } => {
            let again = node.note_disk_failed(&why);
            tracing::error!("the rewind failed as a disk does: {why}; tried again in {} s", again.as_secs());
            Ok(Done::LookAgain)
        }
        Rewound::NotPossible { why, .. } => {
            tracing::error!("pg_rewind failed: {why}");
            node.note_rewind(Some(why));
            Ok(Done::LookAgain)
        }
    }
}
