//! An etcd of the test's own, one member or more, open or guarded; stop, kill, freeze, thaw, and reading keys.

use crate::http;
use crate::place::Place;
use crate::ports::Port;
use crate::process;
use crate::room::Room;
use crate::tls::{Authority, Signed};
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
    /// The password of root once users are asked for.
    root: Mutex<Option<String>>,
}

/// What guards etcd besides its users; nothing by default.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    /// Of the server; clients then come by TLS.
    certificate: Option<(PathBuf, Signed)>,
    /// Clients have to show a certificate of the same authority.
    client_certificates: bool,
    /// `--auth-token-ttl`, in seconds.
    token_ttl: Option<u64>,
    /// `--quota-backend-bytes`.
    quota: Option<u64>,
}

impl Guard {
    /// The server shows a certificate of this authority.
    pub fn tls(mut self, room: &Room, authority: &Authority) -> Guard {
        self.certificate = Some((authority.file.clone(), authority.sign(room, "etcd")));
        self
    }

    /// Clients have to show one, too.
    pub fn client_certificates(mut self) -> Guard {
        self.client_certificates = true;
        self
    }

    fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        if let Some((authority, signed)) = &self.certificate {
            arguments.push(format!("--cert-file={}", signed.certificate.display()));
            arguments.push(format!("--key-file={}", signed.key.display()));
            arguments.push(format!("--trusted-ca-file={}", authority.display()));
        }
        if self.client_certificates {
            arguments.push("--client-cert-auth".to_owned());
        }
        arguments.extend(self.quota.map(|bytes| format!("--quota-backend-bytes={bytes}")));
        arguments.extend(self.token_ttl.map(|seconds| format!("--auth-token-ttl={seconds}")));
        arguments
    }

    /// Its database may have so many bytes.
    pub fn quota(mut self, bytes: u64) -> Guard {
        self.quota = Some(bytes);
        self
    }

    /// A login that is not used for so long is forgotten.
    pub fn token_ttl(mut self, seconds: u64) -> Guard {
        self.token_ttl = Some(seconds);
        self
    }
}

/// One etcd process.
pub struct Member {
    name: String,
    dir: PathBuf,
    place: Place,
    client: Port,
    peer: Port,
    /// Where clients come by TLS: the story's own eyes, without.
    eyes: Option<Port>,
    guard: Guard,
    process: Mutex<Option<Child>>,
}

impl Etcd {
    /// Reserves ports and directories; nothing runs yet.
    pub fn planned(room: &Room, members: usize) -> Etcd {
        Etcd::planned_at(room, vec![Place::loopback(); members])
    }

    /// The same, one member in each place.
    pub fn planned_at(room: &Room, places: Vec<Place>) -> Etcd {
        Etcd::guarded(room, places, &Guard::default())
    }

