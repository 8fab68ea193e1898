//! What the documents say: links lead somewhere, named tests exist, and metrics are those that are
//! counted.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    fs::canonicalize(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).unwrap()
}

/// Files of the checkout that end so, without what was built or set up.
fn files(folder: &Path, end: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        let name = entry.file_name().to_string_lossy().into_owned();
        if kind.is_dir() && !name.starts_with('.') && name != "target" && name != "demo-out" {
            files(&path, end, found);
        } else if kind.is_file() && name.ends_with(end) {
            found.push(path);
        }
    }
}

fn all(end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    files(&root(), end, &mut found);
    assert!(!found.is_empty());
    found
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// The anchors of a page's headings, as they are made where the pages are read.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = page.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| {
        let title = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.collect::<String>().replace(' ', "-")
    };
    headings.map(anchor).collect()
}

/// Targets of the links of a page, without those in code.
fn links(page: &str) -> Vec<String> {
    let outside = page.split("```").step_by(2).collect::<String>();
    let targets = outside.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.map(str::to_owned).collect()
}

#[test]
fn every_link_of_every_page_leads_somewhere() {
    let mut broken = Vec::new();
    for page in all(".md") {
        let here = fs::read_to_string(&page).unwrap();
        for link in links(&here).into_iter().filter(|link| !link.contains("://")) {
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = match file {
                "" => page.clone(),
                file => page.parent().unwrap().join(file),
            };
            let there = target.exists()
                && (anchor.is_empty()
                    || anchors(&fs::read_to_string(&target).unwrap()).contains(anchor));
            if !there {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_test_that_is_named_for_what_must_hold_exists() {
    let page = text("ARCHITECTURE.md");
    let (_, section) = page.split_once("\n## What must hold\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let sources: String = all(".rs").iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let rows = section.lines().filter_map(|row| row.rsplit_once(" | ").map(|(_, tests)| tests));
    let names = rows.flat_map(|tests| tests.split('`').skip(1).step_by(2).collect::<Vec<_>>());
    // The names of crates are words; those of tests are sentences, and folders have a place.
    let tests: Vec<&str> = names.filter(|name| name.matches('_').count() > 2).collect();
    assert!(tests.len() > 40, "{tests:?}");
    let missing: Vec<_> =
        tests.iter().filter(|name| !sources.contains(&format!("fn {name}("))).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

/// Metrics that the sources count, by the text of their macros.
fn counted() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for path in all(".rs") {
        let source = fs::read_to_string(&path).unwrap();
        for kind in ["counter!(", "gauge!(", "histogram!("] {
            let named = source.split(kind).skip(1).map(str::trim_start);
            let names = named.filter_map(|rest| rest.strip_prefix('"')?.split('"').next());
            found.extend(names.map(str::to_owned));
        }
    }
    found
}

/// Metrics of the page's tables.
fn documented() -> BTreeSet<String> {
    let page = text("docs/metrics.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.filter_map(|row| row.split('`').next()).map(str::to_owned).collect()
}

#[test]
fn the_page_of_metrics_has_every_metric_and_no_other() {
    let of_services = |name: &String| {
        ["rpc_", "chain_", "scheduler_", "gateway_", "evaluator_", "peer_"]
            .iter()
            .any(|service| name.starts_with(service))
    };
    let counted: BTreeSet<_> = counted().into_iter().filter(of_services).collect();
    assert_eq!(documented(), counted);
}

#[test]
fn alerts_and_panels_look_at_metrics_that_exist() {
    let documented = documented();
    for file in ["deploy/prometheus/alerts.yml", "deploy/grafana/connito.json"] {
        let text = text(file);
        let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
        let services = ["chain_", "scheduler_", "gateway_", "evaluator_", "peer_", "rpc_"];
        for word in words.filter(|word| services.iter().any(|service| word.starts_with(service))) {
            let name = word
                .strip_suffix("_bucket")
                .or_else(|| word.strip_suffix("_sum"))
                .or_else(|| word.strip_suffix("_count"))
                .unwrap_or(word);
            assert!(documented.contains(name), "{file}: {word}");
        }
    }
}

#[test]
fn every_make_target_of_the_pages_exists() {
    let makefile = text("Makefile");
    for page in all(".md") {
        let text = fs::read_to_string(&page).unwrap();
        for rest in text.split("`make ").skip(1).chain(text.split("\nmake ").skip(1)) {
            let target = rest.split(|c: char| !c.is_alphanumeric() && c != '-').next().unwrap();
            let there = makefile.lines().any(|line| line.starts_with(&format!("{target}:")));
            assert!(there, "{}: make {target}", page.display());
        }
    }
}
