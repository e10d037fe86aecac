//! Data that are to recover to the leader's timeline: whether that timeline comes out of them, and what they need to find it instead of one that
//! was left.

use crate::duties::source;
use crate::node::Node;
use crate::postgres::conf::Recovery;
use crate::postgres::{archive, controldata, missing_wal, read_if_there, segments, timelines};
use anyhow::{Context, Result};
use cluster::history::History;
use cluster::leader::Leader;
use cluster::lsn::Lsn;
use cluster::name::Timeline;
use cluster::rejoin;
use cluster::restore::{Place, may_become_a_member};
use cluster::upstream::Upstream;
use cluster::view::ClusterView;
use serde::Deserialize;
use std::path::Path;

/// Whom this node follows and by which history, once both are known.
fn told<'a>(node: &Node, view: &'a ClusterView) -> Option<(&'a Leader, &'a History)> {
    let leader = view.leader.as_ref().filter(|leader| leader.name != node.config.name && !view.is_standby_cluster())?;
    rejoin::leader_timeline(view, &leader.name).ok()?;
    Some((leader, view.history()))
}

/// What a method made from a backup may become a member, and finds its way to the leader's timeline.
pub async fn judge(node: &Node, view: &ClusterView, recovery: &Recovery) -> Result<()> {
    let Some((leader, history)) = told(node, view) else { return Ok(()) };
    let data_dir = &node.config.postgres.data_dir;
    let control = controldata::read(&node.programs, data_dir).await?;
    let mut places = reached(&control);
    if let Some(label) = Label::read(data_dir).await? {
        places.extend(label.places());
        if let Some(end) = label.end(node, recovery, control.segment_bytes).await? {
            places.push(end);
        }
    }
    may_become_a_member(history, &places)?;
    lead_on(node, view, leader, history, Else::TheArchive).await
}

/// Before a standby starts. What can't be had now may come otherwise: the server starts without it.
pub async fn prepare(node: &Node, view: &ClusterView) {
    let Some((leader, history)) = told(node, view) else { return };
    let prepared = async {
        let control = controldata::read(&node.programs, &node.config.postgres.data_dir).await?;
        // Data that have left the history are wound back, and started as they are where that can't be.
        if may_become_a_member(history, &reached(&control)).is_ok() {
            lead_on(node, view, leader, history, Else::AsItIs).await?;
        }
        anyhow::Ok(())
    };
    if let Err(why) = prepared.await {
        tracing::warn!("prepare the way to the leader's timeline: {why:#}");
    }
}

/// Whether what the leader has removed is looked for in the archive.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Else {
    /// It is: nothing else is here.
    TheArchive,
    /// WAL of the timeline before may be here and go on past its end, so nothing is changed.
    AsItIs,
}

/// The first segment of every timeline on the way to the leader's, and the histories up to it. Recovery takes the newest timeline's file of a
/// place: without that first segment it goes on with the one of the timeline before, from here or from the archive, past the end of that.
async fn lead_on(node: &Node, view: &ClusterView, leader: &Leader, history: &History, otherwise: Else) -> Result<()> {
    let config = &node.config;
    let data_dir = &config.postgres.data_dir;
    let Some(files) = history.files() else { return Ok(()) };
    let control = controldata::read(&node.programs, data_dir).await?;
    // A backup recovers from its own begin on, whatever pg_control has seen since.
    let (timeline, redo) = match Label::read(data_dir).await? {
        Some(label) => (label.timeline, label.begin),
        None => (control.timeline, control.redo),
    };
    let begin = history.begin_after(timeline, redo);
    if !begin.is_empty() {
        let upstream = Upstream::Member(leader.name.clone());
        let conninfo =
            source::conninfo(node, view, &upstream, config.postgres.authentication.for_rewind(), Some(&config.postgres.database))?;
        node.write_pgpass().await?;
        for begin in begin {
            let there = missing_wal::first_of(begin, control.segment_bytes, data_dir, &node.programs, &conninfo).await?;
            let whence = if there { "is in pg_wal" } else { "has been removed at the leader" };
            tracing::info!("timeline {} begins at {}: its first segment {whence}", begin.timeline, begin.at);
            if !there && otherwise == Else::AsItIs {
                return Ok(());
            }
        }
    }
    timelines::complete(data_dir, &files).await
}

/// Positions that data have been at, or must come to, as `pg_control` says.
fn reached(control: &controldata::ControlData) -> Vec<Place> {
    vec![
        // The record at the checkpoint is to be whole in the past.
        Place { what: "its last checkpoint", timeline: control.timeline, lsn: Lsn(control.checkpoint.0 + 1) },
        Place { what: "what it must replay", timeline: control.min_recovery_timeline, lsn: control.min_recovery_end },
    ]
}

/// What a backup says of itself in `backup_label`.
#[derive(Debug, PartialEq, Eq)]
struct Label {
    timeline: Timeline,
    begin: Lsn,
    checkpoint: Lsn,
    /// Where it ended, of a backup that carries its own manifest.
    end: Option<(Timeline, Lsn)>,
}

