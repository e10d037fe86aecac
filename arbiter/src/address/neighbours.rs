//! The neighbours on the wire: has anybody this address (ARP probe, neighbour solicitation), and: it is here now (gratuitous ARP,
//! unsolicited neighbour advertisement).

use anyhow::{Context, Result, bail};
use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use pnet_datalink::{Channel, Config, DataLinkReceiver, DataLinkSender, NetworkInterface};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

type Mac = [u8; 6];

const EVERYBODY: Mac = [0xff; 6];
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// It replaces what the neighbours know.
const OVERRIDE: [u8; 4] = [0x20, 0, 0, 0];
const TARGET_LINK_ADDRESS: u8 = 2;

/// Questions of one probe; one may be lost.
const QUESTIONS: u32 = 3;

/// Who has the address, by the hardware address of its answer; None where nobody answered within `patience`. Blocks for so long.
pub fn who_has(interface: &NetworkInterface, address: IpAddr, patience: Duration) -> Result<Option<String>> {
    let mac = hardware(interface)?;
    let (mut sender, mut receiver) = open(interface, patience / QUESTIONS)?;
    let question = question(mac, address)?;
    let end = Instant::now() + patience;
    for number in 1..=QUESTIONS {
        send(&mut *sender, &question)?;
        while Instant::now() + patience * (QUESTIONS - number) / QUESTIONS < end {
            match receiver.next() {
                Ok(frame) => {
                    if let Some(other) = claims(frame, address).filter(|other| *other != mac) {
                        return Ok(Some(other.map(|byte| format!("{byte:02x}")).join(":")));
                    }
                }
                Err(why) if why.kind() == std::io::ErrorKind::TimedOut => {}
                Err(why) => return Err(why).context("listen for answers"),
            }
        }
    }
    Ok(None)
}

/// Tells everybody that the address is here.
pub fn announce(interface: &NetworkInterface, address: IpAddr) -> Result<()> {
    let mac = hardware(interface)?;
    let (mut sender, _) = open(interface, Duration::from_millis(1))?;
    for frame in announcements(mac, address)? {
        send(&mut *sender, &frame)?;
    }
    Ok(())
}

fn hardware(interface: &NetworkInterface) -> Result<Mac> {
    interface
        .mac
        .map(|mac| mac.octets())
        .filter(|mac| *mac != [0; 6])
        .with_context(|| format!("{} has no hardware address", interface.name))
}

fn open(interface: &NetworkInterface, patience: Duration) -> Result<(Box<dyn DataLinkSender>, Box<dyn DataLinkReceiver>)> {
    let config = Config { read_timeout: Some(patience.max(Duration::from_millis(1))), promiscuous: false, ..Config::default() };
    match pnet_datalink::channel(interface, config) {
        Ok(Channel::Ethernet(sender, receiver)) => Ok((sender, receiver)),
        Ok(_) => bail!("{} takes no Ethernet frames", interface.name),
        Err(why) if why.kind() == std::io::ErrorKind::PermissionDenied => Err(why)
            .context("the arbiter lacks CAP_NET_RAW; hint: AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW in its unit (docs/routing.md)"),
        Err(why) => Err(why).with_context(|| format!("open a packet socket on {}", interface.name)),
    }
}

fn send(sender: &mut dyn DataLinkSender, frame: &[u8]) -> Result<()> {
    sender.send_to(frame, None).context("the packet socket sends nothing")?.context("send a frame")
}

fn arp(from: Mac, operation: ArpOperation, sender: Ipv4Addr, target: (Mac, Ipv4Addr)) -> Result<Vec<u8>> {
    let packet =
        ArpPacket::new(ArpHardwareId::ETHERNET, EtherType::IPV4, operation, &from, &sender.octets(), &target.0, &target.1.octets())
            .context("make an ARP packet")?;
    let builder = PacketBuilder::ethernet2(from, EVERYBODY).arp(packet);
    let mut frame = Vec::with_capacity(builder.size());
    builder.write(&mut frame).context("write an ARP packet")?;
    Ok(frame)
}

fn neighbour(from: Mac, source: Ipv6Addr, to: Ipv6Addr, kind: u8, flags: [u8; 4], body: &[u8]) -> Result<Vec<u8>> {
    let end = to.octets();
    let mac = [0x33, 0x33, end[12], end[13], end[14], end[15]];
    // A host that is asked takes nothing that may have come through a router.
    let builder = PacketBuilder::ethernet2(from, mac).ipv6(source.octets(), end, 255).icmpv6_raw(kind, 0, flags);
    let mut frame = Vec::with_capacity(builder.size(body.len()));
    builder.write(&mut frame, body).context("write a neighbour message")?;
    Ok(frame)
}

