//! An etcd of the test's own, one member or more; stop, kill, freeze, thaw, and reading keys.

use crate::http;
use crate::place::Place;
use crate::ports::Port;
use crate::process;
use crate::room::Room;
use crate::wait::{self, seconds};
use anyhow::{Context, Result, bail};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Mutex;

/// The members of one etcd cluster.
pub struct Etcd {
    members: Vec<Member>,
}

/// One etcd process.
pub struct Member {
    name: String,
    dir: PathBuf,
    place: Place,
    client: Port,
    peer: Port,
    process: Mutex<Option<Child>>,
}

impl Etcd {
    /// Reserves ports and directories; nothing runs yet.
    pub fn planned(room: &Room, members: usize) -> Etcd {
        Etcd::planned_at(room, vec![Place::loopback(); members])
    }

    /// The same, one member in each place.
    pub fn planned_at(room: &Room, places: Vec<Place>) -> Etcd {
        let members = (1..)
            .zip(places)
            .map(|(number, place)| {
                let name = format!("etcd{number}");
                Member { dir: room.directory(&name), name, place, client: Port::free(), peer: Port::free(), process: Mutex::new(None) }
            })
            .collect();
        Etcd { members }
    }

    /// Starts one member and waits until it answers.
    pub async fn start(room: &Room) -> Etcd {
        let etcd = Etcd::planned(room, 1);
        etcd.run(room).await;
        etcd
    }

    /// Starts every member that does not run, and waits until all of them answer.
    pub async fn run(&self, room: &Room) {
        self.spawn(room);
        for member in &self.members {
            wait::until("etcd to answer", seconds(30), async || {
                let answer = http::request_to(&member.place.host, member.client.number(), "GET", "/health", None).await?;
                if !answer.body.contains("\"true\"") {
                    bail!("{answer:?}");
                }
                Ok(())
            })
            .await;
        }
    }

    /// Starts every member that does not run, and waits for none.
    pub fn spawn(&self, room: &Room) {
        let initial: Vec<String> =
            self.members.iter().map(|member| format!("{}=http://{}", member.name, member.at(&member.peer))).collect();
        for member in &self.members {
            member.spawn(room, &initial.join(","));
        }
    }

    /// The member that leads, as the first that answers says.
    pub async fn leader(&self) -> Option<&Member> {
        let status = self.ask("/v3/maintenance/status", &json!({})).await.ok()?;
        let leader = status["leader"].as_str()?.to_owned();
        for member in &self.members {
            let own = member.ask("/v3/maintenance/status", &json!({})).await;
            if own.is_ok_and(|own| own["header"]["member_id"] == leader.as_str()) {
                return Some(member);
            }
        }
        None
    }

    /// The members.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// `host:port` of every member, joined by commas, as `etcd3.hosts` takes it.
    pub fn hosts(&self) -> String {
        let hosts: Vec<String> = self.members.iter().map(|member| member.at(&member.client)).collect();
        hosts.join(",")
    }

    /// Kills every member.
    pub fn kill(&self) {
        self.members.iter().for_each(Member::kill);
    }

    /// Freezes every member: connections stay, no answer comes.
    pub fn freeze(&self) {
        self.members.iter().for_each(Member::freeze);
    }

    /// Lets every member go on.
    pub fn thaw(&self) {
        self.members.iter().for_each(Member::thaw);
    }

    /// Every key below a prefix, with the prefix taken off.
    pub async fn keys(&self, prefix: &str) -> Result<BTreeMap<String, String>> {
        let mut end = prefix.as_bytes().to_vec();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        let range = json!({"key": BASE64.encode(prefix), "range_end": BASE64.encode(end)});
        let answer = self.ask("/v3/kv/range", &range).await?;
        let mut keys = BTreeMap::new();
        for pair in answer["kvs"].as_array().into_iter().flatten() {
            let key = decode(&pair["key"])?;
            let name = key.strip_prefix(prefix).unwrap_or(&key).to_owned();
            keys.insert(name, decode(&pair["value"])?);
        }
        Ok(keys)
    }

    /// Writes a key, as a person with etcdctl would.
    pub async fn put(&self, key: &str, value: &str) -> Result<()> {
        let put = json!({"key": BASE64.encode(key), "value": BASE64.encode(value)});
        self.ask("/v3/kv/put", &put).await.map(drop)
    }

    /// The lease that a key is on.
    pub async fn lease_of(&self, key: &str) -> Result<i64> {
        let answer = self.ask("/v3/kv/range", &json!({"key": BASE64.encode(key)})).await?;
        let lease = answer["kvs"][0]["lease"].as_str().and_then(|lease| lease.parse().ok());
        lease.filter(|lease| *lease != 0).with_context(|| format!("{key} is on no lease"))
    }

    /// Writes a key on a lease.
    pub async fn put_on(&self, key: &str, value: &str, lease: i64) -> Result<()> {
        let put = json!({"key": BASE64.encode(key), "value": BASE64.encode(value), "lease": lease.to_string()});
        self.ask("/v3/kv/put", &put).await.map(drop)
    }

    async fn ask(&self, path: &str, body: &Value) -> Result<Value> {
        let mut last = None;
        for member in &self.members {
            match member.ask(path, body).await {
                Ok(answer) => return Ok(answer),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("there is no etcd")?)
    }
}

fn decode(value: &Value) -> Result<String> {
    let raw = BASE64.decode(value.as_str().unwrap_or_default())?;
    Ok(String::from_utf8_lossy(&raw).into_owned())
}

impl Member {
    /// `etcd1` and so on.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn at(&self, port: &Port) -> String {
        format!("{}:{}", self.place.host, port.number())
    }

    async fn ask(&self, path: &str, body: &Value) -> Result<Value> {
        let body = body.to_string();
        let asked = http::request_to(&self.place.host, self.client.number(), "POST", path, Some(&body));
        let asked = tokio::time::timeout(seconds(3), asked);
        let answer = asked.await.context("etcd does not answer")??;
        if answer.status != 200 {
            bail!("etcd says {}: {}", answer.status, answer.body);
        }
        serde_json::from_str(&answer.body).context("read etcd's JSON")
    }

    fn spawn(&self, room: &Room, initial: &str) {
        let mut process = self.process.lock().expect("nobody panicked with the lock");
        if process.is_some() {
            return;
        }
        let log = room.log(&self.dir.join("etcd.log"));
        let client = format!("http://{}", self.at(&self.client));
        let peer = format!("http://{}", self.at(&self.peer));
        let mut command: Command = room.command_at(&self.place, "etcd", &self.dir);
        command
            .args(["--name", &self.name, "--data-dir", "data"])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", initial, "--logger", "zap", "--log-level", "warn"])
            .stdout(log.try_clone().expect("share the log"))
            .stderr(log);
        let child = command.spawn().expect("start etcd; hint: `make setup` installs it");
        *process = Some(child);
    }

    fn pid(&self) -> Option<Pid> {
        let process = self.process.lock().expect("nobody panicked with the lock");
        process.as_ref().map(Pid::from_child)
    }

    /// Kills it; [`Etcd::run`] starts it again with its data.
    pub fn kill(&self) {
        let taken = self.process.lock().expect("nobody panicked with the lock").take();
        if let Some(mut child) = taken {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Alive, silent.
    pub fn freeze(&self) {
        if let Some(pid) = self.pid() {
            process::signal(pid, Signal::STOP);
        }
    }

    /// Goes on.
    pub fn thaw(&self) {
        if let Some(pid) = self.pid() {
            process::signal(pid, Signal::CONT);
        }
    }
}
