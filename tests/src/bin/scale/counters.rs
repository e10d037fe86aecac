//! What etcd counts of itself (`/metrics`), and this process of its own processor time.

use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use stories::etcd::Etcd;

/// Asked again so often before it is an error: what is measured is a busy etcd.
const TRIES: usize = 5;

/// One look.
#[derive(Debug, Clone)]
pub struct Counters {
    at: Instant,
    page: Page,
    own_processor: Duration,
}

/// The part that is read of the page.
#[derive(Debug, Clone, Default, PartialEq)]
struct Page {
    /// Messages of clients by method: a request, or one more on a stream that is open.
    requests: BTreeMap<String, f64>,
    received_bytes: f64,
    sent_bytes: f64,
    syncs: f64,
    processor_s: f64,
    resident_bytes: f64,
}

/// Between two looks, for each second.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rates {
    /// Requests by method.
    pub requests: BTreeMap<String, f64>,
    /// Bytes that etcd got from clients.
    pub received_bytes: f64,
    /// Bytes that it sent to them.
    pub sent_bytes: f64,
    /// Times that it waited for its disk.
    pub syncs: f64,
    /// Its processor time, in milliseconds.
    pub processor_ms: f64,
    /// This process' processor time, in milliseconds.
    pub own_processor_ms: f64,
    /// Its memory at the end.
    pub resident_bytes: f64,
}

impl Rates {
    /// All methods.
    pub fn all_requests(&self) -> f64 {
        self.requests.values().sum()
    }
}

impl Counters {
    /// As it is now.
    pub async fn look(etcd: &Etcd) -> Result<Counters> {
        let mut last = None;
        for _ in 0..TRIES {
            match etcd.metrics().await {
                Ok(text) => return Ok(Counters { at: Instant::now(), page: read(&text), own_processor: own_processor() }),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("asked no etcd")?)
    }

    /// From an earlier look until this one.
    pub fn since(&self, before: &Counters) -> Rates {
        let seconds = (self.at - before.at).as_secs_f64();
        let a_second = |of: fn(&Page) -> f64| (of(&self.page) - of(&before.page)) / seconds;
        let requests = self.page.requests.iter().map(|(method, count)| {
            let earlier = before.page.requests.get(method).copied().unwrap_or_default();
            (method.clone(), (count - earlier) / seconds)
        });
        Rates {
            requests: requests.filter(|(_, rate)| *rate > 0.0).collect(),
            received_bytes: a_second(|page| page.received_bytes),
            sent_bytes: a_second(|page| page.sent_bytes),
            syncs: a_second(|page| page.syncs),
            processor_ms: a_second(|page| page.processor_s) * 1000.0,
            own_processor_ms: (self.own_processor - before.own_processor).as_secs_f64() * 1000.0 / seconds,
            resident_bytes: self.page.resident_bytes,
        }
    }
}

fn own_processor() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(spent.tv_sec).unwrap_or(0), u32::try_from(spent.tv_nsec).unwrap_or(0))
}

fn read(text: &str) -> Page {
    let value = |line: &str| line.rsplit(' ').next().and_then(|word| word.parse::<f64>().ok()).unwrap_or_default();
    let one = |name: &str| text.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' '))).map(value).sum();
    let mut requests = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("grpc_server_msg_received_total{")) {
        let method = line.split("grpc_method=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or("?");
        *requests.entry(method.to_owned()).or_default() += value(line);
    }
    Page {
        requests,
        received_bytes: one("etcd_network_client_grpc_received_bytes_total"),
        sent_bytes: one("etcd_network_client_grpc_sent_bytes_total"),
        syncs: one("etcd_disk_wal_fsync_duration_seconds_count"),
        processor_s: one("process_cpu_seconds_total"),
        resident_bytes: one("process_resident_memory_bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# TYPE grpc_server_msg_received_total counter\n\
        grpc_server_msg_received_total{grpc_method=\"Range\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} 40\n\
        grpc_server_msg_received_total{grpc_method=\"LeaseKeepAlive\",grpc_service=\"etcdserverpb.Lease\",grpc_type=\"bidi_stream\"} 6\n\
        grpc_server_msg_sent_total{grpc_method=\"Range\"} 99\n\
        etcd_network_client_grpc_received_bytes_total 1000\n\
        etcd_network_client_grpc_sent_bytes_total 3e+06\n\
        etcd_disk_wal_fsync_duration_seconds_count 12\n\
        process_cpu_seconds_total 1.5\n\
        process_resident_memory_bytes 2.097152e+07\n";

    #[test]
    fn rates_are_of_what_came_between_two_looks() {
        let began = Instant::now();
        let before = Counters { at: began, page: Page::default(), own_processor: Duration::ZERO };
        let after = Counters { at: began + Duration::from_secs(2), page: read(PAGE), own_processor: Duration::from_millis(500) };
        let rates = after.since(&before);
        assert_eq!(rates.requests, [("Range".to_owned(), 20.0), ("LeaseKeepAlive".to_owned(), 3.0)].into());
        assert_eq!((rates.all_requests(), rates.received_bytes, rates.sent_bytes), (23.0, 500.0, 1.5e6));
        assert_eq!((rates.syncs, rates.processor_ms, rates.own_processor_ms, rates.resident_bytes), (6.0, 750.0, 250.0, 20_971_520.0));
    }
}