impl Label {
    async fn read(data_dir: &Path) -> Result<Option<Label>> {
        let Some(text) = read_if_there(&data_dir.join("backup_label")).await? else { return Ok(None) };
        let mut label = Label::of(&text).context("understand backup_label")?;
        if let Some(manifest) = read_if_there(&data_dir.join("backup_manifest")).await? {
            label.end = label.end_in(&manifest);
        }
        Ok(Some(label))
    }

    fn of(text: &str) -> Option<Label> {
        let timeline = Timeline(value(text, "START TIMELINE")?.parse().ok()?);
        let begin = value(text, "START WAL LOCATION")?.parse().ok()?;
        Some(Label { timeline, begin, checkpoint: value(text, "CHECKPOINT LOCATION")?.parse().ok()?, end: None })
    }

    /// Of the manifest of this backup, and not of another one that its server was made from.
    fn end_in(&self, manifest: &str) -> Option<(Timeline, Lsn)> {
        #[derive(Deserialize)]
        struct Manifest {
            #[serde(rename = "WAL-Ranges")]
            ranges: Vec<Range>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Range {
            timeline: u32,
            #[serde(rename = "Start-LSN")]
            begin: String,
            #[serde(rename = "End-LSN")]
            end: String,
        }
        let Manifest { ranges } = serde_json::from_str(manifest).ok()?;
        let is_ours = ranges.iter().any(|range| range.begin.parse().ok() == Some(self.begin));
        let last = ranges.iter().filter(|_| is_ours).max_by_key(|range| range.timeline)?;
        Some((Timeline(last.timeline), last.end.parse().ok()?))
    }

    fn places(&self) -> Vec<Place> {
        let place = |what, timeline, lsn| Place { what, timeline, lsn };
        let mut places =
            vec![place("its begin", self.timeline, self.begin), place("its checkpoint", self.timeline, Lsn(self.checkpoint.0 + 1))];
        places.extend(self.end.map(|(timeline, lsn)| place(END, timeline, lsn)));
        places
    }

    /// Where it ended, as the server that was backed up told the archive. A standby tells nothing.
    async fn end(&self, node: &Node, recovery: &Recovery, segment_bytes: u64) -> Result<Option<Place>> {
        let postgres = &node.config.postgres;
        let Recovery::Standby { extra, .. } = recovery else { return Ok(None) };
        let Some(command) = extra.get("restore_command").or_else(|| postgres.parameters.get("restore_command")) else { return Ok(None) };
        let file = format!("{}.{:08X}.backup", segments::name(self.timeline, self.begin, segment_bytes), self.begin.0 % segment_bytes);
        let Some(text) = archive::get(command, &postgres.data_dir, &file).await? else {
            tracing::info!("where the backup ended is not known: the archive has no {file}");
            return Ok(None);
        };
        let timeline = value(&text, "STOP TIMELINE").and_then(|number| number.parse().ok()).map_or(self.timeline, Timeline);
        let lsn = value(&text, "STOP WAL LOCATION").and_then(|lsn| lsn.parse().ok()).with_context(|| format!("understand {file}"))?;
        Ok(Some(Place { what: END, timeline, lsn }))
    }
}

const END: &str = "its end";

/// The first word of a line `NAME: word ...`.
fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")?.split_whitespace().next())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: &str = "START WAL LOCATION: 0/4000028 (file 000000020000000000000004)\nCHECKPOINT LOCATION: 0/4000060\nBACKUP METHOD: streamed\n\
                         BACKUP FROM: primary\nSTART TIME: 2026-11-22 20:00:00 UTC\nLABEL: x\nSTART TIMELINE: 2\n";

    #[test]
    fn a_backup_says_where_it_began_and_its_own_manifest_where_it_ended() {
        let label = Label::of(LABEL).unwrap();
        assert_eq!(label, Label { timeline: Timeline(2), begin: Lsn(0x400_0028), checkpoint: Lsn(0x400_0060), end: None });
        let manifest = |begin| {
            format!(
                r#"{{"PostgreSQL-Backup-Manifest-Version": 1, "Files": [{{"Path": "x"}}],
                "WAL-Ranges": [{{"Timeline": 2, "Start-LSN": "{begin}", "End-LSN": "0/4000100"}}], "Manifest-Checksum": "0"}}"#
            )
        };
        assert_eq!(label.end_in(&manifest("0/4000028")), Some((Timeline(2), Lsn(0x400_0100))));
        assert_eq!(label.end_in(&manifest("0/2000028")), None, "of the backup that its server was made from");
        assert_eq!(label.end_in("{"), None);
        assert_eq!(Label::of("LABEL: x\n"), None);
    }

    #[test]
    fn what_the_server_told_the_archive_reads_as_well() {
        let text = "START WAL LOCATION: 0/4000028 (file 000000020000000000000004)\nSTOP WAL LOCATION: 0/4000100 (file 000000020000000000000004)\n\
                    CHECKPOINT LOCATION: 0/4000060\nSTOP TIMELINE: 2\n";
        assert_eq!(
            (value(text, "STOP WAL LOCATION"), value(text, "STOP TIMELINE"), value(text, "STOP")),
            (Some("0/4000100"), Some("2"), None)
        );
    }
}
