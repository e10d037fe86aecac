//! One network interface: which addresses are on it, and putting one there for a time or taking it away (rtnetlink).

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, CacheInfo};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use pnet_datalink::NetworkInterface;
use std::net::IpAddr;

/// The interface of this name, with what is on it now. Asks the kernel again each time.
pub fn find(name: &str) -> Result<NetworkInterface> {
    let all = pnet_datalink::interfaces();
    let names = || all.iter().map(|one| one.name.as_str()).collect::<Vec<_>>().join(", ");
    all.iter()
        .find(|one| one.name == name)
        .cloned()
        .with_context(|| format!("this host has no network interface {name}; it has {}", names()))
}

/// Is the address on the interface?
pub fn has(interface: &NetworkInterface, address: IpAddr) -> bool {
    interface.ips.iter().any(|net| net.ip() == address)
}

/// Puts an address there for so many seconds, or gives the one that is there so many from now on. Blocks for a moment.
pub fn put(index: u32, net: &IpNet, seconds: u32) -> Result<()> {
    let mut message = message(index, net);
    // A deprecated address is not chosen as source: its preferred time ends with its life, not before.
    let mut times = CacheInfo::default();
    (times.ifa_preferred, times.ifa_valid) = (seconds, seconds);
    message.attributes.push(AddressAttribute::CacheInfo(times));
    ask(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)
        .with_context(|| format!("put {} on the network interface for {seconds} s", net.addr()))
}

/// Takes an address away. One that is not there is fine.
pub fn take_away(index: u32, net: &IpNet) -> Result<()> {
    match ask(RouteNetlinkMessage::DelAddress(message(index, net)), 0) {
        Err(why) if why.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error) == Some(NOT_THERE) => Ok(()),
        done => done.with_context(|| format!("take {} from the network interface", net.addr())),
    }
}

/// EADDRNOTAVAIL.
const NOT_THERE: i32 = 99;
/// EPERM.
const FORBIDDEN: i32 = 1;

fn message(index: u32, net: &IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = if net.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.prefix_len = net.prefix_len();
    message.header.index = index;
    if net.addr().is_ipv6() {
        // Nobody has it: that was asked before. The kernel would leave it unused for a second or two while it asks the same.
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message.attributes.extend([AddressAttribute::Local(net.addr()), AddressAttribute::Address(net.addr())]);
    message
}

fn ask(message: RouteNetlinkMessage, flags: u16) -> Result<()> {
    let mut socket = Socket::new(NETLINK_ROUTE).context("open a netlink socket")?;
    socket.bind_auto().context("bind a netlink socket")?;
    socket.connect(&SocketAddr::new(0, 0)).context("connect to the kernel")?;
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    request.header.sequence_number = 1;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0).context("ask the kernel")?;
    let (answer, _) = socket.recv_from_full().context("hear the kernel")?;
    let answer: NetlinkMessage<RouteNetlinkMessage> = NetlinkMessage::deserialize(&answer).context("understand the kernel's answer")?;
    match answer.payload {
        NetlinkPayload::Error(error) if error.code.is_none() => Ok(()),
        NetlinkPayload::Error(error) => {
            let why = error.to_io();
            let forbidden = why.raw_os_error() == Some(FORBIDDEN);
            let result = Err(anyhow::Error::new(why));
            if forbidden {
                result.context(
                    "the arbiter lacks CAP_NET_ADMIN; hint: AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW in its unit (docs/routing.md)",
                )
            } else {
                result
            }
        }
        other => bail!("the kernel answered something else: {other:?}"),
    }
}
