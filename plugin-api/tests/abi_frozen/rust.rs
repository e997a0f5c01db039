//! The Rust ABI in words: every type that the loader's layout check can reach from a root module.
//!
//! All that the check compares is said here, and the offsets besides, which follow from C's rules:
//! a description that did not change means that runners built on either side of it still load.
//! Types are numbered as they are met, because the name of one does not hold its parameters.

use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;

use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::UTypeId;
use abi_stable::type_layout::{TLData, TLEnum, TLField, TLFields, TLFunction, TLPrefixType, TypeLayout};

/// Describes the type of that layout and each one it leads to, a block for each.
pub fn describe(root: &'static TypeLayout) -> String {
    let mut text = String::new();
    let mut walk = Walk::default();
    walk.meet(root);
    while let Some(layout) = walk.open.pop_front() {
        text.push_str(&block(layout, &mut walk));
    }
    text
}

#[derive(Default)]
struct Walk {
    open: VecDeque<&'static TypeLayout>,
    numbers: HashMap<UTypeId, usize>,
}

impl Walk {
    /// The name and number of a type, which is to be described once.
    fn meet(&mut self, layout: &'static TypeLayout) -> String {
        let next = self.numbers.len() + 1;
        let number = *self.numbers.entry(layout.get_utypeid()).or_insert(next);
        if number == next {
            self.open.push_back(layout);
        }
        let name = one_line(&layout.full_type().to_string()).replace(" >", ">").replace(" ,", ",");
        format!("{name} #{number}")
    }
}

/// A head line, then one line for each thing in it.
fn block(layout: &'static TypeLayout, walk: &mut Walk) -> String {
    let data = layout.data();
    let kind = match &data {
        TLData::Primitive(primitive) => format!("primitive {primitive:?}"),
        TLData::Opaque => "opaque".to_owned(),
        TLData::Struct { .. } => "struct".to_owned(),
        TLData::Union { .. } => "union".to_owned(),
        TLData::Enum(it) if it.exhaustiveness.is_exhaustive() => "enum".to_owned(),
        TLData::Enum(_) => "enum, grows at its end".to_owned(),
        TLData::PrefixType(it) => format!("prefix type, fixed {}, grows at its end", it.first_suffix_field),
    };
    let (package, version) = layout.package_and_version();
    let mut text = format!("\n{}: {kind}", walk.meet(layout));
    // Writing to a text cannot fail.
    if !layout.is_prefix_kind() {
        let _ = write!(text, ", size {}", layout.size());
    }
    let _ = write!(text, ", align {}, {:?}", layout.alignment(), layout.repr_attr());
    let _ = writeln!(text, ", of {package} {}", compatible(version));
    aside(layout, walk, &mut text);
    match data {
        TLData::Primitive(_) | TLData::Opaque => {}
        TLData::Struct { fields } => members(layout, fields, walk, &mut text),
        TLData::Union { fields } => {
            fields.iter().for_each(|field| member(0, &field, walk, &mut text));
        }
        TLData::Enum(it) => variants(layout, &it, walk, &mut text),
        TLData::PrefixType(it) => functions(layout, &it, walk, &mut text),
    }
    text
}

/// What else the check compares of a type as a whole.
fn aside(layout: &'static TypeLayout, walk: &mut Walk, text: &mut String) {
    if layout.is_nonzero() {
        text.push_str("  never zero\n");
    }
    let generics = layout.generics();
    if generics.lifetime_count() > 0 {
        let _ = writeln!(text, "  lifetimes {}", generics.lifetime_count());
    }
    for parameter in generics.const_params() {
        let _ = writeln!(text, "  constant {parameter:?}");
    }
    for field in layout.phantom_fields().iter() {
        let _ = writeln!(text, "  as if {}: {}{}", field.name(), shown(&field, walk), lifetimes(&field));
    }
    let tag = layout.tag().to_string();
    if tag != "null" {
        let _ = writeln!(text, "  tag {}", one_line(&tag));
    }
    if let Some(checks) = layout.extra_checks() {
        let _ = writeln!(text, "  check {}", one_line(&checks.to_string()));
        for nested in checks.nested_type_layouts().iter() {
            walk.meet(nested);
        }
    }
}

