//! A network of the storm's own: a namespace for every node and etcd member, a bridge, and real cuts.
//!
//! The bridge has a namespace too. Where something on the machine filters what its bridges pass on (Docker does: everything is dropped
//! that it did not ask for), that is nothing to ours.
//!
//! A one-way cut is a wrong hardware address in the sender's neighbour table: what it sends is lost in silence,
//! also on connections that exist. It needs no packet filter, which small kernels lack.

use crate::place::Place;
use anyhow::{Result, bail};
use serde_json::Value;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// The name of the bridge's namespace; no host is called so.
const SWITCH: &str = "switch";

/// Nobody's.
const NOBODY: &str = "02:00:00:00:de:ad";

/// The bridge, with a way to it from the caller's network, and a namespace with one link for each name.
pub struct Network {
    id: u32,
    names: Vec<String>,
    /// Addresses, in the order of the names.
    hosts: Vec<String>,
}

impl Network {
    /// Makes it; an error where this user or kernel can't.
    pub fn new(names: &[&str]) -> Result<Network> {
        remove_those_left_behind();
        let id = std::process::id();
        let net = format!("10.{}.{}", 100 + id / 250 % 100, id % 250);
        let hosts = (0..names.len()).map(|number| format!("{net}.{}", 11 + number)).collect();
        let network = Network { id, names: names.iter().map(|name| (*name).to_owned()).collect(), hosts };
        let (switch, way) = (network.namespace(SWITCH), network.way());
        ip(&format!("netns add {switch}"))?;
        ip(&format!("-n {switch} link add bridge type bridge"))?;
        ip(&format!("-n {switch} link set bridge up"))?;
        ip(&format!("link add {way} type veth peer name out netns {switch}"))?;
        ip(&format!("-n {switch} link set out master bridge up"))?;
        ip(&format!("addr add {net}.1/24 dev {way}"))?;
        ip(&format!("link set {way} up"))?;
        for (name, host) in network.names.iter().zip(&network.hosts) {
            let (space, link) = (network.namespace(name), network.link(name));
            ip(&format!("netns add {space}"))?;
            ip(&format!("-n {switch} link add {link} type veth peer name eth0 netns {space}"))?;
            ip(&format!("-n {switch} link set {link} master bridge up"))?;
            ip(&format!("-n {space} addr add {host}/24 dev eth0"))?;
            ip(&format!("-n {space} link set eth0 up"))?;
            ip(&format!("-n {space} link set lo up"))?;
        }
        Ok(network)
    }

    /// Where a program of this name runs.
    pub fn place(&self, name: &str) -> Place {
        Place { host: self.host(name).to_owned(), namespace: Some(self.namespace(name)) }
    }

    /// What `one` sends to `other` is lost.
    pub fn cut(&self, one: &str, other: &str) {
        let (space, host) = (self.namespace(one), self.host(other));
        let _ = ip(&format!("-n {space} neigh replace {host} lladdr {NOBODY} dev eth0 nud permanent"));
    }

    /// Ends [`Network::cut`].
    pub fn heal(&self, one: &str, other: &str) {
        let _ = ip(&format!("-n {} neigh del {} dev eth0", self.namespace(one), self.host(other)));
    }

    /// Pulls the cable: from and to everybody, clients too.
    pub fn unplug(&self, name: &str) {
        let _ = self.leave(name);
    }

    /// Ends [`Network::unplug`].
    pub fn plug(&self, name: &str) {
        let _ = ip(&format!("-n {} link set {} master bridge up", self.namespace(SWITCH), self.link(name)));
    }

    /// What this one sends goes out at a few KiB a second, late and with losses.
    pub fn slow(&self, name: &str) {
        let space = self.namespace(name);
        let _ = run("tc", &format!("-n {space} qdisc replace dev eth0 root tbf rate 400kbit burst 4kb latency 600ms"));
    }

    /// Ends [`Network::slow`].
    pub fn hasten(&self, name: &str) {
        let _ = run("tc", &format!("-n {} qdisc del dev eth0 root", self.namespace(name)));
    }

    /// Of what this one sends and of what reaches it, so many packets in a hundred are lost, each by its own draw.
    pub fn lose(&self, name: &str, percent: u64) {
        self.lose_at(name, percent, &["output", "input"]);
    }

    /// The same of what it sends only.
    pub fn lose_sent(&self, name: &str, percent: u64) {
        self.lose_at(name, percent, &["output"]);
    }

    fn lose_at(&self, name: &str, percent: u64, hooks: &[&str]) {
        let space = self.namespace(name);
        let hook = |hook: &str| {
            format!(
                "add chain ip storm {hook} {{ type filter hook {hook} priority 0; }}\nadd rule ip storm {hook} {} != lo numgen random mod 100 < {percent} drop\n",
                if hook == "output" { "oifname" } else { "iifname" }
            )
        };
        let rules = format!("add table ip storm\n{}", hooks.iter().map(|one| hook(one)).collect::<String>());
        let _ = nft(&space, &rules);
    }

    /// Ends [`Network::lose`] and [`Network::lose_sent`].
    pub fn keep(&self, name: &str) {
        let _ = nft(&self.namespace(name), "delete table ip storm\n");
    }

