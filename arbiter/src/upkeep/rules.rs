//! After each start and each reload: does the server take pg_hba.conf as it stands, and may this cluster's own role replicate by it? The
//! file is its owner's, so what it lacks is said and not mended.

use crate::node::Node;
use crate::postgres::query::literal;
use anyhow::Result;

/// Looks once after each start or reload, and says what is wrong.
pub async fn look(node: &Node) {
    if !node.take_rules_owed() {
        return;
    }
    match faults(node).await {
        Ok(faults) => node.say_of_rules(faults),
        Err(why) => tracing::debug!("look at pg_hba_file_rules: {why:#}"),
    }
}

async fn faults(node: &Node) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    let file = node.sql.text("SELECT current_setting('hba_file')").await?;
    let errors =
        "SELECT coalesce(string_agg(format('line %s: %s', line_number, error), '; '), '') FROM pg_hba_file_rules WHERE error IS NOT NULL";
    let errors = node.sql.text(errors).await?;
    if !errors.is_empty() {
        faults.push(format!("{file}: {errors}; the server goes on with the rules that it read before, and would not start with these"));
    }
    let role = &node.config.postgres.authentication.replication.username;
    let may = format!(
        "SELECT EXISTS (SELECT FROM pg_hba_file_rules WHERE type LIKE 'host%' AND 'replication' = ANY (database) AND auth_method <> 'reject' \
         AND EXISTS (SELECT FROM unnest(user_name) AS named WHERE named IN ('all', {}) OR named LIKE '+%' OR named LIKE '/%'))",
        literal(role)
    );
    if !node.sql.ask(&may).await? {
        faults.push(format!(
            "{file} has no rule by which the role {role} may replicate over the network: no other member can be a standby of this one; one would be \"hostssl replication {role} 10.0.0.0/24 scram-sha-256\""
        ));
    }
    Ok(faults)
}
