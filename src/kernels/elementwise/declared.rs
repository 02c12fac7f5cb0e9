//! What a rule's hyperparameters and states are called: declared once, beside the rule.

use super::Rule;
use crate::kernels::storage::Codebook;

/// Hyperparameters of an optimizer; with the number of a step they give the rule of that step.
pub trait Hyperparameters<const N: usize>: Copy {
    type Rule: Rule<N>;

    /// What the states are called, in the rule's order.
    const STATES: [&'static str; N];
    /// Those of the states that are never negative.
    const NEVER_NEGATIVE: &'static [&'static str] = &[];
    /// Whether the rule depends on the number of the step.
    const COUNTS_STEPS: bool = true;
    /// What a number of each parameter is called that is 1 before the first step, and that every step multiplies.
    const PRODUCT: Option<&'static str> = None;

    /// The rule of step `step` (1, 2, ...).
    fn at_step(&self, step: f64) -> Self::Rule;

    /// With `PRODUCT`: what step `step` multiplies it by, from 0 to 1.
    fn factor(&self, _step: f64) -> f64 {
        1.0
    }

    /// With `PRODUCT`: the rule of a step that knows the product, the step's own factor among the others.
    fn with_product(rule: Self::Rule, _product: f64) -> Self::Rule {
        rule
    }

    /// What codes of each state stand for, where it is kept in codes.
    fn books() -> [&'static Codebook; N] {
        Self::STATES.map(|state| match Self::NEVER_NEGATIVE.contains(&state) {
            true => Codebook::unsigned(),
            false => Codebook::signed(),
        })
    }
}

/// Hyperparameters that are the rule themselves, the same one at every step.
pub trait Steady<const N: usize>: Rule<N> {
    /// What the states are called, in the rule's order.
    const STATES: [&'static str; N];
    /// Those of the states that are never negative.
    const NEVER_NEGATIVE: &'static [&'static str] = &[];
}

impl<R: Steady<N>, const N: usize> Hyperparameters<N> for R {
    type Rule = R;

    const STATES: [&'static str; N] = R::STATES;
    const NEVER_NEGATIVE: &'static [&'static str] = R::NEVER_NEGATIVE;
    const COUNTS_STEPS: bool = false;

    fn at_step(&self, _step: f64) -> R {
        *self
    }
}

/// Where the values of hyperparameters come from.
pub trait Source {
    type Error;

    fn number(&mut self, name: &'static str) -> Result<f64, Self::Error>;
    fn flag(&mut self, name: &'static str) -> Result<bool, Self::Error>;
}

/// What kind of value a hyperparameter has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HyperparameterKind {
    Number,
    Flag,
}

/// A type that a hyperparameter may have.
pub trait Hyperparameter: Sized {
    const KIND: HyperparameterKind;

    fn read<S: Source>(source: &mut S, name: &'static str) -> Result<Self, S::Error>;
}

impl Hyperparameter for f64 {
    const KIND: HyperparameterKind = HyperparameterKind::Number;

    fn read<S: Source>(source: &mut S, name: &'static str) -> Result<f64, S::Error> {
        source.number(name)
    }
}

impl Hyperparameter for bool {
    const KIND: HyperparameterKind = HyperparameterKind::Flag;

    fn read<S: Source>(source: &mut S, name: &'static str) -> Result<bool, S::Error> {
        source.flag(name)
    }
}

/// A struct of hyperparameters whose names are known. Made by [`hyperparameters`].
pub trait ByName: Sized {
    const NAMES: &'static [(&'static str, HyperparameterKind)];

    /// Asks for every value, in the order of the names.
    fn read<S: Source>(source: &mut S) -> Result<Self, S::Error>;
}

/// Declares a struct of hyperparameters, or one that has those of another.
macro_rules! hyperparameters {
    ($(#[$attribute:meta])* pub struct $name:ident {
        $($(#[$of_field:meta])* $field:ident: $type:ty,)*
    }) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name {
            $($(#[$of_field])* pub $field: $type,)*
        }

        const _: () = {
            use $crate::kernels::elementwise::declared::{HyperparameterKind, ByName, Source, Hyperparameter};

            impl ByName for $name {
                const NAMES: &'static [(&'static str, HyperparameterKind)] = &[
                    $((stringify!($field), <$type as Hyperparameter>::KIND),)*
                ];

                fn read<S: Source>(source: &mut S) -> Result<Self, S::Error> {
                    Ok($name { $($field: Hyperparameter::read(source, stringify!($field))?,)* })
                }
            }
        };
    };
    ($(#[$attribute:meta])* pub struct $name:ident($other:ident);) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name(pub $other);

        const _: () = {
            use $crate::kernels::elementwise::declared::{HyperparameterKind, ByName, Source};

            impl ByName for $name {
                const NAMES: &'static [(&'static str, HyperparameterKind)] = <$other as ByName>::NAMES;

                fn read<S: Source>(source: &mut S) -> Result<Self, S::Error> {
                    ByName::read(source).map($name)
                }
            }
        };
    };
}
pub(super) use hyperparameters;

/// What is known of a rule without its hyperparameters' values.
#[derive(Clone, Copy, Debug)]
pub struct Declaration {
    pub name: &'static str,
    pub states: &'static [&'static str],
    pub never_negative: &'static [&'static str],
    pub hyperparameters: &'static [(&'static str, HyperparameterKind)],
    pub counts_steps: bool,
    pub product: Option<&'static str>,
}

impl Declaration {
    pub const fn of<H: Hyperparameters<N> + ByName, const N: usize>(name: &'static str) -> Declaration {
        Declaration {
            name,
            states: &H::STATES,
            never_negative: H::NEVER_NEGATIVE,
            hyperparameters: H::NAMES,
            counts_steps: H::COUNTS_STEPS,
            product: H::PRODUCT,
        }
    }
}

/// What is done with a rule, whichever it is.
pub trait Visitor {
    type Output;

    fn visit<H: Hyperparameters<N>, const N: usize>(self, rule: H) -> Self::Output;
}

/// The table of the rules: each known by its name, and handed on under its type.
macro_rules! rules {
    ($($module:ident::$rule:ident,)*) => {
        /// One of the rules, with its hyperparameters.
        #[derive(Clone, Copy, Debug)]
        pub enum AnyRule {
            $($rule($module::$rule),)*
        }

        impl AnyRule {
            /// All rules.
            pub const DECLARATIONS: &[Declaration] = &[
                $(Declaration::of::<$module::$rule, _>(stringify!($rule)),)*
            ];

            /// The rule of the declaration number `place`, with the hyperparameters that `source` has.
            pub fn read<S: Source>(place: usize, source: &mut S) -> Result<AnyRule, S::Error> {
                let readers: &[fn(&mut S) -> Result<AnyRule, S::Error>] =
                    &[$(|source| ByName::read(source).map(AnyRule::$rule),)*];
                readers[place](source)
            }

            pub fn visit<V: Visitor>(self, visitor: V) -> V::Output {
                match self {
                    $(AnyRule::$rule(rule) => visitor.visit(rule),)*
                }
            }
        }
    };
}
pub(super) use rules;
