//! What a later version may make of an earlier one's description: everything that was there stays
//! as it was; what grows at its end gains lines there; new blocks may come.
//!
//! Blocks with a number are compared along the references from the first one, whatever number a
//! type has in the other description; the rest by their heads.

use std::collections::{BTreeMap, BTreeSet};

/// One place where a description breaks another.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Break {
    /// How one gets there.
    pub place: String,
    /// What there was; empty for something that is too much.
    pub was: String,
    /// What there is; empty for something that is gone.
    pub is: String,
}

impl std::fmt::Display for Break {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let said = |text: &str| if text.is_empty() { "nothing".to_owned() } else { text.to_owned() };
        write!(f, "at  {}\n  was {}\n  is  {}", self.place, said(&self.was), said(&self.is))
    }
}

/// Every break of `old` by `new`.
pub fn breaks(old: &str, new: &str) -> Vec<Break> {
    let (old, new) = (Blocks::of(old), Blocks::of(new));
    let mut found = vec![];
    for (head, lines) in &old.named {
        match new.named.get(head) {
            Some(others) => compare(head, head, lines, others, &mut found),
            None => found.push(Break {
                place: "the whole".to_owned(),
                was: (*head).to_owned(),
                is: String::new(),
            }),
        }
    }
    if let (Some(first), Some(other)) = (old.numbered.keys().next(), new.numbered.keys().next()) {
        walk((first, other), (&old, &new), &mut found);
    } else if !old.numbered.is_empty() {
        found.push(Break { place: "the whole".to_owned(), was: "Rust types".to_owned(), is: String::new() });
    }
    found
}

/// The number of a type in a description.
type Number = usize;

#[derive(Default)]
struct Blocks<'a> {
    named: BTreeMap<&'a str, Vec<&'a str>>,
    numbered: BTreeMap<Number, (&'a str, Vec<&'a str>)>,
}

impl<'a> Blocks<'a> {
    fn of(text: &'a str) -> Self {
        let mut blocks = Self::default();
        let chunks = text.split("\n\n").map(str::trim_end).filter(|chunk| !chunk.is_empty());
        for chunk in chunks {
            let mut lines = chunk.lines().filter(|line| !line.starts_with("//") && !line.is_empty());
            let Some(head) = lines.next() else { continue };
            let lines: Vec<&str> = lines.collect();
            match references(head).first() {
                Some(number) => {
                    let twice = blocks.numbered.insert(*number, (head, lines));
                    assert!(twice.is_none(), "two blocks of one number: {head}");
                }
                None => {
                    assert!(blocks.named.insert(head, lines).is_none(), "two blocks of one head: {head}");
                }
            }
        }
        blocks
    }
}

/// The numbers of types that a line names.
fn references(line: &str) -> Vec<Number> {
    let words = line.split('#').skip(1);
    words
        .filter_map(|rest| rest.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok())
        .collect()
}

/// A line without the numbers.
fn plain(line: &str) -> String {
    let mut parts = line.split('#');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text.push_str(part.trim_start_matches(|letter: char| letter.is_ascii_digit()));
    }
    let text = text.replace(" ,", ",").replace(" )", ")").replace(" :", ":").replace("  named", " named");
    text.replace("  lifetimes", " lifetimes").trim_end().to_owned()
}

fn walk((first, other): (&Number, &Number), (old, new): (&Blocks, &Blocks), found: &mut Vec<Break>) {
    let mut open = vec![(*first, *other, String::new())];
    let mut met = BTreeSet::new();
    while let Some((was, is, place)) = open.pop() {
        if !met.insert((was, is)) {
            continue;
        }
        let ((head, lines), (other_head, others)) = (&old.numbered[&was], &new.numbered[&is]);
        let name = plain(head.split(": ").next().unwrap_or_default());
        let place = if place.is_empty() { name } else { format!("{place} > {name}") };
        if plain(head) != plain(other_head) {
            found.push(Break { place, was: plain(head), is: plain(other_head) });
            // What is another type has other members, which says nothing more.
            continue;
        }
        compare(&place, head, lines, others, found);
        for (line, other) in lines.iter().zip(others) {
            if plain(line) == plain(other) {
                let member = line.trim_start().trim_start_matches(|letter: char| letter.is_ascii_digit());
                let member = member.trim_start().split(':').next().unwrap_or_default();
                let pairs = references(line).into_iter().zip(references(other));
                open.extend(pairs.map(|(was, is)| (was, is, format!("{place}.{member}"))));
            }
        }
    }
}

/// The lines of two blocks with one head, which says whether there may be more.
fn compare(place: &str, head: &str, was: &[&str], is: &[&str], found: &mut Vec<Break>) {
    let mut differs = |was: &str, is: &str| {
        found.push(Break { place: place.to_owned(), was: plain(was.trim()), is: plain(is.trim()) });
    };
    if head.ends_with("in any order") {
        was.iter().filter(|line| !is.contains(line)).for_each(|line| differs(line, ""));
        // A new member that must be there is one that nobody sends yet.
        let added = is.iter().filter(|line| !was.contains(line) && line.contains(", required"));
        added.for_each(|line| differs("", line));
        return;
    }
    for at in 0..was.len().max(is.len()) {
        match (was.get(at), is.get(at)) {
            (Some(was), Some(is)) if plain(was) == plain(is) => {}
            (None, Some(_)) if head.contains("grows at its end") => {}
            (was, is) => differs(was.unwrap_or(&""), is.unwrap_or(&"")),
        }
    }
}
