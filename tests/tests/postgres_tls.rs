//! Replication, rewind and clone over TLS with client certificates: no byte of it in the clear, no password.

use serde_json::json;
use stories::cluster::{Cluster, PATIENCE};
use stories::etcd::Etcd;
use stories::node::Node;
use stories::room::Room;
use stories::tls::{Authority, text};
use stories::wait;

/// Every session of another member with this server uses TLS and showed a certificate of the right name.
async fn is_private(primary: &Node, standby: &Node) {
    let asked = "SELECT coalesce(string_agg(a.application_name || ' ' || s.ssl || ' ' || coalesce(s.client_dn, 'none'), ', '), 'nobody')
        FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) WHERE a.usename = 'replicator' AND a.application_name IN ('n1', 'n2')";
    let wanted = format!("{} true /CN=replicator", standby.name());
    wait::until("replication over TLS with the certificate", PATIENCE, async || match primary.one(asked).await {
        Ok(seen) if seen == wanted => Ok(()),
        seen => Err(format!("{seen:?}")),
    })
    .await;
}

#[tokio::test]
async fn members_speak_tls_and_show_certificates_in_replication_rewind_and_clone() {
    let room = Room::new();
    let etcd = Etcd::start(&room).await;
    let authority = Authority::new(&room, "cluster");
    let server = authority.sign(&room, "server");
    let replicator = authority.sign(&room, "replicator");
    let rewinder = authority.sign(&room, "rewinder");
    let with = |name: &str, signed: &stories::tls::Signed| {
        json!({"username": name, "password": "unused", "sslmode": "verify-ca", "sslrootcert": text(&authority.file),
            "sslcert": text(&signed.certificate), "sslkey": text(&signed.key)})
    };
    let cluster = Cluster::of(2).planned_on(room, etcd, |config| {
        let postgres = &mut config["postgresql"];
        for (name, value) in [
            ("ssl", "on".to_owned()),
            ("ssl_cert_file", text(&server.certificate)),
            ("ssl_key_file", text(&server.key)),
            ("ssl_ca_file", text(&authority.file)),
            ("wal_keep_size", "16MB".to_owned()),
        ] {
            postgres["parameters"][name] = json!(value);
        }
        postgres["authentication"]["replication"] = with("replicator", &replicator);
        postgres["authentication"]["rewind"] = with("rewinder", &rewinder);
        postgres["pg_hba"] = json!([
            "local all all scram-sha-256",
            "hostssl replication replicator 127.0.0.1/32 cert",
            "hostssl postgres rewinder 127.0.0.1/32 cert",
            "host all postgres 127.0.0.1/32 scram-sha-256",
        ]);
    });
    cluster.start_all().await;
    let first = cluster.leader().await;
    let second = cluster.others(first)[0];
    is_private(first, second).await;

    // The old leader writes what nobody gets, dies, and comes back by a rewind.
    first.query("CREATE TABLE lost AS SELECT generate_series(1, 100) AS n").await.expect("write");
    second.freeze();
    first.query("INSERT INTO lost SELECT generate_series(1, 1000)").await.expect("write");
    first.kill();
    second.thaw();
    cluster.wait_until("the other to lead", |view| view.leader() == Some(second.name())).await;
    cluster.start(first);
    cluster.healthy().await;
    is_private(second, first).await;

    // A copy from nothing.
    cluster.cli_ok(&["reinit", first.name(), "--force", "--wait"]).await;
    first.logged(&["the replica was made by basebackup"], PATIENCE).await;
    cluster.healthy().await;
    is_private(second, first).await;
}
