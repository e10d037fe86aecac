//! A third host that watches who has an address, by ARP: it asks all the time, and notes every answer and every announcement.

use anyhow::{Context, Result, bail};
use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, NetSlice, PacketBuilder, SlicedPacket};
use pnet_datalink::{Channel, Config};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Between two questions.
const EVERY: Duration = Duration::from_millis(40);

/// One who said that it has an address.
#[derive(Debug, Clone)]
pub struct Claim {
    /// When it was heard.
    pub at: Instant,
    /// Its hardware address.
    pub mac: String,
    /// The number of the question that it answers; none for an announcement.
    pub answers: Option<u64>,
}

/// All that was heard, by address.
pub type Claims = BTreeMap<Ipv4Addr, Vec<Claim>>;

/// The watching host.
pub struct Watcher {
    claims: Arc<Mutex<Claims>>,
    stop: Arc<AtomicBool>,
}

impl Watcher {
    /// Asks for these addresses from now on, on this interface, as `from`.
    pub fn start(interface: &str, from: Ipv4Addr, addresses: Vec<Ipv4Addr>) -> Result<Watcher> {
        let interface = pnet_datalink::interfaces().into_iter().find(|one| one.name == interface).context("the bridge")?;
        let mac = interface.mac.context("the bridge has a hardware address")?.octets();
        let config = Config { read_timeout: Some(Duration::from_millis(5)), promiscuous: false, ..Config::default() };
        let Channel::Ethernet(mut sender, mut receiver) = pnet_datalink::channel(&interface, config)? else { bail!("no Ethernet") };
        let (claims, stop) = (Arc::new(Mutex::new(Claims::new())), Arc::new(AtomicBool::new(false)));
        let (heard, ended) = (claims.clone(), stop.clone());
        std::thread::spawn(move || {
            let (mut number, mut asked) = (0_u64, None::<Instant>);
            while !ended.load(Ordering::Relaxed) {
                if asked.is_none_or(|at| at.elapsed() >= EVERY) {
                    (number, asked) = (number + 1, Some(Instant::now()));
                    for address in &addresses {
                        let _ = sender.send_to(&question(mac, from, *address), None);
                    }
                }
                let Ok(frame) = receiver.next() else { continue };
                let Some((address, mac, is_answer)) = claim(frame, mac).filter(|(address, ..)| addresses.contains(address)) else {
                    continue;
                };
                let claim = Claim { at: Instant::now(), mac, answers: is_answer.then_some(number) };
                heard.lock().expect("nobody panicked with the lock").entry(address).or_default().push(claim);
            }
        });
        Ok(Watcher { claims, stop })
    }

    /// All that was heard so far.
    pub fn claims(&self) -> Claims {
        self.claims.lock().expect("nobody panicked with the lock").clone()
    }

    /// Who answered for this address lately; None where nobody did.
    pub fn holder(&self, address: Ipv4Addr) -> Option<String> {
        let claims = self.claims();
        let last = claims.get(&address)?.iter().rev().find(|claim| claim.answers.is_some())?;
        (last.at.elapsed() < EVERY * 5).then(|| last.mac.clone())
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Each time two hosts had one address: two answered the same question, or one was heard again after another had been.
pub fn two_at_once(claims: &Claims) -> Vec<String> {
    let mut found = Vec::new();
    for (address, claims) in claims {
        for pair in claims.windows(2).filter(|pair| pair[0].mac != pair[1].mac) {
            let same = pair[0].answers.is_some() && pair[0].answers == pair[1].answers;
            let again = claims.iter().any(|later| {
                later.mac == pair[0].mac && later.at > pair[1].at && later.at.duration_since(pair[1].at) < Duration::from_millis(500)
            });
            if same || again {
                let apart = pair[1].at.duration_since(pair[0].at);
                let how = if same { "answered the same question" } else { "and the first was heard again" };
                found.push(format!("{address}: {} and {} {apart:?} after it, {how}", pair[0].mac, pair[1].mac));
            }
        }
    }
    found
}

fn question(mac: [u8; 6], from: Ipv4Addr, address: Ipv4Addr) -> Vec<u8> {
    let request = ArpOperation::REQUEST;
    let packet = ArpPacket::new(ArpHardwareId::ETHERNET, EtherType::IPV4, request, &mac, &from.octets(), &[0; 6], &address.octets());
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(mac, [0xff; 6]).arp(packet.expect("an ARP packet"));
    builder.write(&mut frame).expect("write to memory");
    frame
}

/// The address that is claimed, by whom, and whether that answers us. A probe (from no address) claims nothing.
fn claim(frame: &[u8], me: [u8; 6]) -> Option<(Ipv4Addr, String, bool)> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let NetSlice::Arp(arp) = packet.net? else { return None };
    let mac: [u8; 6] = arp.sender_hw_addr().try_into().ok()?;
    let address: [u8; 4] = arp.sender_protocol_addr().try_into().ok()?;
    let is_answer = arp.operation() == ArpOperation::REPLY && frame.get(..6)? == me;
    (mac != me).then(|| (Ipv4Addr::from(address), mac.map(|byte| format!("{byte:02x}")).join(":"), is_answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_move_is_none_and_an_overlap_is_one() {
        let start = Instant::now();
        let claims = |list: &[(u64, &str, Option<u64>)]| {
            let claim = |(ms, mac, answers): &(u64, &str, Option<u64>)| Claim {
                at: start + Duration::from_millis(*ms),
                mac: (*mac).to_owned(),
                answers: *answers,
            };
            Claims::from([(Ipv4Addr::LOCALHOST, list.iter().map(claim).collect())])
        };
        assert!(two_at_once(&claims(&[(0, "a", Some(1)), (10, "b", None), (40, "b", Some(2))])).is_empty());
        assert_eq!(two_at_once(&claims(&[(0, "a", Some(1)), (1, "b", Some(1))])).len(), 1);
        assert_eq!(two_at_once(&claims(&[(0, "a", Some(1)), (10, "b", None), (40, "a", Some(2))])).len(), 1);
        assert!(two_at_once(&claims(&[(0, "a", Some(1)), (10, "b", None), (5_000, "a", None)])).is_empty());
    }
}
