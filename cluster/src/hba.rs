//! What a line of pg_hba.conf or pg_ident.conf may say when it comes from the dynamic configuration: nobody becomes the superuser, and no
//! file is read, because somebody could write into etcd.

use std::fmt;

/// What becomes of such a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// It is used.
    Counts,
    /// It is used where the node's own file has the same line, in `postgresql` or in its `bootstrap.dcs`.
    OwnFile(&'static str),
    /// It is never used from there.
    Never(&'static str),
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Line::Counts => f.write_str("it counts"),
            Line::OwnFile(why) => write!(f, "{why}, so it counts only where the node's own file has the same line"),
            Line::Never(why) => f.write_str(why),
        }
    }
}

const TYPES: [&str; 6] = ["local", "host", "hostssl", "hostnossl", "hostgssenc", "hostnogssenc"];

/// Methods by which nobody comes in who can't show a secret or a certificate that this server itself checks.
const CHECKED_HERE: [&str; 5] = ["scram-sha-256", "md5", "cert", "peer", "reject"];

/// What would end the line, hide part of it, or read a file, in either file.
fn unfit(line: &str) -> Option<Line> {
    if line.chars().any(|c| c.is_control() && c != '\t') {
        return Some(Line::Never("a line has to be one line of text"));
    }
    if line.trim_end().ends_with('\\') {
        return Some(Line::Never("a line that goes on in the next one can't be judged by itself"));
    }
    let word = line.split_whitespace().next().unwrap_or("").trim_matches('"').to_ascii_lowercase();
    if word.starts_with("include") {
        return Some(Line::Never("it reads another file"));
    }
    // A name that begins with @ is a file of names, at the start of a word or after a comma.
    let starts = |at: usize| line[..at].chars().next_back().is_none_or(|before| before.is_whitespace() || matches!(before, ',' | '"'));
    if line.match_indices('@').any(|(at, _)| starts(at)) {
        return Some(Line::Never("a word that begins with @ reads a file of names"));
    }
    None
}

fn is_empty(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#')
}

/// The words of a line as the server cuts it: quotes keep blanks, `#` begins a comment.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    for c in line.chars() {
        match c {
            '"' => {
                quoted = !quoted;
                word.push(c);
            }
            '#' if !quoted => break,
            c if c.is_whitespace() && !quoted => words.extend((!word.is_empty()).then(|| std::mem::take(&mut word))),
            c => word.push(c),
        }
    }
    words.extend((!word.is_empty()).then_some(word));
    words
}

/// What becomes of a line of pg_hba.conf.
pub fn hba(line: &str) -> Line {
    if let Some(unfit) = unfit(line) {
        return unfit;
    }
    if is_empty(line) {
        return Line::Counts;
    }
    let words = words(line);
    let word = |at: usize| words.get(at).map_or("", |word| word.trim_matches('"'));
    if !TYPES.contains(&word(0)) {
        return Line::Never("it begins with none of local, host, hostssl, hostnossl, hostgssenc and hostnogssenc");
    }
    let method_at = method_at(&words);
    let method = word(method_at);
    if method.is_empty() {
        return Line::Never("it names no method");
    }
    if !CHECKED_HERE.contains(&method) {
        return Line::OwnFile("by its method somebody comes in without a secret that this server checks, or the secret leaves it");
    }
    let known = |option: &String| ["clientcert=", "clientname="].iter().any(|known| option.trim_matches('"').starts_with(known));
    if !words[method_at + 1..].iter().all(known) {
        return Line::OwnFile("its options may lead to a map, a program or a host");
    }
    Line::Counts
}

/// Where the method stands: TYPE DATABASE USER [ADDRESS [MASK]] METHOD [OPTIONS]; an address without a length is followed by its mask.
fn method_at(words: &[String]) -> usize {
    let word = |at: usize| words.get(at).map_or("", |word| word.trim_matches('"'));
    match word(0) {
        "local" => 3,
        _ if word(4).parse::<std::net::IpAddr>().is_ok() => 5,
        _ => 4,
    }
}

/// The line with `reject` in place of its method. A client that a line is about must not come in by a later one because this one does not count.
pub fn rejecting(line: &str) -> String {
    let words = words(line);
    let mut kept: Vec<&str> = words.iter().take(method_at(&words)).map(String::as_str).collect();
    kept.push("reject");
    kept.join(" ")
}

/// What becomes of a line of pg_ident.conf: it says who else somebody may be.
pub fn ident(line: &str) -> Line {
    match unfit(line) {
        Some(unfit) => unfit,
        None if is_empty(line) => Line::Counts,
        None => Line::OwnFile("it lets somebody be another role"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_let_in_by_a_line_is_not_let_in_by_a_later_one() {
        for (line, rejected) in [
            ("local all  all trust", "local all all reject"),
            ("host \"my db\" +cloud 10.0.0.0 255.0.0.0 pam pamservice=x # why", "host \"my db\" +cloud 10.0.0.0 255.0.0.0 reject"),
            ("hostssl all all ::1/128 ldap ldapserver=h", "hostssl all all ::1/128 reject"),
        ] {
            assert_eq!(rejecting(line), rejected);
        }
    }

    fn word(line: Line) -> &'static str {
        match line {
            Line::Counts => "counts",
            Line::OwnFile(_) => "own file",
            Line::Never(_) => "never",
        }
    }

    #[test]
    fn lines_of_pg_hba() {
        for (line, expected) in [
            ("", "counts"),
            ("# a comment", "counts"),
            ("local all all peer", "counts"),
            ("host all all 0.0.0.0/0 md5", "counts"),
            ("host replication replicator 10.0.0.1 255.255.255.255 scram-sha-256", "counts"),
            ("hostssl all +admins samenet scram-sha-256 clientcert=verify-full", "counts"),
            ("hostssl all all all cert", "counts"),
            ("host all all all reject", "counts"),
            ("host all \"user@realm\" all scram-sha-256 # why", "counts"),
            ("local all all trust", "own file"),
            ("host all postgres 0.0.0.0/0 \"trust\"", "own file"),
            ("host all all 10.0.0.1 255.255.255.255 trust", "own file"),
            ("host all all all password", "own file"),
            ("host all all all ident", "own file"),
            ("host all all all ldap ldapserver=attacker", "own file"),
            ("host all all all pam", "own file"),
            ("local all all peer map=mine", "own file"),
            ("hostssl all all all cert map=mine", "own file"),
            ("local all all peer \"map=mine\"", "own file"),
            ("include /tmp/x", "never"),
            ("\"include\" /tmp/x", "never"),
            ("include_if_exists /tmp/x", "never"),
            ("@/tmp/x", "never"),
            ("host @/tmp/x all all md5", "never"),
            ("host a,@/tmp/x all all md5", "never"),
            ("host all \"@x\" all md5", "never"),
            ("host all all all md5\nlocal all all trust", "never"),
            ("host all all all md5\rlocal all all trust", "never"),
            ("host all all all \\", "never"),
            ("host all all all", "never"),
            ("something else", "never"),
        ] {
            assert_eq!(word(hba(line)), expected, "{line:?}: {}", hba(line));
        }
    }

    #[test]
    fn lines_of_pg_ident() {
        for (line, expected) in
            [("", "counts"), ("# none", "counts"), ("mine www-data postgres", "own file"), ("include x", "never"), ("a @b c", "never")]
        {
            assert_eq!(word(ident(line)), expected, "{line:?}");
        }
    }
}
