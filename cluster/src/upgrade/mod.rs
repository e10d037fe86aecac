//! A new major version of PostgreSQL: what stands in its way, by which steps it comes, what an interruption of each step means.

pub mod obstacle;
pub mod step;
pub mod twin;

/// The oldest major version that pg_tenure runs on.
pub const OLDEST: u32 = 14;

/// The newest major version that pg_tenure is built for.
pub const NEWEST: u32 = 18;

/// Can one step lead from this major version to that one? The sentence says why not.
pub fn reachable(from: u32, to: u32) -> Result<(), String> {
    if to <= from {
        return Err(format!("the cluster runs PostgreSQL {from}: a major upgrade leads to a later version, and {to} is none"));
    }
    if !(OLDEST..=NEWEST).contains(&to) {
        return Err(format!("pg_tenure is built for PostgreSQL {OLDEST} to {NEWEST}, not for {to}"));
    }
    Ok(())
}

/// Which day's release this is, as the number of the day's release of 17: the minor releases of all major versions come on the same days. None
/// for a version whose numbers we do not know.
pub fn day(major: u32, minor: u32) -> Option<u32> {
    let (later, earlier) = match major {
        14 => (0, 13),
        15 => (0, 8),
        16 => (0, 4),
        17 => (0, 0),
        18 => (6, 0),
        _ => return None,
    };
    Some((minor + later).saturating_sub(earlier))
}

/// The major version that a directory of programs names, where it names one: `15` in `/usr/lib/postgresql/15/bin`.
pub fn named(bin_dir: &str) -> Option<u32> {
    let number =
        |part: &str| part.rsplit_once('-').map_or(part, |(_, number)| number).parse().ok().filter(|number| (9..100).contains(number));
    bin_dir.split('/').rev().find_map(number)
}

/// Where the programs of another major version are, by where this one's are: Debian and the others lay the versions side by side, in
/// directories that differ by the number alone. None where the path does not name the version: then nothing is guessed.
///
/// The path comes from the node's own file; etcd and the caller give only the number.
pub fn beside(bin_dir: &str, from: u32, to: u32) -> Option<String> {
    let mut changed = 0;
    let part = |part: &str| {
        // `15`, and the `pgsql-15` of other distributions.
        let (stem, number) = part.rsplit_once('-').map_or(("", part), |(stem, number)| (&part[..=stem.len()], number));
        if number != from.to_string() {
            return part.to_owned();
        }
        changed += 1;
        format!("{stem}{to}")
    };
    let path = bin_dir.split('/').map(part).collect::<Vec<_>>().join("/");
    (changed == 1).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_leads_forward_to_one_that_we_are_built_for() {
        for (from, to, words) in [(15, 17, ""), (14, 18, ""), (17, 17, "is none"), (17, 15, "is none"), (17, 19, "not for 19")] {
            let said = reachable(from, to).err().unwrap_or_default();
            assert!(said.contains(words) && said.is_empty() == words.is_empty(), "{from} to {to}: {said}");
        }
    }

    #[test]
    fn minor_releases_of_one_day_have_one_number() {
        for day_of in [[(14, 19), (15, 14), (16, 10), (17, 6), (18, 0)], [(14, 25), (15, 20), (16, 16), (17, 12), (18, 6)]] {
            let days: std::collections::BTreeSet<_> = day_of.iter().map(|(major, minor)| day(*major, *minor)).collect();
            assert_eq!(days.len(), 1, "{day_of:?}: {days:?}");
        }
        assert!(day(15, 20) > day(17, 11), "this pair failed");
        assert_eq!(day(13, 1), None);
    }

    #[test]
    fn the_programs_lie_side_by_side_or_are_not_guessed() {
        for (path, expected) in [
            ("/usr/lib/postgresql/15/bin", Some("/usr/lib/postgresql/17/bin")),
            ("/usr/pgsql-15/bin", Some("/usr/pgsql-17/bin")),
            ("/usr/pgsql-17/bin", None),
            ("/opt/15/pg/15/bin", None),
            ("/usr/local/pgsql/bin", None),
            ("/opt/pg-153/bin", None),
            ("", None),
        ] {
            assert_eq!(beside(path, 15, 17).as_deref(), expected, "{path}");
        }
        for (path, expected) in [("/usr/lib/postgresql/15/bin", Some(15)), ("/usr/pgsql-17/bin", Some(17)), ("/usr/local/pgsql/bin", None)]
        {
            assert_eq!(named(path), expected, "{path}");
        }
    }
}
