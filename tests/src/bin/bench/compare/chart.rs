//! docs/performance.svg: a bar for each contender and event, the middle pause on one linear scale for all.
//!
//! Plain SVG, no script; what colours it has follows the reader's own mode, light or dark.

use super::page::seconds;
use super::rounds::{CONTENDERS, Contender, EVENTS, Event, SETTINGS, Setting};
use super::run::Run;
use super::seen::{Summary, summaries};
use std::fmt::Write;

const WIDTH: usize = 900;
/// Where bars begin, and how long the longest is.
const LEFT: usize = 250;
const LONGEST: f64 = 540.0;
const BAR: usize = 14;
const GAP: usize = 14;
/// Where the first bar is, below a legend of one line.
const TOP: usize = 84;
const LEGEND_LINE: usize = 16;

const STYLE: &str = "text{font:13px system-ui,sans-serif;fill:#1f2328}.title{font-size:16px;font-weight:600}.small{font-size:11px;fill:#59636e}\
.ttl10{fill:#1a7f37}.ttl3{fill:#4ac26b}.deposition{fill:#0969da}.patroni-fast{fill:#bc4c00}.patroni{fill:#e0a370}.auto-failover-fast{fill:#8250df}.auto-failover{fill:#c297ff}.line{stroke:#d1d9e0}\
@media(prefers-color-scheme:dark){text{fill:#f0f6fc}.small{fill:#9198a1}.ttl10{fill:#2ea043}.ttl3{fill:#7ee787}.deposition{fill:#58a6ff}.patroni-fast{fill:#f0883e}.patroni{fill:#8a5a2b}.auto-failover-fast{fill:#a371f7}.auto-failover{fill:#6e40c9}.line{stroke:#3d444d}}";

/// All of it.
pub fn chart(run: &Run) -> String {
    let all: Vec<Summary> = summaries(&run.seen).into_iter().filter(|one| one.idle.is_none()).collect();
    let longest = all.iter().map(|one| one.pause().as_secs_f64()).fold(0.001, f64::max);
    let mut bars = String::new();
    let (legend, lines) = legend(&all);
    let top = TOP + lines.saturating_sub(1) * LEGEND_LINE;
    let mut y = top;
    for setting in SETTINGS {
        for event in EVENTS {
            let these: Vec<&Summary> = all.iter().filter(|one| one.setting == setting && one.event == event).collect();
            if !these.is_empty() {
                bars.push_str(&group(event, setting, &these, y, longest));
                // A group of one bar still has two lines of text.
                y += (these.len() * BAR).max(26) + GAP;
            }
        }
    }
    let height = y + 8;
    let date = &run.machine.date;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\" aria-label=\"Longest pause of a writer\">\n\
         <style>{STYLE}</style>\n\
         <text class=\"title\" x=\"16\" y=\"26\">Longest pause of a writer (middle of the runs; shorter is better)</text>\n\
         <text class=\"small\" x=\"16\" y=\"44\">three nodes, one etcd, one machine; {date}; *: acknowledged commits were lost</text>\n\
         {}<line class=\"line\" x1=\"{LEFT}\" y1=\"{}\" x2=\"{LEFT}\" y2=\"{}\"/>\n{bars}</svg>\n",
        legend,
        top - 6,
        height - 12
    )
}

/// And how many lines it has.
fn legend(all: &[Summary]) -> (String, usize) {
    let mut text = String::new();
    let (mut x, mut lines) = (16, 1);
    for Contender { key, label, .. } in CONTENDERS.into_iter().filter(|one| all.iter().any(|other| other.contender == *one)) {
        let width = 34 + label.len() * 6;
        if x + width > WIDTH {
            (x, lines) = (16, lines + 1);
        }
        let y = 56 + (lines - 1) * LEGEND_LINE;
        let _ = writeln!(
            text,
            "<rect class=\"{key}\" x=\"{x}\" y=\"{y}\" width=\"10\" height=\"10\"/><text class=\"small\" x=\"{}\" y=\"{}\">{label}</text>",
            x + 14,
            y + 9
        );
        x += width;
    }
    (text, lines)
}

fn group(event: Event, setting: Setting, these: &[&Summary], top: usize, longest: f64) -> String {
    let name = event.to_string();
    let name =
        name.split(", failsafe_mode").next().unwrap_or_default().to_owned() + if name.contains("failsafe") { ", failsafe" } else { "" };
    let mut text = format!(
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{name}</text>\n<text class=\"small\" x=\"{}\" y=\"{}\" text-anchor=\"end\">{setting}</text>\n",
        LEFT - 8,
        top + 11,
        LEFT - 8,
        top + 24
    );
    for (number, one) in these.iter().enumerate() {
        let y = top + number * BAR;
        let width = (one.pause().as_secs_f64() / longest * LONGEST).max(1.0);
        let lost = if one.lost > 0 { format!(" * {} lost", one.lost) } else { String::new() };
        let _ = writeln!(
            text,
            "<rect class=\"{}\" x=\"{LEFT}\" y=\"{y}\" width=\"{width:.1}\" height=\"{}\"/><text class=\"small\" x=\"{:.1}\" y=\"{}\">{}{lost}</text>",
            one.contender.key,
            BAR - 3,
            LEFT as f64 + width + 5.0,
            y + 10,
            seconds(one.pause())
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::run::sample;

    #[test]
    fn the_chart_of_fixed_figures() {
        insta::assert_snapshot!("chart", chart(&sample()));
    }

    #[test]
    fn it_is_plain_has_both_modes_and_no_bar_leaves_the_picture() {
        let chart = chart(&sample());
        assert!(!chart.contains("<script") && !chart.contains("http://www.w3.org/1999"), "{chart}");
        assert!(chart.contains("prefers-color-scheme:dark"));
        let widths = chart.split("width=\"").skip(1).filter_map(|rest| rest.split('"').next()?.parse::<f64>().ok());
        assert!(widths.skip(1).all(|width| width <= LONGEST), "{chart}");
    }
}