/// Fields of a `repr(C)` struct, each at its offset.
fn members(layout: &TypeLayout, fields: TLFields, walk: &mut Walk, text: &mut String) {
    let mut end = 0_usize;
    for field in fields.iter() {
        end = end.next_multiple_of(field.layout().alignment());
        member(end, &field, walk, text);
        end += field.layout().size();
    }
    // Some of abi_stable's own keep their one field to themselves; what can grow has no size to hold.
    if !fields.is_empty() && !layout.is_prefix_kind() {
        let end = end.next_multiple_of(layout.alignment());
        assert_eq!(end, layout.size(), "C's rules place the members otherwise: {text}");
    }
}

fn functions(layout: &TypeLayout, it: &TLPrefixType, walk: &mut Walk, text: &mut String) {
    let conditional = it.conditional_prefix_fields.bits();
    if conditional != 0 {
        let _ = writeln!(text, "  conditional {conditional:b}");
    }
    let hidden: Vec<usize> = it
        .accessible_fields
        .iter()
        .take(it.fields.len())
        .enumerate()
        .filter_map(|(at, field)| (!field.is_accessible()).then_some(at))
        .collect();
    if !hidden.is_empty() {
        let _ = writeln!(text, "  not accessible {hidden:?}");
    }
    members(layout, it.fields, walk, text);
}

fn variants(layout: &TypeLayout, it: &TLEnum, walk: &mut Walk, text: &mut String) {
    let mut fields = it.fields.iter();
    let values = format!("{:?}", it.discriminants);
    let mut values = values.trim_matches(['[', ']']).split(", ");
    for (name, count) in it.variant_names_iter().zip(it.field_count.iter()) {
        let value = values.next().unwrap_or("?");
        let _ = writeln!(text, "  {name} = {value}");
        let own: Vec<TLField> = fields.by_ref().take(usize::from(*count)).collect();
        for field in own {
            let _ = writeln!(text, "    {}: {}{}", field.name(), shown(&field, walk), lifetimes(&field));
        }
    }
    let repr = it.discriminants.discriminant_repr();
    let _ = writeln!(text, "  discriminant {repr:?} of {} bytes in all", layout.size());
}

fn member(at: usize, field: &TLField, walk: &mut Walk, text: &mut String) {
    let _ = writeln!(text, "  {at:>3} {}: {}{}", field.name(), shown(field, walk), lifetimes(field));
}

/// The type of a field; the signature, where it is a function.
fn shown(field: &TLField, walk: &mut Walk) -> String {
    let own = walk.meet(field.layout());
    let functions: Vec<String> =
        field.function_range().iter().map(|function| signature(&function, walk)).collect();
    match (functions.is_empty(), field.is_function()) {
        (true, _) => own,
        (false, true) => functions.join(" and "),
        (false, false) => format!("{own} with {}", functions.join(" and ")),
    }
}

fn signature(function: &TLFunction, walk: &mut Walk) -> String {
    let parameters: Vec<String> =
        function.param_type_layouts.iter().map(|layout| walk.meet(layout())).collect();
    let mut text = format!("fn({})", parameters.join(", "));
    if function.fn_qualifs.is_unsafe() {
        text.insert_str(0, "unsafe ");
    }
    if let Some(layout) = function.return_type_layout() {
        let _ = write!(text, " -> {}", walk.meet(layout()));
    }
    // Their names are compared like those of fields.
    let names: Vec<&str> =
        function.param_names.as_str().split([';', ',']).filter(|name| !name.is_empty()).collect();
    if !names.is_empty() {
        let _ = write!(text, " named {}", names.join(" "));
    }
    if !function.paramret_lifetime_indices.is_empty() {
        let _ = write!(text, " lifetimes {:?}", &*function.paramret_lifetime_indices);
    }
    text
}

fn lifetimes(field: &TLField) -> String {
    let found = field.lifetime_indices();
    if found.is_empty() { String::new() } else { format!(" lifetimes {:?}", &*found) }
}

/// As much of a version as must stay: the major, of 0.x the minor too.
fn compatible(version: VersionStrings) -> String {
    let version = version.to_string();
    let mut parts = version.split('.');
    match (parts.next(), parts.next()) {
        (Some("0"), Some(minor)) => format!("0.{minor}"),
        (Some(major), _) => major.to_owned(),
        _ => version,
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