/// Asked from no address, so that nobody notes us as its owner.
fn question(mac: Mac, address: IpAddr) -> Result<Vec<u8>> {
    match address {
        IpAddr::V4(address) => arp(mac, ArpOperation::REQUEST, Ipv4Addr::UNSPECIFIED, ([0; 6], address)),
        IpAddr::V6(address) => {
            let end = address.octets();
            let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(end[13]), u16::from_be_bytes([end[14], end[15]]));
            neighbour(mac, Ipv6Addr::UNSPECIFIED, group, NEIGHBOUR_SOLICITATION, [0; 4], &end)
        }
    }
}

/// As request and as answer: there are switches and hosts that listen to only one of them.
fn announcements(mac: Mac, address: IpAddr) -> Result<Vec<Vec<u8>>> {
    match address {
        IpAddr::V4(address) => Ok(vec![
            arp(mac, ArpOperation::REQUEST, address, ([0; 6], address))?,
            arp(mac, ArpOperation::REPLY, address, (EVERYBODY, address))?,
        ]),
        IpAddr::V6(address) => {
            let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
            let mut body = address.octets().to_vec();
            body.extend([TARGET_LINK_ADDRESS, 1]);
            body.extend(mac);
            Ok(vec![neighbour(mac, address, all_nodes, NEIGHBOUR_ADVERTISEMENT, OVERRIDE, &body)?])
        }
    }
}

/// The hardware address of the host that says in this frame that it has the address, or asks for it for itself at the same time.
fn claims(frame: &[u8], address: IpAddr) -> Option<Mac> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    match (address, packet.net.as_ref()?) {
        (IpAddr::V4(address), NetSlice::Arp(arp)) => {
            let owned = arp.sender_protocol_addr() == address.octets();
            let probed = arp.sender_protocol_addr() == [0; 4] && arp.target_protocol_addr() == address.octets();
            (owned || probed).then(|| arp.sender_hw_addr().try_into().ok())?
        }
        (IpAddr::V6(address), NetSlice::Ipv6(ip)) => {
            let Some(TransportSlice::Icmpv6(icmp)) = &packet.transport else { return None };
            let body = icmp.payload();
            let asks_for_itself = icmp.type_u8() == NEIGHBOUR_SOLICITATION && ip.header().source_addr().is_unspecified();
            let says = icmp.type_u8() == NEIGHBOUR_ADVERTISEMENT || asks_for_itself;
            let source: Mac = frame.get(6..12)?.try_into().ok()?;
            (says && body.get(..16)? == address.octets()).then_some(source)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Mac = [2, 0, 0, 0, 0, 1];

    #[test]
    fn whoever_announces_an_address_has_it_and_whoever_asks_has_not() {
        for (address, other) in [("10.0.0.9", "10.0.0.10"), ("2001:db8::9", "2001:db8::10")] {
            let (address, other): (IpAddr, IpAddr) = (address.parse().unwrap(), other.parse().unwrap());
            for frame in announcements(OURS, address).unwrap() {
                assert_eq!(claims(&frame, address), Some(OURS));
                assert_eq!(claims(&frame, other), None);
            }
            // Two that probe at one time must not both take it.
            assert_eq!(claims(&question(OURS, address).unwrap(), address), Some(OURS));
            assert_eq!(claims(&question(OURS, address).unwrap(), other), None);
        }
        // A neighbour that asks where the address is has not got it.
        let asks = arp(OURS, ArpOperation::REQUEST, "10.0.0.7".parse().unwrap(), ([0; 6], "10.0.0.9".parse().unwrap())).unwrap();
        assert_eq!(claims(&asks, "10.0.0.9".parse().unwrap()), None);
        assert_eq!(claims(b"short", "10.0.0.9".parse().unwrap()), None);
    }

    #[test]
    fn neighbour_messages_are_well_formed() {
        let frame = &announcements(OURS, "2001:db8::9".parse().unwrap()).unwrap()[0];
        // All nodes' hardware address, hop limit 255, type 136, the flag that replaces, the option with our hardware address.
        assert_eq!((&frame[..6], frame[21], frame[54], frame[58]), (&[0x33, 0x33, 0, 0, 0, 1][..], 255, 136, 0x20));
        assert_eq!(frame[78..], [2, 1, 2, 0, 0, 0, 0, 1]);
    }
}
