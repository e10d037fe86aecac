//! `failsafe_mode`: who is written, who is asked, who promises.

use cluster::config::DynamicConfig;
use cluster::failsafe::{Members, Refusal, Unable, keeps_closed, key_to_write, latest_tenure, may_promise, whom_to_ask};
use cluster::leader::{Leader, LeaseId, Term};
use cluster::name::MemberName;
use cluster::view::{ClusterView, LastTerm, Versioned};
use serde_json::json;

fn name(text: &str) -> MemberName {
    MemberName::new(text).expect("a name")
}

fn members(names: &[&str]) -> Members {
    names.iter().map(|name| ((*name).to_owned(), format!("http://{name}/"))).collect()
}

fn view(on: bool, key: Option<&[&str]>) -> ClusterView {
    let config = DynamicConfig(json!({"failsafe_mode": on}).as_object().cloned().unwrap_or_default());
    ClusterView {
        config: Some(Versioned { value: config, revision: 1 }),
        failsafe: key.map(|key| Versioned { value: members(key), revision: 2 }),
        ..ClusterView::default()
    }
}

#[test]
fn everybody_who_may_stand_by_the_key_is_asked() {
    let me = name("a");
    let ask = |key: Option<&[&str]>, sent: Option<&[&str]>| whom_to_ask(&view(true, key), sent.map(members).as_ref(), &me);
    assert_eq!(ask(None, None), Err(Unable::NoKey));
    assert_eq!(ask(Some(&["b"]), Some(&["a", "b"])), Err(Unable::NotInKey));
    assert_eq!(ask(Some(&["a", "b"]), None), Ok(members(&["b"])));
    // The write that was to add c may have been carried out, the one that was to remove b may not.
    assert_eq!(ask(Some(&["a", "b"]), Some(&["a", "c"])), Ok(members(&["b", "c"])));
    assert_eq!(ask(Some(&["a"]), None), Ok(members(&[])));
}

#[test]
fn the_key_has_every_member_while_the_mode_is_on() {
    // No members are registered in these views.
    assert_eq!(key_to_write(&view(true, Some(&["gone"]))), Some(members(&[])));
    assert_eq!(key_to_write(&view(false, Some(&["gone"]))), Some(members(&[])));
    assert_eq!(key_to_write(&view(false, None)), None);
    assert_eq!(key_to_write(&view(true, Some(&[]))), None);
}

#[test]
fn nobody_promises_a_leader_when_another_leads() {
    let led_by =
        |leader: &str| ClusterView { leader: Some(Leader { name: name(leader), lease: LeaseId(1), term: Term(5) }), ..view(true, None) };
    assert_eq!(may_promise(&view(false, None), "a"), Err(Refusal::Off));
    assert_eq!(may_promise(&view(true, None), "a"), Ok(()));
    assert_eq!(may_promise(&led_by("a"), "a"), Ok(()));
    assert_eq!(may_promise(&led_by("b"), "a"), Err(Refusal::AnotherLeads(name("b"))));
    // A leader that was deposed asks while the lease of its successor has run out, too.
    let last = |holder: &str| Versioned { value: LastTerm { holder: name(holder), how: "taken".to_owned() }, revision: 7 };
    let led_last_by = |holder: &str| ClusterView { last_term: Some(last(holder)), ..view(true, None) };
    assert_eq!(may_promise(&led_last_by("a"), "a"), Ok(()));
    assert_eq!(may_promise(&led_last_by("b"), "a"), Err(Refusal::AnotherLed(name("b"))));
}

/// A server that led in 7 has that on its page, whatever its arbiter, which was frozen, knows.
#[test]
fn a_view_from_before_a_nodes_own_tenure_is_known_by_its_number() {
    let led = ClusterView { leader: Some(Leader { name: name("a"), lease: LeaseId(1), term: Term(5) }), ..view(true, None) };
    let last = Versioned { value: LastTerm { holder: name("b"), how: "taken".to_owned() }, revision: 7 };
    let page = cluster::citus::order(0, 7);
    assert!(page > latest_tenure(&led) && page > latest_tenure(&view(true, None)));
    assert!(page <= latest_tenure(&ClusterView { last_term: Some(last), ..view(true, None) }));
    let later = cluster::store::Making { generation: 1, by: "a".to_owned(), upgraded: None };
    assert!(
        page < latest_tenure(&ClusterView { store: Some(Versioned { value: later, revision: 3 }), ..led }),
        "keys that were made again are later"
    );
}

#[test]
fn only_a_page_that_is_open_for_the_term_goes_on_while_a_promise_binds() {
    for (promised, page, leads, closed) in [(false, 0, 5, false), (true, 0, 5, true), (true, 4, 5, true), (true, 5, 5, false)] {
        assert_eq!(keeps_closed(promised, page, leads), closed, "{promised} {page} {leads}");
    }
}
