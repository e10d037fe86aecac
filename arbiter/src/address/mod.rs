//! Virtual addresses on this host: put there for as long as the page or the key for reads allows, announced, and taken away.
//!
//! The kernel itself ends what it was given, so a dead or frozen arbiter leaves no address: `cluster::address` says for how long.

mod link;
mod neighbours;

use crate::config::VipConfig;
use anyhow::Result;
use cluster::address::{self, AddressFacts, Lifetime};
use cluster::leader::LeaseId;
use ipnet::IpNet;
use pnet_datalink::NetworkInterface;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, OwnedMutexGuard};

/// Before an address is taken its neighbours get so long to say that they have it. On a wire an answer takes less than a millisecond.
const PROBE: Duration = Duration::from_millis(120);

/// So long a probe that nobody answered counts.
const CLEAR: Duration = Duration::from_secs(1);

/// After an address was taken it is announced at once and after these times: an announcement may be lost, and a neighbour that has just
/// heard the old one takes no new one for a second.
const AGAIN: [Duration; 5] = [
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_millis(1_100),
    Duration::from_millis(2_500),
    Duration::from_secs(5),
];

/// The addresses of this node.
#[derive(Debug, Default)]
pub struct Addresses {
    state: Arc<Mutex<State>>,
    facts: std::sync::Mutex<AddressFacts>,
    /// The lease of the right to those for reads, while it is ours.
    right: std::sync::Mutex<Option<LeaseId>>,
}

/// What is known of the interface. Held while it is changed.
#[derive(Debug, Default)]
struct State {
    config: VipConfig,
    /// What was seen before that moment no longer counts: the addresses were given up on purpose. For the primary's, and for reads.
    void: [Option<Instant>; 2],
    /// Nobody answered for it then.
    clear: BTreeMap<IpAddr, Instant>,
    /// When it is announced again.
    announce: BTreeMap<IpAddr, Vec<Instant>>,
    /// What was last said.
    told: Option<String>,
}

/// Whose addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The primary's.
    Primary = 0,
    /// Those that reads go to.
    Reads = 1,
}

/// What is to be done with one kind of addresses: by a fact that was seen `at`, which ends `until`.
#[derive(Debug, Clone, Copy)]
pub struct Wish {
    /// What.
    pub lifetime: Lifetime,
    /// When the fact was seen.
    pub at: Instant,
    /// When it ends.
    pub until: Option<Instant>,
}

/// The right to hold the addresses for reads, as its task last knew it.
#[derive(Debug, Clone, Copy)]
pub struct Right {
    /// This node holds it.
    pub mine: bool,
    /// As of then.
    pub at: Instant,
    /// When it ends.
    pub until: Option<Instant>,
}

impl Default for Right {
    fn default() -> Right {
        Right { mine: false, at: Instant::now(), until: None }
    }
}

impl Addresses {
    /// What the member key is to say; None where no addresses are configured.
    pub fn facts(&self, config: &VipConfig) -> Option<AddressFacts> {
        (!config.is_empty()).then(|| AddressFacts { replica: !config.replica.is_empty(), ..self.noted().clone() })
    }

    fn noted(&self) -> MutexGuard<'_, AddressFacts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When one is to be announced again.
    pub async fn next_announcement(&self) -> Option<Instant> {
        self.state.clone().lock_owned().await.announce.values().filter_map(|times| times.first()).min().copied()
    }

    /// Does what is wished, where there is anything to do; true where the interface shows something new after it. `to_lead`: this
    /// server is about to be promoted, so the primary's addresses are asked for meanwhile.
    pub async fn round(&self, config: VipConfig, primary: Wish, reads: Wish, to_lead: bool, right: bool) -> bool {
        let mut state = self.state.clone().lock_owned().await;
        if config.is_empty() && state.config.is_empty() {
            return false;
        }
        let round = tokio::task::spawn_blocking(move || {
            let done = round(&mut state, &config, primary, reads, to_lead);
            note(&mut state, &done, right)
        });
        let Ok(facts) = round.await else { return false };
        let mut noted = self.noted();
        let new = *noted != facts;
        *noted = facts;
        new
    }

    /// The right to those for reads, which ends with this.
    pub fn take_right(&self) -> Option<LeaseId> {
        self.right.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The primary's addresses are gone when this returns, and what was seen of the page before counts no more.
    pub async fn release(&self, config: &VipConfig) {
        self.give_up(config, Kind::Primary).await;
    }

    /// The right to those for reads, as its task holds it.
    pub fn note_right(&self, lease: Option<LeaseId>) {
        *self.right.lock().unwrap_or_else(PoisonError::into_inner) = lease;
    }

    /// The addresses of this kind are gone when this returns.
    pub async fn give_up(&self, config: &VipConfig, kind: Kind) {
        if config.is_empty() {
            return;
        }
        let (mut state, config) = (self.state.clone().lock_owned().await, config.clone());
        state.void[kind as usize] = Some(Instant::now());
        let done = tokio::task::spawn_blocking(move || state.drop_all(&config, config.of(kind))).await;
        if let Ok(Err(why)) = done {
            tracing::error!("{why:#}");
        }
    }
}

impl VipConfig {
    fn of(&self, kind: Kind) -> &[IpNet] {
        match kind {
            Kind::Primary => &self.primary,
            Kind::Reads => &self.replica,
        }
    }
}

impl State {
    fn drop_all(&mut self, config: &VipConfig, nets: &[IpNet]) -> Result<()> {
        let interface = link::find(&config.interface)?;
        nets.iter().try_for_each(|net| self.drop_one(&interface, net))
    }