    /// Whether packets can be lost at random here.
    pub fn can_lose(&self) -> bool {
        self.names.iter().all(|name| {
            nft(
                &self.namespace(name),
                "add table ip storm\nadd chain ip storm try\nadd rule ip storm try numgen random mod 100 < 1 drop\ndelete table ip storm\n",
            )
            .is_ok()
        })
    }

    /// Gives this one's link, and another one whose far end is on the bridge; both are in the bridge's namespace. A relay between the two
    /// can stand in for the link's own place on the bridge, once the link has left it.
    pub fn detour(&self, name: &str) -> Result<(String, String)> {
        let (switch, link) = (self.namespace(SWITCH), self.link(name));
        let (on_the_bridge, free) = (format!("tb{}{name}", self.id), format!("tf{}{name}", self.id));
        ip(&format!("-n {switch} link add {on_the_bridge} type veth peer name {free}"))?;
        ip(&format!("-n {switch} link set {on_the_bridge} master bridge up"))?;
        ip(&format!("-n {switch} link set {free} up"))?;
        Ok((link, free))
    }

    /// Takes this one's link off the bridge; [`Network::plug`] ends it.
    pub fn leave(&self, name: &str) -> Result<()> {
        ip(&format!("-n {} link set {} nomaster", self.namespace(SWITCH), self.link(name)))
    }

    /// Ends [`Network::detour`].
    pub fn straight(&self, name: &str) {
        let _ = ip(&format!("-n {} link del tf{}{name}", self.namespace(SWITCH), self.id));
    }

    /// The namespace that the bridge is in.
    pub fn switch(&self) -> String {
        self.namespace(SWITCH)
    }

    /// The interface by which the caller is on the network.
    pub fn own_interface(&self) -> String {
        self.way()
    }

    /// The first three numbers of every address.
    pub fn prefix(&self) -> String {
        let first = &self.hosts[0];
        first.rsplit_once('.').map_or_else(String::new, |(prefix, _)| prefix.to_owned())
    }

    /// The hardware address of this one's link.
    pub fn hardware(&self, name: &str) -> String {
        let shown = shown(&format!("-j -n {} link show dev eth0", self.namespace(name)));
        shown[0]["address"].as_str().unwrap_or_default().to_owned()
    }

    /// What is on this one's link: each address and for how many seconds yet (none: for ever).
    pub fn addresses(&self, name: &str) -> Vec<(String, Option<u64>)> {
        let shown = shown(&format!("-j -n {} addr show dev eth0", self.namespace(name)));
        let infos = shown[0]["addr_info"].as_array().cloned().unwrap_or_default();
        let seconds = |info: &Value| info["valid_life_time"].as_u64().filter(|seconds| *seconds < u64::from(u32::MAX));
        infos.iter().map(|info| (info["local"].as_str().unwrap_or_default().to_owned(), seconds(info))).collect()
    }

    /// Somebody puts an address on this one's link by hand.
    pub fn put(&self, name: &str, address: &str) {
        ip(&format!("-n {} addr add {address}/32 dev eth0", self.namespace(name))).expect("add an address");
    }

    /// Ends [`Network::put`].
    pub fn take(&self, name: &str, address: &str) {
        ip(&format!("-n {} addr del {address}/32 dev eth0", self.namespace(name))).expect("delete an address");
    }

    fn host(&self, name: &str) -> &str {
        let at = self.names.iter().position(|one| one == name).expect("a name of this network");
        &self.hosts[at]
    }

    /// The caller's end of the link to the bridge.
    fn way(&self) -> String {
        format!("tnb{}", self.id)
    }

    fn namespace(&self, name: &str) -> String {
        format!("tn{}-{name}", self.id)
    }

    fn link(&self, name: &str) -> String {
        format!("tn{}{name}", self.id)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = ip(&format!("-n {} link del {}", self.namespace(SWITCH), self.link(name)));
            let _ = ip(&format!("netns del {}", self.namespace(name)));
        }
        let _ = ip(&format!("link del {}", self.way()));
        let _ = ip(&format!("netns del {}", self.namespace(SWITCH)));
    }
}

/// Networks of storms that were killed.
fn remove_those_left_behind() {
    let Ok(spaces) = std::fs::read_dir("/run/netns") else {
        return;
    };
    for space in spaces.flatten() {
        let space = space.file_name().to_string_lossy().into_owned();
        let Some((id, _)) = space.strip_prefix("tn").and_then(|rest| rest.split_once('-')) else {
            continue;
        };
        if id.parse::<u32>().is_ok() && !Path::new("/proc").join(id).exists() {
            let _ = ip(&format!("netns del {space}"));
            let _ = ip(&format!("link del tnb{id}"));
        }
    }
}

/// What `ip` prints as JSON.
fn shown(words: &str) -> Value {
    let output = Command::new("ip").args(words.split(' ')).stdin(Stdio::null()).output().expect("run ip(8)");
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

fn ip(words: &str) -> Result<()> {
    run("ip", words)
}

/// Rules for one namespace, all or none of them.
fn nft(space: &str, rules: &str) -> Result<()> {
    let mut nft = Command::new("ip");
    nft.args(["netns", "exec", space, "nft", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = nft.spawn()?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(rules.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("nft: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn run(program: &str, words: &str) -> Result<()> {
    let output = Command::new(program).args(words.split(' ')).stdin(Stdio::null()).output()?;
    if !output.status.success() {
        bail!("{program} {words}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
