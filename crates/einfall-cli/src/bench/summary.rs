//! What a run says in a few lines: looked-up keys against shared ones, all of them, the best peer and the floor.
//!
//! In: a [`BenchReport`]. Out: lines for people, an operation after the other; none where nothing was measured. Of several
//! k the least and the most is said. Wrong results and peers with wrong results are left out.
//!
//! ```
//! use einfall_cli::bench::{record::BenchReport, summary};
//!
//! assert!(summary::lines(&BenchReport::default()).is_empty());
//! ```

use super::record::{BenchReport, BenchRow, Case, Op};
use super::units;

/// A figure of one k.
struct At {
    k: usize,
    value: f64,
}

/// The summary, with its heading.
#[must_use]
pub fn lines(report: &BenchReport) -> Vec<String> {
    let mut lines = Vec::new();
    for op in report.ops() {
        for (at, line) in of(report, op).into_iter().enumerate() {
            let name = if at == 0 { op.name() } else { "" };
            lines.push(format!("  {name:<10} {line}"));
        }
    }
    if !lines.is_empty() {
        lines.insert(0, "Summary: einfall's time with looked-up keys, least and most over k".to_owned());
    }
    lines
}

fn of(report: &BenchReport, op: Op) -> Vec<String> {
    let right = || report.rows.iter().filter(|row| row.op == op && row.ok && row.min_s > 0.0);
    let ours = |case: Case, k: Option<usize>| {
        let of_case = move |row: &&BenchRow| row.is_ours() && row.case == case && k.is_none_or(|k| row.k == k);
        right().filter(of_case)
    };
    let against = |other: &dyn Fn(usize) -> Option<f64>| -> Vec<At> {
        let ratio = |row: &BenchRow| Some(At { k: row.k, value: row.min_s / other(row.k)? });
        ours(Case::SeparateLookup, None).filter_map(ratio).collect()
    };
    let best = |k: usize| {
        let peers = right().filter(|row| !row.is_ours() && row.case == Case::SeparateLookup && row.k == k);
        peers.min_by(|a, b| a.min_s.total_cmp(&b.min_s))
    };
    let shared = against(&|k| ours(Case::Shared, Some(k)).next().map(|row| row.min_s));
    let all = against(&|_| ours(Case::All, None).next().map(|row| row.min_s));
    let peer = against(&|k| best(k).map(|row| row.min_s));
    let mut names: Vec<&str> = peer.iter().filter_map(|at| best(at.k)).map(|row| row.engine.as_str()).collect();
    names.dedup();
    let named = if let [name] = names[..] { format!(", {name}") } else { String::new() };
    let share = |row: &BenchRow| Some(At { k: row.k, value: row.share_of_floor()? * 100.0 });
    let share: Vec<At> = ours(Case::SeparateLookup, None).filter_map(share).collect();

    let times = |ratios: &[At], of: &str| range(ratios, "").map(|range| format!("{range} × that {of}"));
    let lines = [
        times(&shared, "with shared keys"),
        times(&all, "with all keys"),
        times(&peer, &format!("of the best peer{named}")),
        range(&share, " %").map(|range| format!("{range} of the floor's speed")),
    ];
    let lines: Vec<String> = lines.into_iter().flatten().collect();
    if lines.is_empty() { vec!["no looked-up keys were timed".to_owned()] } else { lines }
}

/// The least and the most, with their k; `None` of nothing.
fn range(values: &[At], unit: &str) -> Option<String> {
    let least = values.iter().min_by(|a, b| a.value.total_cmp(&b.value))?;
    let most = values.iter().max_by(|a, b| a.value.total_cmp(&b.value))?;
    let text = |at: &At| format!("{}{unit} (k={})", units::digits(at.value), at.k);
    Some(if least.k == most.k { text(least) } else { format!("{} to {}", text(least), text(most)) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::fixture;

    #[test]
    fn looked_up_keys_are_compared_with_what_there_is() {
        let mut report = fixture::report();
        let text = lines(&report).join("\n");
        // 6.3/5.9 and 0.44/0.24; 0.31/3.7 and 6.3/3.7; 6.3/12.8 and 0.31/0.36, attention times 2.15 throughout.
        insta::assert_snapshot!(text, @"
        Summary: einfall's time with looked-up keys, least and most over k
          scores     1.07 (k=1000) to 1.83 (k=30) × that with shared keys
                     0.0838 (k=10) to 1.70 (k=1000) × that with all keys
                     0.492 (k=1000) to 0.861 (k=10) × that of the best peer, torch mul-sum compiled
                     32.1 % (k=10) to 58.9 % (k=1000) of the floor's speed
          attention  1.07 (k=1000) to 1.83 (k=30) × that with shared keys
                     0.0838 (k=10) to 1.70 (k=1000) × that with all keys
                     0.492 (k=1000) to 0.861 (k=10) × that of the best peer, torch mul-sum compiled
                     14.9 % (k=10) to 54.8 % (k=1000) of the floor's speed
        ");
        for line in text.lines() {
            assert!(line.chars().count() <= 100, "{line}");
        }
        // A wrong peer is no best one, and several best ones are not named.
        let wrong = |row: &mut BenchRow| row.engine == "torch mul-sum compiled" && row.k == 1000;
        for row in report.rows.iter_mut().filter_map(|row| wrong(row).then_some(row)) {
            row.ok = false;
        }
        let text = lines(&report).join("\n");
        assert!(text.contains("0.263 (k=1000)") && text.contains(" × that of the best peer\n"), "{text}");
    }

    #[test]
    fn what_was_not_timed_is_not_said() {
        let mut report = fixture::report();
        report
            .rows
            .retain(|row| row.is_ours() && row.op == Op::Scores && row.case == Case::SeparateLookup && row.k == 30);
        let [heading, floor] = &lines(&report)[..] else { panic!("{:?}", lines(&report)) };
        assert!(heading.starts_with("Summary: ") && floor.ends_with(" % (k=30) of the floor's speed"), "{floor}");
        report.rows[0].case = Case::Shared;
        assert_eq!(lines(&report)[1..], ["  scores     no looked-up keys were timed"]);
        report.rows.clear();
        assert_eq!(lines(&report), [""; 0]);
    }
}
