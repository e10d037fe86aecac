//! failsafe_mode: etcd is away, and the leader goes on exactly as long as every member promises not to race.

use serde_json::json;
use std::time::Duration;
use stories::alone::Alone;
use stories::cluster::{Cluster, PATIENCE};
use stories::node::SCOPE;
use stories::wait::{self, seconds};

#[tokio::test]
async fn with_failsafe_mode_commits_go_on_without_etcd_and_the_leader_stays() {
    let cluster = Cluster::of(3).ttl(3).dynamic("failsafe_mode", json!(true)).start().await;
    let leader = cluster.leader().await;
    let writer = cluster.writer().await;
    cluster.etcd.freeze();
    wait::lasting(seconds(12)).await;
    let answer = leader.get("/primary").await.expect("GET /primary");
    assert_eq!(answer.status, 200, "load balancers stay: {answer:?}");
    cluster.etcd.thaw();
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    println!("etcd frozen for four TTLs, failsafe_mode: {}", ledger.summary());
    // Commits go on through the whole time away; the lease that etcd forgot is taken again at its return.
    assert!(ledger.longest_pause() < Duration::from_secs(2), "{}", ledger.summary());
    let view = cluster.healthy().await;
    assert_eq!(view.leader(), Some(leader.name()), "{view}");
    assert_eq!(view.leader_timeline(), Some(1), "{view}");
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

/// Who is down before etcd is away has left the key `failsafe` with its lease: it may not stand, so nobody asks it.
#[tokio::test]
async fn a_standby_that_was_down_before_is_not_asked_and_commits_go_on_without_etcd() {
    let cluster = Cluster::of(3).ttl(3).dynamic("failsafe_mode", json!(true)).dynamic("synchronous_mode", json!("quorum")).start().await;
    let leader = cluster.leader().await;
    let down = cluster.others(leader)[0];
    down.kill();
    wait::until("its name to leave the key failsafe", seconds(20), async || {
        let keys = cluster.etcd.keys(&format!("/service/{SCOPE}/failsafe")).await.map_err(|error| format!("{error:#}"))?;
        if keys.values().any(|text| text.contains(leader.name()) && !text.contains(&format!("\"{}\"", down.name()))) {
            Ok(())
        } else {
            Err(format!("{keys:?}"))
        }
    })
    .await;
    let writer = cluster.writer().await;
    writer.goes_on(50, PATIENCE).await;
    cluster.etcd.freeze();
    // TENURE_ETCD_AWAY: for how many seconds, where somebody wants to see it for longer.
    let away = std::env::var("TENURE_ETCD_AWAY").map_or(20, |text| text.parse().expect("TENURE_ETCD_AWAY in seconds"));
    wait::lasting(seconds(away)).await;
    cluster.etcd.thaw();
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    println!("etcd frozen for {away} s, failsafe_mode, one of two standbys down since before: {}", ledger.summary());
    assert_eq!(ledger.refused().count(), 0, "{}", ledger.summary());
    assert!(ledger.longest_pause() < Duration::from_secs(2), "{}", ledger.summary());
    cluster.start(down);
    let view = cluster.healthy().await;
    assert_eq!(view.leader(), Some(leader.name()), "{view}");
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

#[tokio::test]
async fn with_failsafe_mode_one_member_that_does_not_promise_closes_the_fence() {
    let cluster = Cluster::of(3).ttl(3).dynamic("failsafe_mode", json!(true)).start().await;
    let leader = cluster.leader().await;
    leader.query("CREATE TABLE kept(n int)").await.expect("make a table");
    let silent = cluster.others(leader)[0];
    silent.freeze_arbiter();
    cluster.etcd.freeze();
    wait::until("writes to be refused", seconds(30), async || match leader.query("INSERT INTO kept VALUES (0)").await {
        Ok(_) => Err("a write went through".to_owned()),
        Err(error) if stories::node::sqlstate(&error).as_deref() == Some("25006") => Ok(()),
        Err(error) => Err(format!("{error:#}")),
    })
    .await;
    silent.thaw_arbiter();
    cluster.etcd.thaw();
    wait::until("writes to go on", seconds(20), async || leader.query("INSERT INTO kept VALUES (1)").await).await;
    cluster.healthy().await;
}

/// A client that may ask REST for a promise binds a member, and so does a leader that was without etcd for a moment. That costs nobody an outage.
#[tokio::test]
async fn a_promise_binds_for_one_ttl_at_most_and_a_switchover_has_no_outage_of_it() {
    let cluster = Cluster::of(2).ttl(6).dynamic("failsafe_mode", json!(true)).start().await;
    let leader = cluster.leader().await;
    let standby = cluster.others(leader)[0];
    let writer = cluster.writer().await;
    let ask = json!({"name": leader.name(), "ttl": 3600});
    let answer = standby.post("/failsafe", &ask).await.expect("POST /failsafe");
    assert_eq!(answer.status, 202, "an hour is not promised: {answer:?}");
    let told = standby.get("/patroni").await.expect("GET /patroni");
    let told: serde_json::Value = serde_json::from_str(&told.body).expect("JSON");
    let left = told["tenure"]["promise_ms_left"].as_u64().unwrap_or_else(|| panic!("{told}"));
    assert!((1..=6000).contains(&left), "{told}");
    assert_eq!(told["tenure"]["promised_to"], leader.name(), "{told}");
    let request = json!({"leader": leader.name(), "candidate": standby.name()});
    let done = leader.post("/switchover", &request).await.expect("POST /switchover");
    assert_eq!(done.status, 200, "{done:?}");
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    println!("switchover onto a member that had promised: {}", ledger.summary());
    assert!(ledger.longest_pause() < Duration::from_secs(5), "{}", ledger.summary());
    cluster.healthy().await;
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

/// A promise to a leader that is there, on a lease that outlives it, is over before its time.
#[tokio::test]
async fn a_promise_ends_early_where_the_leader_is_back() {
    let cluster = Cluster::of(2).ttl(20).dynamic("failsafe_mode", json!(true)).start().await;
    let leader = cluster.leader().await;
    let standby = cluster.others(leader)[0];
    let ask = json!({"name": leader.name(), "ttl": 20});
    assert_eq!(standby.post("/failsafe", &ask).await.expect("POST /failsafe").status, 200);
    standby.logged(&["the promise to", "is over, its lease outlives it"], seconds(15)).await;
    let told = standby.get("/patroni").await.expect("GET /patroni");
    assert!(!told.body.contains("promise_ms_left"), "{told:?}");
    leader.stop();
    cluster
        .wait_within(seconds(12), "the standby to lead before the promise would have ended", |view| view.leader() == Some(standby.name()))
        .await;
}

/// CLOCK_BOOTTIME, in nanoseconds: the clock that promises are made by.
fn boottime_ns() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// A server that has lost the leader key, nobody holds it, and it has promised not to take it for this long; its worker
/// is still frozen. Gives the end of the promise.
async fn promised(alone: &Alone, span: Duration) -> i64 {
    let session = alone.session().await;
    let far = boottime_ns() + 60_000_000_000;
    assert_eq!(session.ok(&format!("SELECT tenure_internal.promise({far})")).await, "f", "a leader promises nothing");
    alone.let_the_deadline_pass().await;
    wait::until("the leader key to run out", PATIENCE, async || {
        let keys = alone.etcd.keys(&format!("/service/{SCOPE}/")).await.map_err(|error| format!("{error:#}"))?;
        if keys.contains_key("leader") { Err(format!("{:?}", keys.keys())) } else { Ok(()) }
    })
    .await;
    let until = boottime_ns() + i64::try_from(span.as_nanos()).expect("a few seconds");
    assert_eq!(session.ok(&format!("SELECT tenure_internal.promise({until})")).await, "t");
    until
}

/// The fence opens in the end, and not while the promise binds.
async fn opens_after(alone: &Alone, until: i64) {
    let session = alone.session().await;
    let seen_at = wait::until("the fence to be open", PATIENCE, async || match session.ok("SELECT fence FROM tenure.lease()").await {
        seen if seen == "open" => Ok(boottime_ns()),
        seen => Err(seen),
    })
    .await;
    assert!(seen_at >= until, "the fence was open {} ms before the promise ran out", (until - seen_at) / 1_000_000);
    session.ok("CREATE TABLE after_the_promise()").await;
}

#[tokio::test]
async fn who_has_promised_does_not_take_the_key() {
    let alone = Alone::start(&[]).await;
    let until = promised(&alone, seconds(8)).await;
    alone.thaw_worker().await;
    opens_after(&alone, until).await;
}

/// A request to take the key whose answer was lost is carried out in the end: the key is the node's, and it promised meanwhile.
#[tokio::test]
async fn who_has_promised_opens_no_fence_with_a_key_that_came_late() {
    let alone = Alone::start(&[]).await;
    let until = promised(&alone, seconds(10)).await;
    alone.thaw_worker().await;
    let lease = wait::until("a new lease", PATIENCE, async || {
        alone.etcd.lease_of(&format!("/service/{SCOPE}/members/fenced")).await.map_err(|error| format!("{error:#}"))
    })
    .await;
    alone.etcd.put_on(&format!("/service/{SCOPE}/leader"), "fenced", lease).await.expect("write the leader key");
    opens_after(&alone, until).await;
}

/// With a quorum a word for a vacancy is a vote: others count on it that its member has no more. Were that member to promise the leader of before that it takes no part, it
/// would receive on, and the leader would acknowledge by what it confirms.
#[tokio::test]
async fn a_voter_that_has_spoken_in_a_vacancy_promises_nothing_until_another_leads() {
    let cluster = Cluster::of(3).ttl(3).dynamic("failsafe_mode", json!(true)).dynamic("synchronous_mode", json!("quorum")).start().await;
    let leader = cluster.leader().await;
    let [voter, silent] = cluster.others(leader)[..] else { panic!("three nodes") };
    wait::until("two voters of which one may lack a commit", seconds(20), async || {
        let key = cluster.etcd.keys(&format!("/service/{SCOPE}/sync")).await.map_err(|error| format!("{error:#}"))?;
        let both = |text: &String| text.contains(r#""quorum":1"#) && text.contains(&format!("{},{}", voter.name(), silent.name()));
        if key.values().any(both) { Ok(()) } else { Err(format!("{key:?}")) }
    })
    .await;
    let ask = json!({"name": leader.name(), "ttl": 3});
    // The voter alone is left, and knows only that it is one of two: it has a word, and can't lead.
    silent.kill();
    leader.kill();
    let file = voter.data_dir().join("pg_tenure.word");
    wait::until("the voter's word", seconds(20), async || if file.exists() { Ok(()) } else { Err(voter.log()) }).await;
    let refused = voter.post("/failsafe", &ask).await.expect("POST /failsafe");
    assert_eq!(refused.status, 500, "{refused:?}");
    assert!(refused.body.contains("has said its word"), "{refused:?}");
    let before = voter.postmaster();
    voter.kill_postmaster();
    wait::until("the voter's server again", seconds(30), async || {
        if voter.postmaster() == before {
            return Err("the old one".to_owned());
        }
        voter.query("SELECT 1").await.map_err(|error| format!("{error:#}"))
    })
    .await;
    let answers = async || voter.post("/failsafe", &ask).await.map_err(|error| format!("{error:#}"));
    let again = wait::until("its answer", seconds(20), async || match answers().await? {
        answer if answer.status == 503 => Err(format!("{answer:?}")),
        answer => Ok(answer.status),
    })
    .await;
    assert_eq!(again, 500, "a start forgets nothing");
    // The old leader says that it has no more: one of the two leads, and the vacancy is over.
    cluster.start(leader);
    cluster.start(silent);
    let view = cluster.healthy().await;
    wait::until("the word to be over", seconds(20), async || if file.exists() { Err(voter.log()) } else { Ok(()) }).await;
    if view.leader() == Some(voter.name()) {
        let request = json!({"leader": voter.name(), "candidate": leader.name()});
        let done = voter.post("/switchover", &request).await.expect("POST /switchover");
        assert_eq!(done.status, 200, "{done:?}");
        cluster.healthy().await;
    }
    let ask = json!({"name": cluster.leader().await.name(), "ttl": 3});
    wait::until("a promise to the next leader", seconds(20), async || match voter.post("/failsafe", &ask).await {
        Ok(answer) if answer.status == 200 => Ok(()),
        answer => Err(format!("{answer:?}")),
    })
    .await;
}
