//! `make page-shots`: the status page in a headless Chromium, in four states, on a phone, in dark and by keyboard alone; the pictures are to be looked at.

mod browser;

use anyhow::{Context, Result, ensure};
use browser::Browser;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Duration;
use stories::cluster::Cluster;
use stories::etcd::Etcd;
use stories::room::Room;
use stories::wait::lasting;

fn main() -> Result<()> {
    let program = Path::new("/usr/bin/chromium");
    ensure!(program.exists(), "there is no {}; hint: apt-get install chromium", program.display());
    let shots = std::env::args().nth(1).map_or_else(|| PathBuf::from("target/page-shots"), PathBuf::from);
    std::fs::create_dir_all(&shots)?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(program, &shots))
}

async fn run(program: &Path, shots: &Path) -> Result<()> {
    let room = Room::new();
    let etcd = Etcd::start(&room).await;
    let cluster = Cluster::of(3).ttl(5).synchronous(true).planned_on(room, etcd, |config| {
        config["restapi"]["authentication"] = json!({"username": "admin", "password": "s3cret"});
    });
    cluster.start_all().await;
    let leader = cluster.leader().await;
    // The page of a standby: it is there through the failover.
    let node = cluster.others(leader)[0];
    let mut browser = Browser::start(&cluster.room, program)?;
    let shot = |name: &str| shots.join(format!("{name}.png"));
    browser.look(1200, 900, false)?;
    browser.open(&format!("http://{}:{}/ui", node.host(), node.rest_port()))?;
    browser.until("the members", "document.querySelectorAll('#rows tr').length === 3 && !document.querySelector('#rows .bad')")?;
    let writer = cluster.writer().await;
    lasting(Duration::from_secs(20)).await;
    browser.until("no faults", "document.getElementById('faults').innerText === 'none'")?;
    browser.shoot(&shot("healthy"))?;
    browser.look(1200, 900, true)?;
    browser.shoot(&shot("healthy-dark"))?;
    for dark in [false, true] {
        browser.look(360, 740, dark)?;
        let width = browser.value("document.documentElement.scrollWidth")?;
        ensure!(width.as_u64().is_some_and(|width| width <= 360), "the page is {width} wide on a screen of 360");
        browser.shoot(&shot(if dark { "phone-dark" } else { "phone" }))?;
    }

    // By keyboard alone: to the button, into the question, with name and password, and back.
    browser.look(1200, 900, false)?;
    browser.tab_to("pause")?;
    browser.press("Enter")?;
    browser.until("the question", "document.getElementById('ask').open && document.activeElement.id === 'ask-no'")?;
    browser.press("Escape")?;
    browser.until("the question to be gone", "!document.getElementById('ask').open && document.activeElement.id === 'pause'")?;
    browser.press("Enter")?;
    browser.tab_to("ask-yes")?;
    browser.press("Enter")?;
    browser.until("the question who it is", "document.activeElement.id === 'user'")?;
    browser.write("admin")?;
    browser.press("Tab")?;
    browser.write("wrong")?;
    browser.tab_to("ask-yes")?;
    browser.press("Enter")?;
    browser.until("the refusal", "document.getElementById('ask-error').innerText.includes('wrong credentials')")?;
    browser.shoot(&shot("asked"))?;
    browser.tab_to("password")?;
    browser.value("document.getElementById('password').value = ''")?;
    browser.write("s3cret")?;
    browser.press("Enter")?;
    browser.until("maintenance mode", "document.getElementById('banner').innerText.includes('Maintenance mode')")?;
    browser.shoot(&shot("paused"))?;
    // The two 401 of the way are in the browser's log; nothing else may be, no breach of the policy above all.
    let other: Vec<&String> = browser.complaints.iter().filter(|words| !words.contains("401")).collect();
    ensure!(other.is_empty(), "the browser complains: {other:?}");
    cluster.cli_ok(&["resume", "--wait"]).await;

    // A failover, before and after somebody leads.
    leader.kill();
    browser.until("the vacancy", "document.getElementById('banner').innerText.includes('Nobody leads')")?;
    browser.shoot(&shot("failover-vacant"))?;
    let gone = leader.name();
    browser.until(
        "the next leader",
        &format!("!document.getElementById('reign-now').innerText.startsWith('{gone}') && document.getElementById('banner').hidden"),
    )?;
    lasting(Duration::from_secs(6)).await;
    browser.shoot(&shot("failover"))?;
    cluster.start(leader);
    cluster.healthy().await;

    cluster.etcd.freeze();
    browser.until("etcd to be away", "document.getElementById('banner').innerText.includes('etcd does not answer')")?;
    lasting(Duration::from_secs(4)).await;
    browser.shoot(&shot("etcd-away"))?;
    browser.look(360, 740, true)?;
    browser.shoot(&shot("etcd-away-phone-dark"))?;
    cluster.etcd.thaw();
    cluster.healthy().await;
    drop(browser);
    let ledger = writer.finish();
    println!("page-shots: {} pictures in {}; {}", std::fs::read_dir(shots)?.count(), shots.display(), ledger.summary());
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
    std::fs::canonicalize(shots).context("the pictures are gone").map(drop)
}
