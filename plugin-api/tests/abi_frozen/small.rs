//! A little ABI, and the same with one change each: what the description has to tell apart. Only
//! what is frozen for real is as large as the real one.

#![allow(non_local_definitions, non_camel_case_types, dead_code, reason = "types that are only described")]
#![allow(unsafe_code, clippy::undocumented_unsafe_blocks, reason = "what the derive writes")]

use abi_stable::StableAbi;
use abi_stable::std_types::RVec;
use abi_stable::type_layout::TypeLayout;

macro_rules! small {
    ($name:ident, {$($fields:tt)*}, {$($variants:tt)*}, {$($functions:tt)*}) => {
        pub mod $name {
            use super::*;

            #[repr(C)]
            #[derive(StableAbi)]
            pub struct Pair {
                $($fields)*
            }

            #[repr(u8)]
            #[derive(StableAbi)]
            pub enum Kind {
                $($variants)*
            }

            #[repr(C)]
            #[derive(StableAbi)]
            #[sabi(kind(Prefix(prefix_ref = RootRef, prefix_fields = RootPrefix)))]
            pub struct Root {
                $($functions)*
            }

            pub fn layout() -> &'static TypeLayout {
                <RootRef as StableAbi>::LAYOUT
            }
        }
    };
}

/// The functions of the base, with what comes after them.
macro_rules! with_functions {
    ($name:ident, {$($fields:tt)*}, {$($variants:tt)*} $($more:tt)*) => {
        small!($name, {$($fields)*}, {$($variants)*}, {
            pub take: extern "C" fn(Pair, Kind) -> RVec<u8>,
            #[sabi(last_prefix_field)]
            pub give: extern "C" fn(u32) -> Pair,
            $($more)*
        });
    };
}

with_functions!(base, {pub first: u32, pub second: u32}, {One = 1, Two = 2});
with_functions!(grown, {pub first: u32, pub second: u32}, {One = 1, Two = 2}
    pub later: extern "C" fn(RVec<u16>) -> Kind,);
with_functions!(swapped_fields, {pub second: u32, pub first: u32}, {One = 1, Two = 2});
with_functions!(inserted_field, {pub first: u32, pub between: u32, pub second: u32}, {One = 1, Two = 2});
with_functions!(appended_field, {pub first: u32, pub second: u32, pub third: u32}, {One = 1, Two = 2});
with_functions!(retyped_field, {pub first: u32, pub second: i32}, {One = 1, Two = 2});
with_functions!(renamed_field, {pub first: u32, pub other: u32}, {One = 1, Two = 2});
with_functions!(other_value, {pub first: u32, pub second: u32}, {One = 1, Two = 3});
with_functions!(more_variants, {pub first: u32, pub second: u32}, {One = 1, Two = 2, Three = 3});
with_functions!(swapped_variants, {pub first: u32, pub second: u32}, {Two = 1, One = 2});
small!(swapped_functions, {pub first: u32, pub second: u32}, {One = 1, Two = 2}, {
    pub give: extern "C" fn(u32) -> Pair,
    #[sabi(last_prefix_field)]
    pub take: extern "C" fn(Pair, Kind) -> RVec<u8>,
});
small!(longer_prefix, {pub first: u32, pub second: u32}, {One = 1, Two = 2}, {
    pub take: extern "C" fn(Pair, Kind) -> RVec<u8>,
    pub give: extern "C" fn(u32) -> Pair,
    #[sabi(last_prefix_field)]
    pub later: extern "C" fn(),
});
small!(swapped_arguments, {pub first: u32, pub second: u32}, {One = 1, Two = 2}, {
    pub take: extern "C" fn(Kind, Pair) -> RVec<u8>,
    #[sabi(last_prefix_field)]
    pub give: extern "C" fn(u32) -> Pair,
});
// The name of the type stays, only what it is a list of does not.
small!(other_parameter, {pub first: u32, pub second: u32}, {One = 1, Two = 2}, {
    pub take: extern "C" fn(Pair, Kind) -> RVec<u16>,
    #[sabi(last_prefix_field)]
    pub give: extern "C" fn(u32) -> Pair,
});

/// Each broken one, with the end of the place where the break is to be seen.
pub fn broken() -> Vec<(&'static str, &'static TypeLayout, &'static str)> {
    vec![
        ("swapped fields", swapped_fields::layout(), "Pair"),
        ("a field in the middle", inserted_field::layout(), "Pair"),
        ("a field at the end of what never grows", appended_field::layout(), "Pair"),
        ("a field of another type", retyped_field::layout(), "Pair"),
        ("a renamed field", renamed_field::layout(), "Pair"),
        ("another discriminant", other_value::layout(), "Kind"),
        ("a variant more in an exhaustive enum", more_variants::layout(), "Kind"),
        ("swapped variants", swapped_variants::layout(), "Kind"),
        ("swapped functions", swapped_functions::layout(), "Root"),
        ("a longer prefix", longer_prefix::layout(), "Root"),
        ("swapped arguments", swapped_arguments::layout(), "Root"),
        ("another parameter of a type", other_parameter::layout(), "RVec"),
    ]
}
