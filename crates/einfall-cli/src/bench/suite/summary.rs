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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use einfall::DType;

    use super::*;
    use crate::bench::record::{EINFALL, Machine, Measured, Run};
    use crate::bench::suite::record::{Pass, Skipped, Suite, SuiteRow};

    /// A row of a machine that reads 26 GB/s and computes 180 GFLOP/s; `ms` is its time.
    fn row(name: &str, engine: &str, ms: f64, (flops, bytes): (u64, u64)) -> SuiteRow {
        let machine = einfall::Machine::example();
        let measured = Measured::new(engine, DType::F32, "cpu".to_owned(), flops, bytes, &machine);
        SuiteRow {
            name: name.to_owned(),
            section: "classic".to_owned(),
            pass: Pass::Forward,
            equation: "ij,jk->ik".to_owned(),
            sizes: BTreeMap::new(),
            predicted_s: (engine == EINFALL).then_some(1e-3),
            other: engine == "torch SDPA, all keys",
            measured: measured.timed(vec![ms * 1e-3]),
        }
    }

    fn report() -> SuiteReport {
        let mut report = SuiteReport::new(Suite::Dense, Machine::default(), Run::default());
        let (computes, reads) = ((180_000_000, 1000), (1000, 52_000_000));
        report.rows = vec![
            row("matmul", EINFALL, 2.0, computes),
            row("matmul", "torch.einsum", 8.0, computes),
            row("matmul", "torch SDPA, all keys", 0.1, computes),
            row("gemv", EINFALL, 4.0, reads),
            row("gemv", "torch.einsum", 2.0, reads),
            row("gemv", "numpy.einsum", 1.0, reads),
            row("trace", EINFALL, 1.1, reads),
        ];
        report
    }

    #[test]
    fn who_wins_and_by_how_much_is_said() {
        let mut report = report();
        // Whoever is wrong has not won.
        report.rows[5].measured.ok = false;
        report.skipped.push(Skipped { name: "outer f32".into(), why: "it is too large".into(), failed: false });
        insta::assert_snapshot!(lines(&report).join("\n"), @"
        Summary: 3 of 3 cases right
          best peer  takes 1.41 × einfall's time in the geometric mean; 1 of 2 cases below 0.95 ×
          worst      gemv 0.500 (torch.einsum), matmul 4.00 (torch.einsum)
          floor      2 cases bound by memory: 182 % of the floor's speed in the median, least 50.0 % (gemv)
                     1 case bound by compute: 50.0 % of the floor's speed in the median, least 50.0 %
                     (matmul)
          plans      predicted times are off by 50.0 % in the median, 33.3 % are within a factor of 1.3
                     furthest off: gemv 0.250 ×, matmul 0.500 ×, trace 0.909 ×
          not run    outer f32
        ");
    }

    #[test]
    fn a_report_comes_back_from_json() {
        let report = report();
        let text = report.to_json();
        assert!(SuiteReport::from_json(&text).unwrap() == report, "{text}");
        for name in ["\"suite\": \"dense\"", "\"pass\": \"forward\"", "\"min_s\"", "\"floor_kind\": \"memory\""] {
            assert!(text.contains(name), "{name} in {text}");
        }
        assert!(SuiteReport::from_json(&text.replace("\"format\": 1", "\"format\": 2")).is_err());
    }

    #[test]
    fn the_text_fits_into_100_columns() {
        let mut text = Vec::new();
        crate::bench::suite::write_text(&mut text, &report()).unwrap();
        let text = String::from_utf8(text).unwrap();
        for wanted in ["classic\n=======", "matmul", "4.00", "(0.0500)", "Summary: 3 of 3 cases right"] {
            assert!(text.contains(wanted), "{wanted:?} in\n{text}");
        }
        for line in text.lines() {
            assert!(line.chars().count() <= 100, "{line}");
        }
        let page = crate::bench::suite::page::page(&report());
        assert!(page.contains("<svg ") && page.contains("gemv") && page.ends_with("</html>\n"));
    }
}
