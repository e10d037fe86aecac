//! What `tenure check` looks at beside the cluster's keys: etcd itself, certificates that members show, other servers of this database system.
//!
//! Each look is bounded and by itself: what does not answer, or is not ours to read, is not judged.

use super::context::Tool;
use super::groups::Part;
use crate::ground::certificates::{self, Asks};
use crate::ground::member_rest::Caller;
use cluster::host::Address;
use cluster::member::MemberRole;
use cluster::surroundings::{Certificate, EtcdMember, EtcdState, Other, Surroundings};
use cluster::view::ClusterView;
use dcs::Etcd;
use dcs::survey::Fleet;
use futures_util::future::join_all;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

/// A look at one place.
const BOUND: Duration = Duration::from_secs(3);
/// Fewer writes than this say little about a disk.
const JUDGED_FROM: f64 = 1000.0;

/// What all groups of a cluster share: etcd, and the tool's own certificates.
pub async fn shared(tool: &Tool, etcd: &Etcd) -> Surroundings {
    let endpoints: Vec<String> = etcd.endpoints().map(str::to_owned).collect();
    let full = etcd.is_full().await.unwrap_or(false);
    let states = join_all(endpoints.iter().map(|endpoint| state(tool, endpoint, full))).await;
    let mut members = Vec::new();
    for member in etcd.members().await.unwrap_or_default() {
        let hosts: BTreeSet<String> = member.urls.iter().filter_map(|url| Address::of_url(url)).map(|address| address.host).collect();
        let addresses = join_all(hosts.iter().map(|host| addresses(host))).await;
        members.push(EtcdMember { name: member.name, hosts: addresses.into_iter().flatten().collect() });
    }
    let mut certificates: Vec<Certificate> = tool.own_certificates.iter().filter_map(|file| own(file)).collect();
    let quick = certificates::looker(tool.etcd_tls.identity.clone());
    for endpoint in endpoints.iter().filter(|endpoint| endpoint.starts_with("https://")) {
        if let (Some(tls), Some(address)) = (&quick, Address::of_url(endpoint))
            && let Ok(ends) = certificates::shown_at(tls, &address, Asks::Tls).await
        {
            let whose = format!("the certificate of etcd at {address}");
            certificates.push(Certificate { member: None, whose, ends_in_s: left(ends) });
        }
    }
    Surroundings { members, etcd: states.into_iter().flatten().collect(), certificates, ..Surroundings::default() }
}

/// What is around one group, or the one cluster.
pub async fn of(tool: &Tool, part: &Part, fleet: Option<&Fleet>) -> Surroundings {
    let view = &part.view;
    let tls = certificates::looker(tool.member_tls.identity.clone());
    let shown = view.members.iter().map(|(name, entry)| {
        let tls = tls.as_ref();
        async move {
            let rest = Some(&entry.member.api_url).filter(|url| url.starts_with("https://")).and_then(|url| Address::of_url(url));
            let postgres = entry.member.address();
            let mut found = Vec::new();
            for (place, what, asks) in [(rest, "REST", Asks::Tls), (postgres, "Postgres", Asks::Postgres)] {
                if let (Some(tls), Some(address)) = (tls, place)
                    && let Ok(ends) = certificates::shown_at(tls, &address, asks).await
                {
                    let whose = format!("the certificate of its {what}");
                    found.push(Certificate { member: Some(name.clone()), whose, ends_in_s: left(ends) });
                }
            }
            found
        }
    });
    let (certificates, mut others) = futures_util::future::join(join_all(shown), silent_primaries(&tool.caller, view)).await;
    others.extend(fleet.into_iter().flat_map(|fleet| twins(fleet, part)));
    let backup_age = view.backup.as_ref().and_then(|backup| age(&backup.value.at));
    Surroundings { certificates: certificates.into_iter().flatten().collect(), others, backup_age, ..Surroundings::default() }
}

/// How long ago a time was.
fn age(at: &str) -> Option<Duration> {
    let at: jiff::Timestamp = at.parse().ok()?;
    Some(Duration::from_secs(u64::try_from(jiff::Timestamp::now().as_second() - at.as_second()).unwrap_or(0)))
}

/// Clusters of the same etcd with the same identity whose leader is a primary: a copy that was started under another name.
fn twins<'a>(fleet: &'a Fleet, part: &'a Part) -> impl Iterator<Item = Other> + 'a {
    let own = (part.target.scope.clone(), part.target.group);
    let same = fleet
        .clusters
        .iter()
        .filter(move |(which, view)| **which != own && view.system_id().is_some() && view.system_id() == part.view.system_id());
    same.filter_map(|((scope, group), view)| {
        let leader = view.leader.as_ref()?;
        let entry = view.members.get(&leader.name)?;
        let group = group.map(|group| format!(", group {group}")).unwrap_or_default();
        cluster::surroundings::takes_writes(view).then(|| Other {
            place: entry.member.conn_url.clone(),
            what: format!("{} leads the cluster {scope}{group} in the same etcd", leader.name),
        })
    })
}

