//! Rust text with what is not code taken out: comments, the insides of literals, and test modules.

/// The code of a file as it is built without tests. Lines stay where they are.
pub fn code(text: &str) -> String {
    without_tests(&without_words(text))
}

/// Comments and the insides of string and character literals become blanks.
fn without_words(text: &str) -> String {
    let letters: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    let blank = |code: &mut String, passed: &[char]| passed.iter().for_each(|c| code.push(if *c == '\n' { '\n' } else { ' ' }));
    while at < letters.len() {
        let rest = &letters[at..];
        let length = match rest {
            ['/', '/', ..] => rest.iter().position(|c| *c == '\n').unwrap_or(rest.len()),
            ['/', '*', ..] => block_comment(rest),
            ['r', '"' | '#', ..] if !ends_word(&code) => raw_string(rest).unwrap_or_default(),
            ['"', ..] => string(rest),
            ['\'', ..] => character(rest),
            _ => 0,
        };
        if length == 0 {
            code.push(letters[at]);
            at += 1;
        } else {
            blank(&mut code, &rest[..length]);
            at += length;
        }
    }
    code
}

fn ends_word(code: &str) -> bool {
    code.ends_with(|c: char| c.is_alphanumeric() || c == '_')
}

fn block_comment(rest: &[char]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

fn string(rest: &[char]) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

fn raw_string(rest: &[char]) -> Option<usize> {
    let hashes = rest[1..].iter().take_while(|c| **c == '#').count();
    (rest.get(1 + hashes) == Some(&'"')).then_some(())?;
    let end: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    let begin = 2 + hashes;
    let inside = rest[begin..].windows(end.len()).position(|window| window == end)?;
    Some(begin + inside + end.len())
}

/// A character literal; a lifetime is none.
fn character(rest: &[char]) -> usize {
    match rest {
        ['\'', '\\', ..] => rest[2..].iter().skip(1).position(|c| *c == '\'').map_or(0, |more| more + 4),
        ['\'', _, '\'', ..] => 3,
        _ => 0,
    }
}

/// `#[cfg(test)] mod tests { ... }` becomes blanks; lines stay where they are.
fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut kept = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(at) = rest.find(MARK) {
        kept.push_str(&rest[..at]);
        let item = &rest[at + MARK.len()..];
        let length = MARK.len() + item_length(item);
        kept.extend(rest[at..at + length].chars().filter(|c| *c == '\n'));
        rest = &rest[at + length..];
    }
    kept.push_str(rest);
    kept
}

/// Up to the end of the item: its closing brace, or the semicolon before any brace.
fn item_length(item: &str) -> usize {
    let mut depth = 0;
    for (at, letter) in item.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth <= 1 => return at + 1,
            '}' => depth -= 1,
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    item.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_is_left() {
        for (text, left) in [
            ("a // crate::b\nc", "a            \nc"),
            ("a /* x /* y */ */ b", "a                 b"),
            (r#"f("crate::x \" y", 'a', '\n', '\'')"#, "f(                ,    ,     ,     )"),
            ("r#\"crate::x\"# + for_r", "                + for_r"),
            ("&'a str", "&'a str"),
            ("use a;\n#[cfg(test)]\nmod tests {\n fn f() { {} }\n}\nuse b;", "use a;\n\n\n\n\nuse b;"),
            ("#[cfg(test)]\nmod fuzz;\nmod c;", "\n\nmod c;"),
        ] {
            let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert_eq!(words(&code(text)), words(left), "{text}");
            assert_eq!(code(text).lines().count(), text.lines().count(), "{text}");
        }
    }
}