    fn drop_one(&mut self, interface: &NetworkInterface, net: &IpNet) -> Result<()> {
        self.announce.remove(&net.addr());
        if link::has(interface, net.addr()) {
            link::take_away(interface.index, net)?;
            tracing::info!("{} is no more on {}", net.addr(), interface.name);
        }
        Ok(())
    }

    /// Does what is wished with each address. Blocks.
    fn apply(&mut self, kind: Kind, wish: Wish) -> Result<()> {
        let nets = self.config.of(kind).to_vec();
        if nets.is_empty() {
            return Ok(());
        }
        let interface = link::find(&self.config.interface)?;
        let voided = self.void[kind as usize].is_some_and(|void| wish.at <= void);
        for net in &nets {
            match wish.lifetime {
                Lifetime::Drop => self.drop_one(&interface, net)?,
                Lifetime::For(_) if !voided => self.keep(&interface, net, wish.until)?,
                Lifetime::For(_) | Lifetime::Lapse => {}
            }
        }
        Ok(())
    }

    /// Puts an address there until then, or prolongs it. An address that was not there is asked for first.
    fn keep(&mut self, interface: &NetworkInterface, net: &IpNet, until: Option<Instant>) -> Result<()> {
        let address = net.addr();
        let new = !link::has(interface, address);
        if new && self.clear.get(&address).is_none_or(|at| at.elapsed() > CLEAR) {
            self.ask(interface, address)?;
        }
        // After the question, which took its time.
        let left = |until: Option<Instant>| until.and_then(|until| until.checked_duration_since(Instant::now())).unwrap_or_default();
        let Some(seconds) = address::lifetime_s(left(until)) else { return Ok(()) };
        link::put(interface.index, net, seconds)?;
        if left(until) < Duration::from_secs(u64::from(seconds)) {
            // This process stood still in between. What the kernel was told is wrong by now.
            link::take_away(interface.index, net)?;
            anyhow::bail!("{address} was taken back at once: the arbiter stood still while it took it");
        }
        if new {
            tracing::info!("{address} is on {} now", interface.name);
            self.clear.remove(&address);
            neighbours::announce(interface, address)?;
            let now = Instant::now();
            self.announce.insert(address, AGAIN.iter().map(|after| now + *after).collect());
        }
        Ok(())
    }

    /// Nobody else has the address; an error says who.
    fn ask(&mut self, interface: &NetworkInterface, address: IpAddr) -> Result<()> {
        self.clear.remove(&address);
        if let Some(other) = neighbours::who_has(interface, address, PROBE)? {
            anyhow::bail!("{address} is not taken: {other} on {} has it", interface.name);
        }
        self.clear.insert(address, Instant::now());
        Ok(())
    }

    /// Announces what is due again; those that are on the interface still.
    fn announce_due(&mut self) -> Result<()> {
        let now = Instant::now();
        let due: Vec<IpAddr> =
            self.announce.iter().filter(|(_, times)| times.first().is_some_and(|at| *at <= now)).map(|(address, _)| *address).collect();
        if due.is_empty() {
            return Ok(());
        }
        let interface = link::find(&self.config.interface)?;
        for address in due {
            if link::has(&interface, address) {
                neighbours::announce(&interface, address)?;
            }
            if let Some(times) = self.announce.get_mut(&address) {
                times.retain(|at| *at > now);
            }
        }
        self.announce.retain(|_, times| !times.is_empty());
        Ok(())
    }

    /// What a reload took out of the file goes too.
    fn adopt(&mut self, config: &VipConfig) -> Result<()> {
        if self.config == *config {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.config, config.clone());
        let kept =
            |net: &&IpNet| config.interface == before.interface && config.primary.iter().chain(&config.replica).any(|one| one == *net);
        let gone: Vec<IpNet> = before.primary.iter().chain(&before.replica).filter(|net| !kept(net)).copied().collect();
        if gone.is_empty() { Ok(()) } else { self.drop_all(&before, &gone) }
    }
}

fn round(state: &mut OwnedMutexGuard<State>, config: &VipConfig, primary: Wish, reads: Wish, to_lead: bool) -> Result<()> {
    state.adopt(config)?;
    // One kind's trouble is not the other's.
    let done = [state.apply(Kind::Primary, primary), state.apply(Kind::Reads, reads), state.announce_due()];
    if to_lead {
        // While the server is promoted, so that nothing waits for it.
        let interface = link::find(&config.interface)?;
        for net in &config.primary {
            state.ask(&interface, net.addr())?;
        }
    }
    done.into_iter().collect()
}

/// What the interface shows after a round, and what went wrong in it, said once.
fn note(state: &mut OwnedMutexGuard<State>, done: &Result<()>, reads: bool) -> AddressFacts {
    let fault = done.as_ref().err().map(|why| format!("{why:#}"));
    if state.told != fault {
        match &fault {
            Some(why) => tracing::error!("virtual addresses: {why}"),
            None => tracing::info!("virtual addresses: as they should be again"),
        }
        state.told.clone_from(&fault);
    }
    let config = &state.config;
    let all = || config.primary.iter().chain(&config.replica).map(IpNet::addr);
    let held = link::find(&config.interface).map(|interface| all().filter(|address| link::has(&interface, *address)).collect());
    AddressFacts { replica: !config.replica.is_empty(), reads, held: held.unwrap_or_default(), fault }
}
