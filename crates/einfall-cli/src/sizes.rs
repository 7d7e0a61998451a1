//! Lengths on the command line: `-s b=8,q=1000` and `-s '[bhqk]=1000'`.
//!
//! In: the texts of `-s`. Out: [`Lengths`], asked by label or by bracket. A bracket stands for the axis it is written
//! for, in every term that has it; `1:[e]=7` is that of operand 1 alone.

use std::collections::BTreeMap;
use std::str::FromStr;

use einfall::Equation;

/// One `KEY=LEN`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Length {
    /// A label, a bracket, or a bracket of one operand: `q`, `[bhqk]`, `1:[e]`. Without spaces.
    pub key: String,
    /// The length.
    pub len: usize,
}

impl FromStr for Length {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = "hint: write a label or a bracket and its length, as in `b=8` or `[bhqk]=1000`";
        let (key, len) = text.rsplit_once('=').ok_or_else(|| format!("`{text}` has no `=`\n{wanted}"))?;
        let len = len.trim();
        let parsed = len.parse().map_err(|_| format!("`{len}` is not a length\n{wanted}"))?;
        let key: String = key.chars().filter(|c| !c.is_whitespace()).collect();
        if key.is_empty() {
            return Err(format!("`{text}` names nothing\n{wanted}"));
        }
        Ok(Self { key, len: parsed })
    }
}

/// All lengths that were given.
#[derive(Clone, Debug, Default)]
pub struct Lengths {
    by_key: BTreeMap<String, usize>,
}

impl Lengths {
    /// Collects what was given.
    ///
    /// # Errors
    /// Two lengths for one key.
    pub fn new(given: &[Length]) -> Result<Self, String> {
        let mut by_key = BTreeMap::new();
        for Length { key, len } in given {
            if let Some(before) = by_key.insert(key.clone(), *len)
                && before != *len
            {
                return Err(format!("`-s` gives `{key}` the length {before} and the length {len}"));
            }
        }
        Ok(Self { by_key })
    }

    /// Length of a label.
    pub fn label(&self, label: &str) -> Option<usize> {
        self.by_key.get(label).copied()
    }

    /// Length of an axis of operand `operand` under its bracket.
    pub fn bracket(&self, operand: usize, bracket: &str) -> Option<usize> {
        self.by_key.get(&format!("{operand}:{bracket}")).or_else(|| self.by_key.get(bracket)).copied()
    }

    /// What the library itself should be told: labels, and brackets of the output.
    pub fn for_library(&self, equation: &Equation) -> Vec<(&str, usize)> {
        let output = equation.explicit_output();
        let of_output = |key: &str| output.axes.iter().any(|axis| axis.to_string() == key);
        let of_operand = |key: &str| {
            let (operand, bracket) = match key.split_once(':') {
                Some((number, bracket)) => (number.parse().ok(), bracket),
                None => (None, key),
            };
            let has = |at: usize| equation.operands()[at].axes.iter().any(|axis| axis.to_string() == bracket);
            match operand {
                Some(at) => at < equation.operands().len() && has(at),
                None => (0..equation.operands().len()).any(has),
            }
        };
        // A bracket of an operand is used up where its shape is made; a key that fits nothing is the library's to refuse.
        let keys = self.by_key.iter().filter(|(key, _)| !key.contains('[') || of_output(key) || !of_operand(key));
        keys.map(|(key, &len)| (key.as_str(), len)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(texts: &[&str]) -> Lengths {
        Lengths::new(&texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn a_bracket_of_one_operand_goes_before_that_of_all() {
        let lengths = lengths(&["e=3", "[e]=5", "1:[e]=7", "[q + w - 3]=11"]);
        assert_eq!(lengths.label("e"), Some(3));
        assert_eq!(lengths.bracket(0, "[e]"), Some(5));
        assert_eq!(lengths.bracket(1, "[e]"), Some(7));
        assert_eq!(lengths.bracket(2, "[q+w-3]"), Some(11));
        assert_eq!(lengths.label("d"), None);
    }

    #[test]
    fn the_library_hears_of_labels_and_of_the_output() {
        let lengths = lengths(&["e=3", "[e]=5", "1:[e]=7", "[f]=2", "z=1"]);
        let equation = Equation::parse("[e]d,[e]d->[f]d").unwrap();
        assert_eq!(lengths.for_library(&equation), [("[f]", 2), ("e", 3), ("z", 1)]);
        let scatter = Equation::parse("e,ed->[e]d").unwrap();
        assert!(lengths.for_library(&scatter).contains(&("[e]", 5)));
    }

    #[test]
    fn mistakes_say_what_is_wanted() {
        for (text, wrong) in
            [("b", "has no `=`"), ("b=x", "`x` is not a length"), ("=3", "names nothing"), ("b=-1", "-1")]
        {
            let error = text.parse::<Length>().unwrap_err();
            assert!(error.contains(wrong) && error.contains("\nhint: "), "{error}");
        }
        let twice = ["b=3".parse().unwrap(), "b=4".parse().unwrap()];
        assert_eq!(Lengths::new(&twice).unwrap_err(), "`-s` gives `b` the length 3 and the length 4");
    }
}
