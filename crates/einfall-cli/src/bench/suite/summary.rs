//! What a run over a suite says in a few lines.
//!
//! In: a [`SuiteReport`]. Out: lines for people: the ratio to the fastest peer, the cases that lose, the share of the
//! floor, and how far predictions are off. Wrong results are left out.

use super::record::{Problem, SuiteReport};
use crate::bench::record::FloorKind;
use crate::bench::units;

/// A case loses if its fastest peer takes less than this share of our time: noise is below that.
pub(super) const LOSES: f64 = 0.95;

/// A prediction is good if it is off by no more than this factor.
const GOOD: f64 = 1.3;

/// Most columns of a line.
const COLUMNS: usize = 100;

/// The summary, with its heading.
pub(super) fn lines(report: &SuiteReport) -> Vec<String> {
    let problems: Vec<Problem<'_>> = report.problems().into_iter().filter(|problem| problem.ours.ok).collect();
    let title = |problem: &Problem<'_>| problem.title(report.several_dtypes());
    let mut lines = vec![format!("Summary: {} of {} right", problems.len(), count(report.problems().len(), "case"))];
    let mut say = |name: &str, text: &str| wrap(&mut lines, name, text);

    let mut ratios: Vec<(&Problem<'_>, f64)> =
        problems.iter().filter_map(|problem| problem.ratio().map(|ratio| (problem, ratio))).collect();
    ratios.sort_by(|a, b| a.1.total_cmp(&b.1));
    if !ratios.is_empty() {
        let mean = (ratios.iter().map(|(_, ratio)| ratio.ln()).sum::<f64>() / ratios.len() as f64).exp();
        let lost = ratios.iter().filter(|(_, ratio)| *ratio < LOSES).count();
        let best = format!(
            "takes {} × einfall's time in the geometric mean; {lost} of {} below {LOSES} ×",
            units::digits(mean),
            count(ratios.len(), "case"),
        );
        say("best peer", &best);
        let named = |(problem, ratio): &(&Problem<'_>, f64)| {
            let engine = problem.best().map_or("", |best| &best.engine);
            format!("{} {} ({engine})", title(problem), units::digits(*ratio))
        };
        // Where nothing is lost, what was nearest to it.
        let worst: Vec<String> = ratios.iter().take(lost.max(3)).map(named).collect();
        say("worst", &worst.join(", "));
    }
    for (kind, name) in [(FloorKind::Memory, "memory"), (FloorKind::Compute, "compute")] {
        let of_kind = problems.iter().filter(|problem| problem.ours.floor_kind == Some(kind));
        let mut shares: Vec<(f64, String)> =
            of_kind.filter_map(|problem| Some((problem.ours.share_of_floor()? * 100.0, title(problem)))).collect();
        shares.sort_by(|a, b| a.0.total_cmp(&b.0));
        if let (Some(least), Some((middle, _))) = (shares.first(), shares.get(shares.len() / 2)) {
            let text = format!(
                "{} bound by {name}: {} % of the floor's speed in the median, least {} % ({})",
                count(shares.len(), "case"),
                units::digits(*middle),
                units::digits(least.0),
                least.1
            );
            say(if kind == FloorKind::Memory { "floor" } else { "" }, &text);
        }
    }
    let mut factors: Vec<(f64, String)> = problems
        .iter()
        .filter_map(|problem| Some((problem.ours.predicted_s? / problem.ours.min_s, title(problem))))
        .collect();
    if !factors.is_empty() {
        let mut errors: Vec<f64> = factors.iter().map(|(factor, _)| (factor - 1.0).abs() * 100.0).collect();
        errors.sort_by(f64::total_cmp);
        let good = factors.iter().filter(|(factor, _)| (1.0 / GOOD..=GOOD).contains(factor)).count();
        let text = format!(
            "predicted times are off by {} % in the median, {} % are within a factor of {GOOD}",
            units::digits(errors[errors.len() / 2]),
            units::digits(good as f64 * 100.0 / factors.len() as f64),
        );
        say("plans", &text);
        factors.sort_by(|a, b| b.0.ln().abs().total_cmp(&a.0.ln().abs()));
        let worst: Vec<String> =
            factors.iter().take(5).map(|(factor, name)| format!("{name} {} ×", units::digits(*factor))).collect();
        say("", &format!("furthest off: {}", worst.join(", ")));
    }
    if !report.skipped.is_empty() {
        let names: Vec<&str> = report.skipped.iter().map(|skipped| skipped.name.as_str()).collect();
        say("not run", &names.join("; "));
    }
    lines
}

fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// Adds a text under a name, in as many lines as it takes.
fn wrap(lines: &mut Vec<String>, name: &str, text: &str) {
    let mut line = format!("  {name:<10}");
    for word in text.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > COLUMNS {
            lines.push(std::mem::replace(&mut line, format!("  {:<10}", "")));
        }
        line.push(' ');
        line.push_str(word);
    }
    lines.push(line);
}