    /// The same, guarded.
    pub fn guarded(room: &Room, places: Vec<Place>, guard: &Guard) -> Etcd {
        let members = (1..)
            .zip(places)
            .map(|(number, place)| {
                let name = format!("etcd{number}");
                Member {
                    dir: room.directory(&name),
                    name,
                    place,
                    client: Port::free(),
                    peer: Port::free(),
                    eyes: guard.certificate.is_some().then(Port::free),
                    guard: guard.clone(),
                    process: Mutex::new(None),
                }
            })
            .collect();
        Etcd { members, root: Mutex::new(None) }
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
                let answer = http::request_to(&member.place.host, member.port(), "GET", "/health", None).await?;
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
            let own = member.ask("/v3/maintenance/status", &json!({}), "").await;
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

    /// What the first member counts, as Prometheus reads it.
    pub async fn metrics(&self) -> Result<String> {
        let member = self.members.first().context("there is no etcd")?;
        Ok(http::request_to(&member.place.host, member.port(), "GET", "/metrics", None).await.context("read etcd's metrics")?.body)
    }

    /// `host:port` of every member, joined by commas, as `etcd3.hosts` takes it.
    pub fn hosts(&self) -> String {
        let hosts: Vec<String> = self.members.iter().map(|member| member.at(&member.client)).collect();
        hosts.join(",")
    }

    /// Saves what etcd has now, as an operator's backup does.
    pub async fn save(&self, room: &Room) -> PathBuf {
        self.backup(room).await.expect("save etcd's keys; hint: `make setup` installs etcdctl")
    }

    /// Puts etcd back to what was saved, and waits until it answers.
    pub async fn restore(&self, room: &Room, saved: &std::path::Path) {
        self.put_back(room, saved).await.expect("restore etcd's keys");
        self.run(room).await;
    }

    /// The same from the first member that answers; an error where none does.
    pub async fn backup(&self, room: &Room) -> Result<PathBuf> {
        let mut last = None;
        for member in &self.members {
            let file = member.dir.join("backup.db");
            let _ = std::fs::remove_file(&file);
            let endpoint = format!("--endpoints={}", member.at(&member.client));
            match etcdctl(room, member, &[&endpoint, "snapshot", "save", &file.display().to_string()]).await {
                Ok(()) => return Ok(file),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("there is no etcd")?)
    }

    /// Puts every member back to what was saved, all of them at once: nobody else starts one in between.
    pub async fn put_back(&self, room: &Room, saved: &std::path::Path) -> Result<()> {
        let peer = |member: &Member| format!("http://{}", member.at(&member.peer));
        let initial: Vec<String> = self.members.iter().map(|member| format!("{}={}", member.name, peer(member))).collect();
        let (initial, saved) = (initial.join(","), saved.display().to_string());
        for member in &self.members {
            let _ = std::fs::remove_dir_all(member.dir.join("restored"));
            let mut arguments = vec!["snapshot", "restore", saved.as_str(), "--name", &member.name, "--data-dir", "restored"];
            let peer = peer(member);
            arguments.extend(["--initial-cluster", &initial, "--initial-advertise-peer-urls", &peer]);
            etcdctl(room, member, &arguments).await?;
        }
        self.lose();
        for member in &self.members {
            std::fs::rename(member.dir.join("restored"), member.dir.join("data"))?;
        }
        self.spawn(room);
        Ok(())
    }

    /// Kills every member, and all that it knew is gone: [`Etcd::run`] starts empty ones.
    pub fn lose(&self) {
        self.kill();
        for member in &self.members {
            let _ = std::fs::remove_dir_all(member.dir.join("data"));
        }
    }

    /// Deletes a key, as a person with etcdctl would.
    pub async fn delete(&self, key: &str) -> Result<()> {
        self.ask("/v3/kv/deleterange", &json!({"key": BASE64.encode(key)})).await.map(drop)
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

    /// Writes many keys, each on a lease or (0) on none, a hundred at once.
    pub async fn put_many(&self, pairs: &[(String, String, i64)]) -> Result<()> {
        for some in pairs.chunks(100) {
            let put = |(key, value, lease): &(String, String, i64)| json!({"requestPut": {"key": BASE64.encode(key), "value": BASE64.encode(value), "lease": lease.to_string()}});
            self.ask("/v3/kv/txn", &json!({"success": some.iter().map(put).collect::<Vec<_>>()})).await?;
        }
        Ok(())
    }

    /// Adds a user whose role may read and write below this prefix only.
    pub async fn add_user(&self, name: &str, password: &str, prefix: &str) -> Result<()> {
        let mut end = prefix.as_bytes().to_vec();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        let may = json!({"permType": "READWRITE", "key": BASE64.encode(prefix), "range_end": BASE64.encode(end)});
        self.ask("/v3/auth/role/add", &json!({"name": name})).await?;
        self.ask("/v3/auth/role/grant", &json!({"name": name, "perm": may})).await?;
        self.ask("/v3/auth/user/add", &json!({"name": name, "password": password})).await?;
        self.ask("/v3/auth/user/grant", &json!({"user": name, "role": name})).await.map(drop)
    }

    /// From now on every client has to log in; `root` may do everything.
    pub async fn ask_for_users(&self, root: &str) -> Result<()> {
        self.ask("/v3/auth/user/add", &json!({"name": "root", "password": root})).await?;
        self.ask("/v3/auth/role/add", &json!({"name": "root"})).await?;
        self.ask("/v3/auth/user/grant", &json!({"user": "root", "role": "root"})).await?;
        self.ask("/v3/auth/enable", &json!({})).await?;
        *self.root.lock().expect("nobody panicked with the lock") = Some(root.to_owned());
        Ok(())
    }

    /// Gives a user another password: what it logged in with before is forgotten.
    pub async fn change_password(&self, name: &str, password: &str) -> Result<()> {
        self.ask("/v3/auth/user/changepw", &json!({"name": name, "password": password})).await.map(drop)
    }

    /// Makes the members agree on another leader than this one.
    pub async fn move_leader(&self, from: &Member) -> Result<()> {
        let other = self.members.iter().find(|member| member.name != from.name).context("one member only")?;
        let status = other.ask("/v3/maintenance/status", &json!({}), "").await?;
        let target = status["header"]["member_id"].clone();
        from.ask("/v3/maintenance/transfer-leadership", &json!({"targetID": target}), "").await.map(drop)
    }

    /// Forgets every revision but the last.
    pub async fn compact(&self) -> Result<()> {
        let now = self.ask("/v3/kv/range", &json!({"key": BASE64.encode("/")})).await?;
        let compaction = json!({"revision": now["header"]["revision"], "physical": true});
        self.ask("/v3/kv/compaction", &compaction).await.map(drop)
    }

    /// Gives back to the disk what compactions have freed; a member answers nothing else meanwhile.
    pub async fn defragment(&self, member: &Member) -> Result<()> {
        member.ask("/v3/maintenance/defragment", &json!({}), "").await.map(drop)
    }

    async fn ask(&self, path: &str, body: &Value) -> Result<Value> {
        let root = self.root.lock().expect("nobody panicked with the lock").clone();
        let mut last = None;
        for member in &self.members {
            let asked = async {
                let token = match &root {
                    Some(root) => member.log_in(root).await?,
                    None => String::new(),
                };
                member.ask(path, body, &token).await
            };
            match asked.await {
                Ok(answer) => return Ok(answer),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("there is no etcd")?)
    }
}

async fn etcdctl(room: &Room, member: &Member, arguments: &[&str]) -> Result<()> {
    let mut command = tokio::process::Command::from(room.command_at(&member.place, "etcdctl", &member.dir));
    command.env("ETCDCTL_API", "3").args(arguments).kill_on_drop(true);
    let output = tokio::time::timeout(seconds(20), command.output()).await.context("etcdctl does not end")??;
    if !output.status.success() {
        bail!("etcdctl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
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

    /// All its files, and its process, are in it.
    pub fn dir(&self) -> &std::path::Path {
        &self.dir
    }

    /// Where the story looks: without TLS.
    pub fn port(&self) -> u16 {
        self.eyes.as_ref().unwrap_or(&self.client).number()
    }

    /// The header line that a login as root gives.
    async fn log_in(&self, password: &str) -> Result<String> {
        let answer = self.ask("/v3/auth/authenticate", &json!({"name": "root", "password": password}), "").await?;
        Ok(format!("Authorization: {}\r\n", answer["token"].as_str().context("no token")?))
    }

    async fn ask(&self, path: &str, body: &Value, headers: &str) -> Result<Value> {
        let body = body.to_string();
        let asked = http::request_with(&self.place.host, self.port(), "POST", path, Some(&body), headers);
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
        let scheme = if self.guard.certificate.is_some() { "https" } else { "http" };
        let client = format!("{scheme}://{}", self.at(&self.client));
        let listen = self.eyes.iter().fold(client.clone(), |list, eyes| format!("{list},http://{}", self.at(eyes)));
        let peer = format!("http://{}", self.at(&self.peer));
        let mut command: Command = room.command_at(&self.place, "etcd", &self.dir);
        command
            .args(["--name", &self.name, "--data-dir", "data"])
            .args(["--listen-client-urls", &listen, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", initial, "--logger", "zap", "--log-level", "warn"])
            // A login costs a tenth of a second by default; the story's own, for each look, need not.
            .args(["--bcrypt-cost", "4"])
            .args(self.guard.arguments())
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
