//! The pictures are well-formed, hold what was measured, and cannot be broken by the texts they show.

use super::*;
use crate::bench::fixture;
use crate::bench::record::Case;

fn leave(name: &str, content: &str) {
    if let Some(folder) = fixture::drawings() {
        std::fs::write(folder.join(name), content).unwrap();
    }
}

/// Checks that tags nest and attributes are quoted; enough to find a forgotten escape or end tag.
fn well_formed(xml: &str) {
    let mut open = Vec::new();
    let mut rest = xml;
    while let Some((text, tag)) = rest.split_once('<') {
        assert!(!text.contains('>'), "{text}");
        let (tag, after) = tag.split_once('>').expect("a tag ends");
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap();
        if let Some(end) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(end), "{tag}");
        } else if !tag.ends_with('/') {
            open.push(name);
        }
        rest = after;
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn a_figure_has_every_panel_engine_and_fact() {
    let report = fixture::report();
    for op in Op::ALL {
        let svg = svg(&report, op);
        well_formed(&svg);
        leave(&format!("{op}.svg"), &svg);
    }
    let svg = svg(&report, Op::Scores);
    for wanted in [
        "separate keys, looked up",
        "one key list shared by all queries",
        "torch mul-sum compiled",
        "floor of this machine",
        "all 1000 keys, einfall",
        "time of a call, ms",
        "k, keys of a query",
        "AMD EPYC 7763 64-Core Processor, 2 threads, f32",
        "einfall, k=100: 1.04 ms",
    ] {
        assert!(svg.contains(wanted), "{wanted}");
    }
    assert!(!svg.contains("NaN") && !svg.contains("inf,") && !svg.contains("strip"));
}

#[test]
fn one_k_becomes_a_list() {
    let mut report = fixture::report();
    report.rows.retain(|row| row.k == 100 || row.case == Case::All);
    let svg = svg(&report, Op::Scores);
    well_formed(&svg);
    leave("one-k.svg", &svg);
    assert!(svg.contains("separate keys, looked up, k=100") && svg.contains("all keys, k=1000"));
    assert!(svg.contains(">1.04 ms<") && !svg.contains("keys of a query"));
}

#[test]
fn few_rows_are_drawn_too() {
    let full = fixture::report();
    let mut two = full.clone();
    two.rows.retain(|row| row.case == Case::SeparateLookup && (row.k == 100 || row.k == 300));
    leave("one-case.svg", &svg(&two, Op::Scores));
    let mut one = full.clone();
    one.rows.truncate(1);
    let mut all = full.clone();
    all.rows.retain(|row| row.case == Case::All);
    let mut strange = full.clone();
    strange.rows.truncate(4);
    strange.rows[0].min_s = 0.0;
    strange.rows[1].min_s = f64::NAN;
    strange.rows[2].floor_s = None;
    strange.rows[3].min_s = 1e-12;
    for report in [two, one, all, strange, BenchReport::default()] {
        let svg = svg(&report, Op::Scores);
        well_formed(&svg);
        assert!(!svg.contains("NaN") && !svg.replace("einfall", "").contains("inf"), "{svg}");
        assert!(html(&report).contains("</html>"));
    }
}

#[test]
fn the_page_needs_nothing_else() {
    let report = fixture::report();
    let page = html(&report);
    leave("page.html", &page);
    for wanted in ["prefers-color-scheme: dark", "data-tip=", "never stored", "51.2 MFLOP", "Why", "torch 2.11.0"] {
        assert!(page.contains(wanted), "{wanted}");
    }
    let outside = page.replace("http://www.w3.org/2000/svg", "");
    for forbidden in ["http:", "https:", "src=", "@import", "url("] {
        assert!(!outside.contains(forbidden), "{forbidden}");
    }
    let (_, figure) = page.split_once("<figure>").unwrap();
    well_formed(figure.split_once("</figure>").unwrap().0);
}

#[test]
fn texts_are_never_markup() {
    const ATTACK: &str = "\"'><script>alert(1)</script>&\u{1}";
    let mut report = fixture::report();
    report.machine.cpu = ATTACK.to_owned();
    report.machine.isa = ATTACK.to_owned();
    report.settings.run.version = ATTACK.to_owned();
    report.settings.run.dtype = ATTACK.to_owned();
    report.settings.run.command = ATTACK.to_owned();
    report.settings.run.peers.insert(ATTACK.to_owned(), ATTACK.to_owned());
    report.notes.push(ATTACK.to_owned());
    for row in report.rows.iter_mut().filter(|row| row.engine == "opt_einsum" || row.is_ours()) {
        row.engine += ATTACK;
        row.way = Some(ATTACK.to_owned());
    }
    let page = html(&report);
    assert_eq!(page.matches("<script").count(), 1);
    assert!(!page.contains('\u{1}'));
    let svg = svg(&report, Op::Scores);
    well_formed(&svg);
    assert!(!svg.contains("<script") && !svg.contains('\u{1}'));
}
