//! Who gets a place among REST's connections: so many for each source, some kept for members and this host, and a client that lets
//! others wait goes first.
//!
//! Without bounds per source one client's idle sockets keep load balancers out, and with them every switchover that asks a candidate. A
//! newcomer that finds its bound reached takes the place of the connection of the same kind that has done nothing for longest, or of one
//! that is answered again and again: holding a place costs a client that harms as much as asking again each second. Only who changes
//! something keeps its place until it has its answer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Load balancers and monitors of a large installation, several times over; each costs about 40 KiB, with TLS.
const MOST: usize = 256;
/// All but the members and this host together: the rest is kept for those.
const STRANGERS_MOST: usize = 192;
/// One address that is no member's. A load balancer keeps a connection or two per check.
const PER_STRANGER: usize = 32;
/// A member asks for promises, positions and journals, one connection each.
const PER_MEMBER: usize = 48;
/// Everything on this host together: who may open one socket here may open them all.
const HERE_MOST: usize = 128;
/// Nobody loses a place to another before it has had it for so long.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where a connection comes from, as far as bounds go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// This host.
    Here,
    /// A member's address.
    Member(IpAddr),
    /// Any other: one IPv4 address, or the 64 bits of a network that one host usually has whole.
    Stranger(IpAddr),
}

impl Source {
    fn most(self) -> usize {
        match self {
            Source::Here => HERE_MOST,
            Source::Member(_) => PER_MEMBER,
            Source::Stranger(_) => PER_STRANGER,
        }
    }

    fn is_stranger(self) -> bool {
        matches!(self, Source::Stranger(_))
    }
}

/// Since when a connection waits for its other side; not while its answer is being made. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Waits {
    base: Instant,
    /// Milliseconds since `base`, and one; 0 while nobody is waited for.
    since: Arc<AtomicU64>,
    /// Something is being changed for it.
    kept: Arc<AtomicBool>,
}

impl Waits {
    /// Waits from now on.
    pub fn from_now() -> Waits {
        let waits = Waits { base: Instant::now(), since: Arc::default(), kept: Arc::default() };
        waits.begin();
        waits
    }

    /// The place is kept until the next beginning of a wait.
    pub fn keep(&self) {
        self.kept.store(true, Ordering::Relaxed);
    }

    /// The other side is waited for from now on.
    pub fn begin(&self) {
        self.kept.store(false, Ordering::Relaxed);
        let elapsed = u64::try_from(self.base.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.since.store(elapsed + 1, Ordering::Relaxed);
    }

    /// The other side is not waited for.
    pub fn end(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    /// Since when.
    pub fn since(&self) -> Option<Instant> {
        let millis = self.since.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.base + Duration::from_millis(millis))
    }
}

struct Taken {
    source: Source,
    waits: Waits,
    end: Arc<Notify>,
}

#[derive(Default)]
struct Inner {
    next: u64,
    taken: BTreeMap<u64, Taken>,
    members: BTreeSet<IpAddr>,
}

/// All places.
#[derive(Default)]
pub struct Places(Mutex<Inner>);

/// One place; free again when dropped.
pub struct Place {
    number: u64,
    places: Arc<Places>,
    end: Arc<Notify>,
}

impl Place {
    /// Comes when another takes the place.
    pub async fn taken_away(&self) {
        self.end.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.inner().taken.remove(&self.number);
    }
}

impl Places {
    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on these addresses are the members'.
    pub fn know_members(&self, members: BTreeSet<IpAddr>) {
        self.inner().members = members;
    }

    /// A place for a connection from this address; None where nobody has to make room for it.
    pub fn take(self: &Arc<Self>, address: IpAddr, waits: &Waits) -> Option<Place> {
        let mut inner = self.inner();
        let source = inner.source(address);
        inner.make_room(source, Instant::now())?;
        let (number, end) = (inner.next, Arc::new(Notify::new()));
        inner.next += 1;
        inner.taken.insert(number, Taken { source, waits: waits.clone(), end: end.clone() });
        Some(Place { number, places: self.clone(), end })
    }
}

impl Inner {
    fn source(&self, address: IpAddr) -> Source {
        match address {
            _ if address.is_loopback() => Source::Here,
            _ if self.members.contains(&address) => Source::Member(address),
            IpAddr::V4(_) => Source::Stranger(address),
            IpAddr::V6(v6) => Source::Stranger(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into()),
        }
    }

    /// Every bound that one more from `source` would break is kept by ending a connection that it counts.
    fn make_room(&mut self, source: Source, now: Instant) -> Option<()> {
        if self.count(|other| other == source) >= source.most() {
            self.end_one(now, |other| other == source)?;
        }
        if source.is_stranger() && self.count(Source::is_stranger) >= STRANGERS_MOST {
            self.end_one(now, Source::is_stranger)?;
        }
        if self.taken.len() >= MOST {
            // Strangers go before members.
            self.end_one(now, Source::is_stranger).or_else(|| if source.is_stranger() { None } else { self.end_one(now, |_| true) })?;
        }
        Some(())
    }

