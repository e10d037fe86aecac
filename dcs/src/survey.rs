//! etcd looked at as a whole: its members and alarms, and every cluster of a namespace at one revision, in bounded requests.

use crate::codec::{self, Raw};
use crate::error::Error;
use crate::etcd::{Etcd, raw};
use crate::key::Keys;
use crate::verbs::Result;
use cluster::backup::Backup;
use cluster::name::Scope;
use cluster::view::ClusterView;
use etcd_client::{AlarmAction, AlarmType, GetOptions, GetResponse};
use std::collections::BTreeMap;

/// So many keys are asked for at once. A member's key has a kilobyte or two, and an answer may have 4 MiB.
const KEYS_A_REQUEST: i64 = 1000;

/// Which cluster: its scope, and the group where it is one of a Citus cluster.
pub type Which = (Scope, Option<u32>);

/// Every cluster of a namespace.
#[derive(Debug, Clone, Default)]
pub struct Fleet {
    /// By scope and group, all of one revision.
    pub clusters: BTreeMap<Which, ClusterView>,
    /// So many requests it took.
    pub requests: u32,
    /// So many keys were read.
    pub keys: usize,
}

/// A member of etcd: its name and its URLs for clients and peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdMember {
    /// Empty until it has started for the first time.
    pub name: String,
    /// Of both kinds.
    pub urls: Vec<String>,
}

impl Etcd {
    /// Who the members of etcd are.
    pub async fn members(&self) -> Result<Vec<EtcdMember>> {
        let answer = self.call(|mut client| async move { client.member_list().await }).await?;
        let member = |member: &etcd_client::Member| EtcdMember {
            name: member.name().to_owned(),
            urls: member.client_urls().iter().chain(member.peer_urls()).cloned().collect(),
        };
        Ok(answer.members().iter().map(member).collect())
    }

    /// Has a member of etcd raised the alarm that its space is used up?
    pub async fn is_full(&self) -> Result<bool> {
        let answer = self.call(|mut client| async move { client.alarm(AlarmAction::Get, AlarmType::None, None).await }).await?;
        Ok(answer.alarms().iter().any(|alarm| alarm.alarm() == AlarmType::Nospace))
    }

    /// The endpoints of the configuration.
    pub fn endpoints(&self) -> impl Iterator<Item = &str> {
        self.endpoint_urls()
    }

    /// Notes that a backup was made.
    pub async fn note_backup(&self, backup: &Backup) -> Result<()> {
        let (key, value) = (self.keys().backup(), codec::to_bytes(backup));
        let put = |mut client: etcd_client::Client| {
            let (key, value) = (key.clone(), value.clone());
            async move { client.put(key, value, None).await }
        };
        self.call(put).await.map(drop)
    }

    /// Reads every cluster of a namespace at one revision, linearizably: a range read of so many keys after another.
    pub async fn load_fleet(&self, namespace: &str) -> Result<Fleet> {
        let prefix = prefix(namespace);
        let (mut fleet, mut answers): (Fleet, Vec<GetResponse>) = Default::default();
        let (mut from, mut limit, mut revision) = (prefix.clone().into_bytes(), KEYS_A_REQUEST, 0);
        loop {
            let options = GetOptions::new().with_range(end(&prefix)).with_limit(limit).with_revision(revision);
            let get = |mut client: etcd_client::Client| {
                let (from, options) = (from.clone(), options.clone());
                async move { client.get(from, Some(options)).await }
            };
            fleet.requests += 1;
            let answer = match self.call(get).await {
                Err(Error::TooMuch(_)) if limit > 1 => {
                    limit = (limit / 4).max(1);
                    continue;
                }
                answer => answer?,
            };
            // What follows is read as of the first answer.
            revision = answer.header().map_or(revision, |header| if revision == 0 { header.revision() } else { revision });
            let last = answer.kvs().last().map(|pair| [pair.key(), &[0]].concat());
            let more = answer.more();
            answers.push(answer);
            match last.filter(|_| more) {
                Some(next) => from = next,
                None => break,
            }
        }
        let mut sorted: BTreeMap<Which, (Keys, Vec<Raw<'_>>)> = BTreeMap::new();
        for raw in answers.iter().flat_map(GetResponse::kvs).filter_map(raw) {
            fleet.keys += 1;
            let scope = raw.key.strip_prefix(&prefix).and_then(|tail| tail.split_once('/')).and_then(|(scope, _)| Scope::new(scope).ok());
            let Some(scope) = scope else { continue };
            let keys = Keys::new(namespace, &scope);
            let group = keys.group_of(raw.key);
            let keys = group.map_or(keys.clone(), |group| keys.group(group));
            sorted.entry((scope, group)).or_insert_with(|| (keys, Vec::new())).1.push(raw);
        }
        let views = sorted.into_iter().map(|(which, (keys, raws))| (which, codec::view(&keys, revision, raws.into_iter())));
        fleet.clusters = views.filter(|(_, view)| is_cluster(view)).collect();
        Ok(fleet)
    }
}

/// Anything of a cluster; other programs may keep their keys in the same namespace.
fn is_cluster(view: &ClusterView) -> bool {
    !view.members.is_empty() || view.initialize.is_some() || view.config.is_some() || view.leader.is_some()
}

fn prefix(namespace: &str) -> String {
    match namespace.trim_matches('/') {
        "" => "/".to_owned(),
        namespace => format!("/{namespace}/"),
    }
}

/// The first key after everything that begins so. A prefix ends in a slash, which has a next byte.
fn end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}
