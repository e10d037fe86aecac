//! Tables of the parts. That no sequence of steps trusts too much is shown whole in `tests/quorum.rs`.

use super::*;

fn name(text: &str) -> MemberName {
    MemberName::new(text).unwrap()
}

fn set(text: &str) -> BTreeSet<MemberName> {
    text.split_whitespace().map(name).collect()
}

fn any(count: usize, names: &str) -> Setting {
    Setting::of(Method::Any, count, set(names))
}

fn first(count: usize, names: &str) -> Setting {
    Setting::of(Method::First, count, set(names))
}

fn trust(quorum: usize, voters: &str) -> Trust {
    Trust { quorum, voters: set(voters) }
}

#[test]
fn a_setting_reads_as_it_is_written() {
    for (setting, text) in [
        (Setting::nobody(), ""),
        // What Patroni 4.1.5 wrote for the same: names are quoted only where they must be.
        (first(1, "n2"), "n2"),
        (first(1, "n-2"), r#""n-2""#),
        (first(1, "any"), r#""any""#),
        (first(1, "2n"), r#""2n""#),
        (first(2, "n3 n2"), "2 (n2,n3)"),
        (first(1, "n3 n-2"), r#"1 ("n-2",n3)"#),
        (any(1, "n2"), "ANY 1 (n2)"),
        (any(1, "n2 n3 n4"), "ANY 1 (n2,n3,n4)"),
        (any(2, "n2 n-3"), r#"ANY 2 ("n-3",n2)"#),
        (Setting::placeholder(Method::First), "__patroni_strict_sync_replica_placeholder__"),
        (Setting::placeholder(Method::Any), "ANY 1 (__patroni_strict_sync_replica_placeholder__)"),
    ] {
        assert_eq!(setting.to_string(), text);
        assert_eq!(Setting::read(text), Some(setting), "{text}");
    }
    for (text, setting) in [
        ("n2", Some(first(1, "n2"))),
        (r#"FIRST 1 ("n2")"#, Some(first(1, "n2"))),
        (r#""n2", n3"#, Some(first(1, "n2 n3"))),
        ("2 (n2,n3)", Some(first(2, "n2 n3"))),
        ("any 1 (n2 , n3 )", Some(any(1, "n2 n3"))),
        ("*", None),
        ("ANY 1 (*)", None),
        ("2 (n2)", None),
        ("FIRST (", None),
    ] {
        assert_eq!(Setting::read(text), setting, "{text}");
    }
}

#[test]
fn a_walsender_shows_by_its_priority_and_by_what_it_sent_which_setting_it_keeps() {
    let sender = |application_name, priority, sent| SenderSeen { application_name, priority, sent: Lsn(sent) };
    for (setting, senders, kept) in [
        (any(1, "n2 n3"), vec![sender("n2", 1, 10), sender("N3", 1, 11), sender("n4", 0, 0)], true),
        (any(1, "n2 n3"), vec![sender("n2", 1, 9), sender("n3", 1, 11)], false),
        (any(1, "n2 n3"), vec![sender("n2", 1, 10), sender("n4", 1, 11)], false),
        (first(2, "n2 n3"), vec![sender("n2", 1, 10), sender("n3", 1, 10)], false),
        (first(2, "n2 n3"), vec![sender("n2", 1, 10), sender("n3", 2, 10)], true),
        (Setting::nobody(), vec![sender("n2", 0, 0)], true),
        (Setting::nobody(), vec![sender("n2", 1, 99)], false),
    ] {
        assert_eq!(kept_by(&setting, &senders, Lsn(10)), kept, "{setting} {senders:?}");
    }
}

fn seen(text: &str, priority: i64, lag_bytes: u64) -> StandbySeen {
    StandbySeen {
        name: name(text),
        streaming: true,
        replays: true,
        eligible: true,
        nofailover: false,
        elsewhere: false,
        priority,
        lag_bytes,
    }
}

const ON: Rules = Rules { mode: SynchronousMode::On, strict: false, count: 1, domains: 0, maximum_lag_bytes: None };
const QUORUM: Rules = Rules { mode: SynchronousMode::Quorum, ..ON };

#[test]
fn who_is_named() {
    let away = |standby: StandbySeen| StandbySeen { streaming: false, ..standby };
    let barred = |standby: StandbySeen| StandbySeen { eligible: false, ..standby };
    let copy = |standby: StandbySeen| StandbySeen { replays: false, ..standby };
    let never = |standby: StandbySeen| StandbySeen { nofailover: true, ..standby };
    let far = |standby: StandbySeen| StandbySeen { elsewhere: true, ..standby };
    let lag = |bytes| Some(bytes);
    let two = || vec![seen("n2", 1, 50), seen("n3", 1, 0)];
    for (what, rules, standbys, named, chosen) in [
        ("the one named is kept", ON, two(), "n2", "n2"),
        ("else the least behind", ON, two(), "", "n3"),
        ("one that left is replaced", ON, vec![away(seen("n2", 1, 0)), seen("n3", 1, 9)], "n2", "n3"),
        ("a higher priority counts more than being named", ON, vec![seen("n2", 1, 0), seen("n3", 2, 9)], "n2", "n3"),
        ("two of three", Rules { count: 2, ..ON }, vec![seen("n2", 1, 5), seen("n3", 1, 1), seen("n4", 1, 2)], "", "n3 n4"),
        ("as many as there are", Rules { count: 5, ..ON }, two(), "", "n2 n3"),
        ("nosync, or on its way out", ON, vec![barred(seen("n2", 1, 0)), seen("n3", 1, 9)], "n2", "n3"),
        ("a copy that is being made", ON, vec![copy(seen("n2", 9, 0))], "n2", ""),
        ("nor in quorum mode", QUORUM, vec![copy(seen("n2", 1, 0)), seen("n3", 1, 9)], "n2 n3", "n3"),
        ("who may not lead comes last", ON, vec![never(seen("n2", 9, 0)), seen("n3", 1, 9)], "n2", "n3"),
        ("and is better than nobody", ON, vec![never(seen("n2", 9, 0))], "", "n2"),
        ("too far behind the other", Rules { maximum_lag_bytes: lag(49), ..ON }, two(), "n2", "n3"),
        ("not too far behind the other", Rules { maximum_lag_bytes: lag(50), ..ON }, two(), "n2", "n2"),
        ("alone it is measured against the primary", Rules { maximum_lag_bytes: lag(49), ..ON }, vec![seen("n2", 1, 50)], "n2", ""),
        ("nobody is there", ON, vec![], "n2", ""),
        ("in quorum mode all", QUORUM, two(), "", "n2 n3"),
        ("but those too far behind", Rules { maximum_lag_bytes: lag(49), ..QUORUM }, two(), "n2 n3", "n3"),
        ("and those that may not lead", QUORUM, vec![seen("n2", 1, 0), seen("n3", 1, 0), never(seen("n4", 1, 0))], "", "n2 n3"),
        ("unless too few are left", Rules { count: 2, ..QUORUM }, vec![seen("n2", 1, 0), never(seen("n4", 1, 0))], "", "n2 n4"),
        ("off", Rules { mode: SynchronousMode::Off, ..ON }, two(), "n2", ""),
        ("a count of none", Rules { count: 0, ..ON }, two(), "n2", ""),
        ("another failure domain is preferred", ON, vec![seen("n2", 1, 0), far(seen("n3", 1, 9))], "n2", "n3"),
        ("a priority that somebody set counts more", ON, vec![seen("n2", 2, 0), far(seen("n3", 1, 9))], "n2", "n2"),
        ("demanded, it counts more than that", Rules { domains: 1, ..ON }, vec![seen("n2", 2, 0), far(seen("n3", 1, 9))], "n2", "n3"),
        (
            "one of two from elsewhere",
            Rules { domains: 1, count: 2, ..ON },
            vec![seen("n2", 3, 0), seen("n3", 2, 0), far(seen("n4", 1, 9))],
            "",
            "n2 n4",
        ),
        ("of a quorum only those elsewhere", Rules { domains: 1, ..QUORUM }, vec![seen("n2", 1, 0), far(seen("n3", 1, 9))], "", "n3"),
        (
            "any two have one from elsewhere",
            Rules { domains: 1, count: 2, ..QUORUM },
            vec![seen("n2", 1, 0), seen("n3", 1, 0), far(seen("n4", 1, 0)), far(seen("n5", 1, 0))],
            "",
            "n2 n4 n5",
        ),
        ("none elsewhere: next door is better than nobody", Rules { domains: 1, ..ON }, two(), "n2", "n2"),
        ("in strict mode commits wait for one", Rules { domains: 1, strict: true, ..ON }, two(), "n2", ""),
    ] {
        let setting = first(1, named);
        assert_eq!(rules.choose(&standbys, &setting), set(chosen), "{what}");
    }
}

#[test]
fn where_it_shall_come_to() {
    let strict = |rules| Rules { strict: true, ..rules };
    let two = || vec![seen("n2", 1, 0), seen("n3", 1, 0)];
    for (what, rules, standbys, now, expected, goal) in [
        ("one of two", ON, two(), (trust(0, ""), Setting::nobody()), "", (first(1, "n2"), trust(0, "n2"))),
        ("both", Rules { count: 2, ..ON }, two(), (trust(0, ""), Setting::nobody()), "", (first(2, "n2 n3"), trust(0, "n2 n3"))),
        ("any", QUORUM, two(), (trust(0, ""), Setting::nobody()), "", (any(1, "n2 n3"), trust(1, "n2 n3"))),
        ("all of them", Rules { count: 2, ..QUORUM }, two(), (trust(0, ""), any(1, "n2")), "", (any(2, "n2 n3"), trust(0, "n2 n3"))),
        ("nobody left", QUORUM, vec![], (trust(1, "n2 n3"), any(1, "n2 n3")), "", (Setting::nobody(), trust(0, ""))),
        ("nobody left, strict", strict(QUORUM), vec![], (trust(1, "n2 n3"), any(1, "n2 n3")), "", (any(1, "n2 n3"), trust(1, "n2 n3"))),
        (
            "nobody yet, strict",
            strict(ON),
            vec![],
            (trust(0, ""), Setting::nobody()),
            "",
            (Setting::placeholder(Method::First), trust(0, "")),
        ),
        ("nobody yet, one on its way", QUORUM, vec![], (trust(0, ""), any(1, "n2 n3")), "n3", (any(1, "n2 n3"), trust(0, ""))),
        ("the one on its way is not named", QUORUM, vec![], (trust(0, ""), any(1, "n2")), "n3", (Setting::nobody(), trust(0, ""))),
        ("one has come", QUORUM, vec![seen("n2", 1, 0)], (trust(0, ""), any(1, "n2 n3")), "n3", (any(1, "n2"), trust(0, "n2"))),
    ] {
        let reached = rules.goal(&standbys, &now.0, &now.1, &set(expected));
        assert_eq!((reached.setting, reached.trust), goal, "{what}");
    }
}

#[test]
fn what_a_new_primary_and_a_restarted_one_begin_with() {
    let strict = |rules| Rules { strict: true, ..rules };
    for (rules, members, setting) in [
        (ON, "n2 n3", Setting::nobody()),
        (strict(ON), "n2 n3", first(1, "n2 n3")),
        (strict(ON), "", Setting::placeholder(Method::First)),
        (QUORUM, "n2 n3", any(1, "n2 n3")),
        (QUORUM, "", Setting::nobody()),
        (strict(QUORUM), "", Setting::placeholder(Method::Any)),
        (Rules { mode: SynchronousMode::Off, ..strict(ON) }, "n2", Setting::nobody()),
    ] {
        assert_eq!(rules.at_promotion(set(members), &Trust::none()), setting, "{rules:?} {members}");
    }
    // Promoted again under its own key: every standby that is trusted is waited for, whether it is there or not and whatever the mode.
    for (rules, key) in [(ON, trust(0, "n2")), (QUORUM, trust(1, "n2 n3")), (Rules { mode: SynchronousMode::Off, ..ON }, trust(0, "n3"))] {
        for members in ["", "n2", "n2 n3 n4"] {
            let begun = rules.at_promotion(set(members), &key);
            assert!(begun.count > 0 && overlap(&key, &begun), "{rules:?} {key:?} {members}: {begun}");
        }
    }
    for (rules, key, setting) in [
        (ON, trust(0, "n2"), first(1, "n2")),
        (ON, trust(1, "n2 n3"), first(1, "n2 n3")),
        (QUORUM, trust(1, "n2 n3 n4"), any(2, "n2 n3 n4")),
        (QUORUM, trust(0, ""), Setting::nobody()),
        (strict(QUORUM), trust(0, ""), Setting::placeholder(Method::Any)),
    ] {
        let begun = rules.at_start(&key);
        assert!(overlap(&key, &begun));
        assert_eq!(begun, setting, "{rules:?} {key:?}");
    }
}

/// The order of the writes where people change something, spelt out.
#[test]
fn the_way_from_one_to_the_other() {
    let goal = |setting: Setting| Goal { trust: Trust::under(&setting), setting };
    for (what, key, setting, goal, way) in [
        ("the first standby", trust(0, ""), Setting::nobody(), goal(first(1, "n2")), "set n2, confirm, key 0 of n2"),
        (
            "another standby takes its place",
            trust(0, "n2"),
            first(1, "n2"),
            goal(first(1, "n3")),
            "key 0 of -, set n3, confirm, key 0 of n3",
        ),
        ("a second one joins", trust(0, "n2"), first(1, "n2"), goal(first(2, "n2 n3")), "set 2 (n2,n3), confirm, key 0 of n2,n3"),
        ("one of two leaves", trust(0, "n2 n3"), first(2, "n2 n3"), goal(first(1, "n2")), "key 0 of n2, set n2"),
        ("the last one leaves", trust(0, "n2"), first(1, "n2"), goal(Setting::nobody()), "key 0 of -, set "),
        ("from on to quorum", trust(0, "n2"), first(1, "n2"), goal(any(1, "n2 n3")), "key 1 of n2,n3, set ANY 1 (n2,n3)"),
        ("from quorum to on", trust(1, "n2 n3"), any(1, "n2 n3"), goal(first(1, "n2")), "set n2, confirm, key 0 of n2"),
        ("a voter joins", trust(1, "n2 n3"), any(1, "n2 n3"), goal(any(1, "n2 n3 n4")), "key 2 of n2,n3,n4, set ANY 1 (n2,n3,n4)"),
        ("a voter leaves", trust(1, "n2 n3"), any(1, "n2 n3"), goal(any(1, "n2")), "set ANY 1 (n2), confirm, key 0 of n2"),
        ("one more confirms", trust(1, "n2 n3"), any(1, "n2 n3"), goal(any(2, "n2 n3")), "set ANY 2 (n2,n3), confirm, key 0 of n2,n3"),
        ("one less confirms", trust(0, "n2 n3"), any(2, "n2 n3"), goal(any(1, "n2 n3")), "key 1 of n2,n3, set ANY 1 (n2,n3)"),
    ] {
        let me = name("n1");
        let (mut key, mut applied) = (key.key(&me, &SyncState::default()), Applied { setting, caught_up: BTreeSet::new() });
        let mut steps = Vec::new();
        while steps.len() < 9 {
            steps.push(match step(&me, &key, &applied, &goal) {
                SyncStep::Settled => break,
                SyncStep::WriteKey(next) => {
                    key = next;
                    format!("key {} of {}", key.quorum, key.sync_standby.as_deref().unwrap_or("-"))
                }
                SyncStep::Apply(setting) => {
                    applied = Applied { setting, caught_up: BTreeSet::new() };
                    format!("set {}", applied.setting)
                }
                SyncStep::Confirm => {
                    applied.caught_up = applied.setting.names.clone();
                    "confirm".to_owned()
                }
            });
        }
        assert_eq!(steps.join(", "), way, "{what}");
    }
}

#[test]
fn the_placeholder_is_written_as_the_mode_writes_it() {
    let strict = |mode| Rules { mode, strict: true, count: 1, domains: 0, maximum_lag_bytes: None };
    for (mode, was, is) in [
        (SynchronousMode::On, Method::Any, Method::First),
        (SynchronousMode::Quorum, Method::First, Method::Any),
        (SynchronousMode::On, Method::First, Method::First),
    ] {
        let goal = strict(mode).goal(&[], &Trust::none(), &Setting::placeholder(was), &BTreeSet::new());
        assert_eq!(goal, Goal { setting: Setting::placeholder(is), trust: Trust::none() });
    }
}
