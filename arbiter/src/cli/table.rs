//! A text table with the cluster's name in its top border.
//!
//! Written by hand: the kept-up table crates draw no title inside the border, and scripts read this one.

/// A column's title and which side its cells lean to.
#[derive(Debug, Clone, Copy)]
pub struct Column<'a> {
    /// Its title.
    pub title: &'a str,
    /// Cells lean right (numbers).
    pub right: bool,
}

/// Draws the table; `title` covers the beginning of the top border. Cells may hold several lines, and
/// then every row gets a rule below it.
pub fn pretty(title: Option<&str>, columns: &[Column<'_>], rows: &[Vec<String>]) -> String {
    let widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(at, column)| {
            let cells = rows.iter().filter_map(|row| row.get(at)).flat_map(|cell| cell.lines()).map(|line| line.chars().count());
            cells.max().unwrap_or(0).max(column.title.chars().count())
        })
        .collect();
    let rule = format!("+{}", widths.iter().map(|width| format!("{}+", "-".repeat(width + 2))).collect::<String>());
    let titles: Vec<String> = columns.iter().map(|column| column.title.to_owned()).collect();
    let several_lines = rows.iter().flatten().any(|cell| cell.contains('\n'));

    let mut lines = vec![titled(&rule, title.unwrap_or(""))];
    draw(&mut lines, columns, &widths, &titles);
    lines.push(rule.clone());
    for (number, row) in rows.iter().enumerate() {
        draw(&mut lines, columns, &widths, row);
        if several_lines && number + 1 < rows.len() {
            lines.push(rule.clone());
        }
    }
    if !rows.is_empty() {
        lines.push(rule);
    }
    lines.join("\n") + "\n"
}

fn titled(rule: &str, title: &str) -> String {
    let room = rule.chars().count().saturating_sub(2);
    let title: String = title.chars().take(room).collect();
    let rest: String = rule.chars().skip(1 + title.chars().count()).collect();
    format!("+{title}{rest}")
}

fn draw(lines: &mut Vec<String>, columns: &[Column<'_>], widths: &[usize], cells: &[String]) {
    let height = cells.iter().map(|cell| cell.lines().count()).max().unwrap_or(1).max(1);
    for line in 0..height {
        let mut drawn = String::from("|");
        for ((column, width), cell) in columns.iter().zip(widths).zip(cells) {
            let text = cell.lines().nth(line).unwrap_or("");
            let fill = " ".repeat(width.saturating_sub(text.chars().count()));
            let (before, after) = if column.right { (fill.as_str(), "") } else { ("", fill.as_str()) };
            drawn.push_str(&format!(" {before}{text}{after} |"));
        }
        lines.push(drawn);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_title_covers_the_border_and_lines_stay_level() {
        let columns =
            [Column { title: "Member", right: false }, Column { title: "TL", right: true }, Column { title: "Tags", right: false }];
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        insta::assert_snapshot!(pretty(Some(" Cluster: demo "), &columns, &[row(["n0", "12", "a: 1\nb: 2"]), row(["n1", "3", ""])]), @r"
        + Cluster: demo -----+
        | Member | TL | Tags |
        +--------+----+------+
        | n0     | 12 | a: 1 |
        |        |    | b: 2 |
        +--------+----+------+
        | n1     |  3 |      |
        +--------+----+------+
        ");
        assert_eq!(pretty(None, &columns[..1], &[]), "+--------+\n| Member |\n+--------+\n");
        assert_eq!(pretty(Some(" much longer than the table "), &columns[..1], &[]).lines().next(), Some("+ much lo+"));
    }
}