/// Members whose REST says that their server is a primary while neither etcd nor their own key does; also those that only the key
/// `failsafe` still knows.
async fn silent_primaries(caller: &Caller, view: &ClusterView) -> Vec<Other> {
    let known =
        view.members.iter().map(|(name, entry)| (name.to_string(), entry.member.api_url.clone(), entry.member.role == MemberRole::Primary));
    let remembered = view.failsafe.iter().flat_map(|key| &key.value);
    let gone = remembered.filter(|(name, _)| !view.members.keys().any(|member| member.as_str() == *name));
    let asked: Vec<(String, String, bool)> = known.chain(gone.map(|(name, url)| (name.clone(), url.clone(), false))).collect();
    let ask = |(name, url, says_so): (String, String, bool)| async move {
        let leads = view.leader.as_ref().is_some_and(|leader| leader.name.as_str() == name);
        if leads || says_so {
            return None;
        }
        let (_, text) = caller.ask(&url, "GET", "patroni", None, BOUND).await.ok()?;
        let status: Value = serde_json::from_str(&text).ok()?;
        let same = status["database_system_identifier"].as_str() == view.system_id().map(|id| id.0.as_str());
        let primary = status["role"] == "primary" && status["state"] == "running";
        (same && primary)
            .then(|| Other { place: url.clone(), what: format!("{name} says that its Postgres is a primary, and it does not lead") })
    };
    join_all(asked.into_iter().map(ask)).await.into_iter().flatten().collect()
}

/// What an endpoint of etcd says by its `/metrics`.
async fn state(tool: &Tool, endpoint: &str, full: bool) -> Option<EtcdState> {
    let caller = Caller::new(None, tool.etcd_tls.load().ok());
    let (status, text) = caller.ask(endpoint, "GET", "metrics", None, BOUND).await.ok()?;
    let gauge = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse::<f64>().ok())?;
        // As bytes: below 2^53, so nothing is lost.
        (value.is_finite() && value >= 0.0).then_some(value as u64)
    };
    (status == 200).then(|| EtcdState {
        endpoint: endpoint.to_owned(),
        fsync: quantile(&text, "etcd_disk_wal_fsync_duration_seconds_bucket"),
        used: gauge("etcd_mvcc_db_total_size_in_bytes"),
        quota: gauge("etcd_server_quota_backend_bytes"),
        full,
    })
}

/// Below which bound 99 of 100 lie, by Prometheus' text; None where there are too few to say.
fn quantile(text: &str, metric: &str) -> Option<Duration> {
    let bucket = |line: &str| {
        let (bound, count) = line.strip_prefix(metric)?.split_once("le=\"")?.1.split_once("\"} ")?;
        Some((bound.parse::<f64>().ok()?, count.trim().parse::<f64>().ok()?))
    };
    let buckets: Vec<(f64, f64)> = text.lines().filter_map(bucket).collect();
    let all = buckets.last().map(|(_, count)| *count).filter(|count| *count >= JUDGED_FROM)?;
    let (bound, _) = buckets.iter().find(|(_, count)| *count >= 0.99 * all)?;
    Some(if bound.is_finite() { Duration::from_secs_f64(bound.max(0.0)) } else { Duration::from_secs(8) })
}

/// What a host's name leads to; itself where it leads nowhere.
async fn addresses(host: &str) -> Vec<String> {
    match tokio::time::timeout(BOUND, tokio::net::lookup_host((host, 0))).await {
        Ok(Ok(found)) => found.map(|address| address.ip().to_canonical().to_string()).collect(),
        Ok(Err(_)) | Err(_) => vec![host.to_owned()],
    }
}

fn own(file: &Path) -> Option<Certificate> {
    let ends_in_s = left(certificates::of_file(file).ok()?);
    Some(Certificate { member: None, whose: format!("the certificate {}", file.display()), ends_in_s })
}

/// Seconds until then.
fn left(ends: i64) -> i64 {
    ends - jiff::Timestamp::now().as_second()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_of_a_hundred_is_read_from_a_histogram() {
        let text = |counts: [u32; 3]| {
            format!(
                "# TYPE m histogram\nm_bucket{{le=\"0.001\"}} {}\nm_bucket{{le=\"0.128\"}} {}\nm_bucket{{le=\"+Inf\"}} {}\nm_sum 3\n",
                counts[0], counts[1], counts[2]
            )
        };
        for (counts, expected) in [
            ([995, 1000, 1000], Some(Duration::from_millis(1))),
            ([900, 1000, 1000], Some(Duration::from_millis(128))),
            ([0, 0, 1000], Some(Duration::from_secs(8))),
            ([999, 999, 999], None),
        ] {
            assert_eq!(quantile(&text(counts), "m_bucket"), expected, "{counts:?}");
        }
    }
}