    fn count(&self, counts: impl Fn(Source) -> bool) -> usize {
        self.taken.values().filter(|taken| counts(taken.source)).count()
    }

    /// Ends the connection that has kept us waiting for longest, or one that is being told something.
    fn end_one(&mut self, now: Instant, counts: impl Fn(Source) -> bool) -> Option<()> {
        let may_go = |waits: &Waits| !waits.kept.load(Ordering::Relaxed) && now.saturating_duration_since(waits.base) >= PATIENCE;
        let going = self.taken.iter().filter(|(_, taken)| counts(taken.source) && may_go(&taken.waits));
        let (_, number) = going.map(|(number, taken)| (taken.waits.since().unwrap_or(now), *number)).min()?;
        self.taken.remove(&number)?.end.notify_one();
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(seconds: u64) -> Waits {
        let waits = Waits { base: Instant::now() - Duration::from_secs(1000), since: Arc::default(), kept: Arc::default() };
        waits.since.store((1000 - seconds) * 1000 + 1, Ordering::Relaxed);
        waits
    }

    fn fill(places: &Arc<Places>, addresses: impl Iterator<Item = String>, waits: &Waits) -> Vec<Place> {
        addresses.map_while(|address| places.take(address.parse().unwrap(), waits)).collect()
    }

    #[test]
    fn a_source_has_its_bound_and_others_do_not_feel_it() {
        let places = Arc::new(Places::default());
        let waits = Waits::from_now();
        let one = fill(&places, std::iter::repeat("192.0.2.1".to_owned()), &waits);
        assert_eq!(one.len(), PER_STRANGER);
        // One host has a whole network of 64 bits.
        let network = fill(&places, (0..200).map(|host| format!("2001:db8::{host:x}")), &waits);
        assert_eq!(network.len(), PER_STRANGER);
        let strangers = fill(&places, (0..250).map(|host| format!("198.51.100.{host}")), &waits);
        assert_eq!(strangers.len(), STRANGERS_MOST - 2 * PER_STRANGER);
        assert!(places.take("203.0.113.1".parse().unwrap(), &waits).is_none());
        // What is kept for members and this host is there.
        places.know_members(["203.0.113.1".parse().unwrap()].into());
        let member = fill(&places, std::iter::repeat("203.0.113.1".to_owned()), &waits);
        assert_eq!(member.len(), PER_MEMBER);
        let here = fill(&places, std::iter::repeat("127.0.0.1".to_owned()), &waits);
        assert_eq!(here.len(), MOST - STRANGERS_MOST - PER_MEMBER);
        drop(strangers);
        assert!(places.take("203.0.113.2".parse().unwrap(), &waits).is_some());
    }

    #[tokio::test]
    async fn who_lets_others_wait_makes_room_and_who_changes_something_does_not() {
        let places = Arc::new(Places::default());
        let changing = waiting(100);
        changing.end();
        changing.keep();
        let _busy = fill(&places, (2..PER_STRANGER).map(|_| "192.0.2.1".to_owned()), &changing);
        let told = waiting(100);
        told.end();
        let _told = places.take("192.0.2.1".parse().unwrap(), &told).unwrap();
        let fresh = Waits::from_now();
        let last = places.take("192.0.2.1".parse().unwrap(), &fresh).unwrap();
        let _instead = places.take("192.0.2.1".parse().unwrap(), &fresh).expect("who is being told something goes");
        assert!(places.take("192.0.2.1".parse().unwrap(), &fresh).is_none(), "all are changing something, or came only now");
        drop(last);
        let slow = places.take("192.0.2.1".parse().unwrap(), &waiting(2)).unwrap();
        let newcomer = places.take("192.0.2.1".parse().unwrap(), &fresh).expect("the slow one goes");
        slow.taken_away().await;
        drop(slow);
        assert!(places.take("192.0.2.1".parse().unwrap(), &fresh).is_none(), "its place went to one only");
        drop(newcomer);
        assert!(places.take("192.0.2.1".parse().unwrap(), &fresh).is_some());
    }

    #[test]
    fn members_take_what_strangers_waste() {
        let places = Arc::new(Places::default());
        let _strangers = fill(&places, (0..STRANGERS_MOST).map(|host| format!("198.51.{}.{}", host / 200, host % 200)), &waiting(5));
        let fresh = Waits::from_now();
        let here = fill(&places, std::iter::repeat("127.0.0.1".to_owned()), &fresh);
        assert_eq!(here.len(), HERE_MOST);
        let inner = places.inner();
        assert_eq!(inner.taken.len(), MOST);
        assert_eq!(inner.count(Source::is_stranger), MOST - HERE_MOST);
    }
}
